"""The training jobs of a tuning job, as its descriptions and lists show them.

All of it comes from the store: a tuning job's record names its training jobs, and a record of the
kind `TuningTrial` keeps what the training job's own record does not say, and a copy of that record,
so that a deleted training job stays in the lists.
"""

import contextlib
import math

from local_cloud.errors import ServiceError
from local_cloud.jobs import FINAL
from local_cloud.training import KIND as TRAINING_KIND

KIND = "TuningTrial"
TUNING_KIND = "HyperParameterTuningJob"
NAMES = "TrainingJobNames"  # Field of a tuning job's record that no description shows.
OBJECTIVE_VALUE = "FinalHyperParameterTuningJobObjectiveMetric"
SERVICE_FAULT = "InternalServerError"  # How a FailureReason begins that a retry may overcome.
SHOWN = (
    "TrainingJobName",
    "TrainingJobArn",
    "CreationTime",
    "TrainingJobStatus",
    "TrainingStartTime",
    "TrainingEndTime",
    "FailureReason",
)
KEPT = (*SHOWN, "FinalMetricDataList", "HyperParameters")


def add(store, tuning_name, training_name, tuned, definition):
    """Keep a training job that a tuning job has started.

    Args:
        tuned: the tuned hyperparameters, name to text.
        definition: the `Definition` that it was made from.
    """
    record = {
        "TrainingJobName": training_name,
        "TuningJobName": tuning_name,
        "TunedHyperParameters": tuned,
        "Objective": definition.objective,
        "Training": copy_of(store, training_name),
    }
    if definition.name:
        record["TrainingJobDefinitionName"] = definition.name
    store.add(KIND, training_name, record)
    store.edit(TUNING_KIND, tuning_name, lambda job: job[NAMES].append(training_name))


def copy_of(store, training_name):
    record = store.get(TRAINING_KIND, training_name)
    return {field: record[field] for field in KEPT if field in record}


def keep(store, training_name):
    """Copy the training job's record, once it has ended, for when it is deleted."""
    with contextlib.suppress(ServiceError):  # It has been deleted within this moment.
        store.change(KIND, training_name, Training=copy_of(store, training_name))


def remove_all(store, tuning_job):
    """Forget the training jobs of a tuning job's record; they themselves stay."""
    for name in tuning_job[NAMES]:
        with contextlib.suppress(ServiceError):
            store.remove(KIND, name)


def training_record(store, trial):
    """The training job's record, or the copy of it where it has been deleted."""
    try:
        return store.get(TRAINING_KIND, trial["TrainingJobName"])
    except ServiceError:
        return trial["Training"]


def summary(store, training_name):
    """The entry of ListTrainingJobsForHyperParameterTuningJob for one training job."""
    trial = store.get(KIND, training_name)
    record = training_record(store, trial)
    entry = {field: record[field] for field in SHOWN if field in record}
    entry["TunedHyperParameters"] = trial["TunedHyperParameters"]
    if "TrainingJobDefinitionName" in trial:
        entry["TrainingJobDefinitionName"] = trial["TrainingJobDefinitionName"]
    value = objective_value(record, trial["Objective"]["MetricName"])
    entry["ObjectiveStatus"] = objective_status(record["TrainingJobStatus"], value)
    if value is not None:
        entry[OBJECTIVE_VALUE] = {**trial["Objective"], "Value": value}
    return entry


def summaries(store, tuning_job):
    """The entries of all training jobs of a tuning job's record, in the order of their start."""
    return [summary(store, name) for name in tuning_job[NAMES]]


def objective_value(record, metric):
    """The last value that a training job reported of the metric; None without a finite one."""
    values = {each["MetricName"]: each["Value"] for each in record.get("FinalMetricDataList", [])}
    value = values.get(metric)
    return value if value is not None and math.isfinite(value) else None


def objective_status(status, value):
    """`ObjectiveStatus`: a stopped training job counts by the last value that it reported."""
    if status not in FINAL:
        return "Pending"
    return "Failed" if status == "Failed" or value is None else "Succeeded"


def value_of(entry):
    """The objective of an entry that has one."""
    return entry[OBJECTIVE_VALUE]["Value"]


def best(entries, maximize):
    """The entry with the best objective that counts; None where there is none."""
    counted = [entry for entry in entries if entry["ObjectiveStatus"] == "Succeeded"]
    pick = max if maximize else min
    return pick(counted, key=value_of, default=None)


def is_service_fault(entry):
    """Whether a training job failed by a fault of the service, not of its script or request."""
    failed = entry["TrainingJobStatus"] == "Failed"
    return failed and entry.get("FailureReason", "").startswith(SERVICE_FAULT)


def counters(entries):
    """How many training jobs are in which status."""
    statuses = [entry["TrainingJobStatus"] for entry in entries]
    objectives = [entry["ObjectiveStatus"] for entry in entries]
    retryable = sum(map(is_service_fault, entries))
    return {
        "TrainingJobStatusCounters": {
            "Completed": statuses.count("Completed"),
            "InProgress": statuses.count("InProgress") + statuses.count("Stopping"),
            "RetryableError": retryable,
            "NonRetryableError": statuses.count("Failed") - retryable,
            "Stopped": statuses.count("Stopped"),
        },
        "ObjectiveStatusCounters": {
            status: objectives.count(status) for status in ("Succeeded", "Pending", "Failed")
        },
    }


def overview(store, tuning_job):
    """The fields of a tuning job's record that follow from its training jobs."""
    entries = summaries(store, tuning_job)
    return overview_of(store, tuning_job, entries)


def overview_of(store, tuning_job, entries):
    maximize = is_maximized(tuning_job)
    fields = counters(entries)
    found = best(entries, maximize)
    if found:
        fields["BestTrainingJob"] = found
    warm = tuning_job.get("WarmStartConfig", {})
    if warm.get("WarmStartType") == "IdenticalDataAndAlgorithm":
        candidates = [*parents_best(store, warm), *owned([found], tuning_job)]
        overall = best(candidates, maximize)
        if overall:
            fields["OverallBestTrainingJob"] = overall
    return fields


def parents_best(store, warm_start):
    """The best training job of every parent that still exists."""
    found = []
    for parent in warm_start["ParentHyperParameterTuningJobs"]:
        with contextlib.suppress(ServiceError):
            record = store.get(TUNING_KIND, parent[f"{TUNING_KIND}Name"])
            found += owned([record.get("BestTrainingJob")], record)
    return found


def owned(entries, tuning_job):
    """Entries, where there are any, with the name of the tuning job that they are from."""
    name = tuning_job[f"{TUNING_KIND}Name"]
    return [{**entry, "TuningJobName": name} for entry in entries if entry]


def is_maximized(tuning_job):
    """Whether larger objectives are better; all definitions agree on that."""
    config = tuning_job[f"{TUNING_KIND}Config"]
    objective = config.get("HyperParameterTuningJobObjective")
    if objective is None:
        objective = tuning_job["TrainingJobDefinitions"][0]["TuningObjective"]
    return objective["Type"] == "Maximize"
