"""Preparing and packing pictures: the real sets, small made-up ones, and what can be wrong."""

import errno
import gzip
import hashlib
import io
import os
import re
import shutil
import sys
import tarfile
import threading
import time
import urllib.request
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from studio import datasets, explore, fashion_mnist
from studio.datasets import SPLITS, DataError, Dataset, pack, prepare, samples
from studio.packing import read_recordio
from vision.data import hash_split, list_split, load_split

ROOT = Path(__file__).parents[2]
REAL = Path(os.environ.get("DATA_DIR") or ROOT.parent / "shared" / "data")
RAW = REAL / "FashionMNIST" / "raw"
needs_fashion = pytest.mark.skipif(not RAW.is_dir(), reason="no Fashion-MNIST in DATA_DIR")
needs_listings = pytest.mark.skipif(
    not (REAL / "listings").is_dir(), reason="no listings in DATA_DIR"
)

# Fashion-MNIST's own order of labels, written out again to catch a slip in the code's list.
LABELS = [
    *("t-shirt-top", "trouser", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "ankle-boot"),
]
FILES = {
    "train-images-idx3-ubyte": 300,
    "train-labels-idx1-ubyte": 300,
    "t10k-images-idx3-ubyte": 100,
    "t10k-labels-idx1-ubyte": 100,
}


@pytest.fixture(autouse=True)
def _no_data_dir(monkeypatch):
    monkeypatch.delenv("DATA_DIR", raising=False)


@pytest.fixture(scope="module")
def fashion(tmp_path_factory):
    """All of Fashion-MNIST, prepared once."""
    root = tmp_path_factory.mktemp("fashion")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATA_DIR", str(REAL))
        dataset = prepare(root=root)
    yield dataset
    # 70,000 files are more than pytest should keep for later.
    shutil.rmtree(root)


def original(name):
    return gzip.decompress((RAW / f"{name}.gz").read_bytes())


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return header + array.tobytes()


def small_fashion(folder, compress=True):
    """Four small IDX files with every label equally often; the content of each by its name."""
    rng = np.random.default_rng(1)
    folder.mkdir(parents=True, exist_ok=True)
    for name, size in FILES.items():
        if "labels" in name:
            array = (np.arange(size) % 10).astype(np.uint8)
        else:
            array = rng.integers(0, 256, (size, 28, 28), dtype=np.uint8)
        write_idx(folder, name, idx(array), compress)
    return folder


def write_idx(folder, name, content, compress=True):
    path = folder / (f"{name}.gz" if compress else name)
    path.write_bytes(gzip.compress(content) if compress else content)
    return path


def class_folders(folder, counts, suffix=".png", seed=0):
    rng = np.random.default_rng(seed)
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i:03d}{suffix}")
    return folder


def content(dataset):
    """Bytes of every picture, by split, class and file name."""
    return {
        (split, name, path.name): path.read_bytes()
        for split in SPLITS
        for path, name in dataset.files(split)
    }


def tree(folder):
    return {p.relative_to(folder).as_posix(): p.stat().st_mtime_ns for p in folder.rglob("*")}


# --- The whole of Fashion-MNIST -----------------------------------------------------------------


@needs_fashion
def test_fashion_mnist_is_complete_and_stratified(fashion):
    counts = fashion.counts()
    assert counts.sum().to_dict() == {"train": 54_000, "valid": 6_000, "test": 10_000}
    assert (counts == [5_400, 600, 1_000]).all(axis=None)
    assert fashion.class_names == tuple(sorted(LABELS))
    assert not fashion.is_fallback
    totals = fashion.counts(totals=True)
    assert totals.loc["total", "total"] == 70_000


@needs_fashion
def test_every_original_picture_is_in_one_split_under_its_own_label(fashion):
    for prefix, splits in (("train", ("train", "valid")), ("t10k", ("test",))):
        labels = original(f"{prefix}-labels-idx1-ubyte")[8:]
        found = [
            (int(re.fullmatch(r"(?:train|test)-(\d{5})\.png", path.name)[1]), name)
            for split in splits
            for path, name in fashion.files(split)
        ]
        assert sorted(found) == [(i, LABELS[label]) for i, label in enumerate(labels)]


@needs_fashion
def test_the_pixels_are_those_of_the_original(fashion):
    for prefix, splits in (("train", ("train", "valid")), ("t10k", ("test",))):
        raw = original(f"{prefix}-images-idx3-ubyte")
        for split in splits:
            for path, _ in fashion.files(split)[::97]:
                place = 16 + 784 * int(path.stem.split("-")[1])
                with Image.open(path) as picture:
                    assert (picture.mode, picture.size) == ("L", (28, 28))
                    assert picture.tobytes() == raw[place : place + 784], path.name


@needs_fashion
def test_the_pixels_have_the_published_mean_and_deviation(fashion):
    pictures = explore.survey(fashion).pictures
    table = explore.statistics(pictures[pictures["split"] != "test"])
    # 0.2860 and 0.3530 are what everybody normalises the 60,000 training pictures with.
    assert round(table.loc["all", "mean"] / 255, 4) == 0.2860
    assert round(table.loc["all", "std"] / 255, 4) == 0.3530
    assert explore.duplicates(pictures).empty


@needs_fashion
def test_a_second_call_does_nothing(fashion, monkeypatch, capsys):
    monkeypatch.setenv("DATA_DIR", str(REAL))
    before = (fashion.folder / "dataset.json").stat().st_mtime_ns
    again = prepare(root=fashion.folder.parent)
    assert again == fashion
    assert (fashion.folder / "dataset.json").stat().st_mtime_ns == before
    assert capsys.readouterr() == ("", "")


# --- Small IDX files ----------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["FashionMNIST/raw", "FashionMNIST", "."])
@pytest.mark.parametrize("compress", [True, False])
def test_idx_files_are_found_in_every_place(place, compress, tmp_path, monkeypatch):
    small_fashion(tmp_path / "data" / place, compress)
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "data"))
    dataset = prepare(root=tmp_path / "root")
    assert dataset.counts().sum().to_dict() == {"train": 270, "valid": 30, "test": 100}
    assert (dataset.counts() == [27, 3, 10]).all(axis=None)


def test_plain_and_compressed_files_give_the_same_pictures(tmp_path, monkeypatch):
    prepared = []
    for compress in (True, False):
        monkeypatch.setenv("DATA_DIR", str(small_fashion(tmp_path / f"data-{compress}", compress)))
        prepared.append(content(prepare(root=tmp_path / f"root-{compress}")))
    assert prepared[0] == prepared[1]


def test_a_damaged_plain_copy_beside_the_compressed_file_does_no_harm(tmp_path, monkeypatch):
    data = small_fashion(tmp_path / "data")
    write_idx(data, "t10k-images-idx3-ubyte", b"half an extract", compress=False)
    monkeypatch.setenv("DATA_DIR", str(data))
    assert len(prepare(root=tmp_path / "root").files("test")) == 100


def cut(path):
    path.write_bytes(path.read_bytes()[:-200])


def flip(path):
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    path.write_bytes(damaged)


def rewrite(change):
    def damage(path):
        path.write_bytes(gzip.compress(change(gzip.decompress(path.read_bytes()))))

    return damage


DAMAGES = {
    "cut short": cut,
    "a flipped byte": flip,
    "not gzip": lambda path: path.write_bytes(b"<html>Sign in to the network</html>"),
    "empty": lambda path: path.write_bytes(b""),
    "wrong magic": rewrite(lambda data: b"\0\0\x0d" + data[3:]),
    "header only": rewrite(lambda data: data[:6]),
    "a byte missing": rewrite(lambda data: data[:-1]),
    "a byte too many": rewrite(lambda data: data + b"\0"),
    "a huge promise": rewrite(lambda data: data[:4] + b"\xff\xff\xff\xff" + data[8:]),
    "nothing in it": rewrite(lambda data: data[:4] + bytes(4 * data[3])),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
def test_a_damaged_file_is_named(name, damage, tmp_path, monkeypatch):
    data = small_fashion(tmp_path / "data")
    if damage is cut and "labels" in name:
        write_idx(data, name, idx(np.random.default_rng(0).integers(0, 9, 900, dtype=np.uint8)))
    damage(data / f"{name}.gz")
    expect_error(f"{name}.gz", data, tmp_path, monkeypatch)


def expect_error(words, data, tmp_path, monkeypatch):
    """A DataError that names the file and no folder, and nothing left behind."""
    monkeypatch.setenv("DATA_DIR", str(data))
    with pytest.raises(DataError, match=re.escape(words)) as caught:
        prepare(root=tmp_path / "root")
    assert str(tmp_path) not in str(caught.value)
    assert "DATA_DIR" in str(caught.value)
    assert not list(tmp_path.glob("root/*"))


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(name, tmp_path, monkeypatch):
    data = small_fashion(tmp_path / "data" / "FashionMNIST" / "raw")
    (data / f"{name}.gz").unlink()
    expect_error(name, tmp_path / "data", tmp_path, monkeypatch)


def test_counts_that_differ_are_refused(tmp_path, monkeypatch):
    data = small_fashion(tmp_path / "data")
    write_idx(data, "train-labels-idx1-ubyte", idx(np.arange(299, dtype=np.uint8) % 10))
    expect_error(
        "holds 300 pictures but train-labels-idx1-ubyte.gz 299", data, tmp_path, monkeypatch
    )


def test_a_label_beyond_nine_is_refused(tmp_path, monkeypatch):
    data = small_fashion(tmp_path / "data")
    write_idx(data, "train-labels-idx1-ubyte", idx(np.arange(300, dtype=np.uint8) % 11))
    expect_error("the label 10", data, tmp_path, monkeypatch)


@pytest.mark.parametrize("exists", [True, False])
def test_a_data_dir_without_fashion_mnist_is_an_error(exists, tmp_path, monkeypatch):
    if exists:
        class_folders(tmp_path / "data" / "dogs", {"beagle": 2})
    expect_error("holds no Fashion-MNIST", tmp_path / "data", tmp_path, monkeypatch)


def test_half_written_folders_are_made_again(tmp_path, monkeypatch):
    monkeypatch.setenv("DATA_DIR", str(small_fashion(tmp_path / "data")))
    dataset = prepare(root=tmp_path / "root")
    whole = content(dataset)
    card = dataset.folder / "dataset.json"
    victim = dataset.files("valid")[0][0]
    harms = (
        card.unlink,
        lambda: card.write_text("{"),
        lambda: card.write_text("[]"),
        victim.unlink,
        lambda: shutil.rmtree(victim.parent),
    )
    for harm in harms:
        harm()
        assert content(prepare(root=tmp_path / "root")) == whole


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (KeyboardInterrupt(), KeyboardInterrupt),
        (OSError(errno.ENOSPC, "No space left on device"), DataError),
        (OSError(errno.EIO, "Input/output error"), OSError),
    ],
)
def test_an_interrupted_write_leaves_nothing(raised, expected, tmp_path, monkeypatch):
    def interrupt(*args):
        raise raised

    monkeypatch.setenv("DATA_DIR", str(small_fashion(tmp_path / "data")))
    with monkeypatch.context() as patch:
        patch.setattr(datasets, "_write_card", interrupt)
        with pytest.raises(expected):
            prepare(root=tmp_path / "root")
    assert not list((tmp_path / "root").iterdir())
    assert len(prepare(root=tmp_path / "root").files("train")) == 270


def test_seed_and_limit_have_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setenv("DATA_DIR", str(small_fashion(tmp_path / "data")))
    full = prepare(root=tmp_path / "root")
    other = prepare(root=tmp_path / "root", seed=7)
    few = prepare(root=tmp_path / "root", limit=45)
    assert len({full.folder, other.folder, few.folder}) == 3
    assert set(content(full)) != set(content(other))
    assert content(few).items() <= content(full).items()
    assert few.counts().sum().to_dict() == {"train": 45, "valid": 30, "test": 45}
    assert few.counts()["train"].between(4, 5).all()


# --- No data at all -----------------------------------------------------------------------------


def test_without_data_or_network_the_digits_stand_in(tmp_path, monkeypatch, capsys):
    through_proxy("http://127.0.0.1:9", monkeypatch)  # Nobody listens there.
    dataset = prepare(root=tmp_path)
    assert dataset.is_fallback
    assert dataset.counts().sum().to_dict() == {"train": 1257, "valid": 270, "test": 270}
    assert dataset.class_names == tuple(sorted(fashion_mnist.DIGIT_CLASSES))
    assert "**This run does not use Fashion-MNIST.**" in dataset.banner()
    assert "1,797 pictures" in dataset.banner()
    out, err = capsys.readouterr()
    assert "not reached" in out
    assert err == ""
    assert prepare(root=tmp_path) == dataset


def through_proxy(address, monkeypatch):
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("http_proxy", address)
    # urllib keeps the proxies of its first request.
    monkeypatch.setattr(urllib.request, "_opener", None)


@contextmanager
def network(answer, monkeypatch):
    """Every http address is served by `answer(handler)` while this lasts."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            answer(self)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    through_proxy(f"http://127.0.0.1:{server.server_port}", monkeypatch)
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


def portal(handler):
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(b"<html>Sign in to the network</html>")


def cut_off(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", "1000000")
    handler.end_headers()
    handler.wfile.write(b"\x1f\x8b")


def silence(handler):
    time.sleep(3)


@pytest.mark.parametrize("answer", [portal, cut_off, silence, lambda handler: None])
def test_a_bad_network_leads_to_the_digits_quickly(answer, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fashion_mnist, "DOWNLOAD_TIMEOUT", 0.5)
    start = time.monotonic()
    with network(answer, monkeypatch):
        dataset = prepare(root=tmp_path, limit=20)
    assert dataset.is_fallback
    assert time.monotonic() - start < 30
    out, err = capsys.readouterr()
    assert "not reached" in out
    assert err == ""


@needs_fashion
def test_fashion_mnist_is_downloaded_where_there_is_a_network(tmp_path, monkeypatch, capsys):
    from torchvision.datasets import FashionMNIST

    def mirror(handler):
        body = (RAW / Path(handler.path).name).read_bytes()
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    # The copies in DATA_DIR may have been compressed anew, which changes their checksums.
    sums = [
        (name, hashlib.md5((RAW / name).read_bytes()).hexdigest())
        for name, _ in FashionMNIST.resources
    ]
    monkeypatch.setattr(FashionMNIST, "resources", sums)
    with network(mirror, monkeypatch):
        dataset = prepare(root=tmp_path, limit=20)
    assert not dataset.is_fallback
    assert dataset.name == "fashion-mnist"
    assert dataset.counts().sum().to_dict() == {"train": 20, "valid": 20, "test": 20}
    assert capsys.readouterr().err == ""


def test_digits_are_scaled_to_full_brightness(tmp_path, monkeypatch):
    monkeypatch.setattr(fashion_mnist, "_download_fashion_mnist", lambda folder: False)
    dataset = prepare(root=tmp_path)
    pictures = explore.survey(dataset).pictures
    assert (pictures[["width", "height"]] == 8).all(axis=None)
    assert pictures["max"].max() == 255
    counts = dataset.counts()
    shares = counts.div(counts.sum(axis=1), axis=0)
    assert (abs(shares - [0.7, 0.15, 0.15]) < 0.01).all(axis=None)


# --- Other folders ------------------------------------------------------------------------------


@needs_listings
def test_listings_with_a_limit(tmp_path, monkeypatch):
    monkeypatch.setenv("DATA_DIR", str(REAL))
    dataset = prepare("listings", root=tmp_path, limit=60)
    assert dataset.counts().sum().to_dict() == {"train": 60, "valid": 60, "test": 60}
    assert dataset.counts().min(axis=None) >= 4
    for (_, name, file), data in content(dataset).items():
        assert data == (REAL / "listings" / name / file).read_bytes()
    assert len({(name, file) for _, name, file in content(dataset)}) == 180
    by_path = prepare(REAL / "listings", root=tmp_path, limit=60)
    assert by_path == dataset


def test_a_split_is_disjoint_complete_stratified_and_repeatable(tmp_path):
    photos = class_folders(tmp_path / "photos", {"rare": 5, "some": 20, "many": 100})
    first = prepare(photos, root=tmp_path / "a")
    second = prepare(str(photos), root=tmp_path / "b")
    assert content(first) == content(second)
    files = [(name, file) for _, name, file in content(first)]
    assert len(files) == len(set(files)) == 125
    # The rare class takes its place in the small splits from the others.
    assert first.counts().loc["many"].to_list() == pytest.approx([80, 10, 10], abs=2)
    assert first.counts().min(axis=None) >= 1
    halves = prepare(photos, root=tmp_path / "a", shares=(0.5, 0.25, 0.25))
    assert halves.counts().loc["some"].to_list() == [10, 5, 5]


def test_names_with_spaces_and_accents_travel(tmp_path):
    names = {"Été à la plage": 10, "chats & chiens": 10, "日本": 10}
    photos = class_folders(tmp_path / "mes photos", names, suffix=" é.PNG")
    dataset = prepare(photos, root=tmp_path / "root")
    assert dataset.class_names == tuple(sorted(names))
    assert "mes photos" in dataset.banner()
    packed = pack(dataset, tmp_path / "packed")
    with tarfile.open(packed["train"]) as tar:
        assert tar.getnames() == [f"{name}/{p.name}" for p, name in dataset.files("train")]


def test_only_pictures_count(tmp_path):
    photos = class_folders(tmp_path / "photos", {"a": 10, "b": 10})
    (photos / "a" / ".DS_Store").write_bytes(b"x")
    (photos / "a" / "._000.png").write_bytes(b"x")
    (photos / "a" / "notes.txt").write_text("x")
    (photos / "readme.md").write_text("x")
    (photos / ".ipynb_checkpoints").mkdir()
    assert prepare(photos, root=tmp_path / "root").counts(totals=True).loc["total", "total"] == 20


def test_an_already_split_folder_keeps_its_split(tmp_path, capsys):
    photos = tmp_path / "photos"
    for seed, split in enumerate(SPLITS):
        class_folders(photos / split, {"a": 6, "b": 9}, seed=seed)
    before = tree(photos)
    # The same picture on both sides is told and left where the source has it.
    shutil.copy(photos / "train" / "a" / "001.png", photos / "test" / "a" / "twice.png")
    dataset = prepare(photos, root=tmp_path / "root")
    assert "pairs of nearly equal pictures: 1, 1 of them ACROSS" in capsys.readouterr().out
    assert dataset.counts().loc["b"].to_list() == [9, 9, 9]
    assert content(dataset) == {
        (path.parts[-3], path.parts[-2], path.name): path.read_bytes()
        for path in photos.rglob("*.png")
    }
    few = prepare(photos, root=tmp_path / "root", limit=5)
    assert few.counts().sum().to_list() == [5, 5, 5]
    assert content(few).items() <= content(dataset).items()
    (photos / "test" / "a" / "twice.png").unlink()
    assert tree(photos) == before | {"test/a": tree(photos)["test/a"]}
    shutil.rmtree(photos / "test")
    assert prepare(photos, root=tmp_path / "root").splits == ("train", "valid")


def test_a_changed_source_is_prepared_again(tmp_path, capsys):
    photos = class_folders(tmp_path / "photos", {"a": 10, "b": 10})
    prepare(photos, root=tmp_path / "root")
    capsys.readouterr()
    assert len(content(prepare(photos, root=tmp_path / "root"))) == 20
    assert capsys.readouterr().out == ""
    (photos / "a" / "000.png").unlink()
    assert len(content(prepare(photos, root=tmp_path / "root"))) == 19


def test_other_pictures_of_as_many_bytes_are_prepared_again(tmp_path):
    photos = class_folders(tmp_path / "photos", {"a": 10, "b": 10}, suffix=".bmp")
    before = content(prepare(photos, root=tmp_path / "root"))
    other = class_folders(tmp_path / "other", {"a": 10}, suffix=".bmp", seed=9) / "a" / "000.bmp"
    assert other.stat().st_size == (photos / "a" / "000.bmp").stat().st_size
    os.utime(other, ns=(0, 0))
    other.replace(photos / "a" / "000.bmp")
    assert content(prepare(photos, root=tmp_path / "root")) != before


def make_bad(photos, what):
    if what == "mostly broken":
        for i in range(11):
            (photos / "a" / f"{i:03d}.png").write_text("not a picture")
    if what == "empty class":
        (photos / "c").mkdir()
    if what == "too deep":
        class_folders(photos / "c", {"spring": 3, "summer": 3}, seed=1)
    if what == "all rare":
        for path in [*(photos / "a").iterdir()][2:]:
            path.unlink()
    if what == "half split":
        class_folders(photos, {"train/a": 3, "test/a": 3})
    if what == "two of one split":
        class_folders(photos, {"train/a": 3, "val/a": 3, "validation/a": 3})
    if what == "one class":
        for path in (photos / "b").iterdir():
            path.unlink()
        (photos / "b").rmdir()


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("mostly broken", "11 of the 20 pictures of “a” cannot be used. The first is a/000.png:"),
        ("empty class", "“c” holds no picture"),
        ("too deep", "“c” holds no picture, but “c/spring” does"),
        ("all rare", "needs two or more classes of at least 3 pictures each and has 1"),
        ("half split", "holds train/ and test/ but not valid/"),
        ("two of one split", "holds val/ and validation/, which name one split: keep one"),
        ("one class", "has 1"),
    ],
)
def test_a_bad_folder_is_refused_in_a_sentence(what, words, tmp_path):
    photos = class_folders(tmp_path / "photos", {"a": 20, "b": 20})
    make_bad(photos, what)
    with pytest.raises(DataError, match=re.escape(words)) as caught:
        prepare(photos, root=tmp_path / "root")
    assert str(tmp_path) not in str(caught.value)
    assert not list(tmp_path.glob("root/*"))


def test_a_class_too_small_for_the_split_is_left_out_and_told(tmp_path, capsys):
    photos = class_folders(tmp_path / "photos", {"a": 20, "b": 20, "rare": 2, "repeats": 1})
    for i in range(9):
        shutil.copy(photos / "repeats" / "000.png", photos / "repeats" / f"again-{i}.png")
    dataset = prepare(photos, root=tmp_path / "root")
    assert dataset.class_names == ("a", "b")
    told = capsys.readouterr().out
    assert "class LEFT OUT: “rare” has 2 pictures that differ and needs 3" in told
    assert "a folder that you have split into train/, valid/ and test/ yourself" in told
    assert "class LEFT OUT: “repeats” has 1 pictures that differ" in told
    assert dataset.left_out == 12
    reasons = pd.read_csv(dataset.report)
    assert set(reasons["label"]) == {"rare", "repeats"}
    assert reasons["problem"].str.contains("needs 3 pictures that differ").all()
    assert "12" in dataset.banner()
    # Two are enough where there is no test.
    assert "rare" in prepare(photos, root=tmp_path / "two", shares=(0.7, 0.3)).class_names


def test_three_pictures_of_a_class_are_one_of_each_split(tmp_path):
    photos = class_folders(tmp_path / "photos", {"a": 5, "b": 4, "c": 3, "d": 3})
    counts = prepare(photos, root=tmp_path / "root", shares=(0.7, 0.15, 0.15)).counts()
    assert counts.loc["c"].to_list() == counts.loc["d"].to_list() == [1, 1, 1]
    assert (counts >= 1).all(axis=None)


def test_look_alikes_do_not_empty_a_split_of_a_small_class(tmp_path):
    for seed in range(5):
        photos = class_folders(tmp_path / f"photos-{seed}", {"a": 30, "b": 3}, seed=seed)
        for i in range(6):
            shutil.copy(photos / "b" / "000.png", photos / "b" / f"again-{i}.png")
        dataset = prepare(photos, root=tmp_path / "root", seed=seed)
        assert (dataset.counts().loc["b"] >= 1).all()
        assert not pd.read_csv(dataset.duplicates)["across_splits"].any()


def test_what_is_no_picture_by_its_name_is_told(tmp_path, capsys):
    photos = class_folders(tmp_path / "photos", {"a": 10, "b": 10})
    (photos / "a" / "film.MP4").write_bytes(b"x")
    (photos / "b" / "scan").write_bytes(b"x")
    prepare(photos, root=tmp_path / "root")
    assert "not looked at: 2 (.mp4, no suffix)" in capsys.readouterr().out


def test_the_other_names_of_the_validation_split_are_known(tmp_path):
    for name in ("val", "validation"):
        photos = tmp_path / name
        for seed, split in enumerate(("train", name)):
            class_folders(photos / split, {"a": 6, "b": 9}, seed=seed)
        dataset = prepare(photos, root=tmp_path / "root")
        assert dataset.counts().loc["b"].to_dict() == {"train": 9, "valid": 9}


def test_a_class_may_have_the_name_of_a_split(tmp_path):
    photos = class_folders(tmp_path / "photos", {"bus": 5, "test": 5, "train": 5})
    assert prepare(photos, root=tmp_path / "root").class_names == ("bus", "test", "train")


def test_a_path_from_the_home_folder_is_found(tmp_path, monkeypatch):
    class_folders(tmp_path / "photos", {"a": 10, "b": 10})
    monkeypatch.setenv("HOME", str(tmp_path))
    assert prepare("~/photos", root=tmp_path / "root").class_names == ("a", "b")


def phone_photo(kind="JPEG", size=(900, 600), mode="RGB"):
    """A photo that lies on its side until its EXIF orientation is heeded; red is on top then."""
    pixels = np.zeros((*size[::-1], 3), np.uint8)
    pixels[:, : size[0] // 2] = [255, 0, 0]
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(Image.fromarray(pixels).convert(mode), kind, exif=exif)


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        ("JPEG", "RGB"),
        ("JPEG", "CMYK"),
        ("PNG", "RGB"),
        ("PNG", "P"),
        ("WEBP", "RGB"),
        ("TIFF", "RGB"),
    ],
)
def test_large_photos_are_scaled_down_upright(kind, mode, tmp_path):
    photos = class_folders(tmp_path / "photos", {"a": 12, "b": 12})
    name = f"large.{kind.lower()}"
    (photos / "a" / name).write_bytes(phone_photo(kind, mode=mode))
    dataset = prepare(photos, root=tmp_path / "root", short_side=60)
    (path,) = [
        path for split in dataset.splits for path, _ in dataset.files(split) if "large" in path.name
    ]
    with Image.open(path) as picture:
        assert picture.size == (60, 90)
        assert picture.format == ("PNG" if kind == "TIFF" else kind)
        red, green, _ = picture.convert("RGB").getpixel((30, 5))
        assert red > 200 > 60 > green
    # What is small enough stays as it is.
    small = {p.name: p.read_bytes() for p in (photos / "b").iterdir()}
    kept = {p.name: p.read_bytes() for s in dataset.splits for p, c in dataset.files(s) if c == "b"}
    assert kept == small
    assert path.name in {p.name for s in dataset.splits for p, _ in dataset.files(s)}


def test_more_pixels_than_training_takes_are_no_obstacle_when_scaled_down(tmp_path):
    photos = class_folders(tmp_path / "photos", {"a": 12, "b": 12})
    Image.new("RGB", (8000, 6000), "red").save(photos / "a" / "48 megapixels.jpg")
    for suffix in ("bmp", "tiff"):
        Image.new("1", (6000, 4500)).save(photos / "b" / f"27 megapixels.{suffix}")
    reasons = pd.read_csv(prepare(photos, root=tmp_path / "as-it-is").report)["problem"]
    assert len(reasons) == 3
    assert reasons.str.contains("= more than 25 million pixels: scale it down").all()
    dataset = prepare(photos, root=tmp_path / "small", short_side=512)
    assert dataset.left_out == 0
    again = prepare(photos, root=tmp_path / "small")
    assert again.left_out == 3, "the setting was taken for the same"


def test_broken_pictures_are_left_out_and_listed(tmp_path, capsys):
    photos = class_folders(tmp_path / "photos", {"a": 20, "b": 20})
    Image.effect_noise((80, 80), 50).save(photos / "a" / "cut.jpg")
    cut(photos / "a" / "cut.jpg")
    (photos / "b" / "text.png").write_text("not a picture")
    (photos / "b" / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic")
    for _ in range(2):
        dataset = prepare(photos, root=tmp_path / "root")
        assert "pictures LEFT OUT: 3; report.csv" in capsys.readouterr().out
    assert dataset.counts().sum(axis=1).to_dict() == {"a": 20, "b": 20}
    assert dataset.left_out == 3
    assert dataset.report.read_text().splitlines() == [
        "line,link,label,problem",
        ",a/cut.jpg,a,the picture is truncated or damaged",
        ',b/phone.heic,b,"this is not a readable JPEG, PNG or WebP picture"',
        ',b/text.png,b,"this is not a readable JPEG, PNG or WebP picture"',
    ]


def test_files_that_cannot_be_read_are_left_out_and_listed(tmp_path):
    photos = class_folders(tmp_path / "photos", {"a": 20, "b": 20})
    (photos / "a" / "moved.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (photos / "b" / "folder.jpg").mkdir()
    dataset = prepare(photos, root=tmp_path / "root")
    assert dataset.report.read_text().splitlines()[1:] == [
        ",a/moved.jpg,a,the file cannot be read: No such file or directory",
        ",b/folder.jpg,b,the file cannot be read: Is a directory",
    ]


def test_two_names_that_become_one_stay_two_pictures(tmp_path):
    photos = class_folders(tmp_path / "photos", {"a": 20, "b": 20})
    for place, name in enumerate(("twin.bmp", "twin.bmp.png")):
        picture = Image.fromarray(np.random.default_rng(place).integers(0, 256, (80, 80), np.uint8))
        picture.save(photos / "a" / name)
    assert prepare(photos, root=tmp_path / "root").counts().loc["a"].sum() == 22


@pytest.mark.parametrize("short_side", [None, 40])
def test_a_phones_jpeg_of_two_pictures_is_the_first(tmp_path, short_side):
    photos = class_folders(tmp_path / "photos", {"a": 20, "b": 20})
    first, second = Image.new("RGB", (90, 60), "red"), Image.new("RGB", (90, 60), "blue")
    first.save(photos / "a" / "depth.jfif", "MPO", save_all=True, append_images=[second])
    with Image.open(photos / "a" / "depth.jfif") as written:
        assert written.format == "MPO"
    dataset = prepare(photos, root=tmp_path / "root", short_side=short_side)
    assert dataset.left_out == 0
    assert dataset.counts().loc["a"].sum() == 21
    (path,) = dataset.folder.rglob("depth*")
    with Image.open(path) as picture:
        assert path.suffix == ".jpeg"
        assert picture.getpixel((5, 5))[0] > 200


@pytest.mark.skipif(sys.platform == "darwin", reason="its file systems know such names not at all")
def test_a_name_that_is_not_utf_8_is_refused(tmp_path):
    photos = class_folders(tmp_path / "photos", {"a": 20, "b": 20})
    os.rename(photos / "a" / "000.png", os.fsencode(photos / "a") + b"/caf\xe9.png")
    with pytest.raises(DataError, match="is not UTF-8: rename it"):
        prepare(photos, root=tmp_path / "root")


@pytest.mark.parametrize(
    ("shares", "counts"),
    [
        ((0.7, 0.2, 0.1), {"a": [70, 20, 10], "b": [140, 40, 20], "c": [28, 8, 4]}),
        ((0.7, 0.3), {"a": [70, 30], "b": [140, 60], "c": [28, 12]}),
        ((0.7, 0.3, 0.0), {"a": [70, 30], "b": [140, 60], "c": [28, 12]}),
    ],
)
def test_shares_are_kept_to_the_picture(shares, counts, tmp_path):
    photos = class_folders(tmp_path / "photos", {"a": 100, "b": 200, "c": 40})
    # Equal pictures share a split, and the counts hold all the same.
    for i in range(0, 100, 9):
        shutil.copy(photos / "a" / f"{i:03d}.png", photos / "b" / f"{i:03d}.png")
    dataset = prepare(photos, root=tmp_path / "root", shares=shares)
    assert dataset.counts().T.to_dict("list") == counts
    assert dataset.splits == SPLITS[: len(counts["a"])]
    pairs = pd.read_csv(dataset.duplicates)
    assert (len(pairs), pairs["across_splits"].sum(), pairs["same_class"].sum()) == (12, 0, 0)
    split_of = {(name, file): split for split, name, file in content(dataset)}
    assert all(split_of["a", f"{i:03d}.png"] == split_of["b", f"{i:03d}.png"] for i in [0, 9, 99])
    assert list(pack(dataset, tmp_path / "packed")) == list(dataset.splits)


def oriented(pixels, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", exif=exif)
    return buffer.getvalue()


def saved(picture, kind, **options):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def odd_pictures():
    """File name → (bytes, the RGB pixels that training must see, tolerance)."""
    upright = np.zeros((40, 40, 3), np.uint8)
    upright[:20, :20] = [250, 30, 60]
    upright[20:, :10] = [20, 90, 240]
    grey = upright[..., 0]
    clear = Image.fromarray(upright).convert("RGBA")
    clear.putalpha(Image.fromarray(np.where(grey > 0, 255, 0).astype(np.uint8)))
    on_white = np.where(grey[..., None] > 0, upright, 255)
    palette = Image.fromarray(upright).quantize(8, dither=Image.Dither.NONE)
    black = palette.getpixel((39, 0))
    greys = np.repeat(grey[..., None], 3, axis=2)
    flat = Image.fromarray(upright)
    # What a viewer must do for each EXIF orientation, undone (EXIF 2.32, tag 0x0112).
    undo = {1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1]}
    transposed = upright.transpose(1, 0, 2)
    undo |= {5: transposed, 6: np.rot90(upright, 1), 7: np.rot90(transposed, 2)}
    undo[8] = np.rot90(upright, -1)
    pictures = {
        f"turned-{n}.png": (oriented(np.ascontiguousarray(pixels), n), upright, 0)
        for n, pixels in undo.items()
    }
    tiff = Image.Exif()
    tiff[0x0112] = 6
    turned = Image.fromarray(np.ascontiguousarray(undo[6]))
    return pictures | {
        "cmyk.jpg": (saved(flat.convert("CMYK"), "JPEG", quality=95), upright, 40),
        "palette.png": (saved(palette, "PNG", transparency=black), on_white, 8),
        "deep.png": (saved(Image.fromarray(grey.astype(np.uint16) * 257), "PNG"), greys, 0),
        "la.png": (saved(clear.convert("LA"), "PNG"), None, 0),
        "rgba.webp": (saved(clear, "WEBP", lossless=True), on_white, 0),
        "bilevel.png": (saved(Image.fromarray(grey > 0), "PNG"), np.where(greys > 0, 255, 0), 0),
        "cmyk.tiff": (saved(flat.convert("CMYK"), "TIFF"), upright, 2),
        "turned.tiff": (saved(turned, "TIFF", exif=tiff), upright, 0),
        "moving.gif": (saved(palette, "GIF", save_all=True, append_images=[palette]), upright, 8),
        "bitmap.bmp": (saved(flat, "BMP"), upright, 0),
    }


def test_any_kind_of_picture_reaches_training_upright_and_in_rgb(tmp_path):
    odd = odd_pictures()
    photos = class_folders(tmp_path / "photos", {"plain": 20})
    (photos / "odd").mkdir()
    for name, (data, _, _) in odd.items():
        (photos / "odd" / name).write_bytes(data)
    dataset = prepare(photos, root=tmp_path / "root", shares=(0.7, 0.3))
    assert dataset.left_out == 0
    seen = {}
    for split in dataset.splits:
        loaded = load_split(list_split(dataset.folder / split), ["odd", "plain"], 40, 3)
        images = loaded.images.permute(0, 2, 3, 1).numpy().astype(int)
        seen |= dict(zip(loaded.names, images))
    for name, (_, pixels, tolerance) in odd.items():
        kept = name if name.endswith(("png", "jpg", "webp")) else f"{name}.png"
        if pixels is not None:
            assert abs(seen[f"odd/{kept}"] - pixels).max() <= tolerance, name
    # Grey with alpha: white where it is clear, three equal channels.
    assert seen["odd/la.png"][0, 39].tolist() == [255, 255, 255]
    assert len(set(seen["odd/la.png"][0, 0].tolist())) == 1


def test_a_folder_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(DataError, match="no folder “nowhere”"):
        prepare(tmp_path / "nowhere", root=tmp_path)


def test_a_limit_below_the_number_of_classes_is_refused(tmp_path):
    photos = class_folders(tmp_path / "photos", {"a": 20, "b": 20, "c": 20})
    with pytest.raises(DataError, match="larger limit"):
        prepare(photos, root=tmp_path / "root", limit=2)
    assert prepare(photos, root=tmp_path / "root", limit=3).counts().eq(1).all(axis=None)


@pytest.mark.parametrize(
    "wrong",
    [
        {"limit": 0},
        {"shares": (0.9, 0.2, 0.1)},
        {"shares": (0.9, 0.2)},
        {"shares": (1.0, 0.0, 0.0)},
        {"shares": (1.0,)},
    ],
)
def test_wrong_arguments_are_refused(wrong, tmp_path):
    with pytest.raises(ValueError, match=r"limit|shares"):
        prepare(tmp_path, root=tmp_path / "root", **wrong)


# --- Packing and samples ------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path):
    return prepare(class_folders(tmp_path / "photos", {"b b": 20, "a": 30}), root=tmp_path / "root")


def test_tars_are_the_same_bytes_each_time(small, tmp_path):
    first = pack(small, tmp_path / "first")
    for path, _ in small.files("train"):
        path.chmod(0o600)
        os.utime(path, (1, 1))
    second = pack(small, tmp_path / "second")
    for split in SPLITS:
        assert first[split] == tmp_path / "first" / split / f"{split}.tar"
        digests = {hashlib.sha256(p[split].read_bytes()).hexdigest() for p in (first, second)}
        assert len(digests) == 1
        assert os.listdir(first[split].parent) == [f"{split}.tar"]


def test_tars_hold_every_picture_in_order(small, tmp_path):
    for split, path in pack(small, tmp_path / "packed").items():
        with tarfile.open(path, "r:") as tar:
            members = tar.getmembers()
            names = [member.name for member in members]
            assert names == sorted(names)
            facts = {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members}
            assert facts == {(0, 0, 0, "", "", 0o644)}
            found = {member.name: tar.extractfile(member).read() for member in members}
        assert found == {f"{c}/{p.name}": p.read_bytes() for p, c in small.files(split)}


def test_records_hold_every_picture_as_the_tars_do(small, tmp_path):
    tars = pack(small, tmp_path / "tars")
    records = pack(small, tmp_path / "records", format="recordio")
    assert hash_split(list_split(records["train"].parent)) == hash_split(
        list_split(tars["train"].parent)
    )
    assert sorted(os.listdir(records["test"].parent)) == ["test.idx", "test.lst", "test.rec"]
    read = read_recordio(records["test"])
    assert read == {f"{c}/{p.name}": p.read_bytes() for p, c in small.files("test")}
    again = pack(small, tmp_path / "again", format="recordio")
    assert records["valid"].read_bytes() == again["valid"].read_bytes()
    few = pack(small, tmp_path / "few", format="recordio", image_size=8)
    for entry in list_split(few["valid"].parent):
        with Image.open(io.BytesIO(entry.read())) as picture:
            assert (picture.format, picture.size, picture.mode) == ("JPEG", (8, 8), "RGB")


def test_what_an_earlier_packing_left_is_removed(small, tmp_path):
    folder = tmp_path / "packed"
    pack(small, folder)
    (folder / "test" / "notes.txt").write_text("not ours")
    pack(small, folder, format="recordio")
    assert len(list_split(folder / "train")) == len(small.files("train"))
    without_test = prepare(tmp_path / "photos", root=tmp_path / "root", shares=(0.8, 0.2))
    pack(without_test, folder)
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*.*")}
    assert files == {"train/train.tar", "valid/valid.tar", "test/notes.txt"}


@pytest.mark.parametrize("format", ["tar", "recordio"])
def test_two_runs_that_pack_the_same_do_no_harm(format, small, tmp_path, monkeypatch):
    read_bytes = Path.read_bytes

    def other_run_first(path):
        monkeypatch.setattr(Path, "read_bytes", read_bytes)
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: 0)
            pack(small, tmp_path / "packed", format)
        return path.read_bytes()

    expected = pack(small, tmp_path / "alone", format)["train"].read_bytes()
    left_over = tmp_path / "packed" / "train" / ".train.tar-1.partial"
    left_over.parent.mkdir(parents=True)
    left_over.touch()
    os.utime(left_over, (0, 0))
    monkeypatch.setattr(Path, "read_bytes", other_run_first)
    packed = pack(small, tmp_path / "packed", format)["train"]
    assert packed.read_bytes() == expected
    assert not list(packed.parent.glob(".*"))


def test_the_records_are_im2recs_own(tmp_path):
    """The files that MXNet's im2rec made of the same folder, in its order."""
    golden = ROOT / "tests" / "vision" / "golden"
    folder = tmp_path / "set"
    for split in ("train", "valid"):
        shutil.copytree(golden / "pictures", folder / split)
    dataset = Dataset("golden", folder, ("ashes", "birch", "cedar"), "MXNet")
    rec = pack(dataset, tmp_path / "packed", format="recordio")["train"]
    for suffix in (".rec", ".idx", ".lst"):
        ours, theirs = rec.with_suffix(suffix), golden / f"golden{suffix}"
        assert ours.read_bytes() == theirs.read_bytes()


def test_a_name_that_a_list_cannot_hold_is_refused(small, tmp_path):
    small.files("train")[0][0].rename(small.files("train")[0][0].with_name("a\tb.png"))
    with pytest.raises(DataError, match="rename it"):
        pack(small, tmp_path / "packed", format="recordio")
    with pytest.raises(ValueError, match="format"):
        pack(small, tmp_path / "packed", format="zip")
    assert not [path for path in (tmp_path / "packed").rglob("*") if path.is_file()]


def test_a_full_disk_while_packing_leaves_no_tar(small, tmp_path, monkeypatch):
    def full(self, *args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tarfile.TarFile, "addfile", full)
    with pytest.raises(DataError, match="disk is full"):
        pack(small, tmp_path / "packed")
    assert not [path for path in (tmp_path / "packed").rglob("*") if path.is_file()]


def test_samples_are_drawn_from_every_class_and_repeatable(small):
    drawn = samples(small, "train", per_class=5, seed=3)
    assert list(drawn) == ["a", "b b"]
    assert [len(set(paths)) for paths in drawn.values()] == [5, 5]
    assert drawn == samples(small, "train", per_class=5, seed=3)
    assert drawn != samples(small, "train", per_class=5, seed=4)
    assert len(samples(small, "valid", per_class=99)["b b"]) == small.counts().loc["b b", "valid"]


def test_nothing_shown_holds_a_path(small):
    for shown in (repr(small), small.banner(), (small.folder / "dataset.json").read_text()):
        assert str(small.folder.parents[1]) not in shown
    assert small.banner().count("\n") == 0
    assert "50 pictures in 2 classes" in small.banner()
