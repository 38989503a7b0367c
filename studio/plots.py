"""The figures of the notebooks: one function a figure, all in the house style.

Each returns a matplotlib Figure that a notebook cell shows when it ends with the call, at most
eight inches wide. Titles say what is seen, with numbers taken from the data given.
"""

import functools
import io
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import TypeAlias

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import ArrayLike
from PIL import Image, ImageOps

from studio.datasets import Dataset, samples
from vision.figures import house_style

Picture: TypeAlias = str | Path | bytes | np.ndarray | Image.Image

WIDTH = 8  # inches
# Wide enough to recognise a photo, small enough to keep a notebook of figures light.
TILE = 72  # pixels
MARKERS = "os^Dv*XP"
RIGHT, WRONG, UNSURE = "#0072B2", "#D55E00", "#595959"


def _figure(draw):
    """Draws inside the house style and keeps pyplot from showing the figure a second time."""

    @functools.wraps(draw)
    def styled(*args, **kwargs):
        with house_style():
            figure = draw(*args, **kwargs)
            # Ticks are made while drawing, and would be made in another style later.
            figure.draw_without_rendering()
        plt.close(figure)
        return figure

    return styled


# --- The data -----------------------------------------------------------------------------------


@_figure
def class_counts(counts: pd.DataFrame) -> Figure:
    """Stacked bars of pictures per class and split, from `Dataset.counts()`."""
    counts = counts.drop(index="total", columns="total", errors="ignore")
    figure, axes = plt.subplots(figsize=(WIDTH, _height(len(counts))), layout="constrained")
    left = np.zeros(len(counts))
    for split in counts:
        axes.barh(counts.index.astype(str), counts[split], left=left, label=split)
        left += counts[split].to_numpy()
    axes.invert_yaxis()
    axes.set_xlabel("pictures")
    axes.set_ylabel("class")
    low, high = int(left.min()), int(left.max())
    each = f"{low:,} each" if low == high else f"{low:,} to {high:,} each"
    axes.set_title(f"{int(left.sum()):,} pictures in {len(counts)} classes, {each}")
    figure.legend(loc="outside lower center", ncols=len(counts.columns), title="split")
    return figure


@_figure
def sample_grid(
    dataset: Dataset, split: str = "train", per_class: int = 8, seed: int = 0
) -> Figure:
    """Randomly drawn pictures of one split, a row a class."""
    drawn = samples(dataset, split, per_class, seed)
    side = min(TILE, max(_open(next(iter(drawn.values()))[0]).size))
    rows = [_row([_open(path) for path in paths], side, per_class) for paths in drawn.values()]
    step = rows[0].shape[0]
    height = WIDTH * 0.85 * len(rows) / per_class + 0.5
    figure, axes = plt.subplots(figsize=(WIDTH, min(height, 12)), layout="constrained")
    axes.imshow(np.concatenate(rows), interpolation="nearest")
    axes.set_yticks([step * i + step / 2 for i in range(len(rows))], dataset.class_names)
    axes.set_xticks([])
    axes.set_ylabel("class")
    axes.set_title(f"Up to {per_class} {split} pictures of each of the {len(rows)} classes")
    _bare(axes)
    return figure


@_figure
def mean_pictures(means: dict[str, np.ndarray]) -> Figure:
    """The mean picture of every class, from `Survey.mean_pictures`."""
    columns = min(5, len(means))
    rows = -(-len(means) // columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(WIDTH, 1.7 * rows + 0.4), layout="constrained", squeeze=False
    )
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, (name, pixels) in zip(grid.flat, means.items(), strict=False):
        axes.imshow(pixels, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axes.set_title(name)
    figure.suptitle(f"Mean training picture of each of the {len(means)} classes")
    return figure


@_figure
def pixel_histogram(histogram: pd.DataFrame) -> Figure:
    """Share of training pixels at each brightness level, from `Survey.histogram`."""
    shares = histogram / histogram.sum()
    overall = histogram.sum(axis=1) / histogram.to_numpy().sum()
    figure, axes = plt.subplots(figsize=(WIDTH, 3), layout="constrained")
    axes.fill_between(
        shares.index,
        shares.min(axis=1),
        shares.max(axis=1),
        step="mid",
        alpha=0.3,
        label="from the lowest class to the highest",
    )
    axes.step(overall.index, overall, where="mid", label="all classes")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g}%")
    axes.set_xlim(0, 255)
    axes.set_xlabel("brightness level (0 black, 255 white)")
    axes.set_ylabel("share of pixels, log scale")
    axes.set_title(
        f"The most common level is {overall.idxmax()}, with {overall.max():.1%} of pixels"
    )
    axes.legend()
    return figure


@_figure
def duplicates(pairs: pd.DataFrame, dataset: Dataset, limit: int = 8) -> Figure:
    """The first `limit` pairs of `explore.duplicates`, one above the other."""
    if pairs.empty:
        return _sentence("No two pictures of this data set have the same pixels")
    shown = pairs.head(limit)
    figure, grid = plt.subplots(2, limit, figsize=(WIDTH, 3.2), layout="constrained", squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for column, pair in zip(grid.T, shown.to_dict("records"), strict=False):
        for axes, side in zip(column, "ab", strict=True):
            split, name, file = (pair[f"{key}_{side}"] for key in ("split", "class", "file"))
            axes.imshow(_open(dataset.folder / split / name / file), cmap="gray", vmin=0, vmax=255)
            axes.set_title(f"{split}\n{fill(name, 12)}", fontsize="small")
    across = int(pairs["across_splits"].sum())
    figure.suptitle(
        f"{len(pairs):,} pictures repeat an earlier one, {across:,} of them across splits "
        f"({len(shown)} pairs shown)"
    )
    return figure


# --- Training -----------------------------------------------------------------------------------


@_figure
def tuning_trials(trials: pd.DataFrame) -> Figure:
    """Trials of a search: the objective over the learning rate, and the best so far in order.

    trials: one row a trial in the order of their start; columns lr, batch_size, status and
        objective (or valid_accuracy), a fraction that is missing where the trial reported none.
    """
    column = "objective" if "objective" in trials else "valid_accuracy"
    # The API hands hyperparameters over as text.
    numbers = trials[["lr", "batch_size", column]].apply(pd.to_numeric, errors="coerce")
    numbers.columns = ["lr", "batch_size", "accuracy"]
    numbers = numbers.assign(trial=np.arange(1, len(numbers) + 1), status=trials["status"])
    known = numbers.dropna(subset="accuracy")
    if known.empty:
        return _sentence(f"None of the {len(trials)} trials reported an accuracy")
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(WIDTH, 3.4), layout="constrained", sharey=True
    )
    for i, (batch_size, group) in enumerate(known.groupby("batch_size")):
        style = {"color": f"C{i}", "marker": MARKERS[i % len(MARKERS)], "linestyle": "none"}
        left.plot(group["lr"], group["accuracy"], label=f"{batch_size:g}", **style)
        right.plot(group["trial"], group["accuracy"], **style)
    right.step(known["trial"], known["accuracy"].cummax(), where="post", color=UNSURE, zorder=1)
    right.plot([], [], color=UNSURE, label="best so far")
    stopped = known[known["status"] == "Stopped"]
    if len(stopped):
        ring = {"marker": "o", "markersize": 12, "fillstyle": "none", "linestyle": "none"}
        left.plot(stopped["lr"], stopped["accuracy"], color=UNSURE, label="stopped early", **ring)
    left.set_xscale("log")
    left.set_xlabel("learning rate, log scale")
    left.set_ylabel("validation accuracy")
    left.yaxis.set_major_formatter(PercentFormatter(1))
    left.legend(title="batch size")
    right.set_xlabel("trial, in order of start")
    right.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    right.legend()
    best = known.loc[known["accuracy"].idxmax()]
    figure.suptitle(
        f"Best of {len(trials)} trials: {best['accuracy']:.1%} with a learning rate of "
        f"{best['lr']:.2g} and batches of {best['batch_size']:g}"
    )
    return figure


@_figure
def training_curves(history: pd.DataFrame) -> Figure:
    """Loss and accuracy of every epoch, with the most accurate one marked.

    history: one row an epoch; columns epoch, train_loss, valid_loss (nats), train_accuracy and
        valid_accuracy (fractions).
    """
    best = history.loc[history["valid_accuracy"].idxmax()]
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 3.2), layout="constrained")
    for axes, measure in ((left, "loss"), (right, "accuracy")):
        for split, marker, line in (("train", "o", "--"), ("valid", "s", "-")):
            axes.plot(
                history["epoch"],
                history[f"{split}_{measure}"],
                line,
                marker=marker,
                markersize=4,
                label=split,
            )
        axes.axvline(best["epoch"], color=UNSURE, linestyle=":", label="best epoch")
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    left.set_ylabel("cross-entropy loss (nats)")
    right.set_ylabel("accuracy")
    right.yaxis.set_major_formatter(PercentFormatter(1))
    right.legend()
    figure.suptitle(
        f"Epoch {best['epoch']:g} of {len(history)} is best: "
        f"{best['valid_accuracy']:.1%} of validation pictures right"
    )
    return figure


# --- Evaluation ---------------------------------------------------------------------------------


@_figure
def confusion_matrix(matrix: ArrayLike, class_names: Sequence[str]) -> Figure:
    """Test pictures by true class (rows) and predicted class (columns), shaded by share of row."""
    matrix = np.asarray(matrix)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = min(WIDTH, 2.5 + 0.5 * len(matrix))
    figure, axes = plt.subplots(figsize=(side, side * 0.9), layout="constrained")
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    places = np.arange(len(matrix))
    axes.set_xticks(places, class_names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(places, class_names)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    axes.grid(visible=False)
    for (row, column), count in np.ndenumerate(matrix):
        colour = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, f"{count:g}", ha="center", va="center", color=colour, fontsize=7)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, format=PercentFormatter(1))
    bar.set_label("share of the true class")
    axes.set_title(fill(_confusion_title(matrix, class_names), 60))
    return figure


def _confusion_title(matrix, class_names):
    total, right = matrix.sum(), np.trace(matrix)
    title = f"{right / max(total, 1):.1%} of {total:,} pictures right"
    wrong = matrix - np.diag(np.diag(matrix))
    if not wrong.any():
        return title
    truth, predicted = np.unravel_index(wrong.argmax(), wrong.shape)
    return (
        f"{title}; the most common mistake is “{class_names[predicted]}” for "
        f"“{class_names[truth]}” ({wrong.max():,})"
    )


@_figure
def per_class(table: pd.DataFrame) -> Figure:
    """Precision, recall and F1 of every class, the weakest F1 at the top.

    table: one row a class (index); columns precision, recall and f1, fractions.
    """
    table = table[["precision", "recall", "f1"]].sort_values("f1", ascending=False)
    figure, axes = plt.subplots(figsize=(WIDTH, _height(len(table))), layout="constrained")
    names = table.index.astype(str)
    axes.hlines(names, table.min(axis=1), table.max(axis=1), color="lightgrey", zorder=1)
    for measure, marker in (("precision", ">"), ("recall", "<"), ("f1", "o")):
        axes.plot(table[measure], names, marker, label="F1" if measure == "f1" else measure)
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.set_xlabel("share of pictures")
    axes.set_ylabel("class")
    weakest, best = table.iloc[-1], table.iloc[0]
    axes.set_title(
        f"F1 runs from {weakest['f1']:.1%} (“{weakest.name}”) to {best['f1']:.1%} (“{best.name}”)"
    )
    figure.legend(loc="outside lower center", ncols=3)
    return figure


# --- The endpoint -------------------------------------------------------------------------------


@_figure
def prediction(picture: Picture, answer: dict, truth: str | None = None) -> Figure:
    """A picture beside the bars of its scores.

    picture: path, bytes, array or PIL picture.
    answer: dict with label (None for "not sure"), confidence and scores (dict of class → fraction).
    """
    scores = pd.Series(answer["scores"]).sort_values()
    figure, (left, right) = plt.subplots(
        1,
        2,
        figsize=(WIDTH, max(2.6, _height(len(scores)) * 0.8)),
        layout="constrained",
        width_ratios=(1, 1.6),
    )
    left.imshow(_open(picture), cmap="gray", vmin=0, vmax=255)
    left.set_axis_off()
    left.set_title("question" if truth is None else f"truth: {truth}")
    right.barh(scores.index, scores, color=_verdict(answer, truth)[1])
    right.set_xlim(0, 1)
    right.xaxis.set_major_formatter(PercentFormatter(1))
    right.set_xlabel("score")
    right.set_ylabel("class")
    right.set_title(f"answer: {_answer_text(answer)}{_verdict(answer, truth)[0]}")
    return figure


@_figure
def predictions(items: Sequence[tuple[Picture, dict, str | None]]) -> Figure:
    """Pictures with the answers given to them, from a list of (picture, answer, truth or None)."""
    columns = min(5, max(1, len(items)))
    rows = max(1, -(-len(items) // columns))
    figure, grid = plt.subplots(
        rows, columns, figsize=(WIDTH, 2.2 * rows + 0.4), layout="constrained", squeeze=False
    )
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, (picture, answer, truth) in zip(grid.flat, items, strict=False):
        axes.imshow(_open(picture), cmap="gray", vmin=0, vmax=255)
        sign, colour = _verdict(answer, truth)
        caption = f"{_answer_text(answer)}{sign}"
        if sign.endswith("wrong") or answer["label"] is None:
            caption += f"\ntruth: {truth}" if truth is not None else ""
        axes.set_title(caption, color=colour, fontsize="small")
    figure.suptitle(_predictions_title(items))
    return figure


def _predictions_title(items):
    unsure = sum(answer["label"] is None for _, answer, _ in items)
    judged = [(answer["label"], truth) for _, answer, truth in items if truth is not None]
    title = f"Answers to {len(items)} pictures"
    if judged:
        title += f": {sum(label == truth for label, truth in judged)} right"
    return f"{title}, {unsure} not sure" if unsure else title


def _answer_text(answer):
    return f"{answer['label'] or 'not sure'} ({answer['confidence']:.0%})"


def _verdict(answer, truth):
    """What to add to the answer, and its colour."""
    if answer["label"] is None or truth is None:
        return "", UNSURE
    return (", right", RIGHT) if answer["label"] == truth else (", wrong", WRONG)


@_figure
def latency(milliseconds: Sequence[float]) -> Figure:
    """Histogram of the requests' durations, with the median and the 95th percentile marked."""
    milliseconds = np.asarray(milliseconds, dtype=float)
    median, p95 = np.percentile(milliseconds, [50, 95])
    figure, axes = plt.subplots(figsize=(WIDTH, 3), layout="constrained")
    axes.hist(milliseconds, bins=min(40, max(5, len(milliseconds) // 5)), alpha=0.7)
    axes.axvline(median, color="C1", label=f"median: {median:.1f} ms")
    axes.axvline(p95, color="C3", linestyle="--", label=f"95th percentile: {p95:.1f} ms")
    axes.set_xlabel("duration of a request (ms)")
    axes.set_ylabel("requests")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_title(
        f"Half of {len(milliseconds):,} requests took under {median:.1f} ms, 95% under {p95:.1f} ms"
    )
    axes.legend()
    return figure


# --- Pieces -------------------------------------------------------------------------------------


def _height(rows):
    return min(10, 1.2 + 0.25 * rows)


def _open(picture):
    """PIL picture, grey or RGB, of a path, bytes, an array or a PIL picture."""
    if isinstance(picture, (str, Path)):
        with Image.open(picture) as opened:
            return _grey_or_colour(opened)
    if isinstance(picture, (bytes, bytearray)):
        with Image.open(io.BytesIO(picture)) as opened:
            return _grey_or_colour(opened)
    if isinstance(picture, np.ndarray):
        picture = Image.fromarray(picture)
    return _grey_or_colour(picture)


def _grey_or_colour(picture):
    return picture.convert("L" if picture.mode in ("1", "L", "LA") else "RGB")


def _row(pictures, side, length):
    """uint8 array of pictures side by side on white, each fitted into a square of `side` pixels."""
    gap = max(1, side // 14)
    row = np.full((side + gap, length * (side + gap), 3), 255, dtype=np.uint8)
    for i, picture in enumerate(pictures):
        tile = ImageOps.pad(picture.convert("RGB"), (side, side), color="white")
        row[:side, i * (side + gap) : i * (side + gap) + side] = np.asarray(tile)
    return row


def _bare(axes):
    axes.grid(visible=False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _sentence(text):
    figure, axes = plt.subplots(figsize=(WIDTH, 0.8), layout="constrained")
    axes.set_axis_off()
    axes.set_title(text, y=0.3)
    return figure
