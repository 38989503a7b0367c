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

TIME = "$time"  # Marks a datetime in the JSON of a record.
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
            self.objects.mkdir(mode=0o700, parents=True, exist_ok=True)
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
        """All changes inside it reach the disk together, or none does."""
        with self._lock:
            self._connection.execute("BEGIN")
            try:
                yield
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

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
    return json.dumps(value, default=encode_time, separators=(",", ":"))


def encode_time(value):
    if isinstance(value, datetime.datetime):
        return {TIME: value.isoformat()}
    raise TypeError(f"{type(value).__name__} cannot be kept.")


def from_json(text):
    """The record that `to_json` wrote."""
    return json.loads(text, object_hook=decode_time)


def decode_time(value):
    if set(value) == {TIME}:
        return datetime.datetime.fromisoformat(value[TIME])
    return value
