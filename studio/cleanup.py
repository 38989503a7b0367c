"""Removes what a run made, and looks whether anything is left."""

import time

import pandas as pd

from studio.jobs import FINAL, keys_below, poll

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
JOBS = (
    ("training job", "list_training_jobs", "TrainingJobSummaries", "TrainingJobStatus"),
    (
        "tuning job",
        "list_hyper_parameter_tuning_jobs",
        "HyperParameterTuningJobSummaries",
        "HyperParameterTuningJobStatus",
    ),
    ("processing job", "list_processing_jobs", "ProcessingJobSummaries", "ProcessingJobStatus"),
)


def clean_up(cloud):
    """Delete the endpoints, configurations, models and S3 objects of this run.

    The history of jobs stays: it costs nothing and is the record of what was done.
    """
    remove_hosting(cloud)
    keys = object_keys(cloud)
    s3 = cloud.client("s3")
    for first in range(0, len(keys), BATCH):
        batch = [{"Key": key} for key in keys[first : first + BATCH]]
        s3.delete_objects(Bucket=cloud.bucket, Delete={"Objects": batch})
    print(f"deleted {len(keys)} objects in S3")


def remove_hosting(cloud):
    """Delete the endpoints, configurations and models of this run: what costs by the hour."""
    client = cloud.client("sagemaker")
    for kind, operation, result, field, delete in HOSTING:
        for name in names(client, operation, result, field, cloud.run):
            getattr(client, delete)(**{field: name})
            print(f"deleted the {kind} {name}")


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
    for kind, operation, result, status in JOBS:
        pages = client.get_paginator(operation).paginate(NameContains=cloud.run)
        running = [job for page in pages for job in page[result] if job[status] not in FINAL]
        rows.append((f"{kind}s running", len(running)))
    rows.append(("objects in S3", len(object_keys(cloud))))
    return pd.DataFrame(rows, columns=["what", "left"])


def names(client, operation, result, field, contained):
    """Names of the resources of a list call that carry the name of the run."""
    pages = client.get_paginator(operation).paginate(NameContains=contained)
    return [entry[field] for page in pages for entry in page[result]]


def object_keys(cloud):
    return list(keys_below(cloud, f"s3://{cloud.bucket}/{cloud.prefix}"))
