"""Reads and writes RecordIO files of labelled pictures, as MXNet's im2rec does.

`<name>.rec` holds the records, `<name>.idx` one line "number<TAB>byte offset" a record, and
`<name>.lst` one line "number<TAB>label<TAB>path". The format of a record is dmlc-core's
(include/dmlc/recordio.h, src/recordio.cc), that of what it holds is mxnet.recordio.IRHeader.
"""

import contextlib
import os
import re
import struct
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from vision.errors import ExpectedError
from vision.partial import beside

MAGIC = struct.pack("<I", 0xCED7230A)
# The magic word, then a word with the kind of part in 3 bits and its length in 29.
PART = struct.Struct("<4sI")
LENGTH_BITS = 29
WHOLE, FIRST, MIDDLE, LAST = range(4)
# flag (how many labels follow the header; 0: only the one in it), label, number, second number.
HEADER = struct.Struct("<IfQQ")
SUFFIXES = (".rec", ".idx", ".lst")


@dataclass(frozen=True)
class Record:
    """Where a picture lies: `parts` are (offset, size) in the file, to be joined by MAGIC."""

    number: int
    label: float
    parts: tuple[tuple[int, int], ...]


def read_records(path: Path) -> Iterator[Record]:
    """Yield the records of a .rec file in their order; the pictures themselves are not read.

    Raises ExpectedError where the file is cut off, is no RecordIO file, or gives a picture
    several labels.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        while (start := file.tell()) < size:
            try:
                yield _read_record(file, size)
            except (struct.error, ValueError) as error:
                raise ExpectedError(
                    f"{path} is cut off or is no RecordIO file (byte {start}): upload it again"
                ) from error


def _read_record(file: BinaryIO, size: int) -> Record:
    parts = _read_parts(file, size)
    end = file.tell()
    # A magic word may cut the header itself, so it is read from the joined parts.
    head = read_parts(file, parts, HEADER.size + 4)
    file.seek(end)
    flag, label, number, _ = HEADER.unpack(head[: HEADER.size])
    if flag > 1:
        raise ExpectedError(
            f"{file.name} gives a picture {flag} labels: pack it with one label a picture"
        )
    if flag == 1:
        (label,) = struct.unpack("<f", head[HEADER.size :])
    return Record(number, label, _without_start(parts, HEADER.size + 4 * flag))


def _read_parts(file: BinaryIO, size: int) -> list[tuple[int, int]]:
    parts = []
    while True:
        magic, word = PART.unpack(file.read(PART.size))
        kind, length = word >> LENGTH_BITS, word & ((1 << LENGTH_BITS) - 1)
        start = file.tell()
        expected = (MIDDLE, LAST) if parts else (WHOLE, FIRST)
        if magic != MAGIC or kind not in expected or start + length > size:
            raise ValueError
        if kind in (FIRST, MIDDLE) and length % 4:
            raise ValueError
        parts.append((start, length))
        file.seek(start + length + -length % 4)
        if kind in (WHOLE, LAST):
            return parts


def _without_start(parts: list[tuple[int, int]], count: int) -> tuple[tuple[int, int], ...]:
    """Return the parts less their first `count` bytes, joining words counted."""
    for i, (start, length) in enumerate(parts):
        if count <= length:
            return ((start + count, length - count), *parts[i + 1 :])
        count -= length + len(MAGIC)
    raise ValueError


def read_parts(
    file: BinaryIO, parts: Iterable[tuple[int, int]], at_most: int = sys.maxsize
) -> bytes:
    """Return the joined parts, or their first `at_most` bytes; fewer where the file ends early."""
    data = bytearray()
    for i, (start, length) in enumerate(parts):
        data += MAGIC if i else b""
        if len(data) >= at_most:
            break
        file.seek(start)
        data += file.read(min(length, at_most - len(data)))
    return bytes(data[:at_most])


def read_list(path: Path) -> dict[int, tuple[float, str]]:
    """Return number → (label, path) of a .lst file; raises ExpectedError where it is none."""
    rows = {}
    # Not splitlines: a name may hold what Unicode calls a line break.
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for i, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            number, label, name = line.split("\t")
            rows[int(number)] = float(label), name
        except ValueError as error:
            raise ExpectedError(
                f"line {i} of {path} is not number, label and path with tabs between: "
                "write it again with im2rec"
            ) from error
    return rows


def write_records(path: Path, records: Iterable[tuple[int, int, str, bytes]]) -> None:
    """Write (number, label, path, picture) as `path` (.rec) with .idx and .lst beside it.

    Nothing is left of the three where it fails. Raises ExpectedError for a name or a picture
    that the format cannot hold.
    """
    final = [path.with_suffix(suffix) for suffix in SUFFIXES]
    aside = [beside(file) for file in final]
    try:
        with contextlib.ExitStack() as stack:
            rec = stack.enter_context(aside[0].open("wb"))
            idx, lst = (
                stack.enter_context(file.open("w", encoding="utf-8", newline="\n"))
                for file in aside[1:]
            )
            for number, label, name, picture in records:
                if re.search(r"[\t\r\n]", name):
                    raise ExpectedError(f"{name!r} holds a tab or a line break: rename it")
                idx.write(f"{number}\t{rec.tell()}\n")
                lst.write(f"{number}\t{label:f}\t{name}\n")
                write_record(rec, HEADER.pack(0, label, number, 0) + picture)
        for written, file in zip(aside, final, strict=True):
            os.replace(written, file)
    finally:
        for file in aside:
            file.unlink(missing_ok=True)


def write_record(file: BinaryIO, payload: bytes) -> None:
    """Append one record: cut at every magic word on a multiple of 4, padded to one of 4."""
    if len(payload) >= 1 << LENGTH_BITS:
        raise ExpectedError(
            f"a picture of {len(payload) / 1e6:.0f} MB does not fit into a RecordIO record: "
            "scale it down"
        )
    pieces = _cut(payload)
    kinds = [FIRST, *[MIDDLE] * (len(pieces) - 2), LAST] if len(pieces) > 1 else [WHOLE]
    for kind, piece in zip(kinds, pieces, strict=True):
        file.write(PART.pack(MAGIC, kind << LENGTH_BITS | len(piece)) + piece)
    file.write(bytes(-len(pieces[-1]) % 4))


def _cut(payload: bytes) -> list[bytes]:
    pieces, start, at = [], 0, payload.find(MAGIC)
    while at >= 0:
        if at % 4 == 0:
            pieces.append(payload[start:at])
            start = at + len(MAGIC)
        at = payload.find(MAGIC, at + (len(MAGIC) if at % 4 == 0 else 1))
    return [*pieces, payload[start:]]
