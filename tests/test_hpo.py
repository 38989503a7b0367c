import signal

import pytest
import torch
from samples import LAST_LINE, METRIC_LINE

import hpo
from vision.cli import run


@pytest.fixture(autouse=True)
def _keep_signal_handler():
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


def try_here(stripes, *extra):
    argv = ("--train", stripes / "train", "--valid", stripes / "valid", *extra)
    return run(hpo.main, hpo.get_args_parser().parse([str(word) for word in argv]))


def test_a_trial_prints_the_metrics_and_leaves_no_file(run_script, stripes, tmp_path):
    process = run_script(
        *("hpo.py", "--epochs", 2, "--batch-size", 8, "--train-share", 0.5),
        SM_CHANNEL_TRAIN=stripes / "train",
        SM_CHANNEL_VALID=stripes / "valid",
        SM_MODEL_DIR=tmp_path / "model",
        SM_CHANNEL_TEST=tmp_path / "absent",
    )
    assert process.returncode == 0, process.stderr
    assert len(METRIC_LINE.findall(process.stdout)) == 2
    assert process.stdout.rstrip().endswith(LAST_LINE.search(process.stdout)[0])
    assert "test" not in process.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_is_one_step(stripes, capsys):
    assert try_here(stripes, "--dry-run") == 0
    assert len(METRIC_LINE.findall(capsys.readouterr().out)) == 1


def test_a_trial_can_be_repeated(stripes, capsys):
    lines = []
    for _ in range(2):
        assert try_here(stripes, "--epochs", 1, "--batch-size", 16) == 0
        lines.append(METRIC_LINE.search(capsys.readouterr().out)[0].split(" lr=")[0])
    assert lines[0] == lines[1]


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 1.0])
def test_the_share_is_taken_of_each_class(share):
    labels = torch.tensor([0] * 100 + [1] * 40 + [2])
    numbers = hpo.stratified_share(labels, share, seed=0)
    counts = torch.bincount(labels[numbers]).tolist()
    assert counts == [max(2, round(100 * share)), max(2, round(40 * share)), 1]
    assert numbers.tolist() == sorted(set(numbers.tolist()))
    again = hpo.stratified_share(labels, share, seed=1)
    assert torch.equal(numbers, again) == (share == 1.0)
