"""The README's table of what the debugger and the profiler cost."""

import json

import pytest

from benchmarks import debugging
from benchmarks.results import README


def figures(seconds, megabytes):
    return {"seconds": seconds, "processor_seconds": 2 * seconds, "megabytes": megabytes}


def test_each_is_compared_with_the_plain_training_of_its_own_round():
    # The machine got twice as slow, then three times: the costs stay what they are.
    rounds = [
        {"off": figures(pace * 10, 0), "debug": figures(pace * 11, 40), "profile": figures(p, 1)}
        for pace, p in ((1, 10.2), (2, 20.6), (3, 30.3))
    ]
    settings = {"model": "resnet18", "size": 64, "epochs": 2, "pictures": 640}
    rows = debugging.table({"rounds": rounds, "settings": settings}).splitlines()
    assert "| +10.0% (+10.0% to +10.0%) | +10.0% (+10.0% to +10.0%) | 40.0 MB |" in rows[2]
    assert "| +2.0% (+1.0% to +3.0%) |" in rows[3]
    assert "resnet18 at 64 pixels, 1,280 pictures | 20 s |" in rows[4]
    assert {row.count("|") for row in rows} == {6}


@pytest.mark.skipif(not debugging.RESULTS.exists(), reason="nothing was measured yet")
def test_the_readme_has_the_table_of_the_last_run():
    results = json.loads(debugging.RESULTS.read_text())
    assert debugging.table(results) in README.read_text(encoding="utf-8")
