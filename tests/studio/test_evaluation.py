import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from studio.evaluation import (
    Evaluation,
    benchmark,
    chance_of,
    choose,
    count_baselines,
    errors_by_quarter,
    largest_gap,
    quarters,
    time_requests,
)

NAMES = ["bag", "boot", "coat"]


def write_report(folder, counts):
    rows = {name: {"precision": 0.5, "recall": 0.25, "f1": 1 / 3, "support": 4} for name in NAMES}
    matrix = {"class_names": NAMES, "counts": counts}
    report = {"accuracy": 0.5, "classes": rows, "confusion_matrix": matrix}
    (folder / "evaluation.json").write_text(json.dumps(report))
    predictions = "file,label,confidence\nbag/0.png,bag,0.9\nboot/0.png,bag,0.6\n"
    (folder / "predictions.csv").write_text(predictions)
    return Evaluation(folder)


def test_a_report_reads_as_a_dict_and_as_tables(tmp_path):
    evaluation = write_report(tmp_path, [[4, 0, 0], [0, 4, 0], [0, 0, 4]])
    assert evaluation["accuracy"] == 0.5
    table = evaluation.classes()
    assert list(table.index) == NAMES
    assert table.loc["boot", "support"] == 4
    assert table["support"].dtype.kind == "i"
    assert evaluation.picture("matrix") == str(tmp_path / "matrix.png")


def test_baselines_that_were_measured_are_rows(tmp_path):
    evaluation = write_report(tmp_path, [[4, 0, 0], [0, 4, 0], [0, 0, 4]])
    measured = {"n": 12, "accuracy": 0.5, "accuracy_interval_95": [0.3, 0.7]}
    compared = {**measured, "this_model_accuracy": 0.75, "mcnemar": {"p_value": 0.2}}
    evaluation.update(measured, baselines={"majority": compared, "previous_model": None})
    table = evaluation.baselines()
    assert list(table.index) == ["this model", "majority"]
    assert list(table["high"]) == [0.7, 0.7]
    assert list(table["p_value"]) == ["", "0.200"]
    assert list(table["this_model"]) == [0.5, 0.75]


def test_the_summary_says_what_was_left_out(tmp_path):
    evaluation = write_report(tmp_path, [[4, 0, 0], [0, 4, 0], [0, 0, 4]])
    evaluation.update(summary=["Half are right."], left_out=["a comparison, because of rain"])
    assert evaluation.summary() == ("- Half are right.\n- Left out: a comparison, because of rain.")
    assert evaluation.page == str(tmp_path / "evaluation.html")


def test_the_hardest_pair_counts_mistakes_both_ways(tmp_path):
    # coat for bag once and bag for coat 4 times are 5; boot for bag 4 times only.
    evaluation = write_report(tmp_path, [[10, 4, 1], [0, 10, 1], [4, 0, 10]])
    told = evaluation.hardest()
    assert told.startswith("**bag** and **coat** are confused most")
    assert "5 of the 10 mistakes (50%)" in told


def test_without_a_mistake_no_pair_is_named(tmp_path):
    evaluation = write_report(tmp_path, [[4, 0, 0], [0, 4, 0], [0, 0, 4]])
    assert evaluation.hardest() == "Not one test picture was mistaken."


def test_the_largest_gap_is_over_all_pictures_asked(tmp_path):
    evaluation = write_report(tmp_path, [[4, 0, 0], [0, 4, 0], [0, 0, 4]])
    answers = [
        (Path("somewhere/0.png"), {"confidence": 0.9}, "bag"),
        (Path("elsewhere/0.png"), {"confidence": 0.35}, "boot"),
    ]
    assert largest_gap(evaluation, answers) == pytest.approx(0.25)
    answers.append((Path("somewhere/0.png"), {"confidence": math.nan}, "bag"))
    assert math.isnan(largest_gap(evaluation, answers))


def test_requests_are_timed_one_by_one_over_the_pictures_in_turn():
    asked = []
    durations = time_requests(asked.append, [b"a", b"b"], count=5)
    assert asked == [b"a", b"b", b"a", b"b", b"a"]
    assert len(durations) == 5
    assert all(duration > 0 for duration in durations)


def candidate(right, milliseconds):
    """A row of the benchmark: so many of 100 validation pictures right."""
    card = {
        "valid_pictures": 100,
        "metrics": {"valid_accuracy": right / 100},
        "hyperparameters": {"pretrained": True},
        "seconds": 12.5,
    }
    return card, [milliseconds, milliseconds, 50 * milliseconds]


def compare(**candidates):
    cards = {name: card for name, (card, _) in candidates.items()}
    return benchmark(cards, {name: times for name, (_, times) in candidates.items()})


def test_the_benchmark_lists_the_most_accurate_first_with_its_interval():
    table = compare(small=candidate(90, 4), large=candidate(95, 8))
    assert list(table.index) == ["large", "small"]
    # Wilson's interval of 95 in 100, by hand: (p + z²/2n ± z·sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n).
    assert table.loc["large", ["low", "high"]].tolist() == pytest.approx([0.8882, 0.9785], abs=1e-4)
    assert table.loc["large", "milliseconds"] == 8


@pytest.mark.parametrize(
    ("quick", "name"),
    [
        (93, "quick"),  # 0.95 less one standard error, 0.0218, is 0.928.
        (92, "slow"),
        (95, "quick"),
    ],
)
def test_the_quickest_of_those_as_accurate_as_the_best_is_chosen(quick, name):
    assert choose(compare(slow=candidate(95, 8), quick=candidate(quick, 4))) == name


def test_a_perfect_model_is_chosen_over_any_that_is_not():
    assert choose(compare(slow=candidate(100, 8), quick=candidate(99, 4))) == "slow"


def test_each_count_gets_its_own_errors(tmp_path):
    evaluation = write_report(tmp_path, [[3, 1, 0], [0, 2, 2], [1, 0, 3]])
    evaluation["confusion_matrix"]["class_names"] = ["1", "2", "5"]
    table = evaluation.by_count()
    assert list(table.index) == [1, 2, 5]
    assert table["accuracy"].tolist() == [0.75, 0.5, 0.75]
    # A 5 for a 2 is three off, a 1 for a 5 four.
    assert table["within_one"].tolist() == [1, 0.5, 0.75]
    assert table["rmse"].tolist() == pytest.approx([0.5, np.sqrt(18 / 4), 2])
    assert table["mean_answer"].tolist() == [1.25, 3.5, 4]


def test_answers_without_a_look_by_hand():
    table = count_baselines(pd.Series({"1": 1, "2": 2, "3": 1}), "2")
    assert list(table.index) == ["any count, by lot", "always 2"]
    assert table.loc["always 2"].tolist() == pytest.approx([0.5, np.sqrt(0.5), 1])
    # By lot: off by two with 1/4 · 1/3 from either end, by one with 1/4 · 1/3 · 2 + 2/4 · 2/3.
    lot = [1 / 3, np.sqrt(2 / 12 * 4 + 2 / 12 + 1 / 3), 5 / 6]
    assert table.loc["any count, by lot"].tolist() == pytest.approx(lot)


def answers(wrong_when_low):
    """400 answers about two classes, whose sharpness differs in level."""
    rng = np.random.default_rng(0)
    true = np.repeat(["1", "5"], 200)
    sharpness = rng.random(400) + np.where(true == "5", 10, 0)
    low = quarters(sharpness, true) == 1
    wrong = rng.random(400) < np.where(low & wrong_when_low, 0.8, 0.4)
    predicted = np.where(wrong, "2", true)
    return pd.DataFrame({"true": true, "predicted": predicted, "sharpness": sharpness})


def test_quarters_are_taken_within_each_class():
    found = quarters([1, 2, 3, 4, 10, 30, 20, 40], ["a"] * 4 + ["b"] * 4)
    assert found.tolist() == [1, 2, 3, 4, 1, 3, 2, 4]


def test_errors_by_quarter_count_all_answers():
    table = errors_by_quarter(answers(wrong_when_low=True), "sharpness")
    assert table["pictures"].tolist() == [100] * 4
    assert table["errors"].iloc[0] > 0.7
    assert table["errors"].iloc[1:].max() < 0.5
    assert (table["low"] < table["errors"]).all()
    assert (table["errors"] < table["high"]).all()


def test_what_chance_makes_is_told_from_what_it_does_not():
    difference, p = chance_of(answers(wrong_when_low=True), "sharpness")
    assert difference > 0.3
    assert p < 0.001
    difference, p = chance_of(answers(wrong_when_low=False), "sharpness")
    assert abs(difference) < 0.2
    assert p > 0.05


def test_classes_that_differ_in_level_and_in_errors_are_no_finding():
    table = answers(wrong_when_low=False)
    table["predicted"] = np.where(table["true"] == "5", "2", "1")
    assert chance_of(table, "sharpness") == (0, 1)
