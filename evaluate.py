"""Report how well a model does on pictures it has never seen: a SageMaker processing job.

    python evaluate.py --model-dir build/model --test data/test --output build/evaluation
    python evaluate.py --model-dir build/model --test data/test --min-accuracy 0.9
    python evaluate.py --model-dir build/model --test data/test --dry-run      # a few pictures

<output> gets evaluation.json (accuracy with its 95% interval, every class, the confusion matrix,
calibration, the most confident mistakes), predictions.csv, and the pictures confusion_matrix.png,
per_class.png and worst_mistakes.png. With --min-accuracy a model below it ends the job with code
1, after the report is written.
"""

import argparse
import csv
import gzip
import json
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix, log_loss, precision_recall_fscore_support

from vision import figures
from vision.classifier import DESCRIPTION, Classifier, load_classifier
from vision.cli import ArgumentParser, add_dry_run, ranged, run
from vision.data import Split, check_all_seen, list_split, load_split, spread
from vision.errors import ExpectedError

# The version of evaluation.json, for whoever reads it by program.
SCHEMA_VERSION = 1
# VGG-16, the largest architecture here, has 0.55 GB of weights.
MAX_UNPACKED_BYTES = 2 * 1024**3
CALIBRATION_BINS = 15
WORST_MISTAKES = 12
DRY_RUN_PICTURES = 16


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
    split = read_test(Path(args.test), classifier, args.dry_run)

    start = time.perf_counter()
    probabilities = classifier.probabilities(split.images).numpy()
    seconds = time.perf_counter() - start
    check_all_seen(len(probabilities), split)

    report = make_report(classifier, split, probabilities)
    report["pictures_per_second"] = round(len(split) / seconds, 1)
    write_report(report, split, probabilities, output)
    low, high = report["accuracy_interval_95"]
    print(
        f"accuracy={report['accuracy']:.4f} low={low:.4f} high={high:.4f} n={report['n']} "
        f"log_loss={report['log_loss']:.4f} ece={report['ece']:.4f}",
        flush=True,
    )
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


def extract(archive: Path, folder: Path, max_bytes: int = MAX_UNPACKED_BYTES) -> None:
    """Unpack a .tar.gz of files and folders into `folder`.

    Raises ExpectedError for links, devices, paths that lead outside, or more than `max_bytes`.
    """
    try:
        with gzip.open(archive) as unzipped:
            stream = _Limited(unzipped, max_bytes)
            # "r|" reads strictly forward, so that the limit counts every byte once.
            with tarfile.open(fileobj=stream, mode="r|") as tar:
                for member in tar:
                    if not (member.isreg() or member.isdir()):
                        raise ExpectedError(
                            f"{archive} holds {member.name!r}, a link or device: only plain files "
                            "are unpacked"
                        )
                    tar.extract(member, folder, filter="data")
    except tarfile.FilterError as error:
        raise ExpectedError(f"{archive} is refused: {error}") from error
    except (tarfile.TarError, EOFError, gzip.BadGzipFile) as error:
        raise ExpectedError(f"{archive} is damaged ({error}): train the model again") from error


class _Limited:
    """A reader that gives out so many bytes and no more."""

    def __init__(self, file, max_bytes: int):
        self.file = file
        self.max_bytes = max_bytes
        self.count = 0

    def read(self, size: int) -> bytes:
        data = self.file.read(size)
        self.count += len(data)
        if self.count > self.max_bytes:
            raise ExpectedError(
                f"{self.file.name} unpacks to more than {self.max_bytes / 1e9:.1f} GB: refused"
            )
        return data


def read_test(folder: Path, classifier: Classifier, dry_run: bool) -> Split:
    """Read the test pictures; raises ExpectedError where their classes are not the model's."""
    entries = list_split(folder)
    found, known = {entry.class_name for entry in entries}, set(classifier.class_names)
    if found != known:
        raise ExpectedError(
            f"the classes of {folder} and of the model differ (only in the pictures: "
            f"{_names(found - known)}; only in the model: {_names(known - found)}): "
            "evaluate on the data set that the model was trained for"
        )
    if dry_run:
        entries = spread(entries, DRY_RUN_PICTURES)
    shape = classifier.preprocessing
    return load_split(entries, classifier.class_names, shape.image_size, shape.channels)


def _names(names: set[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def make_report(classifier: Classifier, split: Split, probabilities: np.ndarray) -> dict[str, Any]:
    """Return the content of evaluation.json for probabilities (N, classes)."""
    labels = split.labels.numpy()
    predicted, confidence = probabilities.argmax(1), probabilities.max(1)
    numbers = list(range(len(split.class_names)))
    correct = int((predicted == labels).sum())
    interval = binomtest(correct, len(labels)).proportion_ci(method="wilson")
    scores = precision_recall_fscore_support(labels, predicted, labels=numbers, zero_division=0.0)
    mistakes = np.flatnonzero(predicted != labels)
    worst = mistakes[np.argsort(-confidence[mistakes], kind="stable")][:WORST_MISTAKES]
    return {
        "schema_version": SCHEMA_VERSION,
        "n": len(labels),
        "accuracy": correct / len(labels),
        "accuracy_interval_95": [interval.low, interval.high],
        "log_loss": log_loss(labels, probabilities, labels=numbers),
        "ece": expected_calibration_error(confidence, predicted == labels),
        "classes": {
            name: {
                "precision": float(precision),
                "recall": float(recall),
                "f1": float(f1),
                "support": int(support),
            }
            for name, precision, recall, f1, support in zip(split.class_names, *scores, strict=True)
        },
        "confusion_matrix": {
            "class_names": split.class_names,
            "rows": "true",
            "columns": "predicted",
            "counts": confusion_matrix(labels, predicted, labels=numbers).tolist(),
        },
        "worst_mistakes": [
            {
                "file": split.names[i],
                "true": split.class_names[labels[i]],
                "predicted": split.class_names[predicted[i]],
                "confidence": float(confidence[i]),
            }
            for i in worst
        ],
        "test_hash": split.data_hash,
        "model": {
            "architecture": classifier.model_name,
            "data_hash": classifier.facts.get("data_hash"),
            "temperature": classifier.temperature,
            "validation": classifier.facts.get("metrics"),
        },
    }


def expected_calibration_error(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Return the ECE over CALIBRATION_BINS bins of equal width (Guo et al. 2017, equation 3)."""
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gaps = np.bincount(bins, weights=correct - confidence, minlength=CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / len(confidence))


def write_report(
    report: dict[str, Any], split: Split, probabilities: np.ndarray, output: Path
) -> None:
    """Write evaluation.json, predictions.csv and the three pictures into `output`."""
    text = json.dumps(report, indent=2, allow_nan=False) + "\n"
    (output / "evaluation.json").write_text(text, encoding="utf-8")
    with (output / "predictions.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("file", "true", "predicted", "confidence"))
        for name, label, row in zip(split.names, split.labels, probabilities, strict=True):
            predicted = row.argmax()
            names = split.class_names[label], split.class_names[predicted]
            writer.writerow((name, *names, f"{row[predicted]:.6f}"))
    matrix = report["confusion_matrix"]
    figures.confusion_matrix(matrix["counts"], matrix["class_names"]).savefig(
        output / "confusion_matrix.png"
    )
    figures.per_class(report["classes"]).savefig(output / "per_class.png")
    picture_of = dict(zip(split.names, split.images, strict=True))
    worst = [
        {**mistake, "picture": to_picture(picture_of[mistake["file"]])}
        for mistake in report["worst_mistakes"]
    ]
    figures.worst_mistakes(worst).savefig(output / "worst_mistakes.png")


def to_picture(image: torch.Tensor) -> np.ndarray:
    """Turn a uint8 tensor (C, H, W) into an array (H, W) or (H, W, 3)."""
    return image.permute(1, 2, 0).squeeze(-1).numpy()


if __name__ == "__main__":
    sys.exit(run(main, get_args_parser().parse()))
