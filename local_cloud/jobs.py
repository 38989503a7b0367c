"""What training and processing jobs have in common: a record, a thread, a container, a log."""

import threading
import time
from pathlib import Path

from local_cloud.aws import LogStream
from local_cloud.container import Container
from local_cloud.errors import JobFailed, ServiceError, invalid
from local_cloud.store import now

FINAL = ("Completed", "Failed", "Stopped")
MAX_REASON = 1024  # Characters of FailureReason; the service's own limit.


class Job:
    """One job and the thread that carries it out.

    Subclasses say what happens in `work`, which returns when the job is complete and raises
    `JobFailed` when it failed.
    """

    kind = ""
    log_group = ""

    def __init__(self, store, aws, name, region):
        self.store, self.aws, self.name, self.region = store, aws, name, region
        self.stopping = threading.Event()
        self.timed_out = False
        self.container = None
        self._thread = threading.Thread(target=self._run, daemon=True, name=name)

    @property
    def record(self):
        return self.store.get(self.kind, self.name)

    def change(self, **fields):
        self.store.change(self.kind, self.name, **fields)

    def start(self):
        self._thread.start()

    def join(self):
        self._thread.join()

    def stop(self):
        """Ask the job to stop; what it has written so far is kept."""
        self.stopping.set()
        self.change(**{f"{self.kind}Status": "Stopping"})
        if self.container is not None:
            self.container.stop()

    def _run(self):
        root = Path(self.aws.instance.work_folder) / "jobs" / self.kind / self.name
        status, reason = "Completed", None
        try:
            self.container = Container(root, self.aws, self.region)
            self.work()
        except JobFailed as error:
            status, reason = "Failed", str(error)
        except Exception as error:  # A fault of ours must not leave the job in progress forever.
            status, reason = "Failed", f"InternalServerError: {type(error).__name__}: {error}"
        finally:
            if self.container is not None:
                self.container.remove()
        if self.stopping.is_set() and (status == "Completed" or self.stopped_early(reason)):
            status, reason = "Stopped", None
        self.finish(status, reason[:MAX_REASON] if reason else None)

    def stopped_early(self, reason):
        """Whether a failure is only the consequence of the request to stop."""
        return reason is None or not reason.startswith("InternalServerError")

    def finish(self, status, reason):
        raise NotImplementedError

    def work(self):
        raise NotImplementedError

    def run_process(self, command, cwd, max_runtime, on_line):
        """Run the job's command with its output in CloudWatch Logs.

        Raises:
            JobFailed: it ended with an exit code other than 0 and was not asked to stop.
        """
        stream = LogStream(
            self.aws, self.region, self.log_group, f"{self.name}/algo-1-{int(time.time())}"
        )

        def keep(line):
            stream.write(line)
            on_line(line)

        started = time.monotonic()
        try:
            code = self.container.run(command, cwd, keep, timeout=max_runtime)
        except OSError as error:
            raise JobFailed(f"AlgorithmError: cannot run {command[0]!r}: {error}") from error
        finally:
            stream.close()
        self.timed_out = max_runtime is not None and time.monotonic() - started >= max_runtime
        if code != 0 and not self.stopping.is_set() and not self.timed_out:
            raise JobFailed(f"AlgorithmError: {self.last_words()}, exit code: {abs(code)}")

    def last_words(self):
        """Why the process failed: its `output/failure` file, else the last lines it printed."""
        failure = self.container.ml / "output" / "failure"
        if failure.is_file():
            text = self.container.globalize(failure.read_text(errors="replace").strip())
            if text:
                return text
        return "\n".join(self.container.last_lines) or "the process printed nothing"


def timed(record, started):
    """The time fields of a job that began to work at `started` (None where it did not)."""
    end = now()
    seconds = max(1, round((end - started).total_seconds())) if started else 0
    return end, seconds


def require_one_instance(count):
    if count != 1:
        raise invalid(f"local_cloud runs a job on one instance; {count} were asked for.")


def refuse_unless_running(record, kind):
    status = record[f"{kind}Status"]
    if status in FINAL:
        raise invalid(f"The request was rejected because the {kind} is in status {status}.")


def delete_finished(store, kind, name):
    """Forget a job that has ended."""
    if store.get(kind, name)[f"{kind}Status"] not in FINAL:
        raise ServiceError("ResourceInUse", f"{name} has not ended; stop it first.")
    store.remove(kind, name)
