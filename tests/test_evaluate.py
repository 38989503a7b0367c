import csv
import io
import json
import shutil
import tarfile

import numpy as np
import pytest
from PIL import Image
from samples import encode, link, noise

import evaluate
from vision.cli import run
from vision.errors import ExpectedError


def evaluate_here(*argv):
    parser = evaluate.get_args_parser()
    return run(evaluate.main, parser.parse([str(word) for word in argv]))


@pytest.fixture(scope="module")
def report(run_script, model_dir, stripes, tmp_path_factory):
    """The folder of a report made as a processing job does it, from model.tar.gz."""
    folder = tmp_path_factory.mktemp("processing")
    (folder / "model").mkdir()
    with tarfile.open(folder / "model" / "model.tar.gz", "w:gz") as tar:
        tar.add(model_dir, ".")
    process = run_script(
        "evaluate.py",
        *("--model-dir", folder / "model", "--test", stripes / "test"),
        *("--output", folder / "evaluation"),
    )
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
    assert process.stdout.startswith("accuracy=")
    return folder / "evaluation"


def test_every_figure_of_the_report_follows_from_the_predictions(report, model_dir):
    described = json.loads((report / "evaluation.json").read_text())
    with (report / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["file", "true", "predicted", "confidence"]
    assert described["schema_version"] == 1
    assert described["n"] == len(rows) == 24
    right = [row["true"] == row["predicted"] for row in rows]
    assert described["accuracy"] == pytest.approx(np.mean(right))
    low, high = described["accuracy_interval_95"]
    assert low < described["accuracy"] <= high

    counts = np.array(described["confusion_matrix"]["counts"])
    names = described["confusion_matrix"]["class_names"]
    assert counts.sum() == 24
    assert np.trace(counts) == sum(right)
    for name, scores in described["classes"].items():
        index = names.index(name)
        assert scores["support"] == counts[index].sum() == 8
        assert scores["recall"] == pytest.approx(counts[index, index] / 8)
    model = json.loads((model_dir / "model.json").read_text())
    assert described["model"]["data_hash"] == model["data_hash"]
    assert len(described["worst_mistakes"]) == min(12, right.count(False))


def test_the_pictures_can_be_opened(report):
    for name in ("confusion_matrix", "per_class", "worst_mistakes"):
        with Image.open(report / f"{name}.png") as image:
            assert min(image.size) > 150
            assert max(image.size) < 1500


def test_an_unpacked_model_gives_the_same_predictions(report, model_dir, stripes, tmp_path):
    test = ("--test", stripes / "test", "--output", tmp_path)
    assert evaluate_here("--model-dir", model_dir, *test) == 0
    expected = (report / "predictions.csv").read_text()
    assert (tmp_path / "predictions.csv").read_text() == expected


def test_a_dry_run_writes_everything(model_dir, stripes, tmp_path):
    test = ("--test", stripes / "test", "--output", tmp_path / "new")
    assert evaluate_here("--model-dir", model_dir, *test, "--dry-run") == 0
    assert {path.name for path in (tmp_path / "new").iterdir()} == {
        *("evaluation.json", "predictions.csv"),
        *("confusion_matrix.png", "per_class.png", "worst_mistakes.png"),
    }
    assert json.loads((tmp_path / "new" / "evaluation.json").read_text())["n"] == 16


def test_the_quality_gate_fails_after_the_report_is_written(stripes, model_dir, tmp_path, capsys):
    shutil.copytree(stripes / "test", tmp_path / "test")
    # A picture in the wrong folder is a mistake for certain, and it should be among the worst.
    source = tmp_path / "test" / "lying" / "000.png"
    shutil.copy(source, tmp_path / "test" / "standing" / "lying.png")
    places = ("--model-dir", model_dir, "--test", tmp_path / "test", "--output", tmp_path / "out")
    assert evaluate_here(*places, "--min-accuracy", 1) == 1
    error = capsys.readouterr().err
    assert "below the --min-accuracy of 1.0" in error
    assert error.count("\n") == 1
    described = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert "standing/lying.png" in {mistake["file"] for mistake in described["worst_mistakes"]}
    assert evaluate_here(*places, "--min-accuracy", 0.3) == 0


@pytest.mark.parametrize("change", ["more", "fewer"])
def test_other_classes_are_refused(stripes, model_dir, tmp_path, capsys, change):
    shutil.copytree(stripes / "test", tmp_path / "test")
    if change == "more":
        (tmp_path / "test" / "dots").mkdir()
        (tmp_path / "test" / "dots" / "a.png").write_bytes(encode(noise()))
    else:
        shutil.rmtree(tmp_path / "test" / "squares")
    places = ("--model-dir", model_dir, "--test", tmp_path / "test", "--output", tmp_path / "out")
    assert evaluate_here(*places) == 1
    error = capsys.readouterr().err
    assert ("dots" if change == "more" else "squares") in error
    assert error.count("\n") == 1


def write_archive(path, member, data=b""):
    info = member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(member)
    info.size = len(data)
    with tarfile.open(path, "w:gz") as tar:
        tar.addfile(info, io.BytesIO(data))
    return path


def device(name):
    info = tarfile.TarInfo(name)
    info.type = tarfile.CHRTYPE
    return info


@pytest.mark.parametrize(
    "member",
    [
        *("../evil", "a/../../evil"),
        *(link("model.json", "/etc/passwd"), link("up", "..")),
        device("null"),
    ],
    ids=["sibling", "outside", "link", "link-up", "device"],
)
def test_an_unsafe_archive_is_refused(tmp_path, capsys, member):
    inside = tmp_path / "model"
    inside.mkdir()
    write_archive(inside / "model.tar.gz", member)
    places = ("--model-dir", inside, "--test", tmp_path, "--output", tmp_path / "out")
    assert evaluate_here(*places) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert not list(tmp_path.rglob("evil"))


def test_an_absolute_path_stays_inside(tmp_path):
    archive = write_archive(tmp_path / "model.tar.gz", "/evil-absolute", b"x")
    (tmp_path / "to").mkdir()
    evaluate.extract(archive, tmp_path / "to")
    assert (tmp_path / "to" / "evil-absolute").is_file()


def test_an_archive_that_unpacks_to_too_much_is_refused_early(tmp_path):
    archive = write_archive(tmp_path / "model.tar.gz", "zeros", bytes(30_000_000))
    assert archive.stat().st_size < 100_000
    (tmp_path / "to").mkdir()
    with pytest.raises(ExpectedError, match="unpacks to more than"):
        evaluate.extract(archive, tmp_path / "to", max_bytes=1_000_000)
    assert sum(path.stat().st_size for path in (tmp_path / "to").iterdir()) <= 1_000_000


@pytest.mark.parametrize("data", [b"", b"hello", b"\x1f\x8b\x08\0\0\0\0\0"])
def test_a_damaged_archive_is_told(tmp_path, data):
    (tmp_path / "model.tar.gz").write_bytes(data)
    with pytest.raises(ExpectedError, match="is damaged"):
        evaluate.read_model(tmp_path)


def test_a_folder_without_a_model_is_told(tmp_path):
    with pytest.raises(ExpectedError, match=r"neither model\.tar\.gz nor"):
        evaluate.read_model(tmp_path)


def test_calibration_error_known_answers():
    right = np.array([True, True, True, False])
    assert evaluate.expected_calibration_error(np.full(4, 0.75), right) == pytest.approx(0)
    assert evaluate.expected_calibration_error(np.ones(4), right) == pytest.approx(0.25)
    mixed = evaluate.expected_calibration_error(np.array([0.9, 0.9, 0.5, 0.5]), right)
    assert mixed == pytest.approx(0.05)
