"""Tuning jobs: ranges, strategies, parallel trials, best job, failures, stopping."""

import uuid

import pytest
from botocore.exceptions import ClientError
from harness import BUCKET, FINAL, ROLE, archive, until

SCORES = """
import argparse
parser = argparse.ArgumentParser()
parser.add_argument("--rate", type=float)
parser.add_argument("--depth", type=int)
parser.add_argument("--kind")
args = parser.parse_args()
print("score=-1000000")  # An early value, which the last one replaces.
print("score=%r" % ((args.rate - 0.01) ** 2 + (args.depth or 0) + (args.kind == "b")))
"""
RATE = {"Name": "rate", "MinValue": "0.001", "MaxValue": "0.1", "ScalingType": "Logarithmic"}
DEPTH = {"Name": "depth", "MinValue": "2", "MaxValue": "4", "ScalingType": "Linear"}
KIND = {"Name": "kind", "Values": ["a", "b"]}
RANGES = {
    "ContinuousParameterRanges": [RATE],
    "IntegerParameterRanges": [DEPTH],
    "CategoricalParameterRanges": [KIND],
}


def request(cloud, script=SCORES, jobs=4, parallel=2, ranges=RANGES, **config):
    name = f"tune-{uuid.uuid4().hex[:10]}"
    source = cloud.put(f"source/{name}.tar.gz", archive({"main.py": script}))
    return {
        "HyperParameterTuningJobName": name,
        "HyperParameterTuningJobConfig": {
            "Strategy": "Random",
            "HyperParameterTuningJobObjective": {"Type": "Minimize", "MetricName": "score"},
            "ResourceLimits": {
                "MaxNumberOfTrainingJobs": jobs,
                "MaxParallelTrainingJobs": parallel,
            },
            "ParameterRanges": ranges,
            **config,
        },
        "TrainingJobDefinition": {
            "StaticHyperParameters": {
                "sagemaker_program": "main.py",
                "sagemaker_submit_directory": source,
            },
            "AlgorithmSpecification": {
                "TrainingImage": "any/image:1",
                "TrainingInputMode": "File",
                "MetricDefinitions": [{"Name": "score", "Regex": r"score=([-0-9.e]+)"}],
            },
            "RoleArn": ROLE,
            "OutputDataConfig": {"S3OutputPath": f"s3://{BUCKET}/tune"},
            "ResourceConfig": {
                "InstanceType": "ml.m5.large",
                "InstanceCount": 1,
                "VolumeSizeInGB": 1,
            },
            "StoppingCondition": {"MaxRuntimeInSeconds": 60},
        },
    }


def describe(cloud, name):
    return cloud.sagemaker.describe_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)


def start(cloud, **arguments):
    sent = request(cloud, **arguments)
    cloud.sagemaker.create_hyper_parameter_tuning_job(**sent)
    return sent["HyperParameterTuningJobName"]


def wait(cloud, name):
    def ended():
        description = describe(cloud, name)
        return description if description["HyperParameterTuningJobStatus"] in FINAL else None

    return until(ended)


def trials(cloud, name, **arguments):
    return cloud.sagemaker.list_training_jobs_for_hyper_parameter_tuning_job(
        HyperParameterTuningJobName=name, **arguments
    )["TrainingJobSummaries"]


def tune(cloud, **arguments):
    """Run a tuning job; return its description and the summaries of its trials."""
    name = start(cloud, **arguments)
    return wait(cloud, name), trials(cloud, name)


def score(summary):
    return summary["FinalHyperParameterTuningJobObjectiveMetric"]["Value"]


@pytest.fixture(scope="module")
def bayesian(cloud):
    objective = {"Type": "Maximize", "MetricName": "score"}
    return tune(
        cloud, jobs=6, Strategy="Bayesian", HyperParameterTuningJobObjective=objective, RandomSeed=7
    )


def test_trials_keep_to_the_ranges(bayesian):
    description, found = bayesian
    assert description["HyperParameterTuningJobStatus"] == "Completed"
    assert len(found) == 6
    for trial in found:
        tuned = trial["TunedHyperParameters"]
        assert 0.001 <= float(tuned["rate"]) <= 0.1
        assert tuned["depth"] in ("2", "3", "4")
        assert tuned["kind"] in ("a", "b")
    assert len({trial["TunedHyperParameters"]["rate"] for trial in found}) == 6


def test_the_objective_is_the_last_value_the_script_printed(bayesian):
    for trial in bayesian[1]:
        tuned = trial["TunedHyperParameters"]
        expected = (float(tuned["rate"]) - 0.01) ** 2 + int(tuned["depth"]) + (tuned["kind"] == "b")
        assert score(trial) == pytest.approx(expected, rel=1e-6)


def test_the_best_job_is_the_largest_when_maximizing(bayesian):
    description, found = bayesian
    best = max(found, key=score)
    assert score(min(found, key=score)) < score(best)
    assert description["BestTrainingJob"]["TrainingJobName"] == best["TrainingJobName"]
    assert description["TrainingJobStatusCounters"]["Completed"] == 6
    assert description["ObjectiveStatusCounters"]["Succeeded"] == 6


def test_the_best_job_is_the_smallest_when_minimizing(cloud):
    description, found = tune(cloud, jobs=5)
    best = min(found, key=score)
    assert score(max(found, key=score)) > score(best)
    assert description["BestTrainingJob"]["TrainingJobName"] == best["TrainingJobName"]


def test_trials_are_training_jobs_of_the_tuning_job(cloud, bayesian):
    description, found = bayesian
    trial = cloud.sagemaker.describe_training_job(TrainingJobName=found[0]["TrainingJobName"])
    assert trial["TuningJobArn"] == description["HyperParameterTuningJobArn"]
    assert trial["HyperParameters"]["rate"] == found[0]["TunedHyperParameters"]["rate"]


def test_trials_sorted_by_objective_and_paged(cloud, bayesian):
    name = bayesian[0]["HyperParameterTuningJobName"]
    by_score = trials(cloud, name, SortBy="FinalObjectiveMetricValue", SortOrder="Descending")
    assert [score(t) for t in by_score] == sorted((score(t) for t in bayesian[1]), reverse=True)
    paginator = cloud.sagemaker.get_paginator(
        "list_training_jobs_for_hyper_parameter_tuning_job"
    ).paginate(HyperParameterTuningJobName=name, PaginationConfig={"PageSize": 4})
    pages = [len(page["TrainingJobSummaries"]) for page in paginator]
    assert pages == [4, 2]


def test_a_logarithmic_range_is_searched_evenly_in_its_logarithm(cloud):
    ranges = {"ContinuousParameterRanges": [{**RATE, "MinValue": "1e-9", "MaxValue": "1"}]}
    _, found = tune(cloud, jobs=8, parallel=2, ranges=ranges, RandomSeed=1)
    rates = [float(trial["TunedHyperParameters"]["rate"]) for trial in found]
    # Of a linear range one in thirty would be below 1/30.
    assert sum(rate < 1 / 30 for rate in rates) >= 4


def test_a_seed_repeats_a_random_search(cloud):
    ranges = {"ContinuousParameterRanges": [RATE]}
    names = [start(cloud, jobs=3, parallel=1, ranges=ranges, RandomSeed=seed) for seed in (5, 5, 6)]
    rates = []
    for name in names:
        wait(cloud, name)
        found = sorted(trials(cloud, name), key=lambda trial: trial["CreationTime"])
        rates.append([trial["TunedHyperParameters"]["rate"] for trial in found])
    assert rates[0] == rates[1] != rates[2]


def test_trials_run_side_by_side(cloud):
    # Each trial waits until it has seen the other, so one after the other they would both fail.
    script = """
import glob, os, sys, tempfile, time
folder = os.path.join(tempfile.gettempdir(), os.environ["MEETING"])
os.makedirs(folder, exist_ok=True)
open(os.path.join(folder, str(os.getpid())), "w").close()
for _ in range(200):
    if len(os.listdir(folder)) == 2:
        print("score=1")
        sys.exit(0)
    time.sleep(0.05)
sys.exit("nobody came")
"""
    sent = request(cloud, script=script, jobs=2, parallel=2)
    sent["TrainingJobDefinition"]["Environment"] = {"MEETING": f"meeting-{uuid.uuid4().hex}"}
    cloud.sagemaker.create_hyper_parameter_tuning_job(**sent)
    description = wait(cloud, sent["HyperParameterTuningJobName"])
    assert description["TrainingJobStatusCounters"]["Completed"] == 2


def test_failing_trials_are_counted_and_survived(cloud):
    script = """
import os, sys
number = os.environ["TRAINING_JOB_NAME"].split("-")[-2]
if number in ("001", "003"):
    sys.exit(f"trial {number} is broken")
print("score=1")
"""
    description, found = tune(cloud, script=script, jobs=4)
    assert description["HyperParameterTuningJobStatus"] == "Completed"
    assert description["TrainingJobStatusCounters"]["NonRetryableError"] == 2
    assert description["TrainingJobStatusCounters"]["Completed"] == 2
    assert description["ObjectiveStatusCounters"] == {"Succeeded": 2, "Pending": 0, "Failed": 2}
    failed = [trial for trial in found if "-001-" in trial["TrainingJobName"]]
    assert "trial 001 is broken" in failed[0]["FailureReason"]
    assert failed[0]["ObjectiveStatus"] == "Failed"


@pytest.mark.parametrize(
    ("script", "words"),
    [("raise SystemExit('always')", "always"), ("print('no metric')", "score")],
)
def test_a_search_without_any_result_fails_with_the_reason(cloud, script, words):
    description, _ = tune(cloud, script=script, jobs=4)
    assert description["HyperParameterTuningJobStatus"] == "Failed"
    assert words in description["FailureReason"]
    assert "BestTrainingJob" not in description


def test_stopping_stops_the_trials(cloud):
    script = "import time; print('score=1', flush=True); time.sleep(60)"
    name = start(cloud, script=script, jobs=6, parallel=2)

    def two_train():
        found = [t["TrainingJobName"] for t in trials(cloud, name)]
        return len(found) == 2 and all("score=1" in cloud.training_lines(t) for t in found)

    until(two_train)
    cloud.sagemaker.stop_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)
    description = wait(cloud, name)
    assert description["HyperParameterTuningJobStatus"] == "Stopped"
    assert [trial["TrainingJobStatus"] for trial in trials(cloud, name)] == ["Stopped", "Stopped"]
    with pytest.raises(ClientError, match="status Stopped"):
        cloud.sagemaker.stop_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"Strategy": "Hyperband"}, "Bayesian and Random"),
        ({"ParameterRanges": {}}, "no parameter ranges"),
        (
            {"ParameterRanges": {"ContinuousParameterRanges": [{**RATE, "MinValue": "0"}]}},
            "above 0",
        ),
        ({"ParameterRanges": {"ContinuousParameterRanges": [{**RATE, "MinValue": "9"}]}}, "empty"),
        ({"ParameterRanges": {"IntegerParameterRanges": [{**DEPTH, "MinValue": "x"}]}}, "numeric"),
        (
            {"HyperParameterTuningJobObjective": {"Type": "Minimize", "MetricName": "other"}},
            "'other' is not among",
        ),
    ],
)
def test_what_cannot_be_searched_is_refused_at_creation(cloud, config, words):
    sent = request(cloud, **config)
    with pytest.raises(ClientError, match=words) as refused:
        cloud.sagemaker.create_hyper_parameter_tuning_job(**sent)
    assert refused.value.response["Error"]["Code"] == "ValidationException"


def test_tuner_of_the_sdk(cloud, sdk, tmp_path):
    from sagemaker.core.parameter import CategoricalParameter, ContinuousParameter
    from sagemaker.core.training.configs import Compute, SourceCode
    from sagemaker.train import ModelTrainer
    from sagemaker.train.tuner import HyperparameterTuner

    (tmp_path / "main.py").write_text(SCORES)
    trainer = ModelTrainer(
        training_image="any/image:1",
        role=ROLE,
        sagemaker_session=sdk,
        source_code=SourceCode(source_dir=str(tmp_path), entry_script="main.py"),
        compute=Compute(instance_type="ml.m5.large", instance_count=1),
        hyperparameters={"depth": 2},
        base_job_name="sdk",
    )
    tuner = HyperparameterTuner(
        trainer,
        "score",
        {
            "rate": ContinuousParameter(0.001, 0.1, scaling_type="Logarithmic"),
            "kind": CategoricalParameter(["a", "b"]),
        },
        metric_definitions=[{"Name": "score", "Regex": r"score=([-0-9.e]+)"}],
        objective_type="Minimize",
        max_jobs=3,
        max_parallel_jobs=2,
    )
    tuner.tune(wait=False)
    name = tuner.latest_tuning_job.hyper_parameter_tuning_job_name
    assert wait(cloud, name)["HyperParameterTuningJobStatus"] == "Completed"
    table = tuner.analytics().dataframe()
    assert len(table) == 3
    best = table.sort_values("FinalObjectiveValue").iloc[0]
    assert tuner.best_training_job() == best["TrainingJobName"]
    assert set(table["kind"].str.strip('"')) <= {"a", "b"}
