"""The report as one HTML page that needs no script, no network and no other file."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from insight.findings import Finding, Status
from vision import html
from vision.html import percent

# How a verdict reads, the ones to act on first.
STATUSES = {
    Status.ISSUES: "issue found",
    Status.ERROR: "rule failed",
    Status.NO_ISSUES: "no issue",
    Status.NOT_CHECKED: "not checked",
}
KINDS = {
    "debugger": "Rules over the tensors",
    "profiler": "Rules over time and resources",
}
# The pieces of evidence that the page shows of one rule; findings.json has all.
SHOWN_EVIDENCE = 6
# The rows of the operator table: together they are nearly all of the time.
SHOWN_OPERATORS = 15
WAITING = "waiting for data"
# As measured and as shown: name, unit and factor.
RESOURCES = {
    "gpu_percent": ("GPU", "%", 1),
    "gpu_memory_percent": ("GPU memory", "%", 1),
    "cpu_percent": ("CPU, all cores", "%", 1),
    "process_cpu_percent": ("CPU of the process", "%", 1),
    "iowait_percent": ("CPU waiting for the disk", "%", 1),
    "memory_percent": ("Memory", "%", 1),
    "memory_used_bytes": ("Memory", "GB", 1e-9),
    "disk_read_bytes": ("Disk, read", "MB/s", 1e-6),
    "disk_write_bytes": ("Disk, written", "MB/s", 1e-6),
    "network_sent_bytes": ("Network, sent", "MB/s", 1e-6),
    "network_received_bytes": ("Network, received", "MB/s", 1e-6),
}


def summary(facts: Mapping[str, Any], findings: Sequence[Finding]) -> list[str]:
    """Return what the numbers of findings.json say, in plain sentences."""
    sentences = [verdict(findings), _job(facts), _result(facts["training"])]
    if facts["profile"]:
        sentences += [
            where_time_went(facts["profile"]["time"]) if facts["profile"]["time"] else "",
            how_busy(facts["profile"]["use"]),
            slowest_operator(facts["profile"]["operators"]),
        ]
    return [sentence for sentence in sentences if sentence]


def verdict(findings: Sequence[Finding]) -> str:
    """Say how many rules found what, and name those that found an issue."""
    if not findings:
        return "No rule could be checked."
    by_status = {status: [f for f in findings if f.status == status] for status in STATUSES}
    issues = by_status[Status.ISSUES]
    named = _list([f"{f.rule}{_since(f)}" for f in issues])
    told = [
        f"{len(issues)} found an issue: {named}" if issues else "none found an issue",
        *(
            f"{len(by_status[status])} {words}"
            for status, words in (
                (Status.NO_ISSUES, "found none" if issues else "looked and were satisfied"),
                (Status.NOT_CHECKED, "could not be checked"),
                (Status.ERROR, "failed"),
            )
            if by_status[status]
        ),
    ]
    return f"Of {_count(len(findings), 'rule')}, {'; '.join(told)}."


def _since(finding: Finding) -> str:
    return "" if finding.first_step is None else f" (from step {finding.first_step:,})"


def _job(facts: Mapping[str, Any]) -> str:
    run, profiled = facts["run"], facts["profile"]
    if not run:
        return ""
    time = profiled and profiled["time"]
    took = f" in {duration(time['total_seconds'])}" if time else ""
    processes = _count(run["processes"], "process", "processes")
    return (
        f"The job trained {run['model']} on {run['train_pictures']:,} pictures of "
        f"{len(run['class_names'])} classes{took}, with {processes} on the {run['device'].upper()}"
        f" and batches of {run['batch_size']}."
    )


def _result(training: Mapping[str, Any] | None) -> str:
    if not training:
        return ""
    if training["best_valid_loss"] is None:
        return (
            f"No epoch of {training['epochs']} ended with a validation loss that is a number: the "
            "training diverged."
        )
    accuracy = training["best_valid_accuracy"]
    reached = "" if accuracy is None else f" with an accuracy of {percent(accuracy)}"
    return (
        f"Of {_count(training['epochs'], 'epoch')}, epoch {training['best_epoch']} has the lowest "
        f"validation loss, {_number(training['best_valid_loss'])}{reached}; "
        f"at the end the training loss is {_number(training['last_train_loss'])} and the "
        f"validation loss {_number(training['last_valid_loss'])}."
    )


def where_time_went(time: Mapping[str, Any]) -> str:
    """Name the largest parts of the time, and what waiting for data took."""
    total, parts = time["total_seconds"], time["parts"]
    order = sorted(parts, key=parts.get, reverse=True)[:3]
    shown = order if WAITING in order else [*order, WAITING]
    took = _list([f"{name} took {percent(parts[name] / total)}" for name in shown])
    speed = time["pictures_per_second"]
    fast = f" The steps go through {speed:,.0f} pictures a second." if speed else ""
    return f"Of {duration(total)}, {took}.{fast}"


def how_busy(use: Mapping[str, Mapping[str, float]]) -> str:
    """Say how busy GPU and CPU were, and how full the memory became."""
    busy = [
        f"the {name} is {use[column]['mean']:.0f}% busy on average"
        for column, name in (("gpu_percent", "GPU"), ("cpu_percent", "CPU"))
        if column in use
    ]
    full = [
        f"{name} is at most {use[column]['max']:.0f}% full"
        for column, name in (
            ("gpu_memory_percent", "the GPU’s memory"),
            ("memory_percent", "the memory of the machine"),
        )
        if column in use
    ]
    told = _list(busy + full)
    return told[:1].upper() + told[1:] + "." if told else ""


def slowest_operator(operators: Sequence[Mapping[str, Any]]) -> str:
    """Name the operator that takes most of the profiled steps by itself."""
    if not operators:
        return ""
    first = operators[0]
    on = "GPU" if first["on_gpu"] else "CPU"
    return (
        f"Of the operators, {first['operator']} takes most: {percent(first['share'])} of the {on} "
        "time of the steps that were traced."
    )


def extremes(norms: Mapping[str, Any]) -> str:
    """Say between which layers the norms lie at the last step that was saved."""
    known = {name: value for name, value in norms["values"].items() if value is not None}
    if not known:
        return f"At step {norms['step']:,} no norm is a number."
    low, high = min(known, key=known.get), max(known, key=known.get)
    return (
        f"At step {norms['step']:,} they reach from {known[low]:.2g} ({low}) to {known[high]:.2g} "
        f"({high})."
    )


def most_silent(silent: Mapping[str, Any]) -> str:
    """Name the ReLU with the largest share of units that never fired at the last step saved."""
    values = silent["values"]
    worst = max(values, key=values.get)
    if not values[worst]:
        return f"At step {silent['step']:,} every unit fired for at least one picture."
    return (
        f"At step {silent['step']:,} {worst} has the most silent units: {values[worst]:.1f}% fired "
        "for no picture of the batch."
    )


def _number(value: float | None) -> str:
    return "not a number" if value is None else f"{value:.3g}"


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def _list(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def duration(seconds: float) -> str:
    """Write a time in the unit that suits it."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"


def breakable(name: str) -> Markup:
    """Let a name in CamelCase break between its words, for narrow screens."""
    return Markup("<wbr>").join(re.findall(r"[A-Z]+(?![a-z])|.[^A-Z]*", name))


def marked(text: str) -> Markup:
    """Set what stands in `backquotes`, and --flags, as code."""
    escaped = re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text)))
    flags = re.sub(r"(?<![\w-])(--[a-z][a-z-]*[a-z])", r'<code class="flag">\1</code>', escaped)
    return Markup(flags)  # noqa: S704 - escaped two lines above


def render(facts: Mapping[str, Any], findings: Sequence[Finding], figures: Path) -> str:
    """Return the page, with those figures <name>.png that are in a folder."""
    order = list(STATUSES)
    return html.render(
        Path(__file__).with_name("page.html"),
        figures,
        {"breakable": breakable, "marked": marked},
        facts=facts,
        issues=[finding for finding in findings if finding.status == Status.ISSUES],
        groups={
            title: sorted(
                (finding for finding in findings if finding.kind == kind),
                key=lambda finding: order.index(finding.status),
            )
            for kind, title in KINDS.items()
        },
        statuses=STATUSES,
        drawn={path.stem for path in figures.glob("*.png")},
        resources=RESOURCES,
        extremes=extremes,
        most_silent=most_silent,
        result=_result(facts["training"]),
        where_time_went=where_time_went,
        shown_evidence=SHOWN_EVIDENCE,
        shown_operators=SHOWN_OPERATORS,
    )
