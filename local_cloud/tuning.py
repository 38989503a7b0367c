"""The operations on hyperparameter tuning jobs."""

from local_cloud import trials
from local_cloud.autotune import fill_in
from local_cloud.jobs import Jobs
from local_cloud.store import cut, now, page
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


class Tuning(Jobs):
    """The operations on tuning jobs."""

    kind, arn_kind, summary = KIND, "hyper-parameter-tuning-job", SUMMARY

    def __init__(self, store, aws, training):
        super().__init__(store, aws)
        self.training = training
        self.operations = {
            "CreateHyperParameterTuningJob": self.create,
            "DescribeHyperParameterTuningJob": self.describe,
            "ListHyperParameterTuningJobs": self.list,
            "ListTrainingJobsForHyperParameterTuningJob": self.list_training_jobs,
            "StopHyperParameterTuningJob": self.stop,
            "DeleteHyperParameterTuningJob": self.delete,
        }

    def lose(self, record):
        # Training jobs have been recovered before: this counts how they ended.
        super().lose(record)
        for name in record[trials.NAMES]:
            trials.keep(self.store, name)
        record.update(trials.overview(self.store, record))

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
            Strategy=config["Strategy"],
            ResourceLimits=config["ResourceLimits"],
            TrainingJobNames=[],
            **trials.counters([]),
        )
        answer = self.keep(record, params.get("Tags"), region)
        job = TuningJob(
            self.store, self.training, name, region, on_end=lambda: self.jobs.pop(name, None)
        )
        self.begin(name, job)
        return answer

    def describe(self, params, region):
        record = super().describe(params, region)
        end = record.get("HyperParameterTuningEndTime") or now()
        seconds = int((end - record["CreationTime"]).total_seconds())
        for field in HIDDEN:
            del record[field]
        return {**record, "ConsumedResources": {"RuntimeInSeconds": seconds}}

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

    def delete(self, params, region):
        record = self.store.get(KIND, params[f"{KIND}Name"])
        super().delete(params, region)
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
