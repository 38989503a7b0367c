"""What jobs have in common: operations on their records; a thread, a cluster and a log each."""

import os
import re
import shutil
import signal
import threading
import time
from pathlib import Path

from local_cloud.cluster import Cluster
from local_cloud.errors import JobFailed, ServiceError
from local_cloud.store import arn, now, page

FINAL = ("Completed", "Failed", "Stopped")
MAX_REASON = 1024  # Characters of FailureReason; the service's own limit.
MAX_WORDS = 900  # Characters of it that quote what the script printed.
DAY = 24 * 3600  # Seconds; the service's default for MaxRuntimeInSeconds.
KEPT = 60  # Seconds that an ended job can still be joined.
LOST = "InternalServerError: the local cloud ended while the job ran; start the job again."
# What the SDK's drivers write to `output/failure` for a script that wrote nothing there, and what
# they print before and after the script's own lines. None of it says why the script failed.
DRIVER_FAILURES = (
    'Traceback (most recent call last):\n  File "/opt/ml/input/data/sm_drivers',
    "Training Execution failed.",
)
DRIVER_HEAD = "Executing command: "
DRIVER_TAILS = ("Command failed with exit code ", "An error occurred with exit code ")
TRACE = re.compile(r"\++ ")  # How bash, told to, begins the lines that repeat its commands.
KILLED = re.compile(r"died with <Signals\.(\w+)")


class Jobs:
    """The operations that jobs of all kinds have in common.

    Attributes:
        kind: as it begins the names of their fields, `TrainingJob`.
        arn_kind: as it stands in their ARNs, `training-job`.
        summary: the fields of an entry of their List call.
        jobs: the `Job` of every job that runs, and of those that have just ended; all that the
            answers say comes from the store.
    """

    kind = ""
    arn_kind = ""
    summary = ()

    def __init__(self, store, aws):
        self.store, self.aws = store, aws
        self.jobs = {}

    def keep(self, record, tags, region):
        """Store the record of a new job that is in progress from now on; its ARN, as an answer."""
        name, arn_field = record[f"{self.kind}Name"], f"{self.kind}Arn"
        record[arn_field] = arn(region, self.arn_kind, name)
        record[f"{self.kind}Status"] = "InProgress"
        record.update(CreationTime=now(), LastModifiedTime=now())
        self.store.add(self.kind, name, record, tags)
        return {arn_field: record[arn_field]}

    def launch(self, name, job):
        """Start a new job, and forget those that ended a while ago."""
        # Not at once: whoever starts a job may look it up here to wait for its end.
        limit = time.monotonic() - KEPT
        for other, old in list(self.jobs.items()):
            if old.ended_at is not None and old.ended_at < limit:
                self.jobs.pop(other, None)
        self.begin(name, job)

    def begin(self, name, job):
        """Start a new job; one that somebody found in a list and stopped already stops at once."""
        self.jobs[name] = job
        if self.store.get(self.kind, name)[f"{self.kind}Status"] == "Stopping":
            job.stopping.set()
        job.start()

    def describe(self, params, region):
        return self.store.get(self.kind, params[f"{self.kind}Name"])

    def list(self, params, region):
        names = (f"{self.kind}Name", f"{self.kind}Status")
        summaries, token = page(self.store.all(self.kind), params, *names, self.summary)
        answer = {f"{self.kind}Summaries": summaries}
        return {**answer, "NextToken": token} if token else answer

    def stop(self, params, region):
        name = params[f"{self.kind}Name"]
        job = self.jobs.get(name)
        if job is None:  # It ended, perhaps before this server started.
            begin_stopping(self.store, self.kind, name)
            job = self.jobs.get(name)  # Or it was being created.
        if job is not None:
            job.stop()

    def delete(self, params, region):
        name = params[f"{self.kind}Name"]
        delete_finished(self.store, self.kind, name)
        self.jobs.pop(name, None)

    def recover(self):
        """Mark the jobs that were running when the server ended as failed.

        To be called once, before the first request.
        """
        for record in self.store.all(self.kind):
            if record[f"{self.kind}Status"] not in FINAL:
                self.store.edit(self.kind, record[f"{self.kind}Name"], self.lose)

    def lose(self, record):
        """Let a record say that its job was lost."""
        record[f"{self.kind}Status"] = "Failed"
        record[f"{self.kind.removesuffix('Job')}EndTime"] = now()
        record["FailureReason"] = LOST


class Job:
    """One job and the thread that carries it out.

    Subclasses say what happens in `work`, which returns when the job is complete and raises
    `JobFailed` when it failed, and what the record says at the end in `finish`.
    """

    kind = ""
    log_group = ""

    def __init__(self, store, aws, name, region):
        self.store, self.aws, self.name, self.region = store, aws, name, region
        self.stopping = threading.Event()
        self.lock = threading.Lock()  # A job that ends cannot begin to stop, nor the reverse.
        self.cluster = None
        self.timed_out = False  # Whether it ran longer than it was allowed to.
        self.ended_at = None  # By the clock of `time.monotonic`.
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
        """Ask the job to stop; what it has written so far is kept.

        Raises:
            ServiceError: it has ended already.
        """
        with self.lock:
            self.mark_stopping()
            self.stopping.set()
            cluster = self.cluster
        if cluster is not None:
            cluster.stop()

    def mark_stopping(self):
        begin_stopping(self.store, self.kind, self.name)

    def make_cluster(self, count):
        """Folders and containers for the hosts; those of an earlier attempt are deleted."""
        self.remove_cluster()
        root = Path(self.aws.instance.work_folder) / "jobs" / self.kind / self.name
        cluster = Cluster(root, self.aws, self.region, count)
        with self.lock:
            self.cluster = cluster

    def remove_cluster(self):
        with self.lock:
            cluster, self.cluster = self.cluster, None
        if cluster is not None:
            cluster.remove()

    def _run(self):
        status, reason = "Completed", None
        try:
            self.work()
        except JobFailed as error:
            status, reason = "Failed", str(error)
        except OSError as error:  # A full disk, a folder that cannot be written.
            status, reason = "Failed", self.disk_failure(error)
        except Exception as error:  # A fault of ours must not leave the job in progress forever.
            status, reason = "Failed", f"InternalServerError: {type(error).__name__}: {error}"
        finally:
            self.remove_cluster()
        with self.lock:
            if self.stopping.is_set():  # Also where it failed: that is how most scripts end then.
                status, reason = "Stopped", None
            self.finish(status, reason[:MAX_REASON] if reason else None)
        self.ended_at = time.monotonic()

    def disk_failure(self, error):
        """One sentence for a file that could not be read or written."""
        text = error.strerror or type(error).__name__
        where = f": {error.filename}" if error.filename else ""
        work_folder = self.aws.instance.work_folder
        return f"ClientError: the files of the job cannot be kept on this machine: {text}" + (
            where.replace(str(work_folder), "")
        )

    def finish(self, status, reason):
        raise NotImplementedError

    def work(self):
        raise NotImplementedError

    def run_hosts(self, commands, cwds, max_runtime, on_line):
        """Run the job's commands, one a host, with their output in CloudWatch Logs.

        Args:
            max_runtime: seconds after which they are stopped.

        Returns:
            The `Failure` of the first host that failed, or None.
        """
        return self.cluster.run(
            commands, cwds, self.log_group, self.name, on_line, max_runtime, self.time_out
        )

    def time_out(self):
        """Show that the job is being stopped because its time is over."""
        with self.lock:
            if not self.stopping.is_set() and not self.timed_out:
                self.timed_out = True
                self.mark_stopping()


def reason_of(failure):
    """The `JobFailed` of a job whose host failed, with the host's own words."""
    code = failure.code
    end = f", ended by {signal.Signals(-code).name}" if code < 0 else f", exit code: {code}"
    words = last_words(failure.container)[: MAX_REASON - len("AlgorithmError: ") - len(end)]
    return JobFailed(f"AlgorithmError: {words}{end}")


def begin_stopping(store, kind, name):
    """Mark a job as stopping.

    Raises:
        ServiceError: there is no such job, or it has ended.
    """
    message = f"The request was rejected because the {kind} is in status {{status}}."
    store.begin(kind, name, "Stopping", FINAL, message)


def last_words(container):
    """Why a process failed: its `output/failure` file, else the last lines it printed."""
    failure = container.ml / "output" / "failure"
    text = failure.read_text(errors="replace").strip() if failure.is_file() else ""
    text = container.globalize(text)
    if text and not text.startswith(DRIVER_FAILURES):
        return text
    # The end of the output says why; the beginning is what has to go where it is too long.
    words = "\n".join(script_lines(container.last_lines))[-MAX_WORDS:]
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
        elif line.startswith(DRIVER_TAILS):
            break
        elif line.strip() and not TRACE.match(line):
            own.append(line)
    return own


def merge(source, target):
    """Copy into the folder `target` what only `source` has."""
    for path in sorted(source.rglob("*")):
        beside = target / path.relative_to(source)
        if not beside.parent.is_dir() or os.path.lexists(beside):
            continue  # The target has something else of this name.
        if path.is_dir() and not path.is_symlink():
            beside.mkdir()
        else:
            shutil.copy2(path, beside, follow_symlinks=False)


def delete_finished(store, kind, name):
    """Forget a job that has ended."""
    if store.get(kind, name)[f"{kind}Status"] not in FINAL:
        raise ServiceError("ResourceInUse", f"{name} has not ended; stop it first.")
    store.remove(kind, name)
