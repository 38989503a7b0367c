"""What it costs to look into a training: time and space of --debug true and --profile true.

    python benchmarks/debugging.py                  # resnet18 at 64 pixels: half an hour
    python benchmarks/debugging.py --epochs 1 --pictures 512 --rounds 1

Trains on generated pictures, in turns without anything, with the debugger and with the profiler,
so that whatever else the machine does meets all three. Prints medians over the rounds: seconds of
all epochs as history.csv has them, the cost in percent, and the megabytes written.
"""

import argparse
import csv
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

PROJECT = Path(__file__).resolve().parent.parent
RUNS = {"off": (), "debug": ("--debug", "true"), "profile": ("--profile", "true")}
CLASSES = 10


def write_pictures(folder, count, size, seed):
    """Write `count` pictures of noise on one of ten colours, a folder for each class."""
    rng = np.random.default_rng(seed)
    colours = np.random.default_rng(0).integers(60, 196, (CLASSES, 3))
    for number in range(count):
        label = number % CLASSES
        pixels = colours[label] + rng.normal(0, 40, (size, size, 3))
        path = folder / f"class{label}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)


def train(data, output, args, *words):
    """Train in a process of its own; return (seconds of all epochs, megabytes written)."""
    command = [
        *(sys.executable, PROJECT / "train_model.py"),
        *("--train", data / "train", "--valid", data / "valid", "--output-data-dir", output),
        *("--model-dir", output / "model", "--model", args.model, "--image-size", args.size),
        *("--recipe", "photos-all", "--pretrained", "false", "--patience", 0),
        *("--epochs", args.epochs, "--batch-size", args.batch_size, *words),
    ]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"train_model.py failed:\n{done.stdout}{done.stderr}")
    with (output / "history.csv").open() as file:
        seconds = sum(float(row["seconds"]) for row in csv.DictReader(file))
    written = [p for name in ("tensors", "profile") for p in (output / name).rglob("*")]
    megabytes = sum(path.stat().st_size for path in written if path.is_file()) / 1e6
    if words and not megabytes:
        raise SystemExit(f"{' '.join(words)} wrote nothing:\n{done.stdout}")
    shutil.rmtree(output)
    return seconds, megabytes


def main(args):
    measured = {name: [] for name in RUNS}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        write_pictures(data / "train", args.pictures, args.size, 1)
        write_pictures(data / "valid", args.pictures // 5, args.size, 2)
        for number in range(args.rounds):
            for name, words in RUNS.items():
                figures = train(data, Path(folder) / "output", args, *words)
                measured[name].append(figures)
                print(f"round {number + 1} {name}: {figures[0]:.1f} s", flush=True)
    base = statistics.median(seconds for seconds, _ in measured["off"])
    print(f"{args.model} at {args.size} pixels, medians of {args.rounds} rounds")
    for name, figures in measured.items():
        seconds, megabytes = (statistics.median(column) for column in zip(*figures))
        cost = 100 * (seconds / base - 1)
        print(f"{name:8} {seconds:8.1f} s {cost:+6.1f} % {megabytes:8.2f} MB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--size", type=int, default=64, help="side of the pictures in pixels")
    parser.add_argument("--pictures", type=int, default=6400)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    main(parser.parse_args())
