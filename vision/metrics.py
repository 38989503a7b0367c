"""The numbers of an evaluation, from labels (N) and class probabilities (N, classes)."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix, log_loss, precision_recall_fscore_support

from vision.calibration import confidences, expected_calibration_error, reliability_bins

MAX_TOP_K = 5


def share(successes: int, trials: int) -> dict[str, Any]:
    """Return an accuracy with its 95% interval (Wilson 1927)."""
    interval = binomtest(int(successes), int(trials)).proportion_ci(method="wilson")
    return {
        "accuracy": float(successes / trials),
        "accuracy_interval_95": [float(interval.low), float(interval.high)],
    }


def classification(
    labels: np.ndarray, probabilities: np.ndarray, class_names: Sequence[str]
) -> dict[str, Any]:
    """Return accuracy, balanced accuracy, log loss, top-k, every class, the confusion matrix.

    Balanced accuracy is the mean recall of the classes that occur. `top_k` tells, for k = 1, 2 …,
    the share whose true class is among the k most likely; one class of all is always left out.
    """
    numbers = list(range(len(class_names)))
    predicted = probabilities.argmax(1)
    scores = precision_recall_fscore_support(labels, predicted, labels=numbers, zero_division=0.0)
    recall, support = scores[1], scores[3]
    # Equal probabilities rank as argmax ranks them, so that top-1 is the accuracy.
    ranks = np.argsort(-probabilities, axis=1, kind="stable") == labels[:, None]
    top_k = range(1, max(1, min(MAX_TOP_K, len(class_names) - 1)) + 1)
    return {
        **share((predicted == labels).sum(), len(labels)),
        "balanced_accuracy": float(recall[support > 0].mean()),
        "top_k": {str(k): float(ranks[:, :k].any(1).mean()) for k in top_k},
        "log_loss": float(log_loss(labels, probabilities, labels=numbers)),
        "classes": {
            name: {
                "precision": float(precision),
                "recall": float(recall),
                "f1": float(f1),
                "support": int(support),
            }
            for name, precision, recall, f1, support in zip(class_names, *scores, strict=True)
        },
        "confusion_matrix": {
            "class_names": list(class_names),
            "rows": "true",
            "columns": "predicted",
            "counts": confusion_matrix(labels, predicted, labels=numbers).tolist(),
        },
    }


def calibration(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, Any]:
    """Return the expected calibration error and the bins that it is the mean gap of."""
    confidence, correct = confidences(probabilities, labels)
    return {
        "ece": expected_calibration_error(confidence, correct),
        "bins": reliability_bins(confidence, correct),
    }


def abstention(labels: np.ndarray, probabilities: np.ndarray, threshold: float) -> dict[str, Any]:
    """Return how many pictures get an answer at a threshold, and how precise the answers are.

    `precision` and its interval are None where no picture gets one.
    """
    confidence, correct = confidences(probabilities, labels)
    answered = confidence >= threshold
    count = int(answered.sum())
    precise = share(correct[answered].sum(), count) if count else {}
    return {
        "threshold": threshold,
        "answered": count,
        "coverage": count / len(labels),
        "precision": precise.get("accuracy"),
        "precision_interval_95": precise.get("accuracy_interval_95"),
    }


def mcnemar(correct: np.ndarray, other: np.ndarray) -> dict[str, Any]:
    """Compare two models on the same pictures by McNemar's exact test (1947).

    `correct` and `other` (N), bool, say which pictures each has right. Under equal accuracy the
    pictures that only one has right are its with probability ½; `p_value` is two-sided.
    """
    only_this = int((correct & ~other).sum())
    only_other = int((~correct & other).sum())
    discordant = only_this + only_other
    return {
        "only_this_right": only_this,
        "only_other_right": only_other,
        "both_right": int((correct & other).sum()),
        "both_wrong": int((~correct & ~other).sum()),
        "p_value": float(binomtest(only_this, discordant).pvalue) if discordant else 1.0,
    }


def label_suspects(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return the indices of labels that are likely wrong, the likeliest first.

    Confident learning (Northcutt et al. 2021, arXiv:1911.00068) for probabilities of pictures
    that the model was not trained on.
    """
    # Takes seconds to import, which the endpoint and the training never need.
    from cleanlab.filter import find_label_issues

    if labels.min() == labels.max():
        return np.array([], dtype=int)
    with warnings.catch_warnings():
        # One warning a class of few pictures: a small test set is the caller's to know.
        warnings.simplefilter("ignore", UserWarning)
        return find_label_issues(
            labels, probabilities, return_indices_ranked_by="self_confidence", n_jobs=1
        )
