"""The training loop of train_model.py and hpo.py."""

import argparse
import csv
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.nn import functional as F

from vision.classifier import Classifier
from vision.cli import ArgumentParser, ranged
from vision.data import (
    Split,
    channel_statistics,
    check_all_seen,
    list_split,
    load_split,
    natural_shape,
    spread,
)
from vision.errors import ExpectedError
from vision.models import MODEL_NAMES, build_model
from vision.preprocessing import Preprocessing

DRY_RUN_PICTURES = 16
SECONDS_BETWEEN_PROGRESS = 5
METRICS = {
    "epoch": "d",
    "train_loss": ".4f",
    "train_accuracy": ".4f",
    "valid_loss": ".4f",
    "valid_accuracy": ".4f",
    "lr": ".3g",
    "seconds": ".1f",
}


def add_arguments(parser: ArgumentParser, epochs: int) -> argparse._ArgumentGroup:
    """Add the folders and hyperparameters that training and search share; return the latter."""
    data = parser.add_argument_group("data: class folders, or .tar files of class folders")
    data.add_argument(
        "--train",
        default=os.environ.get("SM_CHANNEL_TRAIN", "data/train"),
        help="pictures to learn from ($SM_CHANNEL_TRAIN)",
    )
    data.add_argument(
        "--valid",
        default=os.environ.get("SM_CHANNEL_VALID", "data/valid"),
        help="pictures to choose by: epoch, temperature ($SM_CHANNEL_VALID)",
    )
    recipe = parser.add_argument_group("hyperparameters")
    recipe.add_argument("--model", default="small_resnet", choices=MODEL_NAMES, help="architecture")
    recipe.add_argument(
        "--epochs", type=ranged(int, 1), default=epochs, help="passes over the training pictures"
    )
    recipe.add_argument(
        "--batch-size", type=ranged(int, 2), default=256, help="pictures of one step, at most"
    )
    recipe.add_argument(
        "--lr",
        type=ranged(float, 0),
        default=0.2,
        help="peak learning rate: warmed up over the first fifth of all steps, then a cosine to 0; "
        "vgg16, which has no batch norm, wants 0.01",
    )
    recipe.add_argument(
        "--weight-decay",
        type=ranged(float, 0),
        default=5e-4,
        help="L2 penalty of the weights; biases and batch-norm scales have none",
    )
    recipe.add_argument(
        "--label-smoothing",
        type=ranged(float, 0, 0.99),
        default=0.05,
        help="share of the target spread over all classes; train_loss contains it",
    )
    recipe.add_argument(
        "--augment",
        choices=("none", "shift", "shift-flip"),
        default="shift",
        help="random changes of training pictures; flips only where left and right do not matter",
    )
    recipe.add_argument(
        "--patience",
        type=ranged(int, 0),
        default=5,
        help="stop after so many epochs without a better validation accuracy; 0 never does",
    )
    recipe.add_argument(
        "--image-size",
        type=ranged(int, 8, 1024),
        help="side in pixels; otherwise the data's own up to 32, and 224 for larger pictures",
    )
    recipe.add_argument(
        "--seed", type=ranged(int, 0), default=0, help="of weights, order and augmentation"
    )
    return recipe


def choose_device() -> tuple[torch.device, torch.dtype | None]:
    """Choose where to train and in which precision: (device, autocast dtype or None).

    bfloat16 only where the hardware computes with it; elsewhere it is emulated and slower.
    """
    if torch.cuda.is_available():
        # Validation is to be float32 as it says, and training uses bfloat16 anyway.
        torch.backends.cudnn.allow_tf32 = False
        return torch.device("cuda"), (
            torch.bfloat16 if torch.cuda.get_device_capability() >= (8, 0) else None
        )
    if "OMP_NUM_THREADS" not in os.environ and hasattr(os, "sched_getaffinity"):
        # On Linux PyTorch counts physical cores; a cloud's vCPUs are hyper-threads of them.
        torch.set_num_threads(len(os.sched_getaffinity(0)))
    has_bf16 = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    return torch.device("cpu"), torch.bfloat16 if has_bf16 else None


def load_data(args: argparse.Namespace) -> tuple[Split, Split]:
    """Read the training and validation pictures; the classes are those of the training set."""
    start = time.perf_counter()
    train_entries, valid_entries = list_split(args.train), list_split(args.valid)
    class_names = sorted({entry.class_name for entry in train_entries})
    if len(class_names) < 2:
        raise ExpectedError(f"{args.train} has one class only: a classifier needs at least two")
    natural_size, channels = natural_shape(train_entries)
    image_size = args.image_size or natural_size
    if args.dry_run:
        train_entries = spread(train_entries, DRY_RUN_PICTURES)
        valid_entries = spread(valid_entries, DRY_RUN_PICTURES)
    train = load_split(train_entries, class_names, image_size, channels)
    valid = load_split(valid_entries, class_names, image_size, channels)
    print(
        f"read {len(train)} training and {len(valid)} validation pictures of {len(class_names)} "
        f"classes as {channels}×{image_size}×{image_size} "
        f"in {time.perf_counter() - start:.1f} seconds",
        flush=True,
    )
    return train, valid


def new_classifier(args: argparse.Namespace, train: Split) -> Classifier:
    """Build an untrained classifier for the shape, classes, mean and std of a training set."""
    channels, image_size = train.images.shape[1], train.images.shape[2]
    mean, std = channel_statistics(train.images)
    return Classifier(
        args.model,
        build_model(args.model, channels, len(train.class_names)),
        Preprocessing(image_size, channels, mean, std),
        train.class_names,
    )


def augment(images: torch.Tensor, kind: str, generator: torch.Generator) -> torch.Tensor:
    """Shift each picture (N, C, H, W) by up to a twelfth of its side, and mirror half of them.

    What a shift uncovers repeats the edge, so that dark and light backgrounds both go on.
    """
    if kind == "none":
        return images
    n, _, height, width = images.shape

    def positions(length: int) -> torch.Tensor:
        reach = max(1, length // 12)
        shift = torch.randint(-reach, reach + 1, (n, 1), generator=generator)
        return (torch.arange(length) + shift).clamp(0, length - 1)

    rows, columns = positions(height), positions(width)
    if kind == "shift-flip":
        mirrored = torch.rand(n, 1, generator=generator) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    pictures = torch.arange(n)[:, None, None]
    return images[pictures, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def warmup_cosine(step: int, steps: int) -> float:
    """Return the share of the peak learning rate at `step`: up linearly, down as a cosine.

    The first fifth of the steps warms up; the cosine (Loshchilov & Hutter 2016,
    arXiv:1608.03983) ends at zero after the last one.
    """
    warmup = max(1, steps // 5)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup + 1) / (steps - warmup + 1)))


def batches(count: int, batch_size: int, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """Shuffle the numbers below `count` into batches of nearly equal size.

    Every picture is in exactly one batch, and none is left alone: batch norm cannot learn from
    a single picture.
    """
    order = torch.randperm(count, generator=generator)
    return torch.tensor_split(order, math.ceil(count / batch_size))


class StopRequest:
    """Whether the process was asked to end (SIGTERM, as SageMaker stops a job)."""

    def __init__(self):
        self.received = False

    def listen(self) -> "StopRequest":
        """From now on, SIGTERM sets `received` instead of ending the process."""
        signal.signal(signal.SIGTERM, self._receive)
        return self

    def _receive(self, signum, frame) -> None:
        self.received = True

    def __bool__(self) -> bool:
        return self.received


class Recipe:
    """Optimiser, schedule and precision of one training run."""

    def __init__(self, args: argparse.Namespace, classifier: Classifier, train: Split):
        self.device, self.dtype = choose_device()
        self.args = args
        self.generator = torch.Generator().manual_seed(args.seed)
        model = classifier.model.to(self.device, memory_format=torch.channels_last)
        parameters = list(model.parameters())
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": args.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.SGD(groups, lr=args.lr, momentum=0.9, nesterov=True)
        steps = args.epochs * math.ceil(len(train) / args.batch_size)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: warmup_cosine(step, steps)
        )

    def __str__(self) -> str:
        precision = "bfloat16 autocast" if self.dtype else "float32"
        return f"{self.device.type}, {precision}, {torch.get_num_threads()} threads"

    def step(self, classifier: Classifier, images: torch.Tensor, labels: torch.Tensor):
        """Do one optimiser step; return (mean loss, correct answers) as tensors."""
        X = classifier.preprocessing.normalise(images.to(self.device))
        y = labels.to(self.device)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            logits = classifier.model(X.contiguous(memory_format=torch.channels_last))
        logits = logits.float()
        loss = F.cross_entropy(logits, y, label_smoothing=self.args.label_smoothing)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()
        return loss.detach(), (logits.detach().argmax(1) == y).sum()


def train_one_epoch(
    classifier: Classifier, train: Split, recipe: Recipe, stop: StopRequest
) -> dict[str, float] | None:
    """Train on every picture once; return the means over samples, or None where stopped.

    The pictures are augmented, so accuracy and loss read lower and higher than on plain ones.
    """
    classifier.model.train()
    total_loss = torch.zeros((), device=recipe.device)
    correct = torch.zeros((), dtype=torch.long, device=recipe.device)
    seen, start, last_print = 0, time.perf_counter(), time.perf_counter()
    order = batches(len(train), recipe.args.batch_size, recipe.generator)
    for step, batch in enumerate(order, start=1):
        lr = recipe.optimizer.param_groups[0]["lr"]
        images = augment(train.images[batch], recipe.args.augment, recipe.generator)
        loss, right = recipe.step(classifier, images, train.labels[batch])
        total_loss += loss * len(batch)
        correct += right
        seen += len(batch)
        if stop:
            return None
        now = time.perf_counter()
        if now - last_print >= SECONDS_BETWEEN_PROGRESS:
            last_print = now
            speed = seen / (now - start)
            mean_loss = total_loss.item() / seen
            print(
                f"  step {step} of {len(order)}, {speed:.0f} pictures/s, loss {mean_loss:.4f}",
                flush=True,
            )
    check_all_seen(seen, train)
    if not math.isfinite(total_loss.item()):
        raise ExpectedError(
            f"the training loss is no longer a finite number: lower --lr (it is {recipe.args.lr})"
        )
    return {
        "train_loss": total_loss.item() / seen,
        "train_accuracy": correct.item() / seen,
        "lr": lr,
    }


def evaluate(classifier: Classifier, split: Split) -> dict[str, float]:
    """Return loss (cross-entropy, temperature 1) and accuracy, means over the split's samples."""
    logits = classifier.logits(split.images)
    check_all_seen(len(logits), split)
    return {
        "valid_loss": F.cross_entropy(logits, split.labels).item(),
        "valid_accuracy": (logits.argmax(1) == split.labels).float().mean().item(),
    }


@dataclass
class Best:
    """The epoch of best validation accuracy so far, and its weights."""

    metrics: dict[str, float] = field(default_factory=dict)
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    epochs_since: int = 0

    def update(self, metrics: dict[str, float], model: torch.nn.Module) -> None:
        """Take the weights where the accuracy is better than ever; count the epochs since."""
        if self.metrics and metrics["valid_accuracy"] <= self.metrics["valid_accuracy"]:
            self.epochs_since += 1
            return
        self.metrics, self.epochs_since = metrics, 0
        self.weights = {key: value.detach().clone() for key, value in model.state_dict().items()}

    def __str__(self) -> str:
        return (
            f"best_epoch={self.metrics['epoch']} "
            f"best_valid_accuracy={self.metrics['valid_accuracy']:.4f} "
            f"best_valid_loss={self.metrics['valid_loss']:.4f}"
        )


def epochs(
    classifier: Classifier, train: Split, valid: Split, recipe: Recipe, stop: StopRequest
) -> Iterator[dict[str, float]]:
    """Train epoch by epoch and yield the metrics of each; ends early where stopped."""
    for epoch in range(1, recipe.args.epochs + 1):
        start = time.perf_counter()
        trained = train_one_epoch(classifier, train, recipe, stop)
        if trained is None:
            return
        measured = evaluate(classifier, valid)
        seconds = time.perf_counter() - start
        yield {"epoch": epoch, **trained, **measured, "seconds": seconds}
        if stop:
            return


def fit(
    classifier: Classifier,
    train: Split,
    valid: Split,
    args: argparse.Namespace,
    stop: StopRequest,
    on_epoch: Callable[[dict[str, str]], None] = lambda row: None,
) -> Best:
    """Train and leave the classifier with the weights of its best epoch.

    Prints one metric line an epoch and hands its values, as printed, to `on_epoch`. Stopped
    before the first epoch ended, the classifier keeps its current weights and `metrics` is empty.
    """
    recipe = Recipe(args, classifier, train)
    count = sum(p.numel() for p in classifier.model.parameters())
    print(f"training {args.model} with {count} parameters ({recipe})", flush=True)
    best = Best()
    for metrics in epochs(classifier, train, valid, recipe, stop):
        row = {key: format(metrics[key], spec) for key, spec in METRICS.items()}
        print(" ".join(f"{key}={value}" for key, value in row.items()), flush=True)
        on_epoch(row)
        best.update(metrics, classifier.model)
        if args.patience and best.epochs_since >= args.patience:
            print(f"no better validation accuracy in {args.patience} epochs: stopping", flush=True)
            break
    if best.metrics:
        classifier.model.load_state_dict(best.weights)
        print(best, flush=True)
    return best


class HistoryWriter:
    """history.csv: one row an epoch, on disk at once, so that a job cut short keeps it."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "history.csv"
        with self.path.open("w", newline="") as file:
            csv.DictWriter(file, METRICS).writeheader()

    def __call__(self, row: dict[str, str]) -> None:
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, METRICS).writerow(row)
