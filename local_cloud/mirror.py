"""Keeps what moto holds in memory on the disk, and brings it back: S3, IAM and CloudWatch Logs.

moto has no storage of its own. After each request that it carried out, what the request changed is
written down: an S3 object as a file, log lines as rows, and settings (IAM, bucket configurations)
as the requests themselves, which the next start sends again. Versions of an object other than the
latest and unfinished multipart uploads are not kept.
"""

import base64
import datetime
import io
import json
import logging
import sqlite3
import threading
import weakref
from pathlib import Path

from moto.core.model_instances import model_data
from moto.core.utils import utcnow
from moto.logs.models import LogEvent, logs_backends
from moto.s3.models import FakeDeleteMarker, FakeKey, s3_backends
from moto.utilities.utils import get_partition
from werkzeug import Response
from werkzeug.test import EnvironBuilder

from local_cloud import ACCOUNT_ID
from local_cloud.disk import from_json, to_json
from local_cloud.errors import ServiceError
from local_cloud.presigned import PARAMETERS

READS = ("Get", "List", "Simulate")  # How IAM's actions begin that change nothing.
KEPT_FIELDS = ("checksum_value", "checksum_algorithm", "checksum_type", "_storage_class")
FILE_OF_OBJECT = "SELECT file FROM objects WHERE bucket = ? AND key = ?"
DELETE_OBJECT = "DELETE FROM objects WHERE bucket = ? AND key = ?"
EVENTS_OF_STREAM = (
    "SELECT time, message FROM log_events "
    "WHERE region = ? AND log_group = ? AND stream = ? ORDER BY number"
)
# Without a stream, all streams of the group.
DELETE_LOGS = (
    "DELETE FROM log_streams WHERE region = ?1 AND log_group = ?2 AND ?3 IN ('', stream)",
    "DELETE FROM log_events WHERE region = ?1 AND log_group = ?2 AND ?3 IN ('', stream)",
)
log = logging.getLogger(__name__)


class StoredKey(FakeKey):
    """moto's S3 object with its bytes in a file instead of in memory."""

    @classmethod
    def of(cls, key, file, size):
        """The same object as `key`, its `size` bytes being in `file`."""
        stored = cls.__new__(cls)
        stored.__dict__.update(key.__dict__)
        stored._value_buffer = io.BytesIO()
        stored.multipart = None  # Whose parts would stay in memory.
        stored.file = Path(file)
        stored.contentsize = size
        return stored

    @property
    def value(self):
        return self.file.read_bytes()

    def retire(self):
        """Remove the file as soon as nobody reads this object any more."""
        weakref.finalize(self, self.file.unlink, missing_ok=True).atexit = False


class Mirror:
    """Writes down what requests change in moto, and restores it.

    Args:
        disk: the `Disk` to write to.
        moto: moto's WSGI application.
        region: whose partition the buckets belong to.
    """

    def __init__(self, disk, moto, region):
        self._disk, self._moto = disk, moto
        self._s3 = s3_backends[ACCOUNT_ID][get_partition(region)]
        self._lock = threading.RLock()
        self._living = weakref.WeakValueDictionary()  # Objects that somebody may be reading.

    def record(self, caller, request, body):
        """Write down what a request has changed that moto carried out.

        Args:
            caller: the `signature.Caller`.
            request: the werkzeug request.
            body: its payload as bytes.

        Raises:
            ServiceError: the disk is full, or cannot be written for another reason.
        """
        if caller.service == "s3" and request.method in ("GET", "HEAD"):
            return
        try:
            with self._lock:
                if caller.service == "s3":
                    self._record_s3(request, body)
                elif caller.service == "iam":
                    self._record_iam(request, body)
                elif caller.service == "logs":
                    self._record_logs(request, body, caller.region)
            forget_instances()
        except (OSError, sqlite3.Error) as error:
            raise ServiceError(
                "InternalError", f"local_cloud cannot write to {self._disk.folder}: {error}", 500
            ) from error

    def restore(self):
        """Bring everything back; called once, before the first request."""
        for name, region, created in self._disk.query("SELECT * FROM buckets"):
            bucket = self._s3.create_bucket(name, region)
            bucket.creation_date = datetime.datetime.fromisoformat(created)
        for (text,) in self._disk.query("SELECT body FROM requests ORDER BY number"):
            self._send_again(json.loads(text))
        self._restore_objects()
        self._restore_logs()

    def _record_s3(self, request, body):
        name, _, key = request.path[1:].partition("/")
        # The signature of a presigned address is no part of what it asks for.
        query = {name for name in request.args if name not in PARAMETERS}
        if key:
            # A part of an upload becomes visible, and is kept, when the upload is completed.
            if not query & {"partNumber", "uploads"}:
                self._keep_object(name, key)
        elif request.method == "POST":
            self._keep_bucket(name)
        elif query:
            self._journal(f"s3 {name} {sorted(query)[0]}", request, body, replace=True)
        elif request.method == "PUT":
            self._keep_name(self._s3.buckets[name])
        else:
            self._forget_bucket(name)

    def _forget_bucket(self, name):
        """Delete what is kept of a bucket, also objects whose end a full disk did not take."""
        rows = self._disk.query("SELECT file FROM objects WHERE bucket = ?", name)
        subject = f"s3 {name} "
        with self._disk.transaction():
            self._disk.execute("DELETE FROM objects WHERE bucket = ?", name)
            self._disk.execute(
                "DELETE FROM requests WHERE substr(subject, 1, ?) = ?", len(subject), subject
            )
            self._disk.execute("DELETE FROM buckets WHERE name = ?", name)
        self._retire(rows, None)

    def _keep_name(self, bucket):
        row = (bucket.name, bucket.region_name, bucket.creation_date.isoformat())
        self._disk.execute("INSERT OR IGNORE INTO buckets VALUES (?, ?, ?)", *row)

    def _keep_bucket(self, name):
        """Bring all objects of a bucket up to date, after a request that named several."""
        kept = {k for (k,) in self._disk.query("SELECT key FROM objects WHERE bucket = ?", name)}
        for key in kept | set(self._s3.buckets[name].keys):
            found = self._s3.buckets[name].keys.get(key)
            if key not in kept or not isinstance(found, StoredKey):
                self._keep_object(name, key)

    def _keep_object(self, name, key):
        """Bring one object's file and row up to date with what moto holds."""
        rows = self._disk.query(FILE_OF_OBJECT, name, key)
        bucket = self._s3.buckets.get(name)
        found = bucket.keys.get(key) if bucket else None
        if found is None or isinstance(found, FakeDeleteMarker):
            self._disk.execute(DELETE_OBJECT, name, key)
            self._retire(rows, None)
            return
        if not isinstance(found, StoredKey):
            content = found.value
            found = StoredKey.of(hashed(found), self._disk.write_file(content), len(content))
            # Not by `setlist`, which closes the replaced object under those who read it.
            bucket.keys.getlist(key)[-1] = found
        self._keep_name(bucket)  # A full disk may have refused it when the bucket was made.
        self._disk.execute(
            "INSERT OR REPLACE INTO objects VALUES (?, ?, ?, ?)",
            *(name, key, found.file.name, to_json(self._description(found))),
        )
        self._retire(rows, found.file.name)
        self._living[found.file.name] = found

    def _retire(self, rows, kept):
        """Remove the files of `rows`, except the one named `kept`, when their readers are done."""
        for (name,) in rows:
            if name == kept:
                continue
            living = self._living.pop(name, None)
            if living is not None:
                living.retire()
            else:
                (self._disk.objects / name).unlink(missing_ok=True)

    def _description(self, key):
        """What a restored object needs besides its bytes."""
        return {
            "etag": key.etag.strip('"'),
            "modified": key.last_modified.isoformat(),
            "metadata": dict(key.metadata),
            "tags": self._s3.tagger.get_tag_dict_for_resource(key.arn),
            "fields": {field: getattr(key, field) for field in KEPT_FIELDS},
        }

    def _restore_objects(self):
        known = set()
        for bucket, name, file, body in self._disk.query("SELECT * FROM objects"):
            path = self._disk.objects / file
            missing = "bucket" if bucket not in self._s3.buckets else "file"
            if missing == "file" and path.is_file():
                known.add(path)
                self._restore_object(bucket, name, path, from_json(body))
                continue
            log.error("the %s of s3://%s/%s is missing; the object is lost", missing, bucket, name)
            self._disk.execute(DELETE_OBJECT, bucket, name)
        for path in set(self._disk.objects.iterdir()) - known:
            path.unlink()  # Of a write that was killed, or of an object that was replaced.

    def _restore_object(self, bucket_name, name, path, described):
        bucket = self._s3.buckets[bucket_name]
        key = FakeKey(
            name,
            b"",
            ACCOUNT_ID,
            bucket.region_name,
            etag=described["etag"],
            is_versioned=bucket.is_versioned,
            version_id="null",
            bucket_name=bucket_name,
        )
        stored = StoredKey.of(key, path, path.stat().st_size)
        key.dispose()
        stored.last_modified = datetime.datetime.fromisoformat(described["modified"])
        stored.set_metadata(described["metadata"], replace=True)
        for field, value in described["fields"].items():
            setattr(stored, field, value)
        bucket.keys.setlist(name, [stored])
        if described["tags"]:
            self._s3.put_object_tagging(stored, described["tags"])
        self._living[path.name] = stored

    def _record_iam(self, request, body):
        action = form_of(request, body).get("Action", "")
        if not action.startswith(READS):
            self._journal("iam", request, body)

    def _journal(self, subject, request, body, replace=False):
        """Keep a request, to be sent again at the next start."""
        described = {
            "method": request.method,
            "path": request.path,
            "query": request.query_string.decode(),
            "type": request.headers.get("Content-Type", ""),
            "service": subject.partition(" ")[0],
            "body": base64.b64encode(body).decode(),
        }
        with self._disk.transaction():
            if replace:
                self._disk.execute("DELETE FROM requests WHERE subject = ?", subject)
            self._disk.execute(
                "INSERT INTO requests (subject, body) VALUES (?, ?)", subject, json.dumps(described)
            )

    def _send_again(self, described):
        credential = f"x/20260101/us-east-1/{described['service']}/aws4_request"
        builder = EnvironBuilder(
            path=described["path"],
            method=described["method"],
            query_string=described["query"],
            base_url="http://127.0.0.1",
            content_type=described["type"],
            data=base64.b64decode(described["body"]),
            headers={"Authorization": f"AWS4-HMAC-SHA256 Credential={credential}"},
        )
        answer = Response.from_app(self._moto, builder.get_environ())
        if answer.status_code >= 300:
            log.error("%s %s cannot be restored", described["service"], described["path"])

    def _record_logs(self, request, body, region):
        action = request.headers.get("X-Amz-Target", "").partition(".")[2]
        if action not in ("CreateLogStream", "PutLogEvents", "DeleteLogStream", "DeleteLogGroup"):
            return
        asked = json.loads(body)
        group, stream = asked["logGroupName"], asked.get("logStreamName")
        if action == "CreateLogStream":
            self._disk.execute("INSERT INTO log_streams VALUES (?, ?, ?)", region, group, stream)
        elif action == "PutLogEvents":
            self._disk.execute_many(
                "INSERT INTO log_events (region, log_group, stream, time, message) "
                "VALUES (?, ?, ?, ?, ?)",
                [(region, group, stream, e["timestamp"], e["message"]) for e in asked["logEvents"]],
            )
        else:
            only = stream if action == "DeleteLogStream" else ""
            with self._disk.transaction():
                for statement in DELETE_LOGS:
                    self._disk.execute(statement, region, group, only)

    def _restore_logs(self):
        for region, group, name in self._disk.query("SELECT * FROM log_streams"):
            backend = logs_backends[ACCOUNT_ID][region]
            if group not in backend.groups:
                backend.create_log_group(group, {})
            backend.create_log_stream(group, name)
            stream = backend.groups[group].streams[name]
            stream.last_ingestion_time = utcnow()
            rows = self._disk.query(EVENTS_OF_STREAM, region, group, name)
            # Not by PutLogEvents, which refuses what is older than two weeks.
            stream.events = [LogEvent(t, {"timestamp": t, "message": m}) for t, m in rows]
            stream.stored_bytes = sum(len(message) for _, message in rows)


def forget_instances():
    """Empty moto's lists of everything it ever made, which keep replaced objects in memory."""
    for models in model_data.values():
        for model in models.values():
            model.instances_tracked.clear()


def hashed(key):
    """The same object, with its hash computed while its bytes are in memory."""
    key.etag  # noqa: B018
    return key


def form_of(request, body):
    """The form fields of a request whose body has been read already."""
    return type(request)({**request.environ, "wsgi.input": io.BytesIO(body)}).form
