"""What the jobs need of S3 and CloudWatch Logs."""

import contextlib
import logging
import re
import tarfile
import threading
import time
import zlib
from pathlib import Path

import boto3
from boto3.exceptions import S3UploadFailedError
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from local_cloud import ACCOUNT_ID
from local_cloud.errors import JobFailed

log = logging.getLogger(__name__)
MAX_EVENT = 60_000  # Characters of one log line; CloudWatch Logs takes 256 KiB an event.
MAX_BATCH = 5_000  # Events of one PutLogEvents call; CloudWatch Logs takes 10,000.
FLUSH_SECONDS = 0.3
# With the bucket in the host's name, or without: Amazon S3 User Guide, "Virtual hosting of general
# purpose buckets". Requests may name objects so; nothing is fetched from there.
S3_HOST = re.compile(r"(?:(?P<bucket>.+)\.)?s3(?:[.-][a-z0-9-]+)?\.amazonaws\.com")
MAX_UNPACKED = 50 << 30  # Bytes an archive may unpack to.


class LocalAws:
    """Clients of this instance's own S3 and Logs."""

    def __init__(self, instance):
        self.instance = instance
        self.ending = threading.Event()  # Set when the server ends: nothing is started again.
        self._session = boto3.session.Session(
            aws_access_key_id=instance.access_key,
            aws_secret_access_key=instance.secret_key,
            region_name=instance.region,
        )
        self._lock = threading.Lock()  # Making clients is not safe from several threads.
        self._clients = {}
        self.s3 = self.client("s3", instance.region)

    def client(self, service, region):
        """The client of one service and region; all callers share it and its connections."""
        with self._lock:
            if (service, region) not in self._clients:
                config = Config(retries={"max_attempts": 2}, max_pool_connections=32, proxies={})
                client = self._session.client(
                    service, region_name=region, endpoint_url=self.instance.url, config=config
                )
                # A client makes its exception classes when they are first asked for; two threads
                # that ask at once would get different ones, of which one is never raised.
                _ = client.exceptions
                self._clients[service, region] = client
            return self._clients[service, region]

    def keys_below(self, uri):
        """The keys of all objects whose addresses begin with `uri`, in their order.

        Raises:
            JobFailed: there is no such bucket.
        """
        bucket, prefix = split_uri(uri)
        pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        try:
            keys = [entry["Key"] for page in pages for entry in page.get("Contents", [])]
        except ClientError as error:
            raise JobFailed(f"ClientError: Data download failed: {uri}: {error}") from error
        return [key for key in keys if not key.endswith("/")]

    def keys(self, uri):
        """The key of the object `uri`, or the keys of all objects under that prefix.

        Raises:
            JobFailed: nothing is there.
        """
        keys = self.keys_below(uri)
        if not keys:
            raise JobFailed(
                f"ClientError: Data download failed: No S3 objects found under S3 URL {uri!r}."
            )
        _, prefix = split_uri(uri)
        # One object, not those whose longer names begin alike.
        return [prefix] if prefix in keys else keys

    def download(self, uri, folder):
        """Copy the object `uri`, or all objects under that prefix, into `folder`.

        Raises:
            JobFailed: nothing is there, or a key would leave the folder.
        """
        bucket, prefix = split_uri(uri)
        self.download_keys(bucket, prefix, self.keys(uri), folder)

    def download_object(self, uri, folder):
        """Copy the one object whose address is exactly `uri` into `folder`; the file's path.

        Raises:
            JobFailed: there is no such object.
        """
        bucket, key = split_uri(uri)
        if key not in self.keys_below(uri):
            raise JobFailed(
                f"ClientError: Data download failed: No S3 object found at S3 URL {uri!r}."
            )
        self.download_keys(bucket, key, [key], folder)
        return Path(folder) / key.rpartition("/")[2]

    def download_archive(self, uri, folder, scratch):
        """Unpack the `.tar.gz` at exactly `uri` into `folder`; it is kept in `scratch` meanwhile.

        Raises:
            JobFailed: there is no such object, or it is broken or unsafe.
        """
        archive = self.download_object(uri, scratch)
        unpack(archive, folder)
        archive.unlink()

    def download_keys(self, bucket, prefix, keys, folder):
        """Copy objects into `folder`, under their keys without `prefix`.

        Raises:
            JobFailed: an object is not there, or its key would leave the folder.
        """
        folder = Path(folder).resolve()
        for key in keys:
            relative = key[len(prefix) :].lstrip("/") or key.rpartition("/")[2]
            target = (folder / relative).resolve()
            if not target.is_relative_to(folder):
                raise JobFailed(f"ClientError: the key {key!r} leads out of the job's folder.")
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                self._download_object(bucket, key, target)
            except OSError as error:  # A key "a" beside "a/b", or one too long for a file's name.
                raise JobFailed(f"ClientError: Data download failed: {key!r}: {error}") from error

    def _download_object(self, bucket, key, target):
        """Write one object to the path `target`, straight from moto, without a request.

        A request to this very process takes about 10 ms, so a channel of some thousand pictures
        would take a minute.
        """
        # Imported here, because `status` uses this module and should not wait for moto.
        from moto.s3.models import s3_backends
        from moto.utilities.utils import get_partition

        backend = s3_backends[ACCOUNT_ID][get_partition(self.instance.region)]
        found = backend.get_object(bucket, key)
        if found is None:
            raise JobFailed(f"ClientError: Data download failed: {key!r} was deleted meanwhile.")
        target.write_bytes(found.value)

    def upload_folder(self, folder, uri):
        """Copy every file below `folder` to the prefix `uri`."""
        bucket, prefix = split_uri(uri)
        folder = Path(folder)
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            key = "/".join([prefix.rstrip("/"), path.relative_to(folder).as_posix()])
            self.upload_file(path, bucket, key.lstrip("/"))

    def upload_archive(self, folder, uri, scratch):
        """Copy `folder` to the object `uri` as a `.tar.gz`, made at the path `scratch`."""
        pack(folder, scratch)
        self.upload_file(scratch, *split_uri(uri))

    def upload_file(self, path, bucket, key):
        """Copy one file to an object; JobFailed where S3 refuses it."""
        try:
            self.s3.upload_file(str(path), bucket, key)
        except S3UploadFailedError as error:
            raise JobFailed(f"ClientError: Data upload failed: {error}") from error


def split_uri(uri):
    """Bucket and key of an `s3://` address, or of S3's own `https://` one; JobFailed for others."""
    # Not urlsplit: a key may contain "?" and "#".
    scheme, _, rest = uri.partition("://")
    bucket, _, key = rest.partition("/")
    host = S3_HOST.fullmatch(bucket) if scheme == "https" else None
    if host:
        bucket, key = (host["bucket"], key) if host["bucket"] else key.partition("/")[::2]
    if (scheme != "s3" and not host) or not bucket:
        raise JobFailed(f"ClientError: {uri!r} is not an S3 address.")
    return bucket, key.lstrip("/")


def pack(folder, archive):
    """Write what is in `folder` to a `.tar.gz`."""
    with tarfile.open(archive, "w:gz", compresslevel=1) as tar:
        for path in sorted(Path(folder).iterdir()):
            tar.add(path, arcname=path.name)


def unpack(archive, folder):
    """Unpack a `.tar.gz` safely: no member outside `folder`, no devices, a bound on the size.

    Raises:
        JobFailed: the archive is broken or unsafe.
    """
    try:
        with tarfile.open(archive, "r:gz") as tar:
            if sum(member.size for member in tar) > MAX_UNPACKED:
                raise JobFailed(f"ClientError: {Path(archive).name} unpacks to too much.")
            tar.extractall(folder, filter="data")
    except (tarfile.TarError, zlib.error, OSError, EOFError) as error:
        raise JobFailed(f"ClientError: {Path(archive).name} cannot be unpacked: {error}") from error


class LogStream:
    """Collects the lines of one stream and sends them to CloudWatch Logs a few times a second."""

    def __init__(self, aws, region, group, stream):
        self._client = aws.client("logs", region)
        self._target = {"logGroupName": group, "logStreamName": stream}
        self._events, self._time = [], 0
        self._lock = threading.Lock()
        self._closed = threading.Event()
        exists = self._client.exceptions.ResourceAlreadyExistsException
        with contextlib.suppress(exists):
            self._client.create_log_group(logGroupName=group)
        with contextlib.suppress(exists):  # A host that starts again within the same second.
            self._client.create_log_stream(**self._target)
        self._thread = threading.Thread(target=self._send_until_closed, daemon=True)
        self._thread.start()

    def write(self, line):
        """Add one line; it is sent soon."""
        with self._lock:
            # CloudWatch Logs refuses a batch whose times go back, and empty messages.
            self._time = max(self._time, int(time.time() * 1000))
            self._events.append({"timestamp": self._time, "message": line[:MAX_EVENT] or " "})

    def close(self):
        """Send what is left."""
        self._closed.set()
        self._thread.join()

    def _send_until_closed(self):
        while not self._closed.wait(FLUSH_SECONDS):
            self._send()
        self._send()

    def _send(self):
        with self._lock:
            events, self._events = self._events, []
        for first in range(0, len(events), MAX_BATCH):
            batch = events[first : first + MAX_BATCH]
            try:
                self._client.put_log_events(**self._target, logEvents=batch)
            except (BotoCoreError, ClientError) as error:
                self._lose(batch, error)

    def _lose(self, events, error):
        """Go on without events that were refused: those to come may be taken again."""
        log.error("%d lines of %s are lost: %s", len(events), self._target, error)
