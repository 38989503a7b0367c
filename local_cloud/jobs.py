"""What training and processing jobs have in common: a record, a thread, a container, a log."""

import re
import signal
import threading
import time
from pathlib import Path

from local_cloud.aws import LogStream
from local_cloud.container import Container
from local_cloud.errors import JobFailed, ServiceError, invalid
from local_cloud.store import now

FINAL = ("Completed", "Failed", "Stopped")
MAX_REASON = 1024  # Characters of FailureReason; the service's own limit.
MAX_WORDS = 900  # Characters of it that quote what the script printed.
# What the SDK's drivers write to `output/failure` for a script that wrote nothing there, and what
# they print before and after the script's own lines. None of it says why the script failed.
DRIVER_FAILURES = (
    'Traceback (most recent call last):\n  File "/opt/ml/input/data/sm_drivers',
    "Training Execution failed.",
)
DRIVER_HEAD = "Executing command: "
DRIVER_TAIL = "Command failed with exit code "
KILLED = re.compile(r"died with <Signals\.(\w+)")


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
        self.lock = threading.Lock()  # A job that ends cannot begin to stop, nor the reverse.
        self.container = None
        self._thread = threading.Thread(target=self._run, daemon=True, name=name)

    @property
    def record(self):
        return self.store.get(self.kind, self.name)

    @property
    def timed_out(self):
        """Whether the job ran longer than it was allowed to."""
        return self.container is not None and self.container.timed_out

    def change(self, **fields):
        self.store.change(self.kind, self.name, **fields)

    def start(self):
        self._thread.start()

    def join(self):
        self._thread.join()

    def stop(self):
        """Ask the job to stop; what it has written so far is kept.

        Raises:
            ServiceError: it has ended already.
        """
        with self.lock:
            self.mark_stopping()
            self.stopping.set()
        if self.container is not None:
            self.container.stop()

    def mark_stopping(self):
        message = f"The request was rejected because the {self.kind} is in status {{status}}."
        self.store.begin(self.kind, self.name, "Stopping", FINAL, message)

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
        with self.lock:
            if self.stopping.is_set():  # Also where it failed: that is how most scripts end then.
                status, reason = "Stopped", None
            self.finish(status, reason[:MAX_REASON] if reason else None)

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

        try:
            code = self.container.run(command, cwd, keep, timeout=max_runtime)
        except OSError as error:
            raise JobFailed(f"AlgorithmError: cannot run {command[0]!r}: {error}") from error
        finally:
            stream.close()
        if code != 0 and not self.stopping.is_set() and not self.timed_out:
            end = f", ended by {signal.Signals(-code).name}" if code < 0 else f", exit code: {code}"
            words = self.last_words()[: MAX_REASON - len("AlgorithmError: ") - len(end)]
            raise JobFailed(f"AlgorithmError: {words}{end}")

    def last_words(self):
        """Why the process failed: its `output/failure` file, else the last lines it printed."""
        failure = self.container.ml / "output" / "failure"
        text = failure.read_text(errors="replace").strip() if failure.is_file() else ""
        text = self.container.globalize(text)
        if text and not text.startswith(DRIVER_FAILURES):
            return text
        # The end of the output says why; the beginning is what has to go where it is too long.
        words = "\n".join(script_lines(self.container.last_lines))[-MAX_WORDS:]
        signalled = KILLED.search(text)
        if signalled:
            words += f"\nThe process was ended by {signalled[1]}"
        return words.strip() or "the process printed nothing"


def script_lines(lines):
    """The lines that the script itself printed, without those of the SDK's drivers around them."""
    own = []
    for line in lines:
        if line.startswith(DRIVER_HEAD):
            own = []
        elif line.startswith(DRIVER_TAIL):
            break
        elif line.strip():
            own.append(line)
    return own


def timed(record, started):
    """The time fields of a job that began to work at `started` (None where it did not)."""
    end = now()
    seconds = max(1, round((end - started).total_seconds())) if started else 0
    return end, seconds


def require_one_instance(count):
    if count != 1:
        raise invalid(f"local_cloud runs a job on one instance; {count} were asked for.")


def delete_finished(store, kind, name):
    """Forget a job that has ended."""
    if store.get(kind, name)[f"{kind}Status"] not in FINAL:
        raise ServiceError("ResourceInUse", f"{name} has not ended; stop it first.")
    store.remove(kind, name)
