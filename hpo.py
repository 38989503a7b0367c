"""Try one set of hyperparameters: a short trial of the search, on SageMaker or by hand.

    python hpo.py --train data/train --valid data/valid --lr 0.02 --batch-size 128
    python hpo.py --train data/train --valid data/valid --train-share 0.1 --epochs 2
    python hpo.py --train data/dogs --valid data/dogs_valid --features build/features
    python hpo.py --dry-run                                                     # one step

It trains like train_model.py, on a share of the training pictures and for fewer epochs, and
prints the same lines. A search maximises valid_accuracy, or best_valid_accuracy of the last line:

    epoch=3 train_loss=0.3102 train_accuracy=0.8891 valid_loss=0.2911 valid_accuracy=0.8950 \
lr=0.01 seconds=12.3 data_seconds=0.4
    best_epoch=3 best_valid_accuracy=0.8950 best_valid_loss=0.2911

Where the names of the classes are whole numbers, one more line says by how much the expected count
is off, with the temperature that the model would be given:

    count_rmse=0.9812 count_within_one=0.8105

No model is kept, and the test pictures are never read: whoever chooses by them cannot measure
with them afterwards.
"""

import argparse
import sys

import torch

from vision.arguments import add_arguments
from vision.calibration import fit_temperature
from vision.cli import ArgumentParser, add_dry_run, ranged, run
from vision.counts import are_counts, counting
from vision.distributed import Group
from vision.setup import prepare
from vision.training import StopRequest, Trainer


def get_args_parser() -> ArgumentParser:
    parser = ArgumentParser(__doc__)
    recipe = add_arguments(parser)
    recipe.add_argument(
        "--train-share",
        type=ranged(float, 0.001, 1),
        help="share of the training pictures of each class that a trial learns from; otherwise "
        "1 with a frozen backbone and less without",
    )
    add_dry_run(parser, "train one step on a few pictures")
    return parser


def main(args: argparse.Namespace) -> None:
    stop = StopRequest().listen()
    group = Group.join()
    if args.dry_run:
        args.epochs, args.train_share = 1, 1.0
    setup = prepare(args, group)
    train = setup.train.subset(stratified_share(setup.train.labels, args.train_share, args.seed))
    trainer = Trainer(args, setup.module, train, setup.valid, group, stop, setup.targets)
    trainer.fit(lambda row: None, setup.pictures_hash)
    names = setup.classifier.class_names
    if are_counts(names):
        group.say(count_line(trainer.valid_logits(), setup.valid.labels, names))
    if stop:
        group.say("stopped by SIGTERM")
    group.leave()


def stratified_share(labels: torch.Tensor, share: float, seed: int) -> torch.Tensor:
    """Return the numbers of a random share of each class, of at least two pictures where it can."""
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        count = max(2, round(share * len(members)))
        chosen.append(members[torch.randperm(len(members), generator=generator)[:count]])
    return torch.cat(chosen).sort().values


def count_line(logits: torch.Tensor, labels: torch.Tensor, class_names: list[str]) -> str:
    """Return how far the expected counts of logits (N, classes) are off, as a line of the log."""
    temperature = fit_temperature(logits, labels)
    probabilities = torch.softmax(logits.double() / temperature, dim=1)
    errors = counting(labels.numpy(), probabilities.numpy(), class_names)["expected"]
    return f"count_rmse={errors['rmse']:.4f} count_within_one={errors['within_one']:.4f}"


if __name__ == "__main__":
    sys.exit(run(main, get_args_parser().parse()))
