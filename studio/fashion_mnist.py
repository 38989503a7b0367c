"""Fashion-MNIST from its original files, from here or from the internet, and what stands in."""

import contextlib
import gzip
import io
import math
import os
import socket
import zlib
from http.client import HTTPException
from pathlib import Path

import numpy as np

from studio.pictures import DataError, Source, one_sentence_on_full_disk
from studio.splitting import draw, split

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


def source(downloads: Path, seed: int) -> Source:
    """The set in DATA_DIR, else downloaded into `downloads`, else scikit-learn's digits.

    Raises DataError where DATA_DIR is set and does not hold the whole of it.
    """
    data_dir = os.environ.get("DATA_DIR")
    if data_dir:
        raw = _find_idx_folder(Path(data_dir))
        way_out = "Copy that file again, or unset DATA_DIR to download the set."
        return _fashion_mnist(raw, way_out, seed)
    raw = downloads / "fashion-mnist"
    if _download_fashion_mnist(raw):
        way_out = "Delete the folder “downloads” among the prepared data and run this again."
        return _fashion_mnist(raw, way_out, seed)
    return _digits(seed)


def _fashion_mnist(raw, way_out, seed):
    """The 60,000 training pictures, a tenth of them for validation, and the 10,000 for test."""
    train_x, train_y = _read_pair(raw, "train", way_out)
    test_x, test_y = _read_pair(raw, "t10k", way_out)
    valid, train = draw(train_y, round(len(train_y) / 10), np.random.default_rng(seed))
    return Source(
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
    return Source(
        name="digits",
        source="scikit-learn's bundled scans of 8×8 pixels",
        class_names=tuple(sorted(DIGIT_CLASSES)),
        labels=labels,
        file_names=[f"digit-{i:05d}.png" for i in range(len(labels))],
        payloads=list(pixels),
        is_fallback=True,
        splits=split(labels, (0.7, 0.15, 0.15), seed),
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
        with contextlib.redirect_stderr(io.StringIO()), one_sentence_on_full_disk():
            for name, md5 in FashionMNIST.resources:
                download_url(FashionMNIST.mirrors[0] + name, folder, name, md5)
    except (OSError, RuntimeError, HTTPException) as error:
        print(f"not reached ({type(error).__name__}).")
        return False
    finally:
        socket.setdefaulttimeout(timeout_before)
    print("downloaded.")
    return True
