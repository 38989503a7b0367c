"""Ranges and searches by themselves: every proposal keeps to its range, scale, type and seed."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from local_cloud.autotune import range_for
from local_cloud.errors import ServiceError
from local_cloud.ranges import MAX_RANGES, read_ranges
from local_cloud.search import OptunaSearch, make_search

finite = st.floats(-1e12, 1e12, allow_subnormal=False)
unit = st.floats(0, 0.999999)
integers = st.integers(-(10**6), 10**6)
positive = st.floats(1e-12, 1e12)
seeds = st.integers(0, 2**40)


def continuous(low, high, scale="Linear", name="x"):
    entry = {"Name": name, "MinValue": repr(low), "MaxValue": repr(high), "ScalingType": scale}
    return {"ContinuousParameterRanges": [entry]}


def integer(low, high, scale="Linear", name="n"):
    entry = {"Name": name, "MinValue": str(low), "MaxValue": str(high), "ScalingType": scale}
    return {"IntegerParameterRanges": [entry]}


def proposals(request, count, strategy="Random", seed=0):
    search = make_search({"Strategy": strategy}, read_ranges(request), True, seed, count, None)
    found = []
    for number in range(count):
        proposal = search.ask()
        search.tell(proposal, float(number % 7))
        found.append(proposal.tuned)
    return found


def pairs(numbers):
    return st.tuples(numbers, numbers).map(sorted).filter(lambda pair: pair[0] < pair[1])


@settings(deadline=None, max_examples=60)
@given(
    st.one_of(
        pairs(finite).map(lambda pair: continuous(*pair)),
        pairs(positive).map(lambda pair: continuous(*pair, "Logarithmic")),
        pairs(unit).map(lambda pair: continuous(*pair, "ReverseLogarithmic")),
        pairs(finite).map(lambda pair: continuous(*pair, "Auto")),
    ),
    seeds,
    st.sampled_from(["Random", "Bayesian"]),
)
def test_continuous_proposals_are_numbers_within_the_range(request_ranges, seed, strategy):
    (entry,) = request_ranges["ContinuousParameterRanges"]
    for tuned in proposals(request_ranges, 6, strategy, seed):
        assert float(entry["MinValue"]) <= float(tuned["x"]) <= float(entry["MaxValue"])


@settings(deadline=None, max_examples=60)
@given(
    st.one_of(
        pairs(integers).map(lambda pair: integer(*pair)),
        pairs(st.integers(1, 10**6)).map(lambda pair: integer(*pair, "Logarithmic")),
        pairs(integers).map(lambda pair: integer(*pair, "Auto")),
    ),
    seeds,
    st.sampled_from(["Random", "Bayesian"]),
)
def test_integer_proposals_are_written_as_integers(request_ranges, seed, strategy):
    (entry,) = request_ranges["IntegerParameterRanges"]
    low, high = int(entry["MinValue"]), int(entry["MaxValue"])
    for tuned in proposals(request_ranges, min(6, high - low + 1), strategy, seed):
        assert str(int(tuned["n"])) == tuned["n"]
        assert low <= int(tuned["n"]) <= high


@settings(deadline=None, max_examples=40)
@given(st.lists(st.text(max_size=5), min_size=1, max_size=5, unique=True), seeds)
def test_categorical_proposals_are_the_given_texts_each_once(values, seed):
    ranges = {"CategoricalParameterRanges": [{"Name": "c", "Values": values}]}
    for strategy in ("Random", "Bayesian", "Grid"):
        found = [tuned["c"] for tuned in proposals(ranges, len(values), strategy, seed)]
        assert sorted(found) == sorted(values)


def share_below(values, border):
    return sum(value < border for value in values) / len(values)


@pytest.mark.parametrize(
    ("ranges", "middle"),
    [
        pytest.param(continuous(0.0, 1.0, "Linear"), 0.5, id="linear"),
        pytest.param(continuous(1e-6, 1.0, "Logarithmic"), 1e-3, id="logarithmic"),
        pytest.param(continuous(0.0, 0.9999, "ReverseLogarithmic"), 0.99, id="reverse"),
        pytest.param(continuous(1e-6, 1.0, "Auto"), 1e-3, id="auto-wide"),
        pytest.param(continuous(0.1, 1.0, "Auto"), 0.55, id="auto-narrow"),
        pytest.param(continuous(0.0, 1.0, "Auto"), 0.5, id="auto-from-zero"),
        pytest.param(integer(1, 10**8, "Logarithmic"), 10**4, id="integer-logarithmic"),
        pytest.param(integer(1, 10001, "Linear"), 5001, id="integer-linear"),
    ],
)
def test_half_of_random_proposals_are_below_the_middle_of_the_scale(ranges, middle):
    values = [float(next(iter(tuned.values()))) for tuned in proposals(ranges, 800)]
    # Four standard deviations of a share of 800 are 0.07.
    assert share_below(values, middle) == pytest.approx(0.5, abs=0.07)
    quarters = [share_below(values, border) for border in sorted(values)[199::200]]
    assert quarters == pytest.approx([0.25, 0.5, 0.75, 1], abs=0.01)


@settings(deadline=None, max_examples=40)
@given(pairs(unit), st.floats(0, 1))
def test_texts_and_searched_values_are_inverse(pair, share):
    low, high = pair
    for scale in ("Linear", "ReverseLogarithmic"):
        (found,) = read_ranges(continuous(low, high, scale))
        value = min(max(low + share * (high - low), low), high)
        again = float(found.text(found.searched(repr(value))))
        assert again == pytest.approx(value, abs=1e-12)
        assert found.searched(repr(high + 1)) is None
        assert found.searched("red") is None


@pytest.mark.parametrize("strategy", ["Random", "Bayesian"])
def test_a_seed_repeats_the_proposals(strategy):
    ranges = {**continuous(0.0, 1.0), **integer(1, 1000)}
    first, again, other = (proposals(ranges, 20, strategy, seed) for seed in (5, 5, 6))
    assert first == again != other


def test_random_proposals_do_not_depend_on_results_or_their_order():
    ranges = read_ranges(continuous(0.0, 1.0))
    told, silent = (OptunaSearch("Random", ranges, True, 3, 9) for _ in range(2))
    for number in range(9):
        proposal = told.ask()
        told.tell(proposal, None if number % 2 else 1.0)
        assert proposal.tuned == silent.ask().tuned


def test_a_bayesian_search_finds_better_values_than_a_random_one():
    def best(strategy, seed):
        ranges = read_ranges({**continuous(0.0, 1.0), **continuous_second()})
        search = OptunaSearch(strategy, ranges, False, seed, 40)
        values = []
        for _ in range(40):
            proposal = search.ask()
            x, y = (float(text) for text in proposal.tuned.values())
            values.append((x - 0.3) ** 2 + (y - 0.8) ** 2)
            search.tell(proposal, values[-1])
        return min(values)

    def continuous_second():
        both = continuous(0.0, 1.0, name="x")["ContinuousParameterRanges"]
        both += continuous(0.0, 1.0, name="y")["ContinuousParameterRanges"]
        return {"ContinuousParameterRanges": both}

    wins = sum(best("Bayesian", seed) < best("Random", seed) for seed in range(7))
    assert wins >= 5


def test_earlier_results_lead_a_bayesian_search():
    ranges = read_ranges(continuous(0.0, 1.0))
    search = OptunaSearch("Bayesian", ranges, False, 1, 10)
    for number in range(40):
        search.learn({"x": str(number / 40)}, abs(number / 40 - 0.7))
    search.learn({"x": "5"}, -1000.0)  # Out of the range: it teaches nothing.
    search.learn({}, -1000.0)
    found = [float(search.ask().tuned["x"]) for _ in range(8)]
    assert sum(abs(value - 0.7) < 0.25 for value in found) >= 6


def simulated_epochs(most, levels):
    """How many epochs each trial of a Hyperband search ran whose value is constant."""
    search = OptunaSearch("Hyperband", read_ranges(continuous(0.0, 1.0)), True, 0, 99, most)
    epochs = []
    for level in levels:
        proposal = search.ask()
        steps = range(1, most[1] + 1)
        ran = next((step for step in steps if search.lags(proposal, level, step)), most[1])
        epochs.append(ran)
        search.tell(proposal, level)
    return epochs


def test_hyperband_gives_good_trials_more_epochs_in_several_brackets():
    levels = [(number * 37 % 60) / 60 for number in range(60)]
    epochs = simulated_epochs((1, 27), levels)
    assert epochs[levels.index(max(levels))] == 27
    assert sum(epochs) < 0.5 * 27 * len(levels)
    ranked = [ran for _, ran in sorted(zip(levels, epochs))]
    assert sum(ranked[40:]) > 1.5 * sum(ranked[:20])
    # A bracket stops trials at its own epochs: powers of three, from a first one of its own.
    assert {1, 3, 9} <= set(epochs) <= {1, 3, 9, 27}
    # In a bracket that begins late even poor trials go on.
    assert any(ran >= 9 for ran, level in zip(epochs, levels) if level < 0.3)


def test_hyperband_stops_none_before_min_resource_nor_at_max_resource():
    assert min(simulated_epochs((4, 16), [1 - number / 50 for number in range(50)])) >= 4
    search = OptunaSearch("Hyperband", read_ranges(continuous(0.0, 1.0)), True, 0, 9, (2, 6))
    proposal = search.ask()
    assert not search.lags(proposal, 1.0, 6)
    assert search.lags(proposal, 1.0, 7)


@pytest.mark.parametrize(
    ("ranges", "words"),
    [
        pytest.param(continuous(0.0, 1.0, "Logarithmic"), "above 0", id="log-from-zero"),
        pytest.param(continuous(0.0, 1.0, "ReverseLogarithmic"), "0 <= x < 1", id="reverse-to-1"),
        pytest.param(continuous(-0.1, 0.5, "ReverseLogarithmic"), "0 <= x < 1", id="reverse-minus"),
        pytest.param(integer(1, 5, "ReverseLogarithmic"), "continuous ranges", id="reverse-int"),
        pytest.param(integer(0, 5, "Logarithmic"), "above 0", id="int-log-from-zero"),
        pytest.param(continuous(2.0, 1.0), "less than", id="upside-down"),
        pytest.param(continuous(1.0, 1.0), "less than", id="one-value"),
        pytest.param(integer("1.5", 3), "not an integer", id="half"),
        pytest.param(integer("1_0", 30), "not an integer", id="underscore"),
        pytest.param(continuous(math.nan, 3.0), "not numeric", id="nan"),
        pytest.param(continuous(0.0, math.inf), "not numeric", id="infinite"),
        pytest.param(continuous(-1.7e308, 1.7e308), "not finite", id="too-wide"),
        pytest.param(integer(0, 2**60), "goes beyond", id="huge"),
        pytest.param({**integer(1, 5), **continuous(0.0, 1.0, name="n")}, "more than", id="twice"),
        pytest.param(
            {"CategoricalParameterRanges": [{"Name": "c", "Values": ["a", "a"]}]},
            "listed twice",
            id="doubled-category",
        ),
        pytest.param(
            {
                "IntegerParameterRanges": [
                    integer(1, 2, name=str(n))["IntegerParameterRanges"][0]
                    for n in range(MAX_RANGES)
                ],
                **continuous(0.0, 1.0),
            },
            "at most 30",
            id="too-many",
        ),
    ],
)
def test_ranges_that_break_a_rule_are_refused(ranges, words):
    with pytest.raises(ServiceError, match=words) as refused:
        read_ranges(ranges)
    assert refused.value.code == "ValidationException"


@pytest.mark.parametrize(
    ("hint", "expected"),
    [
        pytest.param("64", ("Integer", "16", "256"), id="integer"),
        pytest.param("1", ("Integer", "1", "4"), id="one"),
        pytest.param("0.01", ("Continuous", "0.001", "0.1"), id="rate"),
        pytest.param("0.5", ("Continuous", "0.05", "0.75"), id="share"),
        pytest.param("2.5", ("Continuous", "0.25", "25.0"), id="real"),
        pytest.param("true", ("Categorical", "true", "false"), id="truth"),
        pytest.param("adam", None, id="word"),
        pytest.param("-3", None, id="negative"),
    ],
)
def test_autotune_chooses_a_range_around_the_hint(hint, expected):
    kind, entry = range_for("p", hint)
    if expected is None:
        assert kind is None
        return
    low, high = entry.get("Values") or (entry["MinValue"], entry["MaxValue"])
    assert (kind.removesuffix("ParameterRanges"), low, high) == expected
    read_ranges({kind: [entry]})
