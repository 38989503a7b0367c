"""The figures of the report on a training job, in the style that all figures share."""

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from vision.figures import house_style

# Every figure of a report; one whose numbers are missing is left out.
NAMES = ("curves", "losses", "norms", "activity", "time", "utilisation")
WIDTH = 7.2  # inches
MARKERS = {"TRAIN": "o-", "EVAL": "s-"}
# Grey for what nobody waits for; of the others no two neighbours in a stack look alike.
COLORS = {
    "initialization": "#AAAAAA",
    "waiting for data": "#D55E00",
    "forward": "#56B4E9",
    "backward": "#0072B2",
    "optimizer": "#009E73",
    "validation": "#CC79A7",
    "checkpoints": "#E69F00",
    "debugging": "#F0E442",
    "profiling": "#555555",
    "rest": "#DDDDDD",
}
NOT_A_NUMBER, ZERO = "#D55E00", "#FFFFFF"
# The names of more layers than these no longer fit beside their rows.
MAX_NAMES = 64


def curves(history: pd.DataFrame) -> Figure:
    """Draw loss and accuracy of both modes over the epochs of history.csv."""
    with house_style():
        figure = Figure(figsize=(WIDTH, 3.2))
        for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
            for mode, column in (("TRAIN", "train"), ("EVAL", "valid")):
                values = history[f"{column}_{name}"]
                axes.plot(history["epoch"], values, MARKERS[mode], label=mode)
            axes.set(xlabel="epoch", title=name.capitalize())
            axes.set_ylabel("cross-entropy (nats)" if name == "loss" else "share that is right")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.legend()
    return figure


def losses(losses: pd.DataFrame) -> Figure:
    """Draw the mean loss of the saved steps (rows) of both modes (columns TRAIN and EVAL)."""
    labels = {"TRAIN": "TRAIN, a batch each", "EVAL": "EVAL, validation pictures"}
    with house_style():
        figure = Figure(figsize=(WIDTH, 3.0))
        axes = figure.subplots()
        for mode, label in labels.items():
            values = losses[mode].dropna()
            if len(values):
                axes.plot(values.index, values, MARKERS[mode], label=label)
        axes.set(xlabel="training step", ylabel="cross-entropy (nats)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_title("Loss of the steps that were saved")
        axes.legend()
    return figure


def norms(frames: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw norms, rows layers from input to output and columns steps, one panel a frame."""
    rows = max(len(frame) for frame in frames.values())
    # Frozen layers have weights and no gradients: then every panel names its own rows.
    alike = len({tuple(frame.index) for frame in frames.values()}) == 1
    with house_style():
        figure = Figure(figsize=(WIDTH + 1, 1.6 + 0.17 * min(rows, MAX_NAMES)))
        panels = figure.subplots(1, len(frames), sharey=alike, squeeze=False)[0]
        for axes, (name, frame) in zip(panels, frames.items(), strict=True):
            _log_map(figure, axes, frame)
            axes.set(xlabel="training step", title=f"Norm (L2) of the {name}")
            if axes is panels[0] or not alike:
                _name_rows(axes, frame.index)
        _explain_odd_cells(figure, frames.values())
    return figure


def _log_map(figure: Figure, axes: Axes, frame: pd.DataFrame) -> None:
    values = frame.to_numpy(dtype=float)
    positive = values[np.isfinite(values) & (values > 0)]
    low, high = (positive.min(), positive.max()) if positive.size else (0.1, 1.0)
    # A logarithm has no zero: any value below the smallest gets the colour for what is below.
    shown = np.where(values == 0, low / 10, np.where(np.isfinite(values), values, np.nan))
    colors = matplotlib.colormaps["cividis"].with_extremes(bad=NOT_A_NUMBER, under=ZERO)
    norm = LogNorm(low, max(high, low * 1.01))
    image = axes.imshow(shown, cmap=colors, norm=norm, aspect="auto", interpolation="nearest")
    _name_steps(axes, frame.columns)
    bar = figure.colorbar(image, ax=axes, pad=0.02)
    bar.ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=9))
    bar.ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    bar.ax.yaxis.set_minor_formatter(NullFormatter())


def _name_steps(axes: Axes, steps: Sequence[int]) -> None:
    ticks = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), 6)).round().astype(int))
    axes.set_xticks(ticks, [str(steps[tick]) for tick in ticks])
    axes.grid(False)


def _name_rows(axes: Axes, names: Sequence[str]) -> None:
    every = -(-len(names) // MAX_NAMES)
    axes.set_yticks(range(0, len(names), every), names[::every], fontsize=7)


def _explain_odd_cells(figure: Figure, frames: Sequence[pd.DataFrame]) -> None:
    values = np.concatenate([frame.to_numpy(dtype=float).ravel() for frame in frames])
    odd = [(~np.isfinite(values), NOT_A_NUMBER, "NaN or infinite"), (values == 0, ZERO, "zero")]
    patches = [Patch(fc=color, ec="#555555", label=what) for some, color, what in odd if some.any()]
    if patches:
        figure.legend(handles=patches, loc="outside lower right", ncols=2)


def activity(active: pd.DataFrame, silent: pd.DataFrame) -> Figure:
    """Draw how much the ReLUs let through: rows ReLUs from input to output, columns steps.

    `active` is the share of outputs above 0, `silent` that of the units which fired for no picture
    of a step, both in percent; of the latter the last step is drawn.
    """
    last = silent[silent.columns[-1]].fillna(0)
    with house_style():
        figure = Figure(figsize=(WIDTH + 1, 1.8 + 0.2 * min(len(active), MAX_NAMES)))
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
        options = {"aspect": "auto", "interpolation": "nearest"}
        image = left.imshow(active.to_numpy(), cmap="cividis", vmin=0, vmax=100, **options)
        figure.colorbar(image, ax=left, pad=0.02)
        _name_steps(left, active.columns)
        _name_rows(left, active.index)
        left.set(xlabel="training step", title="% of outputs above 0")
        right.barh(range(len(last)), last, color="#D55E00")
        right.set(
            xlim=(0, max(5, 1.05 * last.max())), xlabel="% of units that fired for no picture"
        )
        right.set_title(f"Silent units at step {silent.columns[-1]}")
        right.grid(axis="y", visible=False)
    return figure


def utilisation(system: pd.DataFrame, phases: pd.DataFrame) -> Figure:
    """Draw the samples of one host over the seconds since the first, one panel a resource.

    `system` has the columns of system-<rank>.csv, `phases` those of phases-<rank>.csv.
    """
    start = system["timestamp"].iloc[0]
    seconds = system["timestamp"] - start
    panels = _panels(system)
    with house_style():
        figure = Figure(figsize=(WIDTH, 0.9 + 1.35 * len(panels)))
        grid = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (title, unit, lines) in zip(grid, panels, strict=True):
            for label, values in lines.items():
                axes.plot(seconds, values, label=label, linewidth=1.2)
            for name, color in (("validation", "#CC79A7"), ("checkpoint", "#E69F00")):
                for phase in phases[phases["name"] == name].itertuples():
                    begin = phase.start - start
                    axes.axvspan(begin, begin + phase.seconds, color=color, alpha=0.25, lw=0)
            axes.set(ylim=(0, 105 if unit == "%" else None), ylabel=unit)
            axes.set_title(title, fontsize=10)
            axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
        grid[-1].set(xlabel="seconds since the first sample", xlim=(0, max(seconds.iloc[-1], 1)))
        grid[-1].xaxis.set_major_locator(MaxNLocator(8))
    return figure


def _panels(system: pd.DataFrame) -> list[tuple[str, str, dict[str, pd.Series]]]:
    """Return title, unit and lines of each resource that was measured."""
    mega = system.filter(like="_bytes") / 1e6
    panels = [
        ("CPU", "%", {"machine": system["cpu_percent"]}),
        ("Memory of the machine", "%", {"used": system["memory_percent"]}),
        (
            "Disk",
            "MB/s",
            {"read": mega["disk_read_bytes"], "written": mega["disk_write_bytes"]},
        ),
        (
            "Network",
            "MB/s",
            {"sent": mega["network_sent_bytes"], "received": mega["network_received_bytes"]},
        ),
    ]
    if system["gpu_percent"].notna().any():
        gpu = {"use": system["gpu_percent"], "memory": system["gpu_memory_percent"]}
        panels.insert(0, ("GPU", "%", gpu))
    return panels


def time_spent(epochs: pd.DataFrame) -> Figure:
    """Draw seconds as stacked bars: of the whole job on top, of each epoch below.

    Rows are epochs, 0 what came before the first; columns the parts, as in COLORS.
    """
    epochs = epochs.loc[:, epochs.sum() > 0]
    total = epochs.sum()
    with house_style():
        figure = Figure(figsize=(WIDTH, 4.2))
        whole, each = figure.subplots(2, 1, height_ratios=(1, 4))
        left, bottom = 0.0, np.zeros(len(epochs))
        for name in epochs:
            share = 100 * total[name] / total.sum()
            style = {"color": COLORS[name], "edgecolor": "white", "linewidth": 0.5}
            whole.barh(0, share, left=left, **style)
            each.bar(epochs.index, epochs[name], bottom=bottom, label=name, **style)
            left += share
            bottom += epochs[name].to_numpy()
        whole.set(xlim=(0, 100), yticks=[], xlabel="% of all the time")
        whole.set_title(f"Where {total.sum():,.0f} seconds went")
        whole.grid(False)
        each.set(xlabel="epoch (0: before the first)", ylabel="seconds")
        each.xaxis.set_major_locator(MaxNLocator(integer=True))
        each.grid(axis="x", visible=False)
        figure.legend(loc="outside right center")
    return figure
