"""Processing jobs."""

import contextlib
import json
import re
import shutil

from local_cloud.aws import pack, unpack
from local_cloud.channels import Source, check_source
from local_cloud.checkpoints import FolderSync
from local_cloud.cluster import check_count, threads_each
from local_cloud.container import OPT_ML
from local_cloud.errors import invalid
from local_cloud.images import check_image, mapped_command
from local_cloud.jobs import DAY, Job, Jobs, reason_of
from local_cloud.store import now

KIND = "ProcessingJob"
SOURCES = "sourcedir.tar.gz"  # What the SDK's FrameworkProcessor calls the code it sends.
MAX_MESSAGE = 1024  # Characters of ExitMessage; the service's own limit.
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


class Processing(Jobs):
    """The operations on processing jobs."""

    kind, arn_kind, summary = KIND, "processing-job", SUMMARY

    def __init__(self, store, aws):
        super().__init__(store, aws)
        self.operations = {
            "CreateProcessingJob": self.create,
            "DescribeProcessingJob": self.describe,
            "ListProcessingJobs": self.list,
            "StopProcessingJob": self.stop,
            "DeleteProcessingJob": self.delete,
        }

    def create(self, params, region):
        name = params["ProcessingJobName"]
        check(params)
        record = {key: value for key, value in params.items() if key != "Tags"}
        answer = self.keep(record, params.get("Tags"), region)
        self.launch(name, ProcessingJob(self.store, self.aws, name, region))
        return answer


def check(params):
    """Refuse, before it is created, what could not be run here.

    Raises:
        ServiceError: with the reason.
    """
    resources = params["ProcessingResources"]["ClusterConfig"]
    if "InstanceType" not in resources:
        raise invalid("The cluster of a processing job needs an InstanceType.")
    check_count(resources.get("InstanceCount", 1), resources["InstanceType"], "processing job")
    specification = params["AppSpecification"]
    check_image(
        specification["ImageUri"],
        bool(specification.get("ContainerEntrypoint")),
        "no ContainerEntrypoint",
    )
    for entry in inputs(params):
        check_input(entry)
    for entry in outputs(params):
        if "LocalPath" not in entry.get("S3Output", {}):
            raise invalid(f"The output {entry['OutputName']!r} needs an S3Output with a LocalPath.")
        check_path(entry["S3Output"]["LocalPath"])


def check_input(entry):
    name, source = entry["InputName"], entry.get("S3Input", {})
    if "LocalPath" not in source:
        raise invalid(f"The input {name!r} needs an S3Input with a LocalPath.")
    check_path(source["LocalPath"])
    if source.get("S3InputMode", "File") != "File":
        raise invalid(
            f"local_cloud offers the input mode File, not {source['S3InputMode']} as {name!r} asks."
        )
    if source.get("S3CompressionType", "None") != "None":
        raise invalid(f"S3CompressionType of input {name!r} must be None in File mode.")
    check_source(source.get("S3DataType", "S3Prefix"), source["S3Uri"], f"input {name!r}")


def check_path(path):
    if not path.startswith(f"{OPT_ML}/") or ".." in path.split("/"):
        raise invalid(f"LocalPath must be below {OPT_ML}; {path!r} is not.")


def localize_archive(container, archive):
    """Rewrite `/opt/ml` in the code of an archive that the SDK's `runproc.sh` will unpack."""
    folder = archive.with_name("sourcedir")
    unpack(archive, folder)
    container.localize_scripts(folder)
    pack(folder, archive)
    shutil.rmtree(folder)


def inputs(record):
    return record.get("ProcessingInputs", [])


def outputs(record):
    return record.get("ProcessingOutputConfig", {}).get("Outputs", [])


class ProcessingJob(Job):
    """Downloads the inputs, runs the command, uploads the outputs."""

    kind = KIND
    log_group = "/aws/sagemaker/ProcessingJobs"

    def work(self):
        record = self.record
        self.change(ProcessingStartTime=now())
        resources = record["ProcessingResources"]["ClusterConfig"]
        self.make_cluster(resources.get("InstanceCount", 1))
        with contextlib.ExitStack() as syncs:
            command = self.prepare(record, syncs)
            failure = None
            if not self.stopping.is_set():
                failure = self.run_hosts(
                    [[c.localize(word) for word in command] for c in self.cluster.containers],
                    [container.ml for container in self.cluster.containers],
                    record.get("StoppingCondition", {}).get("MaxRuntimeInSeconds", DAY),
                    lambda line: None,
                )
            self.upload(record)
        self.keep_message()
        if failure is not None and not self.stopping.is_set() and not self.timed_out:
            raise reason_of(failure)

    def prepare(self, record, syncs):
        """Lay out `/opt/ml` on every host; return the command.

        Args:
            syncs: an ExitStack; gets the outputs that are uploaded while the job runs.
        """
        specification = record["AppSpecification"]
        entrypoint = specification.get("ContainerEntrypoint")
        entrypoint = entrypoint or mapped_command(specification["ImageUri"])
        command = [*entrypoint, *specification.get("ContainerArguments", [])]
        containers = self.cluster.containers
        for container in containers:
            container.add_python()
            for name in ("config", "output"):
                (container.ml / name).mkdir()
        for entry in inputs(record):
            self.fetch(entry["S3Input"], command)
        for rank, container in enumerate(containers):
            self.write_configuration(record, rank, container)
            for number, output in enumerate(outputs(record)):
                folder = container.place(output["S3Output"]["LocalPath"])
                if output["S3Output"].get("S3UploadMode") == "Continuous":
                    uri, scratch = output["S3Output"]["S3Uri"], container.root / f"output-{number}"
                    sync = FolderSync(self.aws, folder, uri, scratch)
                    sync.start()
                    syncs.callback(sync.close)
        return command

    def fetch(self, source, words):
        """Bring one input to the hosts; the code that the command names is made to run there."""
        path = source["LocalPath"].rstrip("/")
        folders = [container.place(path) for container in self.cluster.containers]
        Source(
            source["S3Uri"],
            source.get("S3DataType", "S3Prefix"),
            source.get("S3DataDistributionType", "FullyReplicated"),
        ).download(self.aws, folders)
        names_code = re.compile(rf"{re.escape(path)}/\S*\.(py|sh)\b")
        is_code = any(names_code.search(word) for word in words)
        for container, folder in zip(self.cluster.containers, folders):
            if is_code:
                container.localize_scripts(folder)
            if (folder / SOURCES).is_file():
                localize_archive(container, folder / SOURCES)

    def write_configuration(self, record, rank, container):
        """Write `/opt/ml/config` and the variables of one host."""
        config = {key: record[key] for key in record if key != "Environment"}
        text = json.dumps(config, default=str)
        (container.ml / "config" / "processingjobconfig.json").write_text(text)
        hosts = self.cluster.names
        resources = {"current_host": hosts[rank], "hosts": hosts}
        (container.ml / "config" / "resourceconfig.json").write_text(json.dumps(resources))
        container.environment["PROCESSING_JOB_ARN"] = record["ProcessingJobArn"]
        if len(hosts) > 1:
            container.environment["OMP_NUM_THREADS"] = str(threads_each(len(hosts)))
        environment = record.get("Environment", {})
        container.environment.update({k: container.localize(v) for k, v in environment.items()})

    def upload(self, record):
        """Bring the outputs of all hosts to S3; of files with one name that of the first counts."""
        for container in reversed(self.cluster.containers):
            for output in outputs(record):
                if output["S3Output"].get("S3UploadMode") != "Continuous":
                    folder = container.localize(output["S3Output"]["LocalPath"])
                    self.aws.upload_folder(folder, output["S3Output"]["S3Uri"])

    def keep_message(self):
        """Keep what the job wrote to `/opt/ml/output/message` as its ExitMessage."""
        path = self.cluster.first.ml / "output" / "message"
        if path.is_file():
            self.change(ExitMessage=path.read_text(errors="replace")[:MAX_MESSAGE])

    def finish(self, status, reason):
        if self.timed_out:
            status, reason = "Stopped", "MaxRuntimeExceeded"
        fields = {"ProcessingJobStatus": status, "ProcessingEndTime": now()}
        if reason:
            fields["FailureReason"] = reason
        self.change(**fields)
