"""The notebook of the classifieds site's helper, run on a few photos: its claims hold."""

import json
import re

import pytest
from notebook_runs import (
    LISTINGS,
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

# Small squares and few photos: what is tested is the way, not the accuracy.
FEW = {"IMAGE_SIZE": 64, "TRIALS": 2, "TRIAL_EPOCHS": 1, "EPOCHS": 2, "REQUESTS": 5}
PHOTOS = 12  # Of each category.


@pytest.fixture(scope="module")
def run(data_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("listings")
    few_photos(data_dir / "listings", folder / "data" / "photos", PHOTOS)
    chosen = {**FEW, "DATA": "photos"}
    yield from run_notebook(folder, LISTINGS, chosen, {"DATA_DIR": str(folder / "data")})


def test_it_succeeds_without_a_warning(run):
    assert_clean(run.notebook)
    assert run.process.stderr == ""


def test_the_list_of_links_gives_the_photos_of_the_folder_and_reports_the_one_that_is_gone(run):
    assert "**60** photos from **61** links" in run.output_of("def contents")
    assert "⚠️" in run.output_of("linked = datasets.prepare")


def test_it_searches_depth_and_decay(run):
    told = run.output_of("follow_tuning")
    found = re.findall(r"lr [\d.e-]+, gamma [\d.]+, model (resnet\d\d)", told)
    assert len(found) == 2, told
    depth = re.search(r"Best of 2: \*\*(\w+)\*\*", run.output_of("depth = best"))[1]
    assert depth in found


def test_every_figure_is_drawn(run):
    cells, bare = cells_that_draw(run.notebook)
    assert len(cells) >= 9
    assert bare == []


def test_the_built_in_algorithm_is_asked_for_and_declined_in_a_sentence(run):
    printed = run.output_of("request = {")
    request = json.loads(printed)
    types = {each["ContentType"] for each in request["InputDataConfig"]}
    assert types == {"application/x-recordio"}
    assert request["HyperParameters"]["image_shape"] == "3,64,64"
    assert "AWS alone carries this out" in run.output_of("create_training_job(**request)")
    assert "built-in algorithm" in run.output_of("create_training_job(**request)")


def test_the_table_names_three_models_and_the_choice_follows_from_it(run):
    printed = run.output_of("table = benchmark")
    for name in ("resnet50", "efficientnet_lite0"):
        assert name in printed
    chosen = re.search(r"\*\*(\w+)\*\* serves the page", run.output_of("winner = choose"))[1]
    assert chosen in printed
    assert chosen.replace("_", "-") in run.output_of("update_endpoint")


def test_the_page_answered_on_the_screenshot(run):
    (cell,) = [cell for cell in code_cells(run.notebook) if "screenshot(page" in cell.source]
    (picture,) = figures({"cells": [cell]})
    assert len(picture["data"]["image/png"]) > 10_000


def test_the_bill_has_every_launch_and_both_states_of_the_endpoint(run):
    rows, total = bill(run)
    depth = re.search(r"Best of 2: \*\*(\w+)\*\*", run.output_of("depth = best"))[1]
    assert set(rows) == {
        "search (2 trials)",
        *(f"training job “{name}”" for name in (depth, "resnet50", "efficientnet-lite0")),
        "processing job “evaluate”",
        "endpoint “candidates”",
        "endpoint “chosen”",
    }
    assert total == pytest.approx(sum(rows.values()), abs=1e-6)
    assert total > 0


def test_nothing_is_left_at_its_end(run):
    assert left_over(run) == [0] * 7
    assert "Neither page nor API answers" in run.output_of("def answers_at")
    client = run.client("sagemaker")
    jobs = client.list_training_jobs()["TrainingJobSummaries"]
    # Two trials, and one training each of three networks.
    assert [job["TrainingJobStatus"] for job in jobs] == ["Completed"] * 5
    assert client.list_endpoints()["Endpoints"] == []
    s3 = run.client("s3")
    (bucket,) = s3.list_buckets()["Buckets"]
    assert s3.list_objects_v2(Bucket=bucket["Name"])["KeyCount"] == 0


def test_it_ends_with_the_summary(run):
    accuracy = re.search(r"\*\*Test accuracy ([0-9.]+%)\*\*", all_text(run.notebook))[1]
    closing = run.process.stdout[-2000:]
    assert "served by" in closing
    assert accuracy in closing
