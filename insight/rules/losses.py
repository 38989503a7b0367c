"""The debugger's rules on the losses of training and validation."""

import math
from collections import deque
from typing import ClassVar

import numpy as np
from smdebug.trials.trial import Trial

from insight.rules.base import PERSISTENCE, DebuggerRule

# Saved losses that make one level: the loss of a single batch says little.
WINDOW = 5


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
    QUIET = (
        "The loss fell by {diff_percent:g}% or more, or was low from the start, and no rise since "
        "is beyond {increase_threshold_percent:g}% and chance."
    )
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
            f"The loss of {WINDOW} saved steps averaged {now:.3g}, against {first:.3g} for the "
            f"first ones{random}."
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
            f"The loss of {WINDOW} saved steps averaged {now:.3g}, after {lowest:.3g} around step "
            f"{self.tensors.phase_step(self._steps[best])}."
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
        self._ends = self._evaluation_ends()
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
    QUIET = (
        "From step {start_step} on, the validation loss did not stay above the training loss by "
        "both {ratio_threshold:g} times that loss and {ratio_threshold:g} times that of guessing."
    )
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
            f"At the last of {self.checked} evaluations the validation loss was {valid:.3g} and "
            f"the training loss {train:.3g}; the gap has been this wide since step "
            f"{self.tensors.phase_step(self._since[0])}.",
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
    QUIET = (
        "The validation loss did not end {delta:g} above an optimum {patience_validation} "
        "evaluations back, or {patience_train} back without a gain in the training loss either."
    )
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
        self._valid_losses: deque = deque(maxlen=PERSISTENCE)

    def _compare(self, step: int, train: float, valid: float) -> bool:
        p = self.parameters
        for phase, loss in (("training", train), ("validation", valid)):
            self._since[phase] += 1
            if loss < self._best[phase] - p["delta"]:
                self._best[phase], self._since[phase] = loss, 0
                self._best_step = step if phase == "validation" else self._best_step
        since = self._since["validation"]
        idle = min(since, self._since["training"]) >= p["patience_train"]
        self._valid_losses.append(valid)
        worse = min(self._valid_losses) > self._best["validation"] + p["delta"]
        self.evidence.clear()
        if not worse or not (since >= p["patience_validation"] or idle):
            return False
        at = self.tensors.phase_step(self._best_step)
        self._note(
            "loss",
            self._best_step,
            valid - self._best["validation"],
            f"The validation loss was {self._best['validation']:.3g} around step {at} and is "
            f"{valid:.3g} {since} evaluations later, with none better in between.",
        )
        return True
