"""The debugger's rule on the classes: how often each is seen, and how well it is answered."""

import dataclasses
import math
from collections import deque
from typing import ClassVar

import numpy as np
from smdebug.trials.trial import Trial

from insight.rules.base import LOGITS, DebuggerRule

LABELS = "CrossEntropyLoss_input_1"


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
    of training where there was none yet, for classes that count less than half as much as the
    largest and have five pictures or more there.
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
        # Pairs of label and answer.
        self._train_answers: deque = deque(maxlen=int(self.parameters["samples"]))
        self._valid_answers: list[tuple] = []
        self._last_valid = -1
        self._ends = self._evaluation_ends()

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
        elif step not in self._ends:
            return bool(self.evidence)
        counts = self._counts(logits)
        if counts is None:
            return bool(self.evidence)
        self.checked += trains
        before, self.evidence = self.evidence, {}
        self._check_counts(step, counts)
        self._check_answers(step, counts)
        for name in before.keys() & self.evidence.keys():
            # What still holds has held since then.
            since = before[name].step
            self.evidence[name] = dataclasses.replace(self.evidence[name], step=since)
        return bool(self.evidence)

    def _keep_answers(self, step: int, labels: np.ndarray, logits: np.ndarray) -> None:
        """Keep the answers of the last validation, and of the last pictures of training."""
        answers = logits.argmax(1) if self.parameters["argmax"] and logits.ndim == 2 else logits
        found = zip(labels, answers.reshape(-1), strict=True)
        if self.tensors.trains(step):
            self._train_answers.extend(found)
        else:
            if step > self._last_valid + 1:
                self._valid_answers.clear()
            self._valid_answers.extend(found)
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
                f"Class {large} counts {counts[large]:.0f} and class {small} {counts[small]:.0f} "
                f"in the loss of the saved steps, a ratio of {ratio:.3g}.",
            )

    def _check_answers(self, step: int, counts: np.ndarray) -> None:
        kept = self._valid_answers or self._train_answers
        if not kept:
            return
        labels, answers = np.array(kept).T
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
                    f"Of the {mine.sum()} pictures of the rare class {number}, {wrong:.0%} are "
                    "answered wrong.",
                )
