"""What the debugger's rules have in common: parameters, evidence, and how a trial is read."""

import itertools
import re
from collections import Counter, deque
from typing import ClassVar

import numpy as np
from smdebug.rules.rule import Rule
from smdebug.trials.trial import Trial

from insight.findings import MOST_EVIDENCE, Evidence, Finding, Status, check_parameters
from insight.tensors import Tensors
from vision.errors import ExpectedError

PERSISTENCE = 3
LEARNT = 0.1
# A learning rate below this share of its peak is meant to change next to nothing.
IDLE_SHARE = 0.01
LOGITS = "CrossEntropyLoss_input_0"


class DebuggerRule(Rule):
    """What the rules share: parameters by AWS's names, and evidence by tensor.

    `invoke_at_step` takes a global step and returns whether the rule holds there, so that
    smdebug's own `invoke_rule` runs it, too. `evidence` keeps the first violation of each tensor;
    a rule that judges a state which can mend withdraws it when it has.
    """

    DEFAULTS: ClassVar[dict[str, object]] = {}
    NEEDS = ""
    MEANING = ""
    ADVICE = ""
    QUIET = ""

    def __init__(self, base_trial: Trial, action_str: str = "", **parameters):
        super().__init__(base_trial, action_str)
        check_parameters(self.rule_name, self.DEFAULTS, parameters)
        self.parameters = {
            name: _read(self.rule_name, name, default, parameters.get(name, default))
            for name, default in self.DEFAULTS.items()
        }
        self.tensors = Tensors(base_trial)
        self.evidence: dict[str, Evidence] = {}
        self.checked = 0
        self._streaks: Counter = Counter()
        self._recent: dict[str, deque] = {}
        self._peak: float | None = None

    def finding(self) -> Finding:
        """Return the verdict over all steps that the rule was invoked at."""
        result = Finding(
            self.rule_name,
            "debugger",
            Status.NO_ISSUES,
            checked=self.checked,
            meaning=self.QUIET.format(**self.parameters),
            parameters=self.parameters,
        )
        if not self.checked:
            result.status = Status.NOT_CHECKED
            result.meaning = f"Not checked: this training saved no {self.NEEDS}."
        elif self.evidence:
            found = list(self.evidence.values())
            result.status = Status.ISSUES
            result.first_step = min(each.step for each in found)
            result.evidence = found[:MOST_EVIDENCE]
            more = len(found) - MOST_EVIDENCE
            others = f" The same holds for {more} more." if more > 0 else ""
            result.meaning, result.advice = self.MEANING + others, self.ADVICE
        return result

    def _note(self, name: str, step: int, value: float, said: str) -> None:
        """Keep the first violation of a tensor, at a global step.

        The evidence has the step of training; that of a validation is the number of those before.
        """
        at = self.tensors.phase_step(step)
        if self.tensors.validates(step):
            # The global step counts both phases.
            at = step - at
        self.evidence.setdefault(name, Evidence(name, at, value, said))

    def _persists(self, name: str, odd: bool) -> bool:
        """Count saved steps in a row at which a tensor is odd; return whether they are enough."""
        self._streaks[name] = self._streaks[name] + 1 if odd else 0
        return self._streaks[name] >= PERSISTENCE

    def _last_values(self, name: str, value: object, count: int) -> deque | None:
        """Keep a value of a tensor; return its last `count`, None while there are fewer."""
        recent = self._recent.setdefault(name, deque(maxlen=count))
        recent.append(value)
        return recent if len(recent) == count else None

    def _evaluation_ends(self) -> set[int]:
        """Return the last global step of each evaluation: EVAL steps that follow each other."""
        steps = self.tensors.trial.steps()
        follows = itertools.zip_longest(steps, steps[1:])
        return {a for a, b in follows if b is None or b > a + 1 or not self.tensors.validates(b)}

    def _learns_still(self, step: int) -> bool:
        losses = self.tensors.losses(step)
        return losses is None or not losses.mean() < LEARNT

    def _losses(self, step: int) -> np.ndarray | None:
        """Return the losses (n,) of a step, from the tensor that the parameters choose if any."""
        if not (self.parameters.get("collection_names") or self.parameters.get("tensor_regex")):
            return self.tensors.losses(step)
        names = self._chosen(step)
        values = self.tensors.values(names[0], step) if names else None
        return None if values is None else values.astype(np.float64).reshape(-1)

    def _chosen(self, step: int, *collections: str) -> list[str]:
        """Return what `collection_names` and `tensor_regex` ask for, or else those collections."""
        wanted = self.parameters.get("collection_names")
        regex = self.parameters.get("tensor_regex")
        if wanted or regex:
            by_regex = self.tensors.named(regex, step) if regex else []
            by_name = self.tensors.collected(*wanted, step=step) if wanted else []
            return sorted({*by_regex, *by_name})
        return [n for n in self.tensors.collected(*collections, step=step) if not _is_bias(n)]

    def _is_idle(self, step: int) -> bool:
        """Whether the learning rate of a step was next to nothing, where the trial tells."""
        if self._peak is None:
            rates = (self.tensors.scalar("lr", s) for s in self.tensors.train_steps())
            self._peak = max((rate for rate in rates if rate is not None), default=0.0)
        rate = self.tensors.scalar("lr", step)
        return rate is not None and rate < IDLE_SHARE * self._peak

    def _classes(self, step: int) -> int | None:
        logits = self.tensors.first((LOGITS,), step)
        return logits.shape[1] if logits is not None and logits.ndim == 2 else None


def _is_bias(name: str) -> bool:
    return name.endswith("bias")


def _read(rule: str, name: str, default: object, value: object) -> object:
    """Return a parameter's value; the service hands all of them over as text."""
    if not isinstance(value, str):
        return value
    try:
        if isinstance(default, bool):
            return {"true": True, "false": False}[value.lower()]
        if name.endswith(("regex", "names")):
            return _split(value)
        if name == "mode":
            return value
        return float(value) if isinstance(default, float) else int(value)
    except (KeyError, ValueError) as error:
        raise ExpectedError(f"{rule}: {value!r} is no value for {name}") from error


def _split(text: str) -> list[str]:
    """Split at the commas outside braces, brackets and parentheses, as in a{1,2},b[,c].

    What is escaped with a backslash opens and closes none of them.
    """
    parts, depth = [""], 0
    for piece in re.findall(r"\\.|\[(?:\\.|[^]\\])*]|.", text, re.DOTALL):
        depth += (piece in "{(") - (piece in "})")
        if piece == "," and depth <= 0:
            parts.append("")
        else:
            parts[-1] += piece
    return parts
