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

import itertools
import math
from collections import Counter, deque
from typing import ClassVar

import numpy as np
from smdebug.exceptions import RuleEvaluationConditionMet
from smdebug.rules.rule import Rule
from smdebug.trials.trial import Trial

from insight.findings import Evidence, Finding, Status
from insight.tensors import ACTIVITY, Tensors, open_trial
from vision.errors import ExpectedError

PERSISTENCE = 3
LEARNT = 0.1
# Saved losses that make one level: the loss of a single batch says little.
WINDOW = 5
# A learning rate below this share of its peak is meant to change next to nothing.
IDLE_SHARE = 0.01
MOST_EVIDENCE = 8


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
        unknown = sorted(set(parameters) - set(self.DEFAULTS))
        if unknown:
            raise ExpectedError(
                f"{self.rule_name} has no parameter {unknown[0]!r}: "
                f"it has {', '.join(self.DEFAULTS)}"
            )
        self.parameters = {
            name: _read(self.rule_name, name, default, parameters.get(name, default))
            for name, default in self.DEFAULTS.items()
        }
        self.tensors = Tensors(base_trial)
        self.evidence: dict[str, Evidence] = {}
        self.checked = 0
        self._streaks: Counter = Counter()
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
            others = f" So do {more} more tensors." if more > 0 else ""
            result.meaning, result.advice = self.MEANING + others, self.ADVICE
        return result

    def _note(self, name: str, step: int, value: float, said: str) -> None:
        """Keep the first violation of a tensor, at a global step."""
        at = self.tensors.phase_step(step)
        self.evidence.setdefault(name, Evidence(name, at, value, said))

    def _persists(self, name: str, odd: bool) -> bool:
        """Count saved steps in a row at which a tensor is odd; return whether they are enough."""
        self._streaks[name] = self._streaks[name] + 1 if odd else 0
        return self._streaks[name] >= PERSISTENCE

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


LOGITS, LABELS = "CrossEntropyLoss_input_0", "CrossEntropyLoss_input_1"


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
            return value.split(",")
        if name == "mode":
            return value
        return float(value) if isinstance(default, float) else int(value)
    except (KeyError, ValueError) as error:
        raise ExpectedError(f"{rule}: {value!r} is no value for {name}") from error


class VanishingGradient(DebuggerRule):
    """mean(|g|) < threshold for the gradient g of a weight.

    AWS: the mean of the absolute values of a gradient drops below `threshold`. Here it has to
    stay there for three saved steps while the loss is at least 0.1, and biases are left out: in
    front of a batch norm theirs are zero by construction (Ioffe & Szegedy 2015,
    arXiv:1502.03167, section 3.2), and those of a zero-initialised branch are in its first step.
    """

    DEFAULTS: ClassVar = {"threshold": 1e-7}
    NEEDS = "gradients"
    QUIET = "The mean gradient of every layer stayed above {threshold:g} while there was a loss."
    MEANING = (
        "Next to nothing of the error reaches these layers, so they stay as they were initialised "
        "while only the layers behind them learn."
    )
    ADVICE = (
        "Take a network with batch norm, shortcuts and ReLUs (--model small_resnet or resnet18) "
        "or learned weights (--pretrained true), fewer --head-hidden layers, and layers that are "
        "initialised for their activation (PyTorch's torch.nn.init.kaiming_normal_ for ReLU). A "
        "higher --lr does not help: the gradients of the last layers are not small."
    )

    def invoke_at_step(self, step: int) -> bool:
        if not self.tensors.trains(step):
            return False
        threshold, held = self.parameters["threshold"], False
        names = [n for n in self.tensors.collected("gradients", step=step) if not _is_bias(n)]
        self.checked += bool(names)
        learning = self._learns_still(step)
        for name in names:
            size = self.tensors.reduction(name, step, "mean", absolute=True)
            small = size is not None and size < threshold and learning
            if self._persists(name, small):
                held = True
                self._note(
                    name,
                    step,
                    size,
                    f"the mean size of {name} was {size:.2g} at step "
                    f"{self.tensors.phase_step(step)}, below {threshold:g}",
                )
        return held


class ExplodingTensor(DebuggerRule):
    """A value of a tensor is infinite or NaN; with `only_nan`, NaN.

    Read from max(|x|), which is infinite or NaN where any value is, or from all values. AWS
    checks the tensors that `collection_names` or `tensor_regex` choose; by default, and there as
    here, all. With --precision float16 single infinite gradients are how the loss scale is found
    (torch.amp.GradScaler skips those steps): choose other tensors there.
    """

    DEFAULTS: ClassVar = {"collection_names": None, "tensor_regex": None, "only_nan": False}
    NEEDS = "tensors"
    QUIET = "Every value that was saved is a finite number."
    MEANING = (
        "Values grew until float32 could not hold them. From there on every weight they touch "
        "becomes NaN, and the training learns nothing more."
    )
    ADVICE = (
        "Lower --lr, to a tenth at first; bound the steps with --clip-norm 1; let the learning "
        "rate rise over more of the training (--warmup 0.25). With --precision float16, try "
        "bfloat16, which has float32's range."
    )

    def invoke_at_step(self, step: int) -> bool:
        odd = np.isnan if self.parameters["only_nan"] else lambda x: not np.isfinite(x)
        names = self._chosen_or_all(step)
        self.checked += bool(names)
        held = False
        for name in names:
            size = self.tensors.reduction(name, step, "max", absolute=True)
            if size is None or not odd(size):
                continue
            held = True
            phase = "" if self.tensors.trains(step) else " of validation"
            self._note(
                name,
                step,
                size,
                f"{name} has a value that is {'NaN' if math.isnan(size) else 'infinite'} at step "
                f"{self.tensors.phase_step(step)}{phase}",
            )
        return held

    def _chosen_or_all(self, step: int) -> list[str]:
        if self.parameters["collection_names"] or self.parameters["tensor_regex"]:
            return self._chosen(step)
        return self.tensors.named(("",), step)


class AllZero(DebuggerRule):
    """The share of values that are exactly 0 is at least `threshold` percent.

    By default all of them, which max(|x|) = 0 tells; another threshold is taken of all values or
    of the sample that was saved. AWS wants the tensors chosen; here weights, gradients and the
    outputs of ReLUs are, without biases (zero is what they begin with), and a tensor has to stay
    zero for three saved steps while the loss is at least 0.1: a last layer or the last batch norm
    of a branch that begins with zero (Goyal et al. 2017, arXiv:1706.02677, section 5.1) moves
    with the first step, and the gradients of a training set known by heart are zero.
    """

    DEFAULTS: ClassVar = {"collection_names": None, "tensor_regex": None, "threshold": 100.0}
    NEEDS = "weights, gradients or outputs of ReLUs"
    QUIET = "No weight, gradient or ReLU output was zero for three saved steps in a row."
    MEANING = (
        "A layer whose values are all zero passes nothing on, neither forwards nor backwards, and "
        "nothing brings it back."
    )
    ADVICE = (
        "Initialise these layers at random (PyTorch's own layers do, as does --pretrained true), "
        "and lower --lr or --weight-decay if they became zero during training."
    )

    def invoke_at_step(self, step: int) -> bool:
        if not self.tensors.trains(step):
            return False
        names = self._chosen(step, "weights", "gradients", "relu_output")
        self.checked += bool(names)
        learning, held = self._learns_still(step), False
        for name in names:
            share = self._share_of_zeros(name, step)
            zero = share is not None and share >= self.parameters["threshold"] and learning
            if self._persists(name, zero):
                held = True
                self._note(
                    name,
                    step,
                    share,
                    f"{share:.0f}% of the values of {name} were zero up to step "
                    f"{self.tensors.phase_step(step)}, for {PERSISTENCE} saved steps",
                )
        return held

    def _share_of_zeros(self, name: str, step: int) -> float | None:
        largest = self.tensors.reduction(name, step, "max", absolute=True)
        if largest == 0:
            return 100.0
        if self.parameters["threshold"] >= 100:
            return None if largest is None else 0.0
        values = self.tensors.values(name, step)
        return None if values is None else float((values == 0).mean() * 100)


class DeadRelu(DebuggerRule):
    """More than `threshold_layer` percent of the units of a ReLU layer are dead.

    A unit (a channel, or a feature of a linear layer) is dead where less than
    `threshold_inactivity` percent of its outputs in a batch are above zero. AWS reads the outputs
    themselves (`tensor_regex`); ours are too large to save, so the hook saves that percentage of
    every unit, and this rule reads outputs only where a trial has them instead. Here a unit has
    to be dead at three saved steps in a row: one batch may just not have what it looks for.
    """

    DEFAULTS: ClassVar = {
        "tensor_regex": [".*relu_output"],
        "threshold_inactivity": 1.0,
        "threshold_layer": 50.0,
    }
    NEEDS = "outputs of ReLUs"
    QUIET = "In every ReLU layer at least half of the units react to some picture."
    MEANING = (
        "These units give zero for practically every picture. A ReLU that gives zero has no "
        "gradient either, so they are lost for good and the network is smaller than it looks."
    )
    ADVICE = (
        "Lower --lr (one step too large pushes units below zero for ever) or bound the steps with "
        "--clip-norm 1 and a longer --warmup; begin with biases at zero, not below; where the "
        "units are in --head-hidden, fewer of them do as well."
    )

    def __init__(self, base_trial: Trial, action_str: str = "", **parameters):
        super().__init__(base_trial, action_str, **parameters)
        self._recent: dict[str, deque] = {}

    def invoke_at_step(self, step: int) -> bool:
        if not self.tensors.trains(step):
            return False
        held = False
        layers = self._activity(step)
        self.checked += bool(layers)
        inactivity = self.parameters["threshold_inactivity"]
        for name, activity in layers.items():
            recent = self._recent.setdefault(name, deque(maxlen=PERSISTENCE))
            recent.append(activity)
            if len(recent) < PERSISTENCE:
                continue
            dead = np.max(recent, axis=0) < inactivity
            percent = float(dead.mean() * 100)
            if percent > self.parameters["threshold_layer"]:
                held = True
                self._note(
                    name,
                    step,
                    percent,
                    f"{dead.sum()} of the {dead.size} units of {name} ({percent:.0f}%) were "
                    f"active for less than {inactivity:g}% of their inputs up to step "
                    f"{self.tensors.phase_step(step)}",
                )
        return held

    def _activity(self, step: int) -> dict[str, np.ndarray]:
        """Return by layer the percentage of positive outputs of each of its units."""
        saved = sorted(name for name in self.tensors.at(step) if name.startswith(ACTIVITY))
        if saved:
            found = {name: self.tensors.values(name, step) for name in saved}
            return {name.removeprefix(ACTIVITY): value for name, value in found.items()}
        names = self.tensors.named(self.parameters["tensor_regex"], step)
        names += self.tensors.collected("relu_output", step=step)
        outputs = {name: self.tensors.values(name, step) for name in sorted(set(names))}
        return {
            name: (value > 0).mean(tuple(i for i in range(value.ndim) if i != 1)) * 100
            for name, value in outputs.items()
            if value is not None and value.ndim > 1
        }


class PoorWeightInitialization(DebuggerRule):
    """The signal changes in scale from layer to layer, and the loss shows it.

    AWS looks, in the first `steps` steps, at three things: whether max/min over the layers of the
    variance of the activations' inputs is above `threshold` (Glorot & Bengio 2010: it should be
    constant), whether the gradients of some layer spread less than `distribution_range` between
    their 5th and 95th percentile, and whether the loss stopped falling for `patience` steps. Each
    alone is common in networks that learn well: residual sums grow, PyTorch's default for linear
    layers shrinks, gradients of large layers are small. So here one of the first two has to be
    seen at the first saved step *and* the loss has to suffer: the mean of its last `patience`
    saved values (of the first `steps`) is not 1% below the mean of its first ones, or it began
    above twice ln(classes), the loss of a network that knows nothing. Where only mean and
    standard deviation of a gradient were saved, its percentiles are those of a normal
    distribution.
    """

    DEFAULTS: ClassVar = {
        "activation_inputs_regex": [".*relu_input"],
        "threshold": 10.0,
        "distribution_range": 0.001,
        "patience": 5,
        "steps": 10,
    }
    NEEDS = "losses of enough training steps together with inputs of ReLUs or gradients"
    QUIET = "The first {steps} saved steps show a loss that falls, or one scale in all layers."
    MEANING = (
        "The weights were too small or too large at the start: the signal fades or grows from "
        "layer to layer, and the first steps are lost on repairing that, if they can."
    )
    ADVICE = (
        "Initialise for the activation in use (torch.nn.init.kaiming_normal_ for ReLU, "
        "xavier_uniform_ for tanh), or take a network with batch norm (--model small_resnet, "
        "resnet18) or learned weights (--pretrained true). If the network cannot change, a longer "
        "--warmup and --clip-norm 1 soften large weights."
    )
    SPREAD_OF_NORMAL = 2 * 1.6449  # between its 5th and 95th percentile, in standard deviations

    def __init__(self, base_trial: Trial, action_str: str = "", **parameters):
        super().__init__(base_trial, action_str, **parameters)
        self._means: list[float] = []
        self._symptoms: list[tuple[str, float, str]] | None = None
        self._first = self._expected = None
        self._last = min(int(self.parameters["steps"]), len(self.tensors.train_steps()))

    def invoke_at_step(self, step: int) -> bool:
        if not self.tensors.trains(step) or len(self._means) >= self._last:
            return False
        losses = self.tensors.losses(step)
        if losses is None:
            return False
        if not self._means:
            self._begin(step)
        self._means.append(float(losses.mean()))
        patience = self.parameters["patience"]
        if len(self._means) < self._last or self._last <= patience or self._symptoms is None:
            return False
        self.checked = len(self._means)
        complaint = self._complaint(patience)
        if complaint is None:
            return False
        for name, value, said in self._symptoms:
            self._note(name, self._first, value, said)
        if self._symptoms:
            self._note("loss", self._first, self._means[0], complaint)
        return bool(self._symptoms)

    def _begin(self, step: int) -> None:
        self._first = step
        classes = self._classes(step)
        self._expected = math.log(classes) if classes else None
        variances = self._variances(step)
        spreads = self._spreads(step)
        if not variances and not spreads:
            return
        self._symptoms = []
        if len(variances) > 1:
            low, high = (f(variances, key=variances.get) for f in (min, max))
            ratio = variances[high] / max(variances[low], 1e-30)
            if not ratio <= self.parameters["threshold"]:
                said = (
                    f"the inputs of {high} have a variance of {variances[high]:.3g} and those of "
                    f"{low} one of {variances[low]:.3g}, {ratio:.3g} times less"
                )
                self._symptoms.append((low, ratio, said))
        if spreads:
            name = min(spreads, key=spreads.get)
            if spreads[name] < self.parameters["distribution_range"]:
                said = (
                    f"90% of the values of {name} lie within {spreads[name]:.2g} at the start, "
                    f"less than {self.parameters['distribution_range']:g}"
                )
                self._symptoms.append((name, spreads[name], said))

    def _variances(self, step: int) -> dict[str, float]:
        names = self.tensors.named(self.parameters["activation_inputs_regex"], step)
        names += self.tensors.collected("relu_input", step=step)
        found = {name: self.tensors.reduction(name, step, "variance") for name in set(names)}
        return {name: value for name, value in sorted(found.items()) if value is not None}

    def _spreads(self, step: int) -> dict[str, float]:
        found = {}
        for name in self.tensors.collected("gradients", step=step):
            values = self.tensors.values(name, step)
            if _is_bias(name):
                continue
            if values is not None:
                found[name] = float(np.subtract(*np.percentile(values, (95, 5))))
            else:
                deviation = self.tensors.reduction(name, step, "std")
                found[name] = self.SPREAD_OF_NORMAL * (deviation or 0.0)
        return found

    def _complaint(self, patience: int) -> str | None:
        """Return in a sentence how the loss suffers, or None where it does not."""
        first = self._means[0]
        if self._expected and not first <= 2 * self._expected:
            return (
                f"the loss began at {first:.3g}; a network that knows nothing has "
                f"{self._expected:.3g}"
            )
        before = np.mean(self._means[: len(self._means) - patience][:patience])
        after = np.mean(self._means[-patience:])
        if after < 0.99 * before:
            return None
        return (
            f"the loss averaged {before:.4g} at the beginning of the first {len(self._means)} "
            f"saved steps and {after:.4g} at their end"
        )


class LossNotDecreasing(DebuggerRule):
    """The training loss is no lower than at the start, or has risen and stays up.

    AWS, every `num_steps` steps: the loss is not `diff_percent` percent below the one `num_steps`
    steps before, or more than `increase_threshold_percent` above it. Single batches break that in
    every training, and every finished one ends on a plateau. So here a level is the mean of five
    saved steps, and the rule holds where, at the last two checks of the trial,

    - the level is not `diff_percent` below both the first one and ln(classes), the loss of
      answering at random (unless it is under half of that: a resumed training), or
    - the level is `increase_threshold_percent` above the lowest before, by more than that percent
      of the first one and by more than three standard errors.

    AWS reads all modes by default; here TRAIN, because Overfit and Overtraining read EVAL.
    """

    DEFAULTS: ClassVar = {
        "collection_names": None,
        "tensor_regex": None,
        "use_losses_collection": True,
        "num_steps": 10,
        "diff_percent": 0.1,
        "increase_threshold_percent": 5.0,
        "mode": "TRAIN",
    }
    NEEDS = f"losses of {2 * WINDOW} or more steps of training"
    QUIET = "The loss fell, and stayed down."
    MEANING = (
        "The steps of the optimiser do not lead downhill: they are too large, too small, or what "
        "they follow has nothing to do with the labels."
    )
    ADVICE = (
        "Change --lr first: a tenth where the loss jumps or has risen, ten times more where it "
        "hardly moves. Then --warmup 0.25 and --clip-norm 1 against a bad start. If no --lr "
        "helps, look at the labels."
    )

    def __init__(self, base_trial: Trial, action_str: str = "", **parameters):
        super().__init__(base_trial, action_str, **parameters)
        self._steps: list[int] = []
        self._means: list[float] = []
        self._chance: float | None = None
        self._last_check: int | None = None
        self._since: list[int] = []

    def invoke_at_step(self, step: int) -> bool:
        if self.trials[0].mode(step).name not in (self.parameters["mode"], "GLOBAL"):
            return False
        losses = self._losses(step)
        if losses is None:
            return False
        if self._chance is None and (classes := self._classes(step)):
            self._chance = math.log(classes)
        self._means.append(float(np.nan_to_num(losses.mean(), nan=math.inf, posinf=math.inf)))
        self._steps.append(step)
        if len(self._means) < 2 * WINDOW:
            return False
        self.checked = len(self._means)
        at = self.tensors.phase_step(step)
        if self._last_check is not None and at - self._last_check < self.parameters["num_steps"]:
            return bool(self.evidence)
        self._last_check = at
        return self._judge(step)

    def _losses(self, step: int) -> np.ndarray | None:
        by_name = self.parameters["collection_names"] or self.parameters["tensor_regex"]
        wanted = by_name or self.parameters["use_losses_collection"]
        return super()._losses(step) if wanted else None

    def _judge(self, step: int) -> bool:
        said = self._stuck() or self._risen()
        if said is None:
            self._since.clear()
            self.evidence.clear()
            return False
        self._since.append(step)
        if len(self._since) < 2:
            return False
        self._note("loss", self._since[0], self._level(-WINDOW), said)
        return True

    def _level(self, start: int) -> float:
        """Return the mean of the saved losses from an index on, over one window."""
        return float(np.mean(self._means[start:][:WINDOW]))

    def _error(self, start: int) -> float:
        values = self._means[start:][:WINDOW]
        return float(np.std(values, ddof=1) / math.sqrt(WINDOW)) if all(np.isfinite(values)) else 0

    def _stuck(self) -> str | None:
        now, first = self._level(-WINDOW), self._level(0)
        share = 1 - self.parameters["diff_percent"] / 100
        chance = self._chance or math.inf
        if now < share * min(first, chance) or (self._chance and now < chance / 2):
            return None
        random = f"; answering at random gives {self._chance:.3g}" if self._chance else ""
        return (
            f"the loss of {WINDOW} saved steps averaged {now:.3g}, against {first:.3g} for the "
            f"first ones{random}"
        )

    def _risen(self) -> str | None:
        now, first = self._level(-WINDOW), self._level(0)
        starts = range(0, len(self._means) - 2 * WINDOW + 1)
        best = min(starts, key=self._level)
        lowest = self._level(best)
        percent = self.parameters["increase_threshold_percent"]
        error = math.hypot(self._error(best), self._error(-WINDOW))
        if now - lowest <= max(percent / 100 * max(lowest, first), 3 * error):
            return None
        return (
            f"the loss of {WINDOW} saved steps averaged {now:.3g}, after {lowest:.3g} around step "
            f"{self.tensors.phase_step(self._steps[best])}"
        )


class _Evaluations(DebuggerRule):
    """Base of the rules that compare training with validation, one evaluation at a time.

    An evaluation is the steps of mode EVAL that follow each other; its loss is the mean over all
    pictures, and the training loss beside it that of the saved steps since the evaluation before.
    """

    NEEDS = "losses of both training and validation"

    def __init__(self, base_trial: Trial, action_str: str = "", **parameters):
        super().__init__(base_trial, action_str, **parameters)
        self._train: list[np.ndarray] = []
        self._valid: list[np.ndarray] = []
        steps = base_trial.steps()
        follows = itertools.zip_longest(steps, steps[1:])
        self._ends = {
            a for a, b in follows if b is None or b > a + 1 or not self.tensors.validates(b)
        }
        self._train_step: int | None = None
        self._train_loss: float | None = None
        self._unlearnt: float | None = None

    def invoke_at_step(self, step: int) -> bool:
        losses = self._losses(step)
        if losses is None or not (self.tensors.trains(step) or self.tensors.validates(step)):
            return False
        if self.tensors.trains(step):
            self._train.append(losses)
            self._train_step = step
            if self._unlearnt is None:
                classes = self._classes(step)
                self._unlearnt = math.log(classes) if classes else float(losses.mean())
            return False
        self._valid.append(losses)
        if step not in self._ends:
            return False
        if self._train:
            self._train_loss = float(np.concatenate(self._train).mean())
        valid = float(np.concatenate(self._valid).mean())
        self._train, self._valid = [], []
        if self._train_loss is None:
            return False
        self.checked += 1
        return self._compare(self._train_step, self._train_loss, valid)

    def _compare(self, step: int, train: float, valid: float) -> bool:
        raise NotImplementedError


class Overfit(_Evaluations):
    """(validation loss - training loss) / training loss > ratio_threshold.

    AWS: at more than `patience` evaluations from `start_step` on. Where the training loss nears
    zero that ratio is large for the best of models, so here the gap has to be `ratio_threshold`
    of ln(classes) as well, the loss of a network that has learnt nothing (of the first training
    loss, where the logits were not saved). And the verdict is that of the last evaluations: one
    that jumps under a high learning rate does not count.
    """

    DEFAULTS: ClassVar = {
        "tensor_regex": None,
        "start_step": 0,
        "patience": 1,
        "ratio_threshold": 0.1,
    }
    QUIET = "Pictures that the training did not see are answered about as well as those it saw."
    MEANING = (
        "The network knows the training pictures by heart, beyond what holds for others: more "
        "training makes the answers to new pictures worse or at least no better."
    )
    ADVICE = (
        "More pictures help most. Then --augment with changes that keep the label, --weight-decay "
        "(0.05), --dropout (0.3) in the head, --label-smoothing 0.1 or --mixup 0.2; fewer weights "
        "to train (--trainable head, a smaller --model); and --patience 5 to end in time."
    )

    def __init__(self, base_trial: Trial, action_str: str = "", **parameters):
        super().__init__(base_trial, action_str, **parameters)
        self._since: list[int] = []

    def _compare(self, step: int, train: float, valid: float) -> bool:
        p = self.parameters
        gap, ratio = valid - train, p["ratio_threshold"]
        wide = gap > ratio * train and gap > ratio * self._unlearnt
        if not wide or self.tensors.phase_step(step) < p["start_step"]:
            self._since.clear()
            self.evidence.clear()
            return False
        self._since.append(step)
        self.evidence.clear()
        if len(self._since) <= p["patience"]:
            return False
        self._note(
            "loss",
            self._since[0],
            gap,
            f"at the last of {self.checked} evaluations the validation loss was {valid:.3g} and "
            f"the training loss {train:.3g}; the gap has been this wide since step "
            f"{self.tensors.phase_step(self._since[0])}",
        )
        return True


class Overtraining(_Evaluations):
    """The validation loss has its optimum far behind and is worse by now.

    AWS: no new optimum, by at least `delta`, of the training loss for `patience_train` steps or
    of the validation loss for `patience_validation` steps. The end of every schedule that lets
    the learning rate fade is such a plateau, and harmless. So here the last three validation
    losses have to be `delta` above the optimum, which lies `patience_validation` evaluations
    back, or `patience_train` where the training loss found no new optimum since then either.
    """

    DEFAULTS: ClassVar = {"patience_train": 5, "patience_validation": 10, "delta": 0.01}
    QUIET = "The validation loss was not left to rise."
    MEANING = (
        "The epochs since the best one made the model worse on pictures it did not see. The model "
        "that is saved is that of the best validation accuracy, so what is lost is mainly time."
    )
    ADVICE = (
        "End earlier: --patience 5 stops after five epochs without a better validation accuracy; "
        "or set --epochs to the best epoch and let --schedule cosine end there. What keeps a "
        "training useful for longer is --augment, --weight-decay and --mixup."
    )

    def __init__(self, base_trial: Trial, action_str: str = "", **parameters):
        super().__init__(base_trial, action_str, **parameters)
        self._best = {"training": math.inf, "validation": math.inf}
        self._since = {"training": 0, "validation": 0}
        self._best_step = 0
        self._recent: deque = deque(maxlen=PERSISTENCE)

    def _compare(self, step: int, train: float, valid: float) -> bool:
        p = self.parameters
        for phase, loss in (("training", train), ("validation", valid)):
            self._since[phase] += 1
            if loss < self._best[phase] - p["delta"]:
                self._best[phase], self._since[phase] = loss, 0
                self._best_step = step if phase == "validation" else self._best_step
        since = self._since["validation"]
        idle = min(since, self._since["training"]) >= p["patience_train"]
        self._recent.append(valid)
        worse = min(self._recent) > self._best["validation"] + p["delta"]
        self.evidence.clear()
        if not worse or not (since >= p["patience_validation"] or idle):
            return False
        at = self.tensors.phase_step(self._best_step)
        self._note(
            "loss",
            self._best_step,
            valid - self._best["validation"],
            f"the validation loss was {self._best['validation']:.3g} around step {at} and is "
            f"{valid:.3g} {since} evaluations later, with none better in between",
        )
        return True


class ClassImbalance(DebuggerRule):
    """The largest class counts more than `threshold_imbalance` times the smallest.

    AWS counts labels from `samples` of them on, and fires too where more than
    `threshold_misprediction` of an underrepresented class are wrong. Here labels and answers are
    by default the inputs of the cross-entropy, of which the largest is the answer (`argmax`); at
    least 50 labels a class have to be seen, so that chance does not look like imbalance; and a
    label counts with the weight that the loss gives it, so that a loss with class weights is
    balanced, as is a sampler. That weight is the saved loss of a picture over
    logsumexp(z) - z[label], its cross-entropy, in the median over those of a class that are far
    from right. Mispredictions are those of the last validation, or of the last `samples` pictures
    of training, for classes with less than half the pictures of the largest.
    """

    DEFAULTS: ClassVar = {
        "threshold_imbalance": 10.0,
        "threshold_misprediction": 0.7,
        "samples": 500,
        "argmax": True,
        "labels_regex": [".*labels", LABELS],
        "predictions_regex": [".*predictions", LOGITS],
    }
    NEEDS = "labels of enough pictures (`samples`, and 50 a class)"
    QUIET = "No class weighs more than {threshold_imbalance:g} times another in the loss."
    MEANING = (
        "The loss is dominated by the frequent classes: the network gains most by naming them, "
        "and rare classes are answered worse than the accuracy suggests."
    )
    ADVICE = (
        "--balance sampler draws every class equally often, --balance weights makes rare pictures "
        "count more; expect a higher recall of rare classes and a slightly lower overall "
        "accuracy. Compare the recall of each class, not the accuracy."
    )

    def __init__(self, base_trial: Trial, action_str: str = "", **parameters):
        super().__init__(base_trial, action_str, **parameters)
        self._labels: list[np.ndarray] = []
        self._weights: list[np.ndarray] = []
        self._train_answers: deque = deque()
        self._valid_answers: list[tuple[np.ndarray, np.ndarray]] = []
        self._last_valid = -1

    def invoke_at_step(self, step: int) -> bool:
        labels = self.tensors.first(self.parameters["labels_regex"], step)
        if labels is None:
            return False
        labels = (labels.argmax(1) if labels.ndim == 2 else labels).astype(np.int64)
        logits = self.tensors.first(self.parameters["predictions_regex"], step)
        trains = self.tensors.trains(step)
        if not (trains or self.tensors.validates(step)):
            return False
        if logits is not None:
            self._keep_answers(step, labels, logits)
        if trains:
            self._labels.append(labels)
            self._weights.append(self._weigh(step, labels, logits))
        counts = self._counts(logits)
        if counts is None:
            return bool(self.evidence)
        self.checked += trains
        self.evidence.clear()
        self._check_counts(step, counts)
        self._check_answers(step, counts)
        return bool(self.evidence)

    def _keep_answers(self, step: int, labels: np.ndarray, logits: np.ndarray) -> None:
        """Keep the answers of the last validation, and of the last pictures of training."""
        answers = logits.argmax(1) if self.parameters["argmax"] and logits.ndim == 2 else logits
        found = labels, answers.reshape(-1)
        if self.tensors.trains(step):
            self._train_answers.append(found)
            while sum(len(each) for each, _ in self._train_answers) > self.parameters["samples"]:
                self._train_answers.popleft()
        else:
            if step > self._last_valid + 1:
                self._valid_answers.clear()
            self._valid_answers.append(found)
            self._last_valid = step

    def _weigh(self, step: int, labels: np.ndarray, logits: np.ndarray | None) -> np.ndarray:
        """Return the weight of each picture in the loss, NaN where it cannot be told."""
        unknown = np.full(len(labels), np.nan)
        losses = self.tensors.losses(step)
        if logits is None or logits.ndim != 2 or losses is None or len(losses) != len(labels):
            return unknown
        logits = logits.astype(np.float64)
        top = logits.max(1)
        total = top + np.log(np.exp(logits - top[:, None]).sum(1))
        plain = total - logits[np.arange(len(labels)), labels]
        far = plain > 0.5 * math.log(logits.shape[1])
        return np.divide(losses, plain, out=unknown, where=far)

    def _counts(self, logits: np.ndarray | None) -> np.ndarray | None:
        """Return by class how much its labels count; None before there are enough of them."""
        seen = sum(map(len, self._labels))
        if seen < self.parameters["samples"]:
            return None
        labels, weights = np.concatenate(self._labels), np.concatenate(self._weights)
        classes = logits.shape[1] if logits is not None and logits.ndim == 2 else 0
        counts = np.bincount(labels, minlength=classes).astype(np.float64)
        if seen < 50 * len(counts):
            return None
        for number in range(len(counts)):
            known = weights[(labels == number) & np.isfinite(weights)]
            counts[number] *= np.median(known) if known.size else 1.0
        return counts

    def _check_counts(self, step: int, counts: np.ndarray) -> None:
        small, large = int(counts.argmin()), int(counts.argmax())
        ratio = counts[large] / counts[small] if counts[small] else math.inf
        if ratio > self.parameters["threshold_imbalance"]:
            self._note(
                "labels",
                step,
                float(ratio),
                f"class {large} counts {counts[large]:.0f} and class {small} {counts[small]:.0f} "
                f"in the loss of the saved steps, a ratio of {ratio:.3g}",
            )

    def _check_answers(self, step: int, counts: np.ndarray) -> None:
        kept = self._valid_answers or self._train_answers
        if not kept:
            return
        labels, answers = map(np.concatenate, zip(*kept))
        for number in np.flatnonzero(counts < counts.max() / 2):
            mine = labels == number
            if mine.sum() < 5:
                continue
            wrong = float((answers[mine] != number).mean())
            if wrong > self.parameters["threshold_misprediction"]:
                self._note(
                    f"class {number}",
                    step,
                    wrong,
                    f"{wrong:.0%} of the {mine.sum()} pictures of the rare class {number} are "
                    "answered wrong",
                )


class WeightUpdateRatio(DebuggerRule):
    """|w_t - w_s| / (|w_s| + epsilon), in the 2-norm, is above or below its thresholds.

    s is the saved step before t, and `num_steps` before it or later where that is given. AWS does
    not say which norm; Karpathy's notes for CS231n ("Babysitting the learning process") take this
    one and call 0.001 a healthy value. Here only neighbouring steps are compared by default, as
    far as a trial has any; a weight of zero has no ratio; frozen weights (without a gradient) and
    steps whose learning rate is under 1% of its peak may stand still; and a ratio that is too
    small has to stay so three times. Read from the hook's samples of up to 1024 values.
    """

    DEFAULTS: ClassVar = {
        "num_steps": None,
        "large_threshold": 10.0,
        "small_threshold": 1e-8,
        "epsilon": 1e-9,
    }
    NEEDS = "weights at two steps"
    QUIET = "The weights moved from step to step, none by more than {large_threshold:g} of itself."
    MEANING = (
        "A step that changes a weight by many times its size throws away what was learnt; one "
        "below the precision of float32 changes nothing at all."
    )
    ADVICE = (
        "Where the ratio is too large, lower --lr (by the factor that brings it to 0.001), add "
        "--warmup or --clip-norm 1. Where it is too small, raise --lr."
    )

    def __init__(self, base_trial: Trial, action_str: str = "", **parameters):
        super().__init__(base_trial, action_str, **parameters)
        steps = self.tensors.train_steps()
        self._pairs = self._choose_pairs({self.tensors.phase_step(s): s for s in steps})

    def _choose_pairs(self, steps: dict[int, int]) -> dict[int, int]:
        """Return by global step the one that it is compared with, from {training: global}."""
        numbers, span = list(steps), self.parameters["num_steps"]
        if span:
            before = {b: [a for a in numbers if b - span <= a < b] for b in numbers}
            return {steps[b]: steps[found[0]] for b, found in before.items() if found}
        pairs = list(itertools.pairwise(numbers))
        neighbours = [(a, b) for a, b in pairs if b == a + 1]
        return {steps[b]: steps[a] for a, b in neighbours or pairs}

    def invoke_at_step(self, step: int) -> bool:
        before = self._pairs.get(step)
        if before is None:
            return False
        names = [n for n in self._chosen(step, "weights") if self.tensors.learns(n)]
        idle, held, compared = self._is_idle(before), False, False
        for name in names:
            ratio = self._ratio(name, before, step)
            if ratio is None:
                continue
            compared = True
            small = ratio < self.parameters["small_threshold"] and not idle
            if self._persists(name, small) or ratio > self.parameters["large_threshold"]:
                held = True
                a, b = map(self.tensors.phase_step, (before, step))
                said = f"from step {a} to {b} {name} changed by {ratio:.3g} of its size"
                self._note(name, step, ratio, said)
        self.checked += compared
        return held

    def _ratio(self, name: str, before: int, step: int) -> float | None:
        old, new = self.tensors.values(name, before), self.tensors.values(name, step)
        if old is None or new is None or not np.any(old):
            return None
        old, new = old.astype(np.float64), new.astype(np.float64)
        change = np.linalg.norm((new - old).reshape(-1))
        return float(change / (np.linalg.norm(old.reshape(-1)) + self.parameters["epsilon"]))


class UnchangedTensor(DebuggerRule):
    """numpy.allclose(x_t, x_s, rtol, atol, equal_nan) over the last `num_steps` saved steps.

    AWS wants the tensors chosen; here they are the weights that have a gradient: one without was
    frozen on purpose (--trainable). Steps whose learning rate is under 1% of its peak, at the
    start of a warm-up and the end of a schedule, may leave them as they are, and a tensor that
    moves again later is no finding. Read from the hook's samples of up to 1024 values.
    """

    DEFAULTS: ClassVar = {
        "collection_names": None,
        "tensor_regex": None,
        "num_steps": 3,
        "rtol": 1e-5,
        "atol": 1e-8,
        "equal_nan": False,
    }
    NEEDS = "weights at enough steps (`num_steps`)"
    QUIET = "Every weight that has a gradient changed in the course of training."
    MEANING = (
        "These tensors do not take part in the training although they have gradients: the "
        "optimiser does not know them, or its steps are too small to change a float32."
    )
    ADVICE = (
        "Raise --lr if it is (nearly) zero. In a network of your own, hand all of "
        "network.parameters() to the optimiser, also those of layers that are added later."
    )

    def __init__(self, base_trial: Trial, action_str: str = "", **parameters):
        super().__init__(base_trial, action_str, **parameters)
        self._recent: dict[str, deque] = {}

    def invoke_at_step(self, step: int) -> bool:
        if not self.tensors.trains(step):
            return False
        count, held, compared = int(self.parameters["num_steps"]), False, False
        for name in self._chosen(step, "weights"):
            values = self.tensors.values(name, step)
            if values is None or not self.tensors.learns(name):
                continue
            recent = self._recent.setdefault(name, deque(maxlen=count))
            recent.append((step, values))
            if len(recent) < count:
                continue
            compared = True
            if not self._unchanged(recent):
                self.evidence.pop(name, None)
            elif not any(self._is_idle(s) for s, _ in list(recent)[:-1]):
                held = True
                first, last = (self.tensors.phase_step(recent[i][0]) for i in (0, -1))
                self._note(
                    name,
                    recent[0][0],
                    0.0,
                    f"{name} is the same at {count} saved steps from {first} to {last}",
                )
        self.checked += compared
        return held

    def _unchanged(self, recent: deque) -> bool:
        p = self.parameters
        first = recent[0][1]
        return all(
            np.allclose(first, each, p["rtol"], p["atol"], p["equal_nan"]) for _, each in recent
        )


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

    `parameters` are by rule: check(folder, Overfit={"patience": 2}). Raises ExpectedError where
    there are no tensors, and for a rule or a parameter that does not exist.
    """
    names = list(RULES) if rules is None else list(rules)
    unknown = sorted({*names, *parameters} - set(RULES))
    if unknown:
        raise ExpectedError(f"there is no rule {unknown[0]!r}: there are {', '.join(RULES)}")
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
