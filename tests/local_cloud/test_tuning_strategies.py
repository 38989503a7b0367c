"""Tuning jobs: Grid, Hyperband, early stopping, completion criteria, warm start, Autotune."""

import itertools
import time

import pytest
from botocore.exceptions import ClientError
from harness import BUCKET, FINAL, until
from tuning_harness import (
    DEPTH,
    KIND,
    MAXIMIZE,
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

from local_cloud.stopping import MedianRule, Progress

ONE_RATE = {"ContinuousParameterRanges": [RATE]}
SIZES = {"Name": "size", "Values": ["1", "2", "3"]}
GRID = {"CategoricalParameterRanges": [SIZES, KIND]}
LONG = 30  # Seconds that a trial would take which is to be stopped.


def in_turn(script, **config):
    """Arguments of a search whose trials run one after the other and are told apart by number."""
    return {
        "script": script,
        "parallel": 1,
        "ranges": ONE_RATE,
        "HyperParameterTuningJobObjective": MAXIMIZE,
        **config,
    }


def test_a_grid_tries_every_combination_once(cloud):
    script = "import sys; print('score=%d' % (int(sys.argv[-1]) + ('b' in sys.argv)))"
    description, found = tune(cloud, script=script, jobs=None, ranges=GRID, Strategy="Grid")
    tried = [(t["TunedHyperParameters"]["size"], t["TunedHyperParameters"]["kind"]) for t in found]
    assert tried == list(itertools.product(SIZES["Values"], KIND["Values"]))
    assert description["HyperParameterTuningJobStatus"] == "Completed"
    assert [trial.get("FailureReason") for trial in found] == [None] * 6
    assert description["BestTrainingJob"]["TunedHyperParameters"] == {"size": "1", "kind": "a"}
    assert (
        "MaxNumberOfTrainingJobs"
        not in (description["HyperParameterTuningJobConfig"]["ResourceLimits"])
    )


def test_trials_that_fall_behind_are_stopped_early_and_still_counted(cloud):
    # The first two complete and set the median, 0.7; the third is worse, the fourth is not.
    script = levels(0.8, 0.6, 0.1, 0.9, epochs=3, pause=0.05)
    script = script.replace("time.sleep(pause)", f"time.sleep({LONG} if number == 3 else pause)")
    began = time.monotonic()
    description, found = tune(cloud, **in_turn(script, jobs=4, TrainingJobEarlyStoppingType="Auto"))
    assert time.monotonic() - began < LONG
    # The second begins below the first; the rule has no mercy on a second trial either.
    assert statuses(found) == ["Completed", "Stopped", "Stopped", "Completed"]
    assert [score(trial) for trial in found] == [0.8, 0.6, 0.1, 0.9]
    assert description["ObjectiveStatusCounters"] == {"Succeeded": 4, "Pending": 0, "Failed": 0}
    assert description["TrainingJobStatusCounters"]["Stopped"] == 2
    assert description["BestTrainingJob"]["TrainingJobName"] == found[3]["TrainingJobName"]


def test_without_early_stopping_all_trials_complete(cloud):
    _, found = tune(cloud, **in_turn(levels(0.8, 0.1, epochs=2), jobs=2))
    assert statuses(found) == ["Completed"] * 2


def test_the_median_rule_compares_with_running_averages_up_to_the_epoch():
    rule = MedianRule(maximize=True)
    assert not rule.lags([-5])  # Nothing has completed.
    rule.add([0.1, 0.5, 0.9])  # Running averages 0.1, 0.3, 0.5.
    rule.add([0.3, 0.7])  # 0.3, 0.5.
    rule.add([0.2, 0.2, 0.2])  # 0.2, 0.2, 0.2.
    assert rule.lags([0.19])
    assert not rule.lags([0.2])
    assert rule.lags([0.9, 0.29])  # The last value counts; the median is 0.3.
    assert not rule.lags([0.1, 0.31])
    assert rule.lags([1, 1, 0.34])  # Only two got that far: the median of 0.5 and 0.2 is 0.35.
    assert not rule.lags([0, 0, 0, 0])  # None did.
    losses = MedianRule(maximize=False)
    losses.add([1.0, 0.5])
    assert losses.lags([1.1])
    assert not losses.lags([2.0, 0.75])


def test_hyperband_stops_poor_trials_and_keeps_good_ones(cloud):
    script = levels(0.5, 0.1, 0.9, 0.2, 0.3, 0.4, epochs=9)
    # By Optuna's hash of the trial numbers the second is in the last bracket, which stops nobody.
    script = script.replace("sleep(pause)", f"sleep({LONG} if number > 3 and epoch > 2 else 0)")
    resources = {"HyperbandStrategyConfig": {"MinResource": 1, "MaxResource": 9}}
    description, found = tune(
        cloud, **in_turn(script, jobs=6, Strategy="Hyperband", StrategyConfig=resources)
    )
    assert description["HyperParameterTuningJobStatus"] == "Completed"
    assert statuses(found) == ["Completed"] * 3 + ["Stopped"] * 3
    assert [score(trial) for trial in found] == [0.5, 0.1, 0.9, 0.2, 0.3, 0.4]
    assert description["BestTrainingJob"]["TrainingJobName"] == found[2]["TrainingJobName"]
    assert [len(score_lines(cloud, trial)) for trial in found[:3]] == [9, 9, 9]
    for trial in found[3:]:
        assert trial["ObjectiveStatus"] == "Succeeded"
        assert 1 <= len(score_lines(cloud, trial)) <= 4


def score_lines(cloud, trial):
    lines = cloud.training_lines(trial["TrainingJobName"])
    return [line for line in lines if line.startswith("score=")]


def test_hyperband_reads_the_epochs_and_stops_what_goes_beyond_them(cloud):
    script = levels(0.5, epochs=3) + f"print('score=0.6', flush=True); time.sleep({LONG})"
    began = time.monotonic()
    description, found = tune(
        cloud,
        **in_turn(script, jobs=1, Strategy="Hyperband", static={"epochs": "3"}),
    )
    assert time.monotonic() - began < LONG
    assert statuses(found) == ["Stopped"]
    assert score(description["BestTrainingJob"]) == 0.6


def test_a_reached_target_ends_the_search_and_its_other_trials(cloud):
    script = levels(0.5, 0.7, 0.9, epochs=1)
    script += f"time.sleep({LONG} if number == 1 else 0)\n"
    began = time.monotonic()
    description, found = tune(
        cloud,
        **in_turn(
            script,
            jobs=9,
            parallel=2,
            TuningJobCompletionCriteria={"TargetObjectiveMetricValue": 0.9},
        ),
    )
    assert time.monotonic() - began < LONG
    assert description["HyperParameterTuningJobStatus"] == "Completed"
    assert statuses(found) == ["Stopped", "Completed", "Completed"]
    assert score(description["BestTrainingJob"]) == 0.9


def test_a_search_that_no_longer_improves_ends(cloud):
    # Less than 1% better is not an improvement.
    script = levels(0.5, 0.8, 0.801, 0.7, 0.802, 0.9, 0.9)
    criteria = {"BestObjectiveNotImproving": {"MaxNumberOfTrainingJobsNotImproving": 3}}
    description, found = tune(
        cloud, **in_turn(script, jobs=None, TuningJobCompletionCriteria=criteria)
    )
    assert description["HyperParameterTuningJobStatus"] == "Completed"
    assert [score(trial) for trial in found] == [0.5, 0.8, 0.801, 0.7, 0.802]
    assert score(description["BestTrainingJob"]) == 0.802
    assert description["TuningJobCompletionDetails"] == {
        "NumberOfTrainingJobsObjectiveNotImproving": 3
    }


def test_a_converged_search_ends_when_asked_to(cloud):
    values = [0.1, 0.9] + [0.9] * 20
    criteria = {"ConvergenceDetected": {"CompleteOnConvergence": "Enabled"}}
    description, found = tune(
        cloud,
        **in_turn(levels(*values), jobs=20, parallel=2, TuningJobCompletionCriteria=criteria),
    )
    assert 12 <= len(found) <= 13
    details = description["TuningJobCompletionDetails"]
    assert details["ConvergenceDetectedTime"] <= description["HyperParameterTuningEndTime"]


@pytest.mark.parametrize("maximize", [True, False], ids=["maximize", "minimize"])
def test_progress_counts_from_the_last_improvement_by_one_percent(maximize):
    sign = 1 if maximize else -1
    progress = Progress({}, maximize)
    counts = []
    for value in (10, 10.05, 10.2, 9, 10.3, 10.5, 0):
        progress.add(sign * value)
        counts.append(progress.not_improving)
    assert counts == [0, 1, 0, 1, 2, 0, 1]
    assert progress.best == sign * 10.5
    assert not progress.is_enough()


@pytest.fixture(scope="module")
def parent(cloud):
    """A finished search over rates, whose best is at the rate 0.01."""
    _, found = tune(cloud, ranges=ONE_RATE, jobs=4, RandomSeed=1)
    return found


def name_of(trial):
    return trial["TrainingJobName"].rsplit("-", 2)[0]


def child(cloud, parents, kind="IdenticalDataAndAlgorithm", **arguments):
    sent = request(cloud, ranges=ONE_RATE, **{"jobs": 2, **arguments})
    names = [{"HyperParameterTuningJobName": name} for name in parents]
    sent["WarmStartConfig"] = {"ParentHyperParameterTuningJobs": names, "WarmStartType": kind}
    return sent


def test_a_warm_start_compares_with_the_best_of_the_parents(cloud, parent):
    script = "print('score=1e9')"  # The objective is minimized: the parent stays best.
    description, found = tune(cloud, child(cloud, [name_of(parent[0])], script=script))
    best = min(parent, key=score)
    overall = description["OverallBestTrainingJob"]
    assert overall["TrainingJobName"] == best["TrainingJobName"]
    assert overall["TuningJobName"] == name_of(parent[0])
    assert score(description["BestTrainingJob"]) == 1e9
    given = description["WarmStartConfig"]["ParentHyperParameterTuningJobs"]
    assert given == [{"HyperParameterTuningJobName": name_of(parent[0])}]
    assert len(found) == 2


def test_a_warm_start_begins_where_the_parent_ended(cloud):
    # A grid teaches that the score is best, by far, at the rate 0.02.
    script = "import sys; print('score=%r' % abs(float(sys.argv[-1]) - 0.02))"
    values = {"Name": "rate", "Values": [str(0.001 + n * 0.005) for n in range(16)]}
    choices = {"CategoricalParameterRanges": [values]}
    sent = request(cloud, script=script, ranges=choices, jobs=16)
    parent, _ = tune(cloud, sent)
    sent = child(cloud, [parent["HyperParameterTuningJobName"]], jobs=3, script=script)
    sent["HyperParameterTuningJobConfig"].update(
        ParameterRanges=choices, Strategy="Bayesian", RandomSeed=4
    )
    description, found = tune(cloud, sent)
    rates = [float(trial["TunedHyperParameters"]["rate"]) for trial in found]
    assert sum(rate < 0.04 for rate in rates) >= 2
    assert description["OverallBestTrainingJob"]


def test_transfer_learning_takes_other_data_and_shows_no_overall_best(cloud, parent):
    sent = child(cloud, [name_of(parent[0])], "TransferLearning")
    sent["TrainingJobDefinition"]["AlgorithmSpecification"]["TrainingImage"] = "any/image:2"
    description, _ = tune(cloud, sent)
    assert description["HyperParameterTuningJobStatus"] == "Completed"
    assert "OverallBestTrainingJob" not in description


def other_image(sent):
    sent["TrainingJobDefinition"]["AlgorithmSpecification"]["TrainingImage"] = "any/image:2"


def other_data(sent):
    source = {"S3DataType": "S3Prefix", "S3Uri": f"s3://{BUCKET}/words/"}
    sent["TrainingJobDefinition"]["InputDataConfig"] = [
        {"ChannelName": "words", "DataSource": {"S3DataSource": source}}
    ]


def other_objective(sent):
    sent["HyperParameterTuningJobConfig"]["HyperParameterTuningJobObjective"] = MAXIMIZE


def other_type(sent):
    entry = {"Name": "rate", "MinValue": "1", "MaxValue": "9"}
    sent["HyperParameterTuningJobConfig"]["ParameterRanges"] = {"IntegerParameterRanges": [entry]}


def another_name(sent):
    sent["TrainingJobDefinition"]["StaticHyperParameters"]["more"] = "1"


def unknown_parent(sent):
    sent["WarmStartConfig"]["ParentHyperParameterTuningJobs"][0] = {
        "HyperParameterTuningJobName": "nobody"
    }


def same_parent_twice(sent):
    sent["WarmStartConfig"]["ParentHyperParameterTuningJobs"] *= 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param(other_image, "another TrainingImage", id="image"),
        pytest.param(other_data, "other input data", id="data"),
        pytest.param(other_objective, "another objective metric", id="objective"),
        pytest.param(other_type, "another type", id="type"),
        pytest.param(another_name, "set of tunable plus static HyperParameter names", id="names"),
        pytest.param(unknown_parent, "does not exist", id="unknown"),
        pytest.param(same_parent_twice, "different parents", id="twice"),
    ],
)
def test_parents_that_do_not_fit_are_refused(cloud, parent, change, words):
    sent = child(cloud, [name_of(parent[0])])
    change(sent)
    with pytest.raises(ClientError, match=words) as refused:
        create(cloud, sent)
    assert refused.value.response["Error"]["Code"] == "ValidationException"


def test_a_parent_at_work_is_refused(cloud):
    name = start(cloud, script=f"import time; time.sleep({LONG})", ranges=ONE_RATE, jobs=2)
    with pytest.raises(ClientError, match="has not ended yet"):
        create(cloud, child(cloud, [name]))
    with pytest.raises(ClientError, match="ResourceInUse"):
        cloud.sagemaker.delete_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)
    cloud.sagemaker.stop_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)
    assert wait(cloud, name)["HyperParameterTuningJobStatus"] == "Stopped"


def test_a_static_hyperparameter_can_become_a_tuned_one(cloud):
    static = {"depth": "2"}
    parent, _ = tune(cloud, ranges=ONE_RATE, jobs=2, static=static)
    sent = child(cloud, [parent["HyperParameterTuningJobName"]])
    sent["HyperParameterTuningJobConfig"]["ParameterRanges"] = {"IntegerParameterRanges": [DEPTH]}
    sent["TrainingJobDefinition"]["StaticHyperParameters"]["rate"] = "0.01"
    description, found = tune(cloud, sent)
    assert description["HyperParameterTuningJobStatus"] == "Completed"
    assert {trial["TunedHyperParameters"]["depth"] for trial in found} <= {"2", "3", "4"}


def test_autotune_chooses_ranges_and_limits(cloud):
    hints = [("rate", "0.02"), ("depth", "3"), ("kind", "adam")]
    automatic = [{"Name": name, "ValueHint": hint} for name, hint in hints]
    sent = request(cloud, jobs=None, ranges={"AutoParameters": automatic})
    name = create(cloud, {**sent, "Autotune": {"Mode": "Enabled"}})
    description = describe(cloud, name)
    config = description["HyperParameterTuningJobConfig"]
    assert config["ResourceLimits"]["MaxNumberOfTrainingJobs"] == 20
    assert config["TrainingJobEarlyStoppingType"] == "Auto"
    assert config["ParameterRanges"]["IntegerParameterRanges"][0]["MaxValue"] == "12"
    assert description["Autotune"] == {"Mode": "Enabled"}
    tuned = until(lambda: trials(cloud, name))[0]
    assert set(tuned["TunedHyperParameters"]) == {"rate", "depth"}
    trial = cloud.sagemaker.describe_training_job(TrainingJobName=tuned["TrainingJobName"])
    assert trial["HyperParameters"]["kind"] == "adam"
    if describe(cloud, name)["HyperParameterTuningJobStatus"] not in FINAL:
        cloud.sagemaker.stop_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)
    wait(cloud, name)


def test_autotune_of_several_definitions(cloud):
    objective = {"Type": "Minimize", "MetricName": "score"}
    hint = {"AutoParameters": [{"Name": "n", "ValueHint": "8"}]}
    sent = request(cloud)
    del sent["TrainingJobDefinition"]
    sent["HyperParameterTuningJobConfig"] = {
        "Strategy": "Random",
        "ResourceLimits": {"MaxNumberOfTrainingJobs": 2, "MaxParallelTrainingJobs": 2},
    }
    sent["TrainingJobDefinitions"] = [
        definition(
            cloud,
            "print('score=1')",
            DefinitionName=name,
            TuningObjective=objective,
            HyperParameterRanges=hint,
        )
        for name in ("a", "b")
    ]
    _, found = tune(cloud, {**sent, "Autotune": {"Mode": "Enabled"}})
    assert [trial["TrainingJobDefinitionName"] for trial in found] == ["a", "b"]
    assert all(2 <= int(trial["TunedHyperParameters"]["n"]) <= 32 for trial in found)
