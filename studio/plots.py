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
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, PercentFormatter
from numpy.typing import ArrayLike
from PIL import Image, ImageOps

from studio import learning
from studio.datasets import Dataset, samples
from studio.jobs import best_epoch
from studio.monitoring import rolling_means
from vision import figures

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
        with figures.house_style():
            # Loads the notebook's backend, which then also shows figures that pyplot did not make.
            plt.close(plt.figure())
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
    figure, axes = plt.subplots(figsize=(WIDTH, _height(len(counts))))
    left = np.zeros(len(counts))
    for split in counts:
        axes.barh(counts.index.astype(str), counts[split], left=left, label=split)
        left += counts[split].to_numpy()
    axes.invert_yaxis()
    axes.set_xlabel("pictures")
    axes.set_ylabel("class")
    low, high = int(left.min()), int(left.max())
    each = f"{low:,} each" if low == high else f"{low:,} to {high:,} each"
    figure.legend(loc="outside lower center", ncols=len(counts.columns), title="split")
    return _headline(figure, f"{int(left.sum()):,} pictures in {len(counts)} classes, {each}")


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
    figure, axes = plt.subplots(figsize=(WIDTH, min(height, 12)))
    axes.imshow(np.concatenate(rows), interpolation="nearest")
    axes.set_yticks([step * i + step / 2 for i in range(len(rows))], dataset.class_names)
    axes.set_xticks([])
    axes.set_ylabel("class")
    axes.grid(visible=False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return _headline(
        figure, f"Up to {per_class} {split} pictures of each of the {len(rows)} classes"
    )


@_figure
def named_pictures(pictures: dict[str, Picture]) -> Figure:
    """Pictures of one size side by side, each under its name."""
    opened = {name: _open(picture) for name, picture in pictures.items()}
    figure, grid = plt.subplots(1, len(opened), figsize=(WIDTH, 2.2), squeeze=False)
    for axes, (name, picture) in zip(grid.flat, opened.items(), strict=True):
        axes.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axes.set_axis_off()
        _caption(axes, name)
    sizes = {f"{picture.width}×{picture.height}" for picture in opened.values()}
    return _headline(figure, f"{len(opened)} pictures of {' or '.join(sorted(sizes))} pixels")


@_figure
def mean_pictures(means: dict[str, np.ndarray]) -> Figure:
    """The mean picture of every class, from `Survey.mean_pictures`."""
    columns = min(5, len(means))
    rows = -(-len(means) // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(WIDTH, 1.7 * rows + 0.4), squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, (name, pixels) in zip(grid.flat, means.items(), strict=False):
        axes.imshow(pixels, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        _caption(axes, name)
    return _headline(figure, f"Mean training picture of each of the {len(means)} classes")


@_figure
def pixel_histogram(histogram: pd.DataFrame) -> Figure:
    """Share of training pixels at each brightness level, from `Survey.histogram`."""
    shares = histogram / histogram.sum()
    overall = histogram.sum(axis=1) / histogram.to_numpy().sum()
    figure, axes = plt.subplots(figsize=(WIDTH, 3))
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
    axes.legend()
    return _headline(
        figure,
        f"The most common level is {overall.idxmax()}, with {overall.max():.1%} of pixels",
    )


@_figure
def duplicates(pairs: pd.DataFrame, dataset: Dataset, limit: int = 8) -> Figure:
    """The first `limit` pairs of `explore.duplicates`, one above the other."""
    if pairs.empty:
        return _sentence("No two pictures of this data set have the same pixels")
    shown = pairs.head(limit)
    figure, grid = plt.subplots(2, limit, figsize=(WIDTH, 3.2), squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for column, pair in zip(grid.T, shown.to_dict("records"), strict=False):
        for axes, side in zip(column, "ab", strict=True):
            split, name, file = (pair[f"{key}_{side}"] for key in ("split", "class", "file"))
            axes.imshow(_open(dataset.folder / split / name / file), cmap="gray", vmin=0, vmax=255)
            _caption(axes, f"{split}\n{fill(name, 12, break_on_hyphens=False)}")
    across = int(pairs["across_splits"].sum())
    nearly = "nearly " if "distance" in pairs else ""
    return _headline(
        figure,
        f"{len(pairs):,} pictures {nearly}repeat an earlier one, {across:,} of them across splits "
        f"({len(shown)} pairs shown)",
    )


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
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 3.4), sharey=True)
    for i, (batch_size, group) in enumerate(known.groupby("batch_size")):
        style = {"color": _colour(i), "marker": MARKERS[i % len(MARKERS)], "linestyle": "none"}
        left.plot(group["lr"], group["accuracy"], label=f"{batch_size:g}", **style)
        right.plot(group["trial"], group["accuracy"], **style)
    right.step(known["trial"], known["accuracy"].cummax(), where="post", color=UNSURE, zorder=1)
    right.plot([], [], color=UNSURE, label="best so far")
    stopped = known[known["status"] == "Stopped"]
    if len(stopped):
        ring = {"marker": "o", "markersize": 12, "fillstyle": "none", "linestyle": "none"}
        left.plot(stopped["lr"], stopped["accuracy"], color=UNSURE, label="stopped early", **ring)
    _accuracy_by_learning_rate(left)
    left.legend(title="batch size")
    right.set_xlabel("trial, in order of start")
    right.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    right.legend()
    best = known.loc[known["accuracy"].idxmax()]
    return _headline(
        figure,
        f"Best of {len(trials)} trials: validation accuracy {best['accuracy']:.1%} with learning "
        f"rate {best['lr']:.2g} and batches of {best['batch_size']:g}",
    )


@_figure
def depth_and_decay(trials: pd.DataFrame) -> Figure:
    """Trials of a search over network depth and a decaying learning rate: the objective over both.

    trials: one row a trial; columns model, lr (the first one), gamma (its factor for every epoch)
        and objective, a fraction that is missing where the trial reported none.
    """
    known = trials.dropna(subset="objective")
    if known.empty:
        return _sentence(f"None of the {len(trials)} trials reported an accuracy")
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 3.2), sharey=True)
    for i, (model, group) in enumerate(known.groupby("model")):
        style = {"color": _colour(i), "marker": MARKERS[i % len(MARKERS)], "linestyle": "none"}
        left.plot(group["lr"], group["objective"], label=model, **style)
        right.plot(group["gamma"], group["objective"], **style)
    _accuracy_by_learning_rate(left)
    left.legend(title="network")
    right.set_xlabel("factor of the learning rate for every epoch")
    best = known.loc[known["objective"].idxmax()]
    return _headline(
        figure,
        f"Best of {len(trials)} trials: validation accuracy {best['objective']:.1%} with "
        f"{best['model']} and learning rate {best['lr']:.2g}, times {best['gamma']:.2f} every "
        "epoch",
    )


@_figure
def architectures(trials: pd.DataFrame) -> Figure:
    """Trials of a search over networks, learning rate and batch size: the objective over the rate.

    trials: one row a trial; columns model, lr, batch_size and objective, a fraction that is missing
        where the trial reported none.
    """
    known = trials.dropna(subset="objective")
    if known.empty:
        return _sentence(f"None of the {len(trials)} trials reported an accuracy")
    figure, axes = plt.subplots(figsize=(WIDTH, 3.4))
    models, sizes = sorted(known["model"].unique()), sorted(known["batch_size"].unique())
    for (model, size), group in known.groupby(["model", "batch_size"]):
        axes.plot(
            group["lr"],
            group["objective"],
            color=_colour(models.index(model)),
            marker=MARKERS[sizes.index(size) % len(MARKERS)],
            linestyle="none",
            label=f"{model}, {size:g}",
        )
    _accuracy_by_learning_rate(axes)
    figure.legend(loc="outside right center", title="network, batch size")
    best = known.loc[known["objective"].idxmax()]
    return _headline(
        figure,
        f"Best of {len(trials)} trials: validation accuracy {best['objective']:.1%} with "
        f"{best['model']}, learning rate {best['lr']:.2g} and batches of {best['batch_size']:g}",
    )


@_figure
def repeated(runs: pd.DataFrame, by: str, measures: dict[str, str]) -> Figure:
    """Settings that were measured several times: a dot a run, and the mean of each setting.

    runs: one row a run; column `by` names its setting.
    measures: dict of column (accuracies as fractions, or errors in items) → what the axis says.
    """
    names = list(dict.fromkeys(runs[by]))
    figure, grid = plt.subplots(
        1, len(measures), figsize=(WIDTH, 1.3 + 0.45 * len(names)), sharey=True, squeeze=False
    )
    for axes, (column, what) in zip(grid.flat, measures.items(), strict=True):
        for i, name in enumerate(names):
            values = runs.loc[runs[by] == name, column]
            axes.plot(values, [i] * len(values), "o", color=_colour(i), alpha=0.6)
            axes.plot(values.mean(), i, "|", color=_colour(i), markersize=22, markeredgewidth=3)
        axes.set_xlabel(what)
        if "accuracy" in column or "within" in column:
            axes.xaxis.set_major_formatter(lambda share, _: f"{100 * share:.3g}%")
            axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    first = grid.flat[0]
    first.set_yticks(range(len(names)), [fill(str(name), 24) for name in names])
    first.set_ylabel(by)
    first.margins(y=0.3)
    first.invert_yaxis()
    column = next(iter(measures))
    means = runs.groupby(by)[column].mean()
    return _headline(
        figure,
        f"A dot is one run, a bar the mean of {len(runs) // len(names)}: “{means.idxmax()}” is the "
        f"most accurate with {means.max():.1%}",
    )


def _accuracy_by_learning_rate(axes):
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("learning rate, log scale")
    axes.set_ylabel("validation accuracy")
    axes.yaxis.set_major_formatter(PercentFormatter(1))


@_figure
def training_curves(history: pd.DataFrame) -> Figure:
    """Loss and accuracy of every epoch, with the one marked whose weights were kept.

    history: one row an epoch; columns epoch, train_loss, valid_loss (nats), train_accuracy and
        valid_accuracy (fractions).
    """
    best = best_epoch(history)
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 3.2))
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
    return _headline(
        figure,
        f"Epoch {best['epoch']:g} of {len(history)} is best: "
        f"{best['valid_accuracy']:.1%} of validation pictures right",
    )


# --- Evaluation ---------------------------------------------------------------------------------


@_figure
def confusion_matrix(matrix: ArrayLike, class_names: Sequence[str]) -> Figure:
    """The evaluation's confusion matrix, counts (classes, classes), under what it tells."""
    figure = figures.confusion_matrix(matrix, class_names)
    figure.set_size_inches(WIDTH, WIDTH * 0.9)
    figure.axes[0].set_title("")
    return _headline(figure, _confusion_title(np.asarray(matrix), class_names))


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
    """The evaluation's precision and recall of every class, the weakest F1 on top.

    table: one row a class (index); columns precision, recall, f1 (fractions) and support.
    """
    figure = figures.per_class(table.to_dict("index"))
    figure.axes[0].set(title="", ylabel="class (pictures)")
    weakest = table.loc[table["f1"].idxmin()]
    return _headline(
        figure,
        f"“{weakest.name}” is the weakest class: precision {weakest['precision']:.1%}, "
        f"recall {weakest['recall']:.1%}",
    )


@_figure
def errors_by_quarter(tables: dict[str, pd.DataFrame]) -> Figure:
    """Share of wrong answers in the quarters of each measure, with 95% intervals.

    tables: dict of measure → what `studio.evaluation.errors_by_quarter` returned.
    """
    figure, grid = plt.subplots(1, len(tables), figsize=(WIDTH, 3), sharey=True, squeeze=False)
    for i, (axes, (name, table)) in enumerate(zip(grid.flat, tables.items(), strict=True)):
        reach = [table["errors"] - table["low"], table["high"] - table["errors"]]
        axes.errorbar(
            table.index,
            table["errors"],
            yerr=reach,
            fmt=MARKERS[i],
            color=_colour(i),
            capsize=4,
        )
        axes.set_xticks(table.index, ["lowest", "second", "third", "highest"])
        axes.set_xlabel(f"quarter of {name}, within each class")
        axes.margins(x=0.1)
    grid.flat[0].set_ylabel("wrong answers")
    grid.flat[0].yaxis.set_major_formatter(PercentFormatter(1))
    spans = {name: table["errors"].max() - table["errors"].min() for name, table in tables.items()}
    widest = max(spans, key=spans.get)
    table = tables[widest]
    return _headline(
        figure,
        f"Errors differ most with {widest}: {table['errors'].min():.1%} to "
        f"{table['errors'].max():.1%} of the answers in a quarter are wrong",
    )


@_figure
def benchmark(table: pd.DataFrame) -> Figure:
    """Candidates side by side: accuracy with its 95% interval, and the time of one answer.

    table: from `studio.evaluation.benchmark`, one row a model.
    """
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(WIDTH, 1.2 + 0.45 * len(table)), sharey=True
    )
    reach = [table["accuracy"] - table["low"], table["high"] - table["accuracy"]]
    left.errorbar(table["accuracy"], table.index, xerr=reach, fmt="o", capsize=4)
    left.set_xlabel("validation accuracy, 95% interval")
    left.xaxis.set_major_formatter(PercentFormatter(1))
    left.set_ylabel("model")
    left.margins(y=0.2)
    left.invert_yaxis()
    bars = right.barh(table.index, table["milliseconds"], height=0.5)
    right.bar_label(bars, fmt="%.1f", padding=3)
    right.margins(x=0.15)
    right.set_xlabel("median time of an answer (ms)")
    best, fastest = table["accuracy"].idxmax(), table["milliseconds"].idxmin()
    join = " and" if best == fastest else f", {fastest}"
    return _headline(
        figure,
        f"{best} is the most accurate ({table.loc[best, 'accuracy']:.1%}){join} "
        f"the fastest ({table.loc[fastest, 'milliseconds']:.1f} ms)",
    )


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
        width_ratios=(1, 1.6),
    )
    left.imshow(_open(picture), cmap="gray", vmin=0, vmax=255)
    left.set_axis_off()
    _caption(left, "question" if truth is None else f"truth: {truth}")
    right.barh(scores.index, scores, color=_verdict(answer, truth)[1])
    right.set_xlim(0, 1)
    right.xaxis.set_major_formatter(PercentFormatter(1))
    right.set_xlabel("score")
    right.set_ylabel("class")
    return _headline(figure, f"Answer: {_answer_text(answer)}{_verdict(answer, truth)[0]}")


@_figure
def predictions(items: Sequence[tuple[Picture, dict, str | None]]) -> Figure:
    """Pictures with the answers given to them, from a list of (picture, answer, truth or None)."""
    columns = min(5, max(1, len(items)))
    rows = max(1, -(-len(items) // columns))
    figure, grid = plt.subplots(rows, columns, figsize=(WIDTH, 2.2 * rows + 0.4), squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, (picture, answer, truth) in zip(grid.flat, items, strict=False):
        axes.imshow(_open(picture), cmap="gray", vmin=0, vmax=255)
        sign, colour = _verdict(answer, truth)
        caption = f"{_answer_text(answer)}{sign}"
        if sign.endswith("wrong") or answer["label"] is None:
            caption += f"\ntruth: {truth}" if truth is not None else ""
        _caption(axes, caption, color=colour)
    return _headline(figure, _predictions_title(items))


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
    figure, axes = plt.subplots(figsize=(WIDTH, 3))
    axes.hist(milliseconds, bins=min(40, max(5, len(milliseconds) // 5)), alpha=0.7)
    axes.axvline(median, color=_colour(1), label=f"median: {median:.1f} ms")
    axes.axvline(p95, color=_colour(3), linestyle="--", label=f"95th percentile: {p95:.1f} ms")
    axes.set_xlabel("duration of a request (ms)")
    axes.set_ylabel("requests")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.legend()
    return _headline(
        figure,
        f"{len(milliseconds):,} requests: half took under {median:.1f} ms, 95% under {p95:.1f} ms",
    )


@_figure
def drift(
    stream: pd.DataFrame,
    measures: dict[str, str],
    limits: dict[str, tuple[float, float]],
    window: int,
    alarms: dict[str, dict[str, int | None]],
) -> Figure:
    """Measures of the requests to an endpoint, in their order, over the stretches that changed.

    stream: one row a request; column stretch names what was done to it, and one column a measure.
    measures: dict of column → what the axis says.
    limits: dict of column → (low, high) that a mean over `window` requests keeps to.
    alarms: dict of column → dict of stretch → place of the first such mean outside, or None.
    """
    figure, grid = plt.subplots(
        len(measures), 1, figsize=(WIDTH, 0.8 + 1.7 * len(measures)), sharex=True, squeeze=False
    )
    places = np.arange(len(stream))
    starts = stream.groupby("stretch", sort=False).head(1).index
    for axes, (column, what) in zip(grid.flat, measures.items(), strict=True):
        axes.plot(places, stream[column], ".", color=UNSURE, alpha=0.35, markersize=4)
        means = rolling_means(stream, column, window)
        axes.plot(places, means, color=RIGHT)
        axes.axhspan(*limits[column], color=RIGHT, alpha=0.15)
        found = [place for place in alarms[column].values() if place is not None]
        axes.plot(found, means[found], "v", color=WRONG, markersize=9)
        for start in starts[1:]:
            axes.axvline(start, color=UNSURE, linestyle=":")
        axes.set_ylabel(what)
    for start in starts:
        top = grid.flat[0]
        top.annotate(stream["stretch"][start], (start, 1.02), xycoords=top.get_xaxis_transform())
    grid.flat[-1].set_xlabel("request")
    grid.flat[-1].set_xlim(0, len(stream))
    told = {name for each in alarms.values() for name, place in each.items() if place is not None}
    return _headline(
        figure,
        f"Mean over {window} requests (line), where it belongs (band), first alarm (▼): "
        f"{len(told)} of {len(starts) - 1} changes are noticed",
    )


# --- More or other pictures ---------------------------------------------------------------------


@_figure
def learning_curve(curve: pd.DataFrame, classes: int) -> Figure:
    """Validation accuracy over the number of training pictures, and a forecast for twice as many.

    Where the errors follow no power law, there is no forecast.

    curve: from `studio.learning.load_curve`, one row a training.
    """
    means = learning.summary(curve)
    figure, axes = plt.subplots(figsize=(WIDTH, 3.2))
    dots = {"marker": "o", "markersize": 3.5, "linestyle": "none", "color": UNSURE}
    axes.plot(curve["pictures"] / classes, curve["valid_accuracy"], label="one training", **dots)
    axes.plot(means.index / classes, means["mean"], marker="s", label="mean")
    if learning.gain(curve) is not None:
        ahead = np.geomspace(means.index[0], 2 * means.index[-1], 50)
        law = [learning.forecast(curve, pictures) for pictures in ahead]
        axes.plot(ahead / classes, law, ":", color=_colour(1), label="power law of the error")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("training pictures a class, on average (log scale)")
    axes.set_ylabel("validation accuracy")
    low = curve["valid_accuracy"].min()
    axes.set_ylim(low - 0.1 * (1.02 - low), 1.01)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.legend(loc="lower right")
    few, most = means.index[0], means.index[-1]
    return _headline(
        figure,
        f"{means.loc[few, 'mean']:.1%} of the validation pictures right with "
        f"{few / classes:.0f} pictures a class, {means.loc[most, 'mean']:.1%} with "
        f"{most / classes:.0f}",
    )


@_figure
def changed_pictures(changed: pd.DataFrame, examples: dict[str, Picture]) -> Figure:
    """Accuracy on pictures as they are and changed, under an example of each change.

    changed: from `studio.advice.ask_changed`; examples: a picture for each of its rows, by name.
    """
    figure = plt.figure(figsize=(WIDTH, 4.2))
    grid = figure.add_gridspec(2, len(changed), height_ratios=(1, 1.3))
    for column, name in enumerate(changed.index):
        axes = figure.add_subplot(grid[0, column])
        axes.imshow(_open(examples[name]))
        axes.set_axis_off()
        _caption(axes, name)
    axes = figure.add_subplot(grid[1, :])
    axes.bar(changed.index, changed["accuracy_changed"], width=0.5, label="changed")
    as_they_are = changed["accuracy"].iloc[0]
    axes.axhline(as_they_are, color=UNSURE, linestyle="--", label="as they are")
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set_ylabel("validation accuracy")
    axes.set_xlabel("change of the pictures")
    figure.legend(loc="outside lower center", ncols=2)
    worst = changed["accuracy_changed"].idxmin()
    return _headline(
        figure,
        f"Of {changed['pictures'].iloc[0]} pictures {as_they_are:.1%} are right as they are; worst "
        f"is “{worst}”: {changed.loc[worst, 'accuracy_changed']:.1%}",
    )


@_figure
def pace(table: pd.DataFrame) -> Figure:
    """Trainings side by side: pictures a second, use of the processors, computing for no picture.

    table: from `studio.insight.pace`, one row a training.
    """
    figure, (speed, busy, overhead) = plt.subplots(
        1, 3, figsize=(WIDTH, 1.2 + 0.4 * len(table)), sharey=True
    )
    bars = speed.barh(table.index, table["pictures_per_second"], height=0.5)
    speed.bar_label(bars, fmt="{:,.0f}", padding=3)
    speed.set_xscale("log")
    speed.margins(x=0.3)
    speed.set_xlabel("pictures a second (log scale)")
    speed.set_ylabel("training")
    speed.invert_yaxis()
    for axes, column, label in (
        (busy, "busy", "processors used"),
        (overhead, "overhead", "computing for no picture"),
    ):
        bars = axes.barh(table.index, table[column], height=0.5, color=_colour(1))
        axes.bar_label(bars, fmt="{:.0%}", padding=3)
        axes.set_xlim(0, 1.25)
        axes.set_xticks([0, 0.5, 1])
        axes.xaxis.set_major_formatter(PercentFormatter(1))
        axes.set_xlabel(label)
    fastest, slowest = table["epoch_seconds"].idxmin(), table["epoch_seconds"].idxmax()
    return _headline(
        figure,
        f"An epoch takes {table.loc[slowest, 'epoch_seconds']:.3g} s as “{slowest}” and "
        f"{table.loc[fastest, 'epoch_seconds']:.3g} s as “{fastest}”",
    )


@_figure
def explained(
    looked: dict[str, np.ndarray], answer: dict, truth: str | None = None, most: int = 5
) -> Figure:
    """A picture, where a network found evidence in it, and the bars of its likeliest classes.

    looked: from `studio.explain.where_it_looked`; answer: as for `prediction`.
    """
    scores = pd.Series(answer["scores"]).nlargest(most)[::-1]
    figure = plt.figure(figsize=(WIDTH, 4.6))
    grid = figure.add_gridspec(2, len(looked), height_ratios=(1.4, 1))
    for column, (name, pixels) in enumerate(looked.items()):
        axes = figure.add_subplot(grid[0, column])
        axes.imshow(pixels)
        axes.set_axis_off()
        _caption(axes, name if column == 0 else f"evidence for\n{name}")
    axes = figure.add_subplot(grid[1, :])
    axes.barh(scores.index, scores, color=_verdict(answer, truth)[1])
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.set_xlabel("score")
    axes.set_ylabel("class")
    ask = f"; truth: {truth}" if truth is not None else ""
    return _headline(figure, f"Answer: {_answer_text(answer)}{_verdict(answer, truth)[0]}{ask}")


# --- Pieces -------------------------------------------------------------------------------------


def _colour(i):
    # As a value: the name "C1" would be looked up when the figure is shown, outside the style.
    return to_hex(f"C{i}")


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
    """The picture as training sees it: upright, and white where it is transparent."""
    picture = ImageOps.exif_transpose(picture)
    if "A" in picture.getbands() or "transparency" in picture.info:
        grey, picture = picture.mode == "LA", picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
        return picture.convert("L" if grey else "RGB")
    return picture.convert("L" if picture.mode in ("1", "L") else "RGB")


def _row(pictures, side, length):
    """uint8 array of pictures side by side on white, each fitted into a square of `side` pixels."""
    gap = max(1, side // 14)
    row = np.full((side + gap, length * (side + gap), 3), 255, dtype=np.uint8)
    for i, picture in enumerate(pictures):
        tile = ImageOps.pad(picture.convert("RGB"), (side, side), color="white")
        row[:side, i * (side + gap) : i * (side + gap) + side] = np.asarray(tile)
    return row


def _headline(figure, text):
    """The figure, under a title in the style of the axes' titles."""
    style = {key: plt.rcParams[f"axes.title{key}"] for key in ("size", "weight")}
    figure.suptitle(fill(text, 88, break_on_hyphens=False), x=0.01, ha="left", **style)
    return figure


def _caption(axes, text, **style):
    axes.set_title(text, loc="center", fontsize="small", fontweight="normal", **style)


def _sentence(text):
    return _headline(plt.figure(figsize=(WIDTH, 0.6)), text)
