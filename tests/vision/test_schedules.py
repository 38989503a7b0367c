import pytest
import torch

from vision.schedules import SCHEDULES, share_of_peak


def shares(kind, steps, steps_per_epoch=10, warmup=0.2, gamma=0.9):
    return [share_of_peak(kind, i, steps, steps_per_epoch, warmup, gamma) for i in range(steps)]


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 7, 1000])
def test_the_learning_rate_warms_up_to_its_peak_and_never_rises_again(kind, steps):
    line = shares(kind, steps)
    top = line.index(max(line))
    assert max(line) == pytest.approx(1)
    assert line[: top + 1] == sorted(line[: top + 1])
    assert line[top:] == sorted(line[top:], reverse=True)
    assert all(0 < share <= 1 for share in line)


def test_known_answers():
    assert share_of_peak("cosine", 1000, 1000, 10, 0.2, 0.9) == pytest.approx(0, abs=1e-12)
    assert shares("constant", 10, warmup=0.3)[:4] == pytest.approx([1 / 3, 2 / 3, 1, 1])
    # The peak is at the end of the first epoch; ten steps later one epoch has gone by.
    line = shares("exponential", 100, warmup=0.1, gamma=0.5)
    assert [line[9], line[19], line[29]] == pytest.approx([1, 0.5, 0.25])


def test_one_cycle_is_pytorchs():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    # Its count begins one step earlier and ends one later: our steps are all under way.
    reference = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=1.0, total_steps=102, pct_start=21 / 102, final_div_factor=1e4
    )
    expected = []
    for _ in range(100):
        optimizer.step()
        reference.step()
        expected.append(optimizer.param_groups[0]["lr"])
    assert shares("one-cycle", 100) == pytest.approx(expected, rel=1e-6)
