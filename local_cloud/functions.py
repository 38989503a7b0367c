"""Lambda functions: a handler in worker processes, each of which answers one request at a time."""

import contextlib
import json
import logging
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

from botocore.exceptions import BotoCoreError, ClientError

from local_cloud import ACCOUNT_ID, DEFAULT_REGION
from local_cloud.aws import LocalAws, LogStream

WORKER = Path(__file__).with_name("lambda_worker.py")
START_SECONDS = 60  # To import the handler. Lambda gives 10, on a machine that does nothing else.
MAX_PAYLOAD = 6_291_556  # Bytes of an event or a result: AWS Lambda quotas, "Invocation payload".
JOIN_SECONDS = 5  # For the last lines of a log.
# What a function sees of this machine: where programs and temporary files are.
KEPT = ("PATH", "TMPDIR", "LD_LIBRARY_PATH")
log = logging.getLogger(__name__)


class FunctionFailed(Exception):
    """The handler raised, ended its process, or took too long; its log says more."""


class TooLarge(Exception):
    """The event is larger than Lambda takes."""


class Busy(Exception):
    """There was no result while anybody waited for it; perhaps no worker was free."""


class LambdaFunction:
    """The workers of one function.

    They are started when a request finds none free, one after the other, and kept. A request takes
    the first that is free, be it the new one or one that has just answered, because processes of
    one machine, unlike Lambda's, take time from each other when they start.

    Args:
        function: a `sam.Function`.
        instance: the running local cloud, whose address and keys the function gets and which keeps
            its log; None where there is none: then it gets no keys, and the log is standard error.
        limit: the most workers.
    """

    def __init__(self, function, instance, limit):
        self.function, self.instance, self.limit = function, instance, limit
        self.region = instance.region if instance else DEFAULT_REGION
        self.arn = f"arn:aws:lambda:{self.region}:{ACCOUNT_ID}:function:{function.name}"
        self._aws = LocalAws(instance) if instance else None
        self._workers, self._idle = set(), []
        self._is_starting = self._is_closed = False
        self._changed = threading.Condition()
        with self._changed:
            self._start_one()  # The first request should not wait for imports.

    def invoke(self, event, request_id, seconds):
        """The result of the handler, as JSON text.

        Args:
            seconds: after which nobody waits for it any more.

        Raises:
            FunctionFailed, TooLarge, Busy
        """
        timeout = self.function.timeout
        request = {"event": event, "id": request_id, "arn": self.arn, "seconds": timeout}
        body = json.dumps(request).encode()
        if len(body) > MAX_PAYLOAD:
            raise TooLarge
        deadline = time.monotonic() + seconds
        worker = self._take(deadline)
        try:
            left = max(0.001, deadline - time.monotonic())
            return worker.run(body, request_id, min(timeout, left))
        except FunctionFailed:
            if time.monotonic() >= deadline:
                raise Busy from None
            raise
        finally:
            self._give_back(worker)

    def close(self):
        """End all workers."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
            workers = list(self._workers)
        for worker in workers:
            worker.kill()
        for worker in workers:
            worker.join()

    def _take(self, deadline):
        with self._changed:
            while not self._idle:
                if len(self._workers) < self.limit and not self._is_starting:
                    self._start_one()
                left = deadline - time.monotonic()
                if self._is_closed or left <= 0:
                    raise Busy
                self._changed.wait(left)
            worker = self._idle.pop()  # The last one used: its caches are warm.
            if not worker.has_ended:
                return worker
            self._workers.discard(worker)
        worker.kill()
        return self._take(deadline)

    def _give_back(self, worker):
        with self._changed:
            if worker.is_usable:
                self._idle.append(worker)
            else:
                self._workers.discard(worker)
            self._changed.notify_all()

    def _start_one(self):
        self._is_starting = True
        threading.Thread(target=self._start, daemon=True).start()

    def _start(self):
        stream = time.strftime("%Y/%m/%d/[$LATEST]", time.gmtime()) + uuid.uuid4().hex
        try:
            worker = Worker(self.function, self._environment(stream), self._open_log(stream))
        except OSError:  # No memory, no more processes: the next request tries again.
            log.exception("a worker of %s", self.function.name)
            self._is_starting = False
            return
        with self._changed:
            self._workers.add(worker)  # Before it is ready, so that `close` finds it.
            if self._is_closed:
                worker.kill()
        worker.wait_until_ready()
        with self._changed:
            self._is_starting = False
            self._idle.append(worker)
            self._changed.notify_all()

    @property
    def _log_group(self):
        return f"/aws/lambda/{self.function.name}"

    def _open_log(self, stream):
        if self._aws:
            with contextlib.suppress(BotoCoreError, ClientError):
                return FunctionLog(self._aws, self.region, self._log_group, stream)
        return StandardError()

    def _environment(self, stream):
        """What the handler finds in its environment, and nothing else.

        Source: AWS Lambda developer guide, "Defined runtime environment variables".
        """
        function = self.function
        own = self.instance.environment() if self.instance else {}
        own.pop("SAGEMAKER_USER_CONFIG_OVERRIDE", None)
        return {
            **{name: os.environ[name] for name in KEPT if name in os.environ},
            "AWS_REGION": self.region,
            "AWS_DEFAULT_REGION": self.region,
            **function.environment,
            **own,
            # Nothing of an account that this machine's user may have.
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_LAMBDA_FUNCTION_NAME": function.name,
            "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(function.memory),
            "AWS_LAMBDA_LOG_GROUP_NAME": self._log_group,
            "AWS_LAMBDA_LOG_STREAM_NAME": stream,
            "LAMBDA_TASK_ROOT": str(function.code),
            "_HANDLER": function.handler,
            "LANG": "C.UTF-8",
            "TZ": ":UTC",
        }


class Worker:
    """One process with the handler in it.

    It ends when its end of a socket is closed: however this process ends, nothing of it is left.
    """

    def __init__(self, function, environment, log):
        self.is_usable = True
        self._log = log
        self._last_words = []
        self._killed = threading.Event()
        self._lock = threading.Lock()
        self._channel, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-B", "-u", str(WORKER), str(theirs.fileno())],
                cwd=function.code,
                env=environment,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()

    def wait_until_ready(self):
        """Wait until the handler is imported, or cannot be: then the first request fails."""
        try:
            self.is_usable = "error" not in self._receive(time.monotonic() + START_SECONDS)
        except OSError:
            self.is_usable = False
        if not self.is_usable:
            self.kill()

    @property
    def has_ended(self):
        """Whether an idle worker has ended by itself: it says nothing unless it is asked."""
        self._channel.setblocking(False)
        try:
            self._channel.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            pass
        return self.is_usable

    def run(self, body, request_id, timeout):
        """The result of one request as JSON text.

        Raises:
            FunctionFailed
        """
        if not self.is_usable:
            raise FunctionFailed
        try:
            self._channel.settimeout(timeout)
            self._channel.sendall(struct.pack("!I", len(body)) + body)
            answer = self._receive(time.monotonic() + timeout)
        except TimeoutError:
            self.kill(f"{request_id} Task timed out after {timeout:.2f} seconds")
            raise FunctionFailed from None
        except OSError:
            self.kill(f"RequestId: {request_id} Error: Runtime exited")
            raise FunctionFailed from None
        result = answer.get("result")
        if result is None or len(result) > MAX_PAYLOAD:
            raise FunctionFailed
        return result

    def kill(self, *words):
        """End the process and all that it started; `words` are the last lines of its log."""
        self.is_usable = False
        self._last_words += words
        self._killed.set()
        with self._lock, contextlib.suppress(ProcessLookupError):
            # Until it is waited for, nobody else gets the number of its group.
            if self._process.returncode is None:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()

    def join(self):
        """Wait until its log is written."""
        self._reader.join(JOIN_SECONDS)

    def _receive(self, deadline):
        """One message; OSError where there comes none, TimeoutError where it is late."""
        (length,) = struct.unpack("!I", self._read(4, deadline))
        return json.loads(self._read(length, deadline))

    def _read(self, length, deadline):
        data = bytearray()
        while len(data) < length:
            self._channel.settimeout(max(0.001, deadline - time.monotonic()))
            part = self._channel.recv(length - len(data))
            if not part:
                raise ConnectionError
            data += part
        return bytes(data)

    def _read_log(self):
        with self._process.stdout as lines:
            for line in lines:
                self._log.write(line.decode("utf-8", "replace").rstrip("\r\n"))
        self._killed.wait(JOIN_SECONDS)  # Whoever waited for its answer says why it ended.
        for line in self._last_words:
            self._log.write(line)
        self._log.close()


class FunctionLog(LogStream):
    """A stream of CloudWatch Logs; what cannot be sent, because the cloud has gone, is lost."""

    def _lose(self, events, error):
        pass


class StandardError:
    """In place of CloudWatch Logs."""

    def write(self, line):
        print(line, file=sys.stderr)

    def close(self):
        pass
