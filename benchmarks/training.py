"""How fast and how well the scripts train: every figure of the README's table, made again.

    python benchmarks/training.py                      # everything, seeds 0 to 2: many hours
    python benchmarks/training.py fashion --seeds 0    # one part of it, one seed
    python benchmarks/training.py --table              # write the README's table, measure nothing

Needs DATA_DIR with FashionMNIST, dogs, listings and bins. What is measured goes to
benchmarks/training.json, run by run, with the versions and the machine it was measured on; a run
replaces an earlier one of the same part and seed. The table in README.md is written from that
file. Figures are medians over seeds, with the lowest and the highest; test pictures are only ever
looked at by evaluate.py, after all training.
"""

import argparse
import csv
import json
import math
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from benchmarks.results import conditions, write_table  # noqa: E402

RESULTS = PROJECT / "benchmarks" / "training.json"
BEGIN = "<!-- written by make benchmarks -->"
SHARES = (0.7, 0.1, 0.2)
# The recipe of the sources: what such projects do, as their public notebooks show it.
SOURCE_EPOCHS, SOURCE_BATCH, SOURCE_LR = 20, 64, 0.01
# As many trials run at once as are measured without the cache: one round of the search.
TRIALS, UNCACHED_TRIALS = 20, 2
FOLDING_PICTURES = 256
# Clothes face either way: a mirrored one is as real.
FASHION = ("--augment", "shift,flip")
FASHION_WORDS = (*FASHION, "--answer-views", 2)
LONG_WORDS = ("--recipe", "small-long", "--augment", "shift,flip,erase", "--answer-views", 2)


def prepared(name, seed, shares=SHARES):
    """Return the data set of that name in DATA_DIR, split anew for every seed."""
    from studio.datasets import prepare

    root = PROJECT / "build" / "benchmarks" / "-".join(map(str, shares)) / str(seed)
    return prepare(name, root, seed, shares=shares)


def run(script, *words):
    """Run one of the entry points; return what it printed. Raises where it fails."""
    command = [sys.executable, PROJECT / script, *words]
    done = subprocess.run([str(w) for w in command], capture_output=True, text=True, cwd=PROJECT)
    if done.returncode:
        raise SystemExit(f"{script} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def train_and_test(dataset, folder, *words):
    """Train by train_model.py, then measure by evaluate.py; return the figures of both."""
    model, output = Path(folder) / "model", Path(folder) / "output"
    forget_features(dataset)
    start = time.perf_counter()
    run(
        *("train_model.py", "--train", dataset.folder / "train"),
        *("--valid", dataset.folder / "valid", "--model-dir", model),
        *("--output-data-dir", output, *words),
    )
    whole = time.perf_counter() - start
    rows = list(csv.DictReader((output / "history.csv").open()))
    report = Path(folder) / "evaluation"
    run(
        *("evaluate.py", "--model-dir", model, "--test", dataset.folder / "test"),
        *("--output", report),
    )
    evaluation = json.loads((report / "evaluation.json").read_text())
    return {
        "epochs": len(rows),
        "training_seconds": sum(float(row["seconds"]) for row in rows),
        "whole_seconds": whole,
        "valid_accuracy": max(float(row["valid_accuracy"]) for row in rows),
        "accuracy": evaluation["accuracy"],
        "interval": evaluation["accuracy_interval_95"],
        "counting": evaluation.get("counting"),
    }


def forget_features(dataset):
    """Remove what earlier runs computed, so that every run pays for its own."""
    for split in ("train", "valid"):
        for path in Path(f"{dataset.folder / split}-features").glob("*"):
            path.unlink()


def measured(name, seed, *words, shares=SHARES):
    """Train and test on a data set with one seed; return the figures."""
    with tempfile.TemporaryDirectory() as folder:
        return train_and_test(prepared(name, seed, shares), folder, "--seed", seed, *words)


def quick(seed):
    """Fashion-MNIST: the default model for two epochs."""
    return measured("fashion-mnist", seed, *FASHION, "--epochs", 2)


def fashion(seed):
    """Fashion-MNIST: the default model and recipe; an answer also asks about the mirror image."""
    return measured("fashion-mnist", seed, *FASHION_WORDS)


def long(seed):
    """Fashion-MNIST: the named recipe that takes longer."""
    return measured("fashion-mnist", seed, *LONG_WORDS)


def dogs(seed):
    """Photos of dogs: the default recipe for photos."""
    return measured("dogs", seed)


def listings(seed):
    """Photos of things for sale: the default recipe for photos."""
    return measured("listings", seed)


def bins(seed):
    """Photos of bins, to be counted: all layers learn. A crop would change the count.

    So few photos are soon known by heart: mixup, an average of the weights and a high learning rate
    put that off, and so do more of them. A wrong count is the less wrong the nearer it is. Learning
    rate and spread are those that notebooks/inventory_bins.ipynb chose on its validation photos.
    """
    words = ("--recipe", "photos-all", "--image-size", 224, "--augment", "shift,flip,vflip,color")
    words += ("--epochs", 12, "--lr", 1.28e-3, "--mixup", 0.4, "--ema", 0.99, "--dropout", 0.3)
    words += ("--weight-decay", 0.05, "--ordinal", 0.8, "--label-smoothing", 0)
    words += ("--answer-views", 4, "--patience", 0, "--max-seconds", 2400)
    return measured("bins", seed, *words, shares=(0.8, 0.05, 0.15))


def sources(seed):
    """The sources' way and ours to the best validation accuracy of both, on the same dogs.

    The sources freeze a ResNet-50, decode every picture in every epoch, send it through the whole
    network at 224 pixels in float32, and update the last layer, in batches of 64, 20 times. The
    seconds of such an epoch are measured with random weights, so that nothing has to be downloaded
    (the arithmetic is the same); the accuracies that they reach are efficientnet_lite0's. An epoch
    is one with its validation, on both sides.
    """
    dataset = prepared("dogs", seed)
    resnet50 = source_epochs(dataset, "resnet50", seed, epochs=1)
    same_model = source_epochs(dataset, "efficientnet_lite0", seed, SOURCE_EPOCHS)
    with tempfile.TemporaryDirectory() as folder:
        ours = time_of_ours(dataset, folder, seed)
    accuracies = same_model["valid_accuracies"]
    our_accuracies = [row["valid_accuracy"] for row in ours]
    target = min(max(accuracies), max(our_accuracies))
    epochs = next(i for i, accuracy in enumerate(accuracies, 1) if accuracy >= target)
    pictures = int(dataset.counts()[["train", "valid"]].sum().sum())
    return {
        "valid_accuracy": target,
        "their_epochs": epochs,
        "their_accuracies": accuracies,
        "our_accuracies": our_accuracies,
        "theirs_resnet50_seconds": epochs * resnet50["seconds"],
        "theirs_same_model_seconds": epochs * same_model["seconds"],
        "ours_seconds": next(r["until"] for r in ours if r["valid_accuracy"] >= target),
        "theirs_pictures_per_second": pictures / same_model["seconds"],
        "ours_pictures_per_second": pictures * epochs / ours[epochs - 1]["until"],
    }


def source_epochs(dataset, name, seed, epochs):
    """Train as the sources do; return the seconds of an epoch and the accuracy after each.

    The first one is run as they run it. What a frozen backbone makes of a picture stays the same,
    so that the others can learn from what it made in the first; each would take as long.
    """
    import torch
    from torch.nn import functional as F
    from torch.utils.data import DataLoader, TensorDataset
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    from vision.models import build_model, pretrained_preprocessing

    torch.manual_seed(seed)
    network = build_model(name, 3, len(dataset.class_names), pretrained=name != "resnet50")
    shape = pretrained_preprocessing("efficientnet_lite0", 224)
    change = transforms.Compose(
        [
            transforms.Resize(224),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize(shape.mean, shape.std),
        ]
    )
    train, valid = (ImageFolder(dataset.folder / split, change) for split in ("train", "valid"))
    network.set_trainable("head")
    network.eval()
    optimizer = torch.optim.Adam(network.head.parameters(), lr=SOURCE_LR)

    def learn(features, y):
        optimizer.zero_grad()
        F.cross_entropy(network.head(features), y).backward()
        optimizer.step()

    seen = []
    start = time.perf_counter()
    for X, y in DataLoader(train, SOURCE_BATCH, shuffle=True):
        seen.append((network.backbone(X), y))
        learn(*seen[-1])
    with torch.no_grad():
        checked = [(network.backbone(X), y) for X, y in DataLoader(valid, SOURCE_BATCH)]
    seconds = time.perf_counter() - start
    print(f"  {name}: an epoch of theirs takes {seconds:.1f} s", flush=True)
    if epochs == 1:
        return {"seconds": seconds}
    accuracies = []
    again = DataLoader(TensorDataset(*map(torch.cat, zip(*seen))), SOURCE_BATCH, shuffle=True)
    for epoch in range(epochs):
        for features, y in again if epoch else ():
            learn(features, y)
        with torch.no_grad():
            right = sum((network.head(f).argmax(1) == y).sum().item() for f, y in checked)
        # As precise as history.csv and the log have ours.
        accuracies.append(round(right / len(valid), 4))
    return {"seconds": seconds, "valid_accuracies": accuracies}


def time_of_ours(dataset, folder, seed):
    """Train with the photos recipe from nothing; return each epoch's end in seconds from the start.

    That counts decoding and the one pass through the backbone, for training and validation.
    """
    forget_features(dataset)
    start = time.perf_counter()
    command = [sys.executable, PROJECT / "train_model.py", "--patience", "0", "--views", "1"]
    command += ["--seed", seed]
    command += ["--train", dataset.folder / "train", "--valid", dataset.folder / "valid"]
    command += ["--model-dir", Path(folder) / "model", "--output-data-dir", Path(folder) / "output"]
    rows = []
    with subprocess.Popen([str(w) for w in command], stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.startswith("epoch="):
                values = dict(word.split("=") for word in line.split())
                until = time.perf_counter() - start
                rows.append({"until": until, "valid_accuracy": float(values["valid_accuracy"])})
    if process.returncode:
        raise SystemExit("train_model.py failed")
    return rows


def folding(seed):
    """The pictures per second of a frozen backbone as it is, and as the features are computed.

    That is: channels last, batch norms folded into convolutions, then under autocast to bfloat16,
    too. All in turns, three times, on the same photos of dogs; medians.
    """
    import torch

    from vision.classifier import forward_batch_size
    from vision.data import list_split, load_split, spread
    from vision.features import folded
    from vision.models import build_model, pretrained_preprocessing

    dataset = prepared("dogs", seed)
    entries = spread(list_split(dataset.folder / "train"), FOLDING_PICTURES)
    images = load_split(entries, dataset.class_names, 224, 3).images
    X = pretrained_preprocessing("efficientnet_lite0", 224).normalise(images)
    backbone = build_model("efficientnet_lite0", 3, 10, pretrained=True).backbone.eval()
    layout = torch.channels_last
    fast = folded(backbone).to(memory_format=layout)
    kinds = {
        "as_trained": (backbone, torch.contiguous_format, False),
        "folded": (fast, layout, False),
        "bfloat16": (fast, layout, True),
    }
    speeds = {name: [] for name in kinds}
    step = forward_batch_size(images)
    for _ in range(3):
        for name, (network, layout, autocast) in kinds.items():
            start = time.perf_counter()
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, autocast):
                for batch in X.split(step):
                    network(batch.contiguous(memory_format=layout))
            speeds[name].append(len(X) / (time.perf_counter() - start))
    return {f"{name}_pictures_per_second": statistics.median(s) for name, s in speeds.items()}


def search(seed):
    """A tuning job over 20 trials on bins whose features one processing job computed before.

    The same search without them is measured on UNCACHED_TRIALS trials, all at once; their seconds
    are scaled, those of starting and following the search are not.
    """
    from studio.cloud import connect
    from studio.datasets import pack

    cloud = connect("local")
    packed = pack(prepared("bins", seed), PROJECT / "build" / "benchmarks" / f"packed-{seed}")
    uris = {
        split: cloud.session.upload_data(
            str(packed[split]), cloud.bucket, f"{cloud.prefix}/data/{split}"
        )
        for split in ("train", "valid")
    }
    uncached, few_seconds = tuning_job(cloud, uris, UNCACHED_TRIALS, seed)
    start = time.perf_counter()
    uris["features"] = features_job(cloud, uris)
    pass_seconds = time.perf_counter() - start
    cached, search_seconds = tuning_job(cloud, uris, TRIALS, seed)
    rounds = TRIALS / UNCACHED_TRIALS
    return {
        "trials": len(cached),
        "pass_seconds": pass_seconds,
        "search_seconds": search_seconds,
        "uncached_trials": len(uncached),
        "uncached_seconds": few_seconds + (rounds - 1) * float(uncached["seconds"].max()),
        "best_valid_accuracy": float(cached["objective"].max()),
    }


def features_job(cloud, uris):
    """Run extract_features.py as a processing job; return where its output is."""
    from sagemaker.core.processing import FrameworkProcessor

    from studio.evaluation import channel, job_name, report
    from studio.jobs import follow, stage_source

    processor = FrameworkProcessor(
        image_uri=cloud.processing_image,
        command=["python3"],
        instance_type=cloud.processing_instance,
        instance_count=1,
        role=cloud.role,
        base_job_name=f"{cloud.run}-features",
        sagemaker_session=cloud.session,
    )
    target = cloud.s3_uri(f"features-{int(time.time())}")
    processor.run(
        code="extract_features.py",
        source_dir=stage_source(),
        inputs=[channel(split, uris[split]) for split in ("train", "valid")],
        outputs=[report("features", target)],
        wait=False,
        logs=False,
    )
    follow(cloud, job_name(processor), kind="ProcessingJob", show=re.compile("computed"))
    return target


def tuning_job(cloud, uris, trials, seed):
    """Search learning rate, batch size, weight decay and head.

    Returns the table of trials and the seconds from the start of the search to its end.
    """
    from sagemaker.core.parameter import CategoricalParameter, ContinuousParameter
    from sagemaker.core.training.configs import Compute, InputData, SourceCode
    from sagemaker.train import ModelTrainer
    from sagemaker.train.tuner import HyperparameterTuner

    from studio.jobs import follow_tuning, stage_source

    trial = ModelTrainer(
        training_image=cloud.training_image,
        source_code=SourceCode(source_dir=stage_source(), entry_script="hpo.py"),
        compute=Compute(instance_type=cloud.training_instance, instance_count=1),
        hyperparameters={"recipe": "photos"},
        base_job_name=f"{cloud.run}-trial",
        role=cloud.role,
        sagemaker_session=cloud.session,
    )
    tuner = HyperparameterTuner(
        trial,
        objective_metric_name="valid_accuracy",
        metric_definitions=[{"Name": "valid_accuracy", "Regex": r"best_valid_accuracy=([0-9.]+)"}],
        hyperparameter_ranges={
            "lr": ContinuousParameter(1e-4, 0.03, scaling_type="Logarithmic"),
            "batch-size": CategoricalParameter([32, 64, 128, 256]),
            "weight-decay": ContinuousParameter(1e-4, 0.1, scaling_type="Logarithmic"),
            "head-hidden": CategoricalParameter(["none", "256", "512"]),
        },
        max_jobs=trials,
        max_parallel_jobs=UNCACHED_TRIALS,
        random_seed=seed,
        base_tuning_job_name=cloud.run,
    )
    inputs = [InputData(channel_name=name, data_source=uri) for name, uri in uris.items()]
    start = time.perf_counter()
    tuner.tune(inputs=inputs, wait=False)
    table = follow_tuning(cloud, tuner.latest_tuning_job.get_name())
    return table, time.perf_counter() - start


def _words(words):
    return f"`{' '.join(map(str, words))}`"


@dataclass(frozen=True)
class Target:
    """What the median of a part's runs is to reach: a least accuracy, a most of the rest."""

    accuracy: float
    training_seconds: float = math.inf
    rmse: float = math.inf

    def __str__(self):
        words = [f"{self.accuracy:.3g}%"]
        words += [f"RMSE {self.rmse}"] if self.rmse < math.inf else []
        seconds = self.training_seconds
        time_allowed = f"{seconds / 60:.0f} min" if seconds > 60 else f"{seconds:.0f} s"
        return ", ".join(words) + (f" in {time_allowed}" if seconds < math.inf else "")


# Of each part: what measures it, what the table calls it and what it is to reach.
PARTS = {
    "quick": (quick, f"Fashion-MNIST, two epochs with {_words(FASHION)}", Target(90, 60)),
    "fashion": (
        fashion,
        f"Fashion-MNIST, default recipe with {_words(FASHION_WORDS)}",
        Target(93.5, 300),
    ),
    "long": (long, f"Fashion-MNIST, {_words(LONG_WORDS)}", Target(95, 1800)),
    "dogs": (dogs, "dogs, frozen backbone", Target(90)),
    "listings": (listings, "listings, frozen backbone", Target(98)),
    "bins": (bins, "bins, all layers", Target(38, 2400, 1.0)),
    "sources": (sources, "dogs", None),
    "folding": (folding, "efficientnet_lite0, frozen", None),
    "search": (search, "bins", None),
}


def table(results):
    """Return the README's table, as Markdown, of what was measured so far."""
    rows = ["| what | figure | time | target |", "| --- | --- | --- | --- |"]
    for part, (_, name, target) in PARTS.items():
        seeds = sorted(results.get(part, {}), key=int)
        figures = [results[part][seed]["figures"] for seed in seeds]
        if not figures:
            continue
        if part == "sources":
            rows += _source_rows(figures)
        elif part == "folding":
            rows.append(_folding_row(name, figures))
        elif part == "search":
            rows.append(_search_row(figures))
        else:
            rows.append(_row(name, seeds, figures, target))
    return "\n".join(rows)


def _row(name, seeds, figures, target):
    accuracy = [each["accuracy"] for each in figures]
    lows, highs = zip(*(each["interval"] for each in figures), strict=True)
    seconds = statistics.median(each["whole_seconds"] for each in figures)
    trained = statistics.median(each["training_seconds"] for each in figures)
    part = f"{trained:.0f} s" if trained >= 1 else "under 1 s"
    figure = f"{_span(accuracy, '.1%')} of the test pictures right"
    is_met = statistics.median(accuracy) >= target.accuracy / 100
    is_met &= trained <= target.training_seconds
    if figures[0]["counting"]:
        errors = [each["counting"]["expected"]["rmse"] for each in figures]
        figure += f", RMSE {_span(errors, '.2f')} of the expected count"
        is_met &= statistics.median(errors) <= target.rmse
    figure += f"; seeds {', '.join(seeds)}, 95% intervals within {min(lows):.1%}–{max(highs):.1%}"
    time_taken = f"{part} of training, {seconds:.0f} s in all"
    return f"| {name} | {figure} | {time_taken} | {target}: {_verdict(is_met)} |"


def _verdict(is_met):
    return "met" if is_met else "**missed**"


def _span(values, form):
    middle = format(statistics.median(values), form)
    if len(values) == 1:
        return f"{middle} (one run)"
    return f"{middle} ({min(values):{form}}–{max(values):{form}})"


def _source_rows(figures):
    def median(key):
        return statistics.median(each[key] for each in figures)

    def span(key, form):
        return _span([each[key] for each in figures], form)

    def ratios(theirs, ours):
        return [each[theirs] / each[ours] for each in figures]

    def times(theirs, ours):
        return _span(ratios(theirs, ours), ".1f")

    def reached(theirs, ours, least):
        return f"{least} times: {_verdict(statistics.median(ratios(theirs, ours)) >= least)}"

    ours, theirs = median("ours_seconds"), median("theirs_resnet50_seconds")
    return [
        "| dogs, to the best validation accuracy that the usual recipe and this one both reach, "
        f"{span('valid_accuracy', '.1%')}, theirs after epoch {span('their_epochs', '.0f')} of "
        f"{SOURCE_EPOCHS}: their frozen ResNet-50, run anew in every epoch, against "
        "efficientnet_lite0 on stored features | "
        f"{times('theirs_resnet50_seconds', 'ours_seconds')} times shorter; "
        f"{times('theirs_same_model_seconds', 'ours_seconds')} times with efficientnet_lite0 on "
        f"both sides | {ours:.0f} s against {theirs:.0f} s (one epoch of ResNet-50 measured, times "
        "the epochs that efficientnet_lite0 takes their way) | "
        f"{reached('theirs_resnet50_seconds', 'ours_seconds', 20)} |",
        "| dogs, pictures gone through per second in these epochs, efficientnet_lite0 on both "
        "sides, theirs in float32; ours from stored features after the first, and in bfloat16 "
        "where the processor has it | "
        f"{times('ours_pictures_per_second', 'theirs_pictures_per_second')} times as many | "
        f"{median('ours_pictures_per_second'):.0f} against "
        f"{median('theirs_pictures_per_second'):.0f} pictures/s | "
        f"{reached('ours_pictures_per_second', 'theirs_pictures_per_second', 2)} |",
    ]


def _folding_row(name, figures):
    plain, fast, faster = (
        statistics.median(each[f"{kind}_pictures_per_second"] for each in figures)
        for kind in ("as_trained", "folded", "bfloat16")
    )
    return (
        f"| {name}: channels last, batch norms folded into convolutions; in bfloat16, too | "
        f"{fast / plain:.1f} times as many; {faster / plain:.1f} times | "
        f"{fast:.0f} and {faster:.0f} against {plain:.0f} pictures/s | |"
    )


def _search_row(figures):
    def median(key):
        return statistics.median(each[key] for each in figures)

    return (
        f"| bins, search over {TRIALS} trials on a frozen backbone | "
        f"{median('search_seconds'):.0f} s, after one pass of {median('pass_seconds'):.0f} s that "
        f"later searches share | {median('uncached_seconds'):.0f} s without the cache (from "
        f"{UNCACHED_TRIALS} trials, scaled) | 180 s after the pass: "
        f"{_verdict(median('search_seconds') <= 180)} |"
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", help=f"some of {', '.join(PARTS)}; none for all")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2], help="one run each (default 0 1 2)"
    )
    parser.add_argument("--table", action="store_true", help="only write the table in README.md")
    args = parser.parse_args()
    for part in args.parts:
        if part not in PARTS:
            parser.error(f"no part {part!r}: name some of {', '.join(PARTS)}")
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    runs = [(part, seed) for seed in args.seeds for part in args.parts or PARTS]
    for part, seed in [] if args.table else runs:
        print(f"{part}, seed {seed}:", flush=True)
        figures = PARTS[part][0](seed)
        print(f"  {figures}", flush=True)
        results.setdefault(part, {})[str(seed)] = {"figures": figures, **conditions()}
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    write_table(BEGIN, table(results))


if __name__ == "__main__":
    main()
