"""Fetches a zip of pictures and unpacks it where nothing in it can do harm.

    folder = unzip(fetch("https://…/dogImages.zip", "build/downloads"), "build/downloads/dogImages")

A download that breaks off goes on where it stopped, in the next call. What an archive holds is not
trusted: no name leads out of the folder, no link is followed, and no more is unpacked than it says
and the limits allow.
"""

import contextlib
import hashlib
import shutil
import stat
import tempfile
import time
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import urllib3

from studio.pictures import (
    PICTURE_SUFFIXES,
    DataError,
    is_full_disk,
    one_sentence_on_full_disk,
)

# The dogs' photos are 1.1 GB; these bounds leave room for ten times that.
MAX_BYTES = 12 * 1024**3
MAX_FILES = 500_000
CONNECT_SECONDS, READ_SECONDS = 10, 60
TRIES = 5
CHUNK = 1024**2
DAMAGED = (
    *(zipfile.BadZipFile, zlib.error, EOFError, UnicodeDecodeError),
    *(NotImplementedError, RuntimeError),
)
# What operating systems add to archives.
NO_PICTURES = ("__MACOSX",)


def fetch(url: str, folder: str | Path, max_bytes: int = MAX_BYTES) -> Path:
    """Path of the file at `url`, downloaded into `folder` unless it is there.

    Raises DataError where it cannot be had or has more than `max_bytes`.
    """
    target = Path(folder) / (PurePosixPath(urlsplit(url).path).name or "download")
    if target.is_file():
        return target
    partial = target.with_name(f".{target.name}.partial")
    with one_sentence_on_full_disk():
        target.parent.mkdir(parents=True, exist_ok=True)
        _download(url, partial, max_bytes)
        partial.rename(target)
    return target


def _download(url, partial, max_bytes):
    print(f"{PurePosixPath(urlsplit(url).path).name}: downloading …", end=" ", flush=True)
    start = time.monotonic()
    with urllib3.PoolManager(timeout=urllib3.Timeout(CONNECT_SECONDS, READ_SECONDS)) as http:
        for attempt in range(1, TRIES + 1):
            try:
                _go_on(http, url, partial, max_bytes)
                break
            except urllib3.exceptions.HTTPError as error:
                if attempt == TRIES:
                    raise DataError(
                        f"{url} cannot be downloaded ({type(error).__name__}, {TRIES} times). What "
                        "came is kept: run this again to go on from there."
                    ) from error
                time.sleep(attempt)
    print(f"{partial.stat().st_size / 1e6:.0f} MB in {time.monotonic() - start:.0f} s.")


def _go_on(http, url, partial, max_bytes):
    """Append what is missing; a server that knows no ranges sends all of it again."""
    have = partial.stat().st_size if partial.is_file() else 0
    headers = {"Range": f"bytes={have}-"} if have else {}
    reply = http.request("GET", url, headers=headers, preload_content=False, retries=3)
    try:
        if reply.status == 416:  # Nothing is missing.
            return
        if reply.status not in (200, 206):
            raise DataError(f"{url} cannot be downloaded: the server answers {reply.status}.")
        with partial.open("ab" if reply.status == 206 else "wb") as file:
            # read1 hands over what is there, so that nothing of it is lost where it breaks off.
            while chunk := reply.read1(CHUNK, decode_content=False):
                file.write(chunk)
                if file.tell() > max_bytes:
                    raise DataError(f"{url} has more than {max_bytes / 1e9:.1f} GB: refused.")
    finally:
        reply.close()


def unzip(archive: str | Path, folder: str | Path, max_bytes: int = MAX_BYTES) -> Path:
    """Unpack a zip into `folder` unless that is there; return the folder of the class folders.

    Raises DataError where the archive is damaged, or holds a link, a name that leads outside, or
    more than `max_bytes`.
    """
    archive, folder = Path(archive), Path(folder)
    if not folder.is_dir():
        with one_sentence_on_full_disk():
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".unpacking-") as aside:
                _unpack(archive, Path(aside) / "content", max_bytes)
                (Path(aside) / "content").rename(folder)
    return _class_root(folder)


def digest(archive: str | Path) -> str:
    """Stands for what an archive holds: the names, sizes and checksums that it lists.

    Raises DataError where the archive is damaged.
    """
    archive = Path(archive)
    with _opened(archive) as opened:
        facts = [(each.filename, each.file_size, each.CRC) for each in opened.infolist()]
    return hashlib.sha256(repr(facts).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _unpack(archive, folder, max_bytes):
    folder.mkdir()
    with _opened(archive) as opened:
        members = [each for each in opened.infolist() if not each.is_dir()]
        _check(archive, members, max_bytes)
        for member in members:
            if not _is_wanted(member.filename):
                continue
            target = folder.joinpath(*PurePosixPath(member.filename).parts)
            target.parent.mkdir(parents=True, exist_ok=True)
            # Its reader stops at the size that the directory of the archive states, and compares
            # the checksum.
            with opened.open(member) as source, target.open("xb") as file:
                shutil.copyfileobj(source, file, CHUNK)


@contextlib.contextmanager
def _opened(archive):
    """The ZipFile; what goes wrong with it becomes a DataError."""
    try:
        with zipfile.ZipFile(archive) as opened:
            yield opened
    except DAMAGED as error:
        raise DataError(
            f"“{archive.name}” is damaged or no zip that can be read ({error}): remove it and "
            "fetch it again."
        ) from error
    except OSError as error:
        if is_full_disk(error):
            raise
        # A name that is there twice, too long, or one of a file and of a folder.
        raise DataError(
            f"“{archive.name}” cannot be unpacked here ({error.strerror or error}): unpack it "
            "yourself and give the folder."
        ) from error


def _check(archive, members, max_bytes):
    for member in members:
        name = PurePosixPath(member.filename)
        outside = name.is_absolute() or ".." in name.parts or "\\" in member.filename
        if outside or not name.parts or ":" in name.parts[0] or "\0" in member.filename:
            raise DataError(f"“{archive.name}” is refused: “{member.filename}” leads outside.")
        if stat.S_ISLNK(member.external_attr >> 16):
            raise DataError(f"“{archive.name}” is refused: “{member.filename}” is a link.")
    total = sum(member.file_size for member in members)
    if total > max_bytes or len(members) > MAX_FILES:
        raise DataError(
            f"“{archive.name}” is refused: it unpacks to {len(members):,} files of together "
            f"{total / 1e9:.1f} GB."
        )


def _is_wanted(name):
    parts = PurePosixPath(name).parts
    hidden = any(part.startswith(".") or part in NO_PICTURES for part in parts)
    return not hidden and PurePosixPath(name).suffix.lower() in PICTURE_SUFFIXES


def _class_root(folder):
    """The folder itself, or the one inside it that is alone: archives often wrap all in one."""
    children = list(folder.iterdir())
    while len(children) == 1 and children[0].is_dir():
        folder = children[0]
        children = list(folder.iterdir())
    return folder
