"""What the pictures of a data set look like in numbers, before any model sees them.

view = survey(dataset)                   # reads every picture once
statistics(view.pictures)
duplicates(view.pictures)
"""

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from scipy.ndimage import laplace

from studio.datasets import SPLITS, Dataset, decoding

# As vision/data.py has it, which loads torch.
LARGEST_SMALL_PICTURE = 32  # pixels
LEVELS = np.arange(256)
# Larger pictures are shrunk for the mean picture, which has no fine detail to lose.
MEAN_SIDE = 96  # pixels


@dataclass(frozen=True)
class Survey:
    """One pass over a data set.

    pictures: one row a picture: split, class, file, width, height, mode, mean, std, min, max
        (brightness levels 0 to 255 over all channels) and digest, equal for equal pixels.
    histogram: train pixels at each level 0 to 255 (rows) by class (columns), all channels together.
    mean_pictures: dict of class → uint8 (rows, columns[, 3]), the mean of its train pictures.
    """

    pictures: pd.DataFrame
    histogram: pd.DataFrame
    mean_pictures: dict[str, np.ndarray]


def survey(dataset: Dataset) -> Survey:
    """Survey of every picture of a Dataset; DataError names a file that cannot be decoded."""
    files = [(split, *item) for split in SPLITS for item in dataset.files(split)]
    size = _mean_size(dataset)
    means = {name: _RunningMean() for name in dataset.class_names}
    histograms = np.zeros((len(files), len(LEVELS)), dtype=np.int64)
    rows = []
    # One thread: for files this small, two were measured to be slower.
    for row, (split, path, name) in enumerate(files):
        facts, histograms[row], small = _decode(path, size)
        rows.append((split, name, path.name, *facts))
        if split == "train":
            means[name].add(small)
    columns = ["split", "class", "file", "width", "height", "mode", "digest"]
    pictures = pd.DataFrame(rows, columns=columns).join(_level_statistics(histograms))
    in_train = (pictures["split"] == "train").to_numpy()
    per_class = {
        name: histograms[in_train & (pictures["class"] == name).to_numpy()].sum(axis=0)
        for name in dataset.class_names
    }
    histogram = pd.DataFrame(per_class, index=pd.Index(LEVELS, name="level"))
    return Survey(pictures, histogram, {name: mean.picture() for name, mean in means.items()})


def recipe(survey: Survey) -> str:
    """Name of the recipe that the training scripts take for pictures of this size."""
    train = survey.pictures[survey.pictures["split"] == "train"]
    short_side = train[["width", "height"]].min(axis=1).median()
    return "small" if short_side <= LARGEST_SMALL_PICTURE else "photos"


def statistics(pictures: pd.DataFrame) -> pd.DataFrame:
    """Per class, and for all: how many, brightness mean, std, min and max, sizes and colour modes.

    mean and std are over pixels (0 to 255), so that a large picture weighs as much as it holds.
    """
    groups = [*pictures.groupby("class"), ("all", pictures)]
    table = pd.DataFrame([_summary(group) for _, group in groups])
    return table.set_index(pd.Index([name for name, _ in groups], name="class"))


def duplicates(pictures: pd.DataFrame) -> pd.DataFrame:
    """One row for each picture whose pixels equal those of an earlier one.

    Columns: split_a, class_a, file_a (the first of its kind), split_b, class_b, file_b,
    across_splits and same_class (true or false).
    """
    named = pictures[["digest", "split", "class", "file"]]
    repeated = named.duplicated("digest")
    first = named[~repeated]
    pairs = first.merge(named[repeated], on="digest", suffixes=("_a", "_b")).drop(columns="digest")
    pairs["across_splits"] = pairs["split_a"] != pairs["split_b"]
    pairs["same_class"] = pairs["class_a"] == pairs["class_b"]
    return pairs


def imbalance(counts: pd.DataFrame, split: str = "train") -> float:
    """Ratio of the largest class to the smallest, from `Dataset.counts()`; 1 is balanced."""
    return float(counts[split].max() / counts[split].min())


def quality(pictures: Sequence[Path | bytes]) -> pd.DataFrame:
    """How sharp and how bright pictures (paths or file contents) are, one row each, in order.

    sharpness: the variance of the Laplacian of the grey levels (Pech-Pacheco et al. 2000,
        doi:10.1109/ICPR.2000.903548); blur lowers it, and so does an empty scene.
    brightness: the mean grey level, 0 black to 255 white.
    """
    rows = []
    for picture in pictures:
        with Image.open(io.BytesIO(picture) if isinstance(picture, bytes) else picture) as opened:
            grey = np.asarray(opened.convert("L"), dtype=np.float32)
        rows.append((laplace(grey).var(), grey.mean()))
    return pd.DataFrame(rows, columns=["sharpness", "brightness"], dtype=float)


class _RunningMean:
    def __init__(self):
        self.total, self.count = 0.0, 0

    def add(self, pixels):
        # A grey picture in a coloured class counts as three equal channels, and the other way.
        if self.count and pixels.ndim != self.total.ndim:
            pixels, self.total = _as_colour(pixels), _as_colour(self.total)
        self.total = self.total + pixels
        self.count += 1

    def picture(self):
        return np.round(self.total / self.count).astype(np.uint8)


def _as_colour(pixels):
    return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)


def _mean_size(dataset):
    """(width, height) of the mean picture: that of the first one, at most MEAN_SIDE a side."""
    with Image.open(dataset.files("train")[0][0]) as picture:
        shrink = min(1, MEAN_SIDE / max(picture.size))
        return tuple(max(1, round(side * shrink)) for side in picture.size)


def _decode(path, size):
    """((width, height, mode, digest), pixel count at each level, uint8 pixels at `size`)."""
    with decoding(path), Image.open(path) as opened:
        mode = opened.mode
        picture = opened.convert("L" if mode in ("1", "L", "LA") else "RGB")
    pixels = np.asarray(picture)
    digest = hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()
    counts = np.bincount(pixels.ravel(), minlength=len(LEVELS))
    small = pixels if picture.size == size else np.asarray(picture.resize(size))
    return (*picture.size, mode, digest), counts, small


def _level_statistics(histograms):
    """Mean, standard deviation, minimum and maximum of each row's pixels."""
    total = histograms.sum(axis=1)
    mean = histograms @ LEVELS / total
    square = histograms @ LEVELS**2 / total
    present = histograms > 0
    return pd.DataFrame(
        {
            "mean": mean,
            # Rounding can take an all-equal picture a hair below zero.
            "std": np.sqrt(np.maximum(square - mean**2, 0)),
            "min": present.argmax(axis=1),
            "max": LEVELS[-1] - present[:, ::-1].argmax(axis=1),
        }
    )


def _summary(group):
    weights = group["width"] * group["height"]
    mean = np.average(group["mean"], weights=weights)
    square = np.average(group["std"] ** 2 + group["mean"] ** 2, weights=weights)
    return {
        "pictures": len(group),
        "mean": mean,
        "std": np.sqrt(max(square - mean**2, 0)),
        "min": group["min"].min(),
        "max": group["max"].max(),
        "width": _span(group["width"]),
        "height": _span(group["height"]),
        "modes": ", ".join(sorted(group["mode"].unique())),
    }


def _span(values):
    low, high = values.min(), values.max()
    return str(low) if low == high else f"{low} to {high}"
