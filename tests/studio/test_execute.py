import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest
from samples import heed_ctrl_c

ROOT = Path(__file__).resolve().parent.parent.parent
PARAMETERS = ["parameters"]


def code(source, *tags):
    return nbformat.v4.new_code_cell(source, metadata={"tags": list(tags)})


def heading(text):
    return nbformat.v4.new_markdown_cell(f"## {text}")


@pytest.fixture
def execute(tmp_path):
    """Run `python -m studio.execute` on a notebook of these cells; returns CompletedProcess."""

    def run(cells, *args):
        return subprocess.run(
            command(tmp_path, cells, *args), cwd=ROOT, capture_output=True, text=True, timeout=120
        )

    return run


def command(folder, cells, *args):
    notebook = folder / "lesson.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), notebook)
    output = folder / "out" / "lesson.ipynb"
    return [sys.executable, "-m", "studio.execute", str(notebook), "--output", str(output), *args]


def outputs(path):
    """All that the cells of a notebook printed or returned, as one text."""
    cells = nbformat.read(path, as_version=4).cells
    found = [output for cell in cells for output in cell.get("outputs", [])]
    return "".join(o.get("text", "") or o.get("data", {}).get("text/plain", "") for o in found)


def test_a_notebook_runs_with_its_parameters_replaced_and_is_summed_up(execute, tmp_path):
    cells = [
        code("COUNT = 1  # So many.\nNAME = 'here'\nLIMIT = 5", "parameters"),
        heading("Where it runs"),
        code("import os, sys\nprint([COUNT, NAME, LIMIT], sys.executable, os.getcwd())"),
        code("COUNT + 40", "summary"),
    ]
    done = execute(cells, "--html", "-p", "COUNT=2", "-p", "NAME=there", "-p", "LIMIT=null")
    assert (done.returncode, done.stderr) == (0, "")

    result = tmp_path / "out" / "lesson.ipynb"
    assert f"[2, 'there', None] {sys.executable} {tmp_path}" in outputs(result)
    counts = [cell.get("execution_count") for cell in nbformat.read(result, 4).cells]
    assert [count for count in counts if count] == [1, 2, 3, 4]
    assert "there" in result.with_suffix(".html").read_text()

    lines = [line for line in done.stdout.splitlines() if line]
    assert lines[2].strip().startswith("[3/4] Where it runs ")
    assert all(line.endswith(" s") for line in lines[:4])
    assert lines[4] == "42"
    assert str(result) in lines[5]
    assert lines[6].endswith("lesson.html")
    assert {path.name for path in tmp_path.iterdir()} == {"lesson.ipynb", "out"}


@pytest.mark.parametrize(
    ("cells", "args", "words"),
    [
        ([code("A = 1", "parameters")], ["-p", "B=2"], "execute: the notebook has no parameter B."),
        ([code("A = 1")], ["-p", "A=2"], "execute: the notebook has no cell tagged `parameters`."),
        ([code("A = 1", "parameters")], ["-p", "A"], "argument -p: 'A' is not NAME=VALUE"),
    ],
)
def test_a_parameter_that_does_not_fit_is_refused_in_one_sentence(
    execute, tmp_path, cells, args, words
):
    done = execute(cells, *args)
    assert done.returncode != 0
    assert done.stderr.strip().endswith(words)
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out" / "lesson.ipynb").exists()


def test_a_parameter_without_bounds_reaches_the_notebook(execute, tmp_path):
    cells = [code("BUDGET = 1.0", "parameters"), code("print(BUDGET + 1)")]
    assert execute(cells, "-p", "BUDGET=Infinity").returncode == 0
    assert "inf" in outputs(tmp_path / "out" / "lesson.ipynb")


def test_a_failing_cell_is_named_and_an_older_output_stays(execute, tmp_path):
    output = tmp_path / "out" / "lesson.ipynb"
    output.parent.mkdir()
    output.write_text("what an earlier run left")
    done = execute([code("print('so far so good')"), code("raise ValueError('too warm')")])
    assert done.returncode == 1
    assert "execute: ValueError: too warm" in done.stderr
    assert "Traceback" not in done.stderr
    failed = output.with_name("lesson.failed.ipynb")
    assert str(failed) in done.stderr
    assert "so far so good" in outputs(failed)
    assert output.read_text() == "what an earlier run left"

    assert execute([code("print('mended')")]).returncode == 0
    assert "mended" in outputs(output)
    assert not failed.exists()


def test_a_dead_kernel_is_reported_as_such(execute, tmp_path):
    done = execute([code("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")])
    assert done.returncode == 1
    assert "execute: the kernel died" in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "out" / "lesson.failed.ipynb").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_ends_at_once_with_its_kernel(tmp_path, number):
    cells = [code("import os\nprint(os.getpid())"), code("import time\ntime.sleep(300)")]
    process = subprocess.Popen(
        command(tmp_path, cells),
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        preexec_fn=heed_ctrl_c,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.readline()  # The first cell has run.
    sent = time.monotonic()
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert time.monotonic() - sent < 15
    assert process.returncode == 130
    assert "execute: interrupted." in errors
    assert "Traceback" not in errors
    failed = tmp_path / "out" / "lesson.failed.ipynb"
    assert not psutil.pid_exists(int(outputs(failed)))
    assert not list(tmp_path.glob("kernel-*")), "the sockets of the kernel are left"
