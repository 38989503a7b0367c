import csv
import signal
import subprocess
import sys
import time

import pytest

import learning_curve
from tools import ROOT


def rows_of(folder):
    with (folder / "learning_curve.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def measured(run_script, stripes, tmp_path_factory):
    output = tmp_path_factory.mktemp("curve")
    process = run_script(
        *("learning_curve.py", "--shares", "1,0.1,0.4", "--repeats", 2, "--epochs", 4),
        *("--batch-size", 8, "--lr", 0.01),
        SM_CHANNEL_TRAIN=stripes / "train",
        SM_CHANNEL_VALID=stripes / "valid",
        SM_OUTPUT_DATA_DIR=output,
        SM_CHANNEL_TEST=output / "absent",
    )
    assert process.returncode == 0, process.stderr
    return process, rows_of(output)


def test_every_share_is_trained_so_often_and_in_order(measured):
    process, rows = measured
    assert [(row["share"], row["seed"]) for row in rows] == [
        (share, seed) for share in ("0.1", "0.4", "1.0") for seed in ("0", "1")
    ]
    # Three classes of 24: two pictures of each at least.
    assert [row["pictures"] for row in rows[::2]] == ["6", "30", "72"]
    assert process.stdout.count("trainings=2") == 3
    assert "epoch=" not in process.stdout


def test_more_pictures_teach_more(measured):
    _, rows = measured
    accuracies = [float(row["valid_accuracy"]) for row in rows]
    assert sum(accuracies[-2:]) > sum(accuracies[:2])
    assert max(accuracies) <= 1


def test_the_lines_are_the_means_of_the_rows(measured):
    process, rows = measured
    first = [float(row["valid_accuracy"]) for row in rows[:2]]
    assert (
        f"pictures=6 valid_accuracy={sum(first) / 2:.4f} lowest={min(first):.4f} "
        f"highest={max(first):.4f} trainings=2\n"
    ) in process.stdout


def test_it_can_be_repeated(measured, run_script, stripes, tmp_path):
    process = run_script(
        *("learning_curve.py", "--shares", "0.1,0.4", "--repeats", 1, "--epochs", 4),
        *("--batch-size", 8, "--lr", 0.01, "--output-data-dir", tmp_path),
        SM_CHANNEL_TRAIN=stripes / "train",
        SM_CHANNEL_VALID=stripes / "valid",
    )
    assert process.returncode == 0, process.stderr
    assert rows_of(tmp_path) == measured[1][:3:2]


def test_another_seed_draws_other_shares(run_script, stripes, tmp_path):
    process = run_script(
        *("learning_curve.py", "--shares", 0.1, "--repeats", 1, "--epochs", 1, "--seed", 7),
        *("--output-data-dir", tmp_path),
        SM_CHANNEL_TRAIN=stripes / "train",
        SM_CHANNEL_VALID=stripes / "valid",
    )
    assert process.returncode == 0, process.stderr
    (row,) = rows_of(tmp_path)
    assert row["seed"] == "7"


def test_stopped_it_keeps_the_trainings_that_had_ended(stripes, tmp_path):
    command = [sys.executable, ROOT / "learning_curve.py", "--shares", "0.5", "--repeats", 99]
    places = ["--train", stripes / "train", "--valid", stripes / "valid"]
    process = subprocess.Popen(
        [str(word) for word in [*command, *places, "--output-data-dir", tmp_path]],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        while not (tmp_path / "learning_curve.csv").exists() or len(rows_of(tmp_path)) < 2:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, errors) == (0, "")
    rows = rows_of(tmp_path)
    assert 2 <= len(rows) < 99
    assert [row["seed"] for row in rows] == [str(seed) for seed in range(len(rows))]
    assert f"trainings={len(rows)}\nstopped by SIGTERM" in output


def test_a_dry_run_is_one_step(run_script, stripes, tmp_path):
    process = run_script(
        *("learning_curve.py", "--train", stripes / "train", "--valid", stripes / "valid"),
        *("--output-data-dir", tmp_path, "--dry-run"),
    )
    assert process.returncode == 0, process.stderr
    assert len(rows_of(tmp_path)) == 1


@pytest.mark.parametrize("wrong", ["0", "2", "0.1,x", ""])
def test_shares_that_are_none_are_refused(wrong, capsys):
    with pytest.raises(SystemExit):
        learning_curve.get_args_parser().parse(["--shares", wrong])
    assert "--shares" in capsys.readouterr().err
