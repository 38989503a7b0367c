"""The figures of the evaluation, and the style that all figures share."""

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.figure import Figure

STYLE = Path(__file__).with_name("house.mplstyle")
# Beyond so many classes the numbers in the cells of a confusion matrix no longer fit.
MAX_CLASSES_WITH_NUMBERS = 20


def house_style() -> AbstractContextManager:
    """Return a context manager in which matplotlib draws in the project's style."""
    return matplotlib.style.context(STYLE)


def _plain(text: str) -> str:
    """Keep matplotlib from reading what stands between two dollar signs as a formula."""
    return text.replace("$", r"\$")


def confusion_matrix(counts: Sequence[Sequence[int]], class_names: Sequence[str]) -> Figure:
    """Draw counts (classes, classes), rows true and columns predicted, as shares of each row."""
    matrix = np.asarray(counts)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = min(12.0, 3.0 + 0.5 * len(class_names))
    with house_style():
        figure = Figure(figsize=(side + 0.8, side))
        axes = figure.subplots()
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        figure.colorbar(image, label="share of the true class", shrink=0.8)
        ticks, names = range(len(class_names)), [_plain(name) for name in class_names]
        axes.set_xticks(ticks, names, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(ticks, names)
        axes.set(xlabel="predicted", ylabel="true", title=f"Confusion of {matrix.sum()} pictures")
        axes.grid(False)
        if len(class_names) <= MAX_CLASSES_WITH_NUMBERS:
            _write_counts(axes, matrix, shares)
    return figure


def _write_counts(axes, matrix: np.ndarray, shares: np.ndarray) -> None:
    for (row, column), count in np.ndenumerate(matrix):
        if count:
            color = "white" if shares[row, column] > 0.5 else "#222222"
            axes.text(column, row, str(count), ha="center", va="center", fontsize=8, color=color)


def per_class(scores: Mapping[str, Mapping[str, float]]) -> Figure:
    """Draw precision and recall of each class as dots, the worst F1 on top."""
    names = sorted(scores, key=lambda name: scores[name]["f1"], reverse=True)
    rows = range(len(names))
    with house_style():
        figure = Figure(figsize=(7, 1.6 + 0.28 * len(names)))
        axes = figure.subplots()
        precision = [scores[name]["precision"] for name in names]
        recall = [scores[name]["recall"] for name in names]
        axes.hlines(rows, precision, recall, color="#bbbbbb", linewidth=2)
        axes.plot(precision, rows, "o", label="precision (of those called so, how many are)")
        axes.plot(recall, rows, "s", label="recall (of those that are, how many are found)")
        axes.set_yticks(rows, [f"{_plain(name)} ({scores[name]['support']})" for name in names])
        axes.set_xlim(min(0.5, *precision, *recall) - 0.02, 1.02)
        axes.set(xlabel="share", title="Precision and recall of each class (number of pictures)")
        figure.legend(loc="outside lower left", ncols=1)
    return figure


def reliability(
    before: Sequence[Mapping[str, float]], after: Sequence[Mapping[str, float]]
) -> Figure:
    """Draw the accuracy of `reliability_bins` over their confidence, before and after scaling."""
    with house_style():
        figure = Figure(figsize=(5.4, 5.0))
        axes, counts = figure.subplots(2, sharex=True, height_ratios=(3, 1))
        axes.plot([0, 1], [0, 1], ":", color="#595959", label="as confident as right")
        styles = (("before", before, "s--", "#D55E00"), ("after", after, "o-", "#0072B2"))
        for name, bins, style, color in styles:
            confidence = [each["confidence"] for each in bins]
            accuracy = [each["accuracy"] for each in bins]
            label = f"{name} temperature scaling"
            axes.plot(confidence, accuracy, style, color=color, label=label)
        for each in after:
            width = each["high"] - each["low"]
            style = {"color": "#0072B2", "edgecolor": "white"}
            counts.bar(each["low"], each["count"], width, align="edge", **style)
        axes.set(ylabel="share that is right", ylim=(-0.03, 1.03), title="Confidence and accuracy")
        axes.legend(loc="upper left")
        counts.set(xlabel="confidence", ylabel="pictures", xlim=(-0.01, 1.01))
    return figure


def coverage(confidence: np.ndarray, correct: np.ndarray, threshold: float) -> Figure:
    """Draw how precise the answers are if only the most confident share of pictures gets one."""
    precision = np.cumsum(correct[np.argsort(-confidence, kind="stable")])
    precision = precision / np.arange(1, len(precision) + 1)
    covered = np.arange(1, len(precision) + 1) / len(precision)
    here = int((confidence >= threshold).sum()) - 1
    with house_style():
        figure = Figure(figsize=(5.4, 3.6))
        axes = figure.subplots()
        axes.plot(covered, precision)
        if here >= 0:
            label = f"the model's threshold, {threshold:.2f}"
            point = (covered[here], precision[here])
            axes.plot(*point, "D", color="#D55E00", markersize=8, label=label)
            axes.legend(loc="lower left")
        axes.set(xlabel="share of pictures that get an answer", ylabel="share of answers right")
        axes.set(xlim=(0, 1.02), ylim=(min(0.8, *precision) - 0.02, 1.02))
        axes.set_title("What it costs to answer only when sure")
    return figure


def pictures(items: Sequence[Mapping[str, Any]], title: str) -> Figure:
    """Draw pictures with captions as a grid.

    Each has `picture`, a uint8 array (H, W) or (H, W, 3), `caption`, and `looked`, a picture of
    the same kind that is drawn below it, or None.
    """
    columns = min(6, max(1, len(items)))
    rows = max(1, math.ceil(len(items) / columns))
    layers = 2 if any(item["looked"] is not None for item in items) else 1
    height = (0.6 + 1.7 * layers) * rows + 0.4
    with house_style():
        figure = Figure(figsize=(max(4, 1.7 * columns + 0.2), height))
        figure.suptitle(title if items else f"{title}: none")
        grid = figure.subplots(rows * layers, columns, squeeze=False)
        for axes in grid.flat:
            axes.axis("off")
        for i, item in enumerate(items):
            row, column = divmod(i, columns)
            for layer, key in enumerate(("picture", "looked")[:layers]):
                axes = grid[row * layers + layer, column]
                axes.imshow(item[key], cmap="gray", vmin=0, vmax=255)
            caption = grid[row * layers, column]
            caption.set_title(
                _plain(item["caption"]), fontsize=8, fontweight="normal", loc="center"
            )
    return figure


def overlay(picture: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Lay a map (H, W) from 0 to 1 over a uint8 picture (H, W) or (H, W, 3); returns RGB.

    The picture in grey under cividis, which reads the same with every kind of colour blindness.
    """
    grey = picture.mean(axis=2) if picture.ndim == 3 else picture
    colour = matplotlib.colormaps["cividis"](heat)[:, :, :3] * 255
    return (0.45 * grey[:, :, None] + 0.55 * colour).astype(np.uint8)
