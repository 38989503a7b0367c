"""The errors of counts: classes whose names are whole numbers. Needs nothing but NumPy."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def are_counts(class_names: Sequence[str]) -> bool:
    """Return whether the names of all classes are whole numbers."""
    return all(name.isascii() and name.isdigit() for name in class_names)


def counting(
    labels: np.ndarray, probabilities: np.ndarray, class_names: Sequence[str]
) -> dict[str, Any] | None:
    """Return errors of counts, or None where a class name is not a whole number.

    `most_likely` is the count of highest probability, `expected` the mean count, the sum of
    probability times count, which errs least in the square. `within_one` is the share that is at
    most one off; the expected count is rounded for it.
    """
    if not are_counts(class_names):
        return None
    # Floats: the differences of article numbers, squared, pass every integer.
    counts = np.array([float(name) for name in class_names])
    true, likely, expected = counts[labels], counts[probabilities.argmax(1)], probabilities @ counts
    return {
        "most_likely": _errors(likely - true, likely - true),
        "expected": _errors(expected - true, np.rint(expected) - true),
    }


def _errors(errors: np.ndarray, whole: np.ndarray) -> dict[str, float]:
    return {
        "rmse": float(np.sqrt(np.mean(errors**2))),
        "mean_absolute_error": float(np.abs(errors).mean()),
        "within_one": float((np.abs(whole) <= 1).mean()),
    }
