"""Checkpoints: written whole or not at all, checked when read, the last two kept.

A file is safetensors, so that reading it runs no code: every tensor of the training's state, and
as its metadata the rest as JSON with a SHA-256 over all tensors.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as tensors_to_bytes

KEPT = 2
State = tuple[dict[str, torch.Tensor], dict[str, Any]]


class Checkpoints:
    """The checkpoints of one run in a folder; those of other runs there are left alone.

    `fingerprint` (hexadecimal) stands for everything that makes two runs the same: data,
    hyperparameters, architecture. `say` gets one sentence for every file that is refused.
    """

    def __init__(self, folder: str | Path, fingerprint: str, say: Callable[[str], None] = print):
        self.folder, self.fingerprint, self.say = Path(folder), fingerprint, say
        self.folder.mkdir(parents=True, exist_ok=True)
        for partial in self.folder.glob(f".partial-{self._prefix}*"):
            partial.unlink(missing_ok=True)

    def save(self, step: int, tensors: dict[str, torch.Tensor], facts: dict[str, Any]) -> None:
        """Write the state of after `step` steps and remove all but the last two.

        Where the disk does not take it, the training goes on with the one before.
        """
        cpu = {key: value.detach().contiguous().cpu() for key, value in tensors.items()}
        facts = {**facts, "fingerprint": self.fingerprint, "digest": _digest(cpu)}
        partial = self.folder / f".partial-{self._prefix}{os.getpid()}"
        try:
            with partial.open("wb") as file:
                file.write(tensors_to_bytes(cpu, {"facts": json.dumps(facts)}))
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self.folder / f"{self._prefix}{step:09d}.safetensors")
        except OSError as error:
            with contextlib.suppress(OSError):
                partial.unlink()
            self.say(f"checkpoint of step {step} not written ({error.strerror}): training goes on")
            return
        for path in self._own()[:-KEPT]:
            path.unlink(missing_ok=True)

    def load(self) -> State | None:
        """Return tensors and facts of the latest whole checkpoint of this run, or None."""
        foreign = sorted(set(self.folder.glob("checkpoint-*.safetensors")) - set(self._own()))
        for path in foreign:
            self.say(f"{path.name} is a checkpoint of another run or other data: not used")
        for path in reversed(self._own()):
            with contextlib.suppress(OSError, ValueError, KeyError, SafetensorError):
                return self._read(path)
            self.say(f"{path.name} is damaged or of another run: going back to the one before")
        return None

    @property
    def _prefix(self) -> str:
        return f"checkpoint-{self.fingerprint[:8]}-"

    def _own(self) -> list[Path]:
        return sorted(self.folder.glob(f"{self._prefix}*.safetensors"))

    def _read(self, path: Path) -> State:
        with safe_open(path, "pt") as file:
            facts = json.loads(file.metadata()["facts"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        if facts["fingerprint"] != self.fingerprint or facts["digest"] != _digest(tensors):
            raise ValueError("not what was written")
        return tensors, facts


def _digest(tensors: dict[str, torch.Tensor]) -> str:
    total = hashlib.sha256()
    for key in sorted(tensors):
        total.update(key.encode())
        total.update(tensors[key].reshape(-1).view(torch.uint8).numpy())
    return total.hexdigest()
