import numpy as np
import pytest

from vision.counts import counting


def test_errors_of_counts_by_hand():
    probabilities = np.array([[0.6, 0.3, 0.1], [0.0, 0.5, 0.5], [1.0, 0.0, 0.0]])
    # The counts 1, 2 and 10; true 1, 10, 2; most likely 1, 2, 1; expected 2.2, 6.0, 1.0.
    found = counting(np.array([0, 2, 1]), probabilities, ["1", "2", "10"])
    assert found["most_likely"] == pytest.approx(
        {"rmse": np.sqrt(65 / 3), "mean_absolute_error": 3.0, "within_one": 2 / 3}
    )
    assert found["expected"] == pytest.approx(
        {"rmse": np.sqrt((1.44 + 16 + 1) / 3), "mean_absolute_error": 6.2 / 3, "within_one": 2 / 3}
    )


def test_article_numbers_are_no_counts_but_their_errors_are_right():
    names = ["4006381333931", "5449000000996", "1" + "0" * 30]
    found = counting(np.array([0, 1]), np.array([[0.0, 1, 0], [1, 0, 0]]), names)
    off = 5449000000996 - 4006381333931
    assert found["most_likely"]["rmse"] == pytest.approx(off)
    assert found["expected"]["mean_absolute_error"] == pytest.approx(off)


@pytest.mark.parametrize("name", ["dog", "1.5", "-1", "²", ""])
def test_only_whole_numbers_are_counts(name):
    assert counting(np.array([0]), np.array([[0.5, 0.5]]), ["1", name]) is None
