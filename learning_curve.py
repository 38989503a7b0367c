"""Measure how accuracy grows with the number of training pictures: a training job of its own.

    python learning_curve.py --train data/train --valid data/valid
    python learning_curve.py --train data/train --valid data/valid --features build/features \\
        --shares 0.1,0.5,1 --repeats 5
    python learning_curve.py --dry-run                                          # one step

It trains like hpo.py, on growing shares of the training pictures of each class, and on each share
several times: other pictures, another order. --epochs is for all pictures; with fewer it takes
more passes, because few pictures should not also mean few steps. Each share prints

    pictures=140 valid_accuracy=0.8952 lowest=0.8810 highest=0.9048 trainings=5

and learning_curve.csv in --output-data-dir gets a row for each training as soon as it has ended.
The accuracy is that of the last epoch: the best of many would flatter the trainings with many. No
model is kept, and the test pictures are never read.
"""

import argparse
import copy
import csv
import math
import os
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

from hpo import stratified_share
from vision.arguments import add_arguments
from vision.cli import ArgumentParser, add_dry_run, ranged, run
from vision.distributed import Group
from vision.feeds import Feed, steps_of
from vision.setup import Setup, prepare
from vision.training import StopRequest, Trainer

SHARES = "0.03,0.06,0.12,0.25,0.5,1"
# An epoch of few pictures costs more for its validation than for its steps.
MOST_EPOCHS = 10  # times --epochs
COLUMNS = ("share", "seed", "pictures", "valid_accuracy")


class Silent(Group):
    """One process that prints nothing: hundreds of epochs are of no interest each."""

    def say(self, text: object) -> None:
        pass


def get_args_parser() -> ArgumentParser:
    parser = ArgumentParser(__doc__)
    recipe = add_arguments(parser)
    recipe.add_argument(
        "--shares",
        type=shares,
        default=SHARES,
        help="shares of the training pictures of each class, joined by commas; at least two "
        "pictures of each are taken",
    )
    recipe.add_argument("--repeats", type=ranged(int, 1, 100), default=3, help="of each share")
    parser.add_argument(
        "--output-data-dir",
        default=os.environ.get("SM_OUTPUT_DATA_DIR", "build/output"),
        help="where learning_curve.csv goes ($SM_OUTPUT_DATA_DIR)",
    )
    add_dry_run(parser, "train one step on a few pictures")
    return parser


def shares(text: str) -> tuple[float, ...]:
    parse = ranged(float, 0.001, 1)
    return tuple(sorted({parse(part) for part in text.split(",")}))


def main(args: argparse.Namespace) -> None:
    output = Path(args.output_data_dir)
    output.mkdir(parents=True, exist_ok=True)
    if args.dry_run:
        args.epochs, args.shares, args.repeats = 1, (1.0,), 1
    # It starts over within minutes and would take the state of one training for another's.
    args.checkpoint_dir, args.patience = None, 0
    setup, stop = prepare(args), StopRequest().listen()
    with (output / "learning_curve.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for share in args.shares:
            rows = []
            for row in rows_of(args, setup, share, stop):
                rows.append(row)
                writer.writerow(row)
                file.flush()
            if rows:
                print(line(rows), flush=True)
            if stop:
                break
    if stop:
        print("stopped by SIGTERM: the trainings that had ended are kept", flush=True)


def rows_of(
    args: argparse.Namespace, setup: Setup, share: float, stop: StopRequest
) -> Iterator[dict[str, float]]:
    """Train on a share of the pictures again and again; yield a row for each that was not stopped.

    A row is one of learning_curve.csv.
    """
    for seed in range(args.seed, args.seed + args.repeats):
        train = setup.train.subset(stratified_share(setup.train.labels, share, seed))
        accuracy = accuracy_of(args, setup, train, seed, stop)
        if stop:
            return
        yield {"share": share, "seed": seed, "pictures": len(train), "valid_accuracy": accuracy}


def accuracy_of(
    args: argparse.Namespace, setup: Setup, train: Feed, seed: int, stop: StopRequest
) -> float:
    """Train on these pictures; return the accuracy of the last epoch, NaN if stopped before it."""
    passes = steps_of(len(setup.train), args.batch_size) / steps_of(len(train), args.batch_size)
    epochs = 1 if args.dry_run else math.ceil(args.epochs * min(passes, MOST_EPOCHS))
    own = argparse.Namespace(**{**vars(args), "seed": seed, "epochs": epochs})
    # All begin with the same weights.
    module = copy.deepcopy(setup.module)
    accuracies = [math.nan]
    trainer = Trainer(own, module, train, setup.valid, Silent(), stop, setup.targets)
    trainer.fit(lambda row: accuracies.append(float(row["valid_accuracy"])), setup.pictures_hash)
    return accuracies[-1]


def line(rows: list[dict[str, float]]) -> str:
    reached = [row["valid_accuracy"] for row in rows]
    return (
        f"pictures={rows[0]['pictures']} valid_accuracy={statistics.fmean(reached):.4f} "
        f"lowest={min(reached):.4f} highest={max(reached):.4f} trainings={len(rows)}"
    )


if __name__ == "__main__":
    sys.exit(run(main, get_args_parser().parse()))
