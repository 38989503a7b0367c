"""The committed notebooks, as a reader finds them, and the course run again on few pictures."""

import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import boto3
import nbformat
import pytest
from notebook_runs import (
    BINS,
    COURSE,
    DOGS,
    FEW,
    LISTINGS,
    OWN_FOLDER,
    accuracy,
    all_text,
    assert_clean,
    bill,
    cells_that_draw,
    code_cells,
    figures,
    left_over,
    processes_of,
    run_notebook,
)

MACHINE = re.compile(r"(?<![\w.])/(root|home|work|tmp|Users|var|mnt|private)/", re.IGNORECASE)
REGISTRIES = re.compile(r"pypi\.org|pythonhosted\.org|/opt/pypi|/opt/wheels|site-packages")
# A result: it belongs into what a cell computes, where a new run makes it anew.
TYPED_RESULT = re.compile(r"\d\.\d+ ?(%|ms\b|s\b|seconds)")


# ---- as committed ----


ALL = [COURSE, LISTINGS, BINS, DOGS, OWN_FOLDER]


@pytest.fixture(scope="module", params=ALL, ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.fixture(scope="module")
def committed(path):
    return nbformat.read(path, as_version=4)


def prose_of(notebook):
    return "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def test_it_is_a_valid_notebook_of_bearable_length(committed, path):
    nbformat.validate(committed)
    assert 30 <= len(committed.cells) <= 115
    assert path.stat().st_size < 3_000_000


def test_its_cells_are_short(committed):
    sources = [cell.source for cell in code_cells(committed)]
    lengths = [len(source.splitlines()) for source in sources]
    # Parameters are a list, with what each is for; the others do something.
    limits = [21 if source.startswith("WHERE = ") else 20 for source in sources]
    assert all(length <= limit for length, limit in zip(lengths, limits, strict=True))
    assert sorted(lengths)[len(lengths) // 2] <= 10


def test_its_code_is_introduced_by_prose(committed):
    kinds = [cell.cell_type for cell in committed.cells]
    bare = [i for i, kind in enumerate(kinds) if kind == "code" and kinds[i - 1] != "markdown"]
    assert kinds[0] == "markdown"
    assert len(bare) <= 0.2 * kinds.count("code"), f"cells without prose before them: {bare}"


def test_its_prose_states_no_result(committed):
    assert TYPED_RESULT.search(prose_of(committed)) is None


def test_it_is_committed_as_executed_from_top_to_bottom(committed):
    counts = [cell.execution_count for cell in code_cells(committed)]
    assert counts == list(range(1, len(counts) + 1))


def test_its_outputs_hold_no_error_and_no_warning(committed):
    assert_clean(committed)


def test_it_names_no_path_and_no_host_of_the_machine_that_ran_it(committed):
    text = "\n".join(cell.source for cell in committed.cells) + all_text(committed)
    # Figures inside the report's page: any letters can come up in their base64.
    lines = re.sub(r"base64,[\w+/=]+", "", text).splitlines()
    names = re.compile(rf"{MACHINE.pattern}|{REGISTRIES.pattern}|{re.escape(platform.node())}")
    assert [line for line in lines if names.search(line)] == []


def test_its_links_to_files_of_the_project_lead_somewhere(committed, path):
    found = re.findall(r"\]\(([^)]+)\)", prose_of(committed))
    targets = [target for target in found if not target.startswith("http")]
    assert targets
    assert [target for target in targets if not (path.parent / target).exists()] == []


# ---- run again ----


@pytest.fixture(scope="module")
def fashion(data_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fashion")
    yield from run_notebook(folder, COURSE, FEW, {"DATA_DIR": str(data_dir)})


def test_a_run_on_few_pictures_succeeds_without_a_warning(fashion):
    assert_clean(fashion.notebook)
    assert fashion.process.stderr == ""


def test_it_really_learns(fashion):
    assert 0.4 < accuracy(fashion) < 1


def test_it_shows_both_trials_and_every_figure(fashion):
    told = fashion.output_of("follow_tuning")
    assert "trial 1: completed" in told
    assert "trial 2: completed" in told
    assert "trial 3" not in told
    drawing, bare = cells_that_draw(fashion.notebook)
    assert len(drawing) >= 8
    assert all("plots.duplicates" in source for source in bare)


def test_its_log_shows_every_epoch_of_the_training(fashion):
    told = fashion.output_of("trainer.train(")
    assert re.findall(r"\bepoch=(\d+)", told) == ["1", "2", "3"]


def test_the_endpoint_refuses_what_is_no_picture(fashion):
    refusal = fashion.output_of("this is no picture")
    assert "400" in refusal
    assert "Traceback" not in refusal


def test_every_launch_names_its_price_first_and_each_job_what_it_came_to(fashion):
    told = all_text(fashion.notebook)
    assert told.count(" on this machine, at no cost. On AWS:") == 7
    # An hour of training at most: the search in two halves, and the full training.
    assert told.count("that is above the budget of 0.70 USD.") == 2
    assert told.count("that is within the budget of 0.70 USD.") == 5
    (spot,) = set(re.findall(r"at most, or up to \d+% less on spot capacity", told))
    assert spot.endswith("90% less on spot capacity")
    sentences = set(re.findall(r"On AWS the (.*?) would have cost \*\*\d\.\d+ USD", told))
    assert sentences == {
        "search (2 trials)",
        "training job “train”",
        "processing job “report”",
        "processing job “evaluate”",
    }


def test_the_bill_has_every_launch_and_its_total_is_their_sum(fashion):
    rows, total = bill(fashion)
    assert set(rows) == {
        "search (2 trials)",
        *(f"training job “{name}”" for name in ("train", "broken", "mended")),
        *(f"processing job “{name}”" for name in ("report", "evaluate")),
        "endpoint",
    }
    assert all(rows.values())
    assert total == pytest.approx(sum(rows.values()), abs=1e-6)
    sentence = fashion.output_of("costs.bill(cloud)")
    assert "spot capacity saved" in sentence
    assert re.search(r"as AWS named them on 202\d-\d\d-\d\d", sentence)


def test_nothing_is_left_at_its_end(fashion):
    assert left_over(fashion) == [0] * 7


def test_it_prints_where_it_is_and_ends_with_the_summary(fashion):
    count = len(code_cells(fashion.notebook))
    cells = re.findall(r"^ *\[(\d+)/(\d+)\] .* [0-9.]+ s$", fashion.process.stdout, re.MULTILINE)
    assert len(cells) == count
    assert cells[-1] == (str(count), str(count))
    closing = fashion.process.stdout[fashion.process.stdout.rindex(f"[{count}/{count}]") :]
    assert "fashion-mnist" in closing
    assert f"{accuracy(fashion):.1%}" in closing
    assert "2 trials" in closing


def test_it_can_be_read_in_a_browser(fashion):
    page = fashion.output.with_suffix(".html").read_text()
    assert page.count("data:image/png;base64") >= len(figures(fashion.notebook))
    assert f"Test accuracy {accuracy(fashion):.1%}" in page


def test_its_jobs_stay_listed_for_boto3(fashion, monkeypatch):
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in fashion.variables().items():
        monkeypatch.setenv(name, value)
    client = boto3.session.Session().client("sagemaker")
    jobs = client.list_training_jobs(SortBy="CreationTime")["TrainingJobSummaries"]
    # Two trials, the training, the broken one and the mended one.
    assert [job["TrainingJobStatus"] for job in jobs] == ["Completed"] * 5
    (search,) = client.list_hyper_parameter_tuning_jobs()["HyperParameterTuningJobSummaries"]
    assert search["TrainingJobStatusCounters"]["Completed"] == 2
    processed = client.list_processing_jobs()["ProcessingJobSummaries"]
    assert [job["ProcessingJobStatus"] for job in processed] == ["Completed"] * 2
    assert client.list_endpoints()["Endpoints"] == []
    names = [job["TrainingJobName"] for job in jobs]
    names += [search["HyperParameterTuningJobName"]]
    names += [job["ProcessingJobName"] for job in processed]
    run = re.match(r"course-\d{6}-\d{6}", names[-1])[0]  # What clean-up looks for.
    assert [name for name in names if run not in name] == []


def test_not_one_object_is_left_in_s3(fashion):
    s3 = fashion.client("s3")
    (bucket,) = s3.list_buckets()["Buckets"]
    found = s3.list_objects_v2(Bucket=bucket["Name"]).get("Contents", [])
    assert [entry["Key"] for entry in found] == []


def test_its_jobs_stay_listed_for_the_command_line(fashion):
    printed = fashion.python("local_cloud", "env").stdout
    aws = Path(sys.executable).with_name("aws")
    query = "TrainingJobSummaries[].TrainingJobStatus"
    script = f'{printed}\n"{aws}" sagemaker list-training-jobs --query "{query}" --output text'
    kept = {key: value for key, value in os.environ.items() if not key.startswith("AWS_")}
    done = subprocess.run(["bash", "-c", script], env=kept, capture_output=True, text=True)
    assert done.stdout.split() == ["Completed"] * 5, done.stderr
    status = fashion.python("local_cloud", "status").stdout
    assert status.count("Completed") == 8


def test_stop_ends_every_process_and_reset_removes_the_files(fashion):
    name = json.loads((fashion.home / "server.json").read_text())["name"]
    assert processes_of(name)
    assert fashion.stop().stdout == "local_cloud stopped.\n"
    assert processes_of(name) == []
    assert fashion.python("local_cloud", "reset").returncode == 0
    assert not fashion.home.exists()
