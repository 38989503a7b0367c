import numpy as np
import pandas as pd
import pytest

from studio import learning


def curve_of(error, sizes=(50, 100, 200, 400), spread=0.0):
    return pd.DataFrame(
        [
            {"share": n / 400, "seed": seed, "pictures": n, "valid_accuracy": 1 - error(n) + bit}
            for n in sizes
            for seed, bit in enumerate((-spread, spread))
        ]
    )


def test_a_power_law_is_continued():
    curve = curve_of(lambda n: 2 * n**-0.5)
    assert learning.forecast(curve, 800) == pytest.approx(1 - 2 * 800**-0.5)
    assert learning.forecast(curve, 100) == pytest.approx(0.8)


def test_a_curve_that_does_not_rise_is_not_continued():
    assert learning.forecast(curve_of(lambda n: 0.1 + n / 1e5), 800) == pytest.approx(0.896)
    assert learning.forecast(curve_of(lambda n: 0.0), 800) == 1
    assert learning.forecast(curve_of(lambda n: 0.3 if n == 50 else 0.0), 800) == 1
    assert learning.forecast(curve_of(lambda n: 0.1, sizes=(400,)), 800) == pytest.approx(0.9)


def test_the_summary_has_every_size():
    table = learning.summary(curve_of(lambda n: 20 / n, spread=0.01))
    assert list(table.index) == [50, 100, 200, 400]
    assert np.allclose(table["highest"] - table["lowest"], 0.02)
    assert (table["trainings"] == 2).all()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (lambda n: 5 * n**-0.5, "so more pictures would pay"),
        (lambda n: 0.05 * n**-0.1, "pictures are not what it lacks"),
    ],
)
def test_the_sentence_follows_from_the_curve(error, words):
    curve = curve_of(error)
    text = learning.sentence(curve)
    assert words in text
    assert f"**{1 - error(400):.1%}**" in text
    assert f"on 200 of them {1 - error(200):.1%}" in text
    gain = 100 * (error(400) - error(800))
    assert f"bring {gain:.1f} points more" in text
    last = 100 * (error(200) - error(400))
    assert text.endswith(f"; the last doubling brought {last:+.1f} points.")


@pytest.mark.parametrize(
    ("accuracies", "last"),
    [
        # Measured: the law is below what is reached, twice as many pictures included.
        ([0.955, 0.924, 0.924, 0.948, 0.962, 0.979], "the last doubling brought +1.7 points"),
        ([0.95, 0.95, 0.95, 0.95, 0.95, 0.95], "the last doubling brought +0.0 points"),
        ([0.98, 0.97, 0.97, 0.96, 0.96, 0.95], "the last doubling brought -1.0 points"),
    ],
)
def test_where_the_errors_follow_no_law_nothing_is_foretold(accuracies, last):
    sizes = (15, 28, 54, 112, 225, 450)
    curve = pd.DataFrame({"pictures": sizes, "valid_accuracy": accuracies})
    assert learning.gain(curve) is None
    text = learning.sentence(curve)
    assert text.endswith(f"The errors follow no power law here, so there is no forecast; {last}.")
    assert "more" not in text


def test_a_last_step_that_is_no_doubling_is_named_by_its_pictures():
    text = learning.sentence(curve_of(lambda n: 5 * n**-0.5, sizes=(100, 160, 280, 400)))
    brought = 100 * 5 * (160**-0.5 - 400**-0.5)
    assert text.endswith(f"; the step from 160 pictures to all brought {brought:+.1f} points.")
    assert "brought" not in learning.sentence(curve_of(lambda n: 0.1, sizes=(400,)))


def test_where_no_error_is_left_nothing_is_foretold():
    curve = curve_of(lambda n: 0.0, sizes=(50, 400))
    assert learning.gain(curve) is None
    text = learning.sentence(curve)
    assert text == (
        "Trained on all 400 pictures, the network gets **100.0%** of the validation pictures "
        "right, on 50 of them 100.0%. "
        "No error is left that more pictures could mend."
    )
