"""What debugger rules, profiler rules and the report share: findings, and the choice of rules."""

import dataclasses
import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal

from vision.errors import ExpectedError

MOST_EVIDENCE = 8


class Status(str, Enum):
    """Of a rule, in the words of the SageMaker API (`RuleEvaluationStatus`).

    NOT_CHECKED is ours: the trial lacks what the rule reads, and `Finding.meaning` says what.
    """

    NO_ISSUES = "NoIssuesFound"
    ISSUES = "IssuesFound"
    NOT_CHECKED = "NotChecked"
    ERROR = "Error"


@dataclass(frozen=True)
class Evidence:
    """One measured value behind a finding.

    `name` is a tensor or a measurement, `step` the step of training it belongs to (of a
    validation: how many were done before; None: of the whole run), `said` a sentence with the
    numbers, from its capital letter to its full stop.
    """

    name: str
    step: int | None
    value: float | str
    said: str


@dataclass
class Finding:
    """The verdict of one rule on one run.

    `first_step` is the training step of the first violation, `checked` the number of steps (or
    samples of the profiler) that the rule looked at, `parameters` the thresholds it used.
    `advice` names the hyperparameters to change, as --flags.
    """

    rule: str
    kind: Literal["debugger", "profiler"]
    status: Status
    first_step: int | None = None
    evidence: list[Evidence] = field(default_factory=list)
    checked: int = 0
    meaning: str = ""
    advice: str = ""
    parameters: dict = field(default_factory=dict)

    def to_dict(self) -> dict:
        """Return what JSON can hold; NaN and infinities, which it cannot, become text."""
        return _for_json(dataclasses.asdict(self))

    @classmethod
    def from_dict(cls, values: dict) -> "Finding":
        evidence = [Evidence(**each) for each in values["evidence"]]
        return cls(**{**values, "status": Status(values["status"]), "evidence": evidence})


def chosen_rules(
    known: Collection[str], wanted: Iterable[str] | None, parameters: Iterable[str]
) -> list[str]:
    """Return the rules to run: all that are known, or those wanted.

    Raises ExpectedError for one, wanted or given parameters, that does not exist.
    """
    names = list(known if wanted is None else wanted)
    unknown = sorted({*names, *parameters} - set(known))
    if unknown:
        raise ExpectedError(f"there is no rule {unknown[0]!r}: there are {', '.join(known)}")
    return names


def check_parameters(rule: str, known: Collection[str], given: Iterable[str]) -> None:
    """Raise ExpectedError where a rule is given a parameter that it does not have."""
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ExpectedError(
            f"{rule} has no parameter {unknown[0]!r}: it has {', '.join(known) or 'none'}"
        )


def _for_json(value):
    if isinstance(value, dict):
        return {key: _for_json(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_for_json(each) for each in value]
    if isinstance(value, Status):
        return value.value
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
