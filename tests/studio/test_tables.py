from types import SimpleNamespace

import pytest

from studio.tables import show, summary

LOCAL = SimpleNamespace(is_local=True)
AWS = SimpleNamespace(is_local=False)


def test_a_table_shows_every_cell_and_no_numbering():
    table = show([("region", "here"), ("pictures", 600)])
    lines = [line.split() for line in repr(table).splitlines()]
    assert lines == [["region", "here"], ["pictures", "600"]]
    html = table._repr_html_()
    assert html.count("<td") == 4
    assert "<th" not in html


def test_a_table_takes_a_generator():
    assert len(show((name, 1) for name in "abc")) == 3


@pytest.mark.parametrize(("place", "told"), [(LOCAL, True), (AWS, False)])
def test_the_summary_says_where_to_look_on_this_machine(place, told):
    dataset = SimpleNamespace(name="fashion-mnist", is_fallback=False)
    text = repr(summary(place, dataset, {"test accuracy": "91.0%"}))
    assert "fashion-mnist" in text
    assert "91.0%" in text
    assert ("python -m local_cloud status" in text) is told


def test_the_summary_admits_the_fall_back():
    dataset = SimpleNamespace(name="digits", is_fallback=True)
    assert "digits (the fall-back: no Fashion-MNIST here)" in repr(summary(LOCAL, dataset, {}))


def test_what_is_long_is_not_cut():
    words = "a" * 200
    assert words in repr(show([("name", words)]))
    assert words in show([("name", words)])._repr_html_()
