"""The operations on hyperparameter tuning jobs."""

from local_cloud import trials
from local_cloud.autotune import fill_in
from local_cloud.jobs import FINAL, LOST, begin_stopping, delete_finished
from local_cloud.store import arn, cut, now, page
from local_cloud.trials import OBJECTIVE_VALUE
from local_cloud.trials import TUNING_KIND as KIND
from local_cloud.tuning_job import TuningJob
from local_cloud.tuning_request import check_strategy, read_definitions, with_defaults
from local_cloud.warm_start import check_parents, parent_names

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
# Fields of the record that no description shows; only the summaries have the first two.
HIDDEN = ("Strategy", "ResourceLimits", trials.NAMES)
# What ListTrainingJobsForHyperParameterTuningJob does unless asked otherwise.
DEFAULTS = {"SortBy": "Name", "SortOrder": "Ascending", "MaxResults": 10}


class Tuning:
    """The operations on tuning jobs."""

    def __init__(self, store, aws, training):
        self.store, self.aws, self.training = store, aws, training
        self.jobs = {}  # Those at work; all that is answered comes from the store.
        self.operations = {
            "CreateHyperParameterTuningJob": self.create,
            "DescribeHyperParameterTuningJob": self.describe,
            "ListHyperParameterTuningJobs": self.list,
            "ListTrainingJobsForHyperParameterTuningJob": self.list_training_jobs,
            "StopHyperParameterTuningJob": self.stop,
            "DeleteHyperParameterTuningJob": self.delete,
        }

    def recover(self):
        """Mark as failed what a former server left unfinished; call it once, when one starts.

        Training jobs should have been recovered before: this counts how they ended.
        """
        for record in self.store.all(KIND):
            if record[f"{KIND}Status"] in FINAL:
                continue
            fields = {f"{KIND}Status": "Failed", "HyperParameterTuningEndTime": now()}
            fields["FailureReason"] = LOST
            fields.update(trials.overview(self.store, record))
            self.store.change(KIND, record[f"{KIND}Name"], **fields)

    def create(self, params, region):
        name = params[f"{KIND}Name"]
        kept = with_defaults(fill_in(params))
        definitions = read_definitions(kept)
        check_strategy(kept, definitions)
        if parent_names(kept):
            check_parents(self.store, kept, definitions[0])
        record = {key: value for key, value in kept.items() if key != "Tags"}
        config = record[f"{KIND}Config"]
        record.update(
            HyperParameterTuningJobArn=arn(region, "hyper-parameter-tuning-job", name),
            HyperParameterTuningJobStatus="InProgress",
            CreationTime=now(),
            LastModifiedTime=now(),
            Strategy=config["Strategy"],
            ResourceLimits=config["ResourceLimits"],
            TrainingJobNames=[],
            **trials.counters([]),
        )
        self.store.add(KIND, name, record)
        self.store.set_tags(record["HyperParameterTuningJobArn"], params.get("Tags"))
        job = TuningJob(
            self.store, self.training, name, region, on_end=lambda: self.jobs.pop(name, None)
        )
        self.jobs[name] = job
        job.start()
        return {"HyperParameterTuningJobArn": record["HyperParameterTuningJobArn"]}

    def describe(self, params, region):
        record = self.store.get(KIND, params[f"{KIND}Name"])
        end = record.get("HyperParameterTuningEndTime") or now()
        seconds = int((end - record["CreationTime"]).total_seconds())
        for field in HIDDEN:
            del record[field]
        return {**record, "ConsumedResources": {"RuntimeInSeconds": seconds}}

    def list(self, params, region):
        names = (f"{KIND}Name", f"{KIND}Status")
        summaries, token = page(self.store.all(KIND), params, *names, SUMMARY)
        answer = {"HyperParameterTuningJobSummaries": summaries}
        return {**answer, "NextToken": token} if token else answer

    def list_training_jobs(self, params, region):
        found = trials.summaries(self.store, self.store.get(KIND, params[f"{KIND}Name"]))
        params = {**DEFAULTS, **params}
        if params["SortBy"] == "FinalObjectiveMetricValue":
            found, token = by_objective(found, params)
        else:
            fields = sorted({field for entry in found for field in entry})
            found, token = page(found, params, "TrainingJobName", "TrainingJobStatus", fields)
        answer = {"TrainingJobSummaries": found}
        return {**answer, "NextToken": token} if token else answer

    def stop(self, params, region):
        name = params[f"{KIND}Name"]
        job = self.jobs.get(name)
        if job is not None:
            job.stop()
        else:  # It has ended, or never existed.
            begin_stopping(self.store, KIND, name)

    def delete(self, params, region):
        record = self.store.get(KIND, params[f"{KIND}Name"])
        delete_finished(self.store, KIND, params[f"{KIND}Name"])
        trials.remove_all(self.store, record)


def by_objective(found, params):
    """One page of training jobs sorted by objective; those that reported none are left out."""
    status = params.get("StatusEquals")
    found = [
        entry
        for entry in found
        if OBJECTIVE_VALUE in entry and status in (None, entry["TrainingJobStatus"])
    ]
    found.sort(key=trials.value_of, reverse=params["SortOrder"] == "Descending")
    return cut(found, params)
