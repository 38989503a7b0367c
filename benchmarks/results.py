"""What the benchmarks share: the README's tables and the conditions of a measurement."""

import contextlib
import os
import platform
import re
import subprocess
from importlib.metadata import version
from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"
END = "<!-- end -->"


def conditions():
    """What a figure depends on, the code and the machine, as a dictionary."""
    return {
        "commit": commit(),
        "processor": processor(),
        "cores": core_count(),
        "python": platform.python_version(),
        "torch": version("torch"),
    }


def commit():
    """The code's commit, with "-dirty" where it was changed since; None outside a repository."""
    command = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        return subprocess.run(
            command, cwd=README.parent, capture_output=True, text=True, check=True
        ).stdout.strip()
    return None


def processor():
    """The name of the processor."""
    with contextlib.suppress(OSError):
        found = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.M)
        if found:
            return found[1]
    return platform.processor()


def core_count():
    """How many of the machine's cores this process may use."""
    has_affinity = hasattr(os, "sched_getaffinity")  # Not on macOS.
    return len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count()


def write_table(begin, table):
    """Replace the table between the mark `begin` and the next `END` in the README."""
    text = README.read_text(encoding="utf-8")
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(END)}", re.DOTALL)
    if not pattern.search(text):
        raise SystemExit(f"README.md has no place for the table: {begin} ... {END}")
    new = f"{begin}\n\n{table}\n\n{END}"
    README.write_text(pattern.sub(lambda _: new, text), encoding="utf-8")
