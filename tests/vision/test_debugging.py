"""The debugger's tensors of real trainings, read back by smdebug's own trial."""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import train_model
from tools import ROOT
from vision.cli import run
from vision.instruments import CONFIGURATION_VARIABLE
from vision.training import Trainer

# Three steps an epoch.
WORDS = ("--epochs", 2, "--batch-size", 24, "--lr", 0.01, "--precision", "bfloat16")


@pytest.fixture(scope="module", autouse=True)
def _surroundings():
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SMDEBUG_LOG_LEVEL", "warning")
        # Otherwise every trial that is opened sleeps a second.
        patch.setenv("SMDEBUG_TRAINING_END_DELAY_REFRESH", "0")
        yield
    signal.signal(signal.SIGTERM, handler)


def words_of(stripes, folder, *extra):
    places = ("--model-dir", folder / "model", "--output-data-dir", folder / "output")
    data = ("--train", stripes / "train", "--valid", stripes / "valid")
    return [str(word) for word in (*data, *places, *WORDS, *extra)]


def train(stripes, folder, *extra):
    return run(
        train_model.main, train_model.get_args_parser().parse(words_of(stripes, folder, *extra))
    )


def open_trial(folder):
    from smdebug.trials import create_trial

    return create_trial(str(folder))


def modes():
    from smdebug.core.modes import ModeKeys

    return ModeKeys.TRAIN, ModeKeys.EVAL


@pytest.fixture(scope="module")
def debugged(stripes, tmp_path_factory, _surroundings):
    """A training of which every step is saved: (its folder, its trial)."""
    folder = tmp_path_factory.mktemp("debugged")
    assert train(stripes, folder, "--debug", "true", "--debug-interval", 1) == 0
    return folder, open_trial(folder / "output" / "tensors")


def test_train_and_eval_have_their_steps_and_their_losses_are_those_of_the_history(debugged):
    folder, trial = debugged
    (TRAIN, EVAL), losses = modes(), trial.tensor("CrossEntropyLoss_output_0")
    assert trial.steps(mode=TRAIN) == [0, 1, 2, 3, 4, 5]
    assert trial.steps(mode=EVAL) == [0, 1]
    with (folder / "output" / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    for epoch, row in enumerate(rows):
        steps = range(3 * epoch, 3 * epoch + 3)
        mean = np.concatenate([losses.value(step, mode=TRAIN) for step in steps]).mean()
        assert mean == pytest.approx(float(row["train_loss"]), abs=1e-4)
        accuracies = [trial.tensor("scalar/train_accuracy").value(s, mode=TRAIN) for s in steps]
        assert np.mean(accuracies) == pytest.approx(float(row["train_accuracy"]), abs=1e-4)
        mean = losses.value(epoch, mode=EVAL).mean()
        assert mean == pytest.approx(float(row["valid_loss"]), abs=1e-4)
        logits = trial.tensor("CrossEntropyLoss_input_0").value(epoch, mode=EVAL)
        labels = trial.tensor("CrossEntropyLoss_input_1").value(epoch, mode=EVAL)
        accuracy = (logits.argmax(1) == labels).mean()
        assert accuracy == pytest.approx(float(row["valid_accuracy"]), abs=1e-4)
        lr = trial.tensor("scalar/lr").value(steps[-1], mode=TRAIN)
        assert format(float(lr[0]), ".3g") == row["lr"]
    assert trial.tensor("scalar/valid_loss").steps(mode=TRAIN) == []
    # smdebug reads its settings when it is first imported.
    from insight import measures
    from insight.tensors import Tensors

    drawn = measures.losses(Tensors(trial))["EVAL"].dropna()
    assert drawn.to_dict() == {
        steps: pytest.approx(float(row["valid_loss"]), abs=1e-4)
        for steps, row in zip((3, 6), rows, strict=True)
    }


def test_reductions_are_finite_in_bfloat16_and_those_of_the_tensors(debugged):
    _, trial = debugged
    TRAIN, _ = modes()
    counts = {}
    for collection in ("weights", "biases", "gradients", "relu_input", "relu_output"):
        names = trial.tensor_names(collection=collection)
        counts[collection] = len(names)
        for name in names:
            values = trial.tensor(name).reduction_values(4, mode=TRAIN)
            assert len(values) == 8
            assert np.isfinite(list(values.values())).all(), name
    assert counts["weights"] + counts["biases"] == counts["gradients"] > 20
    assert counts["relu_input"] == counts["relu_output"] == 9
    # A small tensor is its own sample.
    for name in ("Network_head.1.weight", "gradient/Network_head.1.bias"):
        sample, tensor = trial.tensor(f"sample/{name}").value(4, mode=TRAIN), trial.tensor(name)
        expected = {
            ("min", False): sample.min(),
            ("max", False): sample.max(),
            ("mean", False): sample.mean(),
            ("std", False): sample.std(ddof=1),
            ("variance", False): sample.var(ddof=1),
            ("l2", False): np.linalg.norm(sample),
            ("mean", True): np.abs(sample).mean(),
            ("max", True): np.abs(sample).max(),
        }
        for (reduction, absolute), value in expected.items():
            found = tensor.reduction_value(4, reduction, mode=TRAIN, abs=absolute)
            assert found == pytest.approx(value, rel=1e-4, abs=1e-7)
    large = "Network_backbone.4.0.conv2.weight"
    assert trial.tensor(f"sample/{large}").value(4, mode=TRAIN).shape == (1024,)


def test_activity_is_a_share_of_each_channel(debugged):
    _, trial = debugged
    TRAIN, _ = modes()
    names = sorted(trial.tensor_names(collection="activity"))
    assert "activity/backbone.1.0.outer_relu" in names
    for name in names:
        share = trial.tensor(name).value(0, mode=TRAIN)
        assert share.ndim == 1
        assert 0 <= share.min() < share.max() <= 100
    assert len(trial.tensor("activity/backbone.0.2.relu").value(0, mode=TRAIN)) == 16


def test_the_run_is_described(debugged):
    described = json.loads((debugged[0] / "output" / "run.json").read_text())
    assert described["class_names"] == ["lying", "squares", "standing"]
    assert (described["train_pictures"], described["valid_pictures"]) == (72, 24)
    assert described["hyperparameters"]["lr"] == 0.01


def test_to_be_seen_changes_no_weight(debugged, stripes, tmp_path):
    assert train(stripes, tmp_path) == 0
    plain, seen = (folder / "model" / "model.safetensors" for folder in (tmp_path, debugged[0]))
    assert plain.read_bytes() == seen.read_bytes()


def test_off_it_loads_nothing_and_writes_nothing(stripes, tmp_path):
    code = (
        "import sys, threading; sys.path.insert(0, sys.argv.pop(1)); import train_model\n"
        "train_model.main(train_model.get_args_parser().parse())\n"
        "watchers = {'smdebug', 'psutil', 'vision.debugging', 'vision.profiling'}\n"
        "print(sorted(watchers & set(sys.modules)), threading.active_count())"
    )
    command = [sys.executable, "-c", code, str(ROOT), *words_of(stripes, tmp_path, "--dry-run")]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.stdout.splitlines()[-1] == "[] 1", process.stderr
    assert [path.name for path in (tmp_path / "output").iterdir()] == ["history.csv"]


def test_a_relu_that_is_shared_and_overwrites_its_input_is_seen_each_time(stripes, tmp_path):
    extra = ("--model", "resnet18", "--image-size", 32, "--dry-run", "--debug", "true")
    assert train(stripes, tmp_path, *extra) == 0
    trial, (TRAIN, _) = open_trial(tmp_path / "output" / "tensors"), modes()
    for number, name in enumerate(("", "_1")):
        before = trial.tensor(f"backbone.1.0.0.relu_input_{number}")
        after = trial.tensor(f"backbone.1.0.0.relu_output_{number}")
        assert before.reduction_value(0, "min", mode=TRAIN) < 0
        assert after.reduction_value(0, "min", mode=TRAIN) == 0
        share = trial.tensor(f"activity/backbone.1.0.0.relu{name}").value(0, mode=TRAIN)
        assert share.shape == (64,)


def test_without_smdebug_the_training_goes_on(stripes, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "smdebug.pytorch", None)
    monkeypatch.delitem(sys.modules, "vision.debugging", raising=False)
    assert train(stripes, tmp_path, "--dry-run", "--debug", "true") == 0
    output = capsys.readouterr().out
    assert output.count("--debug does nothing here, the training goes on without it") == 1
    assert (tmp_path / "model" / "model.json").is_file()
    assert not (tmp_path / "output" / "tensors").exists()


def test_the_services_configuration_is_obeyed(stripes, tmp_path, monkeypatch):
    configuration, tensors = tmp_path / "debughookconfig.json", tmp_path / "elsewhere"
    gradients = {"save_interval": "2", "reductions": "max,abs_mean,l1_norm"}
    wanted = [{"CollectionName": "gradients", "CollectionParameters": gradients}]
    configuration.write_text(
        json.dumps({"LocalPath": str(tensors), "CollectionConfigurations": wanted})
    )
    monkeypatch.setenv(CONFIGURATION_VARIABLE, str(configuration))
    monkeypatch.setenv("TRAINING_JOB_NAME", "as-in-a-container")
    assert train(stripes, tmp_path) == 0
    assert (tensors / "training_job_end.ts").is_file()
    trial, (TRAIN, _) = open_trial(tensors), modes()
    assert not (tmp_path / "output" / "tensors").exists()
    assert trial.tensor_names(collection="weights") == []
    name = "gradient/Network_head.1.weight"
    assert trial.tensor(name).steps(mode=TRAIN) == [0, 2, 4]
    assert len(trial.tensor(name).reduction_values(2, mode=TRAIN)) == 3
    # smdebug saves losses whatever is named, by its own default every 500 steps.
    assert trial.tensor("CrossEntropyLoss_output_0").steps(mode=TRAIN) == [0]


@pytest.mark.parametrize(
    "text",
    ["{", "[1]", '{"CollectionConfigurations": [{"CollectionName": "mine"}]}'],
    ids=["torn", "no object", "no expression"],
)
def test_a_broken_configuration_is_one_sentence(stripes, tmp_path, monkeypatch, capsys, text):
    (tmp_path / "debughookconfig.json").write_text(text)
    monkeypatch.setenv(CONFIGURATION_VARIABLE, str(tmp_path / "debughookconfig.json"))
    assert train(stripes, tmp_path, "--dry-run") == 1
    error = capsys.readouterr().err
    assert "debughookconfig.json" in error
    assert error.count("\n") == 1


def test_only_an_earlier_trial_makes_room(stripes, tmp_path, capsys):
    tensors = tmp_path / "output" / "tensors"
    tensors.mkdir(parents=True)
    (tensors / "thesis.tex").write_text("")
    assert train(stripes, tmp_path, "--dry-run", "--debug", "true") == 1
    assert "holds something else than a debugger's tensors" in capsys.readouterr().err
    assert [path.name for path in tensors.iterdir()] == ["thesis.tex"]


def test_a_resumed_training_goes_on_counting(stripes, tmp_path, monkeypatch, capsys):
    step = Trainer._step

    def cut(trainer, *args, **kwargs):
        if trainer.epoch == 2 and trainer.steps_done == 1:
            raise KeyboardInterrupt
        step(trainer, *args, **kwargs)

    extra = ("--checkpoint-dir", tmp_path / "checkpoints", "--debug", "true")
    extra += ("--debug-interval", 4)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", cut)
        with pytest.raises(KeyboardInterrupt):
            train(stripes, tmp_path, *extra)
    assert open_trial(tmp_path / "output" / "tensors").steps(mode=modes()[0]) == [0, 1, 2]
    capsys.readouterr()
    assert train(stripes, tmp_path, *extra) == 0
    assert "the debugger's tensors begin at step 3" in capsys.readouterr().out
    trial, (TRAIN, EVAL) = open_trial(tmp_path / "output" / "tensors"), modes()
    assert trial.steps(mode=TRAIN) == [4, 5]
    assert trial.steps(mode=EVAL) == [1]


def test_a_full_disk_ends_the_debugging_alone(stripes, tmp_path, monkeypatch, capsys):
    from vision import debugging

    write, written = debugging.EventsWriter.write_event, []

    def full_after_100(self, event):
        written.append(event)
        if len(written) > 100:
            raise OSError(28, "No space left on device")
        return write(self, event)

    monkeypatch.setattr(debugging.EventsWriter, "write_event", full_after_100)
    assert train(stripes, tmp_path, "--debug", "true") == 0
    output = capsys.readouterr().out
    assert output.count("the debugger saves no more, the training goes on") == 1
    assert "epoch=2 " in output
    assert list((tmp_path / "output").rglob("*.tmp")) == []


def test_of_two_processes_one_writes(stripes, tmp_path):
    torchrun = Path(sys.executable).with_name("torchrun")
    launch = [str(torchrun), "--standalone", "--nproc-per-node", "2", str(ROOT / "train_model.py")]
    words = words_of(stripes, tmp_path, "--debug", "true", "--debug-interval", 4)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.run([*launch, *words], capture_output=True, text=True, env=environment)
    assert process.returncode == 0, process.stderr
    assert "smdebug" not in process.stdout
    trial, (TRAIN, EVAL) = open_trial(tmp_path / "output" / "tensors"), modes()
    assert trial.steps(mode=TRAIN) == [0, 1, 2, 4, 5]
    assert trial.steps(mode=EVAL) == [0, 1]
    assert trial.workers() == ["worker_0"]
    assert len(trial.tensor("CrossEntropyLoss_output_0").value(1, mode=TRAIN)) < 24
    assert len(trial.tensor("CrossEntropyLoss_output_0").value(1, mode=EVAL)) == 24
