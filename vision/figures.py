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
        ticks = range(len(class_names))
        axes.set_xticks(ticks, class_names, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(ticks, class_names)
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
        axes.set_yticks(rows, [f"{name} ({scores[name]['support']})" for name in names])
        axes.set_xlim(min(0.5, *precision, *recall) - 0.02, 1.02)
        axes.set(xlabel="share", title="Precision and recall of each class (number of pictures)")
        figure.legend(loc="outside lower left", ncols=1)
    return figure


def worst_mistakes(mistakes: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the most confident mistakes as a grid.

    Each has `picture`, a uint8 array (H, W) or (H, W, 3), `true`, `predicted`, `confidence`.
    """
    columns = min(6, max(1, len(mistakes)))
    rows = max(1, math.ceil(len(mistakes) / columns))
    with house_style():
        figure = Figure(figsize=(1.7 * columns + 0.2, 2.3 * rows + 0.4))
        figure.suptitle("The most confident mistakes" if mistakes else "No mistakes")
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes in grid.flat:
            axes.axis("off")
        for axes, mistake in zip(grid.flat, mistakes, strict=False):
            axes.imshow(mistake["picture"], cmap="gray", vmin=0, vmax=255)
            axes.set_title(
                f"said {mistake['predicted']}, {mistake['confidence']:.0%}\nis {mistake['true']}",
                fontsize=8,
                fontweight="normal",
                loc="center",
            )
    return figure
