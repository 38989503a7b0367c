"""Follows jobs and endpoints while they run, through the same API calls on AWS and locally."""

import io
import json
import re
import shutil
import tarfile
import tempfile
import time
from datetime import timezone
from pathlib import Path
from urllib.parse import urlsplit

import pandas as pd

from studio.cloud import ROOT
from vision.archives import extract

FINAL = ("Completed", "Failed", "Stopped")
OUT_OF_TIME = ("MaxRuntimeExceeded", "MaxWaitTimeExceeded")  # Of jobs that end as Stopped.
ON_THE_WAY = ("Creating", "Updating", "SystemUpdating", "RollingBack")  # Of endpoints.
POLL_LOCAL, POLL_AWS = 0.5, 10  # Seconds between looks.
# What the scripts of this project print for people; the drivers around them print much more.
OUR_LINES = re.compile(
    r"^(read |training |resumed|epoch=|no better|best_|threshold=|stopped|saved|pictures=|accuracy="
    r"|NoIssuesFound=|left out|the debugger|error)"
)
# What a job needs of this project, and nothing else.
SOURCE = (
    "train_model.py",
    "hpo.py",
    "learning_curve.py",
    "extract_features.py",
    "evaluate.py",
    "report.py",
    "inference.py",
    "vision",
    "insight",
)
JOB_KINDS = {
    "TrainingJob": ("describe_training_job", "/aws/sagemaker/TrainingJobs"),
    "ProcessingJob": ("describe_processing_job", "/aws/sagemaker/ProcessingJobs"),
}


class JobFailed(Exception):
    """A job or endpoint ended badly; the message is the service's own reason."""


def stage_source(folder="build/source"):
    """Copy the entry points and what they share into a clean folder; return its path as text."""
    folder = Path(folder)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in SOURCE:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", ".*")
            shutil.copytree(ROOT / name, folder / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, folder / name)
    for path in ROOT.glob("requirements-*.txt"):
        shutil.copy(path, folder / path.name)
    # A tuner's trials can name no requirements; their container installs those of this name.
    shutil.copy(ROOT / "requirements-train.txt", folder / "requirements.txt")
    return str(folder)


def follow(cloud, name, kind="TrainingJob", show=OUR_LINES):
    """Print the log lines of a job as they arrive, until it ends; return its description.

    Args:
        show: regular expression of the lines worth showing.

    Raises:
        JobFailed: the job failed, or its time was up; the message is the reason.
    """
    operation, log_group = JOB_KINDS[kind]
    describe = getattr(cloud.client("sagemaker"), operation)
    log = LogReader(cloud.client("logs"), log_group, name)
    started, last = time.monotonic(), None
    while True:
        job = describe(**{f"{kind}Name": name})
        status = job[f"{kind}Status"]
        phase = job.get("SecondaryStatus", status)
        if phase != last:
            print(f"[{time.monotonic() - started:4.0f} s] {phase}")
            last = phase
        for line in log.new_lines():
            if show.search(line):
                print(f"[{time.monotonic() - started:4.0f} s]   {line}")
        if status in FINAL:
            break
        time.sleep(poll(cloud))
    # One that was stopped because its time was over has no whole result.
    reason = job.get("FailureReason") or (phase if phase in OUT_OF_TIME else None)
    if status == "Failed" or reason:
        raise JobFailed(f"{name}: {reason or 'no reason given'}")
    return job


def wait_for_objects(cloud, uri, name):
    """Wait until a running training job has put something below an S3 address; return the keys.

    Raises:
        JobFailed: the job ended before it did.
    """
    bucket, prefix = split_uri(uri)
    while True:
        job = cloud.client("sagemaker").describe_training_job(TrainingJobName=name)
        found = cloud.client("s3").list_objects_v2(Bucket=bucket, Prefix=prefix)
        if found["KeyCount"]:
            return [entry["Key"] for entry in found["Contents"]]
        if job["TrainingJobStatus"] in FINAL:
            raise JobFailed(f"{name} ended ({job['TrainingJobStatus']}) and left nothing at {uri}")
        time.sleep(poll(cloud))


def log_lines(cloud, name, kind="TrainingJob"):
    """All lines that a job has printed so far, host by host."""
    return LogReader(cloud.client("logs"), JOB_KINDS[kind][1], name).new_lines()


def phases(job):
    """What a training job went through: a DataFrame of phase, begin (UTC) and seconds."""
    rows = [
        (
            phase["Status"],
            phase["StartTime"].astimezone(timezone.utc).strftime("%H:%M:%S"),
            (phase.get("EndTime", phase["StartTime"]) - phase["StartTime"]).total_seconds(),
        )
        for phase in job["SecondaryStatusTransitions"]
    ]
    return pd.DataFrame(rows, columns=["phase", "begin", "seconds"])


def latest_job(cloud, part):
    """Name of the latest training job whose name contains `part`."""
    answer = cloud.client("sagemaker").list_training_jobs(
        NameContains=part, SortBy="CreationTime", SortOrder="Descending", MaxResults=1
    )
    return answer["TrainingJobSummaries"][0]["TrainingJobName"]


def poll(cloud):
    return POLL_LOCAL if cloud.is_local else POLL_AWS


class LogReader:
    """Reads the new lines of a job's log streams in CloudWatch Logs."""

    def __init__(self, client, group, prefix):
        self.client, self.group, self.prefix = client, group, prefix
        self.tokens = {}

    def new_lines(self):
        """The lines that arrived since the last call, stream by stream."""
        try:
            answer = self.client.describe_log_streams(
                logGroupName=self.group, logStreamNamePrefix=f"{self.prefix}/"
            )
        except self.client.exceptions.ResourceNotFoundException:
            return []
        names = [stream["logStreamName"] for stream in answer["logStreams"]]
        return [line for name in names for line in self.read(name)]

    def read(self, stream):
        lines = []
        while True:
            token = {"nextToken": self.tokens[stream]} if stream in self.tokens else {}
            answer = self.client.get_log_events(
                logGroupName=self.group, logStreamName=stream, startFromHead=True, **token
            )
            lines += [event["message"] for event in answer["events"]]
            if answer["nextForwardToken"] == self.tokens.get(stream):
                return lines
            self.tokens[stream] = answer["nextForwardToken"]


def follow_tuning(cloud, name):
    """Print a line for every trial that ends, until the search ends; return the table of trials.

    Raises:
        JobFailed: the search failed.
    """
    client = cloud.client("sagemaker")
    started, told = time.monotonic(), set()
    while True:
        job = client.describe_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)
        table = trials(cloud, name)
        for row in table[table["status"].isin(FINAL)].to_dict("records"):
            if row["name"] not in told:
                told.add(row["name"])
                print(f"[{time.monotonic() - started:4.0f} s] {trial_line(row)}")
        if job["HyperParameterTuningJobStatus"] in FINAL:
            break
        time.sleep(poll(cloud))
    if job["HyperParameterTuningJobStatus"] == "Failed":
        raise JobFailed(f"{name}: {job.get('FailureReason', 'no reason given')}")
    return table


def trial_line(row):
    """One trial in words: its status, objective and hyperparameters."""
    known = ("name", "number", "status", "objective", "seconds")
    tuned = {k: v for k, v in row.items() if k not in known}
    words = [f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in tuned.items()]
    result = row["status"].lower()
    if row["objective"] == row["objective"]:  # Not NaN: the trial came as far as reporting it.
        result += f", {row['objective']:.4f}"
    return f"trial {row['number']}: {result} ({', '.join(words)})"


def trials(cloud, name):
    """The trials of a tuning job in order: number, name, status, objective, seconds, parameters."""
    client = cloud.client("sagemaker")
    pages = client.get_paginator("list_training_jobs_for_hyper_parameter_tuning_job").paginate(
        HyperParameterTuningJobName=name, SortBy="CreationTime", SortOrder="Ascending"
    )
    rows = []
    for summary in (summary for page in pages for summary in page["TrainingJobSummaries"]):
        metric = summary.get("FinalHyperParameterTuningJobObjectiveMetric", {})
        start, end = summary.get("TrainingStartTime"), summary.get("TrainingEndTime")
        rows.append(
            {
                "number": len(rows) + 1,
                "name": summary["TrainingJobName"],
                "status": summary["TrainingJobStatus"],
                "objective": metric.get("Value", float("nan")),
                "seconds": (end - start).total_seconds() if start and end else float("nan"),
                **{
                    k.replace("-", "_"): number(v)
                    for k, v in summary["TunedHyperParameters"].items()
                },
            }
        )
    return pd.DataFrame(rows, columns=None if rows else ["number", "name", "status", "objective"])


def with_metrics(cloud, table):
    """The table of trials with one more column for the last value of every metric they reported."""
    client = cloud.client("sagemaker")
    rows = []
    for name in table["name"]:
        job = client.describe_training_job(TrainingJobName=name)
        found = job.get("FinalMetricDataList", [])
        rows.append({metric["MetricName"]: metric["Value"] for metric in found})
    # A script may report what the table has, too: its seconds, a hyperparameter.
    metrics = pd.DataFrame(rows, index=table.index)
    return table.join(metrics.rename(columns=lambda c: f"{c}_metric" if c in table else c))


def number(text):
    """The number that a hyperparameter's text stands for, else the text without quotes."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def wait_for_endpoint(cloud, name):
    """Wait until an endpoint is in service; return the seconds it took.

    Raises:
        JobFailed: it did not come into service, or went back to what it was before an update.
    """
    client = cloud.client("sagemaker")
    started, rolled_back = time.monotonic(), False
    while True:
        endpoint = client.describe_endpoint(EndpointName=name)
        status = endpoint["EndpointStatus"]
        rolled_back = rolled_back or status == "RollingBack"
        failed = rolled_back or "FailureReason" in endpoint
        if status == "InService" and not failed:
            return time.monotonic() - started
        if status not in ON_THE_WAY:
            state = f"{status} after its update was rolled back" if rolled_back else status
            raise JobFailed(f"{name}: {endpoint.get('FailureReason') or state}")
        time.sleep(poll(cloud))


def download(cloud, uri, folder):
    """Copy everything below an S3 address into a folder; return the folder as a Path."""
    bucket, prefix = split_uri(uri)
    s3 = cloud.client("s3")
    folder = Path(folder)
    for key in keys_below(cloud, uri):
        target = folder / key[len(prefix) :].lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        s3.download_file(bucket, key, str(target))
    return folder


def keys_below(cloud, uri):
    """Yield the key of every object below an S3 address, however many there are."""
    bucket, prefix = split_uri(uri)
    pages = cloud.client("s3").get_paginator("list_objects_v2")
    for page in pages.paginate(Bucket=bucket, Prefix=prefix):
        yield from (entry["Key"] for entry in page.get("Contents", []))


def read_from_archive(cloud, uri, member):
    """The bytes of one file inside a `.tar.gz` in S3; nothing is unpacked to disk."""
    bucket, key = split_uri(uri)
    with tempfile.TemporaryFile() as file:
        cloud.client("s3").download_fileobj(bucket, key, file)
        file.seek(0)
        with tarfile.open(fileobj=file) as archive:
            return archive.extractfile(member).read()


def fetch_archive(cloud, uri, folder):
    """Unpack a `.tar.gz` in S3 into a folder, in place of what was there; return it as a Path."""
    folder = Path(folder)
    shutil.rmtree(folder, ignore_errors=True)
    bucket, key = split_uri(uri)
    with tempfile.TemporaryDirectory(prefix="archive-") as scratch:
        archive = Path(scratch) / Path(key).name
        cloud.client("s3").download_file(bucket, key, str(archive))
        extract(archive, folder)
    return folder


def list_archive(cloud, uri):
    """Names and sizes in bytes of the files inside a `.tar.gz` in S3.

    What lies two folders deep, as a package's modules do, is one row: "code/vision/ (36 files)".
    """
    bucket, key = split_uri(uri)
    with tempfile.TemporaryFile() as file:
        cloud.client("s3").download_fileobj(bucket, key, file)
        file.seek(0)
        with tarfile.open(fileobj=file) as archive:
            files = [(member.name, member.size) for member in archive if member.isfile()]
    packages = {}
    for name, size in files:
        parts = name.split("/")
        package = "/".join(parts[:2]) + "/" if len(parts) > 2 else name
        packages.setdefault(package, []).append(size)
    return [
        (f"{name} ({len(sizes)} files)" if name.endswith("/") else name, sum(sizes))
        for name, sizes in packages.items()
    ]


def output_uri(job):
    """Where a training job left its output: the s3:// folder that output.tar.gz is in."""
    return f"{job['OutputDataConfig']['S3OutputPath'].rstrip('/')}/{job['TrainingJobName']}/output"


def history(cloud, job):
    """The table of epochs that a training job wrote."""
    uri = f"{output_uri(job)}/output.tar.gz"
    return pd.read_csv(io.BytesIO(read_from_archive(cloud, uri, "history.csv")))


def best_epoch(history):
    """The row of the epoch whose weights the training kept: vision.progress.Best has the rule."""
    order = {"by": ["valid_accuracy", "valid_loss"], "ascending": [False, True]}
    return history.sort_values(**order, kind="stable").iloc[0]


def split_uri(uri):
    parts = urlsplit(uri)
    return parts.netloc, parts.path.lstrip("/")
