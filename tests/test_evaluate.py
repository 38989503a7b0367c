import base64
import csv
import io
import json
import math
import re
import shutil
import tarfile
from html.parser import HTMLParser
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch
from PIL import Image
from samples import encode, link, noise

import evaluate
from vision import baselines, page
from vision.calibration import fit_temperature
from vision.classifier import Classifier, load_classifier
from vision.cli import run
from vision.data import list_split, load_split
from vision.errors import ExpectedError
from vision.models import build_model
from vision.preprocessing import Preprocessing

SCHEMA = json.loads((Path(evaluate.__file__).parent / "docs/evaluation.schema.json").read_text())
FIGURES = {
    *("confusion_matrix", "per_class", "reliability", "coverage"),
    *("worst_mistakes", "least_confident_hits", "label_suspects"),
}
FILES = {
    *("evaluation.html", "evaluation.json", "predictions.csv"),
    *(f"{name}.png" for name in FIGURES),
}


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
        *("--train", stripes / "train", "--previous-model", model_dir),
        *("--output", folder / "evaluation"),
    )
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
    assert re.search(r"^accuracy=\S+ low=\S+ high=\S+ n=24 ", process.stdout, re.MULTILINE)
    assert "left out" not in process.stdout
    return folder / "evaluation"


def read_report(folder):
    """The content of evaluation.json, which keeps to its schema."""
    described = json.loads((folder / "evaluation.json").read_text())
    jsonschema.Draft202012Validator(SCHEMA).validate(described)
    return described


def test_every_figure_of_the_report_follows_from_the_predictions(report, model_dir):
    described = read_report(report)
    with (report / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["file", "true", "predicted", "confidence"]
    assert described["schema_version"] == 2
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


def test_the_errors_of_counts_follow_from_the_predictions(model_dir, stripes, tmp_path):
    """With classes that are called 1, 2 and 4, and some pictures in the wrong one."""
    counts = {"lying": "1", "squares": "2", "standing": "4"}
    model = shutil.copytree(model_dir, tmp_path / "model")
    text = (model / "model.json").read_text()
    for old, new in counts.items():
        text = text.replace(f'"{old}"', f'"{new}"')
        shutil.copytree(stripes / "test" / old, tmp_path / "test" / new)
    (model / "model.json").write_text(text)
    for old, new in (("1", "2"), ("2", "4"), ("4", "1")):
        wrong = tmp_path / "test" / new / f"of-{old}.png"
        shutil.move(tmp_path / "test" / old / "000.png", wrong)
    places = ("--model-dir", model, "--test", tmp_path / "test", "--output", tmp_path / "out")
    assert evaluate_here(*places) == 0
    with (tmp_path / "out" / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    errors = np.array([int(row["predicted"]) - int(row["true"]) for row in rows])
    found = read_report(tmp_path / "out")["counting"]
    assert found["most_likely"] == pytest.approx(describe_errors(errors, errors))
    assert 0 < found["most_likely"]["within_one"] < 1

    classifier = load_classifier(model)
    split = load_split(list_split(tmp_path / "test"), classifier.class_names, 16, 1)
    true = np.array([1, 2, 4])[split.labels.numpy()]
    expected = classifier.probabilities(split.images).numpy() @ [1, 2, 4]
    described = describe_errors(expected - true, expected.round() - true)
    assert found["expected"] == pytest.approx(described)


def describe_errors(errors, whole):
    return {
        "rmse": math.sqrt(np.mean(errors**2)),
        "mean_absolute_error": np.mean(abs(errors)),
        "within_one": np.mean(abs(whole) <= 1),
    }


def test_the_baselines_are_measured_on_the_same_pictures(report):
    found = read_report(report)
    assert found["left_out"] == []
    measured = found["baselines"]
    assert measured["majority"]["accuracy"] == pytest.approx(1 / 3)
    assert measured["logistic_regression"]["train_pictures"] == 72
    assert measured["logistic_regression"]["accuracy"] > 0.6
    assert measured["previous_model"]["accuracy"] == found["accuracy"]
    assert measured["previous_model"]["mcnemar"]["p_value"] == 1.0
    for baseline in measured.values():
        assert baseline["this_model_accuracy"] == found["accuracy"]
        counts = baseline["mcnemar"]
        assert sum(value for key, value in counts.items() if key != "p_value") == 24


class Page(HTMLParser):
    """The elements and the text of a page; tags must be closed in the order they were opened."""

    VOID = ("meta", "img")

    def __init__(self, folder):
        super().__init__()
        self.elements, self.text, self.open = [], "", []
        self.feed((folder / "evaluation.html").read_text(encoding="utf-8"))
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.open += [tag] if tag not in self.VOID else []

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_page_stands_alone_and_every_picture_has_a_text(report):
    page, described = Page(report), read_report(report)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.elements}
    assert not re.search(r"https?://|url\(|@import", (report / "evaluation.html").read_text())
    pictures = [attributes for tag, attributes in page.elements if tag == "img"]
    shown = ("worst_mistakes", "least_confident_hits")
    tiles = sum(len(described[name]) for name in shown)
    tiles += len(described["label_suspects"]["pictures"])
    assert len(pictures) == 4 + 2 * tiles
    for picture in pictures:
        assert picture["alt"]
        kind, _, data = picture["src"].partition(",")
        assert kind == "data:image/png;base64"
        Image.open(io.BytesIO(base64.b64decode(data))).verify()
    words = " ".join(page.text.split())
    for sentence in described["summary"][1:]:
        assert sentence in words


def test_the_pictures_can_be_opened(report):
    for name in FIGURES:
        with Image.open(report / f"{name}.png") as image:
            assert min(image.size) > 150
            assert max(image.size) < 1500


def test_an_unpacked_model_gives_the_same_predictions(report, model_dir, stripes, tmp_path):
    test = ("--test", stripes / "test", "--output", tmp_path)
    assert evaluate_here("--model-dir", model_dir, *test) == 0
    expected = (report / "predictions.csv").read_text()
    assert (tmp_path / "predictions.csv").read_text() == expected


def test_a_dry_run_writes_everything_and_says_what_is_left_out(
    model_dir, stripes, tmp_path, capsys
):
    test = ("--test", stripes / "test", "--output", tmp_path / "new")
    # A misspelt folder is not the same as none.
    absent = ("--train", tmp_path / "absent")
    assert evaluate_here("--model-dir", model_dir, *test, *absent, "--dry-run", "true") == 0
    assert {path.name for path in (tmp_path / "new").iterdir()} == FILES
    described = read_report(tmp_path / "new")
    assert described["n"] == 16
    assert described["baselines"]["logistic_regression"] is None
    first, second = described["left_out"]
    assert first.endswith("because --train names no folder, or an empty one")
    assert second.endswith("because none was given (--previous-model)")
    assert str(tmp_path) not in "".join(described["left_out"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:] == [f"left out: {first}", f"left out: {second}"]
    words = " ".join(Page(tmp_path / "new").text.split())
    assert f"Left out: {first}." in words


@pytest.mark.parametrize("fault", ["other classes", "damaged"])
def test_a_previous_model_that_cannot_be_asked_costs_only_its_comparison(
    stripes, model_dir, tmp_path, capsys, fault
):
    previous = shutil.copytree(model_dir, tmp_path / "previous")
    text = (previous / "model.json").read_text()
    text = text.replace('"squares"', '"rings"') if fault == "other classes" else text[:100]
    (previous / "model.json").write_text(text)
    places = ("--model-dir", model_dir, "--test", stripes / "test", "--output", tmp_path / "out")
    assert evaluate_here(*places, "--previous-model", previous, "--dry-run") == 0
    reason = read_report(tmp_path / "out")["left_out"][-1]
    assert ("rings" if fault == "other classes" else "is damaged") in reason


def test_a_previous_model_may_have_its_classes_in_another_order(stripes, model_dir):
    entries, previous = list_split(stripes / "test"), load_classifier(model_dir)
    labels = np.repeat([2, 0, 1], 8)
    answers = baselines.Answers(entries, labels, labels, ["squares", "standing", "lying"])
    assert [entry.class_name for entry in entries[::8]] == ["lying", "squares", "standing"]
    assert baselines.previous_model(answers, previous)["accuracy"] > 0.6


def test_names_are_shown_and_never_run(tmp_path):
    """Untrusted names of classes and files, no temperature at all, counts, and a threshold."""
    evil = "<script>alert(1)</script>&\"'{{ 7 * 7 }}{0}$\\oops$"
    names = ["1", evil.replace("/", "\u2044")]
    for name in names:
        (tmp_path / "test" / name).mkdir(parents=True)
        for i in range(3):
            picture = tmp_path / "test" / name / f"<img onerror=x {i}>.png"
            picture.write_bytes(encode(noise(20, 20, seed=i)))
    torch.manual_seed(0)
    model = build_model("small_resnet", 3, 2).eval()
    shape = Preprocessing(20, 3, (0.5,) * 3, (0.5,) * 3)
    chosen = {"wanted_precision": 0.9, "threshold": 0.99, "coverage": 0.5, "precision": 0.9}
    facts = {"abstention": chosen, "train_counts": {names[0]: 1, names[1]: 4}}
    classifier = Classifier("small_resnet", model, shape, names, 1.0, 0.99, facts=facts)
    classifier.save(tmp_path / "model")
    places = ("--model-dir", tmp_path / "model", "--test", tmp_path / "test")
    assert evaluate_here(*places, "--output", tmp_path / "out") == 0
    page, described = Page(tmp_path / "out"), read_report(tmp_path / "out")
    assert not {"script"} & {tag for tag, _ in page.elements}
    assert not any(key.startswith("on") for _, attributes in page.elements for key in attributes)
    assert names[1] in page.text
    assert described["abstention"]["precision"] is None
    assert described["baselines"]["majority"]["class_name"] == names[1]
    assert described["baselines"]["majority"]["counted_on"] == "train"
    assert described["top_k"] == {"1": 0.5}


def test_a_threshold_that_was_not_needed_is_told_as_one_that_was_chosen():
    interval, chosen = [0.8, 0.9], {"wanted_precision": 0.9, "precision": 0.91}
    told = {"threshold": 0.0, "answered": 8, "coverage": 1.0, "precision": 0.86}
    told |= {"precision_interval_95": interval, "validation": None}
    assert page._abstention(told).endswith("no threshold of confidence was set.")
    sentence = page._abstention({**told, "validation": chosen})
    assert "right as often as wanted. Here 86.0% of them are" in sentence
    assert "90.0% was wanted" in sentence


def test_a_temperature_at_the_limit_of_its_search_is_told():
    told = {"before": {"ece": 0.02}, "after": {"ece": 0.01}}
    low = fit_temperature(torch.eye(4), torch.arange(4))
    high = fit_temperature(100 * torch.eye(4), 3 - torch.arange(4))
    sentences = [page._confidence({**told, "temperature": t}) for t in (low, 1.0, high)]
    assert sentences[0].endswith(
        "of 0.10. That is the limit of its search: too few validation "
        "answers were wrong to fit it, so a confidence of 100% says little."
    )
    assert sentences[1].endswith("without the temperature of 1.00.")
    assert sentences[2].endswith("the confidence may still be too high.")


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
    described = read_report(tmp_path / "out")
    assert "standing/lying.png" in {mistake["file"] for mistake in described["worst_mistakes"]}
    assert not list((tmp_path / "out").glob(".*"))
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


def sparse(name):
    """A file that is all hole: nothing in the archive, a terabyte on the disk."""
    info = tarfile.TarInfo(name)
    info.pax_headers = {"GNU.sparse.map": "0,0", "GNU.sparse.size": "1000000000000"}
    return info


@pytest.mark.parametrize(
    "member",
    [
        *("../evil", "a/../../evil"),
        *(link("model.json", "/etc/passwd"), link("up", "..")),
        *(device("null"), sparse("holes")),
    ],
    ids=["sibling", "outside", "link", "link-up", "device", "sparse"],
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
