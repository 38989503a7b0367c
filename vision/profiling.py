"""What a training job spends its time and its machine on, written to files while it runs.

Below the folder of a `Profiler`: `system-<rank>.csv` (the machine, at an interval), `steps-` and
`phases-<rank>.csv` (where the time went), `operators.csv` and `trace.json.gz` (a few steps under
torch.profiler; rank 0) and `profile-<rank>.json`. One thread does all the writing, so that a
step only appends to a list, and a job that is killed loses what the last interval brought.
Nothing here raises into the training: what cannot be measured is left out, with one sentence.
"""

import contextlib
import csv
import gzip
import io
import itertools
import json
import os
import shutil
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from vision.profile_files import (
    OPERATOR_COLUMNS,
    PARTS,
    PHASE_COLUMNS,
    STEP_COLUMNS,
    SYSTEM_COLUMNS,
)

# torch.profiler records so many steps after so many that warm caches and memory up.
WARM_UP_STEPS, RECORDED_STEPS, OPERATORS = 20, 3, 50
# What waits in memory is on disk after so many seconds, however long the interval is.
LONGEST_WAIT = 2.0


class Profiler:
    """Measures one process of a training, from its construction to `close`.

    `interval` is in seconds, `started` the start of the process as Unix seconds, `batch_size` and
    `workers` (loader processes) are for the record. On a GPU forward, backward and optimizer are
    timed there, by events that are read when they have passed; waiting for data and whole steps
    are timed on the host.
    """

    def __init__(
        self,
        folder: Path,
        rank: int,
        interval: float,
        batch_size: int,
        workers: int,
        started: float,
        device: torch.device,
    ):
        self._on, self._path = True, Path(folder) / f"profile-{rank}.json"
        self._device, self._interval = device, interval
        self._numbers, self._step = itertools.count(), _Step()
        self._unread: deque[_Step] = deque()
        self._closing, self._operators, self._written = threading.Event(), None, ""
        try:
            self._system = _System(device)
            self._facts = {
                "cores": self._system.cores,
                "memory_bytes": self._system.memory,
                "gpu": None,
                "gpu_memory_bytes": None,
                "rank": rank,
                "hostname": os.environ.get("SM_CURRENT_HOST", ""),
                "interval_seconds": interval,
                "workers": workers,
                "batch_size": batch_size,
                "first_step": None,
                "started": started,
                "finished": None,
                "profiled_steps": None,
                "operator_calls": None,
                "operator_seconds": None,
            }
            if device.type == "cuda":
                gpu = torch.cuda.get_device_properties(device)
                self._facts |= {"gpu": gpu.name, "gpu_memory_bytes": gpu.total_memory}
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._tables = {
                name: _Table(self._path.parent / f"{name}-{rank}.csv", columns)
                for name, columns in (
                    ("system", SYSTEM_COLUMNS),
                    ("steps", STEP_COLUMNS),
                    ("phases", PHASE_COLUMNS),
                )
            }
            self._write_facts()
            if rank == 0:
                self._operators = _Operators(self._path.parent, device)
            self._thread = threading.Thread(target=self._run, name="profiler", daemon=True)
            self._thread.start()
        except Exception as error:
            self._give_up(error)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a part of the step under way (`PARTS`), or a stretch of any other name."""
        if not self._on:
            yield
            return
        if name == "validation":
            self._end_recording()
            # The epoch ended with a wait for a batch that did not come.
            self._step = _Step()
        start, begin = time.time(), time.perf_counter()
        part = name in PARTS
        if part and self._step.start is None:
            self._step.start, self._step.begin = start, begin
        events = None
        if part and name != "data" and self._device.type == "cuda":
            events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            events[0].record()
        try:
            yield
        finally:
            seconds = time.perf_counter() - begin
            if events:
                events[1].record()
                self._step.events.append((name, *events))
            elif part:
                self._step.parts[name] += seconds
            else:
                self._tables["phases"].rows.append((name, start, seconds))

    def step(self, epoch: int, pictures: int) -> None:
        """End the step under way, which took `pictures` of this process."""
        done = self._step
        if not self._on:
            self._end_recording()
            return
        if done.start is None:
            return
        done.seconds = time.perf_counter() - done.begin
        done.epoch, done.number, done.pictures = epoch, next(self._numbers), pictures
        self._step = _Step()
        self._unread.append(done)
        self._read_out()
        self._facts["first_step"] = self._facts["first_step"] or done.start
        if self._operators:
            self._after_step(done.number)

    def close(self) -> None:
        """End all measuring; what is measured is on disk. Any further call does nothing."""
        self._end_recording()
        self._write_operators()
        if not self._on:
            return
        if self._device.type == "cuda" and self._unread:
            torch.cuda.synchronize(self._device)
        self._read_out()
        self._closing.set()
        self._thread.join()
        if not self._on:
            return
        self._facts["finished"] = time.time()
        try:
            self._flush()
        except Exception as error:
            self._give_up(error)
        self._on = False

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _read_out(self) -> None:
        while self._unread and self._unread[0].passed():
            self._tables["steps"].rows.append(self._unread.popleft().row())

    def _after_step(self, number: int) -> None:
        try:
            if number + 1 == WARM_UP_STEPS:
                with self.phase("profiling"):
                    self._operators.start()
                self._facts["profiled_steps"] = [WARM_UP_STEPS, WARM_UP_STEPS]
            elif self._operators.running:
                self._facts["profiled_steps"][1] = number + 1
                self._operators.profile.step()
                if number + 1 == WARM_UP_STEPS + RECORDED_STEPS:
                    self._end_recording()
        except Exception as error:
            self._drop_operators(error)

    def _end_recording(self) -> None:
        if not self._operators or not self._operators.running:
            return
        try:
            with self.phase("profiling"):
                self._operators.stop()
        except Exception as error:
            self._drop_operators(error)

    def _write_operators(self) -> None:
        """Write what was recorded; it takes seconds, so only when the training is over."""
        operators, self._operators = self._operators, None
        if not operators or not operators.profile:
            return
        try:
            with self.phase("profiling"):
                first, end = self._facts["profiled_steps"]
                self._facts |= operators.write(end - first)
        except Exception as error:
            self._drop_operators(error)

    def _drop_operators(self, error: Exception) -> None:
        self._operators = None
        _say("there is no table of operators", error)

    def _run(self) -> None:
        """Sample and write until closing; in a thread of its own."""
        due = time.monotonic()
        try:
            while not self._closing.wait(min(self._interval, LONGEST_WAIT)):
                if time.monotonic() >= due:
                    due = max(due + self._interval, time.monotonic())
                    self._tables["system"].rows.append(self._system.sample())
                self._flush()
        except Exception as error:
            self._give_up(error)

    def _flush(self) -> None:
        for table in self._tables.values():
            table.flush()
        self._write_facts()

    def _write_facts(self) -> None:
        text = json.dumps(self._facts, indent=1)
        if text != self._written:
            with _aside(self._path) as path:
                path.write_text(text)
            self._written = text

    def _give_up(self, error: Exception) -> None:
        self._on, self._step = False, _Step()
        self._unread.clear()
        _say("profiling ends here", error)


class _Step:
    """The times of one step; `events` are (part, begin, end) on the GPU."""

    def __init__(self):
        self.start = None
        self.parts = dict.fromkeys(PARTS, 0.0)
        self.events: list[tuple] = []

    def passed(self) -> bool:
        return not self.events or self.events[-1][2].query()

    def row(self) -> tuple:
        for part, begin, end in self.events:
            self.parts[part] += begin.elapsed_time(end) / 1000
        parts = self.parts.values()
        return (self.epoch, self.number, self.start, *parts, self.seconds, self.pictures)


class _Table:
    """A CSV file that grows: rows wait in memory until `flush` writes them with one call.

    Without a buffer of Python's own, which a forked loader worker would inherit and write again.
    """

    def __init__(self, path: Path, columns: tuple[str, ...]):
        self.rows: deque[tuple] = deque([columns])
        self.file = path.open("wb", buffering=0)
        self.flush()

    def flush(self) -> None:
        rows = [self.rows.popleft() for _ in range(len(self.rows))]
        if rows:
            data = _csv(rows)
            if self.file.write(data) != len(data):
                raise OSError(f"{self.file.name} could not be written to its end")


def _csv(rows: list[tuple]) -> bytes:
    text = io.StringIO()
    for row in rows:
        values = [round(value, 6) if isinstance(value, float) else value for value in row]
        csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue().encode()


@contextlib.contextmanager
def _aside(path: Path) -> Iterator[Path]:
    """Give a path to write to, which becomes `path` where that went well."""
    aside = path.with_name("part-" + path.name)
    try:
        yield aside
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def _say(what: str, error: Exception) -> None:
    reason = str(error).splitlines() or [type(error).__name__]
    with contextlib.suppress(OSError):
        print(f"profiler: {what}, and the training goes on: {reason[0]}", flush=True)


class _Operators:
    """torch.profiler over a few steps."""

    def __init__(self, folder: Path, device: torch.device):
        self.folder, self.gpu = folder, device.type == "cuda"
        self.profile, self.running = None, False
        # Kineto, underneath, writes what it does, and that it misses a GPU, to the job's log.
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")

    def start(self) -> None:
        activities = [torch.profiler.ProfilerActivity.CPU]
        if self.gpu:
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        self.profile = torch.profiler.profile(activities=activities, record_shapes=True)
        self.profile.start()
        self.running = True

    def stop(self) -> None:
        """Record no further steps."""
        self.running = False
        self.profile.stop()

    def write(self, steps: int) -> dict[str, float]:
        """Write operators.csv and trace.json.gz; return what calling operators costs a step."""
        if not steps:
            return {}
        table = self.profile.key_averages(group_by_input_shape=True)
        calls = sum(map(_is_of_the_network, self.profile.events()))
        table = sorted(table, key=lambda e: -max(e.self_cpu_time_total, e.self_device_time_total))
        rows = [OPERATOR_COLUMNS]
        for event in table[:OPERATORS]:
            times = (event.self_cpu_time_total, event.cpu_time_total, event.self_device_time_total)
            milliseconds = [microseconds / 1000 for microseconds in times]
            rows.append((event.key, event.count, *milliseconds, str(event.input_shapes or "")))
        with _aside(self.folder / "operators.csv") as path:
            path.write_bytes(_csv(rows))
        # Compressed here: torch.profiler compresses line by line, which takes seven times as long.
        with (
            tempfile.TemporaryDirectory() as folder,
            _aside(self.folder / "trace.json.gz") as path,
        ):
            plain = Path(folder) / "trace.json"
            self.profile.export_chrome_trace(str(plain))
            with plain.open("rb") as trace, gzip.open(path, "wb", compresslevel=5) as packed:
                shutil.copyfileobj(trace, packed, 1 << 20)
        return {"operator_calls": calls / steps, "operator_seconds": _seconds_of_a_call()}


def _is_of_the_network(event: Any) -> bool:
    """Whether an operator belongs to forward or backward.

    Those of the loader grow with the batch, and the optimizer is timed as a whole.
    """
    while event is not None:
        if event.name.startswith(("enumerate(DataLoader)", "Optimizer.")):
            return False
        event = event.cpu_parent
    return True


def _seconds_of_a_call(count: int = 200) -> float:
    """Return what calling an operator costs on this machine: on one element, the best of 5.

    torch.profiler counts three calls for each addition here: itself, its gradient, and the
    autograd engine's call of that.
    """
    x = torch.ones(1, requires_grad=True)
    best = float("inf")
    for _ in range(5):
        begin = time.perf_counter()
        total = x
        for _ in range(count):
            total = total + x
        torch.autograd.grad(total, x)
        best = min(best, time.perf_counter() - begin)
    return best / (3 * count)


def _core_seconds(times: Any) -> tuple[float, float, float]:
    """Return all seconds of a core, the idle ones, and those that waited for the disk."""
    # On Linux those of guests are in the others already.
    guests = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)
    return sum(times) - guests, times.idle, getattr(times, "iowait", 0.0)


class _System:
    """What the machine does: sources that each know some of `SYSTEM_COLUMNS`.

    A source that fails, as where a container hides a file of /proc, is left out from then on.
    Rates are per second since the sample before.
    """

    def __init__(self, device: torch.device):
        import psutil  # Here: a training without a profiler needs none.

        self.psutil, self.device = psutil, device
        has_affinity = hasattr(os, "sched_getaffinity")
        self.own = sorted(os.sched_getaffinity(0)) if has_affinity else range(os.cpu_count() or 1)
        quota, memory, self.group = cgroup_limits()
        self.quota = quota if quota and quota < len(self.own) else None
        self.cores = self.quota or len(self.own)
        total = psutil.virtual_memory().total
        self.memory_limit = memory if memory and memory < total else None
        self.memory = self.memory_limit or total
        self.counters: dict[str, tuple[float, float]] = {}
        self.processor: tuple[float, float, float] | None = None
        self.times: dict[int, float] = {}
        self.spent = 0.0
        self.sources: dict[str, Callable[[], dict[str, float]]] = {
            "processor": self._processor,
            "process": self._process,
            "memory": self._memory,
            "disk": self._disk,
            "network": self._network,
        }
        if device.type == "cuda":
            self.sources["GPU"] = self._gpu
        self.sample()

    def sample(self) -> tuple:
        """Return a row of `SYSTEM_COLUMNS`; None where there is no figure."""
        values = {"timestamp": time.time()}
        for name, source in list(self.sources.items()):
            try:
                values |= source()
            except Exception as error:
                del self.sources[name]
                _say(f"no figures of the {name}", error)
        return tuple(values.get(column) for column in SYSTEM_COLUMNS)

    def _rate(self, name: str, count: float) -> float:
        now = time.monotonic()
        before, then = self.counters.get(name, (count, now))
        self.counters[name] = count, now
        return max(count - before, 0) / max(now - then, 1e-3)

    def _processor(self) -> dict[str, float]:
        """Shares of the time since the sample before; none in the first.

        psutil's own percentages are of at least a second a core, however short ago that was.
        """
        cores = self.psutil.cpu_times(percpu=True)
        if len(cores) > self.own[-1]:
            cores = [cores[core] for core in self.own]
        total, idle, wait = map(sum, zip(*map(_core_seconds, cores)))
        before, self.processor = self.processor, (total, idle, wait)
        values = {}
        if before and total > before[0]:
            total, idle, wait = (new - old for new, old in zip(self.processor, before))
            values["cpu_percent"] = 100 * min(max(1 - (idle + wait) / total, 0.0), 1.0)
            # Only Linux tells waiting for the disk from idling.
            if hasattr(cores[0], "iowait"):
                values["iowait_percent"] = 100 * min(max(wait / total, 0.0), 1.0)
        if self.quota:
            values["cpu_percent"] = 100 * self._rate("group", self.group.cpu_seconds()) / self.quota
        return values

    def _process(self) -> dict[str, float]:
        """The process and those it started, loader workers among them."""
        before, self.times = self.times, {}
        own = self.psutil.Process()
        for process in (own, *own.children(recursive=True)):
            with contextlib.suppress(self.psutil.NoSuchProcess):
                times = process.cpu_times()
                self.times[process.pid] = times.user + times.system
        self.spent += sum(each - before.get(pid, 0.0) for pid, each in self.times.items())
        return {"process_cpu_percent": 100 * self._rate("process", self.spent) / self.cores}

    def _memory(self) -> dict[str, float]:
        if self.memory_limit:
            used = self.group.memory_bytes()
        else:
            memory = self.psutil.virtual_memory()
            used = memory.total - memory.available
        return {"memory_used_bytes": used, "memory_percent": 100 * used / self.memory}

    def _disk(self) -> dict[str, float]:
        counters = self.psutil.disk_io_counters()
        if counters is None:
            raise OSError("the system counts none")
        return {
            "disk_read_bytes": self._rate("read", counters.read_bytes),
            "disk_write_bytes": self._rate("write", counters.write_bytes),
        }

    def _network(self) -> dict[str, float]:
        cards = self.psutil.net_io_counters(pernic=True)
        # What a machine tells itself is no traffic.
        cards = [card for name, card in cards.items() if not name.startswith("lo")]
        return {
            "network_sent_bytes": self._rate("sent", sum(c.bytes_sent for c in cards)),
            "network_received_bytes": self._rate("received", sum(c.bytes_recv for c in cards)),
        }

    def _gpu(self) -> dict[str, float]:
        """By NVML, through nvidia-ml-py, which PyTorch asks for the GPU it calls by this number."""
        total = torch.cuda.get_device_properties(self.device).total_memory
        return {
            "gpu_percent": torch.cuda.utilization(self.device),
            "gpu_memory_percent": 100 * torch.cuda.device_memory_used(self.device) / total,
        }


class ControlGroup:
    """The folders of Linux's control groups that bound this process, innermost first."""

    def __init__(self, root: Path, membership: Path):
        self.folders: dict[str, list[Path]] = {"cpu": [], "cpuacct": [], "memory": []}
        for line in membership.read_text().splitlines() if membership.is_file() else ():
            _, controllers, place = line.split(":", 2)
            for controller in self.folders:
                if controllers and controller not in controllers.split(","):
                    continue
                base = root / controller if controllers else root
                inner = base / place.lstrip("/")
                # In a container the path may be the host's: then only the top is there.
                tree = [inner, *inner.parents] if inner.is_relative_to(base) else [base]
                kept = [f for f in tree if f.is_relative_to(base) and f.is_dir()]
                self.folders[controller] += kept

    def values(self, controller: str, name: str) -> list[str]:
        """Return what the files of this name hold, innermost first."""
        files = (folder / name for folder in self.folders[controller])
        return [file.read_text().strip() for file in files if file.is_file()]

    def cpu_seconds(self) -> float:
        """Return the processor time that the group has used."""
        for text in self.values("cpu", "cpu.stat"):
            fields = dict(line.split() for line in text.splitlines())
            if "usage_usec" in fields:
                return int(fields["usage_usec"]) / 1e6
        return int(self.values("cpuacct", "cpuacct.usage")[0]) / 1e9

    def memory_bytes(self) -> int:
        """Return the memory in use, without the page cache that the kernel would give back."""
        used = self.values("memory", "memory.current")
        used = used or self.values("memory", "memory.usage_in_bytes")
        stat = dict(line.split() for line in self.values("memory", "memory.stat")[0].splitlines())
        idle = stat.get("total_inactive_file", stat.get("inactive_file", 0))
        return int(used[0]) - int(idle)


def cgroup_limits(
    root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")
) -> tuple[float | None, int | None, ControlGroup]:
    """Return how many cores and bytes the control groups allow, None for any, and the groups.

    Files of version 2: cpu.max, memory.max; of version 1: cpu.cfs_quota_us and cpu.cfs_period_us,
    memory.limit_in_bytes (kernel.org, admin-guide/cgroup-v2 and cgroup-v1).
    """
    group = ControlGroup(root, membership)
    quotas = [text.split() for text in group.values("cpu", "cpu.max")]
    old = (group.values("cpu", f"cpu.cfs_{name}_us") for name in ("quota", "period"))
    quotas += zip(*old)
    cores = [int(q) / int(period) for q, period in quotas if q != "max" and int(q) > 0]
    limits = group.values("memory", "memory.max") + group.values("memory", "memory.limit_in_bytes")
    sizes = [int(text) for text in limits if text != "max"]
    return min(cores, default=None), min(sizes, default=None), group
