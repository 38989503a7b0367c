"""HyperparameterTuner of the SageMaker SDK, unmodified, with a search of each kind."""

import uuid

import pytest
from harness import ROLE
from tuning_harness import SCORES, levels, wait


@pytest.fixture
def make_tuner(sdk, tmp_path):
    """Makes a tuner of a script, by the SDK's own words."""
    from sagemaker.core.parameter import CategoricalParameter, ContinuousParameter
    from sagemaker.core.training.configs import Compute, SourceCode
    from sagemaker.train import ModelTrainer
    from sagemaker.train.tuner import HyperparameterTuner

    ranges = {
        "rate": ContinuousParameter(0.001, 0.1, scaling_type="Logarithmic"),
        "kind": CategoricalParameter(["a", "b"]),
    }

    def make(script=SCORES, ranges=ranges, **options):
        (tmp_path / "main.py").write_text(script)
        trainer = ModelTrainer(
            training_image="any/image:1",
            role=ROLE,
            sagemaker_session=sdk,
            source_code=SourceCode(source_dir=str(tmp_path), entry_script="main.py"),
            compute=Compute(instance_type="ml.m5.large", instance_count=1),
            hyperparameters={"depth": 2},
            base_job_name="sdk",
        )
        metrics = [{"Name": "score", "Regex": r"score=([-0-9.e]+)"}]
        options = {"objective_type": "Minimize", "max_jobs": 3, "max_parallel_jobs": 2, **options}
        # The names that the SDK makes up itself change once a minute.
        options["base_tuning_job_name"] = f"sdk-{uuid.uuid4().hex[:8]}"
        return HyperparameterTuner(trainer, "score", ranges, metrics, **options)

    return make


def finish(cloud, tuner):
    """Start the search and wait for its end; the SDK's own `wait` looks every five seconds."""
    tuner.tune(wait=False)
    wait(cloud, tuner.latest_tuning_job.hyper_parameter_tuning_job_name)


def test_tuner_tells_its_results(make_tuner):
    tuner = make_tuner(random_seed=3)
    tuner.tune(wait=False)
    tuner.wait()
    described = tuner.describe()
    assert described.hyper_parameter_tuning_job_status == "Completed"
    assert described.training_job_status_counters.completed == 3
    analytics = tuner.analytics()
    table = analytics.dataframe()
    assert len(table) == 3
    best = table.sort_values("FinalObjectiveValue").iloc[0]
    assert tuner.best_training_job() == best["TrainingJobName"]
    assert table["rate"].between(0.001, 0.1).all()
    assert set(table["kind"].str.strip('"')) <= {"a", "b"}
    assert (table["TrainingElapsedTimeSeconds"] >= 0).all()
    assert set(analytics.tuning_ranges) == {"rate", "kind"}
    assert len(analytics.training_job_summaries()) == 3


def test_tuner_goes_through_a_grid(cloud, make_tuner):
    from sagemaker.core.parameter import CategoricalParameter

    ranges = {"rate": CategoricalParameter([0.01, 0.02]), "kind": CategoricalParameter(["a", "b"])}
    tuner = make_tuner(ranges=ranges, strategy="Grid", max_jobs=None)
    finish(cloud, tuner)
    table = tuner.analytics().dataframe()
    assert len(table) == 4
    best = table.loc[table["TrainingJobName"] == tuner.best_training_job()].iloc[0]
    assert str(best["kind"]).strip('"') == "a"


def test_tuner_takes_hyperband_and_completion_criteria(cloud, make_tuner):
    from sagemaker.core.shapes import (
        HyperbandStrategyConfig,
        HyperParameterTuningJobStrategyConfig,
        TuningJobCompletionCriteria,
    )

    resources = HyperbandStrategyConfig(min_resource=1, max_resource=3)
    tuner = make_tuner(
        levels(0.5, 0.9, 0.7, 0.6, epochs=3),
        strategy="Hyperband",
        strategy_config=HyperParameterTuningJobStrategyConfig(hyperband_strategy_config=resources),
        completion_criteria_config=TuningJobCompletionCriteria(target_objective_metric_value=0.8),
        objective_type="Maximize",
        max_jobs=4,
        max_parallel_jobs=1,
    )
    finish(cloud, tuner)
    assert len(tuner.analytics().dataframe()) == 2
    assert tuner.describe().best_training_job.training_job_name == tuner.best_training_job()


def test_tuner_starts_warm_and_stops(cloud, make_tuner):
    from sagemaker.core.shapes import (
        HyperParameterTuningJobWarmStartConfig,
        ParentHyperParameterTuningJob,
    )

    parent = make_tuner()
    finish(cloud, parent)
    name = parent.latest_tuning_job.hyper_parameter_tuning_job_name
    warm_start = HyperParameterTuningJobWarmStartConfig(
        parent_hyper_parameter_tuning_jobs=[
            ParentHyperParameterTuningJob(hyper_parameter_tuning_job_name=name)
        ],
        warm_start_type="IdenticalDataAndAlgorithm",
    )
    script = "import time; print('score=1e9', flush=True); time.sleep(60)"
    tuner = make_tuner(script, warm_start_config=warm_start, early_stopping_type="Auto")
    tuner.tune(wait=False)
    tuner.stop_tuning_job()
    wait(cloud, tuner.latest_tuning_job.hyper_parameter_tuning_job_name)
    described = tuner.describe()
    assert described.hyper_parameter_tuning_job_status == "Stopped"
    assert described.overall_best_training_job.tuning_job_name == name
