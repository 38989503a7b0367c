"""The entry points as SageMaker jobs: what the functions promise must hold there, too."""

import io
import re
import subprocess
import sys
import tarfile
import time

import numpy as np
import pytest
from sagemaker.core.processing import FrameworkProcessor
from sagemaker.core.training.configs import (
    CheckpointConfig,
    Compute,
    InputData,
    SourceCode,
    StoppingCondition,
)
from sagemaker.train import ModelTrainer
from sagemaker.train.distributed import Torchrun

from studio.cloud import ROOT
from studio.evaluation import channel, job_name, report
from studio.jobs import LogReader, follow, history, latest_job, stage_source
from vision.classifier import load_classifier


@pytest.fixture(scope="module")
def source_dir(tmp_path_factory):
    return stage_source(tmp_path_factory.mktemp("source") / "source")


@pytest.fixture(scope="module")
def inputs(cloud, stripes):
    return [upload(cloud, stripes, name) for name in ("train", "valid")]


def upload(cloud, folder, name):
    uri = cloud.session.upload_data(str(folder / name), cloud.bucket, f"data/{name}")
    return InputData(channel_name=name, data_source=uri)


def artifact(cloud, job, folder):
    """Download and unpack the model of a job; return its classifier."""
    uri = job["ModelArtifacts"]["S3ModelArtifacts"].removeprefix(f"s3://{cloud.bucket}/")
    body = cloud.client("s3").get_object(Bucket=cloud.bucket, Key=uri)["Body"].read()
    with tarfile.open(fileobj=io.BytesIO(body)) as tar:
        tar.extractall(folder, filter="data")
    return load_classifier(folder)


def test_two_hosts_and_an_interruption_leave_the_learning_curve_as_it_is(
    cloud, source_dir, inputs, run_script, stripes, tmp_path, capsys
):
    """Two spot hosts under torchrun, taken away once, against one process in one go."""
    hyperparameters = {
        "epochs": 8,
        "patience": 0,
        "batch-size": 24,
        "optimizer": "sgd",
        "lr": 0.005,
        "precision": "float32",
    }
    trainer = ModelTrainer(
        training_image=cloud.training_image,
        source_code=SourceCode(source_dir=source_dir, entry_script="train_model.py"),
        compute=Compute(
            instance_type="ml.m5.large", instance_count=2, enable_managed_spot_training=True
        ),
        distributed=Torchrun(process_count_per_node=1),
        checkpoint_config=CheckpointConfig(s3_uri=cloud.s3_uri("checkpoints")),
        stopping_condition=StoppingCondition(
            max_runtime_in_seconds=300, max_wait_time_in_seconds=600
        ),
        hyperparameters=hyperparameters,
        base_job_name=f"{cloud.run}-hosts",
        role=cloud.role,
        sagemaker_session=cloud.session,
    )
    trainer.train(input_data_config=inputs, wait=False, logs=False)
    name = latest_job(cloud, f"{cloud.run}-hosts")
    log = LogReader(cloud.client("logs"), "/aws/sagemaker/TrainingJobs", name)
    while not any(line.startswith("epoch=2 ") for line in log.new_lines()):
        time.sleep(0.1)
    subprocess.run([sys.executable, "-m", "local_cloud", "interrupt", name], cwd=ROOT, check=True)
    job = follow(cloud, name)
    assert "resumed at epoch " in capsys.readouterr().out
    statuses = [each["Status"] for each in job["SecondaryStatusTransitions"]]
    assert statuses.count("Interrupted") == 1

    words = [word for pair in hyperparameters.items() for word in (f"--{pair[0]}", pair[1])]
    alone = run_script(
        *("train_model.py", *words),
        *("--model-dir", tmp_path / "alone", "--output-data-dir", tmp_path / "output"),
        SM_CHANNEL_TRAIN=stripes / "train",
        SM_CHANNEL_VALID=stripes / "valid",
    )
    assert alone.returncode == 0, alone.stderr
    ours, theirs = artifact(cloud, job, tmp_path / "hosts"), load_classifier(tmp_path / "alone")
    assert ours.facts["processes"] == 2
    for one, two in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        # One process with another number of threads ends 2e-4 away, two that do not share their
        # batch norms' statistics 4e-2.
        assert (one - two).abs().max() < 1e-3
    curve = history(cloud, job)[["train_loss", "valid_loss", "valid_accuracy"]]
    lines = (tmp_path / "output" / "history.csv").read_text().splitlines()
    expected = [[float(row.split(",")[i]) for i in (1, 3, 4)] for row in lines[1:]]
    assert curve.to_numpy() == pytest.approx(np.array(expected), abs=5e-4)


def test_features_of_one_job_are_read_by_the_next(cloud, source_dir, stripes, capsys):
    """The backbone runs in a processing job; a trial gets its output as a channel."""
    inputs = [upload(cloud, stripes, name) for name in ("train", "valid")]
    processor = FrameworkProcessor(
        image_uri=cloud.processing_image,
        command=["python3"],
        instance_type="ml.m5.large",
        instance_count=1,
        role=cloud.role,
        base_job_name=f"{cloud.run}-features",
        sagemaker_session=cloud.session,
    )
    processor.run(
        code="extract_features.py",
        source_dir=source_dir,
        arguments=["--image-size", "32"],
        inputs=[channel(each.channel_name, each.data_source) for each in inputs],
        outputs=[report("features", cloud.s3_uri("features"))],
        wait=False,
        logs=False,
    )
    follow(cloud, job_name(processor), kind="ProcessingJob", show=re.compile("computed"))
    assert capsys.readouterr().out.count("computed the features") == 2

    inputs.append(InputData(channel_name="features", data_source=cloud.s3_uri("features")))
    trial = ModelTrainer(
        training_image=cloud.training_image,
        source_code=SourceCode(source_dir=source_dir, entry_script="hpo.py"),
        compute=Compute(instance_type="ml.m5.large", instance_count=1),
        hyperparameters={"recipe": "photos", "image-size": 32, "epochs": 3},
        base_job_name=f"{cloud.run}-trial",
        role=cloud.role,
        sagemaker_session=cloud.session,
    )
    trial.train(input_data_config=inputs, wait=False, logs=False)
    follow(cloud, latest_job(cloud, f"{cloud.run}-trial"), show=re.compile("features|best_"))
    told = capsys.readouterr().out
    assert told.count("read the features of") == 3  # Two views to learn from, one to choose by.
    assert "computed" not in told
    assert float(re.search(r"best_valid_accuracy=([0-9.]+)", told)[1]) > 0.5
