"""Try one set of hyperparameters: a short trial of the search, on SageMaker or by hand.

    python hpo.py --train data/train --valid data/valid --lr 0.1 --batch-size 128
    python hpo.py --train data/train --valid data/valid --train-share 0.1 --epochs 2
    python hpo.py --dry-run                                                     # one step

It trains like train_model.py, on a share of the training pictures and for fewer epochs, and
prints the same lines. A search maximises valid_accuracy, or best_valid_accuracy of the last line:

    epoch=3 train_loss=0.3102 train_accuracy=0.8891 valid_loss=0.2911 valid_accuracy=0.8950 \
lr=0.01 seconds=12.3
    best_epoch=3 best_valid_accuracy=0.8950 best_valid_loss=0.2911

No model is kept, and the test pictures are never read: whoever chooses by them cannot measure
with them afterwards.
"""

import argparse
import sys

import torch

from vision.cli import ArgumentParser, add_dry_run, ranged, run
from vision.data import Split
from vision.training import StopRequest, add_arguments, fit, load_data, new_classifier


def get_args_parser() -> ArgumentParser:
    parser = ArgumentParser(__doc__)
    recipe = add_arguments(parser, epochs=4)
    recipe.add_argument(
        "--train-share",
        type=ranged(float, 0.001, 1),
        default=0.25,
        help="share of the training pictures of each class that a trial learns from",
    )
    add_dry_run(parser, "train one step on a few pictures")
    return parser


def main(args: argparse.Namespace) -> None:
    stop = StopRequest().listen()
    torch.manual_seed(args.seed)
    if args.dry_run:
        args.epochs, args.train_share = 1, 1.0
    train, valid = load_data(args)
    train = stratified_share(train, args.train_share, args.seed)
    fit(new_classifier(args, train), train, valid, args, stop)
    if stop:
        print("stopped by SIGTERM", flush=True)


def stratified_share(split: Split, share: float, seed: int) -> Split:
    """Return a random share of each class, at least two pictures of every one that has two."""
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for label in split.labels.unique():
        members = (split.labels == label).nonzero().flatten()
        count = max(2, round(share * len(members)))
        chosen.append(members[torch.randperm(len(members), generator=generator)[:count]])
    return split.subset(torch.cat(chosen).sort().values)


if __name__ == "__main__":
    sys.exit(run(main, get_args_parser().parse()))
