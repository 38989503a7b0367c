import os
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from samples import encode, huge_png, link, noise, write_stripes, write_tar

from vision.data import (
    channel_statistics,
    hash_split,
    list_split,
    load_split,
    natural_shape,
    spread,
)
from vision.errors import ExpectedError

CLASSES = ["lying", "squares", "standing"]


def load(folder, class_names=CLASSES, image_size=16, channels=1):
    return load_split(list_split(folder), class_names, image_size, channels)


@pytest.fixture
def folder(tmp_path):
    write_stripes(tmp_path / "set", 4, seed=0)
    return tmp_path / "set"


def test_order_labels_and_pixels(folder):
    split = load(folder)
    assert split.names == [f"{name}/{i:03d}.png" for name in CLASSES for i in range(4)]
    assert split.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    first = np.asarray(Image.open(folder / "lying" / "000.png"))
    assert np.array_equal(split.images[0, 0], first)


def test_tar_files_and_class_folders_give_the_same_split(folder, tmp_path):
    """Two shards, in any order, with and without "./", with folders and hidden files between."""
    entries = list_split(folder)
    members = {entry.name: entry.read() for entry in reversed(entries)}
    names = list(members)
    shards = tmp_path / "shards"
    directory = tarfile.TarInfo("lying")
    directory.type = tarfile.DIRTYPE
    write_tar(
        shards / "b.tar",
        {"./": directory, **{f"./{name}": members[name] for name in names[:5]}},
    )
    hidden = {"lying/.DS_Store": b"x", "._standing": b"x"}
    write_tar(shards / "a.tar", {**hidden, **{name: members[name] for name in names[5:]}})
    (folder / "lying" / ".DS_Store").write_bytes(b"x")

    from_folder, from_tar = load(folder), load(shards)
    assert from_tar.names == from_folder.names
    assert from_tar.data_hash == from_folder.data_hash
    assert hash_split(list_split(shards)) == from_folder.data_hash
    assert torch.equal(from_tar.images, from_folder.images)
    assert torch.equal(from_tar.labels, from_folder.labels)


def test_the_hash_follows_bytes_names_and_classes_and_nothing_else(folder):
    original = load(folder).data_hash
    picture = folder / "lying" / "000.png"
    os.utime(picture, (0, 0))
    assert load(folder).data_hash == original
    data = picture.read_bytes()

    picture.write_bytes(data + b"\0")
    assert load(folder).data_hash != original
    picture.unlink()
    (folder / "lying" / "0000.png").write_bytes(data)
    assert load(folder).data_hash != original
    (folder / "lying" / "0000.png").rename(folder / "squares" / "0000.png")
    assert load(folder).data_hash != original


def broken_folder(folder, kind):
    picture = folder / "lying" / "000.png"
    if kind == "truncated":
        data = encode(noise(), "JPEG")
        picture.with_suffix(".jpg").write_bytes(data[: len(data) // 2])
        return "000.jpg: the picture is truncated"
    if kind == "text":
        picture.write_text("not a picture")
        return "000.png: this is not a readable"
    if kind == "empty file":
        picture.write_bytes(b"")
        return "000.png: this is not a readable"
    if kind == "huge":
        picture.write_bytes(huge_png())
        return "000.png: the picture claims"
    if kind == "empty class":
        (folder / "void").mkdir()
        (folder / "void" / ".keep").touch()
        return "'void' in .* has no pictures"
    if kind == "stray file":
        (folder / "labels.csv").write_text("a,b")
        return "labels.csv is neither"
    if kind == "nested":
        (folder / "lying" / "more").mkdir()
        return "more is not a picture file"
    if kind == "mixed":
        write_tar(folder / "a.tar", {"lying/x.png": b""})
        return "mixes class folders, .tar and .rec files"
    (folder / "unknown").mkdir()
    (folder / "unknown" / "1.png").write_bytes(encode(noise()))
    return "'unknown' of .* is not among the known classes"


@pytest.mark.parametrize(
    "kind",
    [
        *("truncated", "text", "empty file", "huge", "empty class", "stray file", "nested"),
        *("mixed", "unknown class"),
    ],
)
def test_a_broken_folder_is_told_in_one_sentence(folder, kind):
    sentence = broken_folder(folder, kind)
    with pytest.raises(ExpectedError, match=sentence) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_a_picture_that_vanishes_is_told(folder):
    entries = list_split(folder)
    Path(entries[0].path).unlink()
    for read in (lambda: load_split(entries, CLASSES, 8, 3), lambda: hash_split(entries)):
        with pytest.raises(ExpectedError, match=f"{entries[0].path} cannot be read: No such file"):
            read()


def test_a_missing_or_empty_folder_is_told(tmp_path):
    with pytest.raises(ExpectedError, match="is not a folder"):
        list_split(tmp_path / "missing")
    with pytest.raises(ExpectedError, match="no class folders"):
        list_split(tmp_path)


@pytest.mark.parametrize(
    "member",
    [
        {"lying/a/b.png": b""},
        {"a.png": b""},
        {"../lying/a.png": b""},
        {"lying/..": b""},
        {"lying/a.png": link("lying/a.png", "/etc/passwd")},
    ],
    ids=lambda member: next(iter(member)),
)
def test_a_tar_with_other_members_is_refused(tmp_path, member):
    write_tar(tmp_path / "a.tar", member)
    with pytest.raises(ExpectedError, match="which is not <class>/<file>"):
        list_split(tmp_path)


def test_a_picture_twice_in_the_shards_is_refused(tmp_path):
    for name in ("a.tar", "b.tar"):
        write_tar(tmp_path / name, {"lying/a.png": b"x"})
    with pytest.raises(ExpectedError, match=r"lying/a\.png is twice"):
        list_split(tmp_path)


def test_a_damaged_tar_is_told(tmp_path, folder):
    path = tmp_path / "tars" / "a.tar"
    write_tar(path, {entry.name: entry.read() for entry in list_split(folder)})
    whole = path.read_bytes()
    # Cut within the last picture: its header is there, its bytes are not.
    last = max(list_split(path.parent), key=lambda entry: entry.offset)
    path.write_bytes(whole[: last.offset + 10])
    with pytest.raises(ExpectedError, match=r"a\.tar"):
        load(path.parent)
    # Cut before or within the header of the last picture, and with a damaged one: tarfile itself
    # takes each for the end.
    header = last.offset - tarfile.BLOCKSIZE
    for cut in (whole[:header], whole[: header + 100], whole[:header] + b"x" * 10240):
        path.write_bytes(cut)
        with pytest.raises(ExpectedError, match=r"a\.tar is not a complete, uncompressed tar"):
            list_split(path.parent)
    path.write_bytes(b"\x1f\x8b" + b"\0" * 2000)
    with pytest.raises(ExpectedError, match="not a complete, uncompressed tar"):
        list_split(path.parent)


@pytest.mark.skipif(sys.platform == "darwin", reason="its file systems know such names not at all")
def test_a_name_that_is_not_utf_8_is_told(folder):
    os.rename(folder / "lying" / "000.png", os.fsencode(folder / "lying") + b"/caf\xe9.png")
    with pytest.raises(ExpectedError, match=r"'lying/caf\\udce9\.png' in .* is not UTF-8: rename"):
        list_split(folder)


def test_more_pictures_than_memory_are_refused_before_any_is_read(folder, monkeypatch):
    monkeypatch.setattr(os, "sysconf", lambda name: 100)
    with pytest.raises(ExpectedError, match="--image-size"):
        load(folder, image_size=224)


def test_natural_shape(folder, tmp_path):
    assert natural_shape(list_split(folder)) == (16, 1)
    (folder / "squares" / "000.png").write_bytes(encode(noise(100, 30)))
    assert natural_shape(list_split(folder)) == (16, 3)
    (tmp_path / "photos" / "a").mkdir(parents=True)
    (tmp_path / "photos" / "a" / "1.jpg").write_bytes(encode(noise(300, 200), "JPEG"))
    assert natural_shape(list_split(tmp_path / "photos")) == (224, 3)


def test_spread_takes_from_every_part(folder):
    entries = list_split(folder)
    assert {entry.class_name for entry in spread(entries, 3)} == set(CLASSES)
    assert spread(entries, 100) == entries


def test_channel_statistics_agree_with_torch():
    images = torch.from_numpy(noise(24, 24, 3)).permute(2, 0, 1)[None].repeat(5, 1, 1, 1)
    mean, std = channel_statistics(images)
    values = images.double().transpose(0, 1).flatten(1) / 255
    assert mean == pytest.approx(values.mean(1).tolist())
    assert std == pytest.approx(values.std(1, correction=0).tolist())


def test_blank_pictures_do_not_divide_by_zero():
    assert channel_statistics(torch.zeros(2, 1, 4, 4, dtype=torch.uint8)) == ((0.0,), (1.0,))
