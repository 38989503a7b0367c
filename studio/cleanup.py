"""Removes what a run made, and looks whether anything is left."""

import time

import pandas as pd
from botocore.exceptions import ClientError

from studio.jobs import FINAL, ON_THE_WAY, keys_below, poll

BATCH = 1000  # The most objects that one call deletes.
# What costs money while it exists: (kind, list operation, result, name field, delete operation).
HOSTING = (
    ("endpoint", "list_endpoints", "Endpoints", "EndpointName", "delete_endpoint"),
    (
        "endpoint configuration",
        "list_endpoint_configs",
        "EndpointConfigs",
        "EndpointConfigName",
        "delete_endpoint_config",
    ),
    ("model", "list_models", "Models", "ModelName", "delete_model"),
)
# A tuning job comes before training jobs, because it starts them.
JOBS = (
    ("tuning job", "hyper_parameter_tuning", "HyperParameterTuningJob"),
    ("training job", "training", "TrainingJob"),
    ("processing job", "processing", "ProcessingJob"),
)
ENDED_MEANWHILE = ("ValidationException", "ResourceNotFound")  # Or being stopped.
GONE = "Gone"
GOING = ("Deleting", GONE)  # Of an endpoint that nobody has to delete.
SETTLING_SECONDS = 900  # An endpoint that is made or updated; AWS takes some minutes.
STOPPING_SECONDS = 300  # A job that is stopped has two minutes to save what it has.


def clean_up(cloud):
    """Stop the jobs of this run, and delete its endpoints, configurations, models and S3 objects.

    The history of jobs stays: it costs nothing and is the record of what was done.
    """
    remove_hosting(cloud)
    stop_jobs(cloud)
    keys = object_keys(cloud)
    s3 = cloud.client("s3")
    for first in range(0, len(keys), BATCH):
        batch = [{"Key": key} for key in keys[first : first + BATCH]]
        s3.delete_objects(Bucket=cloud.bucket, Delete={"Objects": batch})
    print(f"deleted {len(keys)} objects in S3")


def remove_hosting(cloud):
    """Delete the endpoints, configurations and models of this run: what costs by the hour.

    What cannot be deleted is told, and does not keep the rest.
    """
    client = cloud.client("sagemaker")
    for kind, operation, result, field, delete in HOSTING:
        for name in names(client, operation, result, field, cloud.run):
            if kind == "endpoint" and settled_status(cloud, name) in GOING:
                continue
            try:
                getattr(client, delete)(**{field: name})
            except ClientError as error:
                print(f"the {kind} {name} is not deleted: {error.response['Error']['Message']}")
                continue
            print(f"deleted the {kind} {name}")


def settled_status(cloud, name):
    """Status of an endpoint, after the change that it is in: until then it cannot be deleted."""
    deadline = time.monotonic() + SETTLING_SECONDS
    while True:
        status = endpoint_status(cloud, name)
        if status not in ON_THE_WAY or time.monotonic() > deadline:
            return status
        time.sleep(poll(cloud))


def endpoint_status(cloud, name):
    """Status of an endpoint, `GONE` where there is none."""
    try:
        endpoint = cloud.client("sagemaker").describe_endpoint(EndpointName=name)
    except ClientError as error:
        if error.response["Error"]["Code"] not in ENDED_MEANWHILE:
            raise
        return GONE
    return endpoint["EndpointStatus"]


def stop_jobs(cloud):
    """Stop what still runs of this run, and wait until it has ended: it would write new objects."""
    client = cloud.client("sagemaker")
    for kind, operation, noun in JOBS:
        for name in running(cloud, operation, noun):
            try:
                getattr(client, f"stop_{operation}_job")(**{f"{noun}Name": name})
            except ClientError as error:
                if error.response["Error"]["Code"] not in ENDED_MEANWHILE:
                    raise
                continue
            print(f"stopped the {kind} {name}")
    deadline = time.monotonic() + STOPPING_SECONDS
    while any(running(cloud, *job[1:]) for job in JOBS):
        if time.monotonic() > deadline:
            print(f"some have not ended within {STOPPING_SECONDS} s and may write more objects")
            return
        time.sleep(poll(cloud))


def running(cloud, operation, noun):
    """Names of the jobs of this run, of one kind, that have not ended."""
    pages = cloud.client("sagemaker").get_paginator(f"list_{operation}_jobs")
    found = pages.paginate(NameContains=cloud.run)
    jobs = (job for page in found for job in page[f"{noun}Summaries"])
    return [job[f"{noun}Name"] for job in jobs if job[f"{noun}Status"] not in FINAL]


def leftovers(cloud, timeout=60):
    """How much of this run still exists, by kind; waits until deletions are through.

    Returns:
        DataFrame with columns `what` and `left`.
    """
    deadline = time.monotonic() + timeout
    while True:
        table = count_leftovers(cloud)
        if not table["left"].any() or time.monotonic() > deadline:
            return table
        time.sleep(poll(cloud))


def count_leftovers(cloud):
    client = cloud.client("sagemaker")
    rows = [
        (f"{kind}s", len(names(client, operation, result, field, cloud.run)))
        for kind, operation, result, field, _ in HOSTING
    ]
    for kind, operation, noun in JOBS:
        rows.append((f"{kind}s running", len(running(cloud, operation, noun))))
    rows.append(("objects in S3", len(object_keys(cloud))))
    return pd.DataFrame(rows, columns=["what", "left"])


def names(client, operation, result, field, contained):
    """Names of the resources of a list call that carry the name of the run."""
    pages = client.get_paginator(operation).paginate(NameContains=contained)
    return [entry[field] for page in pages for entry in page[result]]


def object_keys(cloud):
    return list(keys_below(cloud, f"s3://{cloud.bucket}/{cloud.prefix}"))
