"""The notebook that counts items, run on a few photos: its claims hold."""

import json
import re

import pytest
from notebook_runs import (
    BINS,
    all_text,
    assert_clean,
    bill,
    cells_that_draw,
    few_photos,
    left_over,
    run_notebook,
)

EPOCHS = 20  # Of more than a second each, so that a checkpoint lives until it is in S3.
# Small squares and few photos: what is tested is the way, not the accuracy.
FEW = {
    "DATA": "photos",
    "LISTED": 10,
    "MODELS": '["small_resnet", "small_resnet_wide"]',
    "TRIALS": 2,
    "TRIAL": '{"image-size": 32, "epochs": 1, "train-share": 1}',
    "FINALIST": '{"image-size": 40, "epochs": 1, "train-share": 1}',
    "REPEATS": "[1]",
    "SPREADS": "[0.0, 0.5]",
    "SEEDS": "[1, 2]",
    "RECIPE": json.dumps(
        {
            "recipe": "photos-all",
            "image-size": 128,
            "augment": "shift,flip,vflip",
            "epochs": EPOCHS,
            "patience": 0,
            "checkpoint-seconds": 1,
            "answer-views": 4,
        }
    ),
    "STRETCH": 8,
}
PHOTOS = 16  # Of each count.


@pytest.fixture(scope="module")
def run(data_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bins")
    few_photos(data_dir / "bins", folder / "data" / "photos", PHOTOS)
    yield from run_notebook(folder, BINS, FEW, {"DATA_DIR": str(folder / "data")})


def test_it_succeeds_without_a_warning(run):
    assert_clean(run.notebook)
    assert run.process.stderr == ""


def test_the_list_of_keys_gives_the_photos_of_the_folder(run):
    assert "**50** photos by their keys" in run.output_of("arrived = [")
    assert "data/metadata/" in run.output_of("bin-images/{path.stem}.jpg")


def test_reported_numbers_are_marked_as_such(run):
    rows = run.output_of("*here, *cited").splitlines()
    by_source = {
        source: [row for row in rows if source in row] for source in ("here", "https://github.com")
    }
    assert any("55.67%" in row for row in by_source["https://github.com"])
    assert any(row.split()[-2:] == ["measured", "here"] for row in by_source["here"])
    assert not any("55.67%" in row for row in by_source["here"])


def test_the_search_is_over_networks_and_the_training_takes_its_choice(run):
    told = run.output_of('tuner = make_tuner("search"')
    found = dict(re.findall(r"trial (\d): completed.*model (\w+)[,)]", told))
    assert set(found) == {"1", "2"}, told
    assert set(found.values()) <= {"small_resnet", "small_resnet_wide"}
    finalists = run.output_of("for number, (name, values) in enumerate(candidates")
    assert len(re.findall(r"trial 1: completed", finalists)) == len(set(found.values()))
    chosen = re.search(r"longer budget \*\*(\w+)\*\*", run.output_of("winner = "))[1]
    assert chosen in found.values()
    client = run.client("sagemaker")
    job = client.describe_training_job(TrainingJobName=training(run))
    assert job["HyperParameters"]["model"].strip('"') == chosen
    spread = re.search(r"takes a spread of \*\*([\d.]+)\*\*", run.output_of("by_seed = "))[1]
    assert float(job["HyperParameters"]["ordinal"]) == float(spread)
    assert job["ResourceConfig"]["InstanceCount"] == 2


def training(run):
    jobs = run.client("sagemaker").list_training_jobs(NameContains="-train-")
    (name,) = [job["TrainingJobName"] for job in jobs["TrainingJobSummaries"]]
    return name


def test_the_training_is_interrupted_and_goes_on(run):
    job = run.client("sagemaker").describe_training_job(TrainingJobName=training(run))
    statuses = [phase["Status"] for phase in job["SecondaryStatusTransitions"]]
    assert statuses.count("Interrupted") == 1
    assert statuses[-1] == "Completed"
    assert job["BillableTimeInSeconds"] < job["TrainingTimeInSeconds"]
    assert "is interrupted" in run.output_of('"interrupt", name')
    told = run.output_of("job = follow(cloud, name)")
    assert 1 <= int(re.search(r"resumed at epoch (\d+)", told)[1]) <= EPOCHS
    # No epoch twice: the second part has those that were still to come. The SDK's driver may end
    # before it has passed on the last line of the first part.
    told = [int(epoch) for epoch in re.findall(r"\bepoch=(\d+)", told)]
    assert told == sorted(set(told))
    assert len(told) >= EPOCHS - 1


def test_every_figure_is_drawn(run):
    cells, bare = cells_that_draw(run.notebook)
    assert len(cells) >= 15
    # So few photos may have neither near-duplicates nor suspect labels.
    assert all("plots.duplicates" in source or "label_suspects" in source for source in bare)


def test_every_request_is_captured_once(run):
    stated = re.search(r"\*\*(\d+)\*\* records for \*\*(\d+)\*\*", all_text(run.notebook))
    assert stated.groups() == ("32", "32")
    assert "**34** records in all" in run.output_of("everything = ")


def test_the_charts_stretches_are_all_there(run):
    printed = run.output_of("effect.round")
    for stretch in ("as they are", "out of focus", "dark", "covered"):
        assert stretch in printed
    assert run.output_of("def noticed").count("notices") == 3


def test_the_function_answers_and_refuses(run):
    answer = json.loads(run.output_of("direct = function.handler"))
    assert set(answer["scores"]) == {"1", "2", "3", "4", "5"}
    assert sum(answer["scores"].values()) == pytest.approx(1)
    assert "400" in run.output_of("refused = function.handler")


def test_the_bill_has_a_line_for_every_launch(run):
    rows, total = bill(run)
    assert set(rows) == {
        "search (2 trials)",
        "search (1 trial)",  # The finalists; untuned, tuned and from scratch.
        "search (4 trials)",
        "training job “train”",
        *(f"processing job “{name}”" for name in ("features", "evaluate")),
        "endpoint",
    }
    assert total == pytest.approx(sum(rows.values()), abs=1e-6)
    assert "would have cost" in run.output_of("costs.bill(cloud)")


def test_nothing_is_left_at_its_end(run):
    assert left_over(run) == [0] * 7
    client = run.client("sagemaker")
    assert client.list_endpoints()["Endpoints"] == []
    s3 = run.client("s3")
    (bucket,) = s3.list_buckets()["Buckets"]
    assert s3.list_objects_v2(Bucket=bucket["Name"])["KeyCount"] == 0


def test_it_ends_with_the_summary(run):
    accuracy = re.search(r"\*\*Test accuracy ([0-9.]+%)\*\*", all_text(run.notebook))[1]
    closing = run.process.stdout[-2000:]
    assert accuracy in closing
    assert "1 interruption(s)" in closing
    assert "34 requests" in closing
