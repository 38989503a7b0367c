"""RecordIO against files that MXNet's im2rec wrote (tools/recordio_golden.py), and broken ones."""

import io
import json
import shutil
import tracemalloc
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from samples import encode, noise

from vision.data import hash_split, list_split, load_split
from vision.errors import ExpectedError
from vision.recordio import (
    HEADER,
    MAGIC,
    PART,
    SUFFIXES,
    read_list,
    read_records,
    write_record,
    write_records,
)

GOLDEN = Path(__file__).parent / "golden"
CLASSES = ["ashes", "birch", "cedar"]


@pytest.fixture
def channel(tmp_path):
    """A training channel with the golden files in it."""
    folder = tmp_path / "train"
    folder.mkdir()
    for suffix in SUFFIXES:
        shutil.copy(GOLDEN / f"golden{suffix}", folder / f"train{suffix}")
    return folder


def pictures(folder):
    return {entry.name: entry.read() for entry in list_split(folder)}


def test_im2recs_file_is_read_as_the_class_folders_are(channel):
    assert pictures(channel) == pictures(GOLDEN / "pictures")
    from_records = load_split(list_split(channel), CLASSES, 8, 3)
    from_folders = load_split(list_split(GOLDEN / "pictures"), CLASSES, 8, 3)
    assert from_records.names == from_folders.names
    assert torch.equal(from_records.images, from_folders.images)
    assert torch.equal(from_records.labels, from_folders.labels)
    assert from_records.data_hash == from_folders.data_hash == hash_split(list_split(channel))


def test_the_golden_file_holds_cut_records():
    parts = [len(record.parts) for record in read_records(GOLDEN / "golden.rec")]
    assert sorted(parts) == [1] * 8 + [4]


def test_the_same_pictures_give_im2recs_bytes(tmp_path):
    found = pictures(GOLDEN / "pictures")
    rows = read_list(GOLDEN / "golden.lst").items()
    records = [(number, int(label), name, found[name]) for number, (label, name) in rows]
    write_records(tmp_path / "ours.rec", records)
    for suffix in SUFFIXES:
        golden = (GOLDEN / f"golden{suffix}").read_bytes()
        assert (tmp_path / f"ours{suffix}").read_bytes() == golden


@given(st.lists(st.lists(st.sampled_from([MAGIC, b"a", b"bc", b"\0", b"0123"])), min_size=1))
def test_any_payload_comes_back(tmp_path_factory, pieces):
    payloads = [b"".join(some) for some in pieces]
    path = tmp_path_factory.getbasetemp() / "any.rec"
    write_records(path, [(i, i, f"c/{i}", data) for i, data in enumerate(payloads)])
    records = list(read_records(path))
    assert [(record.number, record.label) for record in records] == [
        (i, i) for i in range(len(payloads))
    ]
    (path.parent / "some").mkdir(exist_ok=True)
    for suffix in SUFFIXES:
        path.with_suffix(suffix).replace(path.parent / "some" / f"any{suffix}")
    found = {entry.file: entry.read() for entry in list_split(path.parent / "some")}
    assert found == {str(i): data for i, data in enumerate(payloads)}


def test_a_file_cut_off_anywhere_is_told(channel):
    rec = channel / "train.rec"
    whole = rec.read_bytes()
    for end in range(1, len(whole), 29):
        rec.write_bytes(whole[:end])
        with pytest.raises(ExpectedError, match=r"train\.rec (is cut off|holds)") as caught:
            list_split(channel)
        assert "\n" not in str(caught.value)


def test_listing_reads_no_picture(tmp_path):
    size = 50_000_000
    with (tmp_path / "large.rec").open("wb") as file:
        file.write(part(size, HEADER.pack(0, 2, 7, 0)))
        file.truncate(PART.size + size)
    tracemalloc.start()
    try:
        (record,) = read_records(tmp_path / "large.rec")
        assert tracemalloc.get_traced_memory()[1] < size / 100
    finally:
        tracemalloc.stop()
    assert (record.number, record.label) == (7, 2)


def write_labels(folder, labels, flag=0):
    folder.mkdir(exist_ok=True)
    with (folder / "a.rec").open("wb") as file:
        for i, label in enumerate(labels):
            write_record(file, HEADER.pack(flag, label, i, 0) + encode(noise(8, 8, seed=i)))


def test_without_names_the_labels_are_the_classes(tmp_path):
    write_labels(tmp_path / "set", [1, 0, 1])
    names = [entry.name for entry in list_split(tmp_path / "set")]
    assert names == ["0/a-00000001", "1/a-00000000", "1/a-00000002"]
    (tmp_path / "set" / "classes.json").write_text('["no", "yes"]')
    names = [entry.class_name for entry in list_split(tmp_path / "set")]
    assert names == ["no", "yes", "yes"]


def test_a_label_after_the_header_is_read(tmp_path):
    """What MXNet packs where the label is an array of one."""
    picture = encode(noise(8, 8))
    (tmp_path / "set").mkdir()
    with (tmp_path / "set" / "a.rec").open("wb") as file:
        label = b"\0\0\x40\x40"  # 3.0
        write_record(file, HEADER.pack(1, 0, 7, 0) + label + picture)
    assert pictures(tmp_path / "set") == {"3/a-00000007": picture}


def part(word, data=b""):
    return PART.pack(MAGIC, word) + data


WRONG = {
    "no RecordIO": b"GIF89a" * 20,
    "starts with a last part": part(3 << 29 | 24, bytes(24)),
    "a part that begins anew": part(1 << 29 | 24, bytes(24)) * 2,
    "an unknown kind": part(7 << 29 | 24, bytes(24)),
    "an uneven middle": part(1 << 29 | 23, bytes(24)) + part(3 << 29),
    "a promise of 512 MB": part(0x1FFFFFFF, bytes(64)),
    "no header": part(8, bytes(8)),
    "a flag of 1 and no label": part(24, HEADER.pack(1, 0, 0, 0)),
}


@pytest.mark.parametrize("data", WRONG.values(), ids=WRONG.keys())
def test_other_bytes_are_told(tmp_path, data):
    (tmp_path / "a.rec").write_bytes(data)
    with pytest.raises(ExpectedError, match=r"a\.rec is cut off or is no RecordIO file"):
        list_split(tmp_path)


@pytest.mark.parametrize("label", [0.5, -1, float("nan"), float("inf")])
def test_a_label_that_is_no_class_is_told(tmp_path, label):
    write_labels(tmp_path / "set", [label])
    with pytest.raises(ExpectedError, match="classes are numbered"):
        list_split(tmp_path / "set")


def test_several_labels_are_told(tmp_path):
    write_labels(tmp_path / "set", [0], flag=2)
    with pytest.raises(ExpectedError, match="2 labels: pack it with one"):
        list_split(tmp_path / "set")


def listing(change):
    def harm(folder):
        path = folder / "train.lst"
        path.write_text(change(path.read_text()))

    return harm


HARMS = {
    "no list of numbers": (listing(lambda text: "hello\n" + text), "line 1 of .* is not number"),
    "a missing line": (listing(lambda text: text.split("\n", 1)[1]), "upload the .lst and .rec"),
    "other labels": (listing(lambda text: text.replace("\t2.0", "\t7.0")), "of one packing"),
    "two names": (
        listing(lambda text: text.replace("birch/2", "oak/2")),
        "names the label 1 both 'birch' and 'oak'",
    ),
    "too few names": (
        lambda folder: (
            (folder / "train.lst").unlink(),
            (folder / "classes.json").write_text('["ashes"]'),
        ),
        "has the label 1 and classes.json 1 names",
    ),
    "names of other things": (
        lambda folder: (folder / "classes.json").write_text(json.dumps({"a": 0})),
        "not a JSON list of class names",
    ),
    "a class folder": (lambda folder: (folder / "ashes").mkdir(), "mixes class folders"),
    "a stray list": (lambda folder: (folder / "train.rec").unlink(), "neither a class folder"),
}


@pytest.mark.parametrize(("harm", "words"), HARMS.values(), ids=HARMS.keys())
def test_a_broken_channel_is_told_in_one_sentence(channel, harm, words):
    harm(channel)
    with pytest.raises(ExpectedError, match=words) as caught:
        list_split(channel)
    assert "\n" not in str(caught.value)


def test_a_failed_writing_leaves_nothing(tmp_path):
    with pytest.raises(ExpectedError, match="rename it"):
        write_records(tmp_path / "a.rec", [(0, 0, "c/a", b"x"), (1, 0, "c/b\tb", b"x")])
    with pytest.raises(ExpectedError, match="537 MB does not fit"):
        write_record(io.BytesIO(), bytes(1 << 29))
    assert not list(tmp_path.iterdir())


def test_a_job_trains_on_a_channel_of_records(run_script, stripes, tmp_path):
    for split in ("train", "valid"):
        entries = list_split(stripes / split)
        names = sorted({entry.class_name for entry in entries})
        (tmp_path / split).mkdir()
        records = (
            (i, names.index(entry.class_name), entry.name, entry.read())
            for i, entry in enumerate(entries)
        )
        write_records(tmp_path / split / f"{split}.rec", records)
    process = run_script(
        "train_model.py",
        "--dry-run",
        SM_CHANNEL_TRAIN=tmp_path / "train",
        SM_CHANNEL_VALID=tmp_path / "valid",
        SM_MODEL_DIR=tmp_path / "model",
        SM_OUTPUT_DATA_DIR=tmp_path / "output",
    )
    assert process.returncode == 0, process.stderr
