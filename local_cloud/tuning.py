"""Hyperparameter tuning jobs: Optuna proposes, training jobs measure.

`Bayesian` is Optuna's tree-structured Parzen estimator (Bergstra et al., "Algorithms for
Hyper-Parameter Optimization", NIPS 2011), `Random` its random sampler. AWS uses Gaussian processes
for the former; the trials therefore differ, the contract does not.
"""

import contextlib
import math
import queue
import threading
import time
import uuid
import warnings
from os import cpu_count

import optuna

from local_cloud.errors import ServiceError, invalid
from local_cloud.jobs import FINAL, MAX_REASON, delete_finished
from local_cloud.store import arn, cut, now, page
from local_cloud.training import KIND as TRAINING_KIND
from local_cloud.training import check as check_training

KIND = "HyperParameterTuningJob"
OBJECTIVE_VALUE = "FinalHyperParameterTuningJobObjectiveMetric"
STRATEGIES = ("Bayesian", "Random")
SUMMARY = (
    "HyperParameterTuningJobName",
    "HyperParameterTuningJobArn",
    "HyperParameterTuningJobStatus",
    "Strategy",
    "CreationTime",
    "HyperParameterTuningEndTime",
    "LastModifiedTime",
    "TrainingJobStatusCounters",
    "ObjectiveStatusCounters",
    "ResourceLimits",
)
# The definition's fields that CreateTrainingJob takes as they are.
SHARED = (
    "InputDataConfig",
    "OutputDataConfig",
    "ResourceConfig",
    "StoppingCondition",
    "RoleArn",
    "Environment",
    "EnableManagedSpotTraining",
    "CheckpointConfig",
)
FAILED_IN_A_ROW = 3  # After so many trials fail before any succeeds, more would fail, too.


class Tuning:
    """The operations on tuning jobs."""

    def __init__(self, store, aws, training):
        self.store, self.aws, self.training = store, aws, training
        self.jobs = {}
        self.operations = {
            "CreateHyperParameterTuningJob": self.create,
            "DescribeHyperParameterTuningJob": self.describe,
            "ListHyperParameterTuningJobs": self.list,
            "ListTrainingJobsForHyperParameterTuningJob": self.list_training_jobs,
            "StopHyperParameterTuningJob": self.stop,
            "DeleteHyperParameterTuningJob": self.delete,
        }

    def create(self, params, region):
        name = params[f"{KIND}Name"]
        check(params)
        config = params[f"{KIND}Config"]
        record = {key: value for key, value in params.items() if key != "Tags"}
        record.update(
            HyperParameterTuningJobArn=arn(region, "hyper-parameter-tuning-job", name),
            HyperParameterTuningJobStatus="InProgress",
            CreationTime=now(),
            LastModifiedTime=now(),
            Strategy=config["Strategy"],
            ResourceLimits=config["ResourceLimits"],
            **counters([]),
        )
        self.store.add(KIND, name, record)
        self.store.set_tags(record["HyperParameterTuningJobArn"], params.get("Tags"))
        self.jobs[name] = TuningJob(self.store, self.training, name, region)
        self.jobs[name].start()
        return {"HyperParameterTuningJobArn": record["HyperParameterTuningJobArn"]}

    def describe(self, params, region):
        record = self.store.get(KIND, params[f"{KIND}Name"])
        del record["Strategy"], record["ResourceLimits"]  # Only the summaries have them.
        return record

    def list(self, params, region):
        names = (f"{KIND}Name", f"{KIND}Status")
        summaries, token = page(self.store.all(KIND), params, *names, SUMMARY)
        answer = {"HyperParameterTuningJobSummaries": summaries}
        return {**answer, "NextToken": token} if token else answer

    def list_training_jobs(self, params, region):
        name = params[f"{KIND}Name"]
        self.store.get(KIND, name)
        records = [trial.summary() for trial in self.jobs[name].trials]
        if params.get("SortBy") == "FinalObjectiveMetricValue":
            # The service leaves out those that reported none.
            records = [record for record in records if OBJECTIVE_VALUE in record]
            records.sort(key=objective_of, reverse=params.get("SortOrder") == "Descending")
            summaries, token = cut(records, params)
        else:
            fields = sorted({field for record in records for field in record})
            names = ("TrainingJobName", "TrainingJobStatus")
            summaries, token = page(records, params, *names, fields)
        answer = {"TrainingJobSummaries": summaries}
        return {**answer, "NextToken": token} if token else answer

    def stop(self, params, region):
        name = params[f"{KIND}Name"]
        self.store.get(KIND, name)
        self.jobs[name].stop()

    def delete(self, params, region):
        delete_finished(self.store, KIND, params[f"{KIND}Name"])
        self.jobs.pop(params[f"{KIND}Name"], None)


def objective_of(summary):
    """The objective of the summary of a trial that reported it."""
    return summary[OBJECTIVE_VALUE]["Value"]


def check(params):
    """Refuse, before it is created, what could not be run here."""
    config = params[f"{KIND}Config"]
    if config["Strategy"] not in STRATEGIES:
        raise invalid(
            f"local_cloud offers the strategies {' and '.join(STRATEGIES)}, "
            f"not {config['Strategy']}."
        )
    if "TrainingJobDefinition" not in params or "WarmStartConfig" in params:
        raise invalid("local_cloud tunes one TrainingJobDefinition, without a warm start.")
    definition = params["TrainingJobDefinition"]
    if "HyperParameterTuningJobObjective" not in config:
        raise invalid("The tuning job needs a HyperParameterTuningJobObjective.")
    objective = config["HyperParameterTuningJobObjective"]["MetricName"]
    metrics = definition["AlgorithmSpecification"].get("MetricDefinitions", [])
    if objective not in [metric["Name"] for metric in metrics]:
        raise invalid(f"The objective metric {objective!r} is not among the metric definitions.")
    distributions(config.get("ParameterRanges", {}))
    check_training(
        {**definition, "HyperParameters": definition.get("StaticHyperParameters", {})},
    )


def distributions(ranges):
    """Optuna's distributions of a request's `ParameterRanges`.

    Raises:
        ServiceError: a range is empty, or logarithmic from zero or below.
    """
    found = {}
    for kind, number in (("Continuous", float), ("Integer", int)):
        for entry in ranges.get(f"{kind}ParameterRanges", []):
            try:
                low, high = number(entry["MinValue"]), number(entry["MaxValue"])
            except ValueError as error:
                raise invalid(f"The range of {entry['Name']!r} is not numeric: {error}") from None
            scale = entry.get("ScalingType", "Auto")
            if not -math.inf < low <= high < math.inf:
                raise invalid(f"The range of {entry['Name']!r} is empty or not finite.")
            if scale == "Logarithmic" and low <= 0:
                raise invalid(f"The logarithmic range of {entry['Name']!r} must begin above 0.")
            if scale == "ReverseLogarithmic":
                raise invalid("local_cloud does not offer the scaling type ReverseLogarithmic.")
            make = {
                float: optuna.distributions.FloatDistribution,
                int: optuna.distributions.IntDistribution,
            }[number]
            found[entry["Name"]] = make(low, high, log=scale == "Logarithmic")
    for entry in ranges.get("CategoricalParameterRanges", []):
        found[entry["Name"]] = optuna.distributions.CategoricalDistribution(entry["Values"])
    if not found:
        raise invalid("The tuning job has no parameter ranges.")
    return found


def make_study(config):
    """An Optuna study for a tuning job's configuration."""
    limit = config["ResourceLimits"].get("MaxNumberOfTrainingJobs", 1)
    if config["Strategy"] == "Random":
        sampler = optuna.samplers.RandomSampler(seed=config.get("RandomSeed"))
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(
                seed=config.get("RandomSeed"),
                # A third of a short search to look around, Optuna's usual ten of a long one.
                n_startup_trials=min(10, max(2, limit // 3)),
                multivariate=True,
                constant_liar=True,  # Parallel trials keep away from each other.
            )
    direction = config["HyperParameterTuningJobObjective"]["Type"].lower()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(sampler=sampler, direction=direction)


class Trial:
    """One training job of a search."""

    def __init__(self, owner, number, proposal, tuned):
        self.owner, self.proposal, self.tuned = owner, proposal, tuned
        suffix = uuid.uuid4().hex[:8]
        self.name = f"{owner.name}-{number:03d}-{suffix}"
        self.job = None

    @property
    def record(self):
        """The record of the training job; its last one where it has been deleted."""
        with contextlib.suppress(ServiceError):
            self._record = self.owner.store.get(TRAINING_KIND, self.name)
        return self._record

    def succeeded(self):
        """Whether the job completed and reported the objective."""
        return self.record["TrainingJobStatus"] == "Completed" and self.objective() is not None

    def objective(self):
        """The last value that the job reported of the objective metric, or None."""
        metrics = self.record.get("FinalMetricDataList", [])
        values = {metric["MetricName"]: metric["Value"] for metric in metrics}
        value = values.get(self.owner.objective["MetricName"])
        return value if value is not None and math.isfinite(value) else None

    def summary(self):
        """The entry of ListTrainingJobsForHyperParameterTuningJob."""
        record = self.record
        kept = ("TrainingJobName", "TrainingJobArn", "CreationTime", "TrainingJobStatus")
        kept += ("TrainingStartTime", "TrainingEndTime", "FailureReason")
        summary = {field: record[field] for field in kept if field in record}
        summary["TunedHyperParameters"] = self.tuned
        value = self.objective()
        if record["TrainingJobStatus"] in FINAL:
            summary["ObjectiveStatus"] = "Succeeded" if self.succeeded() else "Failed"
        else:
            summary["ObjectiveStatus"] = "Pending"
        if value is not None:
            summary[OBJECTIVE_VALUE] = {
                "Type": self.owner.objective["Type"],
                "MetricName": self.owner.objective["MetricName"],
                "Value": value,
            }
        return summary


def counters(summaries):
    """How many trials are in which status."""
    statuses = [summary["TrainingJobStatus"] for summary in summaries]
    objectives = [summary["ObjectiveStatus"] for summary in summaries]
    return {
        "TrainingJobStatusCounters": {
            "Completed": statuses.count("Completed"),
            "InProgress": statuses.count("InProgress") + statuses.count("Stopping"),
            "RetryableError": 0,
            "NonRetryableError": statuses.count("Failed"),
            "Stopped": statuses.count("Stopped"),
        },
        "ObjectiveStatusCounters": {
            status: objectives.count(status) for status in ("Succeeded", "Pending", "Failed")
        },
    }


class TuningJob:
    """Runs the trials of one search, several at a time."""

    def __init__(self, store, training, name, region):
        self.store, self.training, self.name, self.region = store, training, name, region
        self.config = store.get(KIND, name)[f"{KIND}Config"]
        self.objective = self.config["HyperParameterTuningJobObjective"]
        self.trials = []
        self.stopping = threading.Event()
        self.lock = threading.Lock()  # A search that ends cannot begin to stop, nor the reverse.
        self._thread = threading.Thread(target=self._run, daemon=True, name=name)

    def start(self):
        self._thread.start()

    def stop(self):
        """Start no more trials and stop those that run.

        Raises:
            ServiceError: the tuning job has ended already.
        """
        with self.lock:
            message = f"The request was rejected because the {KIND} is in status {{status}}."
            self.store.begin(KIND, self.name, "Stopping", FINAL, message)
            self.stopping.set()
        self.stop_trials()

    def stop_trials(self):
        for trial in list(self.trials):
            with contextlib.suppress(ServiceError):  # It has ended already.
                trial.job.stop()

    def _run(self):
        status, reason = "Completed", None
        try:
            reason = self.search()
            status = "Failed" if reason else "Completed"
        except Exception as error:  # A fault of ours must not leave the job in progress forever.
            status, reason = "Failed", f"InternalServerError: {type(error).__name__}: {error}"
        self.refresh()
        with self.lock:
            if self.stopping.is_set():
                status, reason = "Stopped", None
            fields = {"HyperParameterTuningJobStatus": status, "HyperParameterTuningEndTime": now()}
            if reason:
                fields["FailureReason"] = reason[:MAX_REASON]
            self.store.change(KIND, self.name, **fields)

    def search(self):
        """Ask, train and tell until the limit; return why the search failed, or None."""
        limits = self.config["ResourceLimits"]
        total = limits.get("MaxNumberOfTrainingJobs", 1)
        parallel = min(limits.get("MaxParallelTrainingJobs", 1), total)
        until = time.monotonic() + limits.get("MaxRuntimeInSeconds", math.inf)
        study = make_study(self.config)
        space = distributions(self.config["ParameterRanges"])
        ended = queue.Queue()
        running = 0
        while True:
            more = not (self.stopping.is_set() or time.monotonic() > until or self.hopeless())
            while more and running < parallel and len(self.trials) < total:
                self.launch(study.ask(space), parallel, ended)
                running += 1
            if running == 0:
                break
            trial = self.next_ended(ended, until)
            running -= 1
            self.tell(study, trial)
            self.refresh()
        if self.trials and not any(trial.succeeded() for trial in self.trials):
            return f"No training job reported {self.objective['MetricName']!r}: " + self.why()
        return None

    def next_ended(self, ended, until):
        """The next trial that ends; when the time is over, all that run are stopped."""
        if until < math.inf:
            with contextlib.suppress(queue.Empty):
                return ended.get(timeout=max(0, until - time.monotonic()))
            self.stop_trials()
        return ended.get()

    def hopeless(self):
        """Whether so many trials failed, and none succeeded, that more would fail, too."""
        statuses = [trial.record["TrainingJobStatus"] for trial in self.trials]
        return "Completed" not in statuses and statuses.count("Failed") >= FAILED_IN_A_ROW

    def why(self):
        return self.trials[-1].record.get("FailureReason", "see its log.")

    def launch(self, proposal, parallel, ended):
        """Start the training job of one proposal; its end puts it on the queue."""
        definition = self.store.get(KIND, self.name)["TrainingJobDefinition"]
        tuned = {name: as_parameter(value) for name, value in proposal.params.items()}
        trial = Trial(self, len(self.trials) + 1, proposal, tuned)
        params = {field: definition[field] for field in SHARED if field in definition}
        params.update(
            TrainingJobName=trial.name,
            AlgorithmSpecification=definition["AlgorithmSpecification"],
            HyperParameters={**definition.get("StaticHyperParameters", {}), **tuned},
        )
        tuning_arn = self.store.get(KIND, self.name)["HyperParameterTuningJobArn"]
        cpus = max(1, (cpu_count() or 1) // parallel)
        self.training.create(params, self.region, tuning_job_arn=tuning_arn, cpus=cpus)
        trial.job = self.training.jobs[trial.name]
        self.trials.append(trial)
        if self.stopping.is_set():  # Since the loop looked; `stop` did not know this trial yet.
            self.stop_trials()
        self.refresh()

        def wait():
            trial.job.join()
            ended.put(trial)

        threading.Thread(target=wait, daemon=True).start()

    def tell(self, study, trial):
        """Give the result of an ended trial to the sampler."""
        value = trial.objective()
        if trial.record["TrainingJobStatus"] == "Failed" or value is None:
            study.tell(trial.proposal, state=optuna.trial.TrialState.FAIL)
        else:
            study.tell(trial.proposal, value)

    def refresh(self):
        """Bring counters and best training job up to date."""
        summaries = [trial.summary() for trial in self.trials]
        fields = counters(summaries)
        done = [s for s in summaries if s["ObjectiveStatus"] == "Succeeded"]
        if done:
            pick = max if self.objective["Type"] == "Maximize" else min
            fields["BestTrainingJob"] = pick(done, key=objective_of)
        self.store.change(KIND, self.name, **fields)


def as_parameter(value):
    """A proposed value as the string that a training job gets."""
    return value if isinstance(value, str) else repr(value)
