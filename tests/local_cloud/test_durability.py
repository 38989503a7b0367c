"""What survives: stop and start, a killed server, a full disk, and many random ends."""

import contextlib
import datetime
import json
import os
import random
import shutil
import sqlite3
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from harness import BUCKET, ROLE, Cloud, archive, command_line, processes_with, until

from local_cloud.disk import from_json, to_json

ROUNDS = int(os.environ.get("SOAK_ROUNDS", "6"))  # `make soak` runs 50.
SLOW = "import time; print('started', flush=True); time.sleep(600)"
ECHO = """
def model_fn(model_dir):
    return open(model_dir + "/word").read()

def predict_fn(data, model):
    return [model, data]
"""
ANYTHING = {"Effect": "Allow", "Action": "*", "Resource": "*"}
POLICY = json.dumps({"Version": "2012-10-17", "Statement": [ANYTHING]})
READABLE = {
    "Version": "2012-10-17",
    "Statement": [
        {
            "Effect": "Allow",
            "Principal": "*",
            "Action": "s3:GetObject",
            "Resource": f"arn:aws:s3:::{BUCKET}/*",
        }
    ],
}
FINAL = ("Completed", "Failed", "Stopped")
MOMENT = datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)


def start(home):
    started = command_line(home, "start")
    assert started.returncode == 0, started.stderr
    return Cloud(home)


def make_endpoint(cloud, name="e"):
    data = cloud.put("echo.tar.gz", archive({"word": "hello", "code/inference.py": ECHO}))
    sagemaker = cloud.sagemaker
    sagemaker.create_model(
        ModelName=name,
        ExecutionRoleArn=ROLE,
        PrimaryContainer={"Image": "any/image:1", "ModelDataUrl": data},
    )
    variant = {"VariantName": "v", "ModelName": name, "InstanceType": "ml.m5.large"}
    sagemaker.create_endpoint_config(
        EndpointConfigName=name, ProductionVariants=[{**variant, "InitialInstanceCount": 1}]
    )
    sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=name)
    wait_in_service(cloud, name)


def wait_in_service(cloud, name="e"):
    def status():
        return cloud.sagemaker.describe_endpoint(EndpointName=name)["EndpointStatus"]

    until(lambda: status() == "InService")


def ask(cloud, name="e"):
    answer = cloud.runtime.invoke_endpoint(
        EndpointName=name, Body=b"7", ContentType="application/json"
    )
    return json.load(answer["Body"])


def answers(cloud, name):
    """Whether the endpoint answers, rightly; not while its server is being started again."""
    try:
        assert ask(cloud, name) == ["hello", 7]
    except ClientError:
        return False
    return True


def without_metadata(description):
    return {k: v for k, v in description.items() if k != "ResponseMetadata"}


def objects(cloud):
    pages = cloud.s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
    return {e["Key"]: (e["ETag"], e["Size"]) for p in pages for e in p.get("Contents", [])}


def test_everything_is_there_again_after_stop_and_start(own_home):
    cloud = start(own_home)
    cloud.s3.create_bucket(Bucket=BUCKET)
    script = "open('/opt/ml/model/w', 'w').write('1')\nprint('one\\ntwo')"
    job = cloud.train(script, TrainingJobName="kept", Tags=[{"Key": "k", "Value": "v"}])
    lines = cloud.training_lines("kept")
    assert lines == ["one", "two"]
    make_endpoint(cloud)
    cloud.s3.put_object(
        Bucket=BUCKET, Key="a b/ü", Body=b"x", Metadata={"m": "1"}, ContentType="text/plain"
    )
    cloud.s3.put_object_tagging(
        Bucket=BUCKET, Key="a b/ü", Tagging={"TagSet": [{"Key": "t", "Value": "1"}]}
    )
    large = os.urandom(10 << 20)
    (own_home.parent / "large").write_bytes(large)
    cloud.s3.upload_file(str(own_home.parent / "large"), BUCKET, "large")
    cloud.put("deleted", b"1")
    cloud.s3.delete_objects(Bucket=BUCKET, Delete={"Objects": [{"Key": "deleted"}]})
    cloud.s3.create_bucket(Bucket="gone-again")
    cloud.s3.delete_bucket(Bucket="gone-again")
    cloud.s3.put_bucket_policy(Bucket=BUCKET, Policy=json.dumps(READABLE))
    iam = cloud.client("iam")
    iam.create_role(RoleName="r", AssumeRolePolicyDocument=POLICY)
    iam.put_role_policy(RoleName="r", PolicyName="p", PolicyDocument=POLICY)
    before = objects(cloud)

    assert command_line(own_home, "stop").returncode == 0
    assert processes_with("LOCAL_CLOUD_INSTANCE", cloud.server["name"]) == []
    again = start(own_home)

    description = again.sagemaker.describe_training_job(TrainingJobName="kept")
    assert without_metadata(description) == without_metadata(job)
    tags = again.sagemaker.list_tags(ResourceArn=job["TrainingJobArn"])["Tags"]
    assert tags == [{"Key": "k", "Value": "v"}]
    assert again.training_lines("kept") == lines
    assert objects(again) == before
    assert again.get("large") == large
    found = again.s3.get_object(Bucket=BUCKET, Key="a b/ü")
    assert (found["Body"].read(), found["Metadata"]) == (b"x", {"m": "1"})
    assert found["ContentType"] == "text/plain"
    tagging = again.s3.get_object_tagging(Bucket=BUCKET, Key="a b/ü")["TagSet"]
    assert tagging == [{"Key": "t", "Value": "1"}]
    assert [b["Name"] for b in again.s3.list_buckets()["Buckets"]] == [BUCKET]
    assert json.loads(again.s3.get_bucket_policy(Bucket=BUCKET)["Policy"]) == READABLE
    assert again.client("iam").get_role_policy(RoleName="r", PolicyName="p")
    wait_in_service(again)
    assert ask(again) == ["hello", 7]
    again.sagemaker.delete_endpoint(EndpointName="e")
    request = again.training_request("print(1)", TrainingJobName="kept")
    with pytest.raises(again.sagemaker.exceptions.ResourceInUse):
        again.sagemaker.create_training_job(**request)
    with pytest.raises(ClientError, match="in status Completed"):
        again.sagemaker.stop_training_job(TrainingJobName="kept")
    again.sagemaker.delete_training_job(TrainingJobName="kept")
    assert (own_home / "server.log").read_text() == ""


def test_objects_whose_bucket_is_gone_do_not_keep_the_cloud_from_starting(own_home):
    cloud = start(own_home)
    cloud.s3.create_bucket(Bucket=BUCKET)
    cloud.put("kept", b"1")
    state = sqlite3.connect(own_home / "state" / "cloud.sqlite", isolation_level=None)
    copied = "INSERT INTO objects SELECT ?, key, ?, body FROM objects WHERE bucket = ?"
    for bucket in ("emptied", "unknown"):  # As where a full disk did not take their end.
        (own_home / "state" / "objects" / bucket).write_bytes(b"1")
        state.execute(copied, (bucket, bucket, BUCKET))
    cloud.s3.create_bucket(Bucket="emptied")
    cloud.s3.delete_bucket(Bucket="emptied")
    assert state.execute("SELECT count(*) FROM objects WHERE bucket = 'emptied'").fetchone() == (0,)
    state.close()
    assert not (own_home / "state" / "objects" / "emptied").exists()
    command_line(own_home, "stop")
    again = start(own_home)
    assert list(objects(again)) == ["kept"]
    assert "the bucket of s3://unknown/kept is missing" in (own_home / "server.log").read_text()


@pytest.fixture
def full(cloud):
    """Lets the disk refuse changes of one table, of rows whose field has a value."""
    state = sqlite3.connect(cloud.home / "state" / "cloud.sqlite", isolation_level=None)

    def refuse(change, table, field, value):
        row = "old" if change == "DELETE" else "new"
        state.execute(
            f"CREATE TRIGGER full BEFORE {change} ON {table} WHEN {row}.{field} = '{value}' "
            "BEGIN SELECT RAISE(ABORT, 'database or disk is full'); END"
        )

    yield refuse, lambda: state.execute("DROP TRIGGER IF EXISTS full")
    state.execute("DROP TRIGGER IF EXISTS full")
    state.close()


def test_a_job_whose_tags_the_disk_refuses_does_not_exist(cloud, full):
    refuse, make_room = full
    tags = [{"Key": "only-here", "Value": "v"}]
    request = cloud.training_request("print(1)", Tags=tags)
    refuse("INSERT", "tags", "key", "only-here")
    once = cloud.client("sagemaker", config=Config(retries={"total_max_attempts": 1}))
    with pytest.raises(ClientError, match="disk is full"):
        once.create_training_job(**request)
    with pytest.raises(ClientError, match="not found"):
        cloud.sagemaker.describe_training_job(TrainingJobName=request["TrainingJobName"])
    make_room()
    arn = cloud.sagemaker.create_training_job(**request)["TrainingJobArn"]
    assert cloud.sagemaker.list_tags(ResourceArn=arn)["Tags"] == tags
    cloud.wait_for_training(request["TrainingJobName"])


def test_an_endpoint_that_the_disk_keeps_can_be_deleted_again(cloud, full):
    refuse, make_room = full
    make_endpoint(cloud, "stays")
    refuse("DELETE", "records", "name", "stays")

    def failed():
        description = cloud.sagemaker.describe_endpoint(EndpointName="stays")
        return description["EndpointStatus"] == "Failed" and description["FailureReason"]

    for _ in range(2):
        cloud.sagemaker.delete_endpoint(EndpointName="stays")
        assert "make room there, then delete the endpoint again" in until(failed)
    make_room()
    cloud.sagemaker.delete_endpoint(EndpointName="stays")
    assert cloud.sagemaker.list_endpoints(NameContains="stays")["Endpoints"] == []


@pytest.mark.parametrize(
    "value", [{"$time": "5"}, {"$time": "2026-01-01"}, {"$time": {"$time": "5"}}, MOMENT]
)
def test_what_is_no_time_is_not_read_as_one(value):
    assert from_json(to_json({"HyperParameters": [value]})) == {"HyperParameters": [value]}


@pytest.mark.parametrize(
    ("text", "value"),
    [('{"$time":"2026-01-01T00:00:00+00:00"}', MOMENT), ('{"$time":"5"}', {"$time": "5"})],
)
def test_a_state_of_earlier_versions_is_read(text, value):
    assert from_json(text) == value


def test_replaced_and_deleted_objects_leave_no_file(own_home):
    cloud = start(own_home)
    cloud.s3.create_bucket(Bucket=BUCKET)
    for number in range(20):
        cloud.put(f"key-{number % 4}", b"%d" % number)
    cloud.s3.copy_object(Bucket=BUCKET, Key="copy", CopySource=f"{BUCKET}/key-3")
    for number in range(3):
        cloud.s3.delete_object(Bucket=BUCKET, Key=f"key-{number}")
    files = list((own_home / "state" / "objects").iterdir())
    assert sorted(path.read_bytes() for path in files) == [b"19", b"19"]


def test_a_crash_marks_running_jobs_as_failed(own_home):
    cloud = start(own_home)
    cloud.s3.create_bucket(Bucket=BUCKET)
    name = cloud.start_training(SLOW)
    until(lambda: "started" in cloud.training_lines(name))
    psutil.Process(cloud.server["pid"]).kill()
    again = start(own_home)
    job = again.sagemaker.describe_training_job(TrainingJobName=name)
    assert job["TrainingJobStatus"] == "Failed"
    assert "local cloud ended while the job ran" in job["FailureReason"]
    assert "started" in again.training_lines(name)


def test_a_damaged_state_is_one_sentence(own_home):
    state = own_home / "state"
    state.mkdir(parents=True)
    (state / "cloud.sqlite").write_bytes(b"not a database" * 100)
    started = command_line(own_home, "start")
    assert started.returncode == 1
    assert started.stderr.count("\n") == 1
    assert "`python -m local_cloud reset` begins anew" in started.stderr


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 6 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(folder)], capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip("mounting a small disk needs root")
    yield folder
    command_line(folder / "home", "reset")
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.skipif(shutil.which("mount") is None, reason="needs mount")
def test_a_full_disk_is_one_sentence_and_loses_nothing(small_disk):
    cloud = start(small_disk / "home")
    cloud.s3.create_bucket(Bucket=BUCKET)
    cloud.put("small", b"1")
    with pytest.raises(ClientError, match=r"local_cloud cannot write to .*No space left"):
        cloud.put("large", os.urandom(8 << 20))
    command_line(small_disk / "home", "stop")
    again = start(small_disk / "home")
    assert list(objects(again)) == ["small"]
    assert again.train("print(1)")["TrainingJobStatus"] in FINAL


@pytest.mark.skipif(shutil.which("mount") is None, reason="needs mount")
def test_a_bucket_made_on_a_full_disk_does_not_keep_the_cloud_from_starting(small_disk):
    cloud = start(small_disk / "home")
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    refused = None
    while refused is None:  # What is allocated already takes some more.
        bucket = f"{BUCKET}-{time.monotonic_ns()}"
        try:
            cloud.s3.create_bucket(Bucket=bucket)
        except ClientError as error:
            refused = str(error)
    assert "local_cloud cannot write to" in refused
    filler.unlink()
    cloud.s3.put_object(Bucket=bucket, Key="late", Body=b"1")
    command_line(small_disk / "home", "stop")
    again = start(small_disk / "home")
    assert again.s3.get_object(Bucket=bucket, Key="late")["Body"].read() == b"1"


def test_the_folder_of_an_endpoint_is_named(cloud):
    make_endpoint(cloud, name="looked-into")
    folder = command_line(cloud.home, "open", "looked-into").stdout.strip()
    assert (Path(folder) / "opt" / "ml" / "model" / "word").read_text() == "hello"
    cloud.sagemaker.delete_endpoint(EndpointName="looked-into")
    until(lambda: not Path(folder).exists())


def test_the_command_line_follows_a_log_and_names_the_folder(cloud):
    slow = cloud.start_training(SLOW)
    until(lambda: "started" in cloud.training_lines(slow))
    folder = command_line(cloud.home, "open", slow).stdout.strip()
    assert Path(folder).is_dir()
    cloud.sagemaker.stop_training_job(TrainingJobName=slow)
    name = cloud.start_training("import time\nfor i in range(3): print(i); time.sleep(0.3)")
    followed = command_line(cloud.home, "logs", name)
    assert (followed.returncode, followed.stdout) == (0, "0\n1\n2\n")
    assert cloud.wait_for_training(name)["TrainingJobStatus"] == "Completed"
    ended = command_line(cloud.home, "open", name)
    assert ended.returncode == 1
    assert "is Completed and has no folder" in ended.stderr
    unknown = command_line(cloud.home, "logs", "nobody")
    assert unknown.returncode == 1
    assert unknown.stderr == (
        "local_cloud: there is no job or endpoint 'nobody'; `status` lists them.\n"
    )


def kill_server(cloud, random_):
    psutil.Process(cloud.server["pid"]).kill()


def kill_any(cloud, random_):
    """Kill one process of a job or an endpoint."""
    processes = processes_with("LOCAL_CLOUD_INSTANCE", cloud.server["name"])
    others = [process for process in processes if process.pid != cloud.server["pid"]]
    with contextlib.suppress(psutil.NoSuchProcess):
        random_.choice(others).kill()


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_kills_at_random_moments(soak_home, seed):
    """Whatever is killed and when: nothing hangs, and every job ends in a true state."""
    random_ = random.Random(seed)
    cloud = start(soak_home)
    wait_in_service(cloud, "soak")
    seconds = random_.choice([0, 0.2, 600])
    script = f"import time; print('up', flush=True); time.sleep({seconds}); print('down')"
    names = [cloud.start_training(script) for _ in range(2)]
    time.sleep(random_.uniform(0, 1.5))
    random_.choice([kill_server, kill_any, kill_any])(cloud, random_)
    cloud = start(soak_home)
    for name in names:
        job = cloud.sagemaker.describe_training_job(TrainingJobName=name)
        if job["TrainingJobStatus"] == "InProgress" and seconds == 600:
            with contextlib.suppress(ClientError):  # It has just failed.
                cloud.sagemaker.stop_training_job(TrainingJobName=name)
        job = cloud.wait_for_training(name)
        printed = cloud.training_lines(name)
        if job["TrainingJobStatus"] == "Completed":
            assert printed == ["up", "down"]
        elif job["TrainingJobStatus"] == "Failed":
            assert job["FailureReason"]
        else:
            assert seconds == 600
    until(lambda: answers(cloud, "soak"))
    folders = Path(cloud.server["work_folder"]) / "jobs" / "TrainingJob"
    until(lambda: not folders.exists() or list(folders.iterdir()) == [])


@pytest.fixture(scope="module")
def soak_home(tmp_path_factory):
    home = tmp_path_factory.mktemp("soak") / "home"
    cloud = start(home)
    cloud.s3.create_bucket(Bucket=BUCKET)
    make_endpoint(cloud, "soak")
    yield home
    command_line(home, "reset")
