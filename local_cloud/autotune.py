"""Autotune: ranges and limits that the request leaves open.

AWS chooses them by rules that it does not publish. The rules here: a whole number is searched from
a quarter to four times its hint, a real one from a tenth to ten times its hint, staying under 1
where the hint does, and `true` or `false` as both. Whatever has another hint stays static.
https://docs.aws.amazon.com/sagemaker/latest/dg/automatic-model-tuning-define-ranges.html
"""

from local_cloud.errors import invalid
from local_cloud.ranges import number_or_none

JOBS = 20
INTEGER_FACTOR = 4
CONTINUOUS_FACTOR = 10
TRUTHS = (("true", "false"), ("True", "False"))
# The fields of a request that hold ranges, and of what.
KINDS = ("IntegerParameterRanges", "ContinuousParameterRanges", "CategoricalParameterRanges")


def fill_in(params):
    """The request with everything chosen that it leaves to Autotune.

    Raises:
        ServiceError: the request has AutoParameters, but does not enable Autotune.
    """
    config = params["HyperParameterTuningJobConfig"]
    if "Autotune" not in params:
        refuse_auto_parameters(params)
        return params
    limits = {"MaxNumberOfTrainingJobs": JOBS, **config["ResourceLimits"]}
    if config["Strategy"] == "Grid":
        limits = config["ResourceLimits"]  # The grid itself says how many.
    criteria = {"ConvergenceDetected": {"CompleteOnConvergence": "Enabled"}}
    config = {
        **config,
        "ResourceLimits": limits,
        "TuningJobCompletionCriteria": {
            **criteria,
            **config.get("TuningJobCompletionCriteria", {}),
        },
    }
    single = "TrainingJobDefinition" in params
    if single and config["Strategy"] in ("Bayesian", "Random"):
        config = {"TrainingJobEarlyStoppingType": "Auto", **config}
    filled = {**params, "HyperParameterTuningJobConfig": config}
    if single:
        definition = params["TrainingJobDefinition"]
        ranges, static = choose(config.get("ParameterRanges", {}), definition)
        config["ParameterRanges"] = ranges
        filled["TrainingJobDefinition"] = {**definition, "StaticHyperParameters": static}
    else:
        filled["TrainingJobDefinitions"] = [
            chosen_definition(each) for each in params.get("TrainingJobDefinitions", [])
        ]
    return filled


def chosen_definition(definition):
    ranges, static = choose(definition.get("HyperParameterRanges", {}), definition)
    return {**definition, "HyperParameterRanges": ranges, "StaticHyperParameters": static}


def refuse_auto_parameters(params):
    ranges = [params["HyperParameterTuningJobConfig"].get("ParameterRanges", {})]
    for definition in params.get("TrainingJobDefinitions", []):
        ranges.append(definition.get("HyperParameterRanges", {}))
    if any(each.get("AutoParameters") for each in ranges):
        raise invalid("AutoParameters need Autotune, with the Mode Enabled.")


def choose(ranges, definition):
    """The ranges with those chosen for AutoParameters; the static hyperparameters with the rest."""
    chosen = {kind: list(ranges.get(kind, [])) for kind in KINDS}
    static = dict(definition.get("StaticHyperParameters", {}))
    for parameter in ranges.get("AutoParameters", []):
        kind, entry = range_for(parameter["Name"], parameter["ValueHint"])
        if kind is None:
            static[parameter["Name"]] = parameter["ValueHint"]
        else:
            chosen[kind].append(entry)
    return {**ranges, **{kind: entries for kind, entries in chosen.items() if entries}}, static


def range_for(name, hint):
    """(field of ParameterRanges, entry) of the range chosen by an example value, or two None."""
    for pair in TRUTHS:
        if hint in pair:
            return "CategoricalParameterRanges", {"Name": name, "Values": list(pair)}
    whole, real = number_or_none(int, hint), number_or_none(float, hint)
    if whole is not None and whole > 0:
        low, high = max(1, whole // INTEGER_FACTOR), whole * INTEGER_FACTOR
        return "IntegerParameterRanges", numeric(name, low, high)
    if whole is None and real is not None and real > 0:
        high = real * CONTINUOUS_FACTOR
        if real < 1:
            high = min(high, (1 + real) / 2)
        return "ContinuousParameterRanges", numeric(name, real / CONTINUOUS_FACTOR, high)
    return None, None


def numeric(name, low, high):
    return {"Name": name, "MinValue": str(low), "MaxValue": str(high), "ScalingType": "Auto"}
