"""Labelled pictures on disk, in one layout for every source.

    dataset = prepare()                      # Fashion-MNIST, or the digits with a loud banner
    dataset = prepare("path/to/photos")      # any folder with one sub-folder a class
    dataset = prepare("https://…/dogs.zip")  # a zip of such a folder, here or at a link
    dataset = prepare("path/to/links.csv")   # links or S3 keys with labels: studio/links.py
    packed = pack(dataset)                   # one tar a split: what travels to S3

A prepared folder holds train/, valid/ and test/, each with one folder a class, and report.csv with
the pictures that were left out, and why. Fashion-MNIST comes from DATA_DIR where that is set, else
from the internet, else scikit-learn's digits stand in.
"""

import csv
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
import time
from dataclasses import asdict, dataclass, field, replace
from itertools import chain, product
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pandas as pd
from PIL import Image

from studio import duplicates, fashion_mnist, links, packing, zips
from studio.checking import checked, subset
from studio.pictures import (
    PICTURE_SUFFIXES,
    SPLITS,
    DataError,
    Problem,
    Source,
    bytes_and_time,
    decoding,
    one_sentence_on_full_disk,
    open_for_training,
    pictures_in,
)
from studio.splitting import check_every_class, limited, split, too_small
from vision.partial import remove_left_over

__all__ = ["SPLITS", "DataError", "Dataset", "decoding", "pack", "prepare", "samples"]

SPLIT_NAMES = {"train": ["train"], "valid": ["valid", "val", "validation"], "test": ["test"]}
CARD = "dataset.json"
REPORT = "report.csv"
DUPLICATES = "duplicates.csv"


@dataclass(frozen=True)
class Dataset:
    """Prepared pictures: `folder` holds train/, valid/ and test/, each with one folder a class."""

    name: str
    folder: Path = field(repr=False)
    class_names: tuple[str, ...]
    source: str
    is_fallback: bool = False
    # Pictures that could not be had or read; `report` has a line for each.
    left_out: int = 0

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits there are: train, valid and, unless its share is 0, test."""
        return tuple(name for name in SPLITS if (self.folder / name).is_dir())

    @property
    def report(self) -> Path:
        """CSV file: line, link, label and problem of each picture that was left out."""
        return self.folder / REPORT

    @property
    def duplicates(self) -> Path:
        """CSV file: the pairs of pictures that are nearly the same; none for Fashion-MNIST."""
        return self.folder / DUPLICATES

    def files(self, split: str) -> list[tuple[Path, str]]:
        """Sorted list of (path, class name) of one split."""
        return [
            (path, name)
            for name in self.class_names
            for path in pictures_in(self.folder / split / name)
        ]

    def counts(self, totals: bool = False) -> pd.DataFrame:
        """Pictures per class (rows) and split (columns); `totals` adds the sums of both."""
        table = pd.DataFrame(
            {
                split: [len(pictures_in(self.folder / split / name)) for name in self.class_names]
                for split in self.splits
            },
            index=pd.Index(self.class_names, name="class"),
        )
        if totals:
            table["total"] = table.sum(axis=1)
            table.loc["total"] = table.sum()
        return table

    def banner(self) -> str:
        """Markdown that says what the pictures are: loud where some, or all, are not the wanted."""
        total = int(self.counts().to_numpy().sum())
        line = f"{total:,} pictures in {len(self.class_names)} classes, from {self.source}"
        if self.left_out:
            line += f"; ⚠️ **left out: {self.left_out:,}**, {REPORT} says why"
        if not self.is_fallback:
            return f"Data: **{self.name}**, {line}."
        return (
            "> ⚠️ **This run does not use Fashion-MNIST.**\n>\n"
            "> `DATA_DIR` is not set and the download did not succeed, so handwritten digits stand "
            f"in: **{self.name}**, {line}. Every figure and number of this run is about these "
            "digits, and so few and easy pictures flatter any model.\n>\n"
            "> To run the course on Fashion-MNIST, set `DATA_DIR` to a folder with its four files, "
            "or run this cell again with an internet connection."
        )


def prepare(
    name: str | Path = "fashion-mnist",
    root: str | Path = "build/data",
    seed: int = 0,
    limit: int | None = None,
    shares: tuple[float, ...] = (0.8, 0.1, 0.1),
    *,
    short_side: int | None = None,
    bucket: str | None = None,
    key: str = "{key}",
    s3=None,
) -> Dataset:
    """Dataset of Fashion-MNIST, a folder of pictures or a list, split and ready under `root`.

    name: "fashion-mnist"; or a folder (also one inside DATA_DIR) with one sub-folder a class, or
        with train/, valid/ and perhaps test/ of such, which keep their split; or a .zip of one,
        also by its link; or a list of links or S3 keys with labels: .csv, .tsv, .json or .jsonl,
        as studio/links.py says.
    seed: of the split and of the draw.
    limit: at most so many pictures a split, every class in its proportion.
    shares: of train, valid and test where the source has to be split; (0.7, 0.3) has no test.
    short_side: pictures whose shorter side has more pixels are scaled down to it, so that a phone's
        photos take a tenth of the space and none is too large for an endpoint; None copies files.
    bucket, key, s3: for a list of keys: their bucket, what is made of each (`{key}` is the whole
        of it, `{stem}` its file name without suffix), and a boto3 client; an unsigned one will do
        where the bucket is public.

    Broken pictures and dead links are left out, counted and listed in report.csv; so is a class
    that has not one picture for each split. Pictures that are nearly the same share a split, unless
    the source comes split; duplicates.csv lists them. A finished folder from an earlier call is
    returned as it is. Raises DataError where the data are missing, damaged, too few or for more
    than half unusable, or the disk is full.
    """
    if limit is not None and limit < 1:
        raise ValueError("limit must be at least 1, or None for all pictures")
    shares = _checked_shares(shares)
    root = Path(root)
    if name == "fashion-mnist":
        finished = _finished(root / _folder_name(name, seed, limit))
        if finished:
            return finished
        source = fashion_mnist.source(root / "downloads", seed)
        return _write(source, root, seed, limit, shares)
    path = _find(name, root / "downloads")
    if path.is_dir():
        source = _folder_source(path, (shares, short_side))
        return _write(source, root, seed, limit, shares, short_side)
    listed = links.read_list(path, bucket, key)
    fingerprint = _fingerprint(listed.describe(), (shares, short_side))
    finished = _finished(root / _folder_name(path.stem, seed, limit), fingerprint)
    if finished:
        return _loud(finished)
    with one_sentence_on_full_disk():
        source = links.fetch(listed, root / "downloads" / path.stem, s3)
    source = replace(source, fingerprint=fingerprint)
    return _write(source, root, seed, limit, shares, short_side)


def pack(
    dataset: Dataset,
    folder: str | Path = "build/packed",
    format: str = "tar",
    image_size: int | None = None,
    quality: int = 95,
) -> dict[str, Path]:
    """Dict of split → `folder`/<split>/<split>.tar, or .rec, with every picture of that split.

    format: "tar", with sorted <class>/<file> members, not compressed (the pictures are already);
        or "recordio", with .idx and .lst beside it, as im2rec writes it and SageMaker's built-in
        image classification reads it.
    image_size: RecordIO only: pack the central square of each picture in that many pixels, upright,
        in RGB, as JPEG of `quality` (1 to 95); None packs the files as they are.

    Equal pictures give equal bytes. What an earlier call packed into `folder` is replaced: its
    other format and the splits that are no more, too. Raises DataError where the disk is full.
    """
    if format not in packing.SUFFIXES:
        raise ValueError('format must be "tar" or "recordio"')
    packed = {}
    for name in dataset.splits:
        packed[name] = Path(folder) / name / f"{name}{packing.SUFFIXES[format][0]}"
        with one_sentence_on_full_disk():
            packed[name].parent.mkdir(parents=True, exist_ok=True)
            remove_left_over(packed[name].parent)
            if format == "tar":
                packing.write_tar(dataset.files(name), packed[name])
            else:
                packing.write_recordio(
                    dataset.files(name), dataset.class_names, packed[name], image_size, quality
                )
    _remove_earlier(Path(folder), packed, format)
    return packed


def samples(
    dataset: Dataset, split: str = "train", per_class: int = 8, seed: int = 0
) -> dict[str, list[Path]]:
    """Dict of class name → list of up to `per_class` randomly drawn paths."""
    rng = np.random.default_rng(seed)
    drawn = {}
    for name in dataset.class_names:
        paths = pictures_in(dataset.folder / split / name)
        chosen = rng.permutation(len(paths))[:per_class]
        drawn[name] = [paths[i] for i in sorted(chosen)]
    return drawn


def _remove_earlier(folder, packed, format):
    """Remove the files of earlier packings that this one did not write anew."""
    suffixes = packing.SUFFIXES[format]
    written = {path.with_suffix(suffix) for path in packed.values() for suffix in suffixes}
    for name, suffix in product(SPLITS, chain(*packing.SUFFIXES.values())):
        path = folder / name / f"{name}{suffix}"
        if path not in written:
            path.unlink(missing_ok=True)


def _checked_shares(shares):
    shares = (*shares, 0.0) if len(shares) == 2 else tuple(shares)
    fits = len(shares) == 3 and min(shares[:2]) > 0 and shares[2] >= 0
    if not fits or not math.isclose(sum(shares), 1):
        raise ValueError(
            "shares must be two or three positive numbers with the sum 1; only test may have 0"
        )
    return shares


# --- Any folder of pictures ---------------------------------------------------------------------


def _find(name, downloads):
    """The folder or list of that name; a zip is fetched and unpacked first."""
    # A link may go on behind the file's name, as presigned ones do.
    if re.match(r"https?://", str(name)) and urlsplit(str(name)).path.lower().endswith(".zip"):
        # By its address: many archives are called main.zip or images.zip.
        address = hashlib.sha256(str(name).encode()).hexdigest()[:12]
        name = zips.fetch(str(name), downloads / address)
    places = [Path(name).expanduser()]
    if data_dir := os.environ.get("DATA_DIR"):
        places.append(Path(data_dir) / name)
    for path in places:
        if path.is_dir() or (path.is_file() and path.suffix.lower() in links.SUFFIXES):
            return path
        if path.is_file() and path.suffix.lower() == ".zip":
            # By its content, so that another archive of that name, or this one packed anew with a
            # picture in another class, does not get the pictures of before.
            return zips.unzip(path, downloads / f"{path.stem}-{zips.digest(path)}" / path.stem)
    raise DataError(
        f"There is no folder “{places[0].name}” and no list of that name. Give “fashion-mnist”, a "
        f"folder with one sub-folder a class, a zip of one, or a list of links "
        f"({', '.join(links.SUFFIXES)}), by its path or by its name inside DATA_DIR."
    )


def _folder_source(folder, settings):
    """Source of the class folders in a folder, or in its train/, valid/ and test/."""
    present = _split_folders(folder)
    parts = present or {None: folder}
    classes = {part: _class_folders(path) for part, path in parts.items()}
    names = sorted({name for found in classes.values() for name in found})
    if len(names) < 2:
        raise DataError(
            f"“{folder.name}” needs two or more sub-folders with pictures, one a class, and has "
            f"{len(names)}."
        )
    _tell_ignored(folder, [root / name for root in parts.values() for name in names])
    paths = [
        (part, path)
        for part, root in parts.items()
        for name in names
        for path in pictures_in(root / name)
    ]
    labels = [path.parent.name for _, path in paths]
    splits = {
        split: np.array([i for i, (part, _) in enumerate(paths) if part == split], int)
        for split in present
    }
    check_every_class(splits, labels, names)
    origins = [("", path.relative_to(folder).as_posix()) for _, path in paths]
    _check_names(folder, [name for _, name in origins])
    files = [f"{name} {bytes_and_time(path)}" for (_, name), (_, path) in zip(origins, paths)]
    return Source(
        name=folder.resolve().name,
        source="a folder of that name",
        class_names=tuple(names),
        labels=labels,
        file_names=[path.name for _, path in paths],
        payloads=[path for _, path in paths],
        splits=splits or None,
        fingerprint=_fingerprint(files, settings),
        origins=origins,
    )


def _split_folders(folder):
    """Dict of split → its folder, in the order of SPLITS; empty where all are classes."""
    found = {
        split: [folder / name for name in names if (folder / name).is_dir()]
        for split, names in SPLIT_NAMES.items()
    }
    # A class may be called “train”, too: only a split holds folders with pictures.
    if not any(map(_holds_classes, chain(*found.values()))):
        return {}
    for paths in found.values():
        if len(paths) > 1:
            raise DataError(
                f"“{folder.name}” holds {_and(path.name for path in paths)}, which name one "
                "split: keep one of them."
            )
    present = {split: paths[0] for split, paths in found.items() if paths}
    absent = [split for split in ("train", "valid") if split not in present]
    if absent:
        raise DataError(
            f"“{folder.name}” holds {_and(present)} but not {_and(absent)}. "
            "Add what is missing, or give a folder with one sub-folder a class."
        )
    return present


def _holds_classes(folder):
    return any(pictures_in(path) for path in folder.iterdir() if not path.name.startswith("."))


def _and(names):
    return " and ".join(f"{name}/" for name in names)


def _check_names(folder, names):
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"The name {name!a} in “{folder.name}” is not UTF-8: rename it."
            ) from error


def _class_folders(folder):
    names = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    for name in names:
        if pictures_in(folder / name):
            continue
        deeper = next((p for p in sorted((folder / name).glob("*/")) if pictures_in(p)), None)
        if deeper:
            raise DataError(
                f"“{name}” holds no picture, but “{name}/{deeper.name}” does: give the folder "
                "whose sub-folders hold the pictures, or move these up."
            )
        raise DataError(f"The class folder “{name}” holds no picture: fill it or remove it.")
    return names


def _tell_ignored(folder, class_folders):
    """Say which files of the class folders are not looked at, because of their names."""
    ignored = [
        path.suffix.lower() or "no suffix"
        for class_folder in class_folders
        if class_folder.is_dir()
        for path in class_folder.iterdir()
        if not path.name.startswith(".") and path.suffix.lower() not in PICTURE_SUFFIXES
    ]
    if ignored:
        print(
            f"{folder.name}: files that are no pictures by their names, not looked at: "
            f"{len(ignored)} ({', '.join(sorted(set(ignored)))})."
        )


def _fingerprint(lines, settings):
    return hashlib.sha256("\n".join([repr(settings), *lines]).encode()).hexdigest()


# --- Writing ------------------------------------------------------------------------------------


def _folder_name(name, seed, limit):
    return f"{name}-seed{seed}" + ("" if limit is None else f"-limit{limit}")


def _finished(folder, fingerprint=""):
    """The Dataset of a folder that was written to its end and is still whole, else None."""
    try:
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
        dataset = Dataset(
            card["name"],
            folder,
            tuple(card["class_names"]),
            card["source"],
            card["is_fallback"],
            card["left_out"],
        )
        whole = (card["counts"], card["fingerprint"]) == (dataset.counts().to_dict(), fingerprint)
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return dataset if whole and dataset.report.is_file() else None


def _loud(dataset):
    """The Dataset, after a line about what was left out of it, if anything was."""
    if dataset.left_out:
        print(
            f"⚠️ {dataset.name}: pictures LEFT OUT: {dataset.left_out:,}; {REPORT} in its folder "
            "says why. To try them again, remove that folder and prepare it anew."
        )
    return dataset


def _write(source, root, seed, limit, shares, short_side=None):
    """Dataset of a source's pictures, written aside and renamed when complete."""
    folder = root / _folder_name(source.name, seed, limit)
    finished = _finished(folder, source.fingerprint)
    if finished:
        return _loud(finished)
    hashes = []
    # Pixels cannot be broken, and the sets that come so are too small to look at (28×28, 8×8).
    from_files = bool(source.origins)
    if from_files:
        source, hashes = checked(source, short_side)
    if from_files and not source.splits:
        source, hashes = _without_small_classes(source, hashes, sum(map(bool, shares)))
    pairs = duplicates.find_pairs(hashes)
    groups = duplicates.find_groups(pairs, len(source.labels))
    splits = source.splits or split(source.labels, shares, seed, groups)
    splits = limited(splits, source.labels, seed, limit)
    check_every_class(splits, source.labels, source.class_names)
    pairs = _pairs_table(source, splits, pairs)
    total = sum(map(len, splits.values()))
    print(f"{source.name}: writing {total:,} pictures …", end=" ", flush=True)
    start = time.monotonic()
    with one_sentence_on_full_disk():
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root, prefix=".writing-") as aside:
            dataset = Dataset(
                source.name,
                Path(aside) / folder.name,
                source.class_names,
                source.source,
                source.is_fallback,
                len(source.problems),
            )
            _write_pictures(source, splits, dataset.folder, short_side)
            _write_report(source.problems, dataset.report)
            if from_files:
                pairs.to_csv(dataset.duplicates, index=False)
            _write_card(dataset, source.fingerprint, seed, limit)
            shutil.rmtree(folder, ignore_errors=True)
            dataset.folder.rename(folder)
    print(f"done in {time.monotonic() - start:.0f} s.")
    _tell_duplicates(source, pairs)
    return _loud(replace(dataset, folder=folder))


def _without_small_classes(source, hashes, needed):
    """The Source and its hashes without the classes that have not one picture for each split.

    Pictures that are nearly the same count once, because they share a split. Raises DataError
    where fewer than two classes remain.
    """
    groups = duplicates.find_groups(duplicates.find_pairs(hashes), len(source.labels))
    small = too_small(source.labels, groups, needed)
    names = tuple(name for name in source.class_names if name not in small)
    for name, count in small.items():
        print(
            f"⚠️ {source.name}: class LEFT OUT: “{name}” has {count} pictures that differ and needs "
            f"{needed}, one for each of {', '.join(SPLITS[:needed])}. Add some to keep it, or give "
            "a folder that you have split into train/, valid/ and test/ yourself."
        )
    if len(names) < 2:
        raise DataError(
            f"“{source.name}” needs two or more classes of at least {needed} pictures each and has "
            f"{len(names)}."
        )
    left_out = [
        Problem(*origin, label, f"the class is too small: it needs {needed} pictures that differ")
        for origin, label in zip(source.origins, source.labels)
        if label in small
    ]
    kept = [i for i, label in enumerate(source.labels) if label not in small]
    problems = (*source.problems, *left_out)
    source = replace(subset(source, kept), class_names=names, problems=problems)
    return source, [hashes[i] for i in kept]


def _pairs_table(source, splits, pairs):
    """The pairs of which both pictures are written, by split, class and file."""
    split_of = {i: name for name, at in splits.items() for i in at.tolist()}
    columns = [f"{what}_{side}" for side in "ab" for what in ("split", "class", "file")]
    rows = [
        (
            *(split_of[a], source.labels[a], source.file_names[a]),
            *(split_of[b], source.labels[b], source.file_names[b]),
            distance,
        )
        for a, b, distance in pairs.itertuples(index=False)
        if a in split_of and b in split_of
    ]
    table = pd.DataFrame(rows, columns=[*columns, "distance"])
    return table.assign(
        across_splits=table["split_a"] != table["split_b"],
        same_class=table["class_a"] == table["class_b"],
    )


def _tell_duplicates(source, pairs):
    if pairs.empty:
        return
    across, labels = int(pairs["across_splits"].sum()), int((~pairs["same_class"]).sum())
    where = (
        f"{across:,} of them ACROSS the splits that the source gives"
        if source.splits
        else "each on one side of the split"
    )
    print(
        f"{source.name}: pairs of nearly equal pictures: {len(pairs):,}, {where}; with two "
        f"labels: {labels:,}; {DUPLICATES} in its folder lists them."
    )


def _write_report(problems, path):
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(Problem._fields)
        writer.writerows(sorted(problems, key=lambda problem: (problem.line or 0, problem.link)))


def _write_card(dataset, fingerprint, seed, limit):
    card = asdict(dataset) | {
        "seed": seed,
        "limit": limit,
        "counts": dataset.counts().to_dict(),
        "fingerprint": fingerprint,
    }
    del card["folder"]
    text = json.dumps(card, indent=2, ensure_ascii=False) + "\n"
    (dataset.folder / CARD).write_text(text, encoding="utf-8")


def _write_pictures(source, splits, folder, short_side):
    for split_name, indices in splits.items():
        for name in source.class_names:
            (folder / split_name / name).mkdir(parents=True)
        for i in indices:
            to = folder / split_name / source.labels[i] / source.file_names[i]
            _write_picture(source.payloads[i], to, short_side)


def _write_picture(payload, to, short_side):
    if isinstance(payload, np.ndarray):
        Image.fromarray(payload).save(to)
        return
    content, _ = open_for_training(payload.read_bytes(), short_side)
    # "x": two pictures must never become one.
    with to.open("xb") as file:
        file.write(content)
