"""What survives a restart: one SQLite file, and the S3 objects beside it.

SQLite in write-ahead mode keeps what was committed when the process is killed at any moment, and a
commit costs some 50 microseconds. JSON rather than pickle, so that a state folder of doubtful
origin can do no more than be refused.
"""

import contextlib
import datetime
import json
import os
import sqlite3
import threading
import uuid
from pathlib import Path

from local_cloud.errors import CloudError

TIME = "$time"  # Marks a datetime in the JSON of a record, or a list of one that is none.
SCHEMA = """
CREATE TABLE IF NOT EXISTS records (
    kind TEXT, name TEXT, number INTEGER, body TEXT, PRIMARY KEY (kind, name));
CREATE TABLE IF NOT EXISTS tags (arn TEXT, key TEXT, value TEXT, PRIMARY KEY (arn, key));
CREATE TABLE IF NOT EXISTS buckets (name TEXT PRIMARY KEY, region TEXT, created TEXT);
CREATE TABLE IF NOT EXISTS objects (
    bucket TEXT, key TEXT, file TEXT, body TEXT, PRIMARY KEY (bucket, key));
CREATE TABLE IF NOT EXISTS requests (
    number INTEGER PRIMARY KEY AUTOINCREMENT, subject TEXT, body TEXT);
CREATE TABLE IF NOT EXISTS log_streams (region TEXT, log_group TEXT, stream TEXT,
    PRIMARY KEY (region, log_group, stream));
CREATE TABLE IF NOT EXISTS log_events (
    number INTEGER PRIMARY KEY, region TEXT, log_group TEXT, stream TEXT,
    time INTEGER, message TEXT);
CREATE INDEX IF NOT EXISTS events_of ON log_events (region, log_group, stream);
"""


class Disk:
    """The durable state of one local cloud; all methods are safe to call from any thread.

    Args:
        folder: where the state is kept; made where it is missing.

    Raises:
        CloudError: the folder cannot be written, or its files are not such a state.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        self.objects = self.folder / "objects"
        self._lock = threading.RLock()
        path = self.folder / "cloud.sqlite"
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.folder.chmod(0o700)  # Also one that an earlier version has made.
            self.objects.mkdir(exist_ok=True)
            self._connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=NORMAL")
            self._connection.executescript(SCHEMA)
        except OSError as error:
            raise CloudError(f"{self.folder} cannot be written ({error.strerror}).") from error
        except sqlite3.Error as error:
            raise CloudError(
                f"{path} cannot be used ({error}); free some space or, where it is damaged, "
                "`python -m local_cloud reset` begins anew."
            ) from error

    def query(self, sql, *values):
        """All rows of a SELECT."""
        with self._lock:
            return self._connection.execute(sql, values).fetchall()

    def execute(self, sql, *values):
        """One change; it is on the disk when this returns."""
        with self._lock:
            self._connection.execute(sql, values)

    def execute_many(self, sql, rows):
        """The same change for many rows, all or none."""
        with self.transaction():
            self._connection.executemany(sql, rows)

    @contextlib.contextmanager
    def transaction(self):
        """All changes inside it, and inside those within it, reach the disk together, or none."""
        with self._lock:
            if self._connection.in_transaction:
                yield
                return
            self._connection.execute("BEGIN")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:  # SQLite has not given it up by itself.
                    self._connection.execute("ROLLBACK")
                raise

    def write_file(self, content):
        """Keep bytes under a new name in `objects`, never half-written under it; the path."""
        path = self.objects / uuid.uuid4().hex
        draft = path.with_suffix(".draft")
        try:
            draft.write_bytes(content)
        except OSError:
            draft.unlink(missing_ok=True)
            raise
        os.replace(draft, path)
        return path

    def close(self):
        with self._lock:
            self._connection.close()


def to_json(value):
    """The JSON text of a record: strings, numbers, lists, dictionaries and datetimes."""
    return json.dumps(encoded(value), separators=(",", ":"))


def encoded(value):
    """`value` with its datetimes as `{TIME: text}`, and `{TIME: x}` of its own as `{TIME: [x]}`."""
    if isinstance(value, datetime.datetime):
        return {TIME: value.isoformat()}
    if isinstance(value, dict):
        inner = {key: encoded(item) for key, item in value.items()}
        return {TIME: [inner[TIME]]} if set(inner) == {TIME} else inner
    if isinstance(value, (list, tuple)):
        return [encoded(item) for item in value]
    return value


def from_json(text):
    """The record that `to_json` wrote."""
    return json.loads(text, object_hook=decoded)


def decoded(value):
    if set(value) != {TIME}:
        return value
    if isinstance(value[TIME], list):
        return {TIME: value[TIME][0]}
    try:
        return datetime.datetime.fromisoformat(value[TIME])
    except ValueError:  # No time, written before such dictionaries were told apart.
        return value
