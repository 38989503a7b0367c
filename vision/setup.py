"""From the command line and the folders to a network and the feeds that it learns from."""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from vision import recipes
from vision.augment import build_augment, parse_augment
from vision.classifier import Classifier
from vision.data import (
    DRY_RUN_PICTURES,
    LARGEST_SMALL_PICTURE,
    Entry,
    Split,
    channel_statistics,
    hash_split,
    labels_of,
    list_split,
    load_split,
    natural_shape,
    spread,
)
from vision.errors import ExpectedError
from vision.features import cached_features
from vision.feeds import FeatureFeed, Feed, PictureFeed
from vision.models import Network, build_model, pretrained_preprocessing
from vision.preprocessing import Preprocessing


@dataclass
class Setup:
    """What a training begins with; `module` is the part of the classifier that is trained."""

    classifier: Classifier
    module: nn.Module
    train: Feed
    valid: Feed
    data_hash: str


def prepare(args: argparse.Namespace, say: Callable[[str], None] = print) -> Setup:
    """Read the data, complete the hyperparameters by the recipe, and build the network.

    The classes are those of the training pictures. Raises ExpectedError where folders, pictures
    or hyperparameters do not fit.
    """
    train_entries, valid_entries = list_split(args.train), list_split(args.valid)
    class_names = sorted({entry.class_name for entry in train_entries})
    if len(class_names) < 2:
        raise ExpectedError(f"{args.train} has one class only: a classifier needs at least two")
    natural_size, channels = natural_shape(train_entries)
    recipes.complete(args, natural_size <= LARGEST_SMALL_PICTURE)
    augment = parse_augment(args.augment)
    if args.dry_run:
        train_entries = spread(train_entries, DRY_RUN_PICTURES)
        valid_entries = spread(valid_entries, DRY_RUN_PICTURES)
    size = args.image_size or natural_size
    # The weights of ImageNet are for colour.
    channels = 3 if args.pretrained else channels
    network = _network(args, channels, len(class_names))
    reader = _Reader(class_names, size, channels, say)
    preprocessing = pretrained_preprocessing(args.model, size) if args.pretrained else None
    if args.trainable == "head":
        classifier = Classifier(args.model, network, preprocessing, class_names)
        # The second view is the mirror image.
        views = args.views if "flip" in augment else 1
        return _frozen(args, classifier, reader, train_entries, valid_entries, views)

    train, valid = reader.read(train_entries, "training"), reader.read(valid_entries, "validation")
    if preprocessing is None:
        preprocessing = Preprocessing(size, channels, *channel_statistics(train.images))
    classifier = Classifier(args.model, network, preprocessing, class_names)
    transform = build_augment(augment, size, preprocessing.mean)
    return Setup(
        classifier,
        network,
        PictureFeed(train, preprocessing, transform, args.mixup),
        PictureFeed(valid, preprocessing),
        train.data_hash,
    )


def _network(args: argparse.Namespace, channels: int, num_classes: int) -> Network:
    if args.trainable == "head" and not args.pretrained:
        raise ExpectedError(
            "--trainable head leaves the backbone as it is, and without --pretrained true that "
            "is random: choose --trainable all or pretrained weights"
        )
    torch.manual_seed(args.seed)
    network = build_model(
        args.model,
        channels,
        num_classes,
        pretrained=args.pretrained,
        head_hidden=args.head_hidden,
        dropout=args.dropout,
    )
    network.set_trainable(args.trainable)
    return network


def _frozen(
    args: argparse.Namespace,
    classifier: Classifier,
    reader: "_Reader",
    train_entries: list[Entry],
    valid_entries: list[Entry],
    train_views: int,
) -> Setup:
    """Set up the training of the head alone, on features that are computed once."""
    if torch.cuda.is_available():
        classifier.model.cuda()

    def feed(entries: list[Entry], folder: str, views: int, what: str) -> tuple[FeatureFeed, str]:
        labels, data_hash = labels_of(entries, reader.class_names), hash_split(entries)
        folders = [Path(args.features)] if args.features else []
        folders.append(Path(f"{Path(folder)}-features"))
        features = cached_features(
            classifier.model,
            classifier.preprocessing,
            data_hash,
            lambda: reader.read(entries, what).images,
            views,
            folders,
            reader.say,
        )
        return FeatureFeed(features, labels), data_hash

    train, data_hash = feed(train_entries, args.train, train_views, "training")
    valid, _ = feed(valid_entries, args.valid, 1, "validation")
    return Setup(classifier, classifier.model.head, train, valid, data_hash)


@dataclass
class _Reader:
    class_names: list[str]
    image_size: int
    channels: int
    say: Callable[[str], None]

    def read(self, entries: list[Entry], what: str) -> Split:
        start = time.perf_counter()
        split = load_split(entries, self.class_names, self.image_size, self.channels)
        self.say(
            f"read {len(split)} {what} pictures of {len(self.class_names)} classes as "
            f"{self.channels}×{self.image_size}×{self.image_size} "
            f"in {time.perf_counter() - start:.1f} seconds"
        )
        return split
