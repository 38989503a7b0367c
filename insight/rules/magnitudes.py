"""The debugger's rules on the size of values: those that vanish, explode or are zero."""

import math
from typing import ClassVar

import numpy as np
from smdebug.trials.trial import Trial

from insight.rules.base import PERSISTENCE, DebuggerRule
from insight.tensors import ACTIVITY


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
        names = self._chosen(step, "gradients")
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
                    f"The mean size of {name} was {size:.2g} at step "
                    f"{self.tensors.phase_step(step)}, below {threshold:g}.",
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
    QUIET = "No value that was checked is NaN or infinite."
    MEANING = (
        "Values grew until float32 could not hold them. From there on every weight they touch "
        "becomes NaN, and the training learns nothing more."
    )
    ADVICE = (
        "Lower --lr, to a tenth at first; bound the steps with --clip-norm 1; let the learning "
        "rate rise over more of the training (--warmup 0.25). With --precision float16, try "
        "bfloat16, which has float32's range."
    )

    def __init__(self, base_trial: Trial, action_str: str = "", **parameters):
        super().__init__(base_trial, action_str, **parameters)
        if self.parameters["only_nan"]:
            self.QUIET = "No value that was checked is NaN."

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
                f"A value of {name} is {'NaN' if math.isnan(size) else 'infinite'} at step "
                f"{self.tensors.phase_step(step)}{phase}.",
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
    QUIET = (
        "No tensor that was checked had {threshold:g}% zeros or more at three saved steps in a "
        "row while there was a loss."
    )
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
                    f"In {name}, {share:.0f}% of the values were zero up to step "
                    f"{self.tensors.phase_step(step)}, for {PERSISTENCE} saved steps.",
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
    to be dead at three saved steps in a row, as one batch may just not have what it looks for,
    and at the end of the trial: in front of a batch norm units can come back.
    """

    DEFAULTS: ClassVar = {
        "tensor_regex": [".*relu_output"],
        "threshold_inactivity": 1.0,
        "threshold_layer": 50.0,
    }
    NEEDS = "outputs of ReLUs"
    QUIET = (
        "In no ReLU layer more than {threshold_layer:g}% of the units ended with less than "
        "{threshold_inactivity:g}% of their outputs above zero."
    )
    MEANING = (
        "These units give zero for practically every picture. A ReLU that gives zero has no "
        "gradient either, so they hardly come back and the network is smaller than it looks."
    )
    ADVICE = (
        "Lower --lr (one step too large pushes units below zero for ever) or bound the steps with "
        "--clip-norm 1 and a longer --warmup; begin with biases at zero, not below; where the "
        "units are in --head-hidden, fewer of them do as well."
    )

    def invoke_at_step(self, step: int) -> bool:
        if not self.tensors.trains(step):
            return False
        held = False
        layers = self._activity(step)
        self.checked += bool(layers)
        inactivity = self.parameters["threshold_inactivity"]
        for name, activity in layers.items():
            recent = self._last_values(name, activity, PERSISTENCE)
            if recent is None:
                continue
            dead = np.max(recent, axis=0) < inactivity
            percent = float(dead.mean() * 100)
            if not percent > self.parameters["threshold_layer"]:
                self.evidence.pop(name, None)
            else:
                held = True
                self._note(
                    name,
                    step,
                    percent,
                    f"In {name}, {dead.sum()} of {dead.size} units ({percent:.0f}%) were "
                    f"active for less than {inactivity:g}% of their inputs up to step "
                    f"{self.tensors.phase_step(step)}.",
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
