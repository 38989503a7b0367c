"""What the tests of the local cloud share: its command line, its clients, tiny jobs."""

import io
import json
import os
import subprocess
import sys
import tarfile
import time
import uuid
from pathlib import Path

import boto3
import botocore.session
import psutil

PROJECT = Path(__file__).resolve().parents[2]
ROLE = "arn:aws:iam::123456789012:role/tester"
BUCKET = "local-cloud-tests"
TIMEOUT = 60  # Seconds that any one job may take here.
FINAL = ("Completed", "Failed", "Stopped")
# Reads the services' descriptions, 10 MB of them for SageMaker, once for all clients.
LOADER = botocore.session.get_session().get_component("data_loader")


def command_line(home, *arguments):
    """Run `python -m local_cloud` for the folder `home`."""
    return subprocess.run(
        [sys.executable, "-m", "local_cloud", *arguments],
        cwd=PROJECT,
        env={**os.environ, "LOCAL_CLOUD_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=120,
    )


def until(condition, timeout=TIMEOUT):
    """The first true value of `condition()`."""
    deadline, pause = time.monotonic() + timeout, 0.01
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        # What is soon true is soon seen; what takes long is not asked for all the time.
        time.sleep(pause)
        pause = min(1.3 * pause, 0.1)
    raise AssertionError("it did not happen in time")


def processes_with(variable, value):
    """Living processes that inherited an environment variable."""
    found = []
    for process in psutil.process_iter():
        try:
            if (
                process.status() != psutil.STATUS_ZOMBIE
                and process.environ().get(variable) == value
            ):
                found.append(process)
        except psutil.Error:
            continue
    return found


def is_alive(pid):
    """Whether a process runs; one that ended but was not waited for does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def archive(files):
    """A `.tar.gz` as bytes; `files` maps names to texts or bytes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            body = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
    return buffer.getvalue()


class Cloud:
    """A running local cloud and clients of it."""

    def __init__(self, home):
        self.home = Path(home)
        self.env = json.loads(command_line(home, "env", "--format", "json").stdout)
        self.url = self.env["AWS_ENDPOINT_URL"]
        self.server = json.loads((self.home / "server.json").read_text())
        core = botocore.session.get_session()
        core.register_component("data_loader", LOADER)
        self.session = boto3.session.Session(
            botocore_session=core,
            aws_access_key_id=self.env["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self.env["AWS_SECRET_ACCESS_KEY"],
            region_name=self.env["AWS_DEFAULT_REGION"],
        )
        self.sagemaker = self.client("sagemaker")
        self.runtime = self.client("sagemaker-runtime")
        self.s3 = self.client("s3")
        self.logs = self.client("logs")

    def client(self, service, **overrides):
        return self.session.client(service, endpoint_url=self.url, **overrides)

    def put(self, key, body):
        """Store an object and return its address."""
        self.s3.put_object(Bucket=BUCKET, Key=key, Body=body)
        return f"s3://{BUCKET}/{key}"

    def get(self, key):
        return self.s3.get_object(Bucket=BUCKET, Key=key)["Body"].read()

    def archive_members(self, key):
        """The files of a stored `.tar.gz` as a dictionary of texts."""
        with tarfile.open(fileobj=io.BytesIO(self.get(key))) as tar:
            return {m.name: tar.extractfile(m).read().decode() for m in tar if m.isfile()}

    def training_request(self, script, hyperparameters=None, files=None, **fields):
        """A CreateTrainingJob request for `script`, by the contract of the training toolkit."""
        name = f"job-{uuid.uuid4().hex[:12]}"
        source = self.put(f"source/{name}.tar.gz", archive({"main.py": script, **(files or {})}))
        request = {
            "TrainingJobName": name,
            "AlgorithmSpecification": {"TrainingImage": "any/image:1", "TrainingInputMode": "File"},
            "RoleArn": ROLE,
            "OutputDataConfig": {"S3OutputPath": f"s3://{BUCKET}/out"},
            "ResourceConfig": {
                "InstanceType": "ml.m5.large",
                "InstanceCount": 1,
                "VolumeSizeInGB": 1,
            },
            "StoppingCondition": {"MaxRuntimeInSeconds": TIMEOUT},
            "HyperParameters": {
                "sagemaker_program": "main.py",
                "sagemaker_submit_directory": source,
                **(hyperparameters or {}),
            },
        }
        return {**request, **fields}

    def start_training(self, script, **arguments):
        """Start a training job and return its name."""
        request = self.training_request(script, **arguments)
        self.sagemaker.create_training_job(**request)
        return request["TrainingJobName"]

    def train(self, script, **arguments):
        """Run a training job to its end and return its description."""
        return self.wait_for_training(self.start_training(script, **arguments))

    def wait_for_training(self, name, timeout=TIMEOUT):
        def ended():
            description = self.sagemaker.describe_training_job(TrainingJobName=name)
            return description if description["TrainingJobStatus"] in FINAL else None

        return until(ended, timeout)

    def lines(self, group, prefix):
        """All log lines of the streams that begin with `prefix`."""
        try:
            streams = self.logs.describe_log_streams(
                logGroupName=group, logStreamNamePrefix=prefix
            )["logStreams"]
        except self.logs.exceptions.ResourceNotFoundException:
            return []
        lines = []
        for stream in streams:
            events = self.logs.get_log_events(
                logGroupName=group, logStreamName=stream["logStreamName"], startFromHead=True
            )["events"]
            lines += [event["message"] for event in events]
        return lines

    def training_lines(self, name):
        return self.lines("/aws/sagemaker/TrainingJobs", name + "/")
