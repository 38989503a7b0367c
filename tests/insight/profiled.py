"""Small trainings under the profiler, and profiles written by hand."""

import csv
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, get_worker_info

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from vision.profile_files import PHASE_COLUMNS, STEP_COLUMNS, SYSTEM_COLUMNS
from vision.profiling import Profiler

CPU = torch.device("cpu")


class Batches(Dataset):
    """Batches of random pictures; loader worker 0 sleeps before each of its own."""

    def __init__(self, count, size, seconds=0.0):
        self.count, self.size, self.seconds = count, size, seconds

    def __len__(self):
        return self.count

    def __getitem__(self, number):
        if self.seconds and get_worker_info().id == 0:
            time.sleep(self.seconds)
        # Not a tensor: for that, this process would be woken again when the other one takes it.
        return np.random.default_rng(number).random((self.size, 3, 16, 16), np.float32)


class Training:
    """A small network and its steps; `rest(step)` runs in the forward part of each."""

    def __init__(self, profiler, rest=lambda step: None):
        self.profiler, self.rest, self.steps = profiler, rest, 0
        self.net = nn.Sequential(
            *(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
            *(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)),
        )
        self.exchange = lambda gradient: None

    def epoch(self, batches, number=1):
        batches = iter(batches)
        while True:
            with self.profiler.phase("data"):
                X = next(batches, None)
            if X is None:
                return
            self.step(torch.from_numpy(X), number)

    def step(self, X, epoch=1):
        phase = self.profiler.phase
        with phase("forward"):
            self.rest(self.steps)
            loss = self.net(X).square().mean()
        with phase("backward"):
            self.net.zero_grad()
            loss.backward()
            for weights in self.net.parameters():
                self.exchange(weights.grad)
        with phase("optimizer"), torch.no_grad():
            # torch.optim imports for seconds.
            for weights in self.net.parameters():
                weights -= 0.01 * weights.grad
        self.profiler.step(epoch, len(X))
        self.steps += 1


def _as_it_is(batch):
    return batch


def train(folder, batch=16, steps=60, workers=0, seconds=0.0, rest=lambda step: None, start=0.0):
    """Train, and return the folder of the profile."""
    started = time.time()
    time.sleep(start)
    with Profiler(folder, 0, 0.05, batch, workers, started, CPU) as profiler:
        data = Batches(steps, batch, seconds)
        feed = DataLoader(data, batch_size=None, num_workers=workers, collate_fn=_as_it_is)
        Training(profiler, rest).epoch(feed)
    return folder


def sleep(folder, steps, long):
    """Take steps that sleep, those in `long` for 0.1 s; return the folder of the profile."""
    with Profiler(folder, 0, 0.5, 1, 0, time.time(), CPU) as profiler:
        for step in range(steps):
            with profiler.phase("forward"):
                time.sleep(0.1 if step in long else 0.001)
            profiler.step(1, 1)
    return folder


def fork(function, *args):
    """Start a process that calls a function, without importing PyTorch again."""
    process = torch.multiprocessing.get_context("fork").Process(target=function, args=args)
    process.start()
    return process


def train_in_two(folder, pictures, extra=(0, 0)):
    """Train in two processes that wait for each other's gradients; return the folder.

    `pictures` are those of a step and `extra` further forward passes, of each process.
    """
    processes = [fork(_train_one, folder, rank, pictures[rank], extra[rank]) for rank in range(2)]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    return folder


def _train_one(folder, rank, pictures, extra):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}.store", rank=rank, world_size=2
    )
    torch.set_num_threads(1)
    X = torch.randn(pictures, 3, 16, 16)
    with Profiler(folder, rank, 0.05, 2 * pictures, 0, time.time(), CPU) as profiler:
        training = Training(profiler)

        def rest(step):
            with torch.no_grad():
                for _ in range(extra):
                    training.net(X)

        training.rest = rest
        training.exchange = torch.distributed.all_reduce
        end = time.time() + 1.2
        going = torch.ones(1)
        while going.item() == 1:
            training.step(X)
            # Enough steps on a busy machine, enough samples on any.
            end = max(end, time.time() + 0.01 * (training.steps < 14))
            going.fill_(time.time() < end)
            torch.distributed.all_reduce(going, torch.distributed.ReduceOp.MIN)
    torch.distributed.destroy_process_group()


def write_profile(folder, samples=(), steps=(), facts=None, rank=0):
    """Write a profile by hand: dicts of columns, those not given empty in samples, 0 in steps."""
    folder.mkdir(exist_ok=True)
    start = 1_800_000_000.0
    known = {
        **{"cores": 8, "memory_bytes": 2**35, "gpu": "NVIDIA A10G", "gpu_memory_bytes": 2**34},
        **{"rank": rank, "hostname": "algo-1", "interval_seconds": 0.5, "workers": 4},
        **{"batch_size": 32, "first_step": start, "started": start, "finished": start + 3600},
        **{"profiled_steps": None, "operator_calls": None, "operator_seconds": None},
    }
    (folder / f"profile-{rank}.json").write_text(json.dumps({**known, **(facts or {})}))
    system = [{"timestamp": start + 0.5 * i, **row} for i, row in enumerate(samples)]
    number = ({"epoch": 1, "step": i, "start": start + i, **row} for i, row in enumerate(steps))
    _write(folder / f"system-{rank}.csv", SYSTEM_COLUMNS, system, "")
    _write(folder / f"steps-{rank}.csv", STEP_COLUMNS, number, 0)
    _write(folder / f"phases-{rank}.csv", PHASE_COLUMNS, (), "")
    return folder


def _write(path, columns, rows, missing):
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, columns, restval=missing)
        table.writeheader()
        table.writerows(rows)
