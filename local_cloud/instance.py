"""One running local cloud: where it keeps its files, and which processes belong to it.

Every process that a local cloud starts, directly or not, inherits the variable `MARKER` with the
random name of that start. So even after the server was killed its children can be found and ended,
without a list of process ids that could be out of date.
"""

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import string
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from local_cloud import ACCOUNT_ID, DEFAULT_REGION
from local_cloud.errors import CloudError

HOST = "127.0.0.1"
MARKER = "LOCAL_CLOUD_INSTANCE"
PACKAGE_PARENT = Path(__file__).resolve().parent.parent
START_TIMEOUT = 60  # Seconds; importing moto on a cold disk takes most of it.
STOP_TIMEOUT = 10  # Seconds between asking and killing.
PREFIX = "local_cloud: "  # Of every sentence on standard error.
DEFAULTS = "sagemaker.json"  # What the SageMaker SDK takes where a call leaves it out.
FILES = ("server.json", "server.json.draft", DEFAULTS, "server.log", "lock")
STATE = "state"  # The folder of what survives a restart.
SHELL_SAFE = set(string.ascii_letters + string.digits + "/._-+@")


@dataclass(frozen=True)
class Instance:
    """What a client must know of a running server, and what the next start must clean up."""

    name: str
    url: str
    pid: int
    region: str
    access_key: str
    secret_key: str
    work_folder: str
    defaults_file: str

    def environment(self):
        """The variables that point boto3, the SageMaker SDK and the AWS CLI at this server."""
        direct = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
        hosts = [host for host in direct.split(",") if host and host != HOST]
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": self.region,
            "AWS_REGION": self.region,
            "AWS_EC2_METADATA_DISABLED": "true",
            "SAGEMAKER_USER_CONFIG_OVERRIDE": self.defaults_file,
            "no_proxy": ",".join([*hosts, HOST]),  # A proxy could not reach this machine's own.
        }


def home_folder():
    """The folder of this local cloud: `$LOCAL_CLOUD_HOME`, or one beside the package."""
    return Path(os.environ.get("LOCAL_CLOUD_HOME") or PACKAGE_PARENT / ".local_cloud").resolve()


def read_instance(home):
    """The instance that last started in `home`, alive or not; None where there is none."""
    try:
        return load_instance(home)
    except (OSError, ValueError, TypeError):
        return None


def load_instance(home):
    return Instance(**json.loads((home / "server.json").read_text()))


def is_forgotten(home, instance):
    """Whether `home` was removed or belongs to another instance by now.

    A file that cannot be read at this moment, as for want of file handles, says neither.
    """
    try:
        return load_instance(home) != instance
    except FileNotFoundError:
        return True
    except (OSError, ValueError, TypeError):
        return False


def sdk_defaults(region):
    """Defaults for the SageMaker SDK, which would ask AWS itself for the name of its bucket.

    Format: https://sagemaker.readthedocs.io/en/stable/overview.html, "Configuring and using
    defaults with the SageMaker Python SDK".
    """
    bucket = {"DefaultS3Bucket": f"sagemaker-{region}-{ACCOUNT_ID}"}  # The name it would choose.
    modules = {"TelemetryOptOut": True, "Session": bucket}
    return {"SchemaVersion": "1.0", "SageMaker": {"PythonSDK": {"Modules": modules}}}


def write_instance(home, instance):
    """Publish `instance` for clients: readable by this user alone, never half-written."""
    Path(instance.defaults_file).write_text(json.dumps(sdk_defaults(instance.region)))
    draft = home / "server.json.draft"
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump(asdict(instance), file)
    draft.replace(home / "server.json")


def processes_of(name):
    """All living processes that carry the marker of instance `name`."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARKER) == name:
                found.append(process)
    return found


def end_processes(processes, grace=STOP_TIMEOUT):
    """Ask `processes` to end, kill those that have not after `grace` seconds."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    stubborn = still_alive(processes, grace)
    for process in stubborn:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    still_alive(stubborn, grace)


def still_alive(processes, seconds):
    """Wait for `processes` to end; those that have not after so many seconds.

    One that has ended is not alive, though its parent never asks how: the first process of a
    container or of a virtual machine asks every few seconds at best.
    """
    deadline = time.monotonic() + seconds
    while processes := [process for process in processes if is_alive(process)]:
        if time.monotonic() > deadline:
            break
        time.sleep(0.01)
    return processes


def is_alive(process):
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def running(home):
    """The instance of `home` if its server is alive, else None."""
    instance = read_instance(home)
    if instance is None:
        return None
    try:
        alive = psutil.Process(instance.pid).environ().get(MARKER) == instance.name
    except psutil.Error:
        alive = False
    return instance if alive else None


def clean_up(home, instance):
    """End what is left of `instance`, killed or not, and remove its files."""
    server = [p for p in processes_of(instance.name) if p.pid == instance.pid]
    end_processes(server)  # First, so that it starts nothing new while its children end.
    end_processes(processes_of(instance.name), grace=2)
    remove_tree(instance.work_folder)
    (home / "server.json").unlink(missing_ok=True)


@contextlib.contextmanager
def locked(home):
    """Only one `start` or `stop` at a time works on `home`."""
    handle = lock_file(home)
    while not is_lock_of(handle, home):  # Whoever had the lock has stopped and removed it.
        handle.close()
        handle = lock_file(home)
    with handle:
        yield


def lock_file(home):
    """The open and locked file `lock` of `home`."""
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.fdopen(os.open(home / "lock", os.O_WRONLY | os.O_CREAT, 0o600), "w")
    except OSError as error:
        raise CloudError(
            f"{home} cannot be written ({error.strerror}); "
            "set LOCAL_CLOUD_HOME to a folder of yours."
        ) from error
    fcntl.flock(handle, fcntl.LOCK_EX)
    return handle


def is_lock_of(handle, home):
    """Whether the open file is the one that others would find and lock."""
    try:
        return os.path.samestat(os.fstat(handle.fileno()), os.stat(home / "lock"))
    except FileNotFoundError:
        return False


def remove_tree(folder):
    """Delete a folder, also where a job took the right to write from parts of it."""
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):  # As a rule it is gone.
        os.chmod(folder, 0o700)
        for path, names, _ in os.walk(folder):
            for inner in (os.path.join(path, name) for name in names):
                if not os.path.islink(inner):
                    os.chmod(inner, 0o700)
    shutil.rmtree(folder, ignore_errors=True)


def make_work_folder(home, name):
    """A folder for the jobs whose path is safe inside the shell scripts of the SDK's drivers."""
    work = home / name
    if not set(str(work)) <= SHELL_SAFE:
        work = Path(tempfile.gettempdir()) / f"local-cloud-{name}"
    work.mkdir(mode=0o700, parents=True)
    return work


def start(home, port=0, region=DEFAULT_REGION):
    """Start the server of `home` unless it runs already; return (instance, started)."""
    with locked(home):
        instance = running(home)
        if instance is not None:
            return instance, False
        leftover = read_instance(home)
        if leftover is not None:
            clean_up(home, leftover)
        name = secrets.token_hex(8)
        work = make_work_folder(home, name)
        command = [sys.executable, "-m", "local_cloud", "serve"]
        command += ["--port", str(port), "--region", region, "--work-folder", str(work)]
        environment = {**os.environ, MARKER: name, "LOCAL_CLOUD_HOME": str(home)}
        with open(home / "server.log", "wb") as log:
            server = subprocess.Popen(
                command,
                cwd=PACKAGE_PARENT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            return wait_until_ready(home, server), True
        except BaseException:
            end_processes(processes_of(name))
            remove_tree(work)
            raise


def wait_until_ready(home, server):
    """Wait for the new server's word that it listens; its own last words where it gave up."""
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        instance = read_instance(home)
        if instance is not None and instance.pid == server.pid:
            return instance
        if server.poll() is not None:
            lines = (home / "server.log").read_text(errors="replace").strip().splitlines()
            words = lines[-1] if lines else f"the server ended with {server.returncode}."
            raise CloudError(words.removeprefix(PREFIX))
        time.sleep(0.05)
    raise CloudError(f"the server did not answer within {START_TIMEOUT} s; see {home}/server.log.")


def stop(home, forget=False):
    """Stop the server of `home` and everything it started; return whether it was running.

    Args:
        forget: also remove what the next start would bring back: jobs, models, objects, logs.
    """
    if not home.exists():
        return False
    with locked(home):
        alive = running(home) is not None
        instance = read_instance(home)
        if instance is not None:
            clean_up(home, instance)
        if forget:
            shutil.rmtree(home / STATE, ignore_errors=True)
        remove_home(home)
    return alive


def remove_home(home):
    """Remove the files of the ended server from `home`, and `home` where nothing else is in it."""
    for name in FILES:
        (home / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        home.rmdir()
