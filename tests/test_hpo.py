import re
import shutil
import signal

import pytest
import torch
from samples import LAST_LINE, METRIC_LINE

import hpo
from vision import recipes
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


@pytest.mark.parametrize(
    ("words", "epochs", "share"),
    [
        (["--recipe", "photos"], 30, 1.0),
        (["--recipe", "photos", "--trainable", "last-2-stages"], 3, 0.5),
        (["--recipe", "photos", "--model", "small_resnet"], 3, 0.5),
        (["--recipe", "photos-all", "--trainable", "head"], 12, 1.0),
        (["--recipe", "photos-all", "--epochs", "5"], 5, 0.5),
    ],
)
def test_a_trial_is_short_unless_the_backbone_is_frozen(words, epochs, share):
    args = hpo.get_args_parser().parse(words)
    recipes.complete(args, small_pictures=False)
    assert (args.epochs, args.train_share) == (epochs, share)


def test_a_trial_can_be_repeated(stripes, capsys):
    lines = []
    for _ in range(2):
        assert try_here(stripes, "--epochs", 1, "--batch-size", 16) == 0
        lines.append(METRIC_LINE.search(capsys.readouterr().out)[0].split(" lr=")[0])
    assert lines[0] == lines[1]


def test_a_trial_on_counts_tells_by_how_much_they_are_off(stripes, tmp_path, capsys):
    names = {"lying": "1", "squares": "2", "standing": "5"}
    for split in ("train", "valid"):
        for old, new in names.items():
            shutil.copytree(stripes / split / old, tmp_path / split / new)
    assert try_here(stripes, "--epochs", 1) == 0
    assert "count_" not in capsys.readouterr().out
    assert try_here(tmp_path, "--epochs", 6, "--batch-size", 8) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    rmse, within_one = re.fullmatch(r"count_rmse=(\S+) count_within_one=(\S+)", line).groups()
    # Always saying the mean of 1, 2 and 5 would be off by 1.7.
    assert 0 < float(rmse) < 1.5
    assert 0.5 < float(within_one) <= 1


def test_expected_counts_by_hand():
    logits = torch.log(torch.tensor([[0.75, 0.25], [0.25, 0.75], [0.75, 0.25], [0.25, 0.75]]))
    line = hpo.count_line(logits, torch.tensor([0, 1, 0, 0]), ["1", "4"])
    # Three of four are right, so the temperature is 1; expected 1.75, 3.25, 1.75, 3.25.
    assert line == "count_rmse=1.2990 count_within_one=0.7500"


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 1.0])
def test_the_share_is_taken_of_each_class(share):
    labels = torch.tensor([0] * 100 + [1] * 40 + [2])
    numbers = hpo.stratified_share(labels, share, seed=0)
    counts = torch.bincount(labels[numbers]).tolist()
    assert counts == [max(2, round(100 * share)), max(2, round(40 * share)), 1]
    assert numbers.tolist() == sorted(set(numbers.tolist()))
    again = hpo.stratified_share(labels, share, seed=1)
    assert torch.equal(numbers, again) == (share == 1.0)
