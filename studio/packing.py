"""Packs the pictures of a split into one file: tar, or RecordIO for SageMaker's own algorithms."""

import io
import random
import tarfile
from pathlib import Path

from PIL import Image

from studio.pictures import DataError
from vision.errors import ExpectedError
from vision.partial import beside
from vision.recordio import SUFFIXES as RECORDIO_SUFFIXES
from vision.recordio import read_list, read_parts, read_records, write_records

# What each format writes of a split; the first one is the file with the pictures.
SUFFIXES = {"tar": (".tar",), "recordio": RECORDIO_SUFFIXES}


def write_tar(files: list[tuple[Path, str]], path: Path) -> None:
    """Write (file, class name) as members <class>/<file>; nothing is left where it fails."""
    aside = beside(path)
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


def write_recordio(
    files: list[tuple[Path, str]],
    class_names: tuple[str, ...],
    path: Path,
    image_size: int | None,
    quality: int,
) -> None:
    """Write (file, class name) as RecordIO, labelled by the place in `class_names`.

    Numbered in sorted order and shuffled as `im2rec --list --recursive` does, because training
    reads the records as they come. Raises DataError for a name that the format cannot hold.
    """
    rows = list(enumerate(sorted(files, key=lambda item: (item[1], item[0].name))))
    random.Random(100).shuffle(rows)  # noqa: S311 - im2rec's own seed.
    records = (
        (
            number,
            class_names.index(class_name),
            f"{class_name}/{file.name}",
            file.read_bytes() if image_size is None else _resized(file, image_size, quality),
        )
        for number, (file, class_name) in rows
    )
    try:
        write_records(path, records)
    except ExpectedError as error:
        raise DataError(f"{error}.") from error


def read_recordio(path: Path) -> dict[str, bytes]:
    """Dict of <class>/<file> → picture, in the order of the records that write_recordio wrote."""
    names = {number: name for number, (_, name) in read_list(path.with_suffix(".lst")).items()}
    with path.open("rb") as file:
        return {
            names[record.number]: read_parts(file, record.parts) for record in read_records(path)
        }


def _resized(file, image_size, quality):
    # Here, because it loads torch, which packing otherwise does without.
    from vision.preprocessing import decode, open_picture

    pixels = decode(open_picture(file.read_bytes()), image_size, 3)
    buffer = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
