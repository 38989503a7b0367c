"""The README's table of training: it says what benchmarks/training.json says."""

import importlib.util
import json
from pathlib import Path

import pytest

from benchmarks.results import README

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def training():
    path = PROJECT / "benchmarks" / "training.py"
    spec = importlib.util.spec_from_file_location("training_benchmark", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def runs(figures):
    return {str(seed): {"figures": figure} for seed, figure in enumerate(figures)}


def test_figures_are_medians_with_their_range(training):
    figures = [
        {
            "accuracy": accuracy,
            "interval": [accuracy - 0.01, accuracy + 0.01],
            "training_seconds": s,
            "whole_seconds": s + 10,
            "counting": None,
        }
        for accuracy, s in ((0.93, 200), (0.95, 100), (0.91, 900))
    ]
    table = training.table({"fashion": runs(figures)})
    assert table.splitlines()[2] == (
        "| Fashion-MNIST, default recipe with `--augment shift,flip --answer-views 2` | "
        "93.0% (91.0%–95.0%) of the test pictures right; seeds 0, 1, 2, 95% intervals within "
        "90.0%–96.0% | 200 s of training, 210 s in all | 93.5% in 5 min: **missed** |"
    )


@pytest.mark.parametrize(
    ("accuracy", "seconds", "rmse", "verdict"),
    [
        (0.38, 2400, 1.0, "met"),
        (0.379, 2400, 1.0, "**missed**"),
        (0.38, 2401, 1.0, "**missed**"),
        (0.38, 2400, 1.01, "**missed**"),
    ],
)
def test_a_target_is_met_in_all_of_its_parts_or_missed(training, accuracy, seconds, rmse, verdict):
    figures = {"accuracy": accuracy, "training_seconds": seconds, "whole_seconds": seconds}
    figures |= {"interval": [0.3, 0.4], "counting": {"expected": {"rmse": rmse}}}
    row = training.table({"bins": runs([figures])}).splitlines()[2]
    assert row.endswith(f"| 38%, RMSE 1.0 in 40 min: {verdict} |")


def test_counts_are_told_with_their_error(training):
    figures = {"accuracy": 0.4, "interval": [0.37, 0.43]}
    figures |= {"training_seconds": 2000, "whole_seconds": 2100}
    figures["counting"] = {"expected": {"rmse": 0.954}, "most_likely": {"rmse": 1.2}}
    row = training.table({"bins": runs([figures])}).splitlines()[2]
    assert "40.0% (one run) of the test pictures right, RMSE 0.95 (one run) of the expected" in row


def test_ratios_are_theirs_over_ours(training):
    figures = {
        "valid_accuracy": 0.9,
        "their_epochs": 6,
        "theirs_resnet50_seconds": 600.0,
        "theirs_same_model_seconds": 300.0,
        "ours_seconds": 20.0,
        "theirs_pictures_per_second": 25.0,
        "ours_pictures_per_second": 100.0,
    }
    rows = training.table({"sources": runs([figures])})
    assert "theirs after epoch 6 (one run) of 20: " in rows
    assert "| 30.0 (one run) times shorter; 15.0 (one run) times with efficientnet_lite0" in rows
    assert "| 20 s against 600 s" in rows
    assert "4.0 (one run) times as many | 100 against 25 pictures/s" in rows


def test_the_readme_has_the_table_of_the_last_run_and_no_target_is_missed(training):
    table = training.table(json.loads(training.RESULTS.read_text()))
    assert table in README.read_text(encoding="utf-8")
    assert table.count(": met |") == 9
    assert "missed" not in table
