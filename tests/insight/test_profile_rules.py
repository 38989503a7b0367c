"""Every rule of the profiler, both ways: a run that must fire it and a near miss that must not.

WRITE_DOCS=1 writes the table in docs/profiler_rules.md; otherwise it is compared.
"""

import os
import re
import sys
import time

import pytest

from tools import ROOT

sys.path.insert(0, str(ROOT / "tests" / "insight"))

from profiled import sleep, train, train_in_two, write_profile

from insight.findings import Status
from insight.profile import read
from insight.profile_rules import PROFILER_RULES, check_profile, defaults
from vision.errors import ExpectedError

DOCS = ROOT / "docs" / "profiler_rules.md"
HEAD = """# The profiler's rules

What `insight/profile_rules.py` finds in the profile of a training job, and a run of each that must
fire it and one that comes near and must not. A *run* is a real training of a small network; a
*record* is a profile with known figures, for what only a GPU can show.
`tests/insight/test_profile_rules.py` makes the runs and this table.

| Rule | Parameters | Must fire | Near miss |
| --- | --- | --- | --- |
"""


def gpu(**columns):
    """1,200 samples of the same figures, or of those in turn where a list is given."""
    return [
        {k: v[i % len(v)] if isinstance(v, list) else v for k, v in columns.items()}
        for i in range(1200)
    ]


def record(*samples):
    return lambda folder: write_profile(folder, samples=samples[0])


# Rule: (parameters, evidence, must fire, near miss), these two as (what it is, what makes it).
CASES = {
    "LowGPUUtilization": (
        {},
        "gpu_percent",
        ("record: GPU at 69%", record(gpu(gpu_percent=69))),
        ("record: GPU at 71%", record(gpu(gpu_percent=71))),
    ),
    "LowGPUUtilization, swinging": (
        {},
        "gpu_percent",
        ("record: 5% in every 10th sample, else 95%", record(gpu(gpu_percent=[5] + [95] * 9))),
        ("record: 5% in every 30th sample, else 95%", record(gpu(gpu_percent=[5] + [95] * 29))),
    ),
    "CPUBottleneck": (
        {},
        "cpu_percent",
        (
            "record: CPU at 95% and GPU at 5% in 3 of 5 samples",
            record(gpu(cpu_percent=95, gpu_percent=[5, 5, 5, 60, 60])),
        ),
        (
            "record: the same in 2 of 5 samples",
            record(gpu(cpu_percent=95, gpu_percent=[5, 5, 60, 60, 60])),
        ),
    ),
    "IOBottleneck": (
        {},
        "iowait_percent",
        (
            "record: 60% waiting for the disk, GPU at 40%",
            record(gpu(iowait_percent=60, gpu_percent=40)),
        ),
        (
            "record: 60% waiting for the disk, GPU at 80%",
            record(gpu(iowait_percent=60, gpu_percent=80)),
        ),
    ),
    "IOBottleneck, no GPU": (
        {},
        "iowait_percent",
        ("record: 60% waiting for the disk", record(gpu(iowait_percent=60))),
        ("record: 40% waiting for the disk", record(gpu(iowait_percent=40))),
    ),
    "BatchSize": (
        {},
        "gpu_percent",
        (
            "record: CPU, GPU and its memory at 65%",
            record(gpu(cpu_percent=65, gpu_percent=65, gpu_memory_percent=65)),
        ),
        (
            "record: the same, but 75% of the memory of the GPU",
            record(gpu(cpu_percent=65, gpu_percent=65, gpu_memory_percent=75)),
        ),
    ),
    "BatchSize, no GPU": (
        {},
        "overhead_percent",
        ("run: batches of 2 pictures", lambda folder: train(folder, batch=2, steps=28)),
        ("run: batches of 256 pictures", lambda folder: train(folder, batch=256, steps=28)),
    ),
    "MaxInitializationTime": (
        {"threshold": 1.2 / 60},
        "initialization",
        ("run: 1.5 s before the first step", lambda folder: train(folder, steps=3, start=1.5)),
        ("run: 0.3 s before the first step", lambda folder: train(folder, steps=3, start=0.3)),
    ),
    "StepOutlier": (
        {},
        "forward",
        (
            "run: 12 of 500 steps take 100 times as long",
            lambda folder: sleep(folder, 500, range(30, 500, 40)),
        ),
        (
            "run: 8 of 500 steps take 100 times as long",
            lambda folder: sleep(folder, 500, range(30, 500, 60)),
        ),
    ),
    "LoadBalancing": (
        {},
        "pictures",
        (
            "run: two processes, steps of 8 and of 32 pictures",
            lambda folder: train_in_two(folder, (8, 32)),
        ),
        (
            "run: two processes, steps of 24 and of 32 pictures",
            lambda folder: train_in_two(folder, (24, 32)),
        ),
    ),
    "Dataloader": (
        {},
        "data",
        (
            "run: one of two loader workers takes 200 ms for a batch",
            lambda folder: train(folder, workers=2, steps=16, seconds=0.2),
        ),
        (
            "run: two workers as fast, steps of 150 ms",
            lambda folder: train(folder, workers=2, steps=12, rest=lambda step: time.sleep(0.15)),
        ),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_it_fires_where_it_must_and_not_where_it_comes_near(case, tmp_path):
    parameters, evidence, must, near = CASES[case]
    rule = case.partition(",")[0]
    findings = []
    for name, (_, make) in (("must", must), ("near", near)):
        profile = read(make(tmp_path / name))
        (finding,) = check_profile(profile, [rule], **{rule: parameters})
        findings.append(finding)
    fired, quiet = findings
    assert fired.status is Status.ISSUES, fired
    assert quiet.status is Status.NO_ISSUES, quiet
    assert evidence in {each.name for each in fired.evidence}
    assert fired.checked > 0
    assert "--" in fired.advice
    assert re.search(r"times as fast|\d% faster", fired.advice)
    assert quiet.advice == ""
    _check_sentences(findings)


def _check_sentences(findings):
    said = [each.said for finding in findings for each in finding.evidence]
    assert said
    assert all(re.fullmatch(r"[A-Z].*\d.*\.", each) for each in said), said


def test_the_table_of_the_docs_is_that_of_the_tests():
    text = HEAD
    for case, (parameters, _, must, near) in CASES.items():
        known = {**defaults(case.partition(",")[0]), **parameters}
        values = ", ".join(f"{k} {v:.4g}" if v else k for k, v in known.items() if v is not None)
        text += f"| {case} | {values or 'none'} | {must[0]} | {near[0]} |\n"
    text += (
        "\nOverallSystemUsage measures and never judges. Without a GPU, LowGPUUtilization and "
        "CPUBottleneck are not checked.\n"
    )
    if os.environ.get("WRITE_DOCS"):
        DOCS.write_text(text)
    assert DOCS.read_text() == text


def test_equal_pictures_and_unequal_work_are_an_unequal_load(tmp_path):
    profile = read(train_in_two(tmp_path / "profile", (16, 16), extra=(0, 40)))
    (finding,) = check_profile(profile, ["LoadBalancing"])
    assert finding.status is Status.ISSUES
    assert [each.name for each in finding.evidence] == ["process_cpu_percent"]


def test_the_gain_is_what_the_measured_wait_allows(tmp_path):
    steps = [{"data": 0.4, "forward": 0.6, "seconds": 1.0, "pictures": 32}] * 50
    for workers, busy, words in (
        (1, 50, "Set --workers 8"),
        (8, 50, "or try --workers 16"),
        (16, 50, "a smaller --image-size, or use faster storage"),
        (1, 95, "--image-size"),
    ):
        folder = write_profile(
            tmp_path / f"{workers} {busy}",
            [{"process_cpu_percent": busy}] * 20,
            steps,
            {"workers": workers, "gpu": None},
        )
        (finding,) = check_profile(read(folder), ["Dataloader"])
        assert words in finding.advice
        assert "1.7 times as fast" in finding.advice
        advised = re.findall(r"--workers (\d+)", finding.advice)
        assert all(int(each) > workers for each in advised)
    (finding,) = check_profile(read(folder), ["Dataloader"], Dataloader={"wait_threshold": 41})
    assert finding.status is Status.NO_ISSUES


def test_the_batch_size_it_names_brings_the_share_below_the_threshold(tmp_path):
    steps = [{"forward": 0.03, "backward": 0.05, "optimizer": 0.01, "seconds": 0.1}] * 50
    facts = {"gpu": None, "operator_calls": 2000.0, "operator_seconds": 5e-6}
    steps = [{**step, "pictures": 32} for step in steps]
    (finding,) = check_profile(read(write_profile(tmp_path / "p", (), steps, facts)), ["BatchSize"])
    # 0.02 of 0.09 s are the same for any batch: 22%; with 128 pictures 0.02 of 0.3, 7%.
    assert finding.evidence[0].value == pytest.approx(100 * 0.02 / 0.09)
    assert "--batch-size 128 instead of 32" in finding.advice
    assert "about 20% faster" in finding.advice
    # Where an epoch has as many pictures as the batch, or one more, nothing is to be gained.
    for more in (0, 1):
        short = [{**each, "epoch": i // 2, "pictures": 16} for i, each in enumerate(steps)]
        short[-1]["pictures"] += more
        profile = read(write_profile(tmp_path / str(more), (), short, facts))
        (finding,) = check_profile(profile, ["BatchSize"])
        assert finding.status is Status.NO_ISSUES
        assert finding.meaning.startswith("No larger batch")


def test_on_a_gpu_it_names_no_batch_that_is_larger_than_an_epoch(tmp_path):
    idle = [{"cpu_percent": 20, "gpu_percent": 20, "gpu_memory_percent": 20}] * 120
    for pictures, words in (
        (100, "--batch-size 64 instead of"),
        (40, "--batch-size 40 instead of"),
    ):
        steps = [{"epoch": 1, "pictures": pictures}]
        profile = read(write_profile(tmp_path / str(pictures), idle, steps, {"gpu": "H200"}))
        (finding,) = check_profile(profile, ["BatchSize"])
        assert words in finding.advice
    steps = [{"epoch": 1, "pictures": 32}]
    profile = read(write_profile(tmp_path / "whole", idle, steps, {"gpu": "H200"}))
    (finding,) = check_profile(profile, ["BatchSize"])
    assert finding.status is Status.ISSUES
    assert finding.advice.startswith("Take a smaller machine")


def test_a_file_cut_short_is_read_up_to_its_last_whole_line(tmp_path):
    steps = [{"seconds": 1.0, "forward": 1.0, "pictures": 2}] * 20
    folder = write_profile(tmp_path / "p", gpu(cpu_percent=50)[:20], steps, {"finished": None})
    for name in ("steps-0.csv", "system-0.csv"):
        text = (folder / name).read_text()
        (folder / name).write_text(text[: len(text) - 9])
    profile = read(folder)
    assert (len(profile.steps), len(profile.system)) == (19, 19)
    assert not profile.main["complete"]
    assert profile.main["finished"] == 1_800_000_000 + 19
    _check_sentences(check_profile(profile))
    for name in ("steps-0.csv", "system-0.csv", "phases-0.csv"):
        (folder / name).unlink()
    statuses = {finding.rule: finding.status for finding in check_profile(read(folder))}
    assert set(statuses.values()) <= {Status.NOT_CHECKED, Status.NO_ISSUES}, statuses


def test_without_a_gpu_the_rules_for_one_say_why_they_are_silent(tmp_path):
    folder = write_profile(tmp_path / "p", gpu(cpu_percent=95), (), {"gpu": None})
    for finding in check_profile(read(folder), ["LowGPUUtilization", "CPUBottleneck"]):
        assert finding.status is Status.NOT_CHECKED
        assert finding.meaning.startswith("The training ran without a GPU: ")


def test_a_run_shorter_than_the_patience_says_so(tmp_path):
    folder = write_profile(tmp_path / "p", gpu(gpu_percent=5)[:100])
    (finding,) = check_profile(read(folder), ["LowGPUUtilization"])
    assert finding.status is Status.NOT_CHECKED
    assert "skips the first 1000 samples (500 s), and the run had 100" in finding.meaning


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda folder: (folder / "profile-0.json").unlink(), "--profile true"),
        (lambda folder: (folder / "profile-0.json").write_text("{"), "damaged"),
        (lambda folder: (folder / "profile-0.json").write_text("[]"), "damaged"),
        (lambda folder: (folder / "steps-0.csv").write_text("a,b\n1,2\n"), "damaged"),
        (lambda folder: (folder / "system-0.csv").write_bytes(b"\xff\xfe\n"), "damaged"),
    ],
    ids=["none", "half", "list", "columns", "bytes"],
)
def test_a_damaged_profile_is_one_sentence(tmp_path, break_it, words):
    folder = write_profile(tmp_path / "p", gpu(cpu_percent=1)[:3])
    break_it(folder)
    with pytest.raises(ExpectedError, match=words):
        read(folder)


def test_a_rule_or_parameter_that_does_not_exist_is_refused(tmp_path):
    profile = read(write_profile(tmp_path / "p"))
    with pytest.raises(ExpectedError, match="there is no rule 'Speed': there are LowGPU"):
        check_profile(profile, ["Speed"])
    with pytest.raises(ExpectedError, match="StepOutlier has no parameter 'sigma': it has stddev"):
        check_profile(profile, StepOutlier={"sigma": 3})


def test_every_rule_has_its_case():
    cases = {case.partition(",")[0] for case in CASES}
    assert cases == set(PROFILER_RULES) - {"OverallSystemUsage"}
