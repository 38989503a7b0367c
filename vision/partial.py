"""Files in the making: beside their place until they are whole. Needs neither torch nor NumPy."""

import contextlib
import os
import time
from pathlib import Path

# What is being written grows all the while: no run is silent for so long.
LEFT_OVER_SECONDS = 6 * 3600


def beside(path: Path) -> Path:
    """Return where this process writes what is to become `path`.

    Several runs may write the same: each has its own file, the last one stays.
    """
    return path.with_name(f".{path.name}-{os.getpid()}.partial")


def remove_left_over(folder: Path, pattern: str = ".*.partial") -> None:
    """Remove the files in the making of killed runs; what another run writes now stays."""
    for partial in folder.glob(pattern):
        # Another run may rename its own, or remove the same, meanwhile.
        with contextlib.suppress(FileNotFoundError):
            if time.time() - partial.stat().st_mtime > LEFT_OVER_SECONDS:
                partial.unlink()
