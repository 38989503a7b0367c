"""Tuning jobs: trials, best job, lists, parallel trials, failures, stopping, refusals."""

import re
import uuid

import pytest
from botocore.exceptions import ClientError
from harness import until
from tuning_harness import (
    DEPTH,
    KIND,
    MAXIMIZE,
    RANGES,
    RATE,
    create,
    definition,
    describe,
    levels,
    request,
    score,
    start,
    statuses,
    trials,
    tune,
    wait,
)


@pytest.fixture(scope="module")
def bayesian(cloud):
    description, found = tune(
        cloud, jobs=6, Strategy="Bayesian", HyperParameterTuningJobObjective=MAXIMIZE, RandomSeed=7
    )
    assert [trial.get("FailureReason") for trial in found] == [None] * 6
    return description, found


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


def test_trials_know_the_objective_but_scripts_do_not_see_it(cloud, bayesian):
    description, found = bayesian
    static = description["TrainingJobDefinition"]["StaticHyperParameters"]
    assert static["_tuning_objective_metric"] == "score"
    trial = cloud.sagemaker.describe_training_job(TrainingJobName=found[0]["TrainingJobName"])
    # The script's own parser knows no such argument, and yet it completed.
    assert trial["HyperParameters"]["_tuning_objective_metric"] == "score"


def test_a_description_tells_time_and_progress(bayesian):
    description, found = bayesian
    seconds = description["ConsumedResources"]["RuntimeInSeconds"]
    took = description["HyperParameterTuningEndTime"] - description["CreationTime"]
    assert seconds == int(took.total_seconds())
    count = description["TuningJobCompletionDetails"]["NumberOfTrainingJobsObjectiveNotImproving"]
    assert 0 <= count < len(found)
    assert description["HyperParameterTuningJobConfig"]["TrainingJobEarlyStoppingType"] == "Off"


def test_trials_sorted_filtered_and_paged(cloud, bayesian):
    name = bayesian[0]["HyperParameterTuningJobName"]
    assert [t["TrainingJobName"] for t in trials(cloud, name)] == sorted(
        t["TrainingJobName"] for t in bayesian[1]
    )
    newest = trials(cloud, name, SortBy="CreationTime", SortOrder="Descending", MaxResults=1)
    assert newest[0]["CreationTime"] == max(t["CreationTime"] for t in bayesian[1])
    assert len(trials(cloud, name, StatusEquals="Completed", SortBy="Status")) == 6
    assert trials(cloud, name, StatusEquals="Failed") == []
    by_score = trials(cloud, name, SortBy="FinalObjectiveMetricValue", SortOrder="Descending")
    assert [score(t) for t in by_score] == sorted((score(t) for t in bayesian[1]), reverse=True)
    paginator = cloud.sagemaker.get_paginator(
        "list_training_jobs_for_hyper_parameter_tuning_job"
    ).paginate(HyperParameterTuningJobName=name, PaginationConfig={"PageSize": 4})
    pages = [len(page["TrainingJobSummaries"]) for page in paginator]
    assert pages == [4, 2]


def test_tuning_jobs_listed_by_name_status_and_page(cloud):
    prefix = f"list-{uuid.uuid4().hex[:8]}"
    for number in range(3):
        sent = request(cloud, jobs=1, parallel=1)
        wait(cloud, create(cloud, {**sent, "HyperParameterTuningJobName": f"{prefix}-{number}"}))

    def names(**arguments):
        answer = cloud.sagemaker.list_hyper_parameter_tuning_jobs(NameContains=prefix, **arguments)
        found = answer["HyperParameterTuningJobSummaries"]
        assert all(each["Strategy"] == "Random" for each in found)
        return [each["HyperParameterTuningJobName"][-1] for each in found], answer.get("NextToken")

    assert names() == (["0", "1", "2"], None)
    assert names(SortBy="CreationTime", SortOrder="Descending")[0] == ["2", "1", "0"]
    assert names(StatusEquals="Failed") == ([], None)
    first, token = names(MaxResults=2, SortBy="Status")
    assert first == ["0", "1"]
    assert names(MaxResults=2, SortBy="Status", NextToken=token) == (["2"], None)


def test_a_deleted_training_job_stays_in_the_lists(cloud):
    description, found = tune(cloud, jobs=2)
    for trial in found:
        cloud.sagemaker.delete_training_job(TrainingJobName=trial["TrainingJobName"])
    name = description["HyperParameterTuningJobName"]
    assert trials(cloud, name) == found
    assert describe(cloud, name)["BestTrainingJob"] == description["BestTrainingJob"]


def test_a_deleted_tuning_job_is_gone_but_not_its_training_jobs(cloud):
    description, found = tune(cloud, jobs=1, parallel=1)
    name = description["HyperParameterTuningJobName"]
    cloud.sagemaker.delete_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)
    for call in (describe, trials):
        with pytest.raises(cloud.sagemaker.exceptions.ResourceNotFound, match=name):
            call(cloud, name)
    with pytest.raises(ClientError, match="ResourceNotFound"):
        cloud.sagemaker.stop_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)
    cloud.sagemaker.describe_training_job(TrainingJobName=found[0]["TrainingJobName"])


def test_a_name_is_taken_once_and_tags_reach_the_training_jobs(cloud):
    sent = request(cloud, jobs=1, parallel=1)
    tags = [{"Key": "team", "Value": "bins"}]
    _, found = tune(cloud, {**sent, "Tags": tags})
    with pytest.raises(cloud.sagemaker.exceptions.ResourceInUse):
        create(cloud, sent)
    assert cloud.sagemaker.list_tags(ResourceArn=found[0]["TrainingJobArn"])["Tags"] == tags


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
    [
        pytest.param(
            "raise SystemExit('always')",
            "No training job succeeded after 5 attempts.*always",
            id="failing",
        ),
        pytest.param(
            "print('no metric')",
            "No objective metrics found after running 5 training jobs.*'score'",
            id="no-metric",
        ),
        pytest.param("print('score=nan score=inf')", "No objective metrics", id="not-finite"),
    ],
)
def test_a_search_without_any_result_is_given_up(cloud, script, words):
    description, found = tune(cloud, script=script, jobs=9, parallel=1)
    assert description["HyperParameterTuningJobStatus"] == "Failed"
    assert re.search(words, description["FailureReason"])
    assert "BestTrainingJob" not in description
    assert len(found) == 5
    assert description["ObjectiveStatusCounters"] == {"Succeeded": 0, "Pending": 0, "Failed": 5}


def test_a_late_result_keeps_a_search_alive(cloud):
    script = levels(*[None] * 4, 1, None).replace("print(", "levels[number - 1] and print(")
    description, found = tune(cloud, script=script, jobs=6, parallel=1)
    assert description["HyperParameterTuningJobStatus"] == "Completed"
    assert len(found) == 6
    assert description["BestTrainingJob"]["TrainingJobName"] == found[4]["TrainingJobName"]


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
    assert statuses(trials(cloud, name)) == ["Stopped", "Stopped"]
    assert description["TrainingJobStatusCounters"]["Stopped"] == 2
    assert score(description["BestTrainingJob"]) == 1
    with pytest.raises(ClientError, match="status Stopped"):
        cloud.sagemaker.stop_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)


def hyperband(**resources):
    return {
        "Strategy": "Hyperband",
        "StrategyConfig": {"HyperbandStrategyConfig": resources},
    }


@pytest.mark.parametrize(
    ("config", "words"),
    [
        pytest.param({"ParameterRanges": {}}, "no parameter ranges", id="no-ranges"),
        pytest.param(
            {"ParameterRanges": {"IntegerParameterRanges": [{**DEPTH, "MinValue": "x"}]}},
            "not an integer",
            id="not-a-number",
        ),
        pytest.param(
            {"HyperParameterTuningJobObjective": {"Type": "Minimize", "MetricName": "other"}},
            "A metric is required for this hyperparameter tuning job objective",
            id="unknown-metric",
        ),
        pytest.param({"jobs": 1}, "MaxParallelTrainingJobs, 2", id="more-parallel-than-jobs"),
        pytest.param({"jobs": None}, "needs an end", id="no-end"),
        pytest.param(
            {"ParameterRanges": {"IntegerParameterRanges": [DEPTH]}},
            r"combinations for the provided ranges \[3.0\] must be equal or greater",
            id="few-combinations",
        ),
        pytest.param({"static": {"rate": "1"}}, "'rate' is static and tuned", id="both"),
        pytest.param({"Strategy": "Grid"}, "categorical parameters only", id="grid-of-numbers"),
        pytest.param(
            {"Strategy": "Grid", "ParameterRanges": {"CategoricalParameterRanges": [KIND]}},
            "distinct combinations, which is 2",
            id="grid-of-another-size",
        ),
        pytest.param({"Strategy": "Hyperband"}, "needs MaxResource", id="hyperband-without-end"),
        pytest.param(hyperband(MinResource=9, MaxResource=3), "greater than", id="upside-down"),
        pytest.param(hyperband(MaxResource=20001), "20000", id="many-epochs"),
        pytest.param(
            {**hyperband(MaxResource=9), "TrainingJobEarlyStoppingType": "Auto"},
            "must be Off",
            id="hyperband-with-early-stopping",
        ),
        pytest.param(
            {"StrategyConfig": hyperband(MaxResource=9)["StrategyConfig"]},
            "Hyperband strategy only",
            id="hyperband-settings-elsewhere",
        ),
        pytest.param(
            {"ParameterRanges": {"AutoParameters": [{"Name": "rate", "ValueHint": "0.1"}]}},
            "need Autotune",
            id="auto-parameters-alone",
        ),
    ],
)
def test_what_cannot_be_searched_is_refused_at_creation(cloud, config, words):
    sent = request(cloud, **config)
    with pytest.raises(ClientError, match=words) as refused:
        create(cloud, sent)
    assert refused.value.response["Error"]["Code"] == "ValidationException"


def flexible(**fields):
    return {"HyperParameterTuningResourceConfig": fields}


LARGE = {"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 1}


@pytest.mark.parametrize(
    ("removed", "added", "words"),
    [
        pytest.param("ResourceConfig", {}, "either ResourceConfig", id="neither"),
        pytest.param(None, flexible(**LARGE), "either ResourceConfig", id="both"),
        pytest.param("ResourceConfig", flexible(), "no instance type", id="empty"),
        pytest.param(
            "ResourceConfig",
            flexible(InstanceConfigs=[LARGE], InstanceType="ml.m5.large"),
            "either InstanceConfigs",
            id="two-ways",
        ),
    ],
)
def test_instances_must_be_named_in_one_way(cloud, removed, added, words):
    sent = request(cloud)
    sent["TrainingJobDefinition"].pop(removed, None)
    sent["TrainingJobDefinition"].update(added)
    with pytest.raises(ClientError, match=words):
        create(cloud, sent)


def test_of_several_instance_types_the_first_is_used(cloud):
    sent = request(cloud, jobs=1, parallel=1)
    del sent["TrainingJobDefinition"]["ResourceConfig"]
    second = {**LARGE, "InstanceType": "ml.m5.xlarge"}
    sent["TrainingJobDefinition"].update(flexible(InstanceConfigs=[LARGE, second]))
    _, found = tune(cloud, sent)
    trial = cloud.sagemaker.describe_training_job(TrainingJobName=found[0]["TrainingJobName"])
    assert trial["ResourceConfig"] == LARGE


def several(cloud, *names, **config):
    """A request with one definition a name, each tuning a hyperparameter of its own."""
    sent = request(cloud, **config)
    del sent["TrainingJobDefinition"]
    del sent["HyperParameterTuningJobConfig"]["ParameterRanges"]
    objective = sent["HyperParameterTuningJobConfig"].pop("HyperParameterTuningJobObjective")
    script = "import sys; print('score=%d' % len(sys.argv[1]))"
    sent["TrainingJobDefinitions"] = [
        definition(
            cloud,
            script,
            DefinitionName=name,
            TuningObjective=objective,
            HyperParameterRanges={"IntegerParameterRanges": [{**DEPTH, "Name": name * 3}]},
        )
        for name in names
    ]
    return sent


def test_several_definitions_share_one_search(cloud):
    description, found = tune(cloud, several(cloud, "dog", "parrot", jobs=4))
    assert sorted(t["TrainingJobDefinitionName"] for t in found) == ["dog"] * 2 + ["parrot"] * 2
    assert all(
        set(t["TunedHyperParameters"]) == {t["TrainingJobDefinitionName"] * 3} for t in found
    )
    # The script reports the length of its first argument: "--dogdogdog".
    assert description["BestTrainingJob"]["TrainingJobDefinitionName"] == "dog"
    assert score(description["BestTrainingJob"]) == 11
    assert "TrainingJobDefinition" not in description


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param(lambda sent: sent.pop("TrainingJobDefinitions"), "either", id="none"),
        pytest.param(
            lambda sent: sent.update(TrainingJobDefinition=sent["TrainingJobDefinitions"][0]),
            "either",
            id="both-fields",
        ),
        pytest.param(
            lambda sent: sent["TrainingJobDefinitions"][0].pop("DefinitionName"),
            "needs a DefinitionName",
            id="unnamed",
        ),
        pytest.param(
            lambda sent: sent["TrainingJobDefinitions"][0].update(DefinitionName="b"),
            "more than once",
            id="same-name",
        ),
        pytest.param(
            lambda sent: sent["TrainingJobDefinitions"][0].update(TuningObjective=MAXIMIZE),
            "same Type",
            id="directions",
        ),
        pytest.param(
            lambda sent: sent["HyperParameterTuningJobConfig"].update(ParameterRanges=RANGES),
            "its own TuningObjective",
            id="ranges-twice",
        ),
        pytest.param(
            lambda sent: sent["HyperParameterTuningJobConfig"].update(
                TrainingJobEarlyStoppingType="Auto"
            ),
            "single TrainingJobDefinition",
            id="early-stopping",
        ),
    ],
)
def test_definitions_that_do_not_fit_together_are_refused(cloud, change, words):
    sent = several(cloud, "a", "b")
    change(sent)
    with pytest.raises(ClientError, match=words):
        create(cloud, sent)
