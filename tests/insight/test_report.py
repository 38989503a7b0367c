import base64
import io
import json
import math
import re
import shutil
import tarfile
from html.parser import HTMLParser
from types import SimpleNamespace

import job_output
import jsonschema
import pytest
from browser import assert_accessible, assert_fits
from PIL import Image
from samples import link

import report as entry_point
from insight.findings import Finding
from insight.tensors import Tensors, open_trial
from studio.insight import Findings, make_report, wide
from vision.cli import run

SCHEMA = json.loads((job_output.ROOT / "docs/findings.schema.json").read_text())
FIGURES = {"curves", "losses", "norms", "activity", "time", "utilisation"}
FILES = {"report.html", "findings.json", *(f"{name}.png" for name in FIGURES)}
DARK_AND_NARROW = [(1100, "light"), (360, "dark")]


def report_here(*argv):
    parser = entry_point.get_args_parser()
    return run(entry_point.main, parser.parse([str(word) for word in argv]))


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """The output folder of a training job; tests that damage it do so to a copy."""
    return job_output.write_output(tmp_path_factory.mktemp("job") / "output")


@pytest.fixture(scope="module")
def made(run_script, output, tmp_path_factory):
    """The folder of a report made as a processing job does it, from output.tar.gz."""
    folder = tmp_path_factory.mktemp("processing")
    (folder / "training").mkdir()
    with tarfile.open(folder / "training" / "output.tar.gz", "w:gz") as tar:
        tar.add(output, ".")
    places = ("--training", folder / "training", "--output", folder / "report")
    process = run_script("report.py", *places)
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
    *_, counts = process.stdout.splitlines()
    assert re.fullmatch(r"NoIssuesFound=\d+ IssuesFound=\d+ NotChecked=\d+ Error=0", counts)
    return folder / "report"


def read_findings(folder):
    """The content of findings.json, which keeps to its schema."""
    facts = json.loads((folder / "findings.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(SCHEMA).validate(facts)
    return facts


class Page(HTMLParser):
    """The elements and the text of a page; tags must be closed in the order they were opened."""

    VOID = ("meta", "img", "wbr")

    def __init__(self, folder):
        super().__init__()
        self.elements, self.text, self.open = [], "", []
        self.feed((folder / "report.html").read_text(encoding="utf-8"))
        assert self.open == []
        self.words = " ".join(self.text.split())

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.open += [tag] if tag not in self.VOID else []

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        self.text += " " if tag in ("th", "td") else ""

    def handle_data(self, data):
        self.text += data


def test_the_numbers_follow_from_the_files(made, output):
    assert {path.name for path in made.iterdir()} == FILES
    facts = read_findings(made)
    assert facts["left_out"] == []
    assert facts["training"]["best_epoch"] == 2
    assert facts["training"]["best_valid_loss"] == 0.871
    assert facts["tensors"]["steps"] == {"TRAIN": 12, "EVAL": 3}
    assert facts["tensors"]["silent_units"]["values"] == {"backbone.1": 62.5, "backbone.3": 0}
    layers = {"backbone.0", "backbone.2", "head.0"}
    for kind in ("gradients", "weights"):
        norms = facts["tensors"]["norms"][kind]
        assert norms["step"] == 33
        assert set(norms["values"]) == layers
        assert all(value > 0 for value in norms["values"].values())
    tensors = Tensors(open_trial(output / "tensors"))
    last = next(step for step in tensors.train_steps() if tensors.phase_step(step) == 33)
    kernel = tensors.values("Network_backbone.2.weight", last).astype(float)
    norms = facts["tensors"]["norms"]["weights"]["values"]
    assert norms["backbone.2"] == pytest.approx(math.sqrt((kernel**2).sum()))

    time = facts["profile"]["time"]
    steps = job_output.EPOCHS * job_output.STEPS
    expected = {
        "initialization": job_output.INITIALIZATION,
        "waiting for data": steps * job_output.PARTS["data"],
        "backward": steps * job_output.PARTS["backward"],
        "validation": job_output.EPOCHS * job_output.VALIDATION,
        "checkpoints": job_output.EPOCHS * job_output.CHECKPOINT,
        "rest": job_output.END + steps * (job_output.STEP - sum(job_output.PARTS.values())),
    }
    assert {name: time["parts"][name] for name in expected} == pytest.approx(expected, abs=1e-5)
    assert sum(time["parts"].values()) == pytest.approx(time["total_seconds"])
    assert time["pictures_per_second"] == pytest.approx(16 / job_output.STEP)
    assert facts["profile"]["use"]["memory_percent"]["max"] == 45
    assert "gpu_percent" not in facts["profile"]["use"]
    first = facts["profile"]["operators"][0]
    assert (first["operator"], first["share"]) == ("aten::convolution_backward", 0.65)


def test_every_rule_of_both_kinds_has_its_verdict_on_the_page(made):
    facts, page = read_findings(made), Page(made)
    findings = [Finding.from_dict(each) for each in facts["findings"]]
    assert {finding.kind for finding in findings} == {"debugger", "profiler"}
    for finding in findings:
        assert finding.rule in page.words
        for text in (finding.meaning, finding.advice):
            assert text.replace("`", "") in page.words
    for sentence in facts["summary"]:
        assert sentence in page.words
    for name, value in facts["run"]["hyperparameters"].items():
        assert f"{name} {value}" in page.words


def test_the_page_stands_alone_and_is_accessible(made):
    page = Page(made)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.elements}
    assert not re.search(r"https?://|url\(|@import", (made / "report.html").read_text())
    pictures = [attributes for tag, attributes in page.elements if tag == "img"]
    assert len(pictures) == len(FIGURES)
    for picture in pictures:
        assert picture["alt"]
        kind, _, data = picture["src"].partition(",")
        assert kind == "data:image/png;base64"
        Image.open(io.BytesIO(base64.b64decode(data))).verify()
    headers = [attributes for tag, attributes in page.elements if tag == "th"]
    assert headers
    assert all(attributes.get("scope") in ("col", "row") for attributes in headers)


@pytest.mark.parametrize(("width", "scheme"), DARK_AND_NARROW)
def test_the_page_opens_in_a_browser(chromium, made, width, scheme):
    address = (made / "report.html").resolve().as_uri()
    size = {"width": width, "height": 800}
    with chromium.new_page(viewport=size, color_scheme=scheme, is_mobile=width < 600) as page:
        said, asked = [], []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        assert said == []
        assert [url for url in asked if not url.startswith("data:")] == [address]
        assert page.evaluate("innerWidth") == width
        assert_fits(page)
        images = page.locator("img").evaluate_all("all => all.map(image => image.naturalWidth)")
        assert len(images) == len(FIGURES)
        assert min(images) > 300
        assert_accessible(page)


@pytest.mark.parametrize("part", ["history.csv", "profile", "tensors"])
def test_what_is_missing_is_left_out_with_a_sentence(output, tmp_path, capsys, part):
    (tmp_path / "job").mkdir()
    copy = shutil.copytree if (output / part).is_dir() else shutil.copy
    copy(output / part, tmp_path / "job" / part)
    places = ("--training", tmp_path / "job", "--output", tmp_path / "report")
    assert report_here(*places) == 0
    facts, page = read_findings(tmp_path / "report"), Page(tmp_path / "report")
    said = capsys.readouterr().out
    assert len(facts["left_out"]) == 3
    for sentence in facts["left_out"]:
        assert f"left out: {sentence}" in said
        assert f"Left out: {sentence}." in page.words
        assert str(tmp_path) not in sentence
    drawn = {
        "history.csv": {"curves"},
        "profile": {"time", "utilisation"},
        "tensors": {"losses", "norms", "activity"},
    }
    assert {path.stem for path in (tmp_path / "report").glob("*.png")} == drawn[part]


def test_tensors_may_lie_elsewhere_and_an_older_report_is_replaced(output, made, tmp_path):
    shutil.copytree(made, tmp_path / "report")
    (tmp_path / "job").mkdir()
    places = ("--training", tmp_path / "job", "--output", tmp_path / "report")
    assert report_here(*places, "--tensors", output / "tensors", "--dry-run", "true") == 0
    facts = read_findings(tmp_path / "report")
    assert [each["rule"] for each in facts["findings"]] == ["LossNotDecreasing"]
    remaining = {f"{name}.png" for name in ("losses", "norms", "activity")}
    found = {path.name for path in (tmp_path / "report").iterdir()}
    assert found == {"report.html", "findings.json", *remaining}


def test_a_damaged_part_costs_only_that_part(output, tmp_path):
    job = tmp_path / "job"
    shutil.copytree(output / "profile", job / "profile")
    (job / "profile" / "steps-0.csv").write_text("epoch,step\n")
    shutil.copytree(output / "tensors", job / "tensors")
    *_, last = sorted((job / "tensors" / "events").rglob("*.tfevents"))
    last.write_bytes(last.read_bytes()[:1000])
    (job / "run.json").write_text((output / "run.json").read_text()[:100])
    text = (output / "history.csv").read_text()
    (job / "history.csv").write_text(text[:-10])
    assert report_here("--training", job, "--output", tmp_path / "report") == 0
    facts = read_findings(tmp_path / "report")
    assert facts["training"]["epochs"] == 2
    described, debugged, profiled = facts["left_out"]
    assert f"the tensors in {last.relative_to(job)} are damaged" in debugged
    assert "run.json is damaged" in described
    assert "the profile in profile is damaged: steps-0.csv" in profiled


def test_a_training_that_diverged_is_told(output, tmp_path):
    job = tmp_path / "job"
    job.mkdir()
    header, *rows = (output / "history.csv").read_text().splitlines()
    cells = [row.split(",") for row in rows]
    diverged = [",".join([row[0], "inf", row[2], "nan", *row[4:]]) for row in cells]
    (job / "history.csv").write_text("\n".join([header, *diverged, ""]))
    assert report_here("--training", job, "--output", tmp_path / "report") == 0
    facts = read_findings(tmp_path / "report")
    assert facts["training"]["last_train_loss"] is None
    assert "the training diverged" in " ".join(facts["summary"])


def test_a_gpu_gets_its_own_lines_and_names_are_shown_and_never_run(output, tmp_path):
    evil = "<script>alert(1)</script>&\"'{{ 7 * 7 }}$\\oops$"
    job = tmp_path / "job"
    job_output.write_profile(job / "profile", gpu=True)
    described = json.loads((output / "run.json").read_text())
    described |= {"model": evil, "hyperparameters": {evil: evil, "lr": math.nan}}
    (job / "run.json").write_text(json.dumps(described))
    operators = (job / "profile" / "operators.csv").read_text()
    (job / "profile" / "operators.csv").write_text(operators.replace("aten::add_", "<img src=x>"))
    assert report_here("--training", job, "--output", tmp_path / "report") == 0
    page = Page(tmp_path / "report")
    assert not {"script"} & {tag for tag, _ in page.elements}
    assert all(attributes["alt"] for tag, attributes in page.elements if tag == "img")
    assert f"{evil} {evil}" in page.words
    assert "<img src=x>" in page.words
    mean = read_findings(tmp_path / "report")["profile"]["use"]["gpu_percent"]["mean"]
    assert mean == pytest.approx(71, abs=3)
    assert f"The GPU is {mean:.0f}% busy" in page.words


def write_archive(folder, member, data=b"x"):
    info = member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(member)
    info.size = len(data) if info.isreg() else 0
    with tarfile.open(folder / "output.tar.gz", "w:gz") as tar:
        tar.addfile(info, io.BytesIO(data))


def truncate(folder):
    write_archive(folder, "history.csv", bytes(range(256)) * 400)
    data = (folder / "output.tar.gz").read_bytes()
    (folder / "output.tar.gz").write_bytes(data[: len(data) // 2])


def scramble(folder):
    write_archive(folder, "history.csv", bytes(range(256)) * 400)
    data = bytearray((folder / "output.tar.gz").read_bytes())
    data[40:80] = b"\xff" * 40
    (folder / "output.tar.gz").write_bytes(data)


HEADER = "epoch,train_loss,train_accuracy,valid_loss,valid_accuracy\n"
BROKEN = {
    "no folder": (lambda folder: folder.rmdir(), "is not there"),
    "empty folder": (lambda folder: None, "there is nothing to report on"),
    "half a history": (
        lambda folder: (folder / "history.csv").write_text("epoch,train_loss\n1,0."),
        "history.csv is damaged",
    ),
    "half a row of history": (
        lambda folder: (folder / "history.csv").write_text(HEADER + "1,0.5,0.5,,\n"),
        "history.csv is damaged",
    ),
    "empty history": (lambda folder: (folder / "history.csv").touch(), "history.csv is damaged"),
    "truncated archive": (truncate, "is damaged"),
    "scrambled archive": (scramble, "is damaged"),
    "archive that leads outside": (
        lambda folder: write_archive(folder, "../../evil"),
        "is refused",
    ),
    "archive with a link": (
        lambda folder: write_archive(folder, link("history.csv", "/etc/passwd")),
        "only plain files",
    ),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_broken_input_is_told_in_one_sentence(tmp_path, capsys, fault):
    (tmp_path / "a" / "job").mkdir(parents=True)
    prepare, said = BROKEN[fault]
    prepare(tmp_path / "a" / "job")
    assert report_here("--training", tmp_path / "a" / "job", "--output", tmp_path / "report") == 1
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "report").exists()
    assert not list(tmp_path.rglob("evil"))


# ---- what notebook cells call ----


def test_the_notebook_reads_tables_pictures_and_words(made):
    findings, facts = Findings(made), read_findings(made)
    table = findings.table()
    assert len(table) == len(facts["findings"])
    assert list(table) == ["verdict", "first_step", "looked_at", "meaning"]
    issues = [each for each in facts["findings"] if each["status"] == "IssuesFound"]
    assert list(table.index[: len(issues)]) == [each["rule"] for each in issues]
    assert set(findings.table("profiler").index) < set(table.index)
    # Where nothing was found there is no step: a dash, and nothing of pandas' own.
    shown = wide(findings.table()).data
    assert "<NA>" not in shown
    assert "<td>–</td>" in shown
    with Image.open(findings.picture("norms")) as image:
        assert image.width > 600
    assert findings.summary().count("\n- ") == len(facts["summary"]) - 1
    assert findings.time()["share"].sum() == pytest.approx(1)
    assert findings.operators().loc[0, "operator"] == "aten::convolution_backward"
    assert findings.use().loc["memory_percent", "max"] == 45
    answer = findings.anomalies()
    for each in issues:
        assert f"**{each['rule']}**" in answer
        assert each["advice"] in answer
    said = findings.evidence(issues[0]["rule"])["said"]
    assert list(said) == [evidence["said"] for evidence in issues[0]["evidence"]]
    findings["findings"] = [each for each in findings["findings"] if each not in issues]
    assert findings.anomalies().startswith("None of the ")


def test_one_call_makes_the_report_of_a_job_in_s3(output, tmp_path):
    with tarfile.open(tmp_path / "output.tar.gz", "w:gz") as tar:
        tar.add(output / "history.csv", "history.csv")

    def download_file(bucket, key, path):
        assert (bucket, key) == ("bucket", "jobs/course-1/output/output.tar.gz")
        shutil.copy(tmp_path / "output.tar.gz", path)

    cloud = SimpleNamespace(client=lambda _: SimpleNamespace(download_file=download_file))
    place = {"S3OutputPath": "s3://bucket/jobs/"}
    job = {"TrainingJobName": "course-1", "OutputDataConfig": place}
    findings = make_report(cloud, job, tmp_path / "report")
    assert findings["training"]["best_epoch"] == 2
    assert (tmp_path / "report" / "report.html").is_file()
