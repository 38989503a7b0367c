"""Learning rates over the steps of a training, as shares of the peak."""

import math

SCHEDULES = ("constant", "cosine", "one-cycle", "exponential")
# Where a cycle begins and ends, as parts of its peak: PyTorch's OneCycleLR, after Smith & Topin
# 2017, arXiv:1708.07120.
CYCLE_START, CYCLE_END = 1 / 25, 1 / 250_000


def share_of_peak(
    kind: str, step: int, steps: int, steps_per_epoch: int, warmup: float, gamma: float
) -> float:
    """Return the learning rate of `step` (counted from 0, of `steps`) as a share of its peak.

    The first `warmup` (a share) of the steps lead up to the peak, linearly but for one-cycle,
    which does both ways along a cosine. Then "constant" stays there, "cosine" (Loshchilov &
    Hutter 2016, arXiv:1608.03983) ends at zero after the last step, and "exponential" falls to
    `gamma` of itself with every epoch, a little at each step.
    """
    rising = max(1, round(warmup * steps))
    if step < rising:
        done = (step + 1) / rising
        return _cosine(CYCLE_START, 1, done) if kind == "one-cycle" else done
    done = (step - rising + 1) / (steps - rising + 1)
    if kind == "constant":
        return 1.0
    if kind == "exponential":
        return gamma ** ((step - rising + 1) / steps_per_epoch)
    return _cosine(1, CYCLE_END if kind == "one-cycle" else 0, done)


def _cosine(start: float, end: float, done: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * done))
