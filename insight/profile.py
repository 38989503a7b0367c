"""Reads the profile of a training: what `vision.profiling` wrote."""

import io
import json
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from vision.errors import ExpectedError
from vision.profile_files import OPERATOR_COLUMNS, PHASE_COLUMNS, STEP_COLUMNS, SYSTEM_COLUMNS


@dataclass(frozen=True)
class Profile:
    """What the profiler of every process wrote; the frames have a column `rank` in front.

    `facts` is profile-<rank>.json by rank, and `complete` in it: whether the process came to its
    end; `finished` of one that did not is the time of its last line. `steps` has one more column,
    `profiled`: whether torch.profiler slowed that step down.
    """

    system: pd.DataFrame
    steps: pd.DataFrame
    phases: pd.DataFrame
    operators: pd.DataFrame
    facts: dict[int, dict]

    @property
    def main(self) -> dict:
        """The facts of the first process."""
        return self.facts[min(self.facts)]

    @property
    def has_gpu(self) -> bool:
        return bool(self.system["gpu_percent"].notna().any())

    @property
    def measured(self) -> pd.DataFrame:
        """The steps that torch.profiler did not watch, without the first, which warms up."""
        return self.steps[~self.steps["profiled"] & (self.steps["step"] > 0)]

    def step_at(self, timestamp: float) -> int | None:
        """Return the step that was under way at a time, None before the first."""
        begun = self.steps[self.steps["start"] <= timestamp]
        return int(begun["step"].max()) if len(begun) else None


def read(folder: Path) -> Profile:
    """Read a profile; of a process that was killed, what is complete.

    Raises ExpectedError where there is none and where a file is damaged.
    """
    folder = Path(folder)
    try:
        files = [json.loads(path.read_text()) for path in folder.glob("profile-*.json")]
        facts = {each["rank"]: each for each in sorted(files, key=lambda each: each["rank"])}
        ranks = {
            name: pd.concat([_read_table(folder / f"{name}-{r}.csv", columns, r) for r in facts])
            for name, columns in (
                ("system", SYSTEM_COLUMNS),
                ("steps", STEP_COLUMNS),
                ("phases", PHASE_COLUMNS),
            )
            if facts
        }
        operators = _read_table(folder / "operators.csv", OPERATOR_COLUMNS)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ExpectedError(f"the profile in {folder} is damaged: {error}") from error
    if not facts:
        raise ExpectedError(f"{folder} holds no profile: train with --profile true")
    profile = Profile(operators=operators, facts=facts, **ranks)
    for rank, each in facts.items():
        each["complete"] = each["finished"] is not None
        if not each["complete"]:
            each["finished"] = _last_sign(profile, rank)
    first, end = profile.main.get("profiled_steps") or (0, 0)
    profile.steps["profiled"] = profile.steps["step"].between(first, end, inclusive="left")
    return profile


def _read_table(path: Path, columns: tuple[str, ...], rank: int | None = None) -> pd.DataFrame:
    text = path.read_text() if path.is_file() else ""
    # A process that was killed while it wrote leaves half a line.
    text = text[: text.rfind("\n") + 1] or ",".join(columns) + "\n"
    table = pd.read_csv(io.StringIO(text))
    if tuple(table.columns) != columns:
        raise ValueError(f"{path.name} has other columns than {', '.join(columns)}")
    for column in set(columns) - {"name", "operator", "input_shapes"}:
        table[column] = pd.to_numeric(table[column])
    if rank is not None:
        table.insert(0, "rank", rank)
    return table


def _last_sign(profile: Profile, rank: int) -> float:
    seen = [profile.facts[rank]["started"]]
    seen += profile.system.loc[profile.system["rank"] == rank, "timestamp"].tolist()
    for table in (profile.steps, profile.phases):
        mine = table[table["rank"] == rank]
        seen += (mine["start"] + mine["seconds"]).tolist()
    return max(seen)
