"""What the benchmarks share: the README's tables and the conditions of a measurement."""

import os
import platform
import re
from importlib.metadata import version
from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"
END = "<!-- end -->"


def conditions():
    """What a figure depends on besides the code, as a dictionary."""
    return {
        "cores": core_count(),
        "python": platform.python_version(),
        "torch": version("torch"),
    }


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
