"""Train an image classifier: the full training job, on SageMaker or by hand.

    python train_model.py --train data/train --valid data/valid
    python train_model.py --train data/train --valid data/valid --augment shift-flip
    python train_model.py --train data/train --valid data/valid --epochs 3      # one minute
    python train_model.py --train data/dogs --valid data/dogs_valid --model resnet18 --lr 0.05
    python train_model.py --dry-run                                             # one step

Every epoch prints one line, which is also a row of <output-data-dir>/history.csv:

    epoch=3 train_loss=0.3102 train_accuracy=0.8891 valid_loss=0.2911 valid_accuracy=0.8950 \
lr=0.01 seconds=12.3

and the end is best_epoch=7 best_valid_accuracy=0.9210 best_valid_loss=0.2250. The weights of the
best epoch go to <model-dir>: model.safetensors, model.json and code/, what inference.py needs.
SIGTERM (SageMaker's stop) ends the training after the current step and still saves them.
"""

import argparse
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch
from torch.nn import functional as F

from vision.calibration import fit_temperature
from vision.classifier import Classifier
from vision.cli import ArgumentParser, add_dry_run, ranged, run
from vision.data import Split
from vision.training import (
    HistoryWriter,
    StopRequest,
    add_arguments,
    evaluate,
    fit,
    load_data,
    new_classifier,
)

HERE = Path(__file__).resolve().parent
# What the endpoint needs, and under which name inside the artifact's code/.
CODE = (
    (HERE / "inference.py", "inference.py"),
    (HERE / "vision", "vision"),
    (HERE / "requirements-inference.txt", "requirements.txt"),
)
PLACES = ("train", "valid", "model_dir", "output_data_dir", "dry_run")


def get_args_parser() -> ArgumentParser:
    parser = ArgumentParser(__doc__)
    # 14 epochs of Fashion-MNIST's 54,000 pictures take four minutes on two cores.
    recipe = add_arguments(parser, epochs=14)
    recipe.add_argument(
        "--threshold",
        type=ranged(float, 0, 1),
        default=0.0,
        help="confidence under which the endpoint gives no label; 0 always gives one",
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
        help="where history.csv goes ($SM_OUTPUT_DATA_DIR)",
    )
    add_dry_run(parser, "train one step on a few pictures and write everything")
    return parser


def main(args: argparse.Namespace) -> None:
    start = time.perf_counter()
    stop = StopRequest().listen()
    torch.manual_seed(args.seed)
    if args.dry_run:
        args.epochs = 1
    # Before the training, so that a place that cannot be written is known before an hour is over.
    on_epoch = HistoryWriter(Path(args.output_data_dir))
    Path(args.model_dir).mkdir(parents=True, exist_ok=True)

    train, valid = load_data(args)
    classifier = new_classifier(args, train)
    best = fit(classifier, train, valid, args, stop, on_epoch)
    describe(classifier, train, valid, args)
    classifier.facts["best_epoch"] = best.metrics.get("epoch", 0)
    classifier.facts["seconds"] = round(time.perf_counter() - start, 1)
    classifier.save(args.model_dir, CODE)
    if stop:
        which = f"of epoch {best.metrics['epoch']}" if best.metrics else "of the current step"
        print(f"stopped by SIGTERM: saved the weights {which}", flush=True)
    print(f"saved the model to {args.model_dir}", flush=True)


def describe(classifier: Classifier, train: Split, valid: Split, args: argparse.Namespace) -> None:
    """Fit the temperature and note what the classifier reaches and where it comes from.

    The metrics are those of the weights that are saved, in float32, on the validation pictures.
    """
    logits = classifier.logits(valid.images)
    classifier.temperature = fit_temperature(logits, valid.labels)
    classifier.threshold = args.threshold
    calibrated = F.cross_entropy(logits / classifier.temperature, valid.labels).item()
    hyperparameters = {key: value for key, value in vars(args).items() if key not in PLACES}
    classifier.facts = {
        "metrics": {**evaluate(classifier, valid), "valid_loss_calibrated": calibrated},
        "data_hash": train.data_hash,
        "train_pictures": len(train),
        "valid_pictures": len(valid),
        "hyperparameters": hyperparameters,
        "versions": {
            "python": sys.version.split()[0],
            **{name: version(name) for name in ("torch", "torchvision", "safetensors", "pillow")},
        },
    }


if __name__ == "__main__":
    sys.exit(run(main, get_args_parser().parse()))
