"""The profiler's rules: what slows a training down, read from what `vision.profiling` wrote.

    python -c "from insight import profile, profile_rules; \\
        print(profile_rules.check_profile(profile.read('profile')))"

Names, parameters and defaults are those of Amazon SageMaker Debugger's built-in rules ("List of
Debugger Built-in Rules", SageMaker developer guide, 2023), of Dataloader those of
smdebug-rulesconfig 1.0.1; the rules themselves were never published. They were written for GPUs.
Where the docstring says "Here", a rule does something else, or something more on a machine
without one. A run is measured without the steps that torch.profiler watched, which are slower.
"""

import inspect
import math
from collections.abc import Callable, Iterator
from typing import TypeVar

import pandas as pd

from insight.findings import (
    MOST_EVIDENCE,
    Evidence,
    Finding,
    Status,
    check_parameters,
    chosen_rules,
)
from insight.profile import Profile
from vision.profile_files import PARTS

FEWEST_STEPS = 10
Rule = TypeVar("Rule", bound=Callable[..., Finding])


class NotChecked(Exception):
    """Why a rule has nothing to say: one sentence."""


PROFILER_RULES: dict[str, Callable[..., Finding]] = {}


def check_profile(
    profile: Profile, rules: list[str] | None = None, **parameters: dict[str, object]
) -> list[Finding]:
    """Run the profiler's rules (all of them, or those named).

    `parameters` are by rule: check_profile(profile, StepOutlier={"stddev": 3}). Raises
    ExpectedError for a rule or a parameter that does not exist.
    """
    names = chosen_rules(PROFILER_RULES, rules, parameters)
    return [_judge(name, profile, parameters.get(name, {})) for name in names]


def defaults(name: str) -> dict[str, object]:
    """Return the parameters of a rule and their defaults."""
    signature = inspect.signature(PROFILER_RULES[name])
    return {p.name: p.default for p in signature.parameters.values() if p.kind == p.KEYWORD_ONLY}


def _judge(name: str, profile: Profile, given: dict[str, object]) -> Finding:
    known = defaults(name)
    check_parameters(name, known, given)
    try:
        finding = PROFILER_RULES[name](profile, **given)
    except NotChecked as reason:
        finding = _finding(Status.NOT_CHECKED, 0, str(reason))
    except Exception as error:  # One rule that stumbles does not take the others with it.
        reason = f"The rule stopped with {type(error).__name__}: {error}"
        finding = _finding(Status.ERROR, 0, reason)
    finding.rule, finding.parameters = name, {**known, **given}
    return finding


def _rule(function: Rule) -> Rule:
    PROFILER_RULES[function.__name__] = function
    return function


def _finding(
    status: Status | bool,
    checked: int,
    meaning: str,
    advice: str = "",
    evidence: list[Evidence] | None = None,
    first_step: int | None = None,
) -> Finding:
    if not isinstance(status, Status):
        status = Status.ISSUES if status else Status.NO_ISSUES
    if status is not Status.ISSUES:
        advice, first_step = "", None
    return Finding("", "profiler", status, first_step, evidence or [], checked, meaning, advice)


def _times(gain: float) -> str:
    if gain < 1.5:
        return f"{gain - 1:.0%} faster"
    return f"{gain:.2g} times as fast" if gain < 100 else "over 100 times as fast"


def _need_gpu(profile: Profile, instead: str) -> None:
    if profile.has_gpu:
        return
    if profile.main["gpu"]:
        raise NotChecked(
            f"{profile.main['gpu']} gave no figures of its use: install nvidia-ml-py, and mind "
            "that parts of a GPU (MIG) have none."
        )
    raise NotChecked(f"The training ran without a GPU: {instead}")


def _samples(profile: Profile, patience: int) -> pd.DataFrame:
    """Return the samples after the first `patience` of each process; raise where there are none."""
    after = profile.system[profile.system.groupby("rank").cumcount() >= patience]
    if after.empty:
        interval = profile.main["interval_seconds"]
        raise NotChecked(
            f"The rule skips the first {patience} samples ({patience * interval:.0f} s), and the "
            f"run had {len(profile.system) // len(profile.facts)}: give it a lower patience."
        )
    return after


def _windows(samples: pd.DataFrame, size: int) -> Iterator[tuple[int, pd.DataFrame]]:
    """Yield (rank, window) so that windows of `size` samples cover those of every process.

    The last of a process may overlap the one before.
    """
    for rank, table in samples.groupby("rank"):
        last = max(len(table) - size, 0)
        for start in sorted({*range(0, last, size), last}):
            yield rank, table.iloc[start : start + size]


def _measured(profile: Profile) -> pd.DataFrame:
    steps = profile.measured
    if len(steps) < FEWEST_STEPS:
        raise NotChecked(
            f"{len(steps)} steps were measured, and it takes {FEWEST_STEPS}: train longer."
        )
    return steps


def _waiting(steps: pd.DataFrame) -> float:
    return steps["data"].sum() / max(steps["seconds"].sum(), 1e-9)


def _feed_or_batch(profile: Profile) -> str:
    """Return what to change where the GPU idles: the feed where steps wait, else the batch."""
    waiting = _waiting(profile.measured)
    if waiting > 0.2:
        return f"{waiting:.0%} of the steps is waiting for data: raise --workers"
    return f"only {waiting:.0%} of the steps is waiting for data: raise --batch-size"


@_rule
def LowGPUUtilization(
    profile: Profile, *, threshold_p95=70, threshold_p5=10, patience=1000, window=500
) -> Finding:
    """The use of a GPU is low (95th percentile) or falls again and again (5th percentile)."""
    _need_gpu(profile, "there is none to be idle.")
    samples, evidence = _samples(profile, patience), []
    for rank, part in _windows(samples, window):
        low, high = part["gpu_percent"].quantile([0.05, 0.95])
        if high < threshold_p95:
            said = f"The GPU of process {rank} is used {high:.0f}% or less, 95% of the time."
        elif low < threshold_p5:
            said = f"The use of the GPU of process {rank} swings from {low:.0f}% to {high:.0f}%."
        else:
            continue
        step = profile.step_at(part["timestamp"].iloc[0])
        evidence.append(Evidence("gpu_percent", step, float(high), said))
    gain = 100 / max(profile.system["gpu_percent"].mean(), 1)
    return _finding(
        bool(evidence),
        len(samples),
        "The GPU waits for something else." if evidence else "The GPU is kept at work.",
        f"{_feed_or_batch(profile).capitalize()}; with a GPU that never waits the training is at "
        f"most {_times(gain)}.",
        evidence[:MOST_EVIDENCE],
        evidence[0].step if evidence else None,
    )


@_rule
def CPUBottleneck(
    profile: Profile, *, threshold=50, gpu_threshold=10, cpu_threshold=90, patience=100
) -> Finding:
    """The GPU idles while the processors are busy, for more than `threshold` percent of time."""
    _need_gpu(
        profile,
        "the processors do the computing themselves, so that it is no fault where they are busy; "
        "Dataloader and BatchSize tell what else they are busy with.",
    )
    table = _samples(profile, patience)
    stuck = (table["gpu_percent"] < gpu_threshold) & (table["cpu_percent"] > cpu_threshold)
    share = stuck.mean()
    said = (
        f"In {share:.0%} of {len(table)} samples the processors are over {cpu_threshold}% busy and "
        f"the GPU under {gpu_threshold}%."
    )
    found = 100 * share > threshold
    return _finding(
        found,
        len(table),
        "The GPU waits for the processors." if found else "The processors keep up with the GPU.",
        "Give the processors less to do for each picture (a smaller --image-size, fewer changes in "
        "--augment) or take a machine with more of them, with --workers to match; the training "
        f"gets at most {_times(1 / max(1 - share, 0.01))}.",
        [Evidence("cpu_percent", None, float(100 * share), said)],
        profile.step_at(table["timestamp"][stuck].min()) if found else None,
    )


@_rule
def IOBottleneck(
    profile: Profile, *, threshold=50, gpu_threshold=70, io_threshold=50, patience=1000
) -> Finding:
    """The GPU idles while the processors wait for the disk.

    Here also without a GPU: a processor that waits for the disk does not compute either.
    """
    table = _samples(profile, patience)
    if table["iowait_percent"].isna().all():
        raise NotChecked("This system does not tell waiting for the disk from idling.")
    # An absent figure compares as false.
    stuck = (table["iowait_percent"] > io_threshold) & ~(table["gpu_percent"] >= gpu_threshold)
    share = stuck.mean()
    found = 100 * share > threshold
    return _finding(
        found,
        len(table),
        "The training waits for the disk." if found else "The disk keeps up.",
        "Give the pictures as RecordIO or .tar files instead of one file each, or extract the "
        "features once (extract_features.py, --features); the training gets at most "
        f"{_times(1 / max(1 - share, 0.01))}.",
        [
            Evidence(
                "iowait_percent",
                None,
                float(100 * share),
                f"In {share:.0%} of {len(table)} samples the processors wait for the disk over "
                f"{io_threshold}% of the time.",
            )
        ],
        profile.step_at(table["timestamp"][stuck].min()) if found else None,
    )


@_rule
def BatchSize(
    profile: Profile,
    *,
    cpu_threshold_p95=70,
    gpu_threshold_p95=70,
    gpu_memory_threshold_p95=70,
    patience=100,
    window=500,
    overhead_threshold=10,
) -> Finding:
    """The batch is too small to use the machine: CPU, GPU and GPU memory are all used little.

    Here, without a GPU, where idle processors tell nothing: more than `overhead_threshold`
    percent of the computing of a step does not depend on the number of pictures. That is the
    optimizer, and the calls of operators in a step times what a call costs on one element, both
    measured in this run. It is a careful estimate: small operators cost more than that.
    """
    if not profile.main["gpu"]:
        return _overhead(profile, overhead_threshold)
    _need_gpu(profile, "")
    limits = {
        "cpu_percent": cpu_threshold_p95,
        "gpu_percent": gpu_threshold_p95,
        "gpu_memory_percent": gpu_memory_threshold_p95,
    }
    samples, evidence = _samples(profile, patience), []
    for rank, part in _windows(samples, window):
        high = part[list(limits)].quantile(0.95)
        if (high < pd.Series(limits)).all():
            said = (
                f"Process {rank}, 95% of the time: CPU up to {high['cpu_percent']:.0f}%, GPU "
                f"up to {high['gpu_percent']:.0f}%, its memory up to "
                f"{high['gpu_memory_percent']:.0f}%."
            )
            step = profile.step_at(part["timestamp"].iloc[0])
            evidence.append(Evidence("gpu_percent", step, float(high["gpu_percent"]), said))
    gain = 100 / max(profile.system["gpu_percent"].mean(), 1)
    size, pictures = profile.main["batch_size"], _pictures(profile)
    remedy = "Take a smaller machine: an epoch is a single batch already."
    if size < pictures:
        remedy = (
            f"Set --batch-size {min(2 * size, pictures)} instead of {size}, and again twice of it "
            "until the GPU or its memory is full, and raise --lr along; the training gets at most "
            f"{_times(gain)}. Or take a smaller machine."
        )
    return _finding(
        bool(evidence),
        len(samples),
        "The batch is too small for the machine, or the machine too large."
        if evidence
        else "The batch fills the machine.",
        remedy,
        evidence[:MOST_EVIDENCE],
        evidence[0].step if evidence else None,
    )


def _pictures(profile: Profile) -> float:
    """Return the pictures of an epoch, which no batch can exceed; unknown before the first step."""
    if profile.steps.empty:
        return math.inf
    return int(profile.steps.groupby("epoch")["pictures"].sum().max())


def _overhead(profile: Profile, threshold: float) -> Finding:
    steps = _measured(profile)
    # The lower quartile is of steps that nothing else on the machine held up.
    usual = steps[["forward", "backward", "optimizer"]].quantile(0.25)
    total, size = max(usual.sum(), 1e-9), profile.main["batch_size"]
    calls, cost = (profile.main.get(f"operator_{name}") or 0 for name in ("calls", "seconds"))
    fixed = min(usual["optimizer"] + calls * cost, 0.99 * total)
    share = fixed / total
    wanted = threshold / 100
    factor = max(share * (1 - wanted) / (wanted * (1 - share)), 1)
    larger = min(size * 2 ** math.ceil(math.log2(factor)), max(_pictures(profile), size))
    factor = larger / size
    gain = factor / (share + (1 - share) * factor)
    saved = 1 - 1 / gain
    parts = f"the optimizer takes {1000 * usual['optimizer']:.1f} ms"
    if calls:
        parts += f", {calls:.0f} calls of operators at least {1000 * calls * cost:.1f} ms"
    said = (
        f"Of {1000 * total:.1f} ms of computing in a step of {steps['pictures'].median():.0f} "
        f"pictures, {share:.0%} does not depend on the pictures: {parts}."
    )
    found = share > wanted and saved >= 0.01
    return _finding(
        found,
        len(steps),
        "Much of a step is the same however many pictures it has."
        if found
        else "No larger batch that an epoch fills would save 1% of the computing."
        if share > wanted
        else "Most of a step is work on its pictures.",
        f"Set --batch-size {larger} instead of {size}, and raise --lr along: the same pictures "
        f"then take about {saved:.0%} less computing (about {_times(gain)}).",
        [Evidence("overhead_percent", None, float(100 * share), said)],
        int(steps["step"].min()),
    )


@_rule
def MaxInitializationTime(profile: Profile, *, threshold=20) -> Finding:
    """The first step comes more than `threshold` minutes after the start of the process."""
    evidence, slowest = [], 0.0
    for rank, facts in profile.facts.items():
        end = facts["first_step"] or facts["finished"]
        minutes = (end - facts["started"]) / 60
        if facts["first_step"] is None and minutes <= threshold:
            raise NotChecked("No step was taken.")
        slowest = max(slowest, minutes)
        what = "took its first step after" if facts["first_step"] else "took no step in"
        said = f"Process {rank} {what} {minutes * 60:.1f} s."
        evidence.append(Evidence("initialization", None, minutes * 60, said))
    total = max(facts["finished"] - facts["started"] for facts in profile.facts.values())
    gain = total / max(total - slowest * 60, 0.01 * total, 1e-9)
    found = slowest > threshold
    return _finding(
        found,
        len(evidence),
        "Much time passes before the first step." if found else "The first step comes soon.",
        "Give the pictures as RecordIO or .tar files instead of one file each, smaller with "
        "--image-size, or let extract_features.py prepare them once and give --features; without "
        f"the wait the job is at most {_times(gain)}.",
        evidence,
        0,
    )


@_rule
def StepOutlier(profile: Profile, *, stddev=5, mode=None, n_outliers=10) -> Finding:
    """More than `n_outliers` steps last longer than the mean plus `stddev` standard deviations.

    Here, of the steps of training: the passes over the validation pictures are timed as a whole.
    """
    if mode not in (None, "TRAIN"):
        raise NotChecked(f"Only the steps of TRAIN are timed one by one, not those of {mode}.")
    steps = _measured(profile)
    evidence, lost, count = [], 0.0, 0
    for rank, mine in steps.groupby("rank"):
        mean, deviation = mine["seconds"].mean(), mine["seconds"].std(ddof=0)
        outliers = mine[mine["seconds"] > mean + stddev * deviation]
        if len(outliers) <= n_outliers:
            continue
        count += len(outliers)
        lost += (outliers["seconds"] - mine["seconds"].median()).sum()
        usual = mine.median(numeric_only=True)
        for row in outliers.sort_values("seconds", ascending=False).itertuples():
            part = max((*PARTS, "rest"), key=_excess(row, usual))
            said = (
                f"Step {row.step} of process {rank} took {1000 * row.seconds:.0f} ms instead of "
                f"the usual {1000 * usual['seconds']:.0f}; most of the difference is in {part}."
            )
            evidence.append(Evidence(part, int(row.step), float(row.seconds), said))
    total = steps["seconds"].sum()
    first = min((each.step for each in evidence), default=None)
    where = [each.name for each in evidence]
    remedy = "look for what else ran on the machine at those times"
    if where and max(where, key=where.count) == "data":
        remedy = "raise --workers, so that more batches wait ready"
    return _finding(
        bool(evidence),
        len(steps),
        f"{count} steps took far longer than the others."
        if evidence
        else "The steps take much the same time.",
        f"They cost {lost:.1f} s, {lost / total:.0%} of all steps: {remedy}; without them the "
        f"steps are at most {_times(total / max(total - lost, 0.01 * total))}. Where they come at "
        "equal distances, raise --checkpoint-seconds or --debug-interval.",
        evidence[:MOST_EVIDENCE],
        first,
    )


def _excess(row, usual: pd.Series) -> Callable[[str], float]:
    def rest(values) -> float:
        return values.seconds - sum(getattr(values, part) for part in PARTS)

    def excess(part: str) -> float:
        if part == "rest":
            return rest(row) - rest(usual)
        return getattr(row, part) - usual[part]

    return excess


@_rule
def LoadBalancing(profile: Profile, *, threshold=0.5, patience=10) -> Finding:
    """One process has so much more to do that the others wait for it.

    Here the load of a process is the pictures of its steps, its use of the processors (on a GPU,
    of that), and its wait for data: times of forward and backward tell little, since whoever is
    early waits in them for the others. A load is unequal where the least is under 1 - `threshold`
    of the greatest, and a wait where it takes `threshold` of a step more than the shortest.
    """
    if len(profile.facts) < 2:
        raise NotChecked("The training is one process: there is no load to balance.")
    steps = _measured(profile)
    use = "gpu_percent" if profile.has_gpu else "process_cpu_percent"
    samples = _samples(profile, patience)
    training = samples["timestamp"].between(steps["start"].min(), steps["start"].max())
    by_rank = steps.groupby("rank")[["pictures", "data", "seconds"]].mean()
    by_rank[use] = samples[training].groupby("rank")[use].mean()
    evidence, gains = [], []
    for load, what in (("pictures", "Pictures a step"), (use, "Average use in percent")):
        values = by_rank[load].dropna()
        if len(values) > 1 and values.min() < (1 - threshold) * values.max():
            gains.append(values.max() / values.mean())
            said = ", ".join(f"{value:.1f} in process {rank}" for rank, value in values.items())
            evidence.append(Evidence(load, None, float(values.max()), f"{what}: {said}."))
    gap = by_rank["data"].max() - by_rank["data"].min()
    length = by_rank["seconds"].mean()
    if gap > threshold * length:
        gains.append(length / max(length - gap, 0.01 * length))
        worst = by_rank["data"].idxmax()
        said = f"Process {worst} waits {1000 * gap:.0f} ms a step longer for its data than another."
        evidence.append(Evidence("data", None, float(gap), said))
    return _finding(
        bool(evidence),
        len(steps),
        "The processes wait for the one with the most to do."
        if evidence
        else "The processes have much the same to do.",
        f"Make --batch-size a multiple of {8 * len(profile.facts)}, eight pictures for each "
        "process, and give every process a machine and --workers like the others'; the steps get "
        f"at most {_times(max(gains, default=1))}.",
        evidence,
        int(steps["step"].min()),
    )


@_rule
def OverallSystemUsage(profile: Profile) -> Finding:
    """How much of each machine is used; it measures and never judges."""
    evidence, checked = [], 0
    hosts: dict[str, int] = {}
    for rank, facts in profile.facts.items():
        hosts.setdefault(facts["hostname"], rank)
    for host, rank in hosts.items():
        table = profile.system[profile.system["rank"] == rank]
        checked += len(table)
        where = f" on {host}" if host else ""
        for column, what in (
            ("cpu_percent", "Processors"),
            ("memory_percent", "Memory"),
            ("iowait_percent", "Waiting for the disk"),
            ("gpu_percent", "GPU"),
            ("gpu_memory_percent", "Memory of the GPU"),
        ):
            values = table[column].dropna()
            if len(values):
                said = (
                    f"{what}{where}: {values.mean():.0f}% on average, "
                    f"{values.quantile(0.5):.0f}, {values.quantile(0.95):.0f} and "
                    f"{values.quantile(0.99):.0f}% at the 50th, 95th and 99th percentile."
                )
                evidence.append(Evidence(column, None, float(values.mean()), said))
    if not evidence:
        raise NotChecked("There is no sample of the machine: the run was too short.")
    return _finding(False, checked, evidence[0].said, evidence=evidence)


@_rule
def Dataloader(
    profile: Profile, *, min_threshold=70, max_threshold=200, wait_threshold=20
) -> Finding:
    """The number of loader workers does not fit the cores: under 70% or over 200% of them.

    Here few workers are no fault where nobody waits for them: the steps must also spend more than
    `wait_threshold` percent of their time waiting for data, and that alone is one, however many
    workers there are.
    """
    steps = _measured(profile)
    workers, cores = profile.main["workers"], profile.main["cores"] / _processes_of_a_host(profile)
    waiting, used = _waiting(steps), 100 * workers / cores
    evidence = [
        Evidence(
            "data",
            None,
            float(100 * waiting),
            f"The steps spend {waiting:.0%} of their time waiting for data.",
        ),
        Evidence(
            "workers",
            None,
            workers,
            f"Each process has {workers} loader workers and {cores:g} cores.",
        ),
    ]
    waits = 100 * waiting > wait_threshold
    late = steps[steps["data"] > wait_threshold / 100 * steps["seconds"]]
    return _finding(
        waits or used > max_threshold,
        len(steps),
        "The network waits for its pictures."
        if waits
        else "There are more loader workers than the cores can run."
        if used > max_threshold
        else "The pictures are ready when the network wants them.",
        _advice(profile, waiting, waits, used < min_threshold),
        evidence,
        int(late["step"].min()) if waits and len(late) else None,
    )


def _advice(profile: Profile, waiting: float, waits: bool, few: bool) -> str:
    processes = _processes_of_a_host(profile)
    cores = max(math.floor(profile.main["cores"] / processes), 1)
    workers = profile.main["workers"]
    if not waits:
        fewer = min(cores, workers - 1)
        return f"Set --workers {fewer}: more of them only take turns on the cores."
    gain = 1 / max(1 - waiting, 0.01)
    # What the training itself uses: on a machine of its own that is all.
    busy = profile.system["process_cpu_percent"].mean() * processes
    idle = not busy >= 90
    if few and idle and cores > workers:
        # Without a GPU the computing needs the cores, too.
        if not profile.main["gpu"] and busy > 1:
            gain = min(gain, 100 / busy)
        return f"Set --workers {cores}: the steps get at most {_times(gain)}."
    if idle:
        other = "scale them down beforehand to a smaller --image-size, or use faster storage"
        if 2 * cores > workers:
            other = f"try --workers {2 * cores}"
        return (
            "The workers leave cores idle: one of them is slow, for which all wait since batches "
            "are taken in order, or they wait for the disk. Give the pictures as RecordIO or .tar "
            f"files, or {other}; without the wait the steps are at most {_times(gain)}."
        )
    return (
        "More --workers would only take turns on cores that are busy: give them less to do for "
        "each picture, with a smaller --image-size or fewer changes in --augment; without the "
        f"wait the steps are at most {_times(gain)}."
    )


def _processes_of_a_host(profile: Profile) -> int:
    hosts = [facts["hostname"] for facts in profile.facts.values()]
    return hosts.count(hosts[0])
