"""Training jobs, by both contracts that the SDK uses.

`ModelTrainer.train()` sends an entry point of its own: `/bin/bash` with `sm_train.sh` from the
channel `sm_drivers` (see `drivers`). `HyperparameterTuner.tune()` sends none, but the
hyperparameters `sagemaker_program` and `sagemaker_submit_directory`, which the sagemaker-training
toolkit inside AWS's images understands (see `toolkit`).

A managed spot job is interrupted only when asked: by `python -m local_cloud interrupt JOB`, or
after the number of seconds that its environment variable `LOCAL_CLOUD_INTERRUPT_AFTER` names, once.
It then gets SIGTERM, and SIGKILL two minutes later, waits `LOCAL_CLOUD_CAPACITY_AFTER` seconds (0
unless set), and starts again in fresh folders, with its checkpoints.
"""

import contextlib
import functools
import json
import math
import re
import subprocess
import threading
import time

from local_cloud import drivers, toolkit
from local_cloud.channels import check_channels, input_data_config, source_of
from local_cloud.checkpoints import FolderSync
from local_cloud.cluster import check_count, free_port, resource_config, threads_each
from local_cloud.container import OPT_ML
from local_cloud.errors import ServiceError, invalid
from local_cloud.images import check_image, description, mapped_command
from local_cloud.jobs import DAY, FINAL, Job, Jobs, merge, reason_of
from local_cloud.store import now

KIND = "TrainingJob"
MAX_RUNTIME = 28 * DAY  # Seconds; the service's own limit.
# What a spot instance costs less than others. AWS names no fixed figure; its documentation speaks
# of "up to 90%", and the service reports the share of each job.
SPOT_DISCOUNT = 0.7
INTERRUPT_AFTER, CAPACITY_AFTER = "LOCAL_CLOUD_INTERRUPT_AFTER", "LOCAL_CLOUD_CAPACITY_AFTER"
NOT_DESCRIBED = ("Tags", "SessionChainingConfig")  # Members that DescribeTrainingJob lacks.
METRIC_SECONDS = 1.0  # Between two writes of metrics to the record.
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
    "Interrupted": "Spot instances were interrupted",
    "Stopping": "Stopping the training job",
    "Uploading": "Uploading generated training model",
    "Completed": "Training job completed",
    "Failed": "Training job failed",
    "Stopped": "Training job stopped",
    "MaxRuntimeExceeded": "Training job runtime exceeded MaxRuntimeInSeconds provided",
    "MaxWaitTimeExceeded": "Training job wait time exceeded MaxWaitTimeInSeconds provided",
}
# Folders that go to S3 while the job writes into them: the field of the request that asks for it,
# the configuration file that says so to the job, the variable that names this file to smdebug, the
# folder unless the request names one, and the end of the S3 address.
SYNCED = (
    (
        "DebugHookConfig",
        "debughookconfig",
        "SMDEBUG_CONFIG_FILE_PATH",
        f"{OPT_ML}/output/tensors",
        "debug-output",
    ),
    (
        "TensorBoardOutputConfig",
        "tensorboardoutputconfig",
        "TENSORBOARD_CONFIG_FILE_PATH",
        f"{OPT_ML}/output/tensorboard",
        "tensorboard-output",
    ),
    (
        "ProfilerConfig",
        "profilerconfig",
        "SMPROFILER_CONFIG_PATH",
        f"{OPT_ML}/output/profiler",
        "profiler-output",
    ),
)
CHECKPOINTS = f"{OPT_ML}/checkpoints"
NEEDS = "neither a ContainerEntrypoint nor the hyperparameter sagemaker_program"


class Training(Jobs):
    """The operations on training jobs."""

    kind, arn_kind, summary = KIND, "training-job", SUMMARY

    def __init__(self, store, aws):
        super().__init__(store, aws)
        self.operations = {
            "CreateTrainingJob": self.create,
            "DescribeTrainingJob": self.describe,
            "ListTrainingJobs": self.list,
            "StopTrainingJob": self.stop,
            "DeleteTrainingJob": self.delete,
            "LocalInterruptTrainingJob": self.interrupt,
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
        record = {key: value for key, value in params.items() if key not in NOT_DESCRIBED}
        record.setdefault("HyperParameters", {})
        record.setdefault("StoppingCondition", {"MaxRuntimeInSeconds": DAY})
        image = params["AlgorithmSpecification"]["TrainingImage"]
        record.update(
            SecondaryStatusTransitions=[],
            ModelArtifacts={"S3ModelArtifacts": artifact(params, "model")},
        )
        enter(record, "Starting", description(image))
        record.setdefault("EnableManagedSpotTraining", False)
        if tuning_job_arn:
            record["TuningJobArn"] = tuning_job_arn
        answer = self.keep(record, params.get("Tags"), region)
        self.launch(name, TrainingJob(self.store, self.aws, name, region, cpus, on_metric))
        return answer

    def describe(self, params, region):
        record = super().describe(params, region)
        metrics = record.pop("FinalMetricDataList", [])
        # The service ignores what is no number; NaN would not even be JSON.
        finite = [metric for metric in metrics if math.isfinite(metric["Value"])]
        return {**record, **({"FinalMetricDataList": finite} if finite else {})}

    def interrupt(self, params, region):
        """Take the instances of a managed spot job away, as AWS does for want of capacity.

        An operation of this cloud alone.
        """
        name = params["TrainingJobName"]
        record = self.store.get(KIND, name)
        job = self.jobs.get(name)
        if job is None or record["TrainingJobStatus"] in FINAL:
            raise not_interruptible(record)
        job.interrupt()

    def lose(self, record):
        super().lose(record)
        end = record["TrainingEndTime"]
        started = record.get("TrainingStartTime", end)
        enter(record, "Failed")
        record.update(times(record, (end - started).total_seconds()))


def artifact(request, kind):
    """The S3 address of the `model` or the `output` of a job: an archive, or a folder."""
    config = request["OutputDataConfig"]
    prefix = f"{config['S3OutputPath'].rstrip('/')}/{request['TrainingJobName']}/output/{kind}"
    return f"{prefix}.tar.gz" if config.get("CompressionType", "GZIP") == "GZIP" else f"{prefix}/"


def times(record, seconds):
    """The time fields of a record whose job worked for `seconds`."""
    spot = record.get("EnableManagedSpotTraining")
    worked = max(1, round(seconds)) if seconds else 0
    billable = max(1, round(worked * (1 - SPOT_DISCOUNT))) if spot and worked else worked
    return {"TrainingTimeInSeconds": worked, "BillableTimeInSeconds": billable}


def enter(record, status, message=None):
    """Let a record move on to a secondary status."""
    if status == "Stopping" == record.get("SecondaryStatus"):
        return  # Asked to stop once more.
    moment = now()
    transitions = record["SecondaryStatusTransitions"]
    if transitions:
        transitions[-1]["EndTime"] = moment
    transitions.append(
        {"Status": status, "StartTime": moment, "StatusMessage": message or MESSAGES[status]}
    )
    record["SecondaryStatus"] = status


def not_interruptible(record):
    return invalid(
        f"Only a managed spot training job that downloads or trains can be interrupted; "
        f"{record['TrainingJobName']} is in status {record['SecondaryStatus']}, with "
        f"EnableManagedSpotTraining {str(record['EnableManagedSpotTraining']).lower()}."
    )


def check(params):
    """Refuse, before it is created, what could not be run here.

    Raises:
        ServiceError: with the reason.
    """
    for field in ("AlgorithmSpecification", "ResourceConfig"):
        if field not in params:
            raise invalid(f"local_cloud runs training jobs with {field}, which is missing.")
    check_resources(params["ResourceConfig"])
    check_algorithm(params["AlgorithmSpecification"], params.get("HyperParameters", {}))
    mode = params["AlgorithmSpecification"].get("TrainingInputMode", "File")
    check_channels(params.get("InputDataConfig", []), mode)
    check_times(params)
    path = params.get("CheckpointConfig", {}).get("LocalPath", CHECKPOINTS)
    check_local_path(path, "CheckpointConfig")
    for field, _, _, folder, _ in SYNCED:
        check_local_path(params.get(field, {}).get("LocalPath", folder), field)
    for field in ("DebugRuleConfigurations", "ProfilerRuleConfigurations"):
        if params.get(field):
            raise invalid(f"local_cloud evaluates no {field}; run the rules in a job of your own.")


def check_resources(resources):
    if resources.get("InstanceGroups"):
        raise invalid("local_cloud has no InstanceGroups; give InstanceType and InstanceCount.")
    count = resources.get("InstanceCount", 1)
    check_count(count, resources.get("InstanceType", "local"), "training job")


def check_algorithm(specification, hyperparameters):
    check_metrics(specification.get("MetricDefinitions", []))
    if "AlgorithmName" in specification:
        raise invalid(
            "local_cloud runs scripts, not algorithm resources such as "
            f"{specification['AlgorithmName']!r}."
        )
    if "TrainingImage" not in specification:
        raise invalid("The AlgorithmSpecification needs a TrainingImage.")
    brings_code = "ContainerEntrypoint" in specification or toolkit.PROGRAM in hyperparameters
    check_image(specification["TrainingImage"], brings_code, NEEDS)
    toolkit.check_launcher(hyperparameters)


def check_metrics(definitions):
    for definition in definitions:
        try:
            re.compile(definition["Regex"])
        except re.error as error:
            raise invalid(
                f"The regex of metric {definition['Name']!r} is invalid: {error}"
            ) from error


def check_times(params):
    """Refuse time limits that the service refuses, and interruptions of what is no spot job."""
    spot = params.get("EnableManagedSpotTraining", False)
    condition = params.get("StoppingCondition", {})
    runtime, wait = max_runtime(condition), condition.get("MaxWaitTimeInSeconds")
    if runtime > MAX_RUNTIME:
        raise invalid(f"Invalid MaxRuntimeInSeconds. It must be at most {MAX_RUNTIME}.")
    if wait is not None and not spot:
        raise invalid(
            "Invalid MaxWaitTimeInSeconds. It is only supported when EnableManagedSpotTraining is "
            "set to true"
        )
    if spot and (wait is None or wait < runtime):
        raise invalid(
            "Invalid MaxWaitTimeInSeconds. It must be present and be greater than or equal to "
            "MaxRuntimeInSeconds"
        )
    for name in (INTERRUPT_AFTER, CAPACITY_AFTER):
        text = params.get("Environment", {}).get(name)
        if text is None:
            continue
        if not spot:
            raise invalid(f"{name} needs EnableManagedSpotTraining.")
        if not re.fullmatch(r"\d{1,6}(\.\d+)?", text):
            raise invalid(f"{name} must be a number of seconds, not {text!r}.")


def check_local_path(path, field):
    if not path.startswith("/") or path.rstrip("/") == "" or ".." in path.split("/"):
        raise invalid(f"LocalPath of {field} must be an absolute path to a folder, not {path!r}.")


def max_runtime(condition):
    """Seconds that a job may run, by its StoppingCondition."""
    return condition.get("MaxRuntimeInSeconds", DAY)


class TrainingJob(Job):
    """Downloads the channels, runs the script, reads its metrics, uploads what it wrote."""

    kind = KIND
    log_group = "/aws/sagemaker/TrainingJobs"

    def __init__(self, store, aws, name, region, cpus, on_metric):
        super().__init__(store, aws, name, region)
        self.cpus, self.on_metric = cpus, on_metric
        self.request = self.record
        self.attempts = 0
        self.seconds = 0.0  # Of work in all attempts.
        self.trained = 0.0  # Of them, with the script running.
        self.final_secondary = None
        self.interrupted = threading.Event()
        self.interruptible = False
        specification = self.request["AlgorithmSpecification"]
        self.definitions = [
            (definition["Name"], re.compile(definition["Regex"]))
            for definition in specification.get("MetricDefinitions", [])
        ]
        self.metrics, self.metrics_lock, self.metrics_kept = {}, threading.Lock(), 0.0

    def enter(self, status):
        """Move on to a secondary status, as DescribeTrainingJob shows it."""
        self.store.edit(KIND, self.name, lambda record: enter(record, status))

    def advance(self, status):
        """Move on unless the job was asked to stop."""
        with self.lock:
            if not self.stopping.is_set():
                self.enter(status)

    def mark_stopping(self):
        super().mark_stopping()
        self.enter("Stopping")

    def interrupt(self):
        """Take the instances away; the job starts again.

        Raises:
            ServiceError: it is no spot job, or has nothing to interrupt now.
        """
        with self.lock:
            if not self.interruptible or self.stopping.is_set() or self.timed_out:
                raise not_interruptible(self.record)
            self.interrupted.set()
            cluster = self.cluster
        cluster.stop()

    def work(self):
        while not self.attempt():
            self.advance("Interrupted")
            self.remove_cluster()
            if not self.wait_for_capacity():
                return
            self.advance("Starting")

    def attempt(self):
        """Run the job from fresh folders; return whether it came to its end.

        Raises:
            JobFailed: the script failed, or what it needs is not there.
        """
        began = time.monotonic()
        self.attempts += 1
        if self.attempts == 1:
            self.change(TrainingStartTime=now())
        try:
            self.make_cluster(self.request["ResourceConfig"].get("InstanceCount", 1))
            with self.lock:
                self.interruptible = self.request["EnableManagedSpotTraining"]
            self.advance("Downloading")
            with contextlib.ExitStack() as syncs:
                commands, cwds = self.prepare(syncs)
                failure = self.train(commands, cwds)
            if self.interrupted.is_set():
                return False
            if failure is None:
                self.enter("Uploading")
            self.upload("output")
            if failure is not None:
                raise failure
            self.upload("model")
            return True
        finally:
            self.seconds += time.monotonic() - began

    def train(self, commands, cwds):
        """Run the script on all hosts; return why the job failed, or None."""
        self.advance("Training")
        limit, secondary = self.time_left()
        began = time.monotonic()
        failure = None
        with self.asked_interruption():
            if not self.stopping.is_set():
                failure = self.run_hosts(commands, cwds, limit, self.read_metrics)
        self.trained += time.monotonic() - began
        self.keep_metrics()
        with self.lock:
            self.interruptible = False
            if self.timed_out:
                self.final_secondary = secondary
            if self.timed_out or self.stopping.is_set():
                self.interrupted.clear()
                return None  # However the script ended: it was asked to.
        return None if failure is None else reason_of(failure)

    def time_left(self):
        """Seconds that the script may still run, and the secondary status when they are over."""
        condition = self.request.get("StoppingCondition", {})
        left = max_runtime(condition) - self.trained
        wait = self.wait_left()
        if wait < left:
            return max(0, wait), "MaxWaitTimeExceeded"
        return max(0, left), "MaxRuntimeExceeded"

    def wait_left(self):
        """Seconds until a spot job has taken as long as it may, waiting for capacity included."""
        limit = self.request.get("StoppingCondition", {}).get("MaxWaitTimeInSeconds", MAX_RUNTIME)
        return limit - (now() - self.request["CreationTime"]).total_seconds()

    @contextlib.contextmanager
    def asked_interruption(self):
        """Interrupts the job inside, the first time, if its environment asks for that."""
        text = self.request.get("Environment", {}).get(INTERRUPT_AFTER)
        if text is None or self.attempts > 1:
            yield
            return

        def interrupt():
            with contextlib.suppress(ServiceError):  # It has just ended.
                self.interrupt()

        timer = threading.Timer(float(text), interrupt)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()

    def wait_for_capacity(self):
        """Wait as long as AWS has no spot instances; return whether the job can start again."""
        self.interrupted.clear()
        wait = float(self.request.get("Environment", {}).get(CAPACITY_AFTER, 0))
        left = self.wait_left()
        if self.stopping.wait(max(0, min(wait, left))):
            return False
        if wait >= left:
            self.time_out()
            self.final_secondary = "MaxWaitTimeExceeded"
            return False
        return True

    def prepare(self, syncs):
        """Lay out `/opt/ml` on every host; return the commands and the folders they start in.

        Args:
            syncs: an ExitStack; gets the `FolderSync` objects, which run from now on.
        """
        request, containers = self.request, self.cluster.containers
        for container in containers:
            for folder in ("model", "output/data", "input/config", "input/data", "checkpoints"):
                (container.ml / folder).mkdir(parents=True)
            container.add_python()
        for channel in request.get("InputDataConfig", []):
            folders = [c.ml / "input" / "data" / channel["ChannelName"] for c in containers]
            source_of(channel).download(self.aws, folders)
        port = free_port()
        prepared = []
        for rank, container in enumerate(containers):
            self.place_synced(container, syncs)
            drivers.prepare(container, self.cluster.names[0], port)
            prepared.append(self.prepare_host(rank, container, port))
        return zip(*prepared)

    def prepare_host(self, rank, container, port):
        """Write one host's configuration; return its command and the folder it starts in."""
        request = self.request
        specification = request["AlgorithmSpecification"]
        channels = input_data_config(
            request.get("InputDataConfig", []), specification.get("TrainingInputMode", "File")
        )
        instance_type = request["ResourceConfig"].get("InstanceType", "local")
        resources = resource_config(self.cluster, rank, instance_type)
        hyperparameters = {
            key: container.localize(value) for key, value in request["HyperParameters"].items()
        }
        write_config(container, "hyperparameters", hyperparameters)
        write_config(container, "inputdataconfig", channels)
        write_config(container, "resourceconfig", resources)
        container.environment.update(
            TRAINING_JOB_NAME=self.name,
            TRAINING_JOB_ARN=request["TrainingJobArn"],
            # torchrun's own default is one port for all jobs on the machine.
            PET_MASTER_PORT=str(port),
        )
        entrypoint = specification.get("ContainerEntrypoint")
        if entrypoint is None and toolkit.PROGRAM not in hyperparameters:
            entrypoint = mapped_command(specification["TrainingImage"])
        if entrypoint:
            words = [*entrypoint, *specification.get("ContainerArguments", [])]
            command, cwd = [container.localize(word) for word in words], container.ml
            processes = drivers.processes_each(container)
        else:
            values = toolkit.decoded(hyperparameters)
            command, cwd = self.toolkit_command(rank, container, values, resources, channels, port)
            processes = toolkit.processes_each(values, count_gpus())
        self.share_processors(container, processes)
        for key, value in request.get("Environment", {}).items():
            container.environment[key] = container.localize(value)
        return command, cwd

    def toolkit_command(self, rank, container, hyperparameters, resources, channels, port):
        """The command and its folder, by the contract of the sagemaker-training toolkit."""
        code = toolkit.fetch_code(self.aws, container, hyperparameters)
        hosts, gpus = resources["hosts"], count_gpus()
        cpus = threads_each(len(hosts), self.cpus)
        container.environment.update(
            toolkit.environment(
                container, hyperparameters, resources, channels, cpus, gpus, self.name
            ),
            # As the PyTorch image does for scripts that start their process group themselves.
            MASTER_ADDR=hosts[0],
            MASTER_PORT=str(port),
        )
        processes = toolkit.processes_each(hyperparameters, gpus)
        command = toolkit.command(code, hyperparameters, rank, hosts, port, processes)
        return command, code

    def share_processors(self, container, processes):
        """Divide this machine among the job's processes, of which a host starts `processes`."""
        count = processes * len(self.cluster.containers)
        if self.cpus or count > 1:
            container.environment["OMP_NUM_THREADS"] = str(threads_each(count, self.cpus))

    def place_synced(self, container, syncs):
        """Make the folders that go to S3 while the job runs, and restore its checkpoints."""
        # No path of the container: a folder of the job may have any name there.
        scratch = container.root / ".sync"
        scratch.mkdir(exist_ok=True)
        config = self.request.get("CheckpointConfig")
        if config:
            folder = container.place(config.get("LocalPath", CHECKPOINTS))
            write_config(container, "checkpointconfig", {**config, "LocalPath": str(folder)})
            sync = FolderSync(self.aws, folder, config["S3Uri"], scratch / "checkpoint")
            sync.restore()
            sync.start()
            syncs.callback(sync.close)
        for field, name, variable, default, end in SYNCED:
            config = self.request.get(field)
            if not config or "S3OutputPath" not in config:
                continue
            folder = container.place(config.get("LocalPath", default))
            path = write_config(container, name, {**config, "LocalPath": str(folder)})
            container.environment[variable] = str(path)
            uri = f"{config['S3OutputPath'].rstrip('/')}/{self.name}/{end}"
            sync = FolderSync(self.aws, folder, uri, scratch / end)
            sync.start()
            syncs.callback(sync.close)

    def read_metrics(self, line):
        """Keep the last value of every metric whose regex matches the line."""
        for name, regex in self.definitions:
            match = regex.search(line)
            if match is None:
                continue
            try:
                value = float(match.group(1))
            except (TypeError, ValueError, IndexError):  # The group may have had no part in it.
                continue  # The service ignores what is not a number, too.
            with self.metrics_lock:
                self.metrics[name] = {"MetricName": name, "Value": value, "Timestamp": now()}
            if self.on_metric:
                self.on_metric(name, value)
        if self.definitions and time.monotonic() > self.metrics_kept + METRIC_SECONDS:
            self.keep_metrics()

    def keep_metrics(self):
        """Write the metrics to the record, which not every line of a chatty script should do."""
        self.metrics_kept = time.monotonic()
        with self.metrics_lock:
            entries = list(self.metrics.values())
        if entries:
            self.change(FinalMetricDataList=entries)

    def upload(self, kind):
        """Bring the `model`, or the `output` data, to S3; an empty folder gives no object."""
        folders = [
            container.ml / ("model" if kind == "model" else "output/data")
            for container in self.cluster.containers
        ]
        for other in folders[1:]:
            merge(other, folders[0])
        if not any(folders[0].iterdir()):
            return
        uri = artifact(self.request, kind)
        if uri.endswith("/"):
            self.aws.upload_folder(folders[0], uri)
        else:
            scratch = self.cluster.first.root / f"{kind}.tar.gz"
            self.aws.upload_archive(folders[0], uri, scratch)

    def finish(self, status, reason):
        if self.timed_out:
            status, reason = "Stopped", None
        fields = {"TrainingJobStatus": status, "TrainingEndTime": now()}
        fields.update(times(self.request, self.seconds))
        if reason:
            fields["FailureReason"] = reason

        def edit(record):
            # At once, so that nobody sees a job that is over by one status only.
            enter(record, self.final_secondary or status)
            record.update(fields)

        self.store.edit(KIND, self.name, edit)


def write_config(container, name, value):
    """Write a file of `/opt/ml/input/config` and return its path."""
    path = container.ml / "input" / "config" / f"{name}.json"
    path.write_text(json.dumps(value))
    return path


@functools.cache
def count_gpus():
    """The number of NVIDIA GPUs that the driver lists; 0 without a driver."""
    try:
        done = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True)
    except OSError:
        return 0
    return sum(line.startswith("GPU ") for line in done.stdout.splitlines())
