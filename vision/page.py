"""The evaluation as one HTML page that needs no script, no network and no other file."""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vision import html
from vision.calibration import TEMPERATURES
from vision.html import percent

TITLES = {
    "worst_mistakes": "The most confident mistakes",
    "least_confident_hits": "The least confident hits",
    "label_suspects": "Labels to look at again",
}
CAPTIONS = {
    "worst_mistakes": "said {predicted}, {confidence:.0%}\nis {true}",
    "least_confident_hits": "is {true}\n{confidence:.0%} sure",
    "label_suspects": "labelled {given}\nrather {suggested}, {confidence:.0%}",
}
BASELINES = {
    "majority": "naming always the most common class",
    "logistic_regression": "a logistic regression on frozen features",
    "previous_model": "the previous model",
}
# Sharp at the size of a tile on a phone, and 48 of them in colour are a page of some 2 MB.
TILE_SIZE = 128
SIGNIFICANT = 0.05


def summary(report: Mapping[str, Any]) -> list[str]:
    """Return what the numbers of evaluation.json say, in plain sentences."""
    low, high = report["accuracy_interval_95"]
    sentences = [
        f"{percent(report['accuracy'])} of {report['n']:,} test pictures are classified right; "
        f"the 95% interval is {percent(low)} to {percent(high)}.",
        *(
            verdict(BASELINES[name], baseline)
            for name, baseline in report["baselines"].items()
            if baseline
        ),
        hardest(report),
        _confidence(report["calibration"]),
        _abstention(report["abstention"]),
    ]
    if report["counting"]:
        likely, expected = report["counting"]["most_likely"], report["counting"]["expected"]
        sentences.append(
            f"As a count, the most likely class has a root mean square error of "
            f"{likely['rmse']:.2f} and is at most one off for {percent(likely['within_one'])} of "
            f"the pictures; the expected count has one of {expected['rmse']:.2f}."
        )
    suspects = report["label_suspects"]["count"]
    if suspects:
        sentences.append(_suspects(suspects, percent(suspects / report["n"])))
    return sentences


def _suspects(count: int, share: str) -> str:
    if count == 1:
        return (
            f"The label of 1 picture ({share}) is suspect: the answer contradicts it more strongly "
            "than a mistake alone would. It is a suspect, not a proof."
        )
    return (
        f"The labels of {count:,} pictures ({share}) are suspect: the answers contradict them more "
        "strongly than mistakes alone would. These are suspects, not proofs."
    )


def verdict(name: str, baseline: Mapping[str, Any]) -> str:
    """Say in one sentence how the model compares with a baseline."""
    this, other = baseline["this_model_accuracy"], baseline["accuracy"]
    of = f"{percent(this)} against {percent(other)} of the same {baseline['n']:,} pictures"
    p = baseline["mcnemar"]["p_value"]
    chance = "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
    if p >= SIGNIFICANT:
        return f"The model cannot be told apart from {name}: {of}, {chance}."
    return f"The model does {'better' if this > other else 'worse'} than {name}: {of}, {chance}."


def hardest(report: Mapping[str, Any]) -> str:
    """Name the class that is recognised worst and the most common mistake."""
    matrix = report["confusion_matrix"]
    names, wrong = matrix["class_names"], np.array(matrix["counts"])
    np.fill_diagonal(wrong, 0)
    if not wrong.any():
        return "No test picture is mistaken."
    weakest, scores = min(report["classes"].items(), key=lambda item: item[1]["f1"])
    true, said = np.unravel_index(wrong.argmax(), wrong.shape)
    return (
        f"The weakest class is “{weakest}” (precision {percent(scores['precision'])}, recall "
        f"{percent(scores['recall'])}); the most common mistake is “{names[said]}” for "
        f"“{names[true]}”, {wrong.max():,} of {wrong.sum():,}."
    )


def _confidence(calibration: Mapping[str, Any]) -> str:
    before, after = calibration["before"]["ece"], calibration["after"]["ece"]
    temperature, (low, high) = calibration["temperature"], TEMPERATURES
    limit = ""
    if math.isclose(temperature, low, rel_tol=1e-3):
        limit = (
            " That is the limit of its search: too few validation answers were wrong to fit it, "
            "so a confidence of 100% says little."
        )
    elif math.isclose(temperature, high, rel_tol=1e-3):
        limit = " That is the limit of its search, so the confidence may still be too high."
    return (
        f"The confidence is off by {100 * after:.1f} percentage points on average, and would be by "
        f"{100 * before:.1f} without the temperature of {temperature:.2f}.{limit}"
    )


def _abstention(abstention: Mapping[str, Any]) -> str:
    threshold = abstention["threshold"]
    chosen = abstention["validation"]
    if not threshold and not chosen:
        return "The model answers every time: no threshold of confidence was set."
    if not abstention["answered"]:
        return f"No picture reaches the confidence of {threshold:.2f} that an answer takes."
    low, high = map(percent, abstention["precision_interval_95"])
    wanted = f"; {percent(chosen['wanted_precision'])} was wanted" if chosen else ""
    if chosen and chosen["precision"] < chosen["wanted_precision"]:
        wanted += ", which no threshold reached on the validation pictures"
    covered, precision = percent(abstention["coverage"]), percent(abstention["precision"])
    if not threshold and chosen["precision"] >= chosen["wanted_precision"]:
        return (
            "The model answers every time: on the validation pictures all answers together were "
            f"right as often as wanted. Here {precision} of them are (95% interval {low} to "
            f"{high}{wanted})."
        )
    return (
        f"With a confidence of at least {threshold:.2f} the model answers {covered} of the "
        f"pictures, and {precision} of these answers are right (95% interval {low} to {high}"
        f"{wanted})."
    )


def render(
    report: Mapping[str, Any], tiles: Mapping[str, Sequence[Mapping[str, Any]]], figures: Path
) -> str:
    """Return the page, with the figures <name>.png of a folder and the tiles of each group.

    A tile is an item of the report with `caption` and, as uint8 arrays (H, W) or (H, W, 3),
    `picture` and `looked`.
    """
    return html.render(
        Path(__file__).with_name("page.html"),
        figures,
        {"tile": _tile},
        report=report,
        tiles=tiles,
        titles=TITLES,
        baselines=BASELINES,
        hardest=hardest(report),
        confidence=_confidence(report["calibration"]),
        abstention=_abstention(report["abstention"]),
    )


def _tile(picture: np.ndarray) -> str:
    image = Image.fromarray(picture)
    if max(image.size) > TILE_SIZE:
        image = image.resize((TILE_SIZE, TILE_SIZE), Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return html.encode(buffer.getvalue())
