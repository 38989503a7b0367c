"""The advice on one's own pictures follows from what is measured on them."""

import io

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from studio import advice
from studio.explore import Survey


def counts(**classes):
    return pd.DataFrame(classes, index=["train", "valid", "test"]).T


def survey(*sizes):
    pictures = pd.DataFrame(sizes, columns=["width", "height"])
    return Survey(pictures, pd.DataFrame(), {})


def test_a_rare_class_is_named_and_weighed():
    unequal = counts(cat=(70, 15, 15), dog=(7, 1, 2))
    assert advice.balance(unequal) == "weights"
    said = advice.about_classes(unequal)
    assert "10.0 times" in said
    assert "“dog” with 10" in said
    assert "“cat” would be right for 94%" in said
    assert "Too few pictures to judge: “dog” (10)" in said


def test_equal_classes_need_no_care():
    equal = counts(cat=(70, 15, 15), dog=(60, 15, 15))
    assert advice.balance(equal) == "none"
    assert "so none needs care" in advice.about_classes(equal)
    assert "⚠️" not in advice.about_classes(equal)


@pytest.mark.parametrize(
    ("sides", "size"),
    [((28, 28), 96), ((130, 300), 128), ((200, 150), 128), ((225, 900), 224), ((4000, 3000), 224)],
)
def test_the_network_sees_no_more_pixels_than_there_are(sides, size):
    assert advice.image_size(survey(sides, sides, sides)) == size


def test_the_share_that_the_square_keeps_is_told():
    said = advice.about_size(survey((300, 150), (150, 150)))
    assert "150 pixels (median)" in said
    assert "keeps 75% of a picture" in said


class Endpoint:
    """Knows a bright left half from a bright right one."""

    def __call__(self, body):
        with Image.open(io.BytesIO(body)) as picture:
            pixels = np.asarray(picture.convert("L"), float)
        half = pixels.shape[1] // 2
        left = float(pixels[:, :half].mean() > pixels[:, half:].mean())
        return {"label": None, "confidence": 0.5, "scores": {"left": left, "right": 1 - left}}


@pytest.fixture
def halves(tmp_path):
    pictures = []
    for i in range(16):
        pixels = np.zeros((40, 40, 3), np.uint8)
        side = ("left", "right")[i % 2]
        pixels[5:25, slice(0, 20) if side == "left" else slice(20, 40)] = 200
        path = tmp_path / f"{i}.png"
        Image.fromarray(pixels).save(path)
        pictures.append((path, side))
    return pictures


def test_what_a_change_costs_is_measured(halves):
    changed = advice.ask_changed(Endpoint(), halves)
    assert set(changed.index) == set(advice.CHANGES)
    assert (changed["accuracy"] == 1).all()
    assert changed.loc["mirrored", ["kept", "accuracy_changed"]].tolist() == [0, 0]
    assert changed.loc["mirrored", "p_value"] == pytest.approx(2 / 2**16)
    for harmless in ("upside down", "half as bright", "in grey"):
        assert changed.loc[harmless, ["kept", "accuracy_changed", "p_value"]].tolist() == [1, 1, 1]
    assert advice.harmful(changed) == ["mirrored", "a quarter turn"]
    assert "lost, beyond chance, by: a quarter turn." in advice.about_changes(changed)
    reached = pd.Series([0.9, 0.91])
    assert "train with --augment none" in advice.about_mirror(changed, reached, reached)


def table_of(mirrored=1.0, p_value=1.0):
    row = {"pictures": 90, "kept": mirrored, "accuracy": 1.0}
    row |= {"accuracy_changed": mirrored, "p_value": p_value}
    return pd.DataFrame([row], index=["mirrored"])


@pytest.mark.parametrize(
    ("with_mirror", "without", "words"),
    [
        ([0.90, 0.91], [0.95, 0.96], "train with --augment none"),
        ([0.95, 0.96], [0.90, 0.91], "mirror images help"),
        ([0.90, 0.96], [0.92, 0.94], "mirror images do no harm"),
    ],
)
def test_the_verdict_on_mirror_images_follows_from_the_trainings(with_mirror, without, words):
    said = advice.about_mirror(table_of(), pd.Series(with_mirror), pd.Series(without))
    assert words in said


def test_one_picture_more_or_less_is_chance():
    assert advice.harmful(table_of(0.99, 1.0)) == []
    assert "none of them" in advice.about_changes(table_of(0.99, 1.0))


class Report(dict):
    def classes(self):
        rows = {"cat": (0.7, 0.4, 0.5, 20), "dog": (0.5, 1.0, 0.67, 4)}
        return pd.DataFrame(rows, index=["recall", "precision", "f1", "support"]).T.astype(
            {"support": int}
        )


def test_the_size_of_the_test_is_judged():
    said = advice.about_test(Report(n=24, accuracy_interval_95=[0.5, 0.9]))
    assert "24 pictures leave 50.0% to 90.0% open" in said
    assert "may take 2,401." in said  # 1.96² · 0.25 / 0.02²


def test_the_weakest_class_is_named():
    said = advice.about_weakest(Report(), counts(cat=(70, 15, 20), dog=(7, 1, 4)))
    assert said == (
        "“cat”: of its 20 test pictures 70% are found, and 40% of the answers that name it are "
        "right; it had 70 to learn from."
    )


def test_the_table_has_a_remedy_for_each_question():
    table = advice.table(dict.fromkeys(advice.REMEDIES, "measured"))
    assert (table["these pictures"] == "measured").all()
    assert table["with others"].str.len().min() > 20
