"""Near-duplicates: what counts as one, and that splits keep them together."""

import time

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from studio import duplicates, splitting
from studio.checking import check_picture


def photo(seed):
    """A picture with structure at all scales, as photos have."""
    rng = np.random.default_rng(seed)
    layers = [
        Image.fromarray(rng.integers(0, 256, (n, n, 3), np.uint8)).resize((240, 240), 3)
        for n in (3, 6, 12, 60)
    ]
    mean = np.mean([np.asarray(layer, float) for layer in layers], axis=0)
    return Image.fromarray(mean.astype(np.uint8))


CHANGES = {
    "smaller": lambda picture: picture.resize((100, 100)),
    "recoded": lambda picture: picture,
    "darker": lambda picture: ImageEnhance.Brightness(picture).enhance(0.7),
    "grey": lambda picture: picture.convert("L"),
    "a little cropped": lambda picture: picture.crop((2, 2, 238, 238)),
}


@pytest.fixture(scope="module")
def hashes(tmp_path_factory):
    """Of twenty pictures that have nothing in common."""
    folder = tmp_path_factory.mktemp("photos")
    for i in range(20):
        photo(i).save(folder / f"{i}.png")
    return [check_picture(folder / f"{i}.png").hash for i in range(20)]


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_is_found_and_others_are_not(change, hashes, tmp_path):
    CHANGES[change](photo(7)).save(tmp_path / "copy.jpg", quality=60)
    pairs = duplicates.find_pairs([*hashes, check_picture(tmp_path / "copy.jpg").hash])
    assert pairs[["first", "second"]].to_numpy().tolist() == [[7, 20]]


def test_the_pairs_are_those_of_a_slow_search():
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2, (1100, 256), np.uint8)
    # Near, far and equal copies, also from one block of rows to another.
    for to, of, flips in ((1050, 3, 48), (1051, 4, 49), (1052, 5, 0), (9, 8, 20), (1053, 1052, 7)):
        bits[to] = bits[of]
        bits[to, rng.permutation(256)[:flips]] ^= 1
    hashes = [row.tobytes() for row in np.packbits(bits, axis=1)] + [b"tiny", b"other", b"tiny"]
    found = duplicates.find_pairs(hashes)
    assert found.to_numpy().tolist() == [
        *([3, 1050, 48], [5, 1052, 0], [5, 1053, 7], [8, 9, 20], [1100, 1102, 0])
    ]
    assert duplicates.find_groups(found, len(hashes)) == [
        *([3, 1050], [5, 1052, 1053], [8, 9], [1100, 1102])
    ]


def test_six_thousand_hashes_take_seconds():
    rng = np.random.default_rng(0)
    hashes = [row.tobytes() for row in rng.integers(0, 256, (6000, 32), np.uint8)]
    start = time.monotonic()
    assert duplicates.find_pairs([*hashes, *hashes]).shape == (6000, 3)
    assert time.monotonic() - start < 10


@pytest.mark.parametrize("seed", range(5))
def test_groups_share_a_side_and_the_counts_stay(seed):
    rng = np.random.default_rng(seed)
    labels = rng.choice(["a", "b", "c"], 400, p=[0.6, 0.3, 0.1])
    members = rng.permutation(400)[:120].tolist()
    groups = [sorted(members[i : i + size]) for i, size in zip(range(0, 120, 4), [2, 3, 4] * 10)]
    alone = splitting.split(labels, (0.7, 0.2, 0.1), seed)
    split = splitting.split(labels, (0.7, 0.2, 0.1), seed, groups)
    assert sorted(np.concatenate(list(split.values()))) == list(range(400))
    for name in split:
        assert sorted(labels[split[name]]) == sorted(labels[alone[name]])
    side = {i: name for name, at in split.items() for i in at.tolist()}
    assert all(len({side[i] for i in group}) == 1 for group in groups)


def test_one_large_group_goes_one_way_even_where_the_counts_cannot_hold():
    split = splitting.split(["a"] * 6 + ["b"] * 6, (0.5, 0.25, 0.25), 0, [list(range(6))])
    assert any({*range(6)} <= set(at.tolist()) for at in split.values())


@pytest.mark.parametrize(("name", "least"), [("dogs", 1), ("listings", 5)])
def test_real_photos_have_few_and_known_near_duplicates(name, least, data_dir):
    """The watch and the beagle that these two sets hold twice, and hardly a pair beside them."""
    known = {
        "dogs": ["beagle/n02088364_15989.jpg", "english_foxhound/ILSVRC2012_val_00033633.jpg"],
        "listings": ["watches/watch_image_0173.jpg", "watches/watch_image_0211.jpg"],
    }[name]
    files = [data_dir / name / known[0], data_dir / name / known[1]]
    files += sorted((data_dir / name).glob("*/*5.jpg"))
    pairs = duplicates.find_pairs([check_picture(path).hash for path in dict.fromkeys(files)])
    assert pairs[["first", "second"]].to_numpy().tolist()[0] == [0, 1]
    assert len(pairs) <= least
