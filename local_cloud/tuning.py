"""The operations on hyperparameter tuning jobs."""

from local_cloud import trials
from local_cloud.autotune import fill_in
from local_cloud.errors import ServiceError
from local_cloud.jobs import FINAL, delete_finished
from local_cloud.store import arn, cut, matches, now
from local_cloud.trials import OBJECTIVE_VALUE
from local_cloud.trials import TUNING_KIND as KIND
from local_cloud.tuning_job import TuningJob, mark_stopping
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
PAGE = 10  # Entries of a List call that does not say how many.
ENDED_WITH_SERVER = (
    "InternalServerError: the local cloud ended while the job ran; start the job again."
)


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
            fields["FailureReason"] = ENDED_WITH_SERVER
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
        record = self.get(params)
        end = record.get("HyperParameterTuningEndTime") or now()
        seconds = int((end - record["CreationTime"]).total_seconds())
        for field in HIDDEN:
            del record[field]
        return {**record, "ConsumedResources": {"RuntimeInSeconds": seconds}}

    def list(self, params, region):
        names = (f"{KIND}Name", f"{KIND}Status")
        found = [record for record in self.store.all(KIND) if matches(record, params, *names)]
        fields = {"Name": names[0], "Status": names[1], "CreationTime": "CreationTime"}
        found, token = sorted_page(found, params, fields)
        summaries = [{key: each[key] for key in SUMMARY if key in each} for each in found]
        answer = {"HyperParameterTuningJobSummaries": summaries}
        return {**answer, "NextToken": token} if token else answer

    def list_training_jobs(self, params, region):
        found = trials.summaries(self.store, self.get(params))
        status = params.get("StatusEquals")
        found = [each for each in found if status in (None, each["TrainingJobStatus"])]
        if params.get("SortBy") == "FinalObjectiveMetricValue":
            # The service leaves out those that reported none.
            found = [each for each in found if OBJECTIVE_VALUE in each]
            found.sort(key=trials.value_of, reverse=params.get("SortOrder") == "Descending")
            found, token = cut(found, {"MaxResults": PAGE, **params})
        else:
            fields = {
                "Name": "TrainingJobName",
                "Status": "TrainingJobStatus",
                "CreationTime": "CreationTime",
            }
            found, token = sorted_page(found, params, fields)
        answer = {"TrainingJobSummaries": found}
        return {**answer, "NextToken": token} if token else answer

    def stop(self, params, region):
        name = params[f"{KIND}Name"]
        self.get(params)
        job = self.jobs.get(name)
        if job is not None:
            job.stop()
        else:
            mark_stopping(self.store, name)

    def delete(self, params, region):
        record = self.get(params)
        delete_finished(self.store, KIND, params[f"{KIND}Name"])
        trials.remove_all(self.store, record)

    def get(self, params):
        """The record of the tuning job that a request names."""
        name = params[f"{KIND}Name"]
        if not self.store.has(KIND, name):
            raise ServiceError(
                "ResourceNotFound",
                f"Amazon SageMaker can't find a tuning job with the name {name}. "
                "Check the name you specified.",
            )
        return self.store.get(KIND, name)


def sorted_page(found, params, fields):
    """One page of a List call, sorted, by default, by name from the first on.

    Args:
        fields: of the entries, by the values of `SortBy`.

    Returns:
        (entries, next_token): the token is None on the last page.
    """
    field = fields[params.get("SortBy", "Name")]
    ordered = sorted(found, key=lambda each: each[field])
    if params.get("SortOrder") == "Descending":
        ordered.reverse()
    return cut(ordered, {"MaxResults": PAGE, **params})
