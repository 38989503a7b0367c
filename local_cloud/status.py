"""What the command line shows of jobs and endpoints: a table, a log, a folder."""

import time
from pathlib import Path

from local_cloud.aws import LocalAws
from local_cloud.errors import CloudError

KINDS = {
    "TrainingJob": ("training job", "list_training_jobs", "TrainingJobSummaries"),
    "HyperParameterTuningJob": (
        "tuning job",
        "list_hyper_parameter_tuning_jobs",
        "HyperParameterTuningJobSummaries",
    ),
    "ProcessingJob": ("processing job", "list_processing_jobs", "ProcessingJobSummaries"),
    "TransformJob": ("transform job", "list_transform_jobs", "TransformJobSummaries"),
    "Endpoint": ("endpoint", "list_endpoints", "Endpoints"),
}
TITLES = ("kind", "name", "status", "created")
ENDED = ("Completed", "Failed", "Stopped", "Deleted")
POLL_SECONDS = 0.5


def entries(instance):
    """(kind, summary) of every job and endpoint, the oldest of each kind first."""
    client = LocalAws(instance).client("sagemaker", instance.region)
    for kind, (_, operation, result) in KINDS.items():
        pages = client.get_paginator(operation).paginate(
            SortBy="CreationTime", SortOrder="Ascending"
        )
        for page in pages:
            for entry in page[result]:
                yield kind, entry


def rows(instance):
    """One row (kind, name, status, created) for every job and endpoint, padded to columns."""
    table = [TITLES]
    for kind, entry in entries(instance):
        created = entry["CreationTime"].astimezone().strftime("%Y-%m-%d %H:%M:%S")
        table.append((KINDS[kind][0], entry[f"{kind}Name"], entry[f"{kind}Status"], created))
    if len(table) == 1:
        return []
    widths = [max(map(len, column)) for column in zip(*table)]
    return [[cell.ljust(width) for cell, width in zip(row, widths)] for row in table]


def find(instance, name):
    """Kind and status of the job or endpoint `name`; CloudError where there is none."""
    found = [(k, e[f"{k}Status"]) for k, e in entries(instance) if e[f"{k}Name"] == name]
    if not found:
        raise CloudError(f"there is no job or endpoint {name!r}; `status` lists them.")
    return found[-1]


def log_lines(instance, name, follow):
    """The log lines of a job or endpoint; with `follow`, also those still to come."""
    kind, status = find(instance, name)
    if kind == "HyperParameterTuningJob":
        raise CloudError(f"{name} is a tuning job; its training jobs have the logs.")
    client = LocalAws(instance).client("logs", instance.region)
    group, prefix = f"/aws/sagemaker/{kind}s", f"{name}/"
    if kind == "Endpoint":
        group, prefix = f"{group}/{name}", ""
    tokens = {}
    while True:
        ended = status in ENDED  # Read before the lines: a job that has ended writes no more.
        yield from new_lines(client, group, prefix, tokens)
        if ended or not follow:
            return
        time.sleep(POLL_SECONDS)
        status = find(instance, name)[1]


def new_lines(client, group, prefix, tokens):
    """The lines since the last call, stream by stream; `tokens` remembers how far it came."""
    asked = {"logGroupName": group, **({"logStreamNamePrefix": prefix} if prefix else {})}
    try:
        pages = client.get_paginator("describe_log_streams").paginate(**asked)
        names = [stream["logStreamName"] for page in pages for stream in page["logStreams"]]
    except client.exceptions.ResourceNotFoundException:
        return
    for stream in names:
        while True:
            more = {"nextToken": tokens[stream]} if stream in tokens else {}
            answer = client.get_log_events(
                logGroupName=group, logStreamName=stream, startFromHead=True, **more
            )
            yield from (event["message"] for event in answer["events"])
            tokens[stream] = answer["nextForwardToken"]
            if not answer["events"]:
                break


def folder_of(instance, name):
    """The folder in which a job or endpoint runs; CloudError once it has ended."""
    kind, status = find(instance, name)
    if kind == "HyperParameterTuningJob":
        raise CloudError(f"{name} is a tuning job; its training jobs have the folders.")
    folder = Path(instance.work_folder) / ("endpoints" if kind == "Endpoint" else f"jobs/{kind}")
    # A model server's folder has a number behind the name of its endpoint or transform job.
    servers = (path for path in folder.glob(f"{name}-*") if path.name.rpartition("-")[0] == name)
    found = next((path for path in (folder / name, *servers) if path.is_dir()), None)
    if found is None:
        raise CloudError(
            f"{name} is {status} and has no folder (any more): what it wrote is in S3, "
            "where `aws sagemaker describe-...` says."
        )
    return found
