"""Processing jobs."""

import json
from pathlib import Path

from local_cloud.container import OPT_ML
from local_cloud.errors import invalid
from local_cloud.jobs import (
    Job,
    delete_finished,
    require_one_instance,
    timed,
)
from local_cloud.store import arn, now, page

KIND = "ProcessingJob"
DAY = 24 * 3600
SUMMARY = (
    "ProcessingJobName",
    "ProcessingJobArn",
    "CreationTime",
    "ProcessingEndTime",
    "LastModifiedTime",
    "ProcessingJobStatus",
    "FailureReason",
    "ExitMessage",
)


class Processing:
    """The operations on processing jobs."""

    def __init__(self, store, aws):
        self.store, self.aws = store, aws
        self.jobs = {}
        self.operations = {
            "CreateProcessingJob": self.create,
            "DescribeProcessingJob": lambda p, _: self.store.get(KIND, p["ProcessingJobName"]),
            "ListProcessingJobs": self.list,
            "StopProcessingJob": self.stop,
            "DeleteProcessingJob": self.delete,
        }

    def create(self, params, region):
        name = params["ProcessingJobName"]
        check(params)
        record = {key: value for key, value in params.items() if key != "Tags"}
        record.update(
            ProcessingJobArn=arn(region, "processing-job", name),
            ProcessingJobStatus="InProgress",
            CreationTime=now(),
            LastModifiedTime=now(),
        )
        self.store.add(KIND, name, record)
        self.store.set_tags(record["ProcessingJobArn"], params.get("Tags"))
        job = ProcessingJob(self.store, self.aws, name, region)
        self.jobs[name] = job
        job.start()
        return {"ProcessingJobArn": record["ProcessingJobArn"]}

    def list(self, params, region):
        names = ("ProcessingJobName", "ProcessingJobStatus")
        summaries, token = page(self.store.all(KIND), params, *names, SUMMARY)
        answer = {"ProcessingJobSummaries": summaries}
        return {**answer, "NextToken": token} if token else answer

    def stop(self, params, region):
        name = params["ProcessingJobName"]
        self.store.get(KIND, name)
        self.jobs[name].stop()

    def delete(self, params, region):
        delete_finished(self.store, KIND, params["ProcessingJobName"])
        self.jobs.pop(params["ProcessingJobName"], None)


def check(params):
    """Refuse, before it is created, what could not be run here."""
    require_one_instance(params["ProcessingResources"]["ClusterConfig"].get("InstanceCount", 1))
    if not params["AppSpecification"].get("ContainerEntrypoint"):
        raise invalid("local_cloud runs scripts, not images: the job needs a ContainerEntrypoint.")
    for entry in params.get("ProcessingInputs", []):
        if "LocalPath" not in entry.get("S3Input", {}):
            raise invalid(f"The input {entry['InputName']!r} needs an S3Input with a LocalPath.")
    for entry in params.get("ProcessingOutputConfig", {}).get("Outputs", []):
        if "LocalPath" not in entry.get("S3Output", {}):
            raise invalid(f"The output {entry['OutputName']!r} needs an S3Output with a LocalPath.")
    paths = [source["S3Input"]["LocalPath"] for source in inputs(params)]
    paths += [output["S3Output"]["LocalPath"] for output in outputs(params)]
    for path in paths:
        if not path.startswith(f"{OPT_ML}/") or ".." in path.split("/"):
            raise invalid(f"LocalPath must be below {OPT_ML}; {path!r} is not.")


def app_entrypoint(record):
    return record["AppSpecification"]["ContainerEntrypoint"]


def inputs(record):
    return record.get("ProcessingInputs", [])


def outputs(record):
    return record.get("ProcessingOutputConfig", {}).get("Outputs", [])


class ProcessingJob(Job):
    """Downloads the inputs, runs the command, uploads the outputs."""

    kind = KIND
    log_group = "/aws/sagemaker/ProcessingJobs"

    def __init__(self, store, aws, name, region):
        super().__init__(store, aws, name, region)
        self.started = None

    def work(self):
        record = self.record
        self.started = now()
        self.change(ProcessingStartTime=self.started)
        self.prepare(record)
        command = [
            *app_entrypoint(record),
            *record["AppSpecification"].get("ContainerArguments", []),
        ]
        limit = record.get("StoppingCondition", {}).get("MaxRuntimeInSeconds", DAY)
        try:
            if not self.stopping.is_set():
                command = [self.container.localize(part) for part in command]
                self.run_process(command, self.container.ml, limit, lambda line: None)
        finally:
            self.upload(record)

    def prepare(self, record):
        """Lay out `/opt/ml` with inputs, empty outputs and configuration."""
        container = self.container
        container.add_python()
        for name in ("config", "output"):
            (container.ml / name).mkdir()
        entrypoint = [container.localize(part) for part in app_entrypoint(record)]
        for source in inputs(record):
            folder = container.localize(source["S3Input"]["LocalPath"])
            self.aws.download(source["S3Input"]["S3Uri"], folder)
            if any(part.startswith(folder) for part in entrypoint):
                container.localize_scripts(folder, suffixes=(".sh",))
        for output in outputs(record):
            Path(container.localize(output["S3Output"]["LocalPath"])).mkdir(
                parents=True, exist_ok=True
            )
        config = {key: record[key] for key in record if key != "Environment"}
        text = json.dumps(config, default=str)
        (container.ml / "config" / "processingjobconfig.json").write_text(text)
        environment = record.get("Environment", {})
        container.environment.update({k: container.localize(v) for k, v in environment.items()})
        container.environment["PROCESSING_JOB_ARN"] = record["ProcessingJobArn"]

    def upload(self, record):
        for output in outputs(record):
            folder = self.container.localize(output["S3Output"]["LocalPath"])
            self.aws.upload_folder(folder, output["S3Output"]["S3Uri"])

    def finish(self, status, reason):
        end, _ = timed(self.record, self.started)
        if self.timed_out:
            status, reason = "Stopped", "MaxRuntimeExceeded"
        fields = {"ProcessingJobStatus": status, "ProcessingEndTime": end}
        if reason:
            fields["FailureReason"] = reason
        self.change(**fields)
