"""Decodes every picture once before any is written: broken ones out, a hash of each other one."""

import functools
import hashlib
import os
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from studio import duplicates
from studio.pictures import READ_AS_THEY_ARE, DataError, Problem, Source, open_for_training

# What is wrong with one file; any other error of the system may pass.
UNREADABLE = (FileNotFoundError, IsADirectoryError, PermissionError)


class Checked(NamedTuple):
    """What is wrong with a picture, or else its hash and its format as training reads it."""

    problem: str
    hash: bytes = b""
    format: str = ""


def checked(source: Source, short_side: int | None = None) -> tuple[Source, list[bytes]]:
    """The Source without its broken pictures, and a hash of each of the others.

    Raises DataError where more than half of a class is broken or was left out before.
    """
    print(f"{source.name}: checking {len(source.payloads):,} pictures …", end=" ", flush=True)
    start = time.monotonic()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        check = functools.partial(check_picture, short_side=short_side)
        results = list(pool.map(check, source.payloads))
    print(f"done in {time.monotonic() - start:.0f} s.")
    broken = [
        Problem(*origin, label, picture.problem)
        for origin, label, picture in zip(source.origins, source.labels, results)
        if picture.problem
    ]
    _check_enough_left(source, broken)
    kept = [i for i, picture in enumerate(results) if not picture.problem]
    names = _final_names(source, results)
    source = replace(source, file_names=names, problems=(*source.problems, *broken))
    return subset(source, kept), [results[i].hash for i in kept]


def check_picture(path: Path, short_side: int | None = None) -> Checked:
    """Decode a picture file to its end, scaled down as `open_for_training` does."""
    from vision.errors import PictureError
    from vision.preprocessing import decode

    try:
        content, picture = open_for_training(path.read_bytes(), short_side)
        small = min(picture.size) < duplicates.SMALLEST_SIDE
        # To the end, and by the very function that training calls.
        pixels = decode(picture, duplicates.PIXELS, 1)[0].numpy()
    except PictureError as error:
        return Checked(str(error))
    except UNREADABLE as error:
        return Checked(f"the file cannot be read: {error.strerror}")
    # A phone's JPEG with a second picture behind the first, which every reader takes for a JPEG.
    kind = "JPEG" if picture.format == "MPO" else picture.format
    if small:
        digest = hashlib.blake2b(content, digest_size=16).digest()
        return Checked("", digest, kind)
    return Checked("", duplicates.perceptual_hash(pixels), kind)


def _final_names(source, results):
    """The names under which the pictures are written, in each folder every one once."""
    splits = {i: split for split, at in (source.splits or {}).items() for i in at.tolist()}
    taken, names = set(), []
    for i, (label, name, picture) in enumerate(zip(source.labels, source.file_names, results)):
        final = _final_name(name, picture.format)
        if (splits.get(i), label, final) in taken:
            stem, suffix = os.path.splitext(final)
            final = f"{stem}-{i}{suffix}"
        taken.add((splits.get(i), label, final))
        names.append(final)
    return names


def _final_name(name, format):
    suffix = os.path.splitext(name)[1].lower()
    return name if suffix in READ_AS_THEY_ARE else f"{name}.{format.lower()}"


def subset(source: Source, kept: list[int]) -> Source:
    """The Source with only the pictures at these places."""
    place = {i: new for new, i in enumerate(kept)}
    splits = source.splits and {
        name: np.array([place[i] for i in at.tolist() if i in place], int)
        for name, at in source.splits.items()
    }
    return replace(
        source,
        labels=[source.labels[i] for i in kept],
        file_names=[source.file_names[i] for i in kept],
        payloads=[source.payloads[i] for i in kept],
        origins=[source.origins[i] for i in kept],
        splits=splits,
    )


def _check_enough_left(source, broken):
    """DataError where more than half of the pictures of a class are unusable."""
    problems = (*source.problems, *broken)
    bad = Counter(problem.label for problem in problems)
    total = Counter(source.labels) + Counter(problem.label for problem in source.problems)
    for name in source.class_names:
        if 2 * bad[name] > total[name]:
            first = next(problem for problem in problems if problem.label == name)
            raise DataError(
                f"{bad[name]:,} of the {total[name]:,} pictures of “{name}” cannot be used. The "
                f"first is {first.link}: {first.problem}. Replace them, or take out the class."
            )
