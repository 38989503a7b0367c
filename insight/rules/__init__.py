"""The debugger's rules: what they look for in the tensors that a training saved.

    python -c "from insight.rules import check; print(*check('output/tensors'), sep='\\n')"

Names, parameters and defaults are those of Amazon SageMaker Debugger's built-in rules ("List of
Debugger Built-in Rules", SageMaker developer guide, 2023); that service is closed, its rules were
never published, and smdebug brings only their base class. Where the documented definition would
fire on trainings that do well, the docstring says "Here" and how this one differs.

Three terms are the same in all of them. A *saved step* is one that the hook saved, by default the
steps 0, 1, 2 and then pairs of neighbours. A tensor that is odd for a step is not yet a fault: the
rules wait for PERSISTENCE saved steps in a row. And a gradient may be small where there is nothing
left to learn, which is where the mean loss of the step is below LEARNT.
"""

from smdebug.exceptions import RuleEvaluationConditionMet
from smdebug.trials.trial import Trial

from insight.findings import Finding, Status, chosen_rules
from insight.rules.base import DebuggerRule
from insight.rules.classes import ClassImbalance
from insight.rules.losses import LossNotDecreasing, Overfit, Overtraining
from insight.rules.magnitudes import AllZero, DeadRelu, ExplodingTensor, VanishingGradient
from insight.rules.weights import PoorWeightInitialization, UnchangedTensor, WeightUpdateRatio
from insight.tensors import open_trial

RULES: dict[str, type[DebuggerRule]] = {
    rule.__name__: rule
    for rule in (
        VanishingGradient,
        ExplodingTensor,
        AllZero,
        DeadRelu,
        PoorWeightInitialization,
        LossNotDecreasing,
        Overfit,
        Overtraining,
        ClassImbalance,
        WeightUpdateRatio,
        UnchangedTensor,
    )
}


def check(
    trial: str | Trial, rules: list[str] | None = None, **parameters: dict[str, object]
) -> list[Finding]:
    """Run rules (all of them, or those named) over a folder, an s3:// URI or an open trial.

    `parameters` are by rule: check(folder, Overfit={"patience": 2}). Any of them may be text, in
    which a comma separates names or patterns unless it stands within {}, [] or (). Raises
    ExpectedError where there are no tensors, and for a rule or parameter that does not exist.
    """
    names = chosen_rules(RULES, rules, parameters)
    if not isinstance(trial, Trial):
        trial = open_trial(trial)
    return [_judge(RULES[name](trial, **parameters.get(name, {})), trial) for name in names]


def _judge(rule: DebuggerRule, trial: Trial) -> Finding:
    try:
        for step in trial.steps():
            try:
                rule.invoke(step)
            except RuleEvaluationConditionMet:
                continue
        return rule.finding()
    except Exception as error:  # One rule that stumbles does not take the others with it.
        return Finding(
            rule.rule_name,
            "debugger",
            Status.ERROR,
            meaning=f"The rule stopped with {type(error).__name__}: {error}",
            parameters=rule.parameters,
        )
