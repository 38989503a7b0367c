"""How far a confidence can be trusted: temperature, calibration error, when to give no answer."""

import math

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch.nn import functional as F

CALIBRATION_BINS = 15
TEMPERATURES = (0.1, 10.0)  # Searched from here to there.


def fit_temperature(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the temperature of least cross-entropy for logits (N, classes), labels (N).

    Searched over TEMPERATURES, in steps of 1%: the curve has one minimum and is flat around it,
    and the limits keep a perfect validation score from asking for temperature zero.
    """
    candidates = 10 ** torch.linspace(*map(math.log10, TEMPERATURES), 463)
    losses = torch.stack([F.cross_entropy(logits / t, labels) for t in candidates])
    return candidates[losses.argmin()].item()


def choose_threshold(
    probabilities: ArrayLike, labels: ArrayLike, precision: float
) -> tuple[float, float, float]:
    """Return (threshold, coverage, precision) of the lowest threshold that is precise enough.

    Of the pictures with a confidence of at least `threshold`, which are the share `coverage` of
    all, the share `precision` is right. Probabilities (N, classes), labels (N), N > 0. Where no
    threshold reaches the wanted precision, the most precise one is returned: compare.
    """
    confidence, correct = confidences(probabilities, labels)
    order = np.argsort(-confidence, kind="stable")
    ranked = confidence[order]
    precisions = np.cumsum(correct[order]) / np.arange(1, len(order) + 1)
    # Equal confidences stand or fall together: only the last of them is a possible end.
    ends = np.flatnonzero(np.append(ranked[:-1] > ranked[1:], True))
    enough = ends[precisions[ends] >= min(precision, precisions[ends].max())]
    last = enough[-1]
    # Half-way to the next confidence: at the last one itself, a rounding error could refuse it.
    threshold = 0.0 if last == len(order) - 1 else float(ranked[last : last + 2].mean())
    return threshold, float((last + 1) / len(order)), float(precisions[last])


def confidences(probabilities: ArrayLike, labels: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Return the confidence (N) of each most likely class and whether it is right (N), bool."""
    rows = np.asarray(probabilities)
    return rows.max(axis=1), rows.argmax(axis=1) == np.asarray(labels)


def reliability_bins(confidence: np.ndarray, correct: np.ndarray) -> list[dict[str, float]]:
    """Sort answers into CALIBRATION_BINS bins of equal width by their confidence.

    Each bin that is not empty has low, high, count, and the mean confidence and accuracy in it.
    """
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    return [
        {
            "low": float(i / CALIBRATION_BINS),
            "high": float((i + 1) / CALIBRATION_BINS),
            "count": int((bins == i).sum()),
            "confidence": float(confidence[bins == i].mean()),
            "accuracy": float(correct[bins == i].mean()),
        }
        for i in np.unique(bins)
    ]


def expected_calibration_error(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Return the mean gap of confidence and accuracy over the bins (Guo et al. 2017, equation 3).

    arXiv:1706.04599; confidence (N) and correct (N), bool.
    """
    bins = reliability_bins(confidence, correct)
    gaps = (abs(each["accuracy"] - each["confidence"]) * each["count"] for each in bins)
    return float(sum(gaps) / len(confidence))
