"""Feeds: which pictures a step learns from, and how they reach the network.

Everything random here is a function of the seed, the epoch and the place in it, never of what was
drawn before: a resumed training, a loader with workers and a group of processes see the same
pictures, changed in the same way.
"""

import atexit
import math
import multiprocessing
import signal
from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import DataLoader, Dataset

from vision.augment import Transform
from vision.classifier import forward_batch_size
from vision.data import Split
from vision.distributed import Group
from vision.errors import ExpectedError
from vision.preprocessing import Preprocessing
from vision.seeds import generator_of, seed_of

# A batch is divided into so many pictures at a time: the processes of a group take turns with
# these, and small pictures share one draw of the augmentation, whose price is by the call.
CHUNK = 8
LARGEST_SHARED_DRAW = 32  # pixels

# The seed of a chunk and the numbers of its pictures.
Chunk = tuple[int, torch.Tensor]


class PictureFeed(Dataset):
    """Pictures in memory, changed anew in every epoch.

    `augment` changes uint8 pictures; `mixup` is the alpha of Zhang et al. 2017, arXiv:1710.09412,
    and 0 leaves every picture by itself.
    """

    def __init__(
        self,
        split: Split,
        preprocessing: Preprocessing,
        augment: Transform | None = None,
        mixup: float = 0.0,
    ):
        self.split, self.preprocessing = split, preprocessing
        self.augment, self.mixup = augment, mixup
        self.labels, self.class_count = split.labels, len(split.class_names)
        self.share_draws = preprocessing.image_size <= LARGEST_SHARED_DRAW
        self.eval_batch = forward_batch_size(split.images)

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, numbers: torch.Tensor) -> "PictureFeed":
        """Return a feed of these pictures alone, in order: itself where that is all of them."""
        if len(numbers) == len(self):
            return self
        return PictureFeed(self.split.subset(numbers), self.preprocessing, self.augment, self.mixup)

    def __getitems__(self, chunks: Sequence[Chunk]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return uint8 pictures (N, C, H, W) and labels (N), or shares of labels (N, classes)."""
        made = [self._chunk(seed, numbers) for seed, numbers in chunks]
        return torch.cat([X for X, _ in made]), torch.cat([y for _, y in made])

    def _chunk(self, seed: int, numbers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        X, y = self.split.images[numbers], self.labels[numbers]
        # The default generator alone: torch.manual_seed would also reset those of the GPUs.
        torch.default_generator.manual_seed(seed)
        if self.augment and self.share_draws:
            X = self.augment(X)
        elif self.augment:
            X = torch.stack([self.augment(picture) for picture in X])
        if not self.mixup:
            return X, y
        share = torch.distributions.Beta(self.mixup, self.mixup).sample()
        targets = torch.nn.functional.one_hot(y, len(self.split.class_names)).float()
        mixed = X.float().lerp(X.roll(1, 0).float(), share)
        return mixed.round().to(torch.uint8), targets.lerp(targets.roll(1, 0), share)

    def plain(self, numbers: torch.Tensor) -> torch.Tensor:
        """Return the pictures as they are, for evaluation."""
        return self.split.images[numbers]

    def inputs(self, X: torch.Tensor, device: torch.device) -> torch.Tensor:
        """Return what the network takes, float32 on the device, for a batch of this feed."""
        X = self.preprocessing.normalise(X.to(device, non_blocking=True))
        return X.contiguous(memory_format=torch.channels_last)


class FeatureFeed(Dataset):
    """What a frozen backbone makes of each view of each picture: float32 (views, N, features)."""

    eval_batch = 4096

    def __init__(self, features: torch.Tensor, labels: torch.Tensor, class_count: int):
        self.features, self.labels, self.class_count = features, labels, class_count

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, numbers: torch.Tensor) -> "FeatureFeed":
        """Return a feed of these pictures alone, in order: itself where that is all of them."""
        if len(numbers) == len(self):
            return self
        return FeatureFeed(self.features[:, numbers], self.labels[numbers], self.class_count)

    def __getitems__(self, chunks: Sequence[Chunk]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return features (N, F) of a view drawn for each picture, and labels (N)."""
        numbers = torch.cat([numbers for _, numbers in chunks])
        # One seed for a whole step would differ between the processes of a group.
        views = [
            torch.randint(len(self.features), (len(n),), generator=torch.Generator().manual_seed(s))
            for s, n in chunks
        ]
        return self.features[torch.cat(views), numbers], self.labels[numbers]

    def plain(self, numbers: torch.Tensor) -> torch.Tensor:
        """Return the features of the unchanged pictures, for evaluation."""
        return self.features[0, numbers]

    def inputs(self, X: torch.Tensor, device: torch.device) -> torch.Tensor:
        """Return the features on the device."""
        return X.to(device, non_blocking=True)


Feed = PictureFeed | FeatureFeed


def steps_of(count: int, batch_size: int) -> int:
    """Return the number of steps of an epoch; each is of at least two pictures, where there are."""
    return min(math.ceil(count / batch_size), max(1, count // 2))


def plan(
    labels: torch.Tensor, batch_size: int, balanced: bool, seed: int, epoch: int
) -> tuple[torch.Tensor, ...]:
    """Return the picture numbers of each step of an epoch, in batches of nearly equal size.

    Every picture is in exactly one batch, and none is left alone: batch norm cannot learn from a
    single picture. `balanced` draws with replacement instead, every class equally often.
    """
    generator = generator_of(seed, epoch)
    if balanced:
        weights = 1 / torch.bincount(labels)[labels].double()
        order = torch.multinomial(weights, len(labels), replacement=True, generator=generator)
    else:
        order = torch.randperm(len(labels), generator=generator)
    return torch.tensor_split(order, steps_of(len(labels), batch_size))


def load(
    feed: Feed,
    steps: Sequence[torch.Tensor],
    first: int,
    seed: int,
    epoch: int,
    group: Group,
    workers: int,
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Yield (numbers, X, y) for this process's part of each step from `first` on.

    With `workers`, so many processes prepare the next batches while the network computes.
    Raises ExpectedError where a step has fewer chunks than the group has processes.
    """
    mine = []
    for step in range(first, len(steps)):
        chunks = [
            (seed_of(seed, epoch, step, place), numbers)
            for place, numbers in enumerate(steps[step].split(CHUNK))
        ]
        if len(chunks) < group.size:
            raise ExpectedError(
                f"a step of {len(steps[step])} pictures is too small for {group.size} processes: "
                f"give each at least {CHUNK} with a larger --batch-size"
            )
        mine.append(chunks[group.rank :: group.size])
    loader = DataLoader(
        feed,
        batch_sampler=mine,
        collate_fn=_as_it_is,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        prefetch_factor=4 if workers else None,
        worker_init_fn=_leave_stopping_to_the_main_process,
    )
    # A worker that starts must not be ended before it has learnt to ignore that.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        batches = iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    for chunks, (X, y) in zip(mine, batches, strict=True):
        yield torch.cat([numbers for _, numbers in chunks]), X, y


def _as_it_is(batch):
    return batch


def _leave_stopping_to_the_main_process(worker: int) -> None:
    # A job is stopped by a signal to all of its processes; without its workers the main process
    # could not finish its step and save the model.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


@atexit.register
def _end_workers() -> None:
    """End what an error has left; multiprocessing would use the signal that they ignore."""
    workers = multiprocessing.active_children()
    if workers:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's handler would raise here.
    for worker in workers:
        worker.kill()
