"""The debugger's rules on how weights begin and how they move."""

import itertools
import math
from collections import deque
from typing import ClassVar

import numpy as np
from smdebug.trials.trial import Trial

from insight.rules.base import DebuggerRule


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
    distribution; a gradient of a single value has no spread.
    """

    DEFAULTS: ClassVar = {
        "activation_inputs_regex": [".*relu_input"],
        "threshold": 10.0,
        "distribution_range": 0.001,
        "patience": 5,
        "steps": 10,
    }
    NEEDS = "losses of enough training steps together with inputs of ReLUs or gradients"
    QUIET = (
        "In the first {steps} saved steps the loss falls, or no variances are more than "
        "{threshold:g} times apart and no gradient lies within {distribution_range:g}."
    )
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
                    f"The inputs of {high} have a variance of {variances[high]:.3g} and those of "
                    f"{low} one of {variances[low]:.3g}, {ratio:.3g} times less."
                )
                self._symptoms.append((low, ratio, said))
        if spreads:
            name = min(spreads, key=spreads.get)
            if spreads[name] < self.parameters["distribution_range"]:
                said = (
                    f"In {name}, 90% of the values lie within {spreads[name]:.2g} at the start, "
                    f"less than {self.parameters['distribution_range']:g}."
                )
                self._symptoms.append((name, spreads[name], said))

    def _variances(self, step: int) -> dict[str, float]:
        names = self.tensors.named(self.parameters["activation_inputs_regex"], step)
        names += self.tensors.collected("relu_input", step=step)
        found = {name: self.tensors.reduction(name, step, "variance") for name in set(names)}
        return {name: value for name, value in sorted(found.items()) if value is not None}

    def _spreads(self, step: int) -> dict[str, float]:
        found = {}
        for name in self._chosen(step, "gradients"):
            values = self.tensors.values(name, step)
            if values is None:
                deviation = self.tensors.reduction(name, step, "std")
                spread = None if deviation is None else self.SPREAD_OF_NORMAL * deviation
            elif values.size > 1:
                spread = float(np.subtract(*np.percentile(values, (95, 5))))
            else:
                spread = None
            # PyTorch's standard deviation of one value is NaN.
            if spread is not None and not math.isnan(spread):
                found[name] = spread
        return found

    def _complaint(self, patience: int) -> str | None:
        """Return in a sentence how the loss suffers, or None where it does not."""
        first = self._means[0]
        if self._expected and not first <= 2 * self._expected:
            return (
                f"The loss began at {first:.3g}; a network that knows nothing has "
                f"{self._expected:.3g}."
            )
        before = np.mean(self._means[: len(self._means) - patience][:patience])
        after = np.mean(self._means[-patience:])
        if after < 0.99 * before:
            return None
        return (
            f"The loss averaged {before:.4g} at the beginning of the first {len(self._means)} "
            f"saved steps and {after:.4g} at their end."
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
    QUIET = (
        "Between the steps compared no weight changed by more than {large_threshold:g} of its "
        "size, and none stayed below {small_threshold:g} while the learning rate would move it."
    )
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
                said = f"From step {a} to {b}, {name} changed by {ratio:.3g} times its size."
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
    QUIET = (
        "No tensor that was checked stands still over {num_steps} saved steps while the learning "
        "rate would move it."
    )
    MEANING = (
        "These tensors do not take part in the training although they have gradients: the "
        "optimiser does not know them, or its steps are too small to change a float32."
    )
    ADVICE = (
        "Raise --lr if it is (nearly) zero. In a network of your own, hand all of "
        "network.parameters() to the optimiser, also those of layers that are added later."
    )

    def invoke_at_step(self, step: int) -> bool:
        if not self.tensors.trains(step):
            return False
        count, held, compared = int(self.parameters["num_steps"]), False, False
        for name in self._chosen(step, "weights"):
            values = self.tensors.values(name, step)
            if values is None or not self.tensors.learns(name):
                continue
            recent = self._last_values(name, (step, values), count)
            if recent is None:
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
                    f"At {count} saved steps from {first} to {last}, {name} is the same.",
                )
        self.checked += compared
        return held

    def _unchanged(self, recent: deque) -> bool:
        p = self.parameters
        first = recent[0][1]
        return all(
            np.allclose(first, each, p["rtol"], p["atol"], p["equal_nan"]) for _, each in recent
        )
