"""Warm start: what earlier tuning jobs found teaches a new one.

https://docs.aws.amazon.com/sagemaker/latest/dg/automatic-model-tuning-warm-start.html
"""

from local_cloud import trials
from local_cloud.drivers import DRIVERS
from local_cloud.errors import invalid
from local_cloud.jobs import FINAL
from local_cloud.toolkit import TUNING_METRIC
from local_cloud.trials import TUNING_KIND
from local_cloud.tuning_request import read_definitions

MAX_PARENTS = 5
MAX_CHANGES = 10  # Of values of static hyperparameters, and of tuned ones that became static.


def parent_names(params):
    """The names of the parents that a request, or a tuning job's record, gives."""
    parents = params.get("WarmStartConfig", {}).get("ParentHyperParameterTuningJobs", [])
    return [parent[f"{TUNING_KIND}Name"] for parent in parents]


def check_parents(store, params, definition):
    """Refuse parents from which the new tuning job cannot start.

    Args:
        definition: the one `Definition` of the new tuning job.

    Raises:
        ServiceError: a parent is missing, has not ended, or differs too much.
    """
    names = parent_names(params)
    if len(names) > MAX_PARENTS or len(set(names)) < len(names):
        raise invalid(f"A tuning job has up to {MAX_PARENTS} different parents.")
    for name in names:
        check_parent(store, name, params["WarmStartConfig"]["WarmStartType"], definition)


def check_parent(store, name, kind, definition):
    if not store.has(TUNING_KIND, name):
        raise invalid(f"The parent tuning job {name!r} does not exist.")
    record = store.get(TUNING_KIND, name)
    if record[f"{TUNING_KIND}Status"] not in FINAL:
        raise invalid(f"The parent tuning job {name!r} has not ended yet.")
    parent, *others = read_definitions(record)
    if others:
        raise invalid(f"The parent tuning job {name!r} has several training job definitions.")
    if parent.objective != definition.objective:
        raise invalid(f"The parent tuning job {name!r} has another objective metric.")
    if names_of(parent) != names_of(definition):
        raise invalid(
            "The set of tunable plus static HyperParameter names is not the same across current "
            "and parent tuning jobs. Please ensure this set is constant when warm starting. Note "
            "that previously static HyperParameters can be tuned in warm start jobs and vice versa."
        )
    check_types(name, parent, definition)
    changes = count_changes(parent, definition)
    if changes > MAX_CHANGES:
        raise invalid(
            f"Compared with the parent tuning job {name!r}, {changes} values of static "
            f"hyperparameters have changed; at most {MAX_CHANGES} can."
        )
    if kind == "IdenticalDataAndAlgorithm":
        check_identical(name, parent, definition)


def names_of(definition):
    return {*definition.static, *(each.name for each in definition.ranges)}


def check_types(name, parent, definition):
    """A hyperparameter that both tune must stay continuous, integer or categorical."""
    types = {each.name: type(each) for each in parent.ranges}
    for each in definition.ranges:
        if types.get(each.name, type(each)) is not type(each):
            raise invalid(
                f"The hyperparameter {each.name!r} has another type in the parent tuning "
                f"job {name!r}."
            )


def count_changes(parent, definition):
    """How many values differ: old and new ones of static hyperparameters, and those once tuned."""
    static = definition.static
    changed = [name for name, value in parent.static.items() if static.get(name, value) != value]
    became_static = [each for each in parent.ranges if each.name in static]
    return 2 * len(changed) + sum(len(getattr(each, "choices", "1")) for each in became_static)


def check_identical(name, parent, definition):
    """`IdenticalDataAndAlgorithm` wants the same image and the same channels."""
    for field in ("TrainingImage", "AlgorithmName"):
        if algorithm(parent, field) != algorithm(definition, field):
            raise invalid(f"The parent tuning job {name!r} has another {field}.")
    if channels(parent) != channels(definition):
        raise invalid(f"The parent tuning job {name!r} has other input data.")


def algorithm(definition, field):
    return definition.request["AlgorithmSpecification"].get(field)


def channels(definition):
    """The data sources by channel, without the SDK's own scripts."""
    found = definition.request.get("InputDataConfig", [])
    return {each["ChannelName"]: each["DataSource"] for each in found} | {DRIVERS: None}


def earlier_results(store, params):
    """All results of the parents: (hyperparameters, name to text; the objective's value).

    Warm starts do not chain: a parent's own parents do not count.
    """
    found = []
    for parent in parent_names(params):
        for training_name in store.get(TUNING_KIND, parent)[trials.NAMES]:
            trial = store.get(trials.KIND, training_name)
            record = trials.training_record(store, trial)
            value = trials.objective_value(record, trial["Objective"]["MetricName"])
            status = trials.objective_status(record["TrainingJobStatus"], value)
            if status == "Succeeded":
                texts = {**record["HyperParameters"], **trial["TunedHyperParameters"]}
                texts.pop(TUNING_METRIC, None)
                found.append((texts, value))
    return found
