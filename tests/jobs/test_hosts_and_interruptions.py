"""Jobs on several hosts or processes, taken away, killed, out of time: what is promised holds."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from course_jobs import spot
from sagemaker.train.distributed import Torchrun

from studio.cloud import ROOT
from studio.jobs import LogReader, follow, history, keys_below, log_lines
from vision.classifier import load_classifier
from vision.data import list_split, load_split

# The recipe's own optimizer. 72 pictures are three steps an epoch.
FIXED = {"epochs": 8, "patience": 0, "batch-size": 24, "lr": 0.002, "precision": "float32"}
EPOCHS = FIXED["epochs"]


@pytest.fixture(scope="module")
def unbroken(jobs):
    """The description of a job of one process that nothing disturbs."""
    return jobs.train("unbroken", FIXED)


def local_cloud(*words):
    command = [sys.executable, "-m", "local_cloud", *words]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def assert_learnt_alike(jobs, job, unbroken):
    """Whether the job ended with the weights and the learning curve of the unbroken one."""
    ours, theirs = (load_classifier(jobs.model(each)) for each in (job, unbroken))
    for one, two in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        # Two processes or threads end 1e-5 away, two that do not share their batch norms'
        # statistics 3e-2.
        assert (one - two).abs().max() < 1e-3
    columns = ["train_loss", "valid_loss", "valid_accuracy"]
    curves = [history(jobs.cloud, each)[columns].to_numpy() for each in (job, unbroken)]
    assert curves[0].shape == (EPOCHS, len(columns))
    assert curves[0] == pytest.approx(curves[1], abs=5e-4)


def test_two_hosts_and_an_interruption_leave_the_learning_curve_as_it_is(jobs, unbroken):
    """Two spot hosts under torchrun, taken away once, against one process in one go."""
    options = spot(jobs.cloud, "hosts")
    options["compute"]["instance_count"] = 2
    torchrun = Torchrun(process_count_per_node=1)
    name = jobs.start("hosts", FIXED, distributed=torchrun, **options)
    log = LogReader(jobs.cloud.client("logs"), "/aws/sagemaker/TrainingJobs", name)
    while not any(line.startswith("epoch=2 ") for line in log.new_lines()):
        time.sleep(0.1)
    local_cloud("interrupt", name)
    job = follow(jobs.cloud, name)
    assert any(line.startswith("resumed at epoch ") for line in log_lines(jobs.cloud, name))
    statuses = [each["Status"] for each in job["SecondaryStatusTransitions"]]
    assert statuses.count("Interrupted") == 1
    assert load_classifier(jobs.model(job)).facts["processes"] == 2
    assert_learnt_alike(jobs, job, unbroken)


def test_two_processes_of_one_host_learn_as_one_does_and_write_once(jobs, unbroken):
    torchrun = Torchrun(process_count_per_node=2)
    options = spot(jobs.cloud, "processes")
    job = jobs.train("processes", FIXED, distributed=torchrun, **options)
    assert load_classifier(jobs.model(job)).facts["processes"] == 2
    assert_learnt_alike(jobs, job, unbroken)
    lines = log_lines(jobs.cloud, job["TrainingJobName"])
    for beginning, times in (("epoch=", EPOCHS), ("best_epoch=", 1), ("saved the model ", 1)):
        assert sum(line.startswith(beginning) for line in lines) == times, beginning
    keys = keys_below(jobs.cloud, options["checkpoint_config"].s3_uri)
    found = {re.search(r"/checkpoint-(\w+)-\d+\.safetensors$", key) for key in keys}
    assert None not in found, "a process left a file that is no checkpoint"
    assert len({each[1] for each in found}) == 1


def processes_of(job):
    """The living processes of a training job: the SDK's drivers and the script."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("TRAINING_JOB_NAME") == job:
                found.append(process)
        except psutil.Error:
            continue
    return found


def wait_for_step(cloud, name, step):
    """Wait until a job that runs has written the checkpoint of a step."""
    while not log_lines(cloud, name):
        time.sleep(0.1)
    folder = Path(local_cloud("open", name).strip())
    steps = [0]
    while max(steps) < step:
        assert folder.is_dir(), f"the job ended before step {step}"
        paths = folder.glob("*/opt/ml/checkpoints/checkpoint-*.safetensors")
        time.sleep(0.01)
        steps = [0, *(int(path.stem.rsplit("-", 1)[1]) for path in paths)]


def test_a_spot_job_that_is_killed_ends_with_the_weights_of_an_unbroken_one(jobs, unbroken):
    """Every process of the job gets SIGKILL: the drivers of the SDK and the script.

    They are frozen first, so that none of them sees the SIGTERM that an interruption begins with:
    the instance is gone in the middle of an epoch, with nothing saved but the checkpoints.
    """
    every_step = {**FIXED, "checkpoint-seconds": 0}
    name = jobs.start("killed", every_step, **spot(jobs.cloud, "killed"))
    wait_for_step(jobs.cloud, name, 10)
    killed = processes_of(name)
    for process in killed:
        process.send_signal(signal.SIGSTOP)
    local_cloud("interrupt", name)
    for process in killed:
        process.kill()
    job = follow(jobs.cloud, name)
    statuses = [each["Status"] for each in job["SecondaryStatusTransitions"]]
    assert statuses.count("Interrupted") == 1
    lines = "\n".join(log_lines(jobs.cloud, name))
    assert "stopped by SIGTERM" not in lines
    epoch, steps = map(int, re.search(r"resumed at epoch (\d) after (\d) of", lines).groups())
    assert 10 <= 3 * (epoch - 1) + steps < 3 * EPOCHS
    weights = [jobs.model(each) / "model.safetensors" for each in (job, unbroken)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_job_whose_seconds_run_out_within_an_epoch_completes_with_a_model(jobs, stripes):
    """At 128 pixels the first epoch takes several seconds; its 18 steps are to end after one."""
    slow = {"model": "small_resnet_wide", "image-size": 128, "batch-size": 4, "max-seconds": 1}
    options = spot(jobs.cloud, "late")
    job = jobs.train("late", slow, **options)
    assert job["TrainingJobStatus"] == "Completed"
    keys = keys_below(jobs.cloud, options["checkpoint_config"].s3_uri)
    (step,) = [int(re.search(r"-(\d+)\.safetensors$", key)[1]) for key in keys]
    assert 0 < step < 18
    assert len(history(jobs.cloud, job)) == 1
    classifier = load_classifier(jobs.model(job))
    valid = load_split(list_split(stripes / "valid"), classifier.class_names, 128, 1)
    right = classifier.logits(valid.images).argmax(1) == valid.labels
    measured = classifier.facts["metrics"]["valid_accuracy"]
    assert np.mean(right.numpy()) == pytest.approx(measured)
