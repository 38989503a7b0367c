"""The map of what is asked for: true as committed, and told where it would not be."""

import json
import re
import shutil
import subprocess
import sys
from urllib.parse import unquote

import nbformat
import pytest
from nbconvert.filters import markdown2html

from tools import ROOT, notebooks_of, rubric
from tools.criteria import GROUPS, Row

LINK = re.compile(r"\]\(([^)\s]+)\)")


def run(folder, *options):
    command = [sys.executable, "-m", "tools.rubric", *options]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


# ---- as committed ----


def test_the_committed_page_is_what_comes_out():
    done = run(ROOT, "--check")
    assert (done.returncode, done.stdout, done.stderr) == (0, "docs/rubric.md is up to date.\n", "")


def anchors(path):
    """What a link into a notebook may name: its cells, and its headings as nbconvert names them."""
    cells = nbformat.read(path, as_version=4).cells
    prose = "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    return {f"cell-id={cell.id}" for cell in cells} | set(
        re.findall(r'<h\d id="([^"]*)"', markdown2html(prose))
    )


def test_every_link_of_the_page_leads_somewhere():
    links = LINK.findall((ROOT / "docs" / "rubric.md").read_text())
    into_notebooks, into_files = 0, 0
    known = {path: anchors(path) for path in notebooks_of(ROOT)}
    for link in links:
        name, _, fragment = link.partition("#")
        path = (ROOT / "docs" / name).resolve()
        assert path.is_file(), link
        if path in known:
            assert unquote(fragment) in known[path], link
            into_notebooks += 1
        elif fragment:
            assert re.fullmatch(r"L\d+(-L\d+)?", fragment), link
            lines = [int(number) for number in re.findall(r"\d+", fragment)]
            assert 1 <= lines[0] <= lines[-1] <= len(path.read_text().splitlines()), link
            into_files += 1
    assert into_notebooks > 50
    assert into_files > 100


def test_every_row_shows_a_cell_and_a_test_or_says_what_is_missing():
    rows = [row for rows in GROUPS.values() for row in rows]
    assert len({row.asked for row in rows}) == len(rows)
    for row in rows:
        assert (row.cells and row.code and row.tests) or (row.note and row.unless), row.asked


# ---- a small project ----

SCRIPT = """\
import sys


@staticmethod
def train(epochs):
    print(
        "epochs",
        epochs,
    )


class Trainer:
    def fit(self):
        return 1


train(1)
train(2)
"""
TESTS = "def helper(): ...\n\n\ndef test_it_learns():\n    assert True\n"
OUTPUT = {"output_type": "stream", "name": "stdout", "text": ["1"]}
ERROR = {"output_type": "error", "ename": "E", "evalue": "", "traceback": []}


def cell(source, number=1, outputs=(OUTPUT,)):
    return {
        "cell_type": "code",
        "id": f"id-{number}",
        "source": source.splitlines(keepends=True),
        "execution_count": number,
        "outputs": list(outputs),
        "metadata": {},
    }


def prose(source):
    return {"cell_type": "markdown", "id": "prose", "source": [source], "metadata": {}}


@pytest.fixture
def project(tmp_path):
    cells = [
        prose("# Course\n\n## 1 The `pictures` (few)"),
        cell("x = 1\ndraw(x | 2)", 1),
        cell("silent = 1", 2, []),
        cell("broken()", 3, [ERROR]),
        cell("later()", None),
        cell("twice()", 4),
        cell("twice()  # again", 5),
    ]
    (tmp_path / "train_and_deploy.ipynb").write_text(json.dumps({"cells": cells}))
    (tmp_path / "notebooks").mkdir()
    other = json.dumps({"cells": [cell("capture(DataCaptureConfig)")]})
    (tmp_path / "notebooks" / "other.ipynb").write_text(other)
    (tmp_path / "train.py").write_text(SCRIPT)
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_train.py").write_text(TESTS)
    (tmp_path / "docs").mkdir()
    return tmp_path


COURSE = "train_and_deploy.ipynb"
GOOD = Row(
    "It is drawn",
    cells=(f"{COURSE}::draw(x | 2)",),
    code=("train.py::train", "train.py::Trainer.fit", "train.py::train(2)", "train.py::epochs,"),
    tests=("tests/test_train.py::test_it_learns",),
)


def test_a_row_links_what_it_names(project):
    text = rubric.page({"All": [GOOD]}, project)
    assert "- 1 of 1 rows are shown" in text
    section = "[1 The `pictures` (few)](../train_and_deploy.ipynb#1-The-pictures-%28few%29)"
    assert f"{section}, [In [1]](../train_and_deploy.ipynb#cell-id=id-1) `draw(x \\| 2)`" in text
    spans = re.findall(r"train\.py#(\S+)\)", text)
    assert spans == ["L4-L9", "L13-L14", "L18", "L6-L9", "L4-L5"]


WRONG = {
    "no such notebook": (GOOD._replace(cells=("none.ipynb::x",)), "none.ipynb is not there"),
    "no such cell": (GOOD._replace(cells=(f"{COURSE}::nowhere",)), "0 cells of"),
    "two such cells": (GOOD._replace(cells=(f"{COURSE}::twice()",)), "2 cells of"),
    "not executed": (GOOD._replace(cells=(f"{COURSE}::later()",)), "has not run"),
    "an error": (GOOD._replace(cells=(f"{COURSE}::broken()",)), "ended in an error"),
    "no output": (GOOD._replace(cells=(f"{COURSE}::silent",)), "none of its cells has an output"),
    "no such script": (GOOD._replace(code=("none.py::x",)), "none.py is not there"),
    "no such lines": (GOOD._replace(code=("train.py::nowhere",)), "0 lines of train.py"),
    "two such lines": (GOOD._replace(code=("train.py::train(",)), "3 lines of train.py"),
    "no such method": (GOOD._replace(code=("train.py::Trainer.run",)), "0 lines of train.py"),
    "no such file of tests": (GOOD._replace(tests=("none.py::test_x",)), "none.py is not there"),
    "no such test": (GOOD._replace(tests=("tests/test_train.py::test_x",)), "has no test test_x"),
    "no test": (GOOD._replace(tests=("tests/test_train.py::helper",)), "has no test helper"),
    "no note": (Row("It is captured", unless=("x",)), "needs a note"),
    "no words": (Row("It is captured", note="It is not."), "needs a note"),
    "there after all": (
        Row("It is captured", note="It is not.", unless=("DataCaptureConfig",)),
        "notebooks/other.ipynb has run `DataCaptureConfig`",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_not_true_is_told(project, case):
    row, sentence = WRONG[case]
    with pytest.raises(rubric.NotFound, match=re.escape(sentence)) as caught:
        rubric.page({"All": [GOOD, row]}, project)
    assert str(caught.value).startswith(f"{row.asked}: ")


def test_what_is_absent_is_said_at_the_top_and_in_its_row(project):
    # A cell that has not run yet shows nothing.
    absent = Row("It is piped", note="There is none.", unless=("Pipeline(", "later()"))
    text = rubric.page({"All": [GOOD, absent]}, project)
    assert "- 1 of 2 rows are shown" in text
    assert "- Not in this project: *It is piped*." in text
    assert "| **It is piped**<br>There is none. | not here |" in text


def test_a_script_that_moved_makes_the_page_stale(project):
    (project / "tools").mkdir()
    for name in ("__init__.py", "rubric.py"):
        shutil.copy(ROOT / "tools" / name, project / "tools")
    source = (ROOT / "tools" / "criteria.py").read_text()
    small = source[: source.index("GROUPS = {")] + f"GROUPS = {{'All': [{GOOD!r}]}}\n"
    (project / "tools" / "criteria.py").write_text(small)
    assert run(project, "--check").returncode == 1
    assert run(project).stdout == "docs/rubric.md is written.\n"
    assert run(project, "--check").returncode == 0
    (project / "train.py").write_text("# One more line.\n" + SCRIPT)
    stale = run(project, "--check")
    assert stale.returncode == 1
    assert stale.stdout == "docs/rubric.md is stale: python -m tools.rubric writes it.\n"
    (project / "tests" / "test_train.py").unlink()
    missing = run(project)
    assert missing.returncode == 1
    assert missing.stderr == "rubric: It is drawn: tests/test_train.py is not there\n"
