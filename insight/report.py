"""Makes the report on a training job from the files that the job wrote."""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from matplotlib.figure import Figure

from insight import measures, page, plots, profile, profile_rules, rules
from insight.findings import Finding
from insight.tensors import Tensors, open_trial
from vision.errors import ExpectedError

# The version of findings.json, for whoever reads it by program.
SCHEMA_VERSION = 1
T = TypeVar("T")


@dataclass(frozen=True)
class Report:
    """What was found; `facts` is the content of findings.json."""

    findings: list[Finding]
    facts: dict[str, Any]


@dataclass(frozen=True)
class Part:
    """What debugger or profiler adds: findings, numbers for findings.json, figures by name."""

    findings: list[Finding]
    facts: dict[str, Any]
    figures: dict[str, Figure]


def build(
    output_dir: Path,
    target: Path,
    tensors: str | Path | None = None,
    only: Sequence[str] | None = None,
) -> Report:
    """Write report.html, findings.json and the figures *.png to the folder `target`.

    `output_dir` is what a training job left in its SM_OUTPUT_DATA_DIR; parts of it that are
    missing or damaged are left out with a sentence. `tensors` is the folder or s3:// URI of the
    tensors where they are not in output_dir/tensors; `only` names the debugger's rules to check,
    all without. Raises ExpectedError where nothing is there to report on.
    """
    left_out = []

    def read(what: str, how: Callable[[], T]) -> T | None:
        try:
            return how()
        except ExpectedError as error:
            reason = str(error).replace(f"{output_dir}{os.sep}", "")
            left_out.append(f"{what}, because {reason}")
            return None

    history = read("the curves by epoch", lambda: measures.read_history(output_dir))
    run = read("the hyperparameters and versions", lambda: measures.read_run(output_dir))
    debugged = read(
        "the debugger’s rules and what happened inside the network",
        lambda: read_tensors(tensors or output_dir / "tensors", only),
    )
    profiled = read(
        "the profiler’s rules, the use of the machine and where the time went",
        lambda: read_profile(output_dir / "profile"),
    )
    if history is None and debugged is None and profiled is None:
        raise ExpectedError(
            "there is nothing to report on; give what a training job left in its output folder "
            f"(left out: {'; '.join(left_out)})"
        )
    parts = [part for part in (debugged, profiled) if part]
    findings = [finding for part in parts for finding in part.findings]
    facts = {
        "schema_version": SCHEMA_VERSION,
        "run": run,
        "training": None if history is None else measures.training(history),
        "tensors": debugged.facts if debugged else None,
        "profile": profiled.facts if profiled else None,
        "findings": [finding.to_dict() for finding in findings],
        "left_out": left_out,
    }
    facts["summary"] = page.summary(facts, findings)
    figures = {} if history is None else {"curves": plots.curves(history)}
    for part in parts:
        figures |= part.figures
    write(Report(findings, facts), figures, target)
    return Report(findings, facts)


def read_tensors(place: str | Path, only: Sequence[str] | None) -> Part:
    """Check the debugger's rules and draw losses, norms and activity, from a folder or URI."""
    if isinstance(place, Path) and not place.is_dir():
        raise ExpectedError("the job saved no tensors: train with --debug true")
    trial = open_trial(str(place))
    tensors = Tensors(trial)
    losses = measures.losses(tensors)
    norms = {name: measures.norms(tensors, name) for name in ("gradients", "weights")}
    norms = {name: frame for name, frame in norms.items() if not frame.empty}
    active, silent = measures.activity(tensors), measures.silent(tensors)
    figures = {}
    if not losses.empty:
        figures["losses"] = plots.losses(losses)
    if norms:
        figures["norms"] = plots.norms(norms)
    if not active.empty:
        figures["activity"] = plots.activity(active, silent)
    facts = {
        "names": len(trial.tensor_names()),
        "steps": {mode.name: len(trial.steps(mode=mode)) for mode in trial.modes()},
        "norms": {name: measures.last_step(frame) for name, frame in norms.items()},
        "silent_units": None if silent.empty else measures.last_step(silent),
    }
    return Part(rules.check(trial, only), facts, figures)


def read_profile(folder: Path) -> Part:
    """Check the profiler's rules and draw the use of the machine and where the time went."""
    if not folder.is_dir():
        raise ExpectedError("the job wrote no profile: train with --profile true")
    found = profile.read(folder)
    steps, phases = measures.first_rank(found.steps), measures.first_rank(found.phases)
    system = measures.first_rank(found.system)
    facts = {"time": None, "use": measures.use(system), "operators": []}
    figures = {}
    if len(steps):
        times = found.main["started"], found.main["finished"]
        time = measures.time_by_epoch(steps, phases, *times)
        facts["time"] = measures.time_facts(time, steps)
        figures["time"] = plots.time_spent(time)
    if len(system):
        figures["utilisation"] = plots.utilisation(system, phases)
    if len(found.operators):
        facts["operators"] = measures.operators(found.operators)
    return Part(profile_rules.check_profile(found), facts, figures)


def write(report: Report, figures: dict[str, Figure], target: Path) -> None:
    """Write all files beside their places first, then rename them, findings.json last.

    An earlier findings.json goes first, so that it never stands beside newer files; figures of an
    earlier report that this one lacks go, too.
    """
    partial = target / f".partial-{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        for name, figure in figures.items():
            figure.savefig(partial / f"{name}.png")
        text = page.render(report.facts, report.findings, partial)
        (partial / "report.html").write_text(text, encoding="utf-8")
        text = json.dumps(report.facts, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
        (partial / "findings.json").write_text(text, encoding="utf-8")
        (target / "findings.json").unlink(missing_ok=True)
        for name in plots.NAMES:
            (target / f"{name}.png").unlink(missing_ok=True)
        for path in sorted(partial.iterdir(), key=lambda path: path.name == "findings.json"):
            path.replace(target / path.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
