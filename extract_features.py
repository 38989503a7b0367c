"""Compute what a frozen, pretrained backbone makes of all pictures, once, for many later jobs.

    python extract_features.py --train data/train --valid data/valid --output data/features
    python train_model.py --train data/train --valid data/valid --trainable head \\
        --features data/features

As a SageMaker processing job it reads /opt/ml/processing/train and valid and writes
/opt/ml/processing/features; later jobs get that as their channel "features". A file holds one
view of one split, named after all it depends on: pictures, model, weights and preprocessing. A
job whose pictures, --model, --image-size or --views differ finds nothing in it and computes its
own. They are float32, so that they serve trainings of every --precision. What --output holds
already is not computed again. Every 5 seconds the speed is printed:

      view 0: 1200 of 6120 pictures, 85 pictures/s
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from vision.cli import ArgumentParser, add_dry_run, ranged, run
from vision.data import (
    DRY_RUN_PICTURES,
    Entry,
    hash_split,
    list_split,
    load_split,
    natural_shape,
    spread,
)
from vision.features import cached_features
from vision.models import (
    MODEL_NAMES,
    Network,
    build_model,
    check_side,
    pretrained_preprocessing,
)
from vision.training import choose_device


def get_args_parser() -> ArgumentParser:
    parser = ArgumentParser(__doc__)
    parser.add_argument(
        "--train",
        default="/opt/ml/processing/train",
        help="pictures to learn from: class folders, .tar or RecordIO files",
    )
    parser.add_argument(
        "--valid",
        default="/opt/ml/processing/valid",
        help="pictures to choose by; left out where there is no such folder",
    )
    parser.add_argument(
        "--output", default="/opt/ml/processing/features", help="where the features go"
    )
    parser.add_argument(
        "--model",
        default="efficientnet_lite0",
        choices=MODEL_NAMES,
        help="architecture, with its ImageNet weights",
    )
    parser.add_argument(
        "--image-size",
        type=ranged(int, 8, 1024),
        help="side in pixels; otherwise the data's own up to 32, and 224 for larger pictures",
    )
    parser.add_argument(
        "--views",
        type=ranged(int, 1, 8),
        default=2,
        help="fixed changes of each training picture: itself, its mirror image, then crops",
    )
    add_dry_run(parser, "compute the features of a few pictures")
    return parser


def main(args: argparse.Namespace) -> None:
    # Before anything is read, so that a place that cannot be written is known at once.
    Path(args.output).mkdir(parents=True, exist_ok=True)
    train = list_split(args.train)
    image_size = args.image_size or natural_shape(train)[0]
    check_side(args.model, image_size)
    class_names = sorted({entry.class_name for entry in train})
    device, _ = choose_device("float32")
    network = build_model(args.model, 3, len(class_names), pretrained=True).to(device)
    extract(args, network, train, image_size, args.views)
    if Path(args.valid).is_dir():
        extract(args, network, list_split(args.valid), image_size, views=1)
    print(f"saved the features to {args.output}", flush=True)


def extract(
    args: argparse.Namespace, network: Network, entries: list[Entry], image_size: int, views: int
) -> None:
    """Leave the features of one split's views in --output."""
    if args.dry_run:
        entries = spread(entries, DRY_RUN_PICTURES)
    preprocessing = pretrained_preprocessing(args.model, image_size)

    class_names = sorted({entry.class_name for entry in entries})

    def load_images(entries: Sequence[Entry]) -> torch.Tensor:
        return load_split(entries, class_names, image_size, preprocessing.channels).images

    cached_features(
        network,
        preprocessing,
        entries,
        hash_split(entries),
        load_images,
        views,
        [Path(args.output)],
        must_keep=True,
    )


if __name__ == "__main__":
    sys.exit(run(main, get_args_parser().parse()))
