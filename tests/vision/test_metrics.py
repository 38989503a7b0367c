import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score

from vision import metrics


def random_case(classes, count=200, seed=0):
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.full(classes, 0.5), count)
    labels = np.where(rng.random(count) < 0.5, probabilities.argmax(1), rng.integers(classes))
    return labels, probabilities, [f"class {i}" for i in range(classes)]


def test_classification_agrees_with_scikit_learn():
    labels, probabilities, names = random_case(7)
    found = metrics.classification(labels, probabilities, names)
    predicted = probabilities.argmax(1)
    assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, predicted))
    assert list(found["top_k"]) == ["1", "2", "3", "4", "5"]
    for k, value in found["top_k"].items():
        expected = top_k_accuracy_score(labels, probabilities, k=int(k), labels=range(7))
        assert value == pytest.approx(expected)
    assert found["top_k"]["1"] == found["accuracy"]


@pytest.mark.parametrize(("classes", "largest"), [(2, "1"), (3, "2"), (30, "5")])
def test_top_k_leaves_out_one_class_at_least(classes, largest):
    assert max(metrics.classification(*random_case(classes))["top_k"]) == largest


def test_equal_probabilities_count_as_the_answer_that_is_given():
    found = metrics.classification(np.array([0, 1]), np.full((2, 3), 1 / 3), ["a", "b", "c"])
    assert found["accuracy"] == found["top_k"]["1"] == 0.5
    assert found["top_k"]["2"] == 1.0


def test_the_interval_is_wilsons():
    # 81 of 263: an example of Newcombe 1998, table I, method 3 (doi:10.1002/sim.4780170802).
    low, high = metrics.share(81, 263)["accuracy_interval_95"]
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)


def test_mcnemar_by_hand():
    this = np.array([1, 1, 1, 1, 1, 1, 0, 1, 0], dtype=bool)
    other = np.array([0, 0, 0, 0, 0, 0, 1, 1, 0], dtype=bool)
    found = metrics.mcnemar(this, other)
    # 6 against 1: P(X <= 1 or X >= 6) for 7 fair coins, 2 * (1 + 7) / 128.
    assert found == {
        "only_this_right": 6,
        "only_other_right": 1,
        "both_right": 1,
        "both_wrong": 1,
        "p_value": pytest.approx(0.125),
    }
    assert metrics.mcnemar(this, this)["p_value"] == 1.0


def test_abstention_by_hand():
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.4, 0.6]])
    found = metrics.abstention(np.array([0, 1, 1, 1]), probabilities, 0.7)
    assert (found["answered"], found["coverage"]) == (3, 0.75)
    assert found["precision"] == pytest.approx(2 / 3)
    nothing = metrics.abstention(np.array([0, 1, 1, 1]), probabilities, 0.95)
    assert (nothing["coverage"], nothing["precision"]) == (0, None)


def test_swapped_labels_are_suspects():
    true = np.repeat([0, 1, 2], 60)
    probabilities = 0.03 + 0.91 * np.eye(3)[true]
    labels = true.copy()
    labels[[5, 70]] = [2, 0]
    assert set(metrics.label_suspects(labels, probabilities)) == {5, 70}
    assert len(metrics.label_suspects(true, probabilities)) == 0
    assert len(metrics.label_suspects(np.zeros(180, dtype=int), probabilities)) == 0
