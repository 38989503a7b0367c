"""The search on stored features and the evaluation with its gate, as jobs."""

import collections
import csv
import math

import pytest
from sagemaker.core.parameter import CategoricalParameter, ContinuousParameter
from sagemaker.train.tuner import HyperparameterTuner

from studio.evaluation import load_report
from studio.jobs import JobFailed, follow, follow_tuning, log_lines
from vision.classifier import load_classifier
from vision.data import list_split, load_split


def test_the_trials_of_a_search_read_the_features_that_a_job_computed(jobs):
    """The backbone runs in a processing job; every trial gets its output as a channel."""
    splits = {name: jobs.uris[name] for name in ("train", "valid")}
    computed = jobs.process(
        "features", "extract_features.py", splits, "features", ["--image-size", "32"]
    )
    lines = log_lines(jobs.cloud, computed["ProcessingJobName"], "ProcessingJob")
    assert sum(line.startswith("computed the features") for line in lines) == 2

    fixed = {"recipe": "photos", "image-size": 32, "epochs": 3}
    tuner = HyperparameterTuner(
        jobs.trainer("trial", fixed, script="hpo.py"),
        objective_metric_name="valid_accuracy",
        metric_definitions=[{"Name": "valid_accuracy", "Regex": r"best_valid_accuracy=([0-9.]+)"}],
        hyperparameter_ranges={
            "lr": ContinuousParameter(0.002, 0.02, scaling_type="Logarithmic"),
            "batch-size": CategoricalParameter([8, 16]),
        },
        max_jobs=2,
        max_parallel_jobs=2,
        random_seed=1,
        base_tuning_job_name=jobs.cloud.run,
    )
    tuner.tune(inputs=jobs.channels("train", "valid", "features"), wait=False)
    table = follow_tuning(jobs.cloud, tuner.latest_tuning_job.get_name())
    assert list(table["status"]) == ["Completed"] * 2
    assert table["objective"].max() > 0.5
    for name in table["name"]:
        told = "\n".join(log_lines(jobs.cloud, name))
        assert told.count("read the features of") == 3  # Two views to learn from, one to choose by.
        assert "computed the features" not in told


@pytest.fixture(scope="module")
def good_and_bad(jobs):
    """The descriptions of a training that learnt, and of one that had no time to."""
    fixed = {"batch-size": 24, "patience": 0}
    good = jobs.start("good", {**fixed, "epochs": 6, "lr": 0.01})
    bad = jobs.start("bad", {**fixed, "epochs": 1, "lr": 0.002})
    return [follow(jobs.cloud, name) for name in (good, bad)]


@pytest.fixture(scope="module")
def failed_gate(jobs, good_and_bad, tmp_path_factory):
    """Why the evaluation of the bad model fails beside the good one, and the report it leaves."""
    good, bad = (job["ModelArtifacts"]["S3ModelArtifacts"] for job in good_and_bad)
    inputs = {"model": bad, "previous": good, "test": jobs.uris["test"]}
    with pytest.raises(JobFailed) as caught:
        jobs.process("gate", "evaluate.py", inputs, "evaluation", ["--min-accuracy", "0.9"])
    folder = tmp_path_factory.mktemp("evaluation")
    return str(caught.value), load_report(jobs.cloud, jobs.uris["evaluation"], folder)


def test_the_quality_gate_fails_the_job_and_its_report_is_uploaded(failed_gate):
    reason, evaluation = failed_gate
    assert evaluation["accuracy"] < 0.9
    accuracy = f"{evaluation['accuracy']:.4f}"
    assert f"the accuracy of {accuracy} is below the --min-accuracy of 0.9" in reason
    assert evaluation["n"] == len(evaluation.confidences()) == 24


def test_the_comparison_with_another_model_counts_what_each_has_right(
    jobs, good_and_bad, failed_gate, stripes
):
    evaluation = failed_gate[1]
    other = load_classifier(jobs.model(good_and_bad[0]))
    split = load_split(list_split(stripes / "test"), other.class_names, 16, 1)
    other_right = other.probabilities(split.images).argmax(1) == split.labels
    other_right = dict(zip(split.names, other_right.tolist(), strict=True))
    with (evaluation.folder / "predictions.csv").open() as file:
        this_right = {row["file"]: row["true"] == row["predicted"] for row in csv.DictReader(file)}
    pairs = collections.Counter((right, other_right[name]) for name, right in this_right.items())

    compared = evaluation["baselines"]["previous_model"]
    assert compared["accuracy"] == pytest.approx(sum(other_right.values()) / 24)
    counts = dict(compared["mcnemar"])
    only_this, only_other = pairs[True, False], pairs[False, True]
    # Two-sided and exact: how likely a fair coin falls so unevenly.
    thrown = only_this + only_other
    rarer = sum(math.comb(thrown, k) for k in range(min(only_this, only_other) + 1))
    assert counts.pop("p_value") == pytest.approx(min(1, 2 * rarer / 2**thrown))
    assert counts == {
        "only_this_right": only_this,
        "only_other_right": only_other,
        "both_right": pairs[True, True],
        "both_wrong": pairs[False, False],
    }
    assert only_other > only_this
