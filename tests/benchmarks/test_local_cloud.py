"""The benchmark of the local cloud in its smallest size: all its figures, and nothing left."""

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """One run of the script: (process, report, folder for its temporary files)."""
    folder = tmp_path_factory.mktemp("bench")
    report = folder / "made" / "figures.json"
    temporary = folder / "tmp"
    temporary.mkdir()
    command = [sys.executable, "benchmarks/local_cloud.py", "--json", report]
    command += ["--repeats", "1", "--requests", "2", "--jobs", "2"]
    process = subprocess.run(
        command,
        cwd=PROJECT,
        env={**os.environ, "TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert process.returncode == 0, process.stderr
    return process, json.loads(report.read_text()), temporary


def test_every_figure_is_in_the_report_and_in_the_table(bench):
    process, report, _ = bench
    names = [figure["name"].strip() for figure in report["figures"]]
    assert names == [
        "training job",
        "of it until the job is accepted",
        "endpoint in service",
        "one request",
        "throughput, callers: 1",
        "throughput, callers: 8",
        "lost or wrong answers",
        "2 quick jobs at once",
    ]
    assert all(name in process.stdout for name in names)


def test_figures_are_measured(bench):
    """Nothing takes no time, and the cloud does what is done by hand and more."""
    _, report, _ = bench
    figures = {figure["name"].strip(): figure for figure in report["figures"]}
    assert all(figure["cloud"] > 0 for name, figure in figures.items() if "lost" not in name)
    accepted = figures["of it until the job is accepted"]
    assert accepted["cloud"] < figures["training job"]["cloud"]
    assert figures["one request"]["by_hand"] < figures["one request"]["cloud"]


def test_no_request_is_lost(bench):
    _, report, _ = bench
    lost = next(figure for figure in report["figures"] if "lost" in figure["name"])
    assert (lost["cloud"], lost["met"]) == (0, True)


def test_verdicts_follow_from_the_figures(bench):
    _, report, _ = bench
    judged = [figure for figure in report["figures"] if figure["target"] is not None]
    assert len(judged) == 4
    assert all(figure["met"] == (figure["compared"] <= figure["target"]) for figure in judged)


def test_nothing_is_left(bench):
    _, _, temporary = bench
    left = [path.name for path in temporary.iterdir() if path.name.startswith("bench-")]
    assert left == []
    assert not any(str(temporary) in home for home in homes_of_servers())


def homes_of_servers():
    """The folders of all local clouds that run on this machine."""
    homes = []
    for process in psutil.process_iter():
        try:
            if "local_cloud" in process.cmdline():
                homes.append(process.environ().get("LOCAL_CLOUD_HOME", ""))
        except psutil.Error:
            continue
    return homes
