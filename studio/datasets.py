"""Labelled pictures on disk, in one layout for every source.

    dataset = prepare()                      # Fashion-MNIST, or the digits with a loud banner
    dataset = prepare("path/to/photos")      # any folder with one sub-folder a class
    packed = pack(dataset)                   # one tar a split: what travels to S3

A prepared folder holds train/, valid/ and test/, each with one folder a class. Fashion-MNIST comes
from DATA_DIR where that is set, else from the internet, else scikit-learn's digits stand in.
"""

import contextlib
import errno
import gzip
import hashlib
import io
import json
import math
import os
import shutil
import socket
import tarfile
import tempfile
import time
import zlib
from dataclasses import asdict, dataclass, field
from http.client import HTTPException
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

SPLITS = ("train", "valid", "test")
PICTURE_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
CARD = "dataset.json"

# In the order of Fashion-MNIST's label numbers, as names that are safe for folders.
FASHION_CLASSES = (
    "t-shirt-top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle-boot",
)
DIGIT_CLASSES = (
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
)
IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
# Long enough for a slow network, short enough that a silent one does not look like a hang.
DOWNLOAD_TIMEOUT = 15  # seconds


class DataError(Exception):
    """What is wrong with the data and the way out, in one or two plain sentences."""


@dataclass(frozen=True)
class Dataset:
    """Prepared pictures: `folder` holds train/, valid/ and test/, each with one folder a class."""

    name: str
    folder: Path = field(repr=False)
    class_names: tuple[str, ...]
    source: str
    is_fallback: bool = False

    def files(self, split: str) -> list[tuple[Path, str]]:
        """Sorted list of (path, class name) of one split."""
        return [
            (path, name)
            for name in self.class_names
            for path in _pictures_in(self.folder / split / name)
        ]

    def counts(self, totals: bool = False) -> pd.DataFrame:
        """Pictures per class (rows) and split (columns); `totals` adds the sums of both."""
        table = pd.DataFrame(
            {
                split: [len(_pictures_in(self.folder / split / name)) for name in self.class_names]
                for split in SPLITS
            },
            index=pd.Index(self.class_names, name="class"),
        )
        if totals:
            table["total"] = table.sum(axis=1)
            table.loc["total"] = table.sum()
        return table

    def banner(self) -> str:
        """Markdown that says what the pictures are: loud where the fall-back stands in."""
        total = int(self.counts().to_numpy().sum())
        line = f"{total:,} pictures in {len(self.class_names)} classes, from {self.source}"
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


@dataclass(frozen=True)
class _Source:
    """Pictures to write, as parallel lists; a payload is pixels or the file to copy."""

    name: str
    source: str
    class_names: tuple[str, ...]
    labels: list[str]
    file_names: list[str]
    payloads: list
    is_fallback: bool = False
    # Indices of each split where the source comes split already.
    splits: dict | None = None
    # Changes when the pictures do; lets a prepared folder notice that it is out of date.
    fingerprint: str = ""


def prepare(
    name: str | Path = "fashion-mnist",
    root: str | Path = "build/data",
    seed: int = 0,
    limit: int | None = None,
    shares: tuple[float, float, float] = (0.8, 0.1, 0.1),
) -> Dataset:
    """Dataset of Fashion-MNIST or of a folder of pictures, split and ready under `root`.

    name: "fashion-mnist", or a folder (also one inside DATA_DIR) with one sub-folder a class. One
        that holds train/, valid/ and test/ keeps its split, and is used in place without `limit`.
    seed: of the split and of the draw.
    limit: at most so many pictures a split, every class in its proportion.
    shares: of train, valid and test where a folder has to be split.

    A finished folder from an earlier call is returned as it is. Raises DataError where the data
    are missing, damaged or too few, or the disk is full.
    """
    if limit is not None and limit < 1:
        raise ValueError("limit must be at least 1, or None for all pictures")
    if len(shares) != 3 or min(shares) <= 0 or not math.isclose(sum(shares), 1):
        raise ValueError("shares must be three positive numbers with the sum 1")
    root = Path(root)
    if name == "fashion-mnist":
        return _prepare_fashion_mnist(root, seed, limit)
    return _prepare_folder(_find_folder(name), root, seed, limit, shares)


def pack(dataset: Dataset, folder: str | Path = "build/packed") -> dict[str, Path]:
    """Dict of split → `folder`/<split>/<split>.tar with sorted <class>/<file> members.

    The tars are not compressed (the pictures are already), and equal pictures give equal bytes.
    Raises DataError where the disk is full.
    """
    packed = {}
    for split in SPLITS:
        packed[split] = Path(folder) / split / f"{split}.tar"
        with _one_sentence_on_full_disk():
            packed[split].parent.mkdir(parents=True, exist_ok=True)
            _write_tar(dataset.files(split), packed[split])
    return packed


def samples(
    dataset: Dataset, split: str = "train", per_class: int = 8, seed: int = 0
) -> dict[str, list[Path]]:
    """Dict of class name → list of up to `per_class` randomly drawn paths."""
    rng = np.random.default_rng(seed)
    drawn = {}
    for name in dataset.class_names:
        paths = _pictures_in(dataset.folder / split / name)
        chosen = rng.permutation(len(paths))[:per_class]
        drawn[name] = [paths[i] for i in sorted(chosen)]
    return drawn


@contextlib.contextmanager
def decoding(path: Path):
    """Turn what Pillow raises on a broken picture into a DataError that names the file."""
    try:
        yield
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(
            f"“{path.parent.name}/{path.name}” cannot be read as a picture: replace or remove it."
        ) from error


# --- Fashion-MNIST and its fall-back ------------------------------------------------------------


def _prepare_fashion_mnist(root, seed, limit):
    finished = _finished(root / _folder_name("fashion-mnist", seed, limit))
    if finished:
        return finished
    data_dir = os.environ.get("DATA_DIR")
    if data_dir:
        raw = _find_idx_folder(Path(data_dir))
        way_out = "Copy that file again, or unset DATA_DIR to download the set."
        return _write(_fashion_mnist(raw, way_out, seed), root, seed, limit)
    raw = root / "downloads" / "fashion-mnist"
    if _download_fashion_mnist(raw):
        way_out = "Delete the folder “downloads” among the prepared data and run this again."
        return _write(_fashion_mnist(raw, way_out, seed), root, seed, limit)
    return _write(_digits(seed), root, seed, limit)


def _fashion_mnist(raw, way_out, seed):
    """The 60,000 training pictures, a tenth of them for validation, and the 10,000 for test."""
    train_x, train_y = _read_pair(raw, "train", way_out)
    test_x, test_y = _read_pair(raw, "t10k", way_out)
    valid, train = _draw(train_y, round(len(train_y) / 10), np.random.default_rng(seed))
    return _Source(
        name="fashion-mnist",
        source="Zalando Research (MIT licence)",
        class_names=tuple(sorted(FASHION_CLASSES)),
        labels=[FASHION_CLASSES[y] for y in (*train_y, *test_y)],
        # The number is the picture's place in the original file.
        file_names=[f"train-{i:05d}.png" for i in range(len(train_y))]
        + [f"test-{i:05d}.png" for i in range(len(test_y))],
        payloads=[*train_x, *test_x],
        splits={"train": train, "valid": valid, "test": len(train_y) + np.arange(len(test_y))},
    )


def _digits(seed):
    from sklearn.datasets import load_digits

    digits = load_digits()
    labels = [DIGIT_CLASSES[y] for y in digits.target]
    # Ink is counted in sixteenths there.
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
    return _Source(
        name="digits",
        source="scikit-learn's bundled scans of 8×8 pixels",
        class_names=tuple(sorted(DIGIT_CLASSES)),
        labels=labels,
        file_names=[f"digit-{i:05d}.png" for i in range(len(labels))],
        payloads=list(pixels),
        is_fallback=True,
        splits=_split(labels, (0.7, 0.15, 0.15), seed),
    )


def _find_idx_folder(data_dir):
    """The folder at or under `data_dir` that holds the four IDX files; DataError without them."""
    places = (data_dir / "FashionMNIST" / "raw", data_dir / "FashionMNIST", data_dir)
    missing = {place: [f for f in IDX_FILES if _idx_path(place, f) is None] for place in places}
    best = min(places, key=lambda place: len(missing[place]))
    if len(missing[best]) == len(IDX_FILES):
        raise DataError(
            "DATA_DIR is set but holds no Fashion-MNIST. Put its four files under "
            "FashionMNIST/raw there, or unset DATA_DIR to download them."
        )
    if missing[best]:
        raise DataError(
            f"DATA_DIR holds a part of Fashion-MNIST but not {', '.join(missing[best])} (plain or "
            ".gz). Add what is missing, or unset DATA_DIR to download the set."
        )
    return best


def _idx_path(folder, name):
    # Compressed first: gzip carries a checksum, the plain file none.
    for path in (folder / f"{name}.gz", folder / name):
        if path.is_file():
            return path
    return None


def _read_pair(raw, prefix, way_out):
    """Pictures, uint8 (n, rows, columns), and labels, uint8 (n,), of one pair of IDX files."""
    pictures_path = _idx_path(raw, f"{prefix}-images-idx3-ubyte")
    labels_path = _idx_path(raw, f"{prefix}-labels-idx1-ubyte")
    pictures = _read_idx(pictures_path, 3, way_out)
    labels = _read_idx(labels_path, 1, way_out)
    if len(pictures) != len(labels):
        raise DataError(
            f"{pictures_path.name} holds {len(pictures):,} pictures but {labels_path.name} "
            f"{len(labels):,} labels. {way_out}"
        )
    if labels.max() >= len(FASHION_CLASSES):
        raise DataError(
            f"{labels_path.name} holds the label {labels.max()}, and Fashion-MNIST ends at 9. "
            f"{way_out}"
        )
    return pictures, labels


def _read_idx(path, dimensions, way_out):
    """Array of an IDX file of unsigned bytes; the format: http://yann.lecun.com/exdb/mnist/."""
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            content = file.read()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path.name} is damaged or cut short. {way_out}") from error
    start = 4 + 4 * dimensions
    if content[:4] != bytes([0, 0, 8, dimensions]) or len(content) < start:
        raise DataError(f"{path.name} is not the IDX file its name promises. {way_out}")
    shape = tuple(int(n) for n in np.frombuffer(content[4:start], dtype=">u4"))
    if math.prod(shape) == 0 or len(content) != start + math.prod(shape):
        raise DataError(
            f"{path.name} holds {len(content) - start:,} bytes of data where its header promises "
            f"{math.prod(shape):,}. {way_out}"
        )
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)


def _download_fashion_mnist(folder):
    """Whether the four files now lie in `folder`, their checksums compared by torchvision."""
    from torchvision.datasets import FashionMNIST
    from torchvision.datasets.utils import download_url

    print("Fashion-MNIST: looking for it on the internet (30 MB) …", end=" ", flush=True)
    timeout_before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
    try:
        # torchvision's progress bar writes to stderr, which a notebook keeps.
        with contextlib.redirect_stderr(io.StringIO()), _one_sentence_on_full_disk():
            for name, md5 in FashionMNIST.resources:
                download_url(FashionMNIST.mirrors[0] + name, folder, name, md5)
    except (OSError, RuntimeError, HTTPException) as error:
        print(f"not reached ({type(error).__name__}).")
        return False
    finally:
        socket.setdefaulttimeout(timeout_before)
    print("downloaded.")
    return True


# --- Any folder of pictures ---------------------------------------------------------------------


def _prepare_folder(folder, root, seed, limit, shares):
    present = [split for split in SPLITS if (folder / split).is_dir()]
    if present and len(present) < len(SPLITS):
        absent = " and ".join(f"{s}/" for s in SPLITS if s not in present)
        raise DataError(
            f"“{folder.name}” holds {' and '.join(f'{s}/' for s in present)} but not {absent}. "
            "Add what is missing, or give a folder with one sub-folder a class."
        )
    if not present:
        source = _folder_source(folder, {None: folder}, seed, shares)
        return _write(source, root, seed, limit)
    source = _folder_source(folder, {s: folder / s for s in SPLITS}, seed, shares)
    if limit is not None:
        return _write(source, root, seed, limit)
    return Dataset(source.name, folder, source.class_names, source.source)


def _find_folder(name):
    path = Path(name)
    if path.is_dir():
        return path
    data_dir = os.environ.get("DATA_DIR")
    if data_dir and (Path(data_dir) / path).is_dir():
        return Path(data_dir) / path
    raise DataError(
        f"There is no folder “{path.name}”. Give “fashion-mnist”, or a folder with one sub-folder "
        "a class, by its path or by its name inside DATA_DIR."
    )


def _folder_source(folder, parts, seed, shares):
    """Source of the class folders in each part (split → folder; None where not yet split)."""
    classes = {part: _class_folders(path) for part, path in parts.items()}
    names = sorted({name for found in classes.values() for name in found})
    if len(names) < 2:
        raise DataError(
            f"“{folder.name}” needs two or more sub-folders with pictures, one a class, and has "
            f"{len(names)}."
        )
    listed = [
        (part, name, path)
        for part, root in parts.items()
        for name in names
        for path in _pictures_in(root / name)
    ]
    labels = [name for _, name, _ in listed]
    if None in parts:
        splits = _split(labels, shares, seed)
    else:
        splits = {
            split: np.array([i for i, (part, _, _) in enumerate(listed) if part == split], int)
            for split in SPLITS
        }
        _check_every_class(splits, labels, names)
    return _Source(
        name=folder.resolve().name,
        source="a folder of that name",
        class_names=tuple(names),
        labels=labels,
        file_names=[path.name for _, _, path in listed],
        payloads=[path for _, _, path in listed],
        splits=splits,
        fingerprint=_fingerprint(listed, shares),
    )


def _class_folders(folder):
    names = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    for name in names:
        if not _pictures_in(folder / name):
            raise DataError(f"The class folder “{name}” holds no picture: fill it or remove it.")
    return names


def _pictures_in(folder):
    """Sorted paths of the pictures right inside a folder; none where it does not exist."""
    if not folder.is_dir():
        return []
    return [
        folder / name
        for name in sorted(os.listdir(folder))
        if os.path.splitext(name)[1].lower() in PICTURE_SUFFIXES and not name.startswith(".")
    ]


def _fingerprint(listed, shares):
    lines = [f"{part}/{name}/{path.name} {path.stat().st_size}" for part, name, path in listed]
    return hashlib.sha256("\n".join([repr(tuple(shares)), *lines]).encode()).hexdigest()


# --- Splitting ----------------------------------------------------------------------------------


def _draw(labels, size, rng):
    """Sorted indices of a stratified random draw of `size`, and of the rest.

    Every class appears once before any appears in proportion, so that rare ones are not left out.
    """
    order = rng.permutation(len(labels))
    shuffled = pd.Series(np.asarray(labels)[order])
    groups = shuffled.groupby(shuffled)
    position = groups.cumcount() / groups.transform("size")
    order = order[np.argsort(position.to_numpy(), kind="stable")]
    return np.sort(order[:size]), np.sort(order[size:])


def _split(labels, shares, seed):
    """Dict of split → sorted indices, stratified, in the shares of train, valid and test."""
    rng = np.random.default_rng(seed)
    labels = np.asarray(labels)
    test, rest = _draw(labels, round(len(labels) * shares[2]), rng)
    valid, train = _draw(labels[rest], round(len(labels) * shares[1]), rng)
    return {"train": rest[train], "valid": rest[valid], "test": test}


def _limited(splits, labels, seed, limit):
    if limit is None:
        return splits
    rng = np.random.default_rng(seed)
    labels = np.asarray(labels)
    return {split: at[_draw(labels[at], limit, rng)[0]] for split, at in splits.items()}


def _check_every_class(splits, labels, class_names):
    for split, at in splits.items():
        missing = sorted(set(class_names) - {labels[i] for i in at})
        if missing:
            raise DataError(
                f"The {split} split would hold no picture of “{missing[0]}”. Add pictures of it, "
                "or choose larger shares or a larger limit."
            )


# --- Writing ------------------------------------------------------------------------------------


def _folder_name(name, seed, limit):
    return f"{name}-seed{seed}" + ("" if limit is None else f"-limit{limit}")


def _finished(folder, fingerprint=""):
    """The Dataset of a folder that was written to its end and is still whole, else None."""
    try:
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
        names = tuple(card["class_names"])
        dataset = Dataset(card["name"], folder, names, card["source"], card["is_fallback"])
        whole = (card["counts"], card["fingerprint"]) == (dataset.counts().to_dict(), fingerprint)
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return dataset if whole else None


def _write(source, root, seed, limit):
    """Dataset of a source's pictures, written aside and renamed when complete."""
    folder = root / _folder_name(source.name, seed, limit)
    finished = _finished(folder, source.fingerprint)
    if finished:
        return finished
    splits = _limited(source.splits, source.labels, seed, limit)
    _check_every_class(splits, source.labels, source.class_names)
    total = sum(map(len, splits.values()))
    print(f"{source.name}: writing {total:,} pictures …", end=" ", flush=True)
    start = time.monotonic()
    with _one_sentence_on_full_disk():
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root, prefix=".writing-") as aside:
            dataset = Dataset(
                source.name,
                Path(aside) / folder.name,
                source.class_names,
                source.source,
                source.is_fallback,
            )
            _write_pictures(source, splits, dataset.folder)
            _write_card(dataset, source.fingerprint, seed, limit)
            shutil.rmtree(folder, ignore_errors=True)
            dataset.folder.rename(folder)
    print(f"done in {time.monotonic() - start:.0f} s.")
    return Dataset(source.name, folder, source.class_names, source.source, source.is_fallback)


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


def _write_pictures(source, splits, folder):
    jobs = []
    for split, indices in splits.items():
        for name in source.class_names:
            (folder / split / name).mkdir(parents=True)
        jobs += [
            (source.payloads[i], folder / split / source.labels[i] / source.file_names[i])
            for i in indices
        ]
    if isinstance(source.payloads[0], np.ndarray):
        for pixels, path in jobs:
            Image.fromarray(pixels).save(path)
        return
    for path, to in jobs:
        _copy_picture(path, to)


def _copy_picture(path, to):
    """Copy of a picture file that was decoded to its end; DataError where it cannot be."""
    content = path.read_bytes()
    with decoding(path), Image.open(io.BytesIO(content)) as picture:
        picture.load()
    to.write_bytes(content)


def _write_tar(files, path):
    aside = path.with_name(f".{path.name}.partial")
    try:
        with tarfile.open(aside, "w", format=tarfile.PAX_FORMAT) as tar:
            for file, class_name in files:
                content = file.read_bytes()
                # A fresh TarInfo has time 0, owner 0 and mode 644: the same bytes on every machine.
                member = tarfile.TarInfo(f"{class_name}/{file.name}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


@contextlib.contextmanager
def _one_sentence_on_full_disk():
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DataError(
            "The disk is full: free some space and run this again; nothing half-written is kept."
        ) from error
