"""The training loop of train_model.py and hpo.py."""

import argparse
import hashlib
import itertools
import json
import math
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from vision.checkpoint import Checkpoints
from vision.classifier import mean_logits
from vision.cpu import mend_bfloat16
from vision.distributed import Group
from vision.errors import ExpectedError
from vision.feeds import Feed, load, plan, steps_of
from vision.instruments import NoDebugger, NoProfiler
from vision.progress import METRICS, Best, Totals
from vision.schedules import share_of_peak
from vision.seeds import seed_of

SECONDS_BETWEEN_PROGRESS = 5
# Arguments that name folders of one machine.
PLACES = ("train", "valid", "features", "model_dir", "output_data_dir", "checkpoint_dir")
# Arguments that change what is seen of a training, not what it does.
WATCHING = ("debug", "debug_interval", "profile", "profile_interval")
# What may differ between a training and the one that goes on from its checkpoint.
NOT_OF_THE_RUN = (*PLACES, *WATCHING, "checkpoint_seconds", "max_seconds", "workers", "dry_run")
NOT_OF_THE_RUN += ("threshold", "wanted_precision")


def choose_device(precision: str, local_rank: int = 0) -> tuple[torch.device, torch.dtype | None]:
    """Choose where to train and in which precision: (device, autocast dtype or None).

    "auto" takes bfloat16 only where the hardware computes with it; elsewhere it is emulated and
    slower.
    """
    if torch.cuda.is_available():
        # Validation is to be float32 as it says.
        torch.backends.cudnn.allow_tf32 = False
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
        has_bfloat16 = torch.cuda.get_device_capability() >= (8, 0)
    else:
        if "OMP_NUM_THREADS" not in os.environ and hasattr(os, "sched_getaffinity"):
            # On Linux PyTorch counts physical cores; a cloud's vCPUs are hyper-threads of them.
            torch.set_num_threads(len(os.sched_getaffinity(0)))
        device = torch.device("cpu")
        has_bfloat16 = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    if precision == "auto":
        precision = "bfloat16" if has_bfloat16 else "float32"
    return device, None if precision == "float32" else getattr(torch, precision)


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


@torch.inference_mode()
def logits_of(
    model: nn.Module, feed: Feed, device: torch.device, group: Group, views: int = 1
) -> torch.Tensor:
    """Return float32 logits (N, classes) on the CPU, each process computing its share of them.

    Each is the mean over so many views of the picture, see `mean_logits`.
    """
    model.eval()
    numbers = torch.arange(len(feed))[group.share(len(feed))]
    rows = [
        mean_logits(model, feed.inputs(feed.plain(batch), device), views).float().cpu()
        for batch in numbers.split(feed.eval_batch)
    ]
    return group.joined(torch.cat(rows), len(feed))


def evaluate(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Return loss (cross-entropy, temperature 1) and accuracy of logits (N, classes)."""
    if len(logits) != len(labels):
        raise RuntimeError(f"{len(logits)} answers for {len(labels)} pictures")
    return {
        "valid_loss": F.cross_entropy(logits, labels).item(),
        "valid_accuracy": (logits.argmax(1) == labels).float().mean().item(),
    }


class Trainer:
    """One training run: what is trained, how, and how far it has come.

    `module` maps what `train.inputs` returns to logits (N, classes). All processes of a group
    hold the same weights after every step; only the main one prints and writes. `targets`
    (classes, classes) are the shares of all classes that each label stands for, itself alone
    where there are none. `debugger` and `profiler` look on and change nothing.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        module: nn.Module,
        train: Feed,
        valid: Feed,
        group: Group,
        stop: StopRequest,
        targets: torch.Tensor | None = None,
    ):
        self.args, self.train, self.valid = args, train, valid
        self.group, self.stop = group, stop
        self.device, self.dtype = choose_device(args.precision, group.local_rank)
        self.module = module.to(self.device, memory_format=torch.channels_last)
        if self.device.type == "cpu":
            mend_bfloat16(self.module)
        self.model = group.parallel(self.module, self.device)
        self.averaged = None
        if args.ema:
            average = get_ema_multi_avg_fn(args.ema)
            self.averaged = AveragedModel(self.module, multi_avg_fn=average, use_buffers=True)
        self.optimizer = _optimizer(args, self.module)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        self.loss = nn.CrossEntropyLoss(
            _class_weights(train).to(self.device) if args.balance == "weights" else None,
            label_smoothing=args.label_smoothing,
            reduction="none",
        )
        self.targets = None if targets is None else targets.to(self.device)
        self.workers = args.workers
        if args.workers is None:
            self.workers = (os.cpu_count() or 1) // 2 if self.device.type == "cuda" else 0
        self.steps_per_epoch = steps_of(len(train), args.batch_size)
        self.epoch, self.steps_done = 1, 0
        self.totals = Totals.zero(len(train), self.device)
        self.best, self.rows = Best(), []
        self.epoch_seconds = self.data_seconds = self.seconds_before = 0.0
        self.checkpoints: Checkpoints | None = None
        self.out_of_time = False
        self.debugger, self.profiler = NoDebugger(), NoProfiler()
        self.start = self.last_checkpoint = time.perf_counter()

    def __str__(self) -> str:
        precision = f"{self.precision} autocast" if self.dtype else self.precision
        count = sum(p.numel() for p in self.module.parameters() if p.requires_grad)
        processes = f"{self.group.size} processes, " if self.group.size > 1 else ""
        return (
            f"training {count:,} parameters of {self.args.model} with the recipe "
            f"{self.args.recipe} ({self.device.type}, {precision}, {processes}"
            f"{torch.get_num_threads()} threads, {self.workers} loader workers)"
        )

    @property
    def precision(self) -> str:
        """What networks compute in, whatever `--precision auto` meant on this machine."""
        return str(self.dtype or torch.float32).removeprefix("torch.")

    def fit(self, on_epoch: Callable[[dict[str, str]], None], pictures_hash: str) -> Best:
        """Train and leave the module with the weights of its best epoch.

        Prints one metric line an epoch and hands its values, as printed, to `on_epoch`, also
        those of the epochs before a checkpoint. Stopped before the first epoch ended, the module
        has the weights of that moment (with --ema, their average) and `metrics` is empty.
        """
        self.group.say(self)
        if self.args.checkpoint_dir:
            self._resume(pictures_hash)
        for row in self.rows:
            on_epoch(row)
        while not self._finished():
            metrics = self._run_epoch()
            if metrics is None:
                break
            row = {key: format(metrics[key], spec) for key, spec in METRICS.items()}
            self.group.say(" ".join(f"{key}={value}" for key, value in row.items()))
            on_epoch(row)
            self.rows.append(row)
            self.best.update(metrics, self._answering())
            if self.out_of_time:
                break
            self._next_epoch()
            self._checkpoint()
        if self.args.patience and self.best.epochs_since >= self.args.patience:
            self.group.say(
                f"no better validation accuracy in {self.args.patience} epochs: stopping"
            )
        answering = self._answering()
        if self.best.metrics:
            answering.load_state_dict(self.best.weights)
            self.group.say(self.best)
        self.module.load_state_dict(answering.state_dict())
        return self.best

    def valid_logits(self) -> torch.Tensor:
        """Return the logits (N, classes) of the validation pictures, in float32."""
        views = self.args.answer_views
        return logits_of(self._answering(), self.valid, self.device, self.group, views)

    @property
    def _done(self) -> int:
        """Steps done since the beginning of the training."""
        return (self.epoch - 1) * self.steps_per_epoch + self.steps_done

    def _answering(self) -> nn.Module:
        return self.averaged.module if self.averaged else self.module

    def _finished(self) -> bool:
        impatient = self.args.patience and self.best.epochs_since >= self.args.patience
        stopped = self.group.any(bool(self.stop))[0]
        return self.epoch > self.args.epochs or impatient or stopped

    def _next_epoch(self) -> None:
        self.epoch, self.steps_done = self.epoch + 1, 0
        self.totals = Totals.zero(len(self.train), self.device)
        self.epoch_seconds = self.data_seconds = 0.0

    def _run_epoch(self) -> dict[str, float] | None:
        """Train through what is left of an epoch and validate; None where stopped."""
        start = time.perf_counter()
        seconds_before = self.epoch_seconds
        may_validate = self._train_steps(start, seconds_before)
        if self.out_of_time or not may_validate:
            # In the middle of the epoch: with more time the same training goes on there.
            self._checkpoint()
        if not may_validate:
            return None
        totals = self.totals.over(self.group)
        seen = int(totals.seen.sum())
        if not self.out_of_time:
            self._check_all_seen(totals.seen)
        self._check_finite(totals.loss.item(), "training")
        with self.profiler.phase("validation"):
            logits = self.valid_logits()
            measured = evaluate(logits, self.valid.labels)
        # Of the weights after the last step, whose own loss nobody has seen yet.
        self._check_finite(measured["valid_loss"], "validation")
        self.debugger.validated(self._done, self.epoch, logits, self.valid.labels, measured)
        return {
            "epoch": self.epoch,
            "train_loss": totals.loss.item() / seen,
            "train_accuracy": totals.correct.item() / seen,
            **measured,
            "lr": self.optimizer.param_groups[0]["lr"],
            "seconds": seconds_before + time.perf_counter() - start,
            "data_seconds": self.data_seconds,
        }

    def _train_steps(self, start: float, seconds_before: float) -> bool:
        """Take the steps that are left of an epoch; return whether it may be validated.

        The pictures are augmented, so accuracy and loss read lower and higher than on plain ones.
        """
        self.model.train()
        args, last_print, first = self.args, start, self.steps_done
        steps = plan(
            self.train.labels, args.batch_size, args.balance == "sampler", args.seed, self.epoch
        )
        batches = load(self.train, steps, first, args.seed, self.epoch, self.group, self.workers)
        for step in itertools.count(first):
            waiting = time.perf_counter()
            with self.profiler.phase("data"):
                batch = next(batches, None)
            if batch is None:
                return True
            self.data_seconds += time.perf_counter() - waiting
            self._step(*batch, total=len(steps[step]))
            self.profiler.step(self.epoch, len(batch[0]))
            self.steps_done = step + 1
            now = time.perf_counter()
            self.epoch_seconds = seconds_before + now - start
            stopped, late, due = self.group.any(bool(self.stop), self._late(now), self._due(now))
            if stopped or late:
                self.out_of_time = late and not stopped
                return self.out_of_time
            if due and self.steps_done < len(steps):
                self._checkpoint()
            if now - last_print >= SECONDS_BETWEEN_PROGRESS:
                last_print = now
                self._print_progress(len(steps))
        return True

    def _step(self, numbers: torch.Tensor, X: torch.Tensor, y: torch.Tensor, total: int) -> None:
        """Do one optimiser step on this process's part of `total` pictures."""
        # Dropout of a step depends on nothing but the step, so that a resumed run draws the same.
        torch.manual_seed(seed_of(self.args.seed, self._done, self.group.rank))
        self._set_lr(self._done)
        self.debugger.begin(self._done, self.epoch)
        with self.profiler.phase("forward"):
            y = y.to(self.device, non_blocking=True)
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
                logits = self.model(self.train.inputs(X, self.device))
            losses = self.loss(logits.float(), self._target(y))
        with self.profiler.phase("backward"):
            self.optimizer.zero_grad()
            # The gradients of the processes are averaged: times their number makes that a sum,
            # over the pictures of all, whichever share each of them has.
            self.scaler.scale(losses.sum() * (self.group.size / total)).backward()
            self.scaler.unscale_(self.optimizer)
        right = logits.detach().argmax(1) == (y if y.ndim == 1 else y.argmax(1))
        self.debugger.end(self.optimizer.param_groups[0]["lr"], right)
        with self.profiler.phase("optimizer"):
            if self.args.clip_norm:
                nn.utils.clip_grad_norm_(self.module.parameters(), self.args.clip_norm)
            self.scaler.step(self.optimizer)
            self.scaler.update()
            if self.averaged:
                self.averaged.update_parameters(self.module)
        self.totals.loss += losses.detach().sum()
        self.totals.correct += right.sum()
        self.totals.seen.index_add_(0, numbers, torch.ones(len(numbers), dtype=torch.int32))

    def _target(self, y: torch.Tensor) -> torch.Tensor:
        """Return what the loss compares with, for labels (N) or shares of labels (N, classes)."""
        if self.targets is None:
            return y
        return self.targets[y] if y.ndim == 1 else y @ self.targets

    def _set_lr(self, step: int) -> None:
        steps = self.args.epochs * self.steps_per_epoch
        share = share_of_peak(
            self.args.schedule,
            step,
            steps,
            self.steps_per_epoch,
            self.args.warmup,
            self.args.gamma,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = self.args.lr * share

    def _check_finite(self, loss: float, which: str) -> None:
        if not math.isfinite(loss):
            raise ExpectedError(
                f"the {which} loss is no longer a finite number: "
                f"lower --lr (it is {self.args.lr:g}) or set --clip-norm 1"
            )

    def _check_all_seen(self, seen: torch.Tensor) -> None:
        """Raise where a mean would be over other pictures than all of them, once each."""
        if self.args.balance == "sampler":
            wrong = int(seen.sum() != len(self.train))
        else:
            wrong = int((seen != 1).sum())
        if wrong:
            raise RuntimeError(f"{wrong} of {len(self.train)} pictures were not seen exactly once")

    def _late(self, now: float) -> bool:
        limit = self.args.max_seconds
        return limit is not None and self.seconds_before + now - self.start >= limit

    def _due(self, now: float) -> bool:
        if self.checkpoints is None or not self.group.is_main:
            return False
        return now - self.last_checkpoint >= self.args.checkpoint_seconds

    def _print_progress(self, steps: int) -> None:
        if not self.group.is_main:
            return  # Its own totals may be empty: a checkpoint adds them up in the main process.
        seen = len(self.train) * self.steps_done / steps
        waited = self.data_seconds / max(self.epoch_seconds, 1e-9)
        self.group.say(
            f"  step {self.steps_done} of {steps}, {seen / self.epoch_seconds:.0f} pictures/s, "
            f"loss {self.totals.loss.item() / int(self.totals.seen.sum()):.4f}, "
            f"{waited:.0%} of the time waiting for data"
        )

    # --- Checkpoints ---------------------------------------------------------------------------

    def _checkpoint(self) -> None:
        if not self.args.checkpoint_dir:
            return
        with self.profiler.phase("checkpoint"):
            totals = self.totals.over(self.group)
            self.last_checkpoint = time.perf_counter()
            if not self.group.is_main:
                self.totals = Totals.zero(len(self.train), self.device)
                return
            self.totals = totals
            self.checkpoints.save(self._done, self._tensors(), self._facts())

    def _tensors(self) -> dict[str, torch.Tensor]:
        tensors = {f"total.{key}": value for key, value in vars(self.totals).items()}
        tensors |= {f"model.{key}": value for key, value in self.module.state_dict().items()}
        tensors |= {f"best.{key}": value for key, value in self.best.weights.items()}
        if self.averaged:
            tensors |= {f"ema.{key}": value for key, value in self.averaged.state_dict().items()}
        for number, values in self.optimizer.state_dict()["state"].items():
            for key, value in values.items():
                if value is not None:
                    tensors[f"optimizer.{number}.{key}"] = torch.as_tensor(value)
        return tensors

    def _facts(self) -> dict[str, Any]:
        return {
            "epoch": self.epoch,
            "steps_done": self.steps_done,
            "epoch_seconds": self.epoch_seconds,
            "data_seconds": self.data_seconds,
            "seconds": self.seconds_before + time.perf_counter() - self.start,
            "rows": self.rows,
            "best": self.best.metrics,
            "epochs_since": self.best.epochs_since,
            "scaler": self.scaler.state_dict(),
        }

    def _resume(self, pictures_hash: str) -> None:
        """Go on from the latest checkpoint of this very run, if there is one.

        `pictures_hash` stands for the pictures of both splits, the shapes of the weights for the
        architecture as the code has it now.
        """
        run = {k: v for k, v in vars(self.args).items() if k not in NOT_OF_THE_RUN}
        shapes = {key: list(value.shape) for key, value in self.module.state_dict().items()}
        facts = [run, pictures_hash, len(self.train), len(self.valid), shapes]
        text = json.dumps(facts, sort_keys=True)
        fingerprint = hashlib.sha256(text.encode()).hexdigest()
        self.checkpoints = Checkpoints(self.args.checkpoint_dir, fingerprint, self.group.say)
        state = self.checkpoints.load()
        if not self.group.all_equal(state[1]["digest"] if state else ""):
            raise ExpectedError(
                f"the processes see different checkpoints in {self.args.checkpoint_dir}: "
                "give them the same folder or none"
            )
        if state:
            self._restore(*state)
            self.group.say(f"resumed at epoch {self.epoch} after {self.steps_done} of its steps")

    def _restore(self, tensors: dict[str, torch.Tensor], facts: dict[str, Any]) -> None:
        def part(name: str) -> dict[str, torch.Tensor]:
            prefix = name + "."
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        self.module.load_state_dict(part("model"))
        if self.averaged:
            self.averaged.load_state_dict(part("ema"))
        state: dict[int, dict[str, torch.Tensor]] = {}
        for key, value in part("optimizer").items():
            number, _, name = key.partition(".")
            state.setdefault(int(number), {})[name] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.scaler.load_state_dict(facts["scaler"])
        if self.group.is_main:
            self.totals = Totals(**{k: v.to(self.device) for k, v in part("total").items()})
            self.totals.seen = self.totals.seen.cpu()
        self.best = Best(facts["best"], part("best"), facts["epochs_since"])
        self.epoch, self.steps_done = facts["epoch"], facts["steps_done"]
        self.epoch_seconds, self.data_seconds = facts["epoch_seconds"], facts["data_seconds"]
        self.seconds_before, self.rows = facts["seconds"], facts["rows"]


def _class_weights(feed: Feed) -> torch.Tensor:
    """Return a weight for each class; their mean over these pictures is one, so that --lr keeps
    its meaning. The few pictures of a dry run may be of some classes only."""
    counts = torch.bincount(feed.labels, minlength=feed.class_count)
    return len(feed) / (counts.count_nonzero() * counts.clamp(min=1))


def _optimizer(args: argparse.Namespace, module: nn.Module) -> torch.optim.Optimizer:
    parameters = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": args.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if args.optimizer == "adamw":
        # A shorter memory of squared gradients than PyTorch's 0.999: trainings here are short.
        return torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.99))
    return torch.optim.SGD(groups, lr=args.lr, momentum=0.9, nesterov=True)
