import os

import pytest
import torch

from vision.checkpoint import Checkpoints

RUN, OTHER_RUN = "ab" * 32, "cd" * 32


@pytest.fixture
def said():
    return []


@pytest.fixture
def checkpoints(tmp_path, said):
    return Checkpoints(tmp_path, RUN, said.append)


def state(value):
    tensors = {"weights": torch.full((50,), float(value)), "steps": torch.tensor(value)}
    return tensors, {"epoch": value, "best": {"valid_accuracy": 0.1 + 0.2}}


def test_what_is_saved_comes_back_to_the_bit_and_the_last_two_stay(checkpoints, tmp_path):
    assert checkpoints.load() is None
    for step in (5, 100, 20_000):
        checkpoints.save(step, *state(step))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert [int(name.split("-")[2].split(".")[0]) for name in names] == [100, 20_000]
    tensors, facts = checkpoints.load()
    assert facts["epoch"] == 20_000
    assert facts["best"] == {"valid_accuracy": 0.1 + 0.2}
    assert torch.equal(tensors["weights"], torch.full((50,), 20_000.0))
    assert tensors["steps"].dtype == torch.int64
    assert tensors["steps"].shape == ()


def damage(path, how):
    data = path.read_bytes()
    if how == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "text":
        path.write_text("not a checkpoint")
    elif how == "zeros":
        # As a file system leaves it whose blocks did not all reach the disk.
        path.write_bytes(data[:-64] + bytes(64))
    else:
        os.chmod(path, 0)
        path.unlink()
        path.mkdir()


@pytest.mark.parametrize("how", ["cut", "empty", "text", "zeros", "folder"])
def test_a_torn_checkpoint_is_refused_and_the_one_before_is_taken(checkpoints, tmp_path, said, how):
    checkpoints.save(1, *state(1))
    checkpoints.save(2, *state(2))
    latest = max(tmp_path.iterdir())
    damage(latest, how)
    assert checkpoints.load()[1]["epoch"] == 1
    assert said == [f"{latest.name} is damaged or of another run: going back to the one before"]


def test_checkpoints_of_another_run_are_told_and_left_alone(checkpoints, tmp_path, said):
    other = Checkpoints(tmp_path, OTHER_RUN)
    other.save(900, *state(900))
    assert checkpoints.load() is None
    assert len(said) == 1
    assert "another run" in said[0]
    for step in (1, 2, 3):
        checkpoints.save(step, *state(step))
    assert checkpoints.load()[1]["epoch"] == 3
    assert other.load()[1]["epoch"] == 900


def test_a_renamed_checkpoint_of_another_run_is_refused(checkpoints, tmp_path, said):
    Checkpoints(tmp_path, OTHER_RUN).save(7, *state(7))
    foreign = next(tmp_path.iterdir())
    foreign.rename(foreign.with_name(foreign.name.replace("cdcdcdcd", "abababab")))
    assert checkpoints.load() is None
    assert "of another run" in said[0]


def test_half_a_file_of_a_killed_process_is_swept_away(tmp_path):
    own, foreign = (tmp_path / f".partial-checkpoint-{run[:8]}-123" for run in (RUN, OTHER_RUN))
    for path in (own, foreign):
        path.write_bytes(b"half")
    Checkpoints(tmp_path, RUN)
    # The other one may be written at this moment.
    assert list(tmp_path.iterdir()) == [foreign]


def test_a_full_disk_costs_the_checkpoint_only(checkpoints, tmp_path, said, monkeypatch):
    checkpoints.save(1, *state(1))

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    checkpoints.save(2, *state(2))
    assert said == ["checkpoint of step 2 not written (No space left on device): training goes on"]
    assert checkpoints.load()[1]["epoch"] == 1
    assert len(list(tmp_path.iterdir())) == 1
