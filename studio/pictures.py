"""What every source of pictures shares: names, the faults that a reader can put right, checking."""

import contextlib
import errno
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageOps

SPLITS = ("train", "valid", "test")
# Training reads these as they are; the rest is turned into PNG, or reported where it cannot be.
READ_AS_THEY_ARE = {".jpeg", ".jpg", ".png", ".webp"}
# AVIF comes last: a Pillow that was built without it stumbles over the name.
TURNED_INTO_PNG = ("BMP", "GIF", "PPM", "TIFF", "AVIF")
# Pillow warns of larger ones: what claims so many pixels may be made to fill the memory.
MOST_PIXELS_TO_SHRINK = 89_000_000
PICTURE_SUFFIXES = READ_AS_THEY_ARE | {
    *(".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".ppm", ".tif", ".tiff"),
}


class DataError(Exception):
    """What is wrong with the data and the way out, in one or two plain sentences."""


class Problem(NamedTuple):
    """One line of report.csv: a picture that is left out, and why."""

    line: int | str
    link: str
    label: str
    problem: str


@dataclass(frozen=True)
class Source:
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
    # Line and link (or class/file) of each picture, as the report names it.
    origins: list[tuple[int | str, str]] = field(default_factory=list)
    # What the source left out itself.
    problems: tuple[Problem, ...] = ()


def pictures_in(folder: Path) -> list[Path]:
    """Sorted paths of the pictures right inside a folder; none where it does not exist."""
    if not folder.is_dir():
        return []
    return [
        folder / name
        for name in sorted(os.listdir(folder))
        if os.path.splitext(name)[1].lower() in PICTURE_SUFFIXES and not name.startswith(".")
    ]


def bytes_and_time(path: Path) -> str:
    """Bytes of a file and when it was last written; "" where there is none, as behind a dead link.

    Uncompressed pictures of one camera all have as many bytes, so these alone tell no change.
    """
    try:
        stat = path.stat()
    except OSError:
        return ""
    return f"{stat.st_size} {stat.st_mtime_ns}"


def open_for_training(content: bytes, short_side: int | None = None) -> tuple[bytes, Image.Image]:
    """A picture file as training reads it (other formats as PNG), and opened, not yet decoded.

    One whose shorter side has more than `short_side` pixels is scaled down to it. Raises
    vision.errors.PictureError where it is no picture that training accepts.
    """
    # Here, because it loads torch, which nothing else on the way does.
    from vision.preprocessing import FORMATS, open_picture

    if short_side is not None:
        content = _shrunk(content, short_side)
    picture = open_picture(content, formats=(*FORMATS, *TURNED_INTO_PNG))
    if picture.format not in TURNED_INTO_PNG:
        return content, picture
    png = _as_png(picture)
    return png, open_picture(png)


def _shrunk(content, short_side):
    """The picture scaled down, upright, in its own format or PNG; as it is where it is no larger.

    Also as it is where it cannot be decoded: whoever opens it next says why.
    """
    try:
        picture = Image.open(io.BytesIO(content), formats=("JPEG", "PNG", "WEBP", *TURNED_INTO_PNG))
        factor = short_side / min(picture.size)
        if factor >= 1 or picture.width * picture.height > MOST_PIXELS_TO_SHRINK:
            return content
        # MPO: a phone's JPEG with a second picture behind the first.
        kinds = {"JPEG": "JPEG", "MPO": "JPEG", "WEBP": "WEBP"}
        kind = kinds.get(picture.format, "PNG")
        size = [max(short_side, round(factor * side)) for side in picture.size]
        # JPEG only: decodes at a half, quarter or eighth where that is still large enough.
        picture.draft(None, size)
        picture = ImageOps.exif_transpose(_in_full_colour(picture).resize(size))
        buffer = io.BytesIO()
        picture.save(buffer, kind, quality=95)
    except MemoryError:
        raise
    except Exception:  # Whatever a decoder raises here, the bytes are at fault.
        return content
    return buffer.getvalue()


def _in_full_colour(picture):
    """The picture in a mode in which neighbouring pixels can be averaged and any format saves."""
    if "transparency" in picture.info:
        return picture.convert("RGBA")
    if picture.mode == "1":
        return picture.convert("L")
    return picture.convert("RGB") if picture.mode in ("P", "CMYK", "YCbCr", "LAB") else picture


def _as_png(picture):
    from vision.errors import PictureError

    try:
        picture = ImageOps.exif_transpose(picture)
        if picture.mode in ("CMYK", "HSV", "LAB", "YCbCr"):
            picture = picture.convert("RGB")
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
    except MemoryError:
        raise
    except Exception as error:  # Whatever a decoder raises here, the bytes are at fault.
        raise PictureError("the picture is truncated or damaged") from error
    return buffer.getvalue()


@contextlib.contextmanager
def decoding(path: Path) -> Iterator[None]:
    """Turn what Pillow raises on a broken picture into a DataError that names the file."""
    try:
        yield
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(
            f"“{path.parent.name}/{path.name}” cannot be read as a picture: replace or remove it."
        ) from error


def is_full_disk(error: OSError) -> bool:
    """Whether a disk is full, or a quota spent."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def one_sentence_on_full_disk() -> Iterator[None]:
    """Turn a full disk, or a spent quota, into a DataError."""
    try:
        yield
    except OSError as error:
        if not is_full_disk(error):
            raise
        raise DataError(
            "The disk is full: free some space and run this again; nothing half-written is kept."
        ) from error
