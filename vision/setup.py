"""From the command line and the folders to a network and the feeds that it learns from."""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from vision import recipes
from vision.augment import build_augment, parse_augment
from vision.classifier import Classifier
from vision.counts import are_counts
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
from vision.distributed import Group
from vision.errors import ExpectedError
from vision.features import cached_features
from vision.feeds import CHUNK, FeatureFeed, Feed, PictureFeed
from vision.models import Network, build_model, check_side, pretrained_preprocessing
from vision.preprocessing import Preprocessing
from vision.training import choose_device


@dataclass
class Setup:
    """What a training begins with; `module` is the part of the classifier that is trained.

    `data_hash` is that of the training pictures, `valid_hash` that of the validation pictures.
    `targets` (classes, classes) is what `ordinal_targets` returns, or None without --ordinal.
    """

    classifier: Classifier
    module: nn.Module
    train: Feed
    valid: Feed
    data_hash: str
    valid_hash: str
    targets: torch.Tensor | None

    @property
    def pictures_hash(self) -> str:
        """Stands for what a training learns from and for what it chooses its best epoch by."""
        return f"{self.data_hash}-{self.valid_hash}"


def prepare(args: argparse.Namespace, group: Group | None = None) -> Setup:
    """Read the data, complete the hyperparameters by the recipe, and build the network.

    The classes are those of the training pictures. Raises ExpectedError where folders, pictures
    or hyperparameters do not fit.
    """
    group = group or Group()
    train_entries, valid_entries = list_split(args.train), list_split(args.valid)
    class_names = sorted({entry.class_name for entry in train_entries})
    if len(class_names) < 2:
        raise ExpectedError(f"{args.train} has one class only: a classifier needs at least two")
    natural_size, channels = natural_shape(train_entries)
    recipes.complete(args, natural_size <= LARGEST_SMALL_PICTURE)
    augment = parse_augment(args.augment)
    _check_answer_views(args, augment)
    targets = ordinal_targets(class_names, args.ordinal) if args.ordinal else None
    if args.dry_run:
        # Every process gets a part of the one step.
        count = max(DRY_RUN_PICTURES, CHUNK * group.size)
        train_entries, valid_entries = spread(train_entries, count), spread(valid_entries, count)
    size = args.image_size or natural_size
    check_side(args.model, size)
    # The weights of ImageNet are for colour.
    channels = 3 if args.pretrained else channels
    network = _network(args, channels, len(class_names))
    reader = _Reader(class_names, size, channels, group.say)
    preprocessing = pretrained_preprocessing(args.model, size) if args.pretrained else None
    if args.trainable == "head" and args.cache_features:
        device, dtype = choose_device(args.precision, group.local_rank)
        network.to(device)
        classifier = Classifier(args.model, network, preprocessing, class_names)
        idle = [f"--augment {name}" for name in augment if name != "flip"]
        idle += ["--mixup"] if args.mixup else []
        if idle:
            group.say(
                f"{', '.join(idle)}: without effect on features that are computed once; "
                "--cache-features false computes them anew at every step"
            )
        # The second view is the mirror image.
        views = args.views if "flip" in augment else 1
        entries = (train_entries, valid_entries)
        dtype = dtype or torch.float32
        return _frozen(args, classifier, reader, entries, views, dtype, targets, group)

    train, valid = reader.read(train_entries, "training"), reader.read(valid_entries, "validation")
    if preprocessing is None:
        preprocessing = Preprocessing(size, channels, *channel_statistics(train.images))
    classifier = Classifier(args.model, network, preprocessing, class_names)
    classifier.answer_views = args.answer_views
    transform = build_augment(augment, size, preprocessing.mean)
    return Setup(
        classifier,
        network,
        PictureFeed(train, preprocessing, transform, args.mixup),
        PictureFeed(valid, preprocessing),
        train.data_hash,
        valid.data_hash,
        targets,
    )


def ordinal_targets(class_names: Sequence[str], sigma: float) -> torch.Tensor:
    """Return float32 shares (classes, classes) of all classes that each one stands for.

    They fall with the square of the distance, as exp(-d²/2σ²), and sum to one (soft ordinal
    vectors: Díaz and Marathe, CVPR 2019, "Soft Labels for Ordinal Regression", equation 1, with the
    squared error as the metric). Raises ExpectedError where a class name is not a whole number.
    """
    if not are_counts(class_names):
        raise ExpectedError(
            f"--ordinal is for classes that are numbers, not {', '.join(class_names[:3])}: "
            "leave it out"
        )
    numbers = torch.tensor([float(name) for name in class_names])
    return torch.softmax(-((numbers[:, None] - numbers) ** 2) / (2 * sigma**2), dim=1)


def _check_answer_views(args: argparse.Namespace, augment: Sequence[str]) -> None:
    needed = {1: (), 2: ("flip",), 4: ("flip", "vflip")}[args.answer_views]
    missing = [name for name in needed if name not in augment]
    if missing:
        raise ExpectedError(
            f"--answer-views {args.answer_views} asks about pictures that the network never "
            f"learnt from: add {', '.join(missing)} to --augment"
        )
    if needed and args.trainable == "head":
        raise ExpectedError(
            "--answer-views needs --trainable all or some stages: a frozen backbone is asked about "
            "every validation picture only as it is"
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
    entries: tuple[list[Entry], list[Entry]],
    train_views: int,
    dtype: torch.dtype,
    targets: torch.Tensor | None,
    group: Group,
) -> Setup:
    """Set up the training of the head alone, on features that are computed once.

    Those of the training pictures in `dtype`; validation is float32 in every training.
    """

    def feed(
        entries: list[Entry], folder: str, views: int, dtype: torch.dtype, what: str
    ) -> tuple[FeatureFeed, str, list[str]]:
        labels, data_hash = labels_of(entries, reader.class_names), hash_split(entries)
        folders = [Path(args.features)] if args.features else []
        folders.append(Path(f"{Path(folder)}-features"))
        features, precisions = cached_features(
            classifier.model,
            classifier.preprocessing,
            entries,
            data_hash,
            lambda mine: reader.read(mine, what).images,
            views,
            folders,
            reader.say,
            dtype,
            group=group,
        )
        return FeatureFeed(features, labels, len(reader.class_names)), data_hash, precisions

    train, data_hash, precisions = feed(entries[0], args.train, train_views, dtype, "training")
    valid, valid_hash, _ = feed(entries[1], args.valid, 1, torch.float32, "validation")
    # What an earlier run or job left decides it, too, and with it the weights.
    classifier.facts["features_precision"] = precisions
    return Setup(classifier, classifier.model.head, train, valid, data_hash, valid_hash, targets)


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
