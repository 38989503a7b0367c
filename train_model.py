"""Train an image classifier: the full training job, on SageMaker or by hand.

    python train_model.py --train data/train --valid data/valid
    python train_model.py --train data/train --valid data/valid --augment shift,flip
    python train_model.py --train data/train --valid data/valid --epochs 3      # a look
    python train_model.py --train data/dogs --valid data/dogs_valid             # photos: a
        # pretrained network whose last layer is trained, in seconds
    python train_model.py --train data/dogs --valid data/dogs_valid --recipe photos-all
    python train_model.py --train data/train --valid data/valid --debug true --profile true
    torchrun --nproc-per-node 2 train_model.py --train data/train --valid data/valid
    python train_model.py --dry-run                                             # one step

Every epoch prints one line, which is also a row of <output-data-dir>/history.csv:

    epoch=3 train_loss=0.3102 train_accuracy=0.8891 valid_loss=0.2911 valid_accuracy=0.8950 \
lr=0.01 seconds=12.3 data_seconds=0.4

and the end is best_epoch=7 best_valid_accuracy=0.9210 best_valid_loss=0.2250. The weights of the
best epoch go to <model-dir>: model.safetensors, model.json and code/, what inference.py needs.
SIGTERM (SageMaker's stop) ends the training after the current step and still saves them. With
--checkpoint-dir a training that was cut short, also by kill -9, goes on where it was and ends
with the weights that it would have had. --debug true and --profile true let it be seen from
inside: tensors for the debugger's rules go to <output-data-dir>/tensors, measurements of the
machine and of every step to <output-data-dir>/profile. Neither changes the weights.
"""

import argparse
import contextlib
import hashlib
import os
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch.nn import functional as F

from vision.arguments import add_arguments, add_watching
from vision.calibration import choose_threshold, fit_temperature
from vision.cli import ArgumentParser, add_dry_run, ranged, run
from vision.distributed import Group
from vision.instruments import watching
from vision.models import LITE0_PACKAGE
from vision.progress import HistoryWriter
from vision.setup import Setup, prepare
from vision.training import PLACES, WATCHING, StopRequest, Trainer, evaluate

HERE = Path(__file__).resolve().parent
# What the endpoint needs, and under which name inside the artifact's code/.
CODE = (
    (HERE / "inference.py", "inference.py"),
    (HERE / "vision", "vision"),
    (HERE / "requirements-inference.txt", "requirements.txt"),
)


def get_args_parser() -> ArgumentParser:
    parser = ArgumentParser(__doc__)
    add_arguments(parser)
    answers = parser.add_argument_group("answers").add_mutually_exclusive_group()
    answers.add_argument(
        "--threshold",
        type=ranged(float, 0, 1),
        default=0.0,
        help="confidence under which the endpoint gives no label; 0 always gives one",
    )
    answers.add_argument(
        "--wanted-precision",
        type=ranged(float, 0, 1),
        help="choose that threshold so that this share of the labels that are given is right on "
        "the validation pictures",
    )
    places = parser.add_argument_group("results")
    places.add_argument(
        "--model-dir",
        default=os.environ.get("SM_MODEL_DIR", "build/model"),
        help="where the model goes ($SM_MODEL_DIR)",
    )
    places.add_argument(
        "--output-data-dir",
        default=os.environ.get("SM_OUTPUT_DATA_DIR", "build/output"),
        help="where history.csv goes, and what --debug and --profile saw ($SM_OUTPUT_DATA_DIR)",
    )
    add_watching(parser)
    add_dry_run(parser, "train one step on a few pictures and write everything")
    return parser


def main(args: argparse.Namespace) -> None:
    start = time.perf_counter()
    stop = StopRequest().listen()
    group = Group.join()
    if args.dry_run:
        args.epochs = 1
    on_epoch = ignore_epoch
    if group.is_main:
        # Before the training, so that a place that cannot be written is known before an hour.
        on_epoch = HistoryWriter(Path(args.output_data_dir))
        Path(args.model_dir).mkdir(parents=True, exist_ok=True)

    setup = prepare(args, group)
    trainer = Trainer(args, setup.module, setup.train, setup.valid, group, stop, setup.targets)
    with watching(trainer, Path(args.output_data_dir), run_facts(setup, args)):
        best = trainer.fit(on_epoch, setup.pictures_hash)
    logits = trainer.valid_logits()
    if group.is_main:
        describe(setup, logits, args)
        setup.classifier.facts["best_epoch"] = best.metrics.get("epoch", 0)
        setup.classifier.facts["processes"] = group.size
        setup.classifier.facts["computed_on"] = {
            "device": trainer.device.type,
            "precision": trainer.precision,
            "threads": torch.get_num_threads(),
        }
        setup.classifier.facts["seconds"] = round(time.perf_counter() - start, 1)
        setup.classifier.save(args.model_dir, CODE)
        if stop:
            which = f"of epoch {best.metrics['epoch']}" if best.metrics else "of the current step"
            print(f"stopped by SIGTERM: saved the weights {which}", flush=True)
        print(f"saved the model to {args.model_dir}", flush=True)
    group.leave()


def describe(setup: Setup, logits: torch.Tensor, args: argparse.Namespace) -> None:
    """Fit temperature and threshold and note what the classifier reaches and where it comes from.

    The metrics are those of the weights that are saved, in float32, on the validation pictures,
    whose logits (N, classes) these are.
    """
    classifier, labels = setup.classifier, setup.valid.labels
    classifier.temperature = fit_temperature(logits, labels)
    classifier.threshold = args.threshold
    calibrated = F.cross_entropy(logits / classifier.temperature, labels).item()
    counts = torch.bincount(setup.train.labels, minlength=len(classifier.class_names))
    classifier.facts |= {
        "metrics": {**evaluate(logits, labels), "valid_loss_calibrated": calibrated},
        "data_hash": setup.data_hash,
        "valid_hash": setup.valid_hash,
        "train_pictures": len(setup.train),
        "train_counts": dict(zip(classifier.class_names, counts.tolist(), strict=True)),
        "valid_pictures": len(setup.valid),
        "hyperparameters": hyperparameters(args, WATCHING),
        "code_hash": code_hash(),
        "versions": versions(),
    }
    if args.wanted_precision is not None:
        probabilities = torch.softmax(logits.double() / classifier.temperature, dim=1)
        wanted = args.wanted_precision
        threshold, coverage, precision = choose_threshold(probabilities, labels, wanted)
        classifier.threshold = threshold
        classifier.facts["abstention"] = {
            "wanted_precision": wanted,
            "threshold": threshold,
            "coverage": coverage,
            "precision": precision,
        }
        print(
            f"threshold={threshold:.4f} coverage={coverage:.4f} precision={precision:.4f}",
            flush=True,
        )


def run_facts(setup: Setup, args: argparse.Namespace) -> dict[str, object]:
    """Return what the reports of debugger and profiler say about this run."""
    return {
        "hyperparameters": hyperparameters(args),
        "versions": versions(),
        "class_names": setup.classifier.class_names,
    }


def hyperparameters(args: argparse.Namespace, without: tuple[str, ...] = ()) -> dict[str, object]:
    """Return the arguments, less folders and those `without`."""
    return {k: v for k, v in vars(args).items() if k not in (*PLACES, *without, "dry_run")}


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that decide what a training gives."""
    found = {"python": sys.version.split()[0]}
    for name in ("torch", "torchvision", "safetensors", "pillow", "timm", LITE0_PACKAGE):
        # The last two only where efficientnet_lite0 is to be had.
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def code_hash() -> str:
    """Return the SHA-256 over this script and the modules that it shares, by name and content."""
    total = hashlib.sha256()
    for path in (Path(__file__), *sorted((HERE / "vision").glob("*.py"))):
        total.update(path.name.encode() + b"\0" + path.read_bytes())
    return total.hexdigest()


def ignore_epoch(row: dict[str, str]) -> None:
    """Write nothing: the main process writes for all."""


if __name__ == "__main__":
    sys.exit(run(main, get_args_parser().parse()))
