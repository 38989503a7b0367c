"""The table of `python -m local_cloud status`."""

from local_cloud.aws import LocalAws

LISTS = (
    ("training job", "list_training_jobs", "TrainingJobSummaries", "TrainingJob"),
    (
        "tuning job",
        "list_hyper_parameter_tuning_jobs",
        "HyperParameterTuningJobSummaries",
        "HyperParameterTuningJob",
    ),
    ("processing job", "list_processing_jobs", "ProcessingJobSummaries", "ProcessingJob"),
    ("transform job", "list_transform_jobs", "TransformJobSummaries", "TransformJob"),
    ("endpoint", "list_endpoints", "Endpoints", "Endpoint"),
)


def rows(instance):
    """One row (kind, name, status, created) for every job and endpoint, padded to columns."""
    client = LocalAws(instance).client("sagemaker", instance.region)
    table = []
    for kind, operation, result, prefix in LISTS:
        for page in client.get_paginator(operation).paginate():
            for entry in page[result]:
                created = entry["CreationTime"].astimezone().strftime("%H:%M:%S")
                name, status = entry[f"{prefix}Name"], entry[f"{prefix}Status"]
                table.append((kind, name, status, created))
    widths = [max(map(len, column)) for column in zip(*table)]
    return [[cell.ljust(width) for cell, width in zip(row, widths)] for row in table]
