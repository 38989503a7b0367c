"""What a training job leaves in its output folder, made here within seconds."""

import csv
import json
import logging
from pathlib import Path

import numpy as np
import smdebug.pytorch as smd
import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[2]
STARTED = 1_790_000_000.0
EPOCHS, STEPS = 3, 12
INTERVAL = 0.5
SYSTEM = (
    *("timestamp", "cpu_percent", "memory_percent", "memory_used_bytes", "process_cpu_percent"),
    *("disk_read_bytes", "disk_write_bytes", "iowait_percent", "network_sent_bytes"),
    *("network_received_bytes", "gpu_percent", "gpu_memory_percent"),
)
# Seconds of a step by part; 0.01 more of each belong to none of them.
PARTS = {"data": 0.15, "forward": 0.11, "backward": 0.2, "optimizer": 0.03}
STEP, VALIDATION, CHECKPOINT, INITIALIZATION, END = 0.5, 0.6, 0.2, 2.5, 1.0


def write_output(folder, gpu=False):
    """Write everything that training with --debug true --profile true writes."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_history(folder)
    write_run(folder)
    write_profile(folder / "profile", gpu)
    write_tensors(folder / "tensors")
    return folder


def write_rows(path, names, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows(rows)


def write_history(folder):
    names = ("epoch", "train_loss", "train_accuracy", "valid_loss", "valid_accuracy", "lr")
    rows = [
        (1, 1.61, 0.41, 1.32, 0.55, 0.001, 7.1, 0.8),
        (2, 0.92, 0.68, 0.871, 0.712, 0.0007, 6.9, 0.7),
        (3, 0.53, 0.82, 0.94, 0.70, 0.0001, 7.0, 0.7),
    ]
    write_rows(folder / "history.csv", (*names, "seconds", "data_seconds"), rows)


def write_run(folder):
    run = {
        "hyperparameters": {"model": "small_resnet", "lr": 0.001, "debug": True, "augment": None},
        "versions": {"python": "3.11.2", "torch": torch.__version__, "smdebug": "1.0.34"},
        "model": "small_resnet",
        "class_names": ["bag", "boot", "coat"],
        "train_pictures": 192,
        "valid_pictures": 48,
        "processes": 1,
        "device": "cpu",
        "started": STARTED,
        "batch_size": 16,
    }
    (folder / "run.json").write_text(json.dumps(run))


def write_profile(folder, gpu):
    phases, steps, now = [("initialization", STARTED, INITIALIZATION)], [], STARTED + INITIALIZATION
    for epoch in range(1, EPOCHS + 1):
        for _ in range(STEPS):
            steps.append((epoch, len(steps), now, *PARTS.values(), STEP, 16))
            now += STEP
        phases.append(("validation", now, VALIDATION))
        phases.append(("checkpoint", now + VALIDATION, CHECKPOINT))
        now += VALIDATION + CHECKPOINT
    finished = now + END
    names = ("epoch", "step", "start", *PARTS, "seconds", "pictures")
    write_rows(folder / "steps-0.csv", names, steps)
    write_rows(folder / "phases-0.csv", ("name", "start", "seconds"), phases)
    write_system(folder, finished, gpu)
    operators = [
        ("aten::convolution_backward", 15, 81.25, 83.0, 0.0, "[[16, 8, 16, 16]]"),
        ("aten::mkldnn_convolution", 15, 40.5, 41.0, 0.0, "[[16, 1, 16, 16]]"),
        ("aten::add_", 90, 3.25, 3.25, 0.0, "[[8]]"),
    ]
    names = ("operator", "calls", "self_cpu_ms", "cpu_ms", "self_gpu_ms", "input_shapes")
    write_rows(folder / "operators.csv", names, operators)
    facts = {
        "cores": 2,
        "memory_bytes": 8 * 2**30,
        "gpu": "NVIDIA T4" if gpu else None,
        "gpu_memory_bytes": 16 * 2**30 if gpu else None,
        "rank": 0,
        "hostname": "algo-1",
        "interval_seconds": INTERVAL,
        "workers": 0,
        "batch_size": 16,
        "first_step": STARTED + INITIALIZATION,
        "started": STARTED,
        "finished": finished,
    }
    (folder / "profile-0.json").write_text(json.dumps(facts))


def write_system(folder, finished, gpu):
    rng = np.random.default_rng(0)
    rows = []
    for i, now in enumerate(np.arange(STARTED, finished, INTERVAL)):
        busy = 92 if i > 4 else 35
        cpu = float(np.clip(busy + rng.normal(0, 4), 0, 100))
        memory = 30 + 15 * min(1, i / 20)
        card = (71 + 5 * rng.normal(), 38.0) if gpu else ("", "")
        rates = (4e6 * (i < 5), 3e5 * rng.uniform(), 0.4, 2e4 * rng.uniform(), 5e4 * rng.uniform())
        rows.append((now, cpu, memory, memory / 100 * 2**33, 2 * cpu, *rates, *card))
    write_rows(folder / "system-0.csv", SYSTEM, rows)


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        layers = [nn.Conv2d(1, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2), nn.ReLU()]
        self.backbone = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Sequential(nn.Linear(16, 3))

    def forward(self, X):
        return self.head(self.backbone(X))


def write_tensors(folder):
    """Train a tiny network under smdebug's hook, which saves every third step; weights whole."""
    logging.getLogger("smdebug").setLevel(logging.ERROR)
    torch.manual_seed(0)
    hook = smd.Hook(
        out_dir=str(folder),
        save_config=smd.SaveConfig(save_interval=3),
        include_collections=["weights", "biases", "gradients", "losses", "activity"],
    )
    for name in ("biases", "gradients"):
        hook.get_collection(name).reduction_config = smd.ReductionConfig(
            reductions=["min", "max", "mean", "std", "variance"],
            abs_reductions=["mean", "max"],
            norms=["l2"],
        )
    hook.get_collection("activity").include("^activity/")
    model, loss = Network(), nn.CrossEntropyLoss(reduction="none")
    hook.register_module(model)
    hook.register_loss(loss)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    X, y = torch.randn(96, 1, 16, 16), torch.arange(96) % 3
    X += y[:, None, None, None]
    for _ in range(EPOCHS):
        hook.set_mode(smd.modes.TRAIN)
        for batch in torch.arange(96).split(8):
            optimizer.zero_grad()
            values = loss(model(X[batch]), y[batch])
            share = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 62.0, 70.0, 100.0])
            hook.save_tensor("activity/backbone.1", share, "activity")
            hook.save_tensor("activity/backbone.3", share.flip(0) + 0.5, "activity")
            values.mean().backward()
            optimizer.step()
        hook.set_mode(smd.modes.EVAL)
        with torch.no_grad():
            for batch in torch.arange(96).split(32):
                loss(model(X[batch]), y[batch])
    hook.close()
