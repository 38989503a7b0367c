"""What it costs to look into a training: time and space of --debug true and --profile true.

    python benchmarks/debugging.py                  # resnet18 at 64 pixels: ten minutes
    python benchmarks/debugging.py --epochs 1 --pictures 512 --rounds 1 --no-table
    python benchmarks/debugging.py --table          # write the README's table, measure nothing

Trains on generated pictures without anything, with the debugger and with the profiler, each first
in its turn, so that whatever else the machine does meets all three; one training before the first
round warms the machine up. Each is compared with the training without anything of its own round:
seconds of all epochs as history.csv has them, and seconds that processors worked for the whole
process, from its start to the last file. Every round goes to benchmarks/debugging.json, from which
the README's table is written.
"""

import argparse
import csv
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from benchmarks.results import conditions, write_table  # noqa: E402

RESULTS = PROJECT / "benchmarks" / "debugging.json"
BEGIN = "<!-- written by benchmarks/debugging.py -->"
INTRODUCTION = """What it costs to look, measured by `python benchmarks/debugging.py`, each round
against a training without either; medians of {rounds} rounds, with the lowest and the highest. Time
is that of the epoch; the work of the processors is that of the whole process, also before the
training and, once, after it, when the profiler sums up and packs what it recorded."""
RUNS = {"off": (), "debug": ("--debug", "true"), "profile": ("--profile", "true")}
# What the table calls each, and what it is to stay below.
WATCHED = {
    "debug": ("the debugger, at its default interval", "10%, 50 MB"),
    "profile": ("the profiler, at its default interval", "3%"),
}
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
    """Train in a process of its own; return seconds of all epochs, of processors, and megabytes."""
    command = [
        *(sys.executable, PROJECT / "train_model.py"),
        *("--train", data / "train", "--valid", data / "valid", "--output-data-dir", output),
        *("--model-dir", output / "model", "--model", args.model, "--image-size", args.size),
        *("--recipe", "photos-all", "--pretrained", "false", "--patience", 0),
        *("--epochs", args.epochs, "--batch-size", args.batch_size, *words),
    ]
    before = processor_seconds()
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    worked = processor_seconds() - before
    if done.returncode:
        raise SystemExit(f"train_model.py failed:\n{done.stdout}{done.stderr}")
    with (output / "history.csv").open() as file:
        seconds = sum(float(row["seconds"]) for row in csv.DictReader(file))
    written = [p for name in ("tensors", "profile") for p in (output / name).rglob("*")]
    megabytes = sum(path.stat().st_size for path in written if path.is_file()) / 1e6
    if words and not megabytes:
        raise SystemExit(f"{' '.join(words)} wrote nothing:\n{done.stdout}")
    shutil.rmtree(output)
    return {"seconds": seconds, "processor_seconds": worked, "megabytes": megabytes}


def processor_seconds():
    """Return the seconds that processors worked for the processes that this one waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure(args):
    """Return what each round of trainings took: a list of {run: figures}."""
    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        write_pictures(data / "train", args.pictures, args.size, 1)
        write_pictures(data / "valid", args.pictures // 5, args.size, 2)
        train(data, Path(folder) / "output", args)
        for number in range(args.rounds):
            rounds.append({})
            first = number % len(RUNS)
            for name in [*RUNS][first:] + [*RUNS][:first]:
                figures = train(data, Path(folder) / "output", args, *RUNS[name])
                rounds[-1][name] = figures
                print(f"round {number + 1} {name}: {figures}", flush=True)
    return rounds


def table(results):
    """Return the README's table, as Markdown: medians over the rounds of a measurement."""
    rounds, settings = results["rounds"], results["settings"]
    rows = ["| what | time | work of the processors | written | target |", "|" + " --- |" * 5]
    for name, (words, target) in WATCHED.items():
        written = statistics.median(each[name]["megabytes"] for each in rounds)
        rows.append(
            f"| {words} | {_cost(rounds, name, 'seconds')} | "
            f"{_cost(rounds, name, 'processor_seconds')} | {written:.1f} MB | {target} |"
        )
    base = statistics.median(each["off"]["seconds"] for each in rounds)
    rows.append(
        f"| neither: {settings['model']} at {settings['size']} pixels, "
        f"{settings['epochs'] * settings['pictures']:,} pictures | {base:.0f} s | | nothing | |"
    )
    return "\n".join(rows)


def _cost(rounds, name, key):
    costs = [each[name][key] / each["off"][key] - 1 for each in rounds]
    return f"{statistics.median(costs):+.1%} ({min(costs):+.1%} to {max(costs):+.1%})"


def main(args):
    if not args.table:
        measured = {"settings": vars(args), "rounds": measure(args), **conditions()}
        if args.no_table:
            print(table(measured))
            return
        RESULTS.write_text(json.dumps(measured, indent=1) + "\n")
    results = json.loads(RESULTS.read_text())
    introduction = INTRODUCTION.format(rounds=len(results["rounds"]))
    write_table(BEGIN, f"{introduction}\n\n{table(results)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--size", type=int, default=64, help="side of the pictures in pixels")
    parser.add_argument("--pictures", type=int, default=6400)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--table", action="store_true", help="only write the table in README.md")
    parser.add_argument("--no-table", action="store_true", help="print the table, keep nothing")
    main(parser.parse_args())
