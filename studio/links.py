"""Pictures from a list of links or S3 keys with labels, fetched once and kept.

    prepare("listings.csv")                             # columns such as url, label
    prepare("photos.jsonl")                             # {"image": "photos/1.jpg", "class": "cat"}
    prepare("file_list.json", bucket="aft-vbi-pds", key="bin-images/{stem}.jpg", s3=client)

A list is CSV (comma, semicolon or tab, with a header), JSON lines, a JSON list of objects, or a
JSON object of label → list of links. A link is http://, https:// or s3://bucket/key, a key where a
`bucket` is given, or else a file beside the list. Whatever cannot be had is a line of the report.
"""

import csv
import hashlib
import io
import json
import os
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

import urllib3
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    HTTPClientError,
    IncompleteReadError,
)

from studio.pictures import (
    DataError,
    Problem,
    Source,
    bytes_and_time,
    open_for_training,
)
from vision.partial import beside, remove_left_over

SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".ndjson")
# The names of columns, the likeliest first.
LINK_COLUMNS = ("url", "link", "image_url", "s3_uri", "uri", "image", "key", "path", "file")
LABEL_COLUMNS = ("label", "class", "category", "class_name", "breed", "count", "target")
# As many connections as botocore and most servers take from one client without complaint.
WORKERS = 10
MAX_BYTES = 25_000_000
CONNECT_SECONDS, READ_SECONDS = 10, 20
# A server that sends a byte a second keeps every read timeout; this bounds one picture.
SECONDS_A_PICTURE = 60
TRIES = 4
BACKOFF = 0.5  # seconds before the second try; each further one waits twice as long
LONGEST_WAIT = 10  # seconds, whatever a server's Retry-After asks for
TRANSIENT_STATUS = {408, 429, 500, 502, 503, 504}
# So many failures and no success: it is the network or the list, not the pictures.
HOPELESS = 20


class Row(NamedTuple):
    """One line of a list: its number (or place, from 1), link and label as they stand there."""

    line: int
    link: str
    label: str


@dataclass(frozen=True)
class List:
    """A list that was read: `wanted` has one row a picture, `problems` the rows without a use."""

    path: Path
    wanted: list[Row]
    problems: list[Problem] = field(default_factory=list)

    def describe(self) -> list[str]:
        """Lines that change when the list, or a file beside it, does."""
        return [
            *(f"{row.link} {row.label} {_local_file(self.path, row.link)}" for row in self.wanted),
            *map(str, self.problems),
        ]


# --- Reading ------------------------------------------------------------------------------------


def read_list(path: Path, bucket: str | None = None, key: str = "{key}") -> List:
    """The rows of a list, their links completed by `key` and `bucket`; see the top of this file.

    Raises DataError where it is no list of links and labels.
    """
    if "{key}" not in key and "{stem}" not in key:
        raise ValueError("key must hold {key} or {stem}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"“{path.name}” is not UTF-8 text: save it in that encoding.") from error
    table = path.suffix.lower() in (".csv", ".tsv")
    rows = _csv_rows(text, path.name) if table else _json_rows(text, path.name)
    if not rows:
        raise DataError(f"“{path.name}” lists no picture: add lines with a link and a label.")
    wanted, problems, first_of = [], [], {}
    for row in rows:
        row = row._replace(link=_complete(row.link, bucket, key))
        problem = _row_problem(row, path)
        # Only a row that can be used keeps a later one from being so.
        if not problem and (first := first_of.setdefault(row.link, row)) is not row:
            problem = f"listed before, in line {first.line}, as “{first.label}”"
        if problem:
            problems.append(Problem(row.line, _printable(row.link), _printable(row.label), problem))
        else:
            wanted.append(row)
    if 2 * len(problems) > len(rows):
        raise DataError(
            f"{len(problems):,} of the {len(rows):,} lines of “{path.name}” cannot be used. The "
            f"first is line {problems[0].line}, {problems[0].link or 'no link'}: "
            f"{problems[0].problem}."
        )
    return List(path, wanted, problems)


def _csv_rows(text, name):
    header = text.lstrip().split("\n", 1)[0]
    reader = csv.reader(io.StringIO(text), delimiter=max(",;\t", key=header.count), strict=True)
    try:
        lines = [(reader.line_num, cells) for cells in reader if any(map(str.strip, cells))]
    except csv.Error as error:
        raise DataError(f"“{name}” is not a CSV file: {error}, line {reader.line_num}.") from error
    if not lines:
        return []
    columns = lines[0][1]
    link, label = _columns(columns, name)
    return [
        # A line that is too short lacks its last cells.
        Row(number, *([*cells, *[""] * len(columns)][at].strip() for at in (link, label)))
        for number, cells in lines[1:]
    ]


def _columns(names, list_name):
    """Places of the link and of the label among the column names."""
    known = [str(name).strip().lower().replace(" ", "_") for name in names]
    found = []
    for what, candidates in (("link", LINK_COLUMNS), ("label", LABEL_COLUMNS)):
        place = next((known.index(name) for name in candidates if name in known), None)
        if place is None:
            raise DataError(
                f"“{list_name}” has no column for the {what} among {', '.join(map(str, names))}: "
                f"name it {', '.join(candidates[:-1])} or {candidates[-1]}."
            )
        found.append(place)
    return found


def _json_rows(text, name):
    content = _parse_json(text, name)
    if isinstance(content, dict) and all(isinstance(value, list) for value in content.values()):
        pairs = [(link, label) for label, links in content.items() for link in links]
        return _numbered(pairs)
    # One object is what JSON lines with a single line look like.
    content = [content] if isinstance(content, dict) else content
    if isinstance(content, list) and all(isinstance(item, dict) for item in content):
        names = list(dict.fromkeys(name for item in content for name in item))
        places = [names[at] for at in _columns(names, name)] if names else []
        return _numbered([item.get(place, "") for place in places] for item in content)
    raise DataError(
        f"“{name}” is neither a JSON list of objects with a link and a label nor an object of "
        "label → list of links."
    )


def _numbered(pairs):
    return [
        Row(place, *("" if value is None else str(value).strip() for value in pair))
        for place, pair in enumerate(pairs, 1)
    ]


def _parse_json(text, name):
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        return [json.loads(line) for line in text.split("\n") if line.strip()]
    except ValueError as error:
        raise DataError(f"“{name}” is neither JSON nor JSON lines: {error}.") from error


def _complete(link, bucket, key):
    if not link or re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", link):
        return link
    link = key.replace("{stem}", PurePosixPath(link).stem).replace("{key}", link)
    return f"s3://{bucket}/{link}" if bucket else link


def _printable(text):
    """The text with its lone surrogates, which JSON can hold and no file or message, as \\udXXX."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _row_problem(row, list_path):
    """Why a row cannot be used, or ""."""
    for what, text in (("link", row.link), ("label", row.label)):
        if _printable(text) != text:
            return f"the {what} holds a lone surrogate, which is half of a character"
    return _label_problem(row.label) or _link_problem(row.link, list_path)


def _label_problem(label):
    if not label:
        return "no label"
    if re.search(r"[/\\\x00-\x1f]", label) or label.startswith(".") or len(label.encode()) > 100:
        return "the label cannot be the name of a folder"
    return ""


def _link_problem(link, list_path):
    if not link:
        return "no link"
    if "://" not in link:
        return _file_problem(link, list_path)
    try:
        scheme, host, path, *_ = urlsplit(link)
    except ValueError:
        return "not a link"
    if scheme not in ("http", "https", "s3"):
        return "not an http, https or s3 link"
    if not host or (scheme == "s3" and not path.strip("/")):
        return "not a link"
    return ""


def _file_problem(link, list_path):
    folder = list_path.parent.resolve()
    # The list may come from elsewhere, so it names nothing but what lies beside it.
    try:
        path = (folder / link).resolve()
    except (OSError, ValueError):
        return "not a link"
    if not path.is_relative_to(folder):
        return "lies outside the folder of the list"
    return "" if path.is_file() else "no such file beside the list"


def _local_file(list_path, link):
    return "" if "://" in link else bytes_and_time(list_path.parent / link)


# --- Fetching -----------------------------------------------------------------------------------


class _Refused(Exception):
    """Trying again would not help."""


class _Transient(Exception):
    """Trying again may help, after so many seconds where the server says so."""

    def __init__(self, message, wait=0.0):
        super().__init__(message)
        self.wait = wait


def fetch(listed: List, folder: Path, s3=None) -> Source:
    """Source of a list's pictures: what is not yet in `folder` is fetched into it, in threads.

    s3: a boto3 client, needed where the list holds S3 keys. Pictures that cannot be had are among
    the Source's problems. Raises DataError where that is true of more than half.
    """
    if s3 is None and any(row.link.startswith("s3://") for row in listed.wanted):
        raise DataError(
            f'“{listed.path.name}” names S3 objects: hand in a client, s3=boto3.client("s3"); '
            "for a public bucket config=Config(signature_version=UNSIGNED) needs no account."
        )
    paths = [_place(listed.path, row.link, folder) for row in listed.wanted]
    missing = {i: path for i, path in enumerate(paths) if not path.is_file()}
    failed = _fetch_all(listed, missing, folder, s3) if missing else {}
    kept = [i for i in range(len(paths)) if i not in failed]
    rows = [listed.wanted[i] for i in kept]
    class_names = tuple(sorted({row.label for row in listed.wanted}))
    if len(class_names) < 2:
        raise DataError(
            f"“{listed.path.name}” needs two or more labels and has {len(class_names)} that can "
            "be used."
        )
    return Source(
        name=listed.path.stem,
        source="a list of that name",
        class_names=class_names,
        labels=[row.label for row in rows],
        file_names=[_file_name(row.link) for row in rows],
        payloads=[paths[i] for i in kept],
        origins=[(row.line, row.link) for row in rows],
        problems=(
            *listed.problems,
            *(Problem(*listed.wanted[i], problem) for i, problem in failed.items()),
        ),
    )


def _digest(link):
    return hashlib.sha256(link.encode()).hexdigest()[:32]


def _place(list_path, link, folder):
    return folder / _digest(link) if "://" in link else list_path.parent / link


def _file_name(link):
    """File name that tells the link's own and is of one link only."""
    path = PurePosixPath(unquote(urlsplit(link).path if "://" in link else link))
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip(".-")[:60]
    suffix = path.suffix.lower() if re.fullmatch(r"\.[a-z]{3,4}", path.suffix.lower()) else ""
    return f"{stem or 'picture'}-{_digest(link)[:12]}{suffix}"


def _fetch_all(listed, missing, folder, s3):
    """Dict of place in the list → why it could not be had."""
    folder.mkdir(parents=True, exist_ok=True)
    remove_left_over(folder)
    print(f"{listed.path.name}: fetching {len(missing):,} pictures …", end=" ", flush=True)
    start, failed = time.monotonic(), {}
    with _Fetcher(s3) as fetcher, ThreadPoolExecutor(WORKERS) as pool:
        jobs = {pool.submit(fetcher.fetch, listed.wanted[i].link, missing[i]): i for i in missing}
        try:
            for done, job in enumerate(as_completed(jobs), 1):
                if problem := job.result():
                    failed[jobs[job]] = problem
                _stop_where_hopeless(listed, failed, done)
                if done * 10 // len(jobs) > (done - 1) * 10 // len(jobs):
                    print(f"{done * 100 // len(jobs)} %", end=" ", flush=True)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    print(f"done in {time.monotonic() - start:.0f} s.")
    return dict(sorted(failed.items()))


def _stop_where_hopeless(listed, failed, done):
    if 2 * len(failed) > len(listed.wanted) or len(failed) == done == HOPELESS:
        place, problem = next(iter(failed.items()))
        raise DataError(
            f"{len(failed):,} of the first {done:,} links of “{listed.path.name}” could not be "
            f"fetched. The first is {listed.wanted[place].link}: {problem}. What was fetched is "
            "kept for the next call."
        )


class _Fetcher:
    """Fetches links to files; safe to share between threads."""

    def __init__(self, s3):
        self.s3 = s3
        self.http = urllib3.PoolManager(
            maxsize=WORKERS,
            timeout=urllib3.Timeout(connect=CONNECT_SECONDS, read=READ_SECONDS),
            # Redirects only: every other fault is tried again here, the cut-off bodies too.
            retries=urllib3.Retry(
                total=None,
                connect=0,
                read=0,
                redirect=5,
                status=0,
                other=0,
                respect_retry_after_header=False,
            ),
        )

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.http.clear()

    def fetch(self, link: str, to: Path) -> str:
        """Fetch a picture; return why that failed, or "". `to` exists only when it is whole."""
        problem = ""
        for attempt in range(TRIES):
            try:
                self._fetch_once(link, to)
                return ""
            except _Refused as error:
                return str(error)
            except _Transient as error:
                problem, wait = str(error), error.wait
            except (urllib3.exceptions.HTTPError, HTTPClientError, IncompleteReadError) as error:
                problem, wait = _in_short(error), 0.0
            if attempt + 1 < TRIES:
                time.sleep(min(max(wait, BACKOFF * 2**attempt), LONGEST_WAIT))
        return f"{problem}, {TRIES} times"

    def _fetch_once(self, link, to):
        content = bytearray()
        deadline = time.monotonic() + SECONDS_A_PICTURE
        for chunk in self._s3_chunks(link) if link.startswith("s3:") else self._http_chunks(link):
            content += chunk
            if len(content) > MAX_BYTES:
                raise _Refused(f"more than {MAX_BYTES / 1e6:.0f} MB")
            if time.monotonic() > deadline:
                raise _Refused(f"took longer than {SECONDS_A_PICTURE} s")
        _check_whole(bytes(content))
        aside = beside(to)
        aside.write_bytes(content)
        os.replace(aside, to)

    def _http_chunks(self, link) -> Iterator[bytes]:
        response = self.http.request("GET", link, preload_content=False)
        try:
            if response.status in TRANSIENT_STATUS:
                wait = response.headers.get("Retry-After", "")
                seconds = float(wait) if wait.isdigit() else 0.0
                raise _Transient(f"the server answers {response.status}", seconds)
            if response.status != 200:
                raise _Refused(f"the server answers {response.status}")
            # read1 hands over what is there, so that the deadline holds for a trickle too.
            while chunk := response.read1(65536, decode_content=False):
                yield chunk
        finally:
            response.close()

    def _s3_chunks(self, link) -> Iterator[bytes]:
        bucket, key = link.removeprefix("s3://").split("/", 1)
        try:
            # botocore tries again by itself as far as the answer's header.
            body = self.s3.get_object(Bucket=bucket, Key=key)["Body"]
        except (ClientError, BotoCoreError) as error:
            raise _Refused(str(error)) from error
        yield from body.iter_chunks(65536)


def _check_whole(content):
    """_Refused where it is no picture, so that nobody takes a portal's page for one."""
    from vision.errors import PictureError
    from vision.preprocessing import decode

    try:
        # Small: whether it is too large for training is asked later, when it is scaled down.
        decode(open_for_training(content, 64)[1], 64, 1)
    except PictureError as error:
        raise _Refused(str(error)) from error


def _in_short(error):
    """What a network error is about, without the objects that its text names."""
    reason = getattr(error, "reason", None) or error
    return {
        "NameResolutionError": "the server's name is not known",
        "NewConnectionError": "the server is not reached",
        "ConnectTimeoutError": "the server is not reached in time",
        "ReadTimeoutError": "the server is silent",
        "ProtocolError": "the answer is cut off",
        "IncompleteRead": "the answer is cut off",
        "IncompleteReadError": "the answer is cut off",
        "ResponseError": "too many redirects",
        "LocationParseError": "the link leads nowhere",
        "LocationValueError": "the link leads nowhere",
        "URLSchemeUnknown": "the link leads nowhere",
    }.get(type(reason).__name__, type(reason).__name__)
