import dataclasses
import time

import pytest
from tiny_jobs import (
    create_config,
    echo_model,
    put,
    start_endpoint,
    start_training,
    start_tuning,
)

from studio import cleanup
from studio.cleanup import clean_up, leftovers
from studio.jobs import wait_for_endpoint


@pytest.fixture(scope="module")
def other(cloud):
    """Another run in the same place."""
    return dataclasses.replace(cloud, run="course-991231-235959")


def host(cloud):
    """A model and an endpoint configuration of a run; neither starts a process."""
    client = cloud.client("sagemaker")
    client.create_model(
        ModelName=cloud.run,
        ExecutionRoleArn=cloud.role,
        PrimaryContainer={
            "Image": cloud.inference_image,
            "ModelDataUrl": cloud.s3_uri("model.tar.gz"),
        },
    )
    variant = {"VariantName": "only", "ModelName": cloud.run, "InstanceType": "ml.m5.large"}
    client.create_endpoint_config(
        EndpointConfigName=cloud.run, ProductionVariants=[{**variant, "InitialInstanceCount": 1}]
    )


def left(cloud, **options):
    return dict(leftovers(cloud, **options).itertuples(index=False))


NOTHING = {
    "endpoints": 0,
    "endpoint configurations": 0,
    "models": 0,
    "training jobs running": 0,
    "tuning jobs running": 0,
    "processing jobs running": 0,
    "objects in S3": 0,
}


def test_a_run_that_made_nothing_leaves_nothing(cloud):
    assert left(cloud) == NOTHING


def test_all_of_a_run_is_counted_and_removed_and_nothing_of_another(cloud, other, capsys):
    for run in (cloud, other):
        host(run)
        put(run, "data/train.tar", b"pictures")
        # Where the SDK puts code: beside the run's own folder, under the name of the job.
        key = f"{run.run}-train/input/code.tar.gz"
        run.client("s3").put_object(Bucket=run.bucket, Key=key, Body=b"code")
    client = cloud.client("sagemaker")
    client.create_endpoint(EndpointName=cloud.run, EndpointConfigName=cloud.run)
    running = start_training(cloud, "still-runs", "sleep 60")

    counted = {"endpoints": 1, "endpoint configurations": 1, "models": 1, "objects in S3": 2}
    assert left(cloud, timeout=0) == {**NOTHING, **counted, "training jobs running": 1}

    clean_up(cloud)
    job = client.describe_training_job(TrainingJobName=running)
    assert job["TrainingJobStatus"] == "Stopped"
    assert capsys.readouterr().out.splitlines() == [
        f"deleted the endpoint {cloud.run}",
        f"deleted the endpoint configuration {cloud.run}",
        f"deleted the model {cloud.run}",
        f"stopped the training job {running}",
        "deleted 2 objects in S3",
    ]
    assert left(cloud) == NOTHING
    del counted["endpoints"]
    assert left(other, timeout=0) == {**NOTHING, **counted}


def test_a_search_that_still_runs_is_stopped_with_its_trials(cloud, capsys):
    name = start_tuning(cloud, "endless", limit=1, trials=50)
    deadline = time.monotonic() + 60
    while not left(cloud, timeout=0)["training jobs running"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    clean_up(cloud)
    assert f"stopped the tuning job {name}" in capsys.readouterr().out
    assert left(cloud) == NOTHING


def test_an_endpoint_in_the_middle_of_an_update_goes_too(cloud, capsys):
    model = echo_model(cloud)
    name = start_endpoint(cloud, "busy", model)
    wait_for_endpoint(cloud, name)
    config = create_config(cloud, "next", model, {"ml.m5.large": 2})
    cloud.client("sagemaker").update_endpoint(EndpointName=name, EndpointConfigName=config)
    clean_up(cloud)
    assert f"deleted the endpoint {name}" in capsys.readouterr().out
    assert left(cloud) == NOTHING


def test_cleaning_up_twice_is_harmless(cloud, capsys):
    clean_up(cloud)
    assert capsys.readouterr().out == "deleted 0 objects in S3\n"


def test_more_objects_than_one_call_takes_are_all_removed(cloud, monkeypatch):
    monkeypatch.setattr(cleanup, "BATCH", 2)
    for i in range(5):
        put(cloud, f"many/{i}", b"")
    clean_up(cloud)
    assert left(cloud)["objects in S3"] == 0
