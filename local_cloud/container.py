"""A container in name only: the `/opt/ml` folder of one host of a job, and the process in it.

Containers see their files under `/opt/ml`. A plain process cannot, so that prefix is rewritten to
the host's own folder wherever the request or the submitted code spells it out: in commands,
arguments, environment values, configuration files and the text files of the code (`TEXT_SUFFIXES`
and scripts that begin with `#!`). What the job prints is rewritten back, so that logs and failure
reasons show `/opt/ml`.

Not rewritten: paths that the code puts together while it runs (`"/opt" + "/ml"`), data channels,
binaries and notebooks, installed packages, and code that the job downloads itself.
"""

import contextlib
import functools
import logging
import os
import re
import shlex
import signal
import subprocess
import sys
import sysconfig
import threading
import time
import uuid
import venv
from collections import deque
from pathlib import Path

import psutil

from local_cloud.instance import MARKER, remove_tree

log = logging.getLogger(__name__)
OPT_ML = "/opt/ml"
CONTAINER_MARKER = "LOCAL_CLOUD_CONTAINER"  # Inherited by every process of one container.
# Seconds between SIGTERM and SIGKILL: what SageMaker gives, unless the server's user wants less.
STOP_GRACE = float(os.environ.get("LOCAL_CLOUD_STOP_GRACE", 120))
LAST_LINES = 40  # Kept to explain a failure where the job left no `output/failure`.
# What a job keeps of the server's environment: where programs, caches and registries are, and how
# many threads OpenMP takes, for who shares the machine.
KEPT = ("PATH", "HOME", "USER", "LANG", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "TORCH_HOME")
KEPT_PREFIXES = ("LC_", "PIP_", "SSL_", "REQUESTS_", "CUDA_", "DYLD_", "OMP_")
PROXIES = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "no_proxy", "NO_PROXY")
TEXT_SUFFIXES = (".py", ".sh", ".bash", ".json", ".yaml", ".yml", ".toml", ".cfg", ".ini")
TEXT_SUFFIXES += (".conf", ".env", ".txt")
WRAPPER = '#!/bin/sh\nexec "$(dirname "$0")/python3" {} "$@"\n'


class Container:
    """The folder `root/opt/ml`, the process in it and what it prints.

    Args:
        root: folder that this job has for itself; removed by `remove`.
        aws: the `LocalAws` whose credentials the job gets.
        region: region of the job.
    """

    def __init__(self, root, aws, region):
        self.root = Path(root).resolve()  # As the processes in it will name it.
        self.ml = self.root / "opt" / "ml"
        self.ml.mkdir(parents=True)
        self._folders = {OPT_ML: self.ml}
        self.environment = base_environment(aws.instance, region)
        self.last_lines = deque(maxlen=LAST_LINES)
        self._markers = {MARKER: aws.instance.name, CONTAINER_MARKER: uuid.uuid4().hex}
        self._process = None
        self._stop_at = None
        self._lock = threading.Lock()

    def place(self, path):
        """The folder that stands for `path` of the container; rewritten from now on.

        Args:
            path: absolute path as the request names it, such as `/opt/ml/checkpoints` or `/data`.
        """
        path = path.rstrip("/")
        if not is_below(path, OPT_ML):
            self._folders[path] = self.root / path.lstrip("/")
        folder = Path(self.localize(path))
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def localize(self, text):
        """`text` with `/opt/ml` replaced by this container's folder."""
        # In one go: what stands for one path may begin with another.
        pattern = "|".join(map(spelled, self._folders))
        return re.sub(pattern, lambda found: str(self._folders[found[0]]), text)

    def globalize(self, text):
        """`text` with this container's folder replaced by the paths that it stands for."""
        return text.replace(str(self.root), "")

    def localize_scripts(self, folder):
        """Rewrite `/opt/ml` inside the text files of a folder of code."""
        for path in Path(folder).rglob("*"):
            if path.is_file() and not path.is_symlink() and is_text(path):
                # Latin-1, because nobody promised UTF-8 and every byte comes back as it was.
                text = path.read_bytes().decode("latin-1")
                local = self.localize(text)
                if local != text:
                    path.write_bytes(local.encode("latin-1"))

    def add_python(self):
        """Put an environment of the job's own before this machine's on the path.

        Everything installed on this machine can be imported, while `pip install` in the job writes
        into the job's folder only.
        """
        overlay = self.root / "python"
        venv.create(overlay, with_pip=False, symlinks=True)
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        parents = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
        lines = [f"import site; site.addsitedir({parent!r})\n" for parent in parents]
        (overlay / "lib" / version / "site-packages" / "machine.pth").write_text("".join(lines))
        # Programs such as torchrun name this machine's Python in their first line.
        for name, arguments in python_programs().items():
            script = overlay / "bin" / name
            script.write_text(WRAPPER.format(arguments))
            script.chmod(0o755)
        machine = str(Path(sys.executable).parent)
        path = os.pathsep.join([str(overlay / "bin"), machine, self.environment["PATH"]])
        self.environment.update(PATH=path, VIRTUAL_ENV=str(overlay))

    @property
    def is_stopping(self):
        """Whether it was asked to end."""
        return self._stop_at is not None

    def run(self, command, cwd, on_line, timeout=None, on_timeout=None):
        """Run `command` to its end, every printed line to `on_line`; return the exit code.

        Args:
            timeout: seconds after which the process is stopped, as by `stop`.
            on_timeout: called before that.

        Returns:
            The exit code; negative for the signal that ended it.
        """
        with self._lock:
            if self._stop_at is not None:
                return -signal.SIGTERM
            self._process = subprocess.Popen(
                command,
                cwd=cwd,
                env={**self.environment, **self._markers},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        reader = threading.Thread(target=self._read, args=(on_line,), daemon=True)
        reader.start()
        deadline = None if timeout is None else time.monotonic() + timeout
        # The process is not reaped before its group is gone: until then nobody else gets its id.
        leader = psutil.Process(self._process.pid)
        while leader.status() != psutil.STATUS_ZOMBIE and not self._grace_is_over():
            if deadline is not None and time.monotonic() > deadline:
                on_timeout()
                self.stop()
                deadline = None
            # What it prints ends with it, as a rule: then it is looked at again at once.
            reader.join(0.05) if reader.is_alive() else time.sleep(0.01)
        # The drivers of the SDK end at once on SIGTERM; the script below them may still be saving.
        while self._stop_at and self._members() and not self._grace_is_over():
            time.sleep(0.05)
        self._signal(signal.SIGKILL)
        reader.join(timeout=10)
        with self._lock:
            return self._process.wait()

    def stop(self):
        """Send SIGTERM to everything that runs here; SIGKILL follows after `STOP_GRACE` seconds.

        Once: a script that is saving must not be told to stop again.
        """
        with self._lock:
            if self._stop_at is None:
                self._stop_at = time.monotonic()
                self._signal(signal.SIGTERM)

    def kill(self):
        """End everything that runs here at once."""
        with self._lock:
            self._stop_at = self._stop_at or time.monotonic()
            self._signal(signal.SIGKILL)

    def end_process(self):
        """End what runs here now; `run` can start it again."""
        with self._lock:
            self._signal(signal.SIGKILL)

    def remove(self):
        """Delete the folder."""
        remove_tree(self.root)

    def _read(self, on_line):
        with self._process.stdout as lines:
            for raw in lines:
                line = self.globalize(raw.decode("utf-8", "replace").rstrip("\r\n"))
                self.last_lines.append(line)
                try:
                    on_line(line)
                except Exception:  # A fault of ours must not close what the script prints to.
                    log.exception("a line of a job was not taken: %r", line)

    def _signal(self, number):
        """Send a signal to everything that runs here."""
        if self._process is None or self._process.returncode is not None:
            return
        strays = [process for process in self._members() if not self._in_group(process)]
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)
        for process in strays:
            with contextlib.suppress(psutil.Error):
                process.send_signal(number)

    def _members(self):
        """Living processes of the group, and those that left it but carry this job's marker."""
        return [p for p in psutil.process_iter() if self._is_member(p)]

    def _is_member(self, process):
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                return False
            marker = self._markers[CONTAINER_MARKER]
            return self._in_group(process) or process.environ().get(CONTAINER_MARKER) == marker
        except (psutil.Error, OSError):
            return False

    def _in_group(self, process):
        try:
            return os.getpgid(process.pid) == self._process.pid
        except ProcessLookupError:
            return False

    def _grace_is_over(self):
        return self._stop_at is not None and time.monotonic() > self._stop_at + STOP_GRACE


def is_below(path, folder):
    return path == folder or path.startswith(f"{folder}/")


def spelled(path):
    """The regular expression of `path` where a text means it and not a part of a longer one.

    So `s3://bucket/opt/ml` and `/opt/mlflow` stay, and what was rewritten is not rewritten again.
    """
    return rf"(?:(?<![\w.-])|(?<=\\[nt])){re.escape(path)}(?![\w-])"


def is_text(path):
    """Whether a file of code may spell out a path."""
    if path.suffix:
        return path.suffix in TEXT_SUFFIXES
    with open(path, "rb") as file:
        return file.read(2) == b"#!"


@functools.cache
def python_programs():
    """The programs of this machine's Python environment, and what makes Python run each."""
    programs = dict.fromkeys(("pip", "pip3"), "-m pip")
    for path in Path(sys.executable).parent.iterdir():
        if path.is_file() and not path.is_symlink() and path.name not in programs:
            with contextlib.suppress(OSError), open(path, "rb") as file:  # sudo is unreadable.
                first = file.readline(256)
                if first.startswith(b"#!") and b"python" in first:
                    programs[path.name] = shlex.quote(str(path))
    return programs


def base_environment(instance, region):
    """The variables that every job gets."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in KEPT + PROXIES or name.startswith(KEPT_PREFIXES)
    }
    return {
        "PATH": os.defpath,
        **kept,
        **instance.environment(),
        "AWS_DEFAULT_REGION": region,
        "AWS_REGION": region,
        "PYTHONUNBUFFERED": "1",
    }
