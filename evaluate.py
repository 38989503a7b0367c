"""Report how well a model does on pictures it has never seen: a SageMaker processing job.

    python evaluate.py --model-dir build/model --test data/test --output build/evaluation
    python evaluate.py --model-dir build/model --test data/test --min-accuracy 0.9
    python evaluate.py --model-dir build/model --test data/test --train data/train
    python evaluate.py --model-dir build/model --test data/test --previous-model build/previous
    python evaluate.py --model-dir build/model --test data/test --dry-run      # a few pictures

<output> gets

    evaluation.html          the report as one page that needs no script and no other file
    evaluation.json          its numbers; docs/evaluation.schema.json tells what each means
    predictions.csv          true class, predicted class and confidence of every picture
    confusion_matrix.png, per_class.png, reliability.png, coverage.png    the page's figures
    worst_mistakes.png, least_confident_hits.png, label_suspects.png      pictures to look at

The model is compared with naming always the most common class; with --train, with a logistic
regression on frozen features; and with --previous-model. With --min-accuracy a model below it
ends the job with code 1, after the report is written.
"""

import argparse
import csv
import io
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

from vision import baselines, figures, metrics, page
from vision.archives import extract
from vision.calibration import confidences
from vision.classifier import DESCRIPTION, Classifier, load_classifier
from vision.cli import ArgumentParser, add_dry_run, ranged, run
from vision.counts import counting
from vision.data import (
    DRY_RUN_PICTURES,
    Entry,
    Split,
    check_all_seen,
    list_split,
    load_split,
    spread,
)
from vision.errors import ExpectedError
from vision.explain import grad_cam

# The version of evaluation.json, for whoever reads it by program.
SCHEMA_VERSION = 2
# The channels of a processing job that it may have.
TRAIN, PREVIOUS = Path("/opt/ml/processing/train"), Path("/opt/ml/processing/previous")
# Two rows of a figure.
SHOWN_PICTURES = 12


def get_args_parser() -> ArgumentParser:
    parser = ArgumentParser(__doc__)
    parser.add_argument(
        "--model-dir",
        default="/opt/ml/processing/model",
        help="folder with model.tar.gz, or with its unpacked content",
    )
    parser.add_argument(
        "--test",
        default="/opt/ml/processing/test",
        help="pictures that neither training nor any choice has seen",
    )
    parser.add_argument(
        "--train",
        default=TRAIN,
        help="training pictures for the logistic regression; left out where there are none",
    )
    parser.add_argument(
        "--previous-model",
        default=PREVIOUS,
        help="like --model-dir, the model to compare with; left out where there is none",
    )
    parser.add_argument(
        "--output", default="/opt/ml/processing/evaluation", help="where the report goes"
    )
    parser.add_argument(
        "--min-accuracy",
        type=ranged(float, 0, 1),
        help="quality gate: end with code 1 below this accuracy",
    )
    add_dry_run(parser, "evaluate a few pictures and write everything")
    return parser


def main(args: argparse.Namespace) -> None:
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    classifier = read_model(Path(args.model_dir))
    entries = list_test(Path(args.test), classifier, args.dry_run)
    shape = classifier.preprocessing
    split = load_split(entries, classifier.class_names, shape.image_size, shape.channels)

    start = time.perf_counter()
    logits = classifier.logits(split.images).double()
    seconds = time.perf_counter() - start
    check_all_seen(len(logits), split)
    before, probabilities = (
        torch.softmax(logits / temperature, dim=1).numpy()
        for temperature in (1.0, classifier.temperature)
    )

    report = make_report(classifier, split, before, probabilities)
    report["pictures_per_second"] = round(len(split) / seconds, 1)
    predicted = probabilities.argmax(1)
    answers = baselines.Answers(entries, split.labels.numpy(), predicted, split.class_names)
    report |= compare(answers, classifier, args)
    report["summary"] = page.summary(report)
    write_report(report, classifier, split, probabilities, output)
    low, high = report["accuracy_interval_95"]
    print(
        f"accuracy={report['accuracy']:.4f} low={low:.4f} high={high:.4f} n={report['n']} "
        f"log_loss={report['log_loss']:.4f} ece={report['ece']:.4f}",
        flush=True,
    )
    for sentence in report["left_out"]:
        print(f"left out: {sentence}", flush=True)
    if args.min_accuracy is not None and report["accuracy"] < args.min_accuracy:
        raise ExpectedError(
            f"the accuracy of {report['accuracy']:.4f} is below the --min-accuracy of "
            f"{args.min_accuracy}: the report in {output} shows where the model fails"
        )


def read_model(folder: Path) -> Classifier:
    """Load the model in a folder, from model.tar.gz or unpacked."""
    if (folder / DESCRIPTION).is_file():
        return load_classifier(folder)
    archive = folder / "model.tar.gz"
    if not archive.is_file():
        raise ExpectedError(f"{folder} holds neither model.tar.gz nor {DESCRIPTION}")
    with tempfile.TemporaryDirectory(prefix="model-") as scratch:
        extract(archive, Path(scratch))
        return load_classifier(scratch)


def list_test(folder: Path, classifier: Classifier, dry_run: bool) -> list[Entry]:
    """List the test pictures; raises ExpectedError where their classes are not the model's."""
    entries = list_split(folder)
    found, known = {entry.class_name for entry in entries}, set(classifier.class_names)
    if found != known:
        raise ExpectedError(
            f"the classes of {folder} and of the model differ (only in the pictures: "
            f"{_names(found - known)}; only in the model: {_names(known - found)}): "
            "evaluate on the data set that the model was trained for"
        )
    return spread(entries, DRY_RUN_PICTURES) if dry_run else entries


def _names(names: set[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def make_report(
    classifier: Classifier, split: Split, before: np.ndarray, probabilities: np.ndarray
) -> dict[str, Any]:
    """Return what evaluation.json says of the model alone.

    For its probabilities (N, classes) before and after the logits were divided by the temperature.
    """
    labels, names = split.labels.numpy(), split.class_names
    calibration = {
        "temperature": classifier.temperature,
        "before": metrics.calibration(labels, before),
        "after": metrics.calibration(labels, probabilities),
    }
    return {
        "schema_version": SCHEMA_VERSION,
        "n": len(labels),
        **metrics.classification(labels, probabilities, names),
        "ece": calibration["after"]["ece"],
        "calibration": calibration,
        "abstention": {
            **metrics.abstention(labels, probabilities, classifier.threshold),
            "validation": classifier.facts.get("abstention"),
        },
        "counting": counting(labels, probabilities, names),
        **notable_pictures(split, probabilities),
        "test_hash": split.data_hash,
        "model": {
            "architecture": classifier.model_name,
            "data_hash": classifier.facts.get("data_hash"),
            "temperature": classifier.temperature,
            "validation": classifier.facts.get("metrics"),
        },
    }


def notable_pictures(split: Split, probabilities: np.ndarray) -> dict[str, Any]:
    """Choose the worst mistakes, the least confident hits and the suspect labels to show."""
    confidence, correct = confidences(probabilities, split.labels)
    predicted = probabilities.argmax(1)
    surest, least_sure = (np.argsort(key, kind="stable") for key in (-confidence, confidence))
    suspects = metrics.label_suspects(split.labels.numpy(), probabilities)

    def describe(numbers: np.ndarray, said: str, answered: str) -> list[dict[str, Any]]:
        return [
            {
                "file": split.names[i],
                said: split.class_names[split.labels[i]],
                answered: split.class_names[predicted[i]],
                "confidence": float(confidence[i]),
            }
            for i in numbers[:SHOWN_PICTURES]
        ]

    return {
        "worst_mistakes": describe(surest[~correct[surest]], "true", "predicted"),
        "least_confident_hits": describe(least_sure[correct[least_sure]], "true", "predicted"),
        "label_suspects": {
            "count": len(suspects),
            "pictures": describe(suspects, "given", "suggested"),
        },
    }


def compare(
    answers: baselines.Answers, classifier: Classifier, args: argparse.Namespace
) -> dict[str, Any]:
    """Return the baselines, and in `left_out` why one is missing.

    No fault of a comparison costs the report: it is a reason to leave that comparison out.
    """
    at_most = DRY_RUN_PICTURES if args.dry_run else baselines.MAX_PICTURES
    left_out = []

    def optional(
        what: str, flag: str, folder: Path, measure: Callable[[], dict]
    ) -> dict[str, Any] | None:
        try:
            if not folder.is_dir() or not any(folder.iterdir()):
                if folder in (TRAIN, PREVIOUS):
                    raise ExpectedError(f"none was given ({flag})")
                raise ExpectedError(f"{flag} names no folder, or an empty one")
            return measure()
        except (ExpectedError, OSError) as error:
            left_out.append(f"{what}, because {error}")
            return None

    train, previous = Path(args.train), Path(args.previous_model)
    return {
        "baselines": {
            "majority": baselines.majority(answers, classifier.facts.get("train_counts")),
            "logistic_regression": optional(
                "the logistic regression on frozen features of training pictures",
                "--train",
                train,
                lambda: baselines.logistic_regression(answers, train, at_most),
            ),
            "previous_model": optional(
                "the comparison with the previous model",
                "--previous-model",
                previous,
                lambda: baselines.previous_model(answers, read_model(previous)),
            ),
        },
        "left_out": left_out,
    }


def write_report(
    report: dict[str, Any],
    classifier: Classifier,
    split: Split,
    probabilities: np.ndarray,
    output: Path,
) -> None:
    """Write all files beside their places first, then rename them, evaluation.json last.

    An earlier evaluation.json goes first, so that it never stands beside newer files.
    """
    partial = output / f".partial-{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        write_predictions(partial / "predictions.csv", split, probabilities)
        tiles = make_tiles(report, classifier, split)
        write_figures(report, classifier, split, probabilities, tiles, partial)
        text = page.render(report, tiles, partial)
        (partial / "evaluation.html").write_text(text, encoding="utf-8")
        text = json.dumps(report, indent=2, allow_nan=False) + "\n"
        (partial / "evaluation.json").write_text(text, encoding="utf-8")
        (output / "evaluation.json").unlink(missing_ok=True)
        for path in sorted(partial.iterdir(), key=lambda path: path.name == "evaluation.json"):
            path.replace(output / path.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_predictions(path: Path, split: Split, probabilities: np.ndarray) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("file", "true", "predicted", "confidence"))
        for name, label, row in zip(split.names, split.labels, probabilities, strict=True):
            predicted = row.argmax()
            names = split.class_names[label], split.class_names[predicted]
            writer.writerow((name, *names, f"{row[predicted]:.6f}"))


def make_tiles(
    report: dict[str, Any], classifier: Classifier, split: Split
) -> dict[str, list[dict[str, Any]]]:
    """Return the pictures to show, by group: `picture`, `looked` and what is said of each."""
    groups = {
        "worst_mistakes": report["worst_mistakes"],
        "least_confident_hits": report["least_confident_hits"],
        "label_suspects": report["label_suspects"]["pictures"],
    }
    number_of = {name: number for number, name in enumerate(split.names)}
    return {
        group: with_pictures(
            [{**item, "caption": page.CAPTIONS[group].format(**item)} for item in items],
            [number_of[item["file"]] for item in items],
            classifier,
            split,
        )
        for group, items in groups.items()
    }


def with_pictures(
    items: Sequence[dict[str, Any]], numbers: list[int], classifier: Classifier, split: Split
) -> list[dict[str, Any]]:
    """Add to each item its picture and where the network looked for the class that it named."""
    if not items:
        return []
    images = split.images[numbers]
    named = [item.get("predicted", item.get("suggested")) for item in items]
    targets = torch.tensor([split.class_names.index(name) for name in named])
    X = classifier.preprocessing.normalise(images)
    heat = grad_cam(classifier.model, classifier.model.cam_layer, X, targets)
    pictures = [to_picture(image) for image in images]
    return [
        {**item, "picture": picture, "looked": figures.overlay(picture, where)}
        for item, picture, where in zip(items, pictures, heat, strict=True)
    ]


def to_picture(image: torch.Tensor) -> np.ndarray:
    """Turn a uint8 tensor (C, H, W) into an array (H, W) or (H, W, 3)."""
    return image.permute(1, 2, 0).squeeze(-1).numpy()


def write_figures(
    report: dict[str, Any],
    classifier: Classifier,
    split: Split,
    probabilities: np.ndarray,
    tiles: dict[str, list[dict[str, Any]]],
    folder: Path,
) -> None:
    matrix, bins = report["confusion_matrix"], report["calibration"]
    answers = confidences(probabilities, split.labels)
    drawn = {
        "confusion_matrix": figures.confusion_matrix(matrix["counts"], matrix["class_names"]),
        "per_class": figures.per_class(report["classes"]),
        "reliability": figures.reliability(bins["before"]["bins"], bins["after"]["bins"]),
        "coverage": figures.coverage(*answers, classifier.threshold),
        **{group: figures.pictures(tiles[group], page.TITLES[group]) for group in tiles},
    }
    for name, figure in drawn.items():
        save_figure(figure, folder / f"{name}.png")


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG of 256 colours: a third of the size where photos are in it."""
    pixels = io.BytesIO()
    figure.savefig(pixels, format="png")
    with Image.open(pixels) as image:
        image.convert("RGB").quantize(256).save(path, optimize=True)


if __name__ == "__main__":
    sys.exit(run(main, get_args_parser().parse()))
