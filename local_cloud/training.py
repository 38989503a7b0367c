"""Training jobs, by both contracts that the SDK uses.

`ModelTrainer.train()` sends an entry point of its own: `/bin/bash` with `sm_train.sh` from the
channel `sm_drivers`. `HyperparameterTuner.tune()` sends none, but the hyperparameters
`sagemaker_program` and `sagemaker_submit_directory`, which the sagemaker-training toolkit inside
AWS's images understands; `toolkit_command` does what that toolkit does.
"""

import json
import os
import re
import shutil
import subprocess

from local_cloud.aws import unpack
from local_cloud.errors import JobFailed, invalid
from local_cloud.jobs import (
    Job,
    delete_finished,
    require_one_instance,
    timed,
)
from local_cloud.store import arn, now, page

KIND = "TrainingJob"
HOST_NAME = "algo-1"
DAY = 24 * 3600
DRIVERS = "sm_drivers"
TUNING_OBJECTIVE = "_tuning_objective_metric"  # Added by tuning jobs: the metric's name.
INSTALL_AND_RUN = 'python3 -m pip install -r requirements.txt && exec "$@"'
SUMMARY = (
    "TrainingJobName",
    "TrainingJobArn",
    "CreationTime",
    "TrainingEndTime",
    "LastModifiedTime",
    "TrainingJobStatus",
    "SecondaryStatus",
)
MESSAGES = {
    "Starting": "Starting the training job",
    "Downloading": "Downloading input data",
    "Training": "Training image download completed. Training in progress.",
    "Stopping": "Stopping the training job",
    "Uploading": "Uploading generated training model",
    "Completed": "Training job completed",
    "MaxRuntimeExceeded": "Training job runtime exceeded MaxRuntimeInSeconds",
}


class Training:
    """The operations on training jobs."""

    def __init__(self, store, aws):
        self.store, self.aws = store, aws
        self.jobs = {}
        self.operations = {
            "CreateTrainingJob": self.create,
            "DescribeTrainingJob": lambda p, _: self.store.get(KIND, p["TrainingJobName"]),
            "ListTrainingJobs": self.list,
            "StopTrainingJob": self.stop,
            "DeleteTrainingJob": self.delete,
        }

    def create(self, params, region, tuning_job_arn=None, cpus=None, on_metric=None):
        """Start a training job.

        Args:
            tuning_job_arn: set where a tuning job starts it.
            cpus: how many processors the job should use; None for all.
            on_metric: called with (name, value) for every value of a metric that the job prints,
                in their order, from the thread that reads them.
        """
        name = params["TrainingJobName"]
        check(params)
        record = {key: value for key, value in params.items() if key != "Tags"}
        record.setdefault("HyperParameters", {})
        record.update(
            TrainingJobArn=arn(region, "training-job", name),
            TrainingJobStatus="InProgress",
            SecondaryStatus="Starting",
            SecondaryStatusTransitions=[transition("Starting")],
            CreationTime=now(),
            LastModifiedTime=now(),
        )
        record.setdefault("EnableManagedSpotTraining", False)
        if tuning_job_arn:
            record["TuningJobArn"] = tuning_job_arn
        self.store.add(KIND, name, record)
        self.store.set_tags(record["TrainingJobArn"], params.get("Tags"))
        job = TrainingJob(self.store, self.aws, name, region, cpus, on_metric)
        self.jobs[name] = job
        job.start()
        return {"TrainingJobArn": record["TrainingJobArn"]}

    def list(self, params, region):
        records = self.store.all(KIND)
        names = ("TrainingJobName", "TrainingJobStatus")
        summaries, token = page(records, params, *names, SUMMARY)
        answer = {"TrainingJobSummaries": summaries}
        return {**answer, "NextToken": token} if token else answer

    def stop(self, params, region):
        name = params["TrainingJobName"]
        self.store.get(KIND, name)
        self.jobs[name].stop()

    def delete(self, params, region):
        delete_finished(self.store, KIND, params["TrainingJobName"])
        self.jobs.pop(params["TrainingJobName"], None)


def check(params):
    """Refuse, before it is created, what could not be run here."""
    require_one_instance(params["ResourceConfig"].get("InstanceCount", 1))
    specification = params["AlgorithmSpecification"]
    hyperparameters = params.get("HyperParameters", {})
    if "ContainerEntrypoint" not in specification and "sagemaker_program" not in hyperparameters:
        image = specification.get("TrainingImage") or specification.get("AlgorithmName")
        raise invalid(
            f"local_cloud runs scripts, not images, and this job brings none for {image!r}: "
            "it has neither a ContainerEntrypoint nor the hyperparameter sagemaker_program."
        )
    for channel in params.get("InputDataConfig", []):
        if channel["ChannelName"] in (".", ".."):
            raise invalid(f"{channel['ChannelName']!r} cannot name a channel.")
        source = channel["DataSource"].get("S3DataSource", {})
        if source.get("S3DataType") != "S3Prefix":
            raise invalid(
                "local_cloud reads channels of S3DataType S3Prefix; "
                f"{channel['ChannelName']!r} is not."
            )
    for definition in specification.get("MetricDefinitions", []):
        try:
            re.compile(definition["Regex"])
        except re.error as error:
            raise invalid(
                f"The regex of metric {definition['Name']!r} is invalid: {error}"
            ) from error


def transition(status):
    return {"Status": status, "StartTime": now(), "StatusMessage": MESSAGES.get(status, status)}


def decoded(hyperparameters):
    """Hyperparameters as values: the SDK sends JSON inside strings, people send plain strings."""
    values = {}
    for key, text in hyperparameters.items():
        try:
            values[key] = json.loads(text)
        except ValueError:
            values[key] = text
    return values


def as_text(value):
    return value if isinstance(value, str) else json.dumps(value)


def is_platform_parameter(name):
    """Whether a hyperparameter is meant for the toolkit, which does not pass it to the script."""
    return name.startswith("sagemaker_") or name == TUNING_OBJECTIVE


def toolkit_arguments(hyperparameters):
    """Command-line arguments as the toolkit's `mapping.to_cmd_args` makes them."""
    arguments = []
    for name, value in sorted(hyperparameters.items()):
        if isinstance(value, dict):
            value = ",".join(f"{k}={v}" for k, v in sorted(value.items()))
        # One dash before a single letter; `True`, where the SDK's drivers say `true`.
        arguments += [f"--{name}" if len(name) > 1 else f"-{name}"]
        arguments += ["" if value is None else str(value)]
    return arguments


class TrainingJob(Job):
    """Downloads the channels, runs the script, reads its metrics, uploads what it wrote."""

    kind = KIND
    log_group = "/aws/sagemaker/TrainingJobs"

    def __init__(self, store, aws, name, region, cpus, on_metric=None):
        super().__init__(store, aws, name, region)
        self.cpus = cpus
        self.on_metric = on_metric
        self.training_started = None
        self.final_secondary = None
        specification = self.record["AlgorithmSpecification"]
        self.metrics = [
            (definition["Name"], re.compile(definition["Regex"]))
            for definition in specification.get("MetricDefinitions", [])
        ]

    def enter(self, status):
        """Move on to a secondary status, as DescribeTrainingJob shows it."""

        def edit(record):
            transitions = record["SecondaryStatusTransitions"]
            transitions[-1]["EndTime"] = now()
            transitions.append(transition(status))
            record["SecondaryStatus"] = status

        self.store.edit(KIND, self.name, edit)

    def mark_stopping(self):
        super().mark_stopping()
        self.enter("Stopping")

    def work(self):
        record = self.record
        self.enter("Downloading")
        self.training_started = now()
        self.change(TrainingStartTime=self.training_started)
        self.prepare(record)
        command, cwd = self.command(record)
        if not self.stopping.is_set():
            self.enter("Training")
            limit = record.get("StoppingCondition", {}).get("MaxRuntimeInSeconds", DAY)
            try:
                self.run_process(command, cwd, limit, self.read_metrics)
            finally:
                self.upload(record, model=False)
        self.enter("Uploading")
        self.upload(record, model=True)
        if self.timed_out:
            self.final_secondary = "MaxRuntimeExceeded"

    def prepare(self, record):
        """Lay out `/opt/ml` with channels and configuration."""
        ml = self.container.ml
        for folder in ("model", "output/data", "input/config", "checkpoints", "code"):
            (ml / folder).mkdir(parents=True)
        self.container.add_python()
        self.container.environment.update(
            TRAINING_JOB_NAME=self.name, TRAINING_JOB_ARN=record["TrainingJobArn"]
        )
        if self.cpus:
            self.container.environment["OMP_NUM_THREADS"] = str(self.cpus)
        channels = {}
        for channel in record.get("InputDataConfig", []):
            name = channel["ChannelName"]
            uri = channel["DataSource"]["S3DataSource"]["S3Uri"]
            self.aws.download(uri, ml / "input" / "data" / name)
            channels[name] = {
                "TrainingInputMode": channel.get("InputMode", "File"),
                "S3DistributionType": "FullyReplicated",
                "RecordWrapperType": channel.get("RecordWrapperType", "None"),
            }
        drivers = ml / "input" / "data" / DRIVERS
        if drivers.is_dir():
            self.container.localize_scripts(drivers)
        instance_type = record["ResourceConfig"].get("InstanceType", "local")
        self.write_config("hyperparameters", record["HyperParameters"])
        self.write_config("inputdataconfig", channels)
        self.write_config(
            "resourceconfig",
            {
                "current_host": HOST_NAME,
                "current_instance_type": instance_type,
                "current_group_name": "homogeneousCluster",
                "hosts": [HOST_NAME],
                "instance_groups": [
                    {
                        "instance_group_name": "homogeneousCluster",
                        "instance_type": instance_type,
                        "hosts": [HOST_NAME],
                    }
                ],
                "network_interface_name": "lo",
            },
        )
        for key, value in record.get("Environment", {}).items():
            self.container.environment[key] = self.container.localize(value)

    def write_config(self, name, value):
        path = self.container.ml / "input" / "config" / f"{name}.json"
        path.write_text(json.dumps(value))

    def command(self, record):
        """The command of the job and the folder it starts in."""
        specification = record["AlgorithmSpecification"]
        entrypoint = specification.get("ContainerEntrypoint")
        if entrypoint:
            command = [*entrypoint, *specification.get("ContainerArguments", [])]
            return [self.container.localize(part) for part in command], self.container.ml
        return self.toolkit_command(record)

    def toolkit_command(self, record):
        """The command by the contract of the sagemaker-training toolkit."""
        hyperparameters = decoded(record["HyperParameters"])
        program = str(hyperparameters["sagemaker_program"])
        code = self.container.ml / "code"
        submit_directory = hyperparameters.get("sagemaker_submit_directory")
        if submit_directory:
            archive = self.container.root / "sourcedir.tar.gz"
            download = self.container.root / "source"
            self.aws.download(submit_directory, download)
            shutil.move(next(download.iterdir()), archive)
            unpack(archive, code)
        if not (code / program).resolve().is_relative_to(code.resolve()):
            raise JobFailed(f"AlgorithmError: {program!r} is outside the submitted code.")
        if not (code / program).is_file():
            raise JobFailed(f"AlgorithmError: {program!r} is not in {submit_directory!r}.")
        own = {k: v for k, v in hyperparameters.items() if not is_platform_parameter(k)}
        self.container.environment.update(self.toolkit_environment(record, own, program))
        interpreter = "/bin/sh" if program.endswith(".sh") else "python3"
        command = [interpreter, program, *toolkit_arguments(own)]
        if (code / "requirements.txt").is_file():
            command = ["/bin/sh", "-c", INSTALL_AND_RUN, "sh", *command]
        return command, code

    def toolkit_environment(self, record, hyperparameters, program):
        """The `SM_*` variables of the toolkit, documented in its README."""
        ml = self.container.ml
        channels = [channel["ChannelName"] for channel in record.get("InputDataConfig", [])]
        paths = {channel: str(ml / "input" / "data" / channel) for channel in channels}
        values = {
            "SM_MODEL_DIR": str(ml / "model"),
            "SM_INPUT_DIR": str(ml / "input"),
            "SM_INPUT_CONFIG_DIR": str(ml / "input" / "config"),
            "SM_OUTPUT_DIR": str(ml / "output"),
            "SM_OUTPUT_DATA_DIR": str(ml / "output" / "data"),
            "SM_USER_ENTRY_POINT": program,
            "SM_MODULE_DIR": str(ml / "code"),
            "SM_CHANNELS": json.dumps(channels),
            "SM_HPS": json.dumps(hyperparameters),
            "SM_HOSTS": json.dumps([HOST_NAME]),
            "SM_CURRENT_HOST": HOST_NAME,
            "SM_NUM_CPUS": str(self.cpus or os.cpu_count()),
            "SM_NUM_GPUS": str(count_gpus()),
            "SM_NETWORK_INTERFACE_NAME": "lo",
            "SM_LOG_LEVEL": "20",
        }
        values.update({f"SM_CHANNEL_{name.upper()}": path for name, path in paths.items()})
        for key, value in hyperparameters.items():
            values[f"SM_HP_{key.upper().replace('-', '_')}"] = as_text(value)
        return values

    def read_metrics(self, line):
        """Keep the last value of every metric whose regex matches the line."""
        for name, regex in self.metrics:
            match = regex.search(line)
            if match is None:
                continue
            try:
                value = float(match.group(1))
            except (ValueError, IndexError):
                continue  # The service ignores what is not a number, too.
            self.keep_metric(name, value)
            if self.on_metric:
                self.on_metric(name, value)

    def keep_metric(self, name, value):
        entry = {"MetricName": name, "Value": value, "Timestamp": now()}

        def edit(record):
            known = record.get("FinalMetricDataList", [])
            others = [metric for metric in known if metric["MetricName"] != name]
            record["FinalMetricDataList"] = [*others, entry]

        self.store.edit(KIND, self.name, edit)

    def upload(self, record, model):
        """Bring the model, or the output data, to S3; an empty folder gives no object."""
        source = self.container.ml / ("model" if model else "output/data")
        if not any(source.iterdir()):
            return
        output = record["OutputDataConfig"]
        prefix = f"{output['S3OutputPath'].rstrip('/')}/{self.name}/output"
        kind = "model" if model else "output"
        if output.get("CompressionType", "GZIP") == "GZIP":
            uri = f"{prefix}/{kind}.tar.gz"
            self.aws.upload_archive(source, uri, self.container.root / f"{kind}.tar.gz")
        else:
            uri = f"{prefix}/{kind}/"
            self.aws.upload_folder(source, uri)
        if model:
            self.change(ModelArtifacts={"S3ModelArtifacts": uri})

    def finish(self, status, reason):
        end, seconds = timed(self.record, self.training_started)
        secondary = self.final_secondary or status
        if self.timed_out:
            status = "Stopped"
        self.enter(secondary)
        fields = {"TrainingJobStatus": status, "TrainingEndTime": end}
        fields.update(TrainingTimeInSeconds=seconds, BillableTimeInSeconds=seconds)
        if reason:
            fields["FailureReason"] = reason
        self.change(**fields)


def count_gpus():
    """The number of NVIDIA GPUs that the driver lists; 0 without a driver."""
    try:
        done = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True)
    except OSError:
        return 0
    return sum(line.startswith("GPU ") for line in done.stdout.splitlines())
