"""Which instances a run used and for how long, found through the SageMaker API by its name."""

import re
from dataclasses import dataclass
from datetime import datetime, timezone

# What the SDK appends to the names of jobs: ModelTrainer the one, processors the other.
STAMP = re.compile(r"-(\d{14}|\d{4}(-\d{2}){5}-\d{1,3})$")


@dataclass(frozen=True)
class Usage:
    """The instances of one launch.

    Attributes:
        launch: what it was, in words.
        component: what AWS charges it as: "Training", "Processing" or "Hosting".
        count: number of instances, together or, in a search, one after the other.
        seconds: how long they ran, all of them added up.
        billed: how many of these seconds are charged at the price on demand.
        spot: whether they were managed spot capacity, for which `billed` is less.
        began: when the launch was asked for.
    """

    launch: str
    component: str
    instance: str
    count: int
    seconds: float
    billed: float
    spot: bool
    began: datetime


def usage(cloud):
    """A `Usage` for each tuning, training and processing job and endpoint of this run, in order.

    Jobs count however they ended, endpoints as long as they are there.
    """
    client = cloud.client("sagemaker")
    found = [*trainings(cloud, client), *processings(cloud, client), *endpoints(cloud, client)]
    return sorted(found, key=lambda used: used.began)


def usage_of(cloud, job):
    """The `Usage` of one job.

    Args:
        job: description of a training, processing or tuning job, as the API gives it.
    """
    if "ProcessingJobName" in job:
        return processed(cloud, job)
    if "TrainingJobName" in job:
        return trained(training_name(cloud, job), [job])
    client, name = cloud.client("sagemaker"), job["HyperParameterTuningJobName"]
    pages = client.get_paginator("list_training_jobs_for_hyper_parameter_tuning_job").paginate(
        HyperParameterTuningJobName=name
    )
    names = [each["TrainingJobName"] for page in pages for each in page["TrainingJobSummaries"]]
    jobs = [client.describe_training_job(TrainingJobName=name) for name in names]
    return trained(search_name(jobs), jobs)


def listed(client, kind, result, contained):
    """The entries of a list call whose names contain a text, the oldest first."""
    pages = client.get_paginator(f"list_{kind}").paginate(
        NameContains=contained, SortBy="CreationTime", SortOrder="Ascending"
    )
    return [entry for page in pages for entry in page[result]]


def trainings(cloud, client):
    """A `Usage` for each tuning job, with all its training jobs, and each training job alone."""
    launches = {}
    for summary in listed(client, "training_jobs", "TrainingJobSummaries", cloud.run):
        job = client.describe_training_job(TrainingJobName=summary["TrainingJobName"])
        launches.setdefault(job.get("TuningJobArn", job["TrainingJobArn"]), []).append(job)
    for jobs in launches.values():
        is_search = "TuningJobArn" in jobs[0]
        yield trained(search_name(jobs) if is_search else training_name(cloud, jobs[0]), jobs)


def trained(launch, jobs):
    """The `Usage` of training jobs that differ in their hyperparameters only."""
    first = jobs[0]
    instances, spot = first["ResourceConfig"]["InstanceCount"], first["EnableManagedSpotTraining"]
    # Both are times of one instance: API reference, DescribeTrainingJob.
    billed = sum(job.get("BillableTimeInSeconds", lasted(job, "Training")) for job in jobs)
    worked = sum(job.get("TrainingTimeInSeconds", lasted(job, "Training")) for job in jobs)
    return Usage(
        launch=launch,
        component="Training",
        instance=first["ResourceConfig"]["InstanceType"],
        count=instances * len(jobs),
        seconds=instances * (worked if spot else billed),
        billed=instances * billed,
        spot=spot,
        began=first["CreationTime"],
    )


def search_name(jobs):
    return f"search ({len(jobs)} trial{'s' if len(jobs) != 1 else ''})"


def training_name(cloud, job):
    return named("training job", cloud, job["TrainingJobName"], job["TrainingJobStatus"])


def processings(cloud, client):
    """A `Usage` for each processing job."""
    for summary in listed(client, "processing_jobs", "ProcessingJobSummaries", cloud.run):
        name = summary["ProcessingJobName"]
        yield processed(cloud, client.describe_processing_job(ProcessingJobName=name))


def processed(cloud, job):
    cluster = job["ProcessingResources"]["ClusterConfig"]
    seconds = cluster["InstanceCount"] * lasted(job, "Processing")
    return Usage(
        launch=named("processing job", cloud, job["ProcessingJobName"], job["ProcessingJobStatus"]),
        component="Processing",
        instance=cluster["InstanceType"],
        count=cluster["InstanceCount"],
        seconds=seconds,
        billed=seconds,
        spot=False,
        began=job["CreationTime"],
    )


def lasted(job, kind):
    """Seconds from the start of a job to its end or, while it runs, to now; 0 before the start."""
    if f"{kind}StartTime" not in job:
        return 0
    end = job.get(f"{kind}EndTime", datetime.now(timezone.utc))
    return (end - job[f"{kind}StartTime"]).total_seconds()


def endpoints(cloud, client):
    """A `Usage` for each configuration that an endpoint had, and each type of its instances."""
    names = [e["EndpointName"] for e in listed(client, "endpoints", "Endpoints", cloud.run)]
    existing = [client.describe_endpoint(EndpointName=name) for name in names]
    configs = [
        client.describe_endpoint_config(EndpointConfigName=entry["EndpointConfigName"])
        for entry in listed(client, "endpoint_configs", "EndpointConfigs", cloud.run)
    ]
    for endpoint in existing:
        taken = {e["EndpointConfigName"] for e in existing if e is not endpoint}
        own = [config for config in configs if config["EndpointConfigName"] not in taken]
        for config, began, ended in served(endpoint, own):
            yield from hosted(cloud, endpoint, config, began, ended)


def served(endpoint, configs):
    """The configurations that an endpoint had, each with the times of its start and its end.

    The API names the present one only. Those made between the creation of the endpoint and that of
    its present configuration count as having followed each other, after the one that was there.

    Args:
        configs: descriptions of all that this endpoint may have had, the oldest first.
    """
    created, name = endpoint["CreationTime"], endpoint["EndpointConfigName"]
    # An endpoint goes on without its configuration; only its instance types are unknown then.
    found = [config for config in configs if config["EndpointConfigName"] == name]
    present = found[0] if found else endpoint
    before = [config for config in configs if config["CreationTime"] <= created]
    after = [c for c in configs if created < c["CreationTime"] <= present["CreationTime"]]
    had = [*before[-1:], *after] if after else [present]
    failed = endpoint["EndpointStatus"] == "Failed"
    changed, now = endpoint["LastModifiedTime"], datetime.now(timezone.utc)
    ends = [*(config["CreationTime"] for config in had[1:]), changed if failed else now]
    if after:  # The one before serves, and is charged, until the present one is up.
        ends[-2:-1] = [max(time, changed) for time in ends[-2:-1]]
    began = [max(created, config["CreationTime"]) for config in had]
    return list(zip(had, began, ends, strict=True))


def hosted(cloud, endpoint, config, began, ended):
    """A `Usage` for each type of instance of one configuration."""
    is_present = config["EndpointConfigName"] == endpoint["EndpointConfigName"]
    shown = endpoint.get("ProductionVariants", []) if is_present else []
    now = {variant["VariantName"]: variant for variant in shown}
    counts = {}
    for variant in config.get("ProductionVariants", []):
        count = variant.get("InitialInstanceCount", 1)
        count = now.get(variant["VariantName"], {}).get("CurrentInstanceCount", count)
        instance = instance_of(variant)
        counts[instance] = counts.get(instance, 0) + count
    name, status = config["EndpointConfigName"], endpoint["EndpointStatus"]
    for instance, count in counts.items():
        seconds = count * (ended - began).total_seconds()
        yield Usage(
            launch=named("endpoint", cloud, name, status),
            component="Hosting",
            instance=instance,
            count=count,
            seconds=seconds,
            billed=seconds,
            spot=False,
            began=began,
        )


def instance_of(variant):
    """The type of a variant's instances, or why it has none."""
    if "ServerlessConfig" in variant:
        return "serverless"
    return variant.get("InstanceType", "type not known")


def named(kind, cloud, name, status):
    """A launch in words: its kind, its own part of the name, and how it ended unless well."""
    part = STAMP.sub("", name.partition(cloud.run)[2]).strip("-")
    ended = f", {status.lower()}" if status in ("Failed", "Stopped") else ""
    return f"{kind} “{part}”{ended}" if part else f"{kind}{ended}"
