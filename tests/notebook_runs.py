"""What the tests of every notebook share: reading one, and running one on few pictures."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import boto3
import nbformat
import psutil
import pytest

ROOT = Path(__file__).resolve().parent.parent
COURSE = ROOT / "train_and_deploy.ipynb"
LISTINGS = ROOT / "notebooks" / "listings_web_app.ipynb"
BINS = ROOT / "notebooks" / "inventory_bins.ipynb"
DOGS = ROOT / "notebooks" / "dog_breeds.ipynb"
OWN_FOLDER = ROOT / "notebooks" / "your_own_folder.ipynb"
# Parameters of a short run of the course.
FEW = {"PICTURES": 600, "TRIALS": 2, "TRIAL_EPOCHS": 1, "EPOCHS": 3, "BUDGET": 0.7}
PARTS = [
    "train_model.py",
    "hpo.py",
    "learning_curve.py",
    "extract_features.py",
    "evaluate.py",
    "inference.py",
]
PARTS += ["report.py", "vision", "insight", "studio", "local_cloud", "web"]


def code_cells(notebook):
    return [cell for cell in notebook["cells"] if cell.cell_type == "code"]


def outputs(notebook):
    return [output for cell in code_cells(notebook) for output in cell.outputs]


def text_of(output):
    """All of an output that is text: streams, plain text, Markdown and HTML, but no pictures."""
    data = output.get("data", {})
    parts = [output.get("text", ""), *output.get("traceback", [])]
    parts += [data[kind] for kind in data if kind.startswith("text/")]
    return "\n".join(parts)


def all_text(notebook):
    return "\n".join(text_of(output) for output in outputs(notebook))


def figures(notebook):
    return [output for output in outputs(notebook) if "image/png" in output.get("data", {})]


def accuracy(run):
    """The test accuracy that a run of the course ends with."""
    match = re.search(r"\*\*Test accuracy ([0-9.]+)%\*\*", all_text(run.notebook))
    return float(match[1]) / 100


def bill(run):
    """The bill that a run shows: {launch: US dollars of all that are called so} and the total."""
    printed = run.output_of("costs.bill(cloud)")
    kinds = "Training|Processing|Hosting"
    rows = re.findall(rf"^ *(\S.*?) +(?:{kinds}) +ml\..* (\d+\.\d{{4}})$", printed, re.MULTILINE)
    (total,) = re.findall(r"^ *total +(\d+\.\d{4})$", printed, re.MULTILINE)
    amounts = {}
    for launch, usd in rows:
        amounts[launch] = amounts.get(launch, 0) + float(usd)
    return amounts, float(total)


def cells_that_draw(notebook):
    """The cells that are to show a figure, and the source of those among them that show none."""
    cells = [c for c in code_cells(notebook) if re.search(r"plots\.\w+\(|Image\(", c.source)]
    return cells, [cell.source for cell in cells if not figures({"cells": [cell]})]


def left_over(run):
    """The numbers that a run's table of what it left shows, one for each kind of thing."""
    rows = run.output_of("left.set_index").splitlines()
    return [int(row.split()[-1]) for row in rows if re.search(r"\s\d+$", row)]


def few_photos(source, target, each, classes=None):
    """Copy the first photos of the first classes (None for all) of a folder of DATA_DIR.

    Skips the test where the folder is absent.
    """
    if not source.is_dir():
        pytest.skip(f"no {source.name} in DATA_DIR")
    for folder in sorted(source.iterdir())[:classes]:
        (target / folder.name).mkdir(parents=True)
        for path in sorted(folder.iterdir())[:each]:
            shutil.copy(path, target / folder.name)


def assert_clean(notebook):
    bad = [
        output
        for output in outputs(notebook)
        if output.output_type == "error" or output.get("name") == "stderr"
    ]
    assert bad == []


class Run:
    """A whole notebook on few pictures, in a copy of the project with a cloud of its own."""

    def __init__(self, folder, notebook, parameters, environment):
        self.project = folder / "project"
        ignored = shutil.ignore_patterns("__pycache__", ".*")
        for name in PARTS:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, self.project / name, ignore=ignored)
            else:
                self.project.mkdir(exist_ok=True)
                shutil.copy(ROOT / name, self.project)
        for path in ROOT.glob("requirements*.txt"):
            shutil.copy(path, self.project)
        name = notebook.relative_to(ROOT)
        (self.project / name).parent.mkdir(exist_ok=True)
        shutil.copy(notebook, self.project / name)
        self.output = folder / "run.ipynb"
        self.home = folder / "cloud"
        kept = {key: value for key, value in os.environ.items() if not key.startswith("AWS_")}
        kept.pop("DATA_DIR", None)
        self.environment = {**kept, "LOCAL_CLOUD_HOME": str(self.home), **environment}
        options = [f"-p{name}={value}" for name, value in parameters.items()]
        self.process = self.python(
            "studio.execute", name, "--output", self.output, "--html", *options
        )
        assert self.process.returncode == 0, self.process.stdout + self.process.stderr
        self.notebook = nbformat.read(self.output, as_version=4)

    def python(self, module, *args):
        return subprocess.run(
            [sys.executable, "-m", module, *map(str, args)],
            cwd=self.project,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=900,
        )

    def variables(self):
        """What `python -m local_cloud env` prints for a shell, as a dict."""
        printed = self.python("local_cloud", "env", "--format", "json").stdout
        return json.loads(printed)

    def client(self, service):
        """A boto3 client of the cloud that the notebook ran on."""
        variables = self.variables()
        return boto3.session.Session(region_name=variables["AWS_REGION"]).client(
            service,
            endpoint_url=variables["AWS_ENDPOINT_URL"],
            aws_access_key_id=variables["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=variables["AWS_SECRET_ACCESS_KEY"],
        )

    def stop(self):
        return self.python("local_cloud", "stop")

    def output_of(self, words):
        """The text that the one code cell with these words in it left."""
        (cell,) = [cell for cell in code_cells(self.notebook) if words in cell.source]
        return "\n".join(text_of(output) for output in cell.outputs)


def run_notebook(folder, notebook, parameters, environment):
    """Yield the Run, and end its cloud afterwards."""
    try:
        yield Run(folder, notebook, parameters, environment)
    finally:
        home = {"LOCAL_CLOUD_HOME": str(folder / "cloud")}
        command = [sys.executable, "-m", "local_cloud", "reset"]
        subprocess.run(command, cwd=ROOT, env={**os.environ, **home}, capture_output=True)


def processes_of(name):
    """Living processes whose environment names this instance of the local cloud."""
    found = []
    for process in psutil.process_iter():
        try:
            if name in process.environ().values() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found
