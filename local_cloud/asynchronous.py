"""Asynchronous inference: requests wait in a queue, their answers become objects in S3."""

import contextlib
import logging
import threading
import time
import uuid
from collections import deque
from dataclasses import dataclass

from botocore.exceptions import BotoCoreError, ClientError

from local_cloud.aws import split_uri
from local_cloud.errors import JobFailed, ServiceError
from local_cloud.serving import NotReady

CONCURRENCY = 4  # Requests that one instance works on where the configuration says nothing.
MAX_THREADS = 64  # Of one endpoint, whatever the configuration says.
TIMEOUT = 900  # Seconds that one answer may take unless the request says otherwise.
TIME_TO_LIVE = 21_600  # Seconds that a request may wait unless it says otherwise.
POLL = 0.1  # Seconds between two looks at whether an instance is ready again.
MAX_WORDS = 2048  # Characters of an error that is written to S3.
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AsyncRequest:
    """One accepted request.

    Attributes:
        source: an S3 address, or the payload itself as bytes.
        headers: what the container sees of the caller's headers.
        timeout: seconds that the answer may take.
        expires: `time.monotonic()` from which on it is too late to begin.
        output, failure: S3 addresses; `failure` may be None.
    """

    source: str | bytes
    headers: dict
    timeout: float
    expires: float
    output: str
    failure: str | None


def locations(config, extension, filename):
    """Where the answer to one request goes: (output, failure) as S3 addresses.

    Args:
        config: an `AsyncInferenceConfig`.
        extension, filename: what the request adds to the configured path, or None.
    """
    output = config["OutputConfig"]
    name = str(uuid.uuid4())
    middle = f"{extension.strip('/')}/" if extension else ""
    good = f"{output['S3OutputPath'].rstrip('/')}/{middle}{filename or f'{name}.out'}"
    if "S3FailurePath" not in output:
        return good, None
    return good, f"{output['S3FailurePath'].rstrip('/')}/{middle}{name}-error.out"


class AsyncQueue:
    """Works off the asynchronous requests of one endpoint, several at a time.

    Args:
        endpoint: named in the log.
        config: an `AsyncInferenceConfig`.
        instances: how many instances share the work.
    """

    def __init__(self, aws, endpoint, config, instances):
        self.aws, self.endpoint, self.config = aws, endpoint, config
        self._requests = deque()
        self._lock = threading.Lock()
        self._threads = 0
        self._cancelled = threading.Event()
        self.resize(instances)

    def resize(self, instances):
        """Work on as many requests at once as so many instances take."""
        each = self.config.get("ClientConfig", {}).get("MaxConcurrentInvocationsPerInstance")
        with self._lock:
            self._limit = min((each or CONCURRENCY) * instances, MAX_THREADS)
            for _ in self._requests:
                self._add_thread()

    def put(self, request, function):
        """Let `function(payload, request)` return the `Answer` to write, as soon as it can.

        Where it raises `NotReady`, the request waits and it is called again.
        """
        with self._lock:
            self._requests.append((request, function))
            self._add_thread()

    def cancel(self):
        """Forget what waits."""
        self._cancelled.set()
        with self._lock:
            self._requests.clear()

    def _add_thread(self):
        if self._threads < self._limit:
            self._threads += 1
            threading.Thread(target=self._work, daemon=True).start()

    def _work(self):
        """Carry out requests until none waits, or fewer are to be carried out at once."""
        while True:
            with self._lock:
                if not self._requests or self._threads > self._limit:
                    self._threads -= 1
                    return
                item = self._requests.popleft()
            self._carry_out(*item)

    def _carry_out(self, request, function):
        try:
            answer = self._answer(request, function)
        except Exception as error:  # The caller is gone; the failure's object is all there is.
            if not isinstance(error, (ServiceError, JobFailed)):
                log.exception("asynchronous request of %s", self.endpoint.name)
            self._write(request.failure, str(error)[:MAX_WORDS].encode(), "text/plain")
            return
        if answer is None:
            return
        if answer.status >= 300:
            self._write(request.failure, answer.body, answer.content_type)
        else:
            self._write(request.output, answer.body, answer.content_type)

    def _answer(self, request, function):
        """The answer, as soon as an instance is ready; None where the endpoint is deleted first."""
        check_expiry(request)
        payload = self._payload(request.source)
        while not self._cancelled.is_set():
            with contextlib.suppress(NotReady):
                return function(payload, request)
            self._cancelled.wait(POLL)
            check_expiry(request)
        return None

    def _payload(self, source):
        if isinstance(source, bytes):
            return source
        bucket, key = split_uri(source)
        try:
            return self.aws.s3.get_object(Bucket=bucket, Key=key)["Body"].read()
        except (ClientError, BotoCoreError) as error:
            raise JobFailed(f"The input {source!r} cannot be read: {error}") from error

    def _write(self, uri, body, content_type):
        if uri is None:
            return
        bucket, key = split_uri(uri)
        kind = {"ContentType": content_type} if content_type else {}
        with contextlib.suppress(BotoCoreError):  # The whole server ends.
            try:
                self.aws.s3.put_object(Bucket=bucket, Key=key, Body=body, **kind)
            except ClientError as error:
                log.error("asynchronous request of %s: %s: %s", self.endpoint.name, uri, error)


def check_expiry(request):
    """JobFailed where a request has waited longer than it may."""
    if time.monotonic() > request.expires:
        raise JobFailed("The request expired before it could be processed.")
