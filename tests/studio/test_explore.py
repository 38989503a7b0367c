"""Statistics, duplicates and means of small pictures whose answers are known."""

import numpy as np
import pytest
from PIL import Image

from studio.datasets import SPLITS, DataError, Dataset
from studio.explore import duplicates, imbalance, quality, recipe, statistics, survey


@pytest.fixture
def dataset(tmp_path):
    """Two classes of four random grey pictures of 6 × 4 pixels a split."""
    rng = np.random.default_rng(0)
    for split in SPLITS:
        for name in ("a", "b"):
            for i in range(4):
                save(tmp_path, split, name, f"{i}.png", rng.integers(0, 256, (4, 6)))
    return Dataset("made-up", tmp_path, ("a", "b"), "a test")


def save(folder, split, name, file, pixels, mode=None):
    path = folder / split / name / file
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(np.asarray(pixels, dtype=np.uint8))
    picture.convert(mode or picture.mode).save(path)
    return path


def pixels_of(dataset, splits=SPLITS, classes=("a", "b")):
    return [
        np.asarray(Image.open(path))
        for split in splits
        for path, name in dataset.files(split)
        if name in classes
    ]


def test_statistics_are_those_of_all_the_pixels(dataset):
    # One picture of another size: its pixels must count, not its mean.
    save(dataset.folder, "train", "a", "large.png", np.full((20, 30), 250))
    table = statistics(survey(dataset).pictures)
    assert table.index.to_list() == ["a", "b", "all"]
    for row, classes in (("a", ["a"]), ("b", ["b"]), ("all", ["a", "b"])):
        pixels = np.concatenate([p.ravel() for p in pixels_of(dataset, classes=classes)])
        found = table.loc[row]
        assert found["mean"] == pytest.approx(pixels.mean())
        assert found["std"] == pytest.approx(pixels.std())
        assert (found["min"], found["max"]) == (pixels.min(), pixels.max())
    assert table["pictures"].to_list() == [13, 12, 25]
    assert table.loc["a", ["width", "height", "modes"]].to_list() == ["6 to 30", "4 to 20", "L"]
    assert table.loc["b", ["width", "height"]].to_list() == ["6", "4"]


def test_each_row_describes_its_own_picture(dataset):
    pictures = survey(dataset).pictures
    assert len(pictures) == 24
    for _, row in pictures.iterrows():
        pixels = np.asarray(Image.open(dataset.folder / row["split"] / row["class"] / row["file"]))
        assert (row["width"], row["height"], row["mode"]) == (6, 4, "L")
        assert row["mean"] == pytest.approx(pixels.mean())
        assert row["std"] == pytest.approx(pixels.std())
        assert (row["min"], row["max"]) == (pixels.min(), pixels.max())


def test_a_single_colour_has_no_deviation(dataset):
    for path, _ in dataset.files("train"):
        Image.new("L", (7, 7), 201).save(path)
    pictures = survey(dataset).pictures
    row = pictures[pictures["split"] == "train"].iloc[0]
    assert (row["mean"], row["std"], row["min"], row["max"]) == (201, 0, 201, 201)


def test_histogram_and_mean_pictures_see_the_training_split_only(dataset):
    view = survey(dataset)
    for name in dataset.class_names:
        pixels = pixels_of(dataset, ["train"], [name])
        assert (view.histogram[name] == np.bincount(np.ravel(pixels), minlength=256)).all()
        expected = np.round(np.mean(pixels, axis=0)).astype(np.uint8)
        assert np.array_equal(view.mean_pictures[name], expected)


def test_mean_pictures_mix_sizes_and_colours(dataset):
    save(dataset.folder, "train", "a", "z.png", np.full((50, 10, 3), [255, 0, 0]))
    save(dataset.folder, "train", "a", "zz.png", np.full((8, 12), 40))
    means = survey(dataset).mean_pictures
    assert means["a"].shape == (4, 6, 3)
    assert means["b"].shape == (4, 6)
    grey = sum(pixels_of(dataset, ["train"], ["a"])[i].astype(float) for i in range(4))
    assert np.allclose(means["a"][..., 0], (grey + 255 + 40) / 6, atol=0.51)
    assert np.allclose(means["a"][..., 1], (grey + 40) / 6, atol=0.51)


def test_large_pictures_are_shrunk_for_the_mean(dataset):
    for path, _ in dataset.files("train"):
        Image.new("RGB", (400, 200), "teal").save(path)
    assert survey(dataset).mean_pictures["a"].shape == (48, 96, 3)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_every_common_mode_is_read(mode, dataset):
    suffix = "tif" if mode == "CMYK" else "png"
    save(dataset.folder, "train", "a", f"z.{suffix}", np.full((4, 6), 255), mode)
    pictures = survey(dataset).pictures
    row = pictures[pictures["file"] == f"z.{suffix}"].iloc[0]
    assert (row["mode"], row["mean"]) == (mode, 255)


def test_no_duplicates_among_different_pictures(dataset):
    near = np.asarray(Image.open(dataset.files("train")[0][0])).copy()
    near[0, 0] ^= 1
    save(dataset.folder, "test", "a", "near.png", near)
    # The same bytes in another shape are another picture.
    save(dataset.folder, "test", "a", "flat.png", np.full((2, 8), 9))
    save(dataset.folder, "test", "a", "square.png", np.full((4, 4), 9))
    pairs = duplicates(survey(dataset).pictures)
    assert pairs.empty
    assert {"split_a", "class_b", "across_splits", "same_class"} <= set(pairs.columns)


def test_planted_duplicates_are_found(dataset):
    first = dataset.files("train")[0][0]
    pixels = np.asarray(Image.open(first))
    # Another file format, another class and another split: still the same pixels.
    save(dataset.folder, "train", "a", "copy.bmp", pixels)
    save(dataset.folder, "test", "b", "leak.png", pixels)
    pairs = duplicates(survey(dataset).pictures)
    found = pairs[["split_a", "class_a", "file_a", "split_b", "class_b", "file_b"]]
    assert found.to_numpy().tolist() == [
        ["train", "a", first.name, "train", "a", "copy.bmp"],
        ["train", "a", first.name, "test", "b", "leak.png"],
    ]
    assert pairs["across_splits"].to_list() == [False, True]
    assert pairs["same_class"].to_list() == [True, False]


def test_imbalance_is_largest_over_smallest(dataset):
    assert imbalance(dataset.counts()) == 1
    for i in range(6):
        save(dataset.folder, "train", "b", f"more-{i}.png", np.full((2, 2), i))
    assert imbalance(dataset.counts()) == 2.5
    assert imbalance(dataset.counts(), "test") == 1


def test_a_broken_picture_is_named(dataset):
    path = dataset.files("valid")[2][0]
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DataError, match=r"“a/2\.png” cannot be read") as caught:
        survey(dataset)
    assert str(dataset.folder) not in str(caught.value)


@pytest.mark.parametrize(("size", "expected"), [((32, 90), "small"), ((33, 90), "photos")])
def test_the_recipe_goes_by_the_shorter_side(dataset, size, expected):
    for name in ("a", "b"):
        for i in range(4):
            save(dataset.folder, "train", name, f"{i}.png", np.zeros(size))
    assert recipe(survey(dataset)) == expected


def test_sharpness_and_brightness_by_hand(tmp_path):
    flat = save(tmp_path, "train", "a", "flat.png", np.full((5, 5), 80))
    spot = np.zeros((5, 5))
    spot[2, 2] = 100
    spotted = save(tmp_path, "train", "a", "spot.png", spot)
    table = quality([flat, spotted.read_bytes()])
    assert table["brightness"].tolist() == [80, 4]
    # The Laplacian of one spot is -400 there and 100 at its four neighbours; their mean is 0.
    assert table["sharpness"].tolist() == pytest.approx([0, (400**2 + 4 * 100**2) / 25])
