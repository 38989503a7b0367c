"""Checkpoints in S3, managed spot training and its interruptions, time limits, lost jobs."""

import datetime
import itertools
import re

import pytest
from botocore.exceptions import ClientError
from harness import BUCKET, Cloud, command_line, until

# Counts on from its checkpoint; a folder that is not fresh would be found out.
COUNTS = """
import os, signal, sys, time
folder = os.environ.get("FOLDER", "/opt/ml/checkpoints")
path = os.path.join(folder, "deep", "count.txt")
os.makedirs(os.path.dirname(path), exist_ok=True)
count = int(open(path).read()) if os.path.exists(path) else 0
print("begins at", count, "with", os.listdir("/opt/ml/model"), flush=True)
open("/opt/ml/model/begun-at.txt", "w").write(str(count))
def warned(*_):
    print("warned", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, warned)
for count in range(count + 1, int(os.environ["TARGET"]) + 1):
    open(path + ".new", "w").write(str(count))
    os.replace(path + ".new", path)
    time.sleep(0.1)
print("reached", count, flush=True)
"""
LIMITS = {"MaxRuntimeInSeconds": 60, "MaxWaitTimeInSeconds": 120}


def spot(**fields):
    return {"EnableManagedSpotTraining": True, "StoppingCondition": LIMITS, **fields}


def checkpoints(name, **fields):
    return {"S3Uri": f"s3://{BUCKET}/checkpoints/{name}", **fields}


def statuses(description):
    return [t["Status"] for t in description["SecondaryStatusTransitions"]]


def stored(cloud, prefix):
    found = cloud.s3.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])
    return {entry["Key"].removeprefix(prefix) for entry in found}


def test_a_folder_of_checkpoints_may_have_any_name(cloud):
    config = checkpoints("plain/", LocalPath="/checkpoint")
    script = "open('/checkpoint/a.txt', 'w').write('a')"
    assert cloud.train(script, CheckpointConfig=config)["TrainingJobStatus"] == "Completed"
    assert stored(cloud, "checkpoints/plain/") == {"a.txt"}


def test_checkpoints_go_to_s3_while_the_job_runs_and_come_back(cloud):
    cloud.put("checkpoints/live-beside/other.txt", b"not of this job")
    cloud.put("checkpoints/live/old.txt", b"old")
    script = """
import os, time
folder = "/data/ckpt"
print("found", os.listdir(folder), flush=True)
open(folder + "/done.txt", "w").write("done")
growing = open(folder + "/growing.bin", "wb", buffering=0)
while True:
    growing.write(b"x" * 1000)
    time.sleep(0.02)
"""
    config = checkpoints("live/", LocalPath="/data/ckpt")
    name = cloud.start_training(script, CheckpointConfig=config)
    until(lambda: "done.txt" in stored(cloud, "checkpoints/live/"), timeout=20)
    assert cloud.get("checkpoints/live/done.txt") == b"done"
    # What is being written is no checkpoint yet.
    assert "growing.bin" not in stored(cloud, "checkpoints/live/")
    assert "found ['old.txt']" in cloud.training_lines(name)
    cloud.sagemaker.stop_training_job(TrainingJobName=name)
    cloud.wait_for_training(name)
    assert stored(cloud, "checkpoints/live/") == {"old.txt", "done.txt", "growing.bin"}
    assert len(cloud.get("checkpoints/live/growing.bin")) % 1000 == 0


@pytest.fixture(scope="module")
def interrupted(cloud):
    """The description of a spot job that was interrupted once."""
    return cloud.train(
        COUNTS,
        CheckpointConfig=checkpoints("spot"),
        Environment={"TARGET": "20", "LOCAL_CLOUD_INTERRUPT_AFTER": "0.8"},
        **spot(),
    )


def test_an_interrupted_spot_job_starts_again_from_its_checkpoint(cloud, interrupted):
    assert interrupted["TrainingJobStatus"] == "Completed", interrupted.get("FailureReason")
    first = ["Starting", "Downloading", "Training", "Interrupted"]
    second = ["Starting", "Downloading", "Training", "Uploading", "Completed"]
    assert statuses(interrupted) == [*first, *second]
    lines = cloud.training_lines(interrupted["TrainingJobName"])
    assert "begins at 0 with []" in lines
    assert "warned" in lines
    assert "reached 20" in lines
    (again,) = [line for line in lines if re.match(r"begins at [1-9]", line)]
    assert again.endswith("with []")  # The model of the first attempt is gone.
    key = f"out/{interrupted['TrainingJobName']}/output/model.tar.gz"
    assert cloud.archive_members(key) == {"begun-at.txt": again.split()[2]}


def test_spot_time_is_billed_at_a_discount(interrupted):
    worked = interrupted["TrainingTimeInSeconds"]
    assert interrupted["BillableTimeInSeconds"] == max(1, round(0.3 * worked)) <= worked
    transitions = interrupted["SecondaryStatusTransitions"]
    for earlier, later in itertools.pairwise(transitions):
        assert earlier["StartTime"] <= earlier["EndTime"] <= later["StartTime"]


def test_the_command_interrupts_a_spot_job(cloud):
    name = cloud.start_training(
        COUNTS,
        CheckpointConfig=checkpoints("command", LocalPath="/opt/ml/saved"),
        Environment={"TARGET": "25", "FOLDER": "/opt/ml/saved"},
        **spot(),
    )
    until(lambda: "begins at 0 with []" in cloud.training_lines(name))
    done = command_line(cloud.home, "interrupt", name)
    assert done.returncode == 0, done.stderr
    assert cloud.wait_for_training(name)["TrainingJobStatus"] == "Completed"
    assert "reached 25" in cloud.training_lines(name)
    again = command_line(cloud.home, "interrupt", name)
    assert again.returncode == 1
    assert "is in status Completed" in again.stderr
    unknown = command_line(cloud.home, "interrupt", "no-such-job")
    assert "not found" in unknown.stderr


def test_only_spot_jobs_are_interrupted(cloud):
    name = cloud.start_training("import time\nprint('ready', flush=True)\ntime.sleep(60)")
    until(lambda: "ready" in cloud.training_lines(name))
    refused = command_line(cloud.home, "interrupt", name)
    assert refused.returncode == 1
    assert "EnableManagedSpotTraining false" in refused.stderr
    cloud.sagemaker.stop_training_job(TrainingJobName=name)
    assert cloud.wait_for_training(name)["TrainingJobStatus"] == "Stopped"


def test_waiting_too_long_for_capacity_stops_the_job(cloud):
    description = cloud.train(
        COUNTS,
        Environment={
            "TARGET": "600",
            "LOCAL_CLOUD_INTERRUPT_AFTER": "0.3",
            "LOCAL_CLOUD_CAPACITY_AFTER": "60",
        },
        EnableManagedSpotTraining=True,
        StoppingCondition={"MaxRuntimeInSeconds": 2, "MaxWaitTimeInSeconds": 2},
    )
    assert description["TrainingJobStatus"] == "Stopped"
    assert statuses(description)[-3:] == ["Interrupted", "Stopping", "MaxWaitTimeExceeded"]


def test_a_job_that_waits_for_capacity_can_be_stopped(cloud):
    environment = {
        "TARGET": "600",
        "LOCAL_CLOUD_INTERRUPT_AFTER": "0.3",
        "LOCAL_CLOUD_CAPACITY_AFTER": "60",
    }
    name = cloud.start_training(COUNTS, Environment=environment, **spot())

    def secondary():
        return cloud.sagemaker.describe_training_job(TrainingJobName=name)["SecondaryStatus"]

    until(lambda: secondary() == "Interrupted")
    cloud.sagemaker.stop_training_job(TrainingJobName=name)
    assert statuses(cloud.wait_for_training(name))[-2:] == ["Stopping", "Stopped"]


def test_the_time_limit_counts_all_attempts_and_keeps_the_model(cloud):
    description = cloud.train(
        COUNTS,
        Environment={"TARGET": "600", "LOCAL_CLOUD_INTERRUPT_AFTER": "1"},
        EnableManagedSpotTraining=True,
        StoppingCondition={"MaxRuntimeInSeconds": 2, "MaxWaitTimeInSeconds": 60},
    )
    assert description["TrainingJobStatus"] == "Stopped"
    assert statuses(description)[-3:] == ["Stopping", "Uploading", "MaxRuntimeExceeded"]
    assert 2 <= description["TrainingTimeInSeconds"] <= 5
    name = description["TrainingJobName"]
    assert set(cloud.archive_members(f"out/{name}/output/model.tar.gz")) == {"begun-at.txt"}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"StoppingCondition": LIMITS}, "only supported when EnableManagedSpotTraining"),
        (
            {"EnableManagedSpotTraining": True, "StoppingCondition": {"MaxRuntimeInSeconds": 60}},
            "must be present and be greater than or equal to MaxRuntimeInSeconds",
        ),
        (
            spot(StoppingCondition={"MaxRuntimeInSeconds": 60, "MaxWaitTimeInSeconds": 59}),
            "greater than or equal to MaxRuntimeInSeconds",
        ),
        ({"StoppingCondition": {"MaxRuntimeInSeconds": 2419201}}, "at most 2419200"),
        ({"Environment": {"LOCAL_CLOUD_INTERRUPT_AFTER": "1"}}, "needs EnableManagedSpotTraining"),
        (spot(Environment={"LOCAL_CLOUD_INTERRUPT_AFTER": "soon"}), "number of seconds"),
        ({"CheckpointConfig": checkpoints("x", LocalPath="relative")}, "absolute path"),
        ({"CheckpointConfig": checkpoints("x", LocalPath="/opt/ml/../../x")}, "absolute path"),
    ],
    ids=["wait-no-spot", "no-wait", "short-wait", "long", "no-spot", "word", "relative", "up"],
)
def test_what_makes_no_sense_is_refused_at_creation(cloud, fields, words):
    with pytest.raises(ClientError, match=words) as refused:
        cloud.start_training("print(1)", **fields)
    assert refused.value.response["Error"]["Code"] == "ValidationException"


def test_checkpoints_of_a_bucket_that_is_not_there_fail_with_a_sentence(cloud):
    config = {"S3Uri": "s3://no-such-bucket/checkpoints"}
    description = cloud.train("print('never')", CheckpointConfig=config)
    assert description["TrainingJobStatus"] == "Failed"
    assert "NoSuchBucket" in description["FailureReason"]


def test_a_job_that_ignores_sigterm_is_killed_after_the_grace_period(own_home, monkeypatch):
    monkeypatch.setenv("LOCAL_CLOUD_STOP_GRACE", "1")
    assert command_line(own_home, "start").returncode == 0
    cloud = Cloud(own_home)
    cloud.s3.create_bucket(Bucket=BUCKET)
    script = """
import signal, time
signal.signal(signal.SIGTERM, lambda *_: print("no", flush=True))
open("/opt/ml/model/half.txt", "w").write("half")
time.sleep(1) or time.sleep(60)
"""
    description = cloud.train(script, StoppingCondition={"MaxRuntimeInSeconds": 1})
    assert description["SecondaryStatus"] == "MaxRuntimeExceeded"
    name = description["TrainingJobName"]
    assert "no" in cloud.training_lines(name)
    assert cloud.archive_members(f"out/{name}/output/model.tar.gz") == {"half.txt": "half"}


def test_jobs_that_the_server_lost_are_marked_as_failed(tmp_path):
    from local_cloud.disk import Disk
    from local_cloud.processing import Processing
    from local_cloud.store import Store
    from local_cloud.training import Training

    started = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(seconds=30)
    transition = {"Status": "Training", "StartTime": started, "StatusMessage": "m"}
    store = Store(Disk(tmp_path))
    times = {"CreationTime": started, "LastModifiedTime": started}
    for name, status in (("runs", "InProgress"), ("stops", "Stopping"), ("over", "Completed")):
        record = {
            "TrainingJobName": name,
            "TrainingJobArn": f"arn:{name}",
            "TrainingJobStatus": status,
            "SecondaryStatus": "Training",
            "SecondaryStatusTransitions": [dict(transition)],
            "TrainingStartTime": started,
            "EnableManagedSpotTraining": False,
            **times,
        }
        store.add("TrainingJob", name, record)
        record = {"ProcessingJobName": name, "ProcessingJobStatus": status, **times}
        store.add("ProcessingJob", name, record)
    training, processing = Training(store, None), Processing(store, None)
    training.recover()
    processing.recover()

    lost = "InternalServerError: the local cloud ended while the job ran; start the job again."
    for name in ("runs", "stops"):
        record = training.describe({"TrainingJobName": name}, "us-east-1")
        assert record["TrainingJobStatus"] == record["SecondaryStatus"] == "Failed"
        assert record["FailureReason"] == lost
        assert record["TrainingTimeInSeconds"] == 30
        assert [t["Status"] for t in record["SecondaryStatusTransitions"]] == ["Training", "Failed"]
        record = processing.describe({"ProcessingJobName": name}, "us-east-1")
        assert (record["ProcessingJobStatus"], record["FailureReason"]) == ("Failed", lost)
    assert "FailureReason" not in training.describe({"TrainingJobName": "over"}, "us-east-1")
    with pytest.raises(Exception, match="in status Failed"):
        training.stop({"TrainingJobName": "runs"}, "us-east-1")
    training.delete({"TrainingJobName": "runs"}, "us-east-1")
    with pytest.raises(Exception, match="not found"):
        training.describe({"TrainingJobName": "runs"}, "us-east-1")
