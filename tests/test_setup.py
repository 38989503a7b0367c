"""What a newcomer's first command does: tools/make_venv.py and the Makefile."""

import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from samples import heed_ctrl_c

ROOT = Path(__file__).resolve().parent.parent
CLOSED_PORT = "http://127.0.0.1:9"


def find_old_python():
    """A Python that is too old for this project, where the machine has one that runs."""
    candidates = [shutil.which(f"python3.{minor}") for minor in (6, 7, 8, 9)]
    candidates += sorted(Path.home().glob(".pyenv/versions/3.[6-9].*/bin/python"))
    for path in filter(None, candidates):
        done = subprocess.run([path, "-c", "import sys; print(sys.version)"], capture_output=True)
        if done.returncode == 0:
            return path
    return None


def write_wheel(folder, name, version):
    """Write a wheel of a module that holds nothing but its version."""
    module, folder = name.replace("-", "_"), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    info = f"{module}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{module}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{module}.py", f"VERSION = '{version}'\n")
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        wheel.writestr(f"{info}/METADATA", metadata)
        tags = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        wheel.writestr(f"{info}/WHEEL", tags)
        wheel.writestr(f"{info}/RECORD", "")


class Project:
    """A project that has the set-up of this one, but tiny requirements of its own."""

    def __init__(self, folder):
        self.folder = folder
        self.packages = folder.parent / "packages"
        (folder / "tools").mkdir(parents=True)
        shutil.copy(ROOT / "tools" / "make_venv.py", folder / "tools")
        shutil.copy(ROOT / "Makefile", folder)
        self.python = folder / ".venv" / "bin" / "python"
        write_wheel(self.packages, "tiny-lesson", "1.0")
        write_wheel(self.packages, "tiny-lesson", "2.0")

    def require(self, line):
        text = f"--no-index\n--find-links {self.packages}\n{line}\n"
        (self.folder / "requirements.txt").write_text(text)

    def start(self, python=sys.executable, wrapper="", index=CLOSED_PORT, **environment):
        """Start tools/make_venv.py with that package index, by default one that nobody answers."""
        script = str(self.folder / "tools" / "make_venv.py")
        command = [python, script] if not wrapper else [python, "-c", wrapper, script]
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "UV_"))}
        kept.update(PIP_CONFIG_FILE=os.devnull, PIP_INDEX_URL=f"{index}/simple")
        return subprocess.Popen(
            command,
            cwd=self.folder.parent,
            env={**kept, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=heed_ctrl_c,
        )

    def make(self, **options):
        """Run it to its end."""
        process = self.start(**options)
        out, err = process.communicate(timeout=180)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def version(self):
        source = "import tiny_lesson; print(tiny_lesson.VERSION)"
        done = subprocess.run([self.python, "-c", source], capture_output=True, text=True)
        return done.stdout.strip()


# Run a script by path after changing what it will see of the machine.
CHANGED = """
import runpy, shutil, sys
{change}
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
FULL_DISK = "shutil.disk_usage = lambda path: shutil._ntuple_diskusage(9 * 10**9, 0, 3 * 10**9)"
ROOMY_DISK = "shutil.disk_usage = lambda path: shutil._ntuple_diskusage(10**12, 0, 10**12)"


@pytest.fixture
def project(tmp_path):
    project = Project(tmp_path / "project")
    project.require("tiny-lesson==1.0")
    return project


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A project whose set-up has run, what it said, and its environment's date."""
    project = Project(tmp_path_factory.mktemp("made") / "project")
    project.require("tiny-lesson==1.0")
    return project, project.make()


@pytest.fixture
def begun(project, made):
    """A project whose environment has nothing but pip in it: making one takes seconds."""
    ours = shutil.ignore_patterns("requirements.sha256", "install.log", "tiny_lesson*")
    folders = [each.folder / ".venv" for each in (made[0], project)]
    shutil.copytree(*folders, symlinks=True, ignore=ours)
    return project


def sentence(done):
    """The one sentence that a failed set-up ends with."""
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("setup: ")
    return line


def test_a_python_that_is_too_old_is_refused_by_its_version(project):
    old = find_old_python()
    if old:
        line = sentence(project.make(python=str(old)))
    else:
        change = "sys.version_info = (3, 9, 18, 'final', 0)"
        line = sentence(project.make(wrapper=CHANGED.format(change=change)))
    assert re.search(r"needs Python 3\.10 to 3\.12, and .+ is 3\.[6-9];", line)
    assert "make PYTHON=" in line
    assert not (project.folder / ".venv").exists()


def test_a_python_that_is_too_new_is_refused_too(project):
    change = "sys.version_info = (3, 13, 0, 'final', 0)"
    line = sentence(project.make(wrapper=CHANGED.format(change=change)))
    assert "is 3.13" in line


def test_a_disk_that_is_too_small_is_told_before_anything_is_made(project):
    line = sentence(project.make(wrapper=CHANGED.format(change=FULL_DISK)))
    assert "3.0 GB free and the environment needs about 8 GB" in line
    assert not (project.folder / ".venv").exists()


def test_without_a_network_it_ends_soon_with_one_sentence(begun):
    (begun.folder / "requirements.txt").write_text("tiny-lesson==1.0\n")
    started = time.monotonic()
    line = sentence(begun.make(wrapper=CHANGED.format(change=ROOMY_DISK)))
    assert time.monotonic() - started < 60
    assert line == (
        "setup: no package index answers; check the network, then type the same command again."
    )


def test_a_requirement_that_does_not_exist_points_at_the_log(begun):
    begun.require("no-such-package-1a2b==1")
    line = sentence(begun.make(PIP_NO_INDEX="1"))
    assert line == "setup: the requirements cannot be installed; .venv/install.log says why."
    assert "no-such-package-1a2b" in (begun.folder / ".venv" / "install.log").read_text()


def test_the_first_run_installs_and_says_so(made):
    project, first = made
    assert first.returncode == 0, first.stderr
    assert first.stdout.splitlines()[-1] == "The environment in .venv is ready."
    assert project.version() == "1.0"


def test_the_second_run_has_nothing_to_do(made):
    project, _ = made
    log = project.folder / ".venv" / "install.log"
    before = log.stat().st_mtime_ns
    started = time.monotonic()
    second = project.make()
    assert time.monotonic() - started < 3
    assert (second.returncode, second.stdout, second.stderr) == (0, "", "")
    assert log.stat().st_mtime_ns == before


def test_changed_requirements_are_installed(made):
    project, _ = made
    project.require("tiny-lesson==2.0")
    assert project.make().returncode == 0
    assert project.version() == "2.0"


@pytest.mark.parametrize("damage", ["no python", "half a python"])
def test_an_interrupted_first_run_is_repaired_by_the_next(project, damage):
    environment = project.folder / ".venv"
    if damage == "no python":
        environment.mkdir()
    else:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    done = project.make()
    assert done.returncode == 0, done.stdout + done.stderr
    assert project.version() == "1.0"


def test_an_environment_whose_python_is_gone_is_made_anew(begun):
    """As after an upgrade of the system's Python, with the requirements as they were."""
    assert begun.make().returncode == 0
    begun.python.unlink()
    begun.python.symlink_to(begun.folder / "gone")
    done = begun.make()
    assert done.returncode == 0, done.stdout + done.stderr
    assert begun.version() == "1.0"


def test_ctrl_c_ends_with_a_sentence_and_the_next_run_goes_on(begun):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # Takes connections, never answers.
        process = begun.start(index=f"http://127.0.0.1:{silent.getsockname()[1]}")
        while not process.stdout.readline().startswith("Installing"):
            assert process.poll() is None, process.stderr.read()
        silent.accept()
        os.killpg(process.pid, signal.SIGINT)  # As a terminal does it.
        _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert err == "setup: interrupted; the same command goes on from here.\n"
    assert begun.make().returncode == 0
    assert begun.version() == "1.0"


# ---- the Makefile ----


def make(*args, folder=ROOT):
    return subprocess.run(
        ["make", "--no-print-directory", *args], cwd=folder, capture_output=True, text=True
    )


def test_help_is_the_default_and_lists_every_target():
    text = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)[1].split()
    listed = re.findall(r"^  make ([a-z-]+) +\S", make().stdout, re.MULTILINE)
    assert sorted(listed) == sorted(set(phony) - {"venv"})
    assert make("help").stdout == make().stdout


def test_the_readme_names_only_targets_that_exist():
    listed = re.findall(r"^  make ([a-z-]+)", make("help").stdout, re.MULTILINE)
    named = set(re.findall(r"\bmake ([a-z-]+)", "\n".join(code_of(ROOT / "README.md"))))
    assert named
    assert named <= set(listed)


def code_of(path):
    """The code of a Markdown file: indented blocks and what stands in backquotes."""
    text = path.read_text()
    return re.findall(r"^    .*$", text, re.MULTILINE) + re.findall(r"`([^`\n]+)`", text)


def test_a_target_makes_the_environment_first(project):
    done = make("-n", "test", folder=project.folder)
    lines = done.stdout.splitlines()
    made = next(i for i, line in enumerate(lines) if "tools/make_venv.py" in line)
    assert any("pytest" in line for line in lines[made:])


def test_clean_keeps_the_environment(project):
    (project.folder / "build" / "data").mkdir(parents=True)
    (project.folder / ".venv").mkdir()
    assert make("clean", folder=project.folder).returncode == 0
    assert not (project.folder / "build").exists()
    assert (project.folder / ".venv").exists()


# ---- the requirements ----


def requirement_lines():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_every_requirement_has_its_reason_and_a_bound():
    assert len(requirement_lines()) > 10
    for line in requirement_lines():
        requirement, _, reason = line.partition("  # ")
        assert len(reason) > 5, line
        assert re.search(r"==|<", requirement), line


def test_no_installed_package_contradicts_another():
    spec = importlib.util.find_spec("pip")
    if spec is None:
        pytest.skip("this environment has no pip")
    done = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True)
    assert done.stdout.strip() == "No broken requirements found."


def test_the_versions_of_python_agree_everywhere():
    source = (ROOT / "tools" / "make_venv.py").read_text()
    assert "OLDEST, NEWEST = (3, 10), (3, 12)" in source
    assert 'requires-python = ">=3.10,<3.13"' in (ROOT / "pyproject.toml").read_text()
    assert "(3, 10) <= sys.version_info[:2] <= (3, 12)" in (ROOT / "Makefile").read_text()
