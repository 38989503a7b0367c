"""The course, run on few pictures: its claims hold, and what it leaves behind."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import boto3
import pytest
from notebook_runs import (
    COURSE,
    FEW,
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
