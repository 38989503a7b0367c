import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vision.calibration import (
    choose_threshold,
    confidences,
    expected_calibration_error,
    fit_temperature,
    reliability_bins,
)


@pytest.mark.parametrize("true_temperature", [0.5, 1.0, 3.0])
def test_the_temperature_is_found_again(true_temperature):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(8_000, 5, generator=generator) * 3
    labels = torch.multinomial(torch.softmax(logits, 1), 1, generator=generator).flatten()
    found = fit_temperature(logits * true_temperature, labels)
    assert found == pytest.approx(true_temperature, rel=0.05)


def test_a_perfect_score_keeps_a_positive_temperature():
    assert fit_temperature(torch.eye(4) * 50, torch.arange(4)) > 0


def two_classes(confidence, correct):
    """Probabilities and labels with these confidences (at least 0.5) and outcomes."""
    confidence = np.asarray(confidence)
    return np.stack([confidence, 1 - confidence], 1), 1 - np.asarray(correct, dtype=int)


@pytest.mark.parametrize(
    ("precision", "expected"),
    [
        (0.0, (0.0, 1.0, 0.6)),
        (0.6, (0.0, 1.0, 0.6)),
        (0.7, (0.65, 0.8, 0.75)),
        (0.9, (0.85, 0.4, 1.0)),
        (1.0, (0.85, 0.4, 1.0)),
    ],
)
def test_threshold_known_answers(precision, expected):
    case = two_classes([0.9, 0.7, 0.6, 0.95, 0.8], [1, 1, 0, 1, 0])
    assert choose_threshold(*case, precision) == pytest.approx(expected)


def test_equal_confidences_stand_or_fall_together():
    case = two_classes([0.9, 0.9, 0.9, 0.6], [1, 1, 0, 1])
    assert choose_threshold(*case, 0.75) == pytest.approx((0.0, 1.0, 0.75))
    assert choose_threshold(*case, 1.0) == pytest.approx((0.0, 1.0, 0.75))
    case = two_classes([0.9, 0.9, 0.6], [1, 0, 0])
    assert choose_threshold(*case, 1.0) == pytest.approx((0.75, 2 / 3, 0.5))


def test_a_wanted_precision_out_of_reach_gives_the_most_precise_threshold():
    case = two_classes([0.9, 0.8, 0.7, 0.6], [0, 1, 1, 0])
    assert choose_threshold(*case, 0.99) == pytest.approx((0.65, 0.75, 2 / 3))


outcomes = st.lists(st.tuples(st.integers(50, 100), st.booleans()), min_size=1, max_size=40)


@given(outcomes)
def test_the_threshold_keeps_its_promise_and_more_precision_costs_coverage(outcomes):
    case = two_classes([c / 100 for c, _ in outcomes], [right for _, right in outcomes])
    confidence, correct = confidences(*case)
    covered = []
    for wanted in (0.0, 0.5, 0.8, 0.9, 1.0):
        threshold, coverage, precision = choose_threshold(torch.tensor(case[0]), case[1], wanted)
        answered = confidence >= threshold
        assert coverage == pytest.approx(answered.mean())
        assert precision == pytest.approx(correct[answered].mean())
        best = max(correct[confidence >= c].mean() for c in confidence)
        assert precision >= min(wanted, best) - 1e-12
        covered.append(coverage)
    assert covered == sorted(covered, reverse=True)


def test_calibration_error_known_answers():
    right = np.array([True, True, True, False])
    assert expected_calibration_error(np.full(4, 0.75), right) == pytest.approx(0)
    assert expected_calibration_error(np.ones(4), right) == pytest.approx(0.25)
    mixed = expected_calibration_error(np.array([0.9, 0.9, 0.5, 0.5]), right)
    assert mixed == pytest.approx(0.05)


def test_every_picture_is_in_one_bin():
    confidence = np.array([0.0, 1 / 15, 0.5, 0.99, 1.0])
    bins = reliability_bins(confidence, np.array([True, False, True, True, False]))
    assert [each["count"] for each in bins] == [1, 1, 1, 2]
    assert all(each["low"] <= each["confidence"] <= each["high"] for each in bins)
    assert bins[-1]["accuracy"] == 0.5
