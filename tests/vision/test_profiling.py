"""The profiler's files, and that nothing of it reaches the training."""

import contextlib
import csv
import gzip
import io
import json
import re
import resource
import sys
import time
from collections import namedtuple
from pathlib import Path

import pandas as pd
import psutil
import pytest
import torch

from tools import ROOT

sys.path.insert(0, str(ROOT / "tests" / "insight"))

from profiled import CPU, Training, fork, train

from insight.measures import time_by_epoch
from insight.profile import read
from vision import profiling
from vision.profile_files import (
    OPERATOR_COLUMNS,
    PHASE_COLUMNS,
    STEP_COLUMNS,
    SYSTEM_COLUMNS,
)
from vision.profiling import Profiler, cgroup_limits


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def phase_of(folder, name):
    (row,) = (row for row in rows(folder / "phases-0.csv") if row["name"] == name)
    return row


@pytest.fixture(scope="module")
def profile(tmp_path_factory):
    """29 steps that sleep, a validation, and the first step of the next epoch."""
    folder = tmp_path_factory.mktemp("profile") / "profile"
    begin = time.time()
    with Profiler(folder, 0, 0.1, 4, 2, begin - 5, CPU) as profiler:
        training = Training(profiler, rest=lambda step: time.sleep(0.012))
        for _ in range(29):
            with profiler.phase("data"):
                time.sleep(0.006)
            training.step(torch.randn(4, 3, 16, 16))
        # The loader has no more.
        with profiler.phase("data"):
            pass
        with profiler.phase("validation"):
            time.sleep(0.2)
        with profiler.phase("data"):
            time.sleep(0.006)
        training.step(torch.randn(4, 3, 16, 16), epoch=2)
    profiler.close()
    return folder


def test_the_files_are_those_of_the_contract(profile):
    names = {"system-0.csv", "steps-0.csv", "phases-0.csv", "profile-0.json"}
    assert {path.name for path in profile.iterdir()} == {*names, "operators.csv", "trace.json.gz"}
    for name, columns in (
        ("system-0", SYSTEM_COLUMNS),
        ("steps-0", STEP_COLUMNS),
        ("phases-0", PHASE_COLUMNS),
        ("operators", OPERATOR_COLUMNS),
    ):
        assert (profile / f"{name}.csv").read_text().startswith(",".join(columns) + "\n")
    facts = json.loads((profile / "profile-0.json").read_text())
    assert facts["cores"] <= psutil.cpu_count()
    assert (facts["workers"], facts["batch_size"], facts["gpu"]) == (2, 4, None)
    assert facts["started"] + 5 <= facts["first_step"] < facts["finished"]


def test_every_part_of_a_step_is_timed_by_itself(profile):
    steps = rows(profile / "steps-0.csv")
    assert [int(row["step"]) for row in steps] == list(range(30))
    for row in steps:
        data, forward, *others = (float(row[p]) for p in ("data", "forward", "backward"))
        assert data >= 0.006
        assert forward >= 0.012
        assert data + forward + sum(others) <= float(row["seconds"])
    begin = float(steps[29]["start"])
    validation = phase_of(profile, "validation")
    assert begin >= float(validation["start"]) + float(validation["seconds"])
    assert float(validation["seconds"]) >= 0.2


def test_the_machine_is_sampled_at_the_interval(profile):
    samples = rows(profile / "system-0.csv")
    assert len(samples) >= 4
    for row in samples:
        assert 0 <= float(row["cpu_percent"]) <= 100
        assert 0 < float(row["memory_percent"]) < 100
        assert row["gpu_percent"] == row["gpu_memory_percent"] == ""
    assert any(float(row["process_cpu_percent"]) > 0 for row in samples)


CoreTimes = namedtuple("CoreTimes", "user nice system idle iowait guest")


def test_processors_are_busy_for_their_share_of_the_time_between_two_looks(monkeypatch):
    """However short that is: a fifth of a second here, of which half a core worked."""
    looks = [
        # What guests used is counted as the user's, too.
        [CoreTimes(50.0, 0.0, 9.0, 100.0, 7.0, 3.0), CoreTimes(1.0, 0.0, 0.0, 8.0, 0.0, 0.0)],
        [CoreTimes(50.1, 0.0, 9.1, 100.0, 7.0, 3.1), CoreTimes(1.0, 0.0, 0.0, 8.1, 0.1, 0.0)],
        [CoreTimes(50.1, 0.0, 9.1, 100.0, 7.0, 3.1), CoreTimes(1.0, 0.0, 0.0, 8.1, 0.1, 0.0)],
    ]
    monkeypatch.setattr(psutil, "cpu_times", lambda percpu: looks.pop(0))
    monkeypatch.setattr(profiling.os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    monkeypatch.setattr(profiling, "cgroup_limits", lambda: (None, None, None))
    system = profiling._System(CPU)
    look = dict(zip(SYSTEM_COLUMNS, system.sample()))
    assert look["cpu_percent"] == pytest.approx(50)
    assert look["iowait_percent"] == pytest.approx(25)
    assert dict(zip(SYSTEM_COLUMNS, system.sample()))["cpu_percent"] is None


def test_the_operators_of_the_loader_and_of_the_optimizer_are_not_the_networks():
    class Pictures(torch.utils.data.Dataset):
        def __len__(self):
            return 64

        def __getitem__(self, number):
            return torch.rand(8).mul(2).add(1)

    net = torch.nn.Linear(8, 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    found = []
    for batch in (4, 32):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as recorded:
            X = next(iter(torch.utils.data.DataLoader(Pictures(), batch)))
            net(X).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        counted = [event for event in recorded.events() if profiling._is_of_the_network(event)]
        found.append([event.name for event in counted])
    assert found[0] == found[1]
    assert "aten::addmm" in found[0]
    assert "aten::mul" not in found[0]


def test_a_wait_that_a_gpu_computes_through_takes_no_time():
    """Data are waited for on the host while the GPU is still busy with the step before."""
    steps = {"epoch": [1, 1], "start": [10.0, 11.0], "data": [1.0, 1.0], "forward": [0.4, 0.4]}
    steps = pd.DataFrame({**steps, "backward": [0.5, 0.5], "optimizer": [0.1, 0.1]})
    phases = pd.DataFrame({"name": ["validation"], "start": [12.0], "seconds": [0.5]})
    (_, table) = time_by_epoch(steps, phases, 9.0, 12.5).iterrows()
    found = table[1]
    assert found["waiting for data"] == pytest.approx(0.0)
    assert found["validation"] == pytest.approx(0.5)
    assert found.sum() == pytest.approx(2.5)


def test_a_few_steps_leave_their_operators_and_a_trace(profile):
    table = rows(profile / "operators.csv")
    convolutions = [row for row in table if row["operator"] == "aten::convolution"]
    assert sum(int(row["calls"]) for row in convolutions) == 3 * 2
    trace = json.loads(gzip.decompress((profile / "trace.json.gz").read_bytes()))
    names = {event.get("name", "") for event in trace["traceEvents"]}
    assert "aten::convolution" in names
    facts = json.loads((profile / "profile-0.json").read_text())
    assert facts["profiled_steps"] == [20, 23]


def test_an_epoch_that_ends_early_ends_the_recording(tmp_path):
    with Profiler(tmp_path, 0, 5, 4, 0, time.time(), CPU) as profiler:
        training = Training(profiler)
        for _ in range(22):
            training.step(torch.randn(4, 3, 16, 16))
        with profiler.phase("validation"):
            training.net(torch.randn(4, 3, 16, 16))
    facts = json.loads((tmp_path / "profile-0.json").read_text())
    assert facts["profiled_steps"] == [20, 22]
    calls = {row["operator"]: int(row["calls"]) for row in rows(tmp_path / "operators.csv")}
    assert calls["aten::native_batch_norm"] == 2 * 2


def test_a_killed_training_loses_at_most_seconds(tmp_path):
    process = fork(train, tmp_path, 4, 10**9, 0, 0.0, lambda step: time.sleep(0.02))
    try:
        limit = time.time() + 60
        steps = tmp_path / "steps-0.csv"
        while time.time() < limit and not (steps.exists() and len(rows(steps)) > 10):
            time.sleep(0.05)
    finally:
        process.kill()
        killed = time.time()
        process.join()
    profile = read(tmp_path)
    assert not profile.main["complete"]
    assert killed - 2 < profile.main["finished"] <= killed
    assert len(profile.measured) >= 10


def test_a_full_disk_ends_the_profiler_and_not_the_training(tmp_path):
    ours, theirs = torch.multiprocessing.get_context("fork").Pipe()
    process = fork(train_on_a_small_disk, tmp_path, theirs)
    assert ours.poll(60)
    steps, said = ours.recv()
    process.join()
    assert steps == 40
    assert re.fullmatch(r"profiler: profiling ends here, and the training goes on: .+\n", said)
    assert not list(tmp_path.glob("part-*"))


def train_on_a_small_disk(folder, connection):
    """Take 40 steps where no file can be larger than 800 bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (800, 800))
    steps = []

    def rest(step):
        steps.append(step)
        time.sleep(0.02)

    with contextlib.redirect_stdout(io.StringIO()) as said:
        train(folder, 4, 40, rest=rest)
    connection.send((len(steps), said.getvalue()))


def test_a_missing_proc_file_costs_its_columns_and_a_missing_proc_the_profile(
    tmp_path, monkeypatch, capsys
):
    proc = tmp_path / "proc"
    proc.mkdir()
    for name in ("stat", "meminfo"):
        (proc / name).write_text(Path("/proc", name).read_text())
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(proc))
    train(tmp_path / "some", steps=3, rest=lambda step: time.sleep(0.1))
    sample = rows(tmp_path / "some" / "system-0.csv")[-1]
    assert sample["memory_percent"] != ""
    assert sample["network_sent_bytes"] == ""
    assert "profiler: no figures of the network, and the training" in capsys.readouterr().out
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path / "none"))
    train(tmp_path / "none", steps=3)
    (said,) = capsys.readouterr().out.splitlines()
    assert said.startswith("profiler: profiling ends here, and the training goes on: ")


def test_a_folder_that_cannot_be_made_ends_the_profiler_with_a_sentence(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    train(tmp_path / "file" / "profile", steps=3)
    (said,) = capsys.readouterr().out.splitlines()
    assert said.startswith("profiler: profiling ends here")


@pytest.mark.parametrize("nested", [False, True], ids=["container", "host"])
@pytest.mark.parametrize("version", [1, 2])
def test_cores_and_memory_are_those_of_the_control_group(tmp_path, version, nested):
    root, place = tmp_path / "cgroup", "docker/ab" if nested else ""
    membership = tmp_path / "membership"
    if version == 2:
        membership.write_text("0::/docker/ab\n")
        files = {"cpu.max": "150000 100000", "memory.max": "2000", "memory.current": "900"}
        files |= {"memory.stat": "anon 1\ninactive_file 100", "cpu.stat": "usage_usec 7000000"}
        folders = dict.fromkeys(files, root / place)
    else:
        membership.write_text("4:cpu,cpuacct:/docker/ab\n3:memory:/docker/ab\n0::/\n")
        files = {"cpu.cfs_quota_us": "150000", "cpu.cfs_period_us": "100000"}
        files |= {"memory.limit_in_bytes": "2000", "memory.usage_in_bytes": "900"}
        files |= {"memory.stat": "inactive_file 7\ntotal_inactive_file 100"}
        files |= {"cpuacct.usage": "7000000000"}
        folders = {name: root / name.partition(".")[0] / place for name in files}
    for name, text in files.items():
        folders[name].mkdir(parents=True, exist_ok=True)
        (folders[name] / name).write_text(text + "\n")
    cores, memory, group = cgroup_limits(root, membership)
    assert (cores, memory) == (1.5, 2000)
    assert (group.cpu_seconds(), group.memory_bytes()) == (7.0, 800)
