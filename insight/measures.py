"""Turns what a training job wrote into the numbers and tables that its report shows."""

import io
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from smdebug.exceptions import TensorUnavailableForStep

from insight.tensors import ACTIVITY, GRADIENT, Tensors
from vision.errors import ExpectedError

HISTORY = ("epoch", "train_loss", "train_accuracy", "valid_loss", "valid_accuracy")
# What the report says of run.json.
RUN = ("hyperparameters", "versions", "model", "class_names", "train_pictures", "processes")
RUN += ("device", "batch_size")
# As the columns of steps-<rank>.csv and the names in phases-<rank>.csv are shown.
STEP_PARTS = {
    "data": "waiting for data",
    "forward": "forward",
    "backward": "backward",
    "optimizer": "optimizer",
}
PHASES = {
    "initialization": "initialization",
    "validation": "validation",
    "checkpoint": "checkpoints",
    "debugging": "debugging",
    "profiling": "profiling",
}


def read_history(folder: Path) -> pd.DataFrame:
    """Read history.csv, of a job that was killed what is complete.

    Raises ExpectedError where it is missing, empty or damaged.
    """
    path = folder / "history.csv"
    if not path.is_file():
        raise ExpectedError("the job wrote no history.csv")
    try:
        text = path.read_text(encoding="utf-8")
        # A writer that was killed leaves half a line.
        rows = io.StringIO(text[: text.rfind("\n") + 1])
        history = pd.read_csv(rows, keep_default_na=False, usecols=HISTORY)
        history = history.astype(float).astype({"epoch": int})
    except ValueError as error:
        raise ExpectedError(f"history.csv is damaged ({_first_line(error)})") from error
    if history.empty:
        raise ExpectedError("the job ended before its first epoch did")
    return history


def read_run(folder: Path) -> dict[str, Any]:
    """Read run.json; raises ExpectedError where it is missing or damaged."""
    path = folder / "run.json"
    if not path.is_file():
        raise ExpectedError("the job wrote no run.json: train with --debug true or --profile true")
    try:
        # NaN, which the report's own JSON must not hold, stays the text that it is.
        run = json.loads(path.read_text(encoding="utf-8"), parse_constant=str)
    except ValueError as error:
        raise ExpectedError(f"run.json is damaged ({_first_line(error)})") from error
    missing = [name for name in RUN if not isinstance(run, dict) or name not in run]
    if missing:
        raise ExpectedError(f"run.json lacks {', '.join(missing)}")
    return run


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".")


def training(history: pd.DataFrame) -> dict[str, Any]:
    """Return how far the training came; None stands for what is not a number."""
    losses = history["valid_loss"]
    best = history.loc[losses.idxmin() if losses.notna().any() else history.index[-1]]
    measured = {
        "epochs": len(history),
        "best_epoch": int(best["epoch"]),
        "best_valid_loss": best["valid_loss"],
        "best_valid_accuracy": best["valid_accuracy"],
        "first_train_loss": history["train_loss"].iloc[0],
        "last_train_loss": history["train_loss"].iloc[-1],
        "last_valid_loss": losses.iloc[-1],
    }
    return {
        name: value if isinstance(value, int) else finite(value) for name, value in measured.items()
    }


def finite(value: float) -> float | None:
    """Return a number that JSON can hold, None for the others."""
    return float(value) if math.isfinite(value) else None


# --- Tensors -------------------------------------------------------------------------------------


def norms(tensors: Tensors, collection: str) -> pd.DataFrame:
    """Return the L2 norm of the weights or their gradients: rows layers in order, columns steps.

    Biases are left out: they are small, and the matrices are what a depth changes.
    """

    def weights(step: int) -> list[str]:
        return [
            name for name in tensors.collected(collection, step=step) if name.endswith("weight")
        ]

    def norm(name: str, step: int) -> float | None:
        try:
            whole = tensors.trial.tensor(name).value(step)
        except TensorUnavailableForStep:
            return tensors.reduction(name, step, "l2")
        # smdebug would take the spectral norm of a matrix, and has none of a kernel.
        return float(np.linalg.norm(np.asarray(whole, dtype=float)))

    return _by_step(tensors, weights, norm)


def activity(tensors: Tensors) -> pd.DataFrame:
    """Return the share of outputs above 0 of every ReLU in percent: rows ReLUs, columns steps."""
    return _activity(tensors, np.mean)


def silent(tensors: Tensors) -> pd.DataFrame:
    """Return the share of units of every ReLU, in percent, that fired for no picture of a step."""
    return _activity(tensors, lambda shares: 100 * np.mean(shares == 0))


def _activity(tensors: Tensors, measure: Callable[[np.ndarray], float]) -> pd.DataFrame:
    def relus(step: int) -> list[str]:
        return [name for name in tensors.at(step) if name.startswith(ACTIVITY)]

    return _by_step(tensors, relus, lambda name, step: measure(tensors.values(name, step)))


def _by_step(
    tensors: Tensors,
    names: Callable[[int], list[str]],
    measure: Callable[[str, int], float | None],
) -> pd.DataFrame:
    """Measure what was saved of every training step: rows layers in order, columns steps."""
    rows: dict[str, dict[int, float | None]] = {}
    for step in tensors.train_steps():
        for name in names(step):
            rows.setdefault(name, {})[tensors.phase_step(step)] = measure(name, step)
    # smdebug's public lists are in the order of names; its own has that of saving, which for
    # weights is that of the network, and for gradients that of the backward pass or of weights.
    place = {name: number for number, name in enumerate(tensors.trial._tensors)}
    order = sorted(rows, key=lambda name: place.get(name.removeprefix(GRADIENT), place[name]))
    named = {short_name(name): rows[name] for name in order}
    frame = pd.DataFrame.from_dict(named, orient="index", dtype=float)
    return frame.reindex(sorted(frame.columns), axis=1)


def losses(tensors: Tensors) -> pd.DataFrame:
    """Return the mean loss over the pictures of the saved steps: columns TRAIN and EVAL.

    The rows are steps of TRAIN; an EVAL stands at the number of them that were done before it.
    """
    found: dict[tuple[str, int], list[np.ndarray]] = {}
    for step in tensors.trial.steps():
        values = tensors.losses(step)
        if values is None:
            continue
        number = tensors.phase_step(step)
        if tensors.trains(step):
            found.setdefault(("TRAIN", number), []).append(values)
        elif tensors.validates(step):
            # The global step counts both modes, and `number` the EVALs among them.
            found.setdefault(("EVAL", step - number), []).append(values)
    means = {
        mode: {step: np.concatenate(each).mean() for (m, step), each in found.items() if m == mode}
        for mode in ("TRAIN", "EVAL")
    }
    return pd.DataFrame(means, columns=["TRAIN", "EVAL"], dtype=float).sort_index()


def last_step(frame: pd.DataFrame) -> dict[str, Any]:
    """Return the last column of a table, `step` and `values` by layer, as JSON can hold it."""
    last = frame[frame.columns[-1]].dropna()
    return {
        "step": int(frame.columns[-1]),
        "values": {name: finite(value) for name, value in last.items()},
    }


def short_name(name: str) -> str:
    """Drop what the tensors of one kind have in common: `gradient/Net_stem.0.weight` -> stem.0."""
    name = name.rpartition("/")[2].removesuffix(".weight")
    short = re.sub(r"^[A-Z][A-Za-z0-9]*_(?=\w)", "", name)
    # The layers of an nn.Sequential are mere numbers.
    return name if short.isdigit() else short


# --- The profile ---------------------------------------------------------------------------------


def first_rank(frame: pd.DataFrame) -> pd.DataFrame:
    """Keep the rows of the first process, of which all others are copies in what they do."""
    return frame[frame["rank"] == frame["rank"].min()] if "rank" in frame else frame


def time_by_epoch(
    steps: pd.DataFrame, phases: pd.DataFrame, started: float, finished: float
) -> pd.DataFrame:
    """Return seconds by epoch (rows; 0: before the first) and part (columns), of one process.

    An epoch lasts from its first step to the first of the next one, from `started` to `finished`
    in Unix seconds. What no part accounts for is "initialization" before the first step and
    "rest" after it; what the parts have beyond it, on a GPU, is taken off the waits of the host.
    """
    starts = steps.groupby("epoch")["start"].min()
    numbers, limits = [0, *starts.index], np.array([started, *starts, finished])
    table = steps.groupby("epoch")[list(STEP_PARTS)].sum().rename(columns=STEP_PARTS)
    table = table.reindex(numbers, fill_value=0.0)
    place = np.searchsorted(limits[1:-1], phases["start"], side="right")
    for name, shown in PHASES.items():
        those = phases["name"] == name
        seconds = np.bincount(place[those], phases["seconds"][those], minlength=len(numbers))
        table[shown] = seconds.astype(float)
    # A GPU computes on while the host waits for data or validates: such a wait costs no time.
    over = np.maximum(0.0, table.sum(axis=1) - np.diff(limits))
    for part in (STEP_PARTS["data"], PHASES["validation"]):
        hidden = np.minimum(over, table[part])
        table[part] -= hidden
        over -= hidden
    table["rest"] = np.maximum(0.0, np.diff(limits) - table.sum(axis=1))
    table.loc[0, "initialization"] += table.loc[0, "rest"]
    table.loc[0, "rest"] = 0.0
    first, *others = PHASES.values()
    return table[[first, *STEP_PARTS.values(), *others, "rest"]]


def time_facts(table: pd.DataFrame, steps: pd.DataFrame) -> dict[str, Any]:
    """Return the seconds of every part of the whole job, and the speed of its steps."""
    seconds = steps["seconds"].sum()
    return {
        "total_seconds": float(table.to_numpy().sum()),
        "parts": {name: float(value) for name, value in table.sum().items()},
        "steps": len(steps),
        "median_step_seconds": float(steps["seconds"].median()),
        "pictures_per_second": float(steps["pictures"].sum() / seconds) if seconds else None,
    }


def use(system: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Return mean, median, 95th percentile and maximum of every resource that was measured."""
    measured = system.drop(columns=["timestamp", "rank"], errors="ignore").dropna(axis=1, how="all")
    return {
        name: {
            "mean": float(values.mean()),
            "median": float(values.median()),
            "p95": float(values.quantile(0.95)),
            "max": float(values.max()),
        }
        for name, values in measured.items()
    }


def operators(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the operators of operators.csv, those of one name together, the largest first.

    `share` is of the time of all of them, on the GPU where there is one; an operator's own time
    ("self") is without what it calls.
    """
    on_gpu = bool(table["self_gpu_ms"].sum() > 0)
    measured = ["calls", "self_cpu_ms", "cpu_ms", "self_gpu_ms"]
    table = table.groupby("operator")[measured].sum().reset_index()
    own = table["self_gpu_ms" if on_gpu else "self_cpu_ms"]
    table = table.assign(share=own / (own.sum() or 1.0), on_gpu=on_gpu)
    return json.loads(table.sort_values("share", ascending=False).to_json(orient="records"))
