"""Requests for tuning jobs: what they ask for, and the service's rules about it."""

from collections import Counter
from dataclasses import dataclass

from local_cloud.errors import invalid
from local_cloud.ranges import Categorical, combinations, read_ranges
from local_cloud.toolkit import TUNING_METRIC
from local_cloud.training import check as check_training

MAX_HYPERPARAMETERS = 100  # Static and tuned together.
MAX_JOBS = 750  # The service's default quota; the end of a search that only criteria would end.
MAX_EPOCHS = 20_000  # The service's limit for MaxResource.
# Where `Hyperband` finds MaxResource when the request does not say it.
EPOCH_NAMES = ("epochs", "numepochs", "n-epochs", "n_epochs", "num_epochs")
# A definition's fields that CreateTrainingJob takes as they are. RetryStrategy is not among them:
# the tuning job itself starts a failed trial anew.
SHARED = (
    "AlgorithmSpecification",
    "CheckpointConfig",
    "EnableInterContainerTrafficEncryption",
    "EnableManagedSpotTraining",
    "EnableNetworkIsolation",
    "Environment",
    "InputDataConfig",
    "OutputDataConfig",
    "RoleArn",
    "StoppingCondition",
    "VpcConfig",
)


@dataclass(frozen=True)
class Definition:
    """One kind of training job that a tuning job launches.

    Attributes:
        name: `DefinitionName`; None where the tuning job has one definition without a name.
        request: the `HyperParameterTrainingJobDefinition`.
        objective: its `HyperParameterTuningJobObjective`.
        ranges: of the hyperparameters to tune.
    """

    name: str
    request: dict
    objective: dict
    ranges: list

    @property
    def static(self):
        return self.request.get("StaticHyperParameters", {})

    @property
    def attempts(self):
        """How often a trial is started at most, with its retries after faults of the service."""
        return 1 + self.request.get("RetryStrategy", {}).get("MaximumRetryAttempts", 0)

    def training_request(self, tuned):
        """A CreateTrainingJob request, without a name, for one choice of hyperparameters."""
        request = {field: self.request[field] for field in SHARED if field in self.request}
        request["ResourceConfig"] = resources_of(self.request)
        request["HyperParameters"] = {**self.static, **tuned}
        return request


def read_definitions(params):
    """The definitions of a request, or of a tuning job's record.

    Raises:
        ServiceError: a rule of the service is broken.
    """
    config = params["HyperParameterTuningJobConfig"]
    if ("TrainingJobDefinition" in params) == ("TrainingJobDefinitions" in params):
        raise invalid("Give either TrainingJobDefinition or TrainingJobDefinitions.")
    if "TrainingJobDefinition" in params:
        objective = config.get("HyperParameterTuningJobObjective")
        ranges = config.get("ParameterRanges", {})
        return [read_definition(params["TrainingJobDefinition"], objective, ranges)]
    if "ParameterRanges" in config or "HyperParameterTuningJobObjective" in config:
        raise invalid(
            "With TrainingJobDefinitions, each of them has its own TuningObjective and "
            "HyperParameterRanges; the HyperParameterTuningJobConfig has none."
        )
    found = [
        read_definition(each, each.get("TuningObjective"), each.get("HyperParameterRanges", {}))
        for each in params["TrainingJobDefinitions"]
    ]
    check_together(found)
    return found


def read_definition(request, objective, ranges):
    """One definition with its objective and ranges, checked."""
    metrics = request["AlgorithmSpecification"].get("MetricDefinitions", [])
    if objective is None or objective["MetricName"] not in [metric["Name"] for metric in metrics]:
        raise invalid(
            "A metric is required for this hyperparameter tuning job objective. "
            "Provide a metric in the metric definitions."
        )
    definition = Definition(request.get("DefinitionName"), request, objective, read_ranges(ranges))
    if not definition.ranges:
        raise invalid("The tuning job has no parameter ranges.")
    for each in definition.ranges:
        if each.name in definition.static:
            raise invalid(f"The hyperparameter {each.name!r} is static and tuned at once.")
    count = len(definition.ranges) + len(definition.static)
    if count > MAX_HYPERPARAMETERS:
        raise invalid(f"There are {count} hyperparameters; at most {MAX_HYPERPARAMETERS} can be.")
    check_training(definition.training_request({}))
    return definition


def check_together(definitions):
    """Several definitions: names tell them apart, and their objectives can be compared."""
    names = [definition.name for definition in definitions]
    if None in names:
        raise invalid("Each of the TrainingJobDefinitions needs a DefinitionName.")
    doubled = [name for name, count in Counter(names).items() if count > 1]
    if doubled:
        raise invalid(f"The DefinitionName {doubled[0]!r} is used more than once.")
    if len({definition.objective["Type"] for definition in definitions}) > 1:
        raise invalid("The objectives of all TrainingJobDefinitions must have the same Type.")


def resources_of(request):
    """A definition's `ResourceConfig`, whichever way it says its instances.

    Of several `InstanceConfigs` it is the first, the one with the highest priority: this machine is
    never short of instances.
    """
    flexible = request.get("HyperParameterTuningResourceConfig")
    if (flexible is None) == ("ResourceConfig" not in request):
        raise invalid("Give either ResourceConfig or HyperParameterTuningResourceConfig.")
    if flexible is None:
        return request["ResourceConfig"]
    fields = ("InstanceType", "InstanceCount", "VolumeSizeInGB", "VolumeKmsKeyId")
    config = {field: flexible[field] for field in fields if field in flexible}
    if "InstanceConfigs" in flexible:
        if "InstanceType" in config or "InstanceCount" in config:
            raise invalid("Give either InstanceConfigs or InstanceType and InstanceCount.")
        config.update(flexible["InstanceConfigs"][0])
    if "InstanceType" not in config:
        raise invalid("The HyperParameterTuningResourceConfig names no instance type.")
    return config


def check_strategy(params, definitions):
    """The rules about strategy, limits, early stopping and several definitions."""
    config = params["HyperParameterTuningJobConfig"]
    strategy = config["Strategy"]
    if "StrategyConfig" in config and strategy != "Hyperband":
        raise invalid("StrategyConfig is for the Hyperband strategy only.")
    if strategy == "Grid":
        check_grid(config, definitions)
    else:
        check_jobs(config, definitions)
    early = config.get("TrainingJobEarlyStoppingType") == "Auto"
    if strategy == "Hyperband":
        if early:
            raise invalid("TrainingJobEarlyStoppingType must be Off with the Hyperband strategy.")
        for definition in definitions:
            hyperband_resources(config, definition)
    if len(definitions) > 1 and (early or "WarmStartConfig" in params):
        raise invalid("Early stopping and warm start need a single TrainingJobDefinition.")


def check_grid(config, definitions):
    """`Grid` takes categorical ranges and as many training jobs as there are combinations."""
    for definition in definitions:
        for each in definition.ranges:
            if not isinstance(each, Categorical):
                raise invalid(
                    f"The Grid strategy takes categorical parameters only; {each.name!r} is not."
                )
    total = total_combinations(definitions)
    if config["ResourceLimits"].get("MaxNumberOfTrainingJobs", total) != total:
        raise invalid(
            "With the Grid strategy MaxNumberOfTrainingJobs, if given, must equal the number of "
            f"distinct combinations, which is {total}."
        )


def check_jobs(config, definitions):
    """The other strategies need an end, and as many combinations as training jobs."""
    limits = config["ResourceLimits"]
    jobs = limits.get("MaxNumberOfTrainingJobs")
    if jobs is None:
        if "MaxRuntimeInSeconds" not in limits and not config.get("TuningJobCompletionCriteria"):
            raise invalid(
                "The tuning job needs an end: MaxNumberOfTrainingJobs, MaxRuntimeInSeconds "
                "or TuningJobCompletionCriteria."
            )
        return
    if limits["MaxParallelTrainingJobs"] > jobs:
        raise invalid(
            f"MaxParallelTrainingJobs, {limits['MaxParallelTrainingJobs']}, must not be greater "
            f"than MaxNumberOfTrainingJobs, {jobs}."
        )
    total = total_combinations(definitions)
    if total < jobs:
        raise invalid(
            "You don't have enough combinations of hyperparameter ranges. The total number of "
            f"hyperparameter combinations for the provided ranges [{float(total)}] must be equal "
            f"or greater than the value of MaxNumberOfJobs, [{jobs}]. Provide additional ranges."
        )


def total_combinations(definitions):
    return sum(combinations(definition.ranges) for definition in definitions)


def job_limit(config, definitions):
    """How many training jobs the tuning job may launch, retries aside."""
    if config["Strategy"] == "Grid":
        return total_combinations(definitions)
    return config["ResourceLimits"].get("MaxNumberOfTrainingJobs", MAX_JOBS)


def hyperband_resources(config, definition):
    """(MinResource, MaxResource) of the `Hyperband` strategy, in reported objective values."""
    given = config.get("StrategyConfig", {}).get("HyperbandStrategyConfig", {})
    least = given.get("MinResource", 1)
    most = given.get("MaxResource") or epochs_of(definition)
    if most is None:
        raise invalid(
            "Hyperband needs MaxResource, or one of the static hyperparameters "
            f"{', '.join(EPOCH_NAMES)}, to say how many epochs a training job takes."
        )
    if not least <= most <= MAX_EPOCHS:
        raise invalid(
            f"MinResource, {least}, must not be greater than MaxResource, {most}, "
            f"nor that than {MAX_EPOCHS}."
        )
    return least, most


def epochs_of(definition):
    """The number of epochs by the static hyperparameters; None where they do not say it."""
    for name in EPOCH_NAMES:
        text = definition.static.get(name, "").strip('"')
        if text.isdecimal() and int(text) > 0:
            return int(text)
    return None


def with_defaults(params):
    """The request as the service keeps it: defaults filled in, the objective's name passed on."""
    config = {"TrainingJobEarlyStoppingType": "Off", **params["HyperParameterTuningJobConfig"]}
    kept = {**params, "HyperParameterTuningJobConfig": config}
    objective = config.get("HyperParameterTuningJobObjective")
    if "TrainingJobDefinition" in params:
        kept["TrainingJobDefinition"] = with_objective(params["TrainingJobDefinition"], objective)
    if "TrainingJobDefinitions" in params:
        kept["TrainingJobDefinitions"] = [
            with_objective(each, each.get("TuningObjective"))
            for each in params["TrainingJobDefinitions"]
        ]
    return kept


def with_objective(definition, objective):
    """A definition whose training jobs are told the name of the metric that counts."""
    if objective is None:
        return definition
    static = definition.get("StaticHyperParameters", {})
    static = {**static, TUNING_METRIC: objective["MetricName"]}
    return {**definition, "StaticHyperParameters": static}
