"""How far a training has come: its sums, its best epoch, and the history that it writes."""

import csv
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from vision.distributed import Group

METRICS = {
    "epoch": "d",
    "train_loss": ".4f",
    "train_accuracy": ".4f",
    "valid_loss": ".4f",
    "valid_accuracy": ".4f",
    "lr": ".3g",
    "seconds": ".1f",
    "data_seconds": ".1f",
}


@dataclass
class Best:
    """The epoch of best validation accuracy so far, and its weights."""

    metrics: dict[str, float] = field(default_factory=dict)
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    epochs_since: int = 0

    def update(self, metrics: dict[str, float], model: nn.Module) -> None:
        """Take the weights where they are better than ever; count the epochs since.

        Better is the higher accuracy, and of equal ones, frequent with few pictures, the lower
        loss.
        """
        if self.metrics and _merit(metrics) <= _merit(self.metrics):
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


def _merit(metrics: dict[str, float]) -> tuple[float, float]:
    return metrics["valid_accuracy"], -metrics["valid_loss"]


@dataclass
class Totals:
    """Sums over the part of an epoch that is done: loss, right answers, and how often each
    picture was seen."""

    loss: torch.Tensor
    correct: torch.Tensor
    seen: torch.Tensor

    @classmethod
    def zero(cls, count: int, device: torch.device) -> "Totals":
        return cls(
            torch.zeros((), dtype=torch.float64, device=device),
            torch.zeros((), dtype=torch.long, device=device),
            torch.zeros(count, dtype=torch.int32),
        )

    def over(self, group: Group) -> "Totals":
        """Return the totals of all processes together."""
        return Totals(*(group.sum(value) for value in (self.loss, self.correct, self.seen)))


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
