import csv
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from importlib.metadata import version

import pytest
import torch
from safetensors.torch import load_file
from samples import LAST_LINE, METRIC_LINE, encode, huge_png, noise, write_tar
from torch.nn import functional as F

import hpo
import train_model
from tools import ROOT
from vision.classifier import load_classifier
from vision.cli import run
from vision.data import hash_split, list_split, load_split
from vision.training import choose_device


@pytest.fixture(autouse=True)
def _keep_signal_handler():
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


def train_here(stripes, tmp_path, *extra):
    """Run main in this process, with the exit code and the sentences of the real one."""
    places = ("--model-dir", tmp_path / "model", "--output-data-dir", tmp_path / "output")
    argv = ("--train", stripes / "train", "--valid", stripes / "valid", *places, *extra)
    return run(train_model.main, train_model.get_args_parser().parse([str(a) for a in argv]))


def test_the_lines_and_the_history_tell_the_same(training_job):
    process, _, output = training_job
    lines = METRIC_LINE.findall(process.stdout)
    assert len(lines) == 4
    with (output / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [" ".join(f"{k}={v}" for k, v in row.items()) for row in rows] == lines

    epoch, accuracy, loss = LAST_LINE.search(process.stdout).groups()
    best = rows[int(epoch) - 1]
    assert (best["valid_accuracy"], best["valid_loss"]) == (accuracy, loss)
    assert accuracy == max(row["valid_accuracy"] for row in rows)


def test_it_learns(training_job):
    assert float(LAST_LINE.search(training_job[0].stdout)[2]) > 0.8


def test_the_metrics_in_the_artifact_are_those_of_the_saved_weights(training_job, stripes):
    process, model_dir, _ = training_job
    classifier = load_classifier(model_dir)
    valid = load_split(list_split(stripes / "valid"), classifier.class_names, 16, 1)
    logits = classifier.logits(valid.images)
    metrics = classifier.facts["metrics"]
    accuracy = (logits.argmax(1) == valid.labels).float().mean().item()
    assert metrics["valid_accuracy"] == pytest.approx(accuracy)
    assert f"best_valid_accuracy={accuracy:.4f}" in process.stdout
    assert metrics["valid_loss"] == pytest.approx(F.cross_entropy(logits, valid.labels).item())
    calibrated = F.cross_entropy(logits / classifier.temperature, valid.labels).item()
    assert metrics["valid_loss_calibrated"] == pytest.approx(calibrated)
    assert calibrated <= metrics["valid_loss"] + 1e-4


def test_the_artifact_is_complete(training_job, stripes):
    model_dir = training_job[1]
    described = json.loads((model_dir / "model.json").read_text())
    assert described["class_names"] == ["lying", "squares", "standing"]
    train = load_split(list_split(stripes / "train"), described["class_names"], 16, 1)
    assert described["data_hash"] == train.data_hash
    assert described["hyperparameters"]["epochs"] == 4
    assert described["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert described["versions"]["timm"] == version("timm")
    assert described["valid_hash"] == hash_split(list_split(stripes / "valid"))
    assert described["code_hash"] == train_model.code_hash()
    # `--precision auto` and the number of threads decide the weights, too.
    device, dtype = choose_device("auto")
    precision = str(dtype or torch.float32).removeprefix("torch.")
    assert described["computed_on"] == {"device": device.type, "precision": precision, "threads": 1}
    for name in (
        "inference.py",
        "requirements.txt",
        "vision/classifier.py",
        "vision/house.mplstyle",
    ):
        assert (model_dir / "code" / name).is_file()
    assert str(stripes) not in json.dumps(described)


def test_the_same_command_gives_the_same_weights_from_folders_and_from_tars(
    run_script, training_job, stripes, tmp_path
):
    for split in ("train", "valid"):
        entries = list_split(stripes / split)
        write_tar(tmp_path / split / "all.tar", {entry.name: entry.read() for entry in entries})
    process = run_script(
        "train_model.py",
        *("--epochs", 4, "--batch-size", 16, "--lr", 0.01),
        *("--train", tmp_path / "train", "--valid", tmp_path / "valid"),
        *("--model-dir", tmp_path / "model", "--output-data-dir", tmp_path / "output"),
    )
    assert process.returncode == 0, process.stderr
    first = (training_job[1] / "model.safetensors").read_bytes()
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == first


def test_another_seed_gives_other_weights(stripes, tmp_path):
    files = []
    for seed in (0, 1):
        assert train_here(stripes, tmp_path / str(seed), "--seed", seed, "--dry-run") == 0
        files.append((tmp_path / str(seed) / "model" / "model.safetensors").read_bytes())
    assert files[0] != files[1]


def test_a_dry_run_is_one_step_and_writes_everything(stripes, tmp_path, capsys):
    # As SageMaker passes it: every hyperparameter has a value.
    assert train_here(stripes, tmp_path, "--dry-run", "true", "--threshold", 0.5) == 0
    output = capsys.readouterr().out
    assert "read 16 training pictures" in output
    assert "read 16 validation pictures" in output
    assert len(METRIC_LINE.findall(output)) == 1
    classifier = load_classifier(tmp_path / "model")
    assert classifier.threshold == 0.5
    assert classifier.class_names == ["lying", "squares", "standing"]
    assert (tmp_path / "output" / "history.csv").read_text().count("\n") == 2


def test_a_torchvision_model_trains_in_the_same_way(stripes, tmp_path):
    extra = ("--model", "resnet18", "--image-size", 32, "--dry-run")
    assert train_here(stripes, tmp_path, *extra) == 0
    assert load_classifier(tmp_path / "model").preprocessing.image_size == 32


def test_counts_are_learnt_with_their_neighbours_and_answered_from_both_sides(stripes, tmp_path):
    for split in ("train", "valid"):
        for count, folder in enumerate(sorted((stripes / split).iterdir())):
            shutil.copytree(folder, tmp_path / "counts" / split / str(count + 9))
    extra = ("--ordinal", 0.6, "--augment", "flip", "--answer-views", 2, "--epochs", 4)
    assert train_here(tmp_path / "counts", tmp_path, *extra, "--batch-size", 16) == 0
    classifier = load_classifier(tmp_path / "model")
    assert (classifier.answer_views, classifier.class_names) == (2, ["10", "11", "9"])
    valid = load_split(list_split(tmp_path / "counts" / "valid"), classifier.class_names, 16, 1)
    logits = classifier.logits(valid.images)
    accuracy = (logits.argmax(1) == valid.labels).float().mean().item()
    assert classifier.facts["metrics"]["valid_accuracy"] == pytest.approx(accuracy)
    assert accuracy > 0.6
    loss = F.cross_entropy(logits, valid.labels).item()
    assert classifier.facts["metrics"]["valid_loss"] == pytest.approx(loss)


@pytest.mark.parametrize(
    ("extra", "sentence"),
    [
        (("--ordinal", 1), "--ordinal is for classes that are numbers, not lying, squares, standi"),
        (("--answer-views", 2), "add flip to --augment"),
        (("--answer-views", 4, "--augment", "flip"), "add vflip to --augment"),
        (("--model", "vgg16"), "vgg16 needs pictures of at least 32 pixels a side, not 16"),
        (("--model", "convnext_tiny", "--image-size", 31), "say --image-size 32 or more"),
        # The one step's loss is that before it.
        (("--dry-run", "--lr", 1e30), "the validation loss is no longer a finite number: lower"),
    ],
)
def test_what_does_not_suit_the_pictures_is_refused(stripes, tmp_path, capsys, extra, sentence):
    assert train_here(stripes, tmp_path, *extra) == 1
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("script", ["train_model.py", "hpo.py", "evaluate.py", "inference.py"])
def test_help_names_the_command_and_every_default(run_script, script):
    process = run_script(script, "--help")
    assert process.returncode == 0
    assert f"python {script} " in process.stdout
    assert "default: " in process.stdout
    assert "--dry-run" in process.stdout


@pytest.mark.parametrize("parser", [train_model.get_args_parser, hpo.get_args_parser])
@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--learning-rate", "1"], "unknown argument --learning-rate"),
        (["--batchsize", "64"], "did you mean --batch-size?"),
        (["--epoch=3"], "unknown argument --epoch: did you mean --epochs?"),
        (["--epochs", "0"], "--epochs: 0 is not at least 1"),
        (["--epochs", "many"], "--epochs: invalid int value"),
        (["--max-seconds", "inf"], "--max-seconds: inf is not a finite number"),
        (["--lr", "nan"], "--lr: nan is not "),
        (["--pretrained", "maybe"], "neither true nor false"),
        (["--head-hidden", "0,5"], "sizes from 1 to 8192"),
        (["--schedule", "linear"], "invalid choice: 'linear'"),
        (["--label-smoothing", "1"], "from 0 to 0.99"),
        (["--model", "resnet"], "invalid choice: 'resnet'"),
        (["--dry-run", "perhaps"], "neither true nor false"),
    ],
)
def test_a_wrong_argument_ends_with_code_2_and_one_sentence(parser, argv, sentence, capsys):
    with pytest.raises(SystemExit) as caught:
        parser().parse(argv)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1


def test_a_failure_is_one_sentence_with_code_1_and_reaches_sagemaker(run_script, stripes, tmp_path):
    shutil.copytree(stripes / "train", tmp_path / "train")
    data = encode(noise(), "JPEG")
    (tmp_path / "train" / "lying" / "broken.jpg").write_bytes(data[: len(data) // 2])
    process = run_script(
        *("train_model.py", "--train", tmp_path / "train", "--valid", stripes / "valid"),
        SM_OUTPUT_DIR=tmp_path,
    )
    assert process.returncode == 1
    assert "Traceback" not in process.stderr
    sentence = process.stderr.splitlines()[-1]
    assert "lying/broken.jpg: the picture is truncated" in sentence
    assert (tmp_path / "failure").read_text() == sentence + "\n"


def break_split(folder, kind):
    if kind == "missing":
        shutil.rmtree(folder)
    elif kind == "empty class":
        (folder / "void").mkdir()
    elif kind == "huge picture":
        (folder / "lying" / "huge.png").write_bytes(huge_png())
    elif kind == "text":
        (folder / "lying" / "notes.txt").write_text("hello")
    else:
        (folder / "unknown").mkdir()
        (folder / "unknown" / "a.png").write_bytes(encode(noise()))


@pytest.mark.parametrize(
    "kind", ["missing", "empty class", "huge picture", "text", "unknown class"]
)
def test_broken_validation_data_end_with_code_1(stripes, tmp_path, capsys, kind):
    shutil.copytree(stripes / "valid", tmp_path / "valid")
    break_split(tmp_path / "valid", kind)
    assert train_here(stripes, tmp_path, "--valid", tmp_path / "valid") == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "model" / "model.json").exists()


def test_one_class_is_not_enough(stripes, tmp_path, capsys):
    shutil.copytree(stripes / "train" / "lying", tmp_path / "train" / "lying")
    assert train_here(stripes, tmp_path, "--train", tmp_path / "train") == 1
    assert "needs at least two" in capsys.readouterr().err


def test_a_full_disk_is_one_sentence(stripes, tmp_path, capsys, monkeypatch):
    def full(self, data):
        raise OSError(28, "No space left on device")  # As write(2) says it, without a name.

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    assert train_here(stripes, tmp_path, "--dry-run") == 1
    assert "the disk is full: free some space" in capsys.readouterr().err
    assert list((tmp_path / "model").iterdir()) == []


@pytest.mark.parametrize("workers", [0, 1])
def test_sigterm_ends_the_training_and_saves_the_best_model(stripes, tmp_path, workers):
    """To all of its processes at once, as a container's are stopped: also those that load data."""
    command = [sys.executable, ROOT / "train_model.py", "--epochs", 10_000, "--patience", 0]
    command += ["--workers", workers]
    places = ["--model-dir", tmp_path / "model", "--output-data-dir", tmp_path / "output"]
    data = ["--train", stripes / "train", "--valid", stripes / "valid"]
    process = subprocess.Popen(
        [str(word) for word in command + places + data],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ,
        text=True,
        start_new_session=True,
    )
    try:
        while not process.stdout.readline().startswith("epoch=2 "):
            assert process.poll() is None, process.stderr.read()
        os.killpg(process.pid, signal.SIGTERM)
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    epoch = LAST_LINE.search(output)[1]
    assert f"stopped by SIGTERM: saved the weights of epoch {epoch}" in output
    assert load_classifier(tmp_path / "model").facts["best_epoch"] == int(epoch)


FAILS = """
import sys
sys.path.insert(0, {root!r})
import train_model
from vision import cli, training
def fail(*arguments, **options):
    raise RuntimeError("out of memory")
training.Trainer._step = fail
sys.exit(cli.run(train_model.main, train_model.get_args_parser().parse()))
"""


def test_an_error_ends_the_processes_that_load_data_too(stripes, tmp_path):
    script = tmp_path / "fails.py"
    script.write_text(FAILS.format(root=str(ROOT)))
    words = ["--train", stripes / "train", "--valid", stripes / "valid", "--workers", 1]
    words += ["--model-dir", tmp_path / "model", "--output-data-dir", tmp_path / "output"]
    command = [str(word) for word in (sys.executable, script, *words)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert process.returncode == 1
    assert process.stderr.strip().endswith("RuntimeError: out of memory")


def test_a_training_killed_at_random_ends_with_the_weights_of_an_unbroken_one(
    run_script, training_job, stripes, tmp_path
):
    """kill -9, twice, then once more to the end; as training_job but for the checkpoints."""
    checkpoints, model, output = (tmp_path / name for name in ("checkpoints", "model", "output"))
    words = ("--epochs", 4, "--batch-size", 16, "--lr", 0.01, "--checkpoint-seconds", 0)
    words += ("--train", stripes / "train", "--valid", stripes / "valid")
    words += ("--checkpoint-dir", checkpoints, "--model-dir", model, "--output-data-dir", output)
    command = [str(word) for word in (sys.executable, ROOT / "train_model.py", *words)]
    # Of 20 steps, a checkpoint after each. Where in the next step the signal comes is chance.
    for step in sorted(random.Random(0).sample(range(1, 17), 2)):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while not any(steps_done(path) >= step for path in checkpoints.glob("checkpoint-*")):
            assert process.poll() is None
        process.kill()
        assert process.wait() == -signal.SIGKILL, "it ended before it was killed"
    process = run_script("train_model.py", *words)
    assert process.returncode == 0, process.stderr
    epoch, steps = map(
        int, re.search(r"resumed at epoch (\d) after (\d) of", process.stdout).groups()
    )
    assert step <= 5 * (epoch - 1) + steps < 20
    whole = training_job[1] / "model.safetensors", training_job[2] / "history.csv"
    assert (model / "model.safetensors").read_bytes() == whole[0].read_bytes()
    # All but the last two columns, which are seconds.
    curves = [
        [row[:6] for row in csv.reader(path.read_text().splitlines())]
        for path in (whole[1], output / "history.csv")
    ]
    assert curves[0] == curves[1]


def steps_done(checkpoint):
    return int(checkpoint.stem.rsplit("-", 1)[1])


def test_two_processes_share_the_work_of_a_frozen_backbone(run_script, stripes, tmp_path):
    """Each computes the features of its half, one writes them; the head learns as it does alone."""
    words = ["--recipe", "photos", "--image-size", 32, "--epochs", 5, "--precision", "float32"]
    # Each process draws its own dropout.
    words += ["--dropout", 0, "--optimizer", "sgd", "--lr", 0.05]
    found = {}
    for name, launcher in {"alone": [], "both": ["-m", "torch.distributed.run"]}.items():
        folder = tmp_path / name
        for split in ("train", "valid"):
            shutil.copytree(stripes / split, folder / split)
        launcher += ["--standalone", "--nproc-per-node", 2] if launcher else []
        places = ["--train", folder / "train", "--valid", folder / "valid"]
        places += ["--model-dir", folder / "model", "--output-data-dir", folder / "output"]
        command = [sys.executable, *launcher, ROOT / "train_model.py", *words, *places]
        process = subprocess.run([str(word) for word in command], capture_output=True, text=True)
        assert process.returncode == 0, process.stderr
        assert process.stdout.count("computed the features of 72 pictures in 2 view(s)") == 1
        files = {path.name: path for path in folder.glob("*-features/*")}
        found[name] = process.stdout, files, load_file(folder / "model" / "model.safetensors")
    assert "read 36 training pictures" in found["both"][0]
    assert "read 12 validation pictures" in found["both"][0]
    assert set(found["alone"][1]) == set(found["both"][1])
    assert len(found["both"][1]) == 3
    for name, path in found["alone"][1].items():
        features = [load_file(each)["features"] for each in (path, found["both"][1][name])]
        assert torch.allclose(*features, atol=1e-4)
    for name, weights in found["alone"][2].items():
        assert torch.allclose(weights, found["both"][2][name], atol=1e-3), name


EVERY_STEP = """
import sys
sys.path.insert(0, {root!r})
import train_model
from vision import cli, training
training.SECONDS_BETWEEN_PROGRESS = 0
sys.exit(cli.run(train_model.main, train_model.get_args_parser().parse()))
"""


def test_two_processes_tell_their_progress_between_checkpoints(stripes, tmp_path):
    """A checkpoint leaves what both have seen to the first one; the other begins anew."""
    script = tmp_path / "every_step.py"
    script.write_text(EVERY_STEP.format(root=str(ROOT)))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    words = ["--train", stripes / "train", "--valid", stripes / "valid", "--epochs", 2]
    words += ["--batch-size", 16, "--checkpoint-dir", tmp_path / "checkpoints"]
    words += ["--checkpoint-seconds", 0, "--model-dir", tmp_path / "model"]
    words += ["--output-data-dir", tmp_path / "output"]
    process = subprocess.run(
        [str(word) for word in (*torchrun, "--nproc-per-node", "2", script, *words)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.returncode == 0, process.stderr
    told = re.findall(r"step (\d+) of (\d+), .* loss ([\d.]+),", process.stdout)
    steps = [(int(step), int(of)) for step, of, _ in told]
    assert steps == [(step, steps[0][1]) for step in range(1, steps[0][1] + 1)] * 2
    assert len(steps) > 4


def test_torn_and_foreign_checkpoints_are_told_and_not_used(stripes, tmp_path, capsys):
    folder = tmp_path / "checkpoints"
    words = ("--epochs", 2, "--batch-size", 32, "--checkpoint-dir", folder)
    assert train_here(stripes, tmp_path, *words) == 0
    weights = (tmp_path / "model" / "model.safetensors").read_bytes()
    latest = max(folder.iterdir())
    latest.write_bytes(latest.read_bytes()[:-1000])
    capsys.readouterr()

    assert train_here(stripes, tmp_path, *words) == 0
    told = capsys.readouterr().out
    assert f"{latest.name} is damaged or of another run: going back to the one before" in told
    assert "resumed at epoch 2 after 0 of its steps" in told
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == weights

    assert train_here(stripes, tmp_path, *words, "--lr", 0.1) == 0
    told = capsys.readouterr().out
    assert told.count("a checkpoint of another run or other data: not used") == 2
    assert "resumed" not in told
    assert latest.exists()


def test_a_wanted_precision_becomes_the_threshold_of_the_model(stripes, tmp_path, capsys):
    assert train_here(stripes, tmp_path, "--epochs", 2, "--wanted-precision", 0.9) == 0
    classifier = load_classifier(tmp_path / "model")
    chosen = classifier.facts["abstention"]
    assert classifier.threshold == chosen["threshold"]
    valid = load_split(list_split(stripes / "valid"), classifier.class_names, 16, 1)
    confidence, predicted = classifier.probabilities(valid.images).max(1)
    given = confidence >= classifier.threshold - 1e-9
    right = (predicted == valid.labels)[given].double().mean().item()
    assert given.double().mean().item() == pytest.approx(chosen["coverage"])
    assert right == pytest.approx(chosen["precision"])
    assert f"precision={right:.4f}" in capsys.readouterr().out


def test_the_scripts_stay_within_the_container_contract():
    """No AWS library in an entry point; no torch behind the figures that notebooks import."""
    check = (
        "import sys; sys.path.insert(0, {root!r}); import {modules}; "
        "print(sorted({{m.split('.')[0] for m in sys.modules}} & {forbidden}))"
    )
    forbidden_in = {
        "train_model, hpo, evaluate, inference": {"sagemaker", "boto3", "botocore", "smdebug"},
        "vision, vision.figures": {"torch", "torchvision"},
    }
    for modules, forbidden in forbidden_in.items():
        code = check.format(root=str(ROOT), modules=modules, forbidden=forbidden)
        process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert process.stdout == "[]\n", process.stderr
