import subprocess
import sys
import venv
from importlib import metadata

import pytest

from studio import bootstrap
from studio.cloud import ROOT

PROJECT_FILE = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
"""
# A build backend of a few lines, so that pip needs no index and no setuptools.
BACKEND = """
import zipfile

def build_wheel(folder, config_settings=None, metadata_directory=None):
    name = "tiny_lesson-1.0-py3-none-any.whl"
    info = "tiny_lesson-1.0.dist-info"
    about = "Metadata-Version: 2.1\\nName: tiny-lesson\\nVersion: 1.0\\n"
    kind = "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n"
    with zipfile.ZipFile(f"{folder}/{name}", "w") as wheel:
        wheel.writestr("tiny_lesson.py", "VALUE = 42\\n")
        wheel.writestr(f"{info}/METADATA", about)
        wheel.writestr(f"{info}/WHEEL", kind)
        wheel.writestr(f"{info}/RECORD", "")
    return name
"""


def test_missing_and_unfit_packages_are_named(tmp_path):
    installed = metadata.version("pytest")
    requirements = tmp_path / "requirements.txt"
    requirements.write_text(
        "# A comment, and an empty line.\n\n"
        f"pytest=={installed}  # exactly what is here\n"
        "PyTest>=1\n"
        "numpy>=99\n"
        "no-such-package-1a2b>=1,<2  # missing\n"
        "moto[server]>=1\n"
        "ruff<0.0.1\n"
    )
    assert bootstrap.missing(requirements) == ["numpy", "no-such-package-1a2b", "ruff"]


def test_where_all_is_installed_nothing_happens(tmp_path, capsys):
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("pytest>=1\n")
    bootstrap.ensure(requirements)
    version = sys.version.split()[0]
    expected = f"Python {version}: everything that this course needs is installed.\n"
    assert capsys.readouterr().out == expected


def test_this_environment_has_what_the_course_needs():
    assert bootstrap.missing(bootstrap.REQUIREMENTS) == []


@pytest.fixture(scope="module")
def bare_kernel(tmp_path_factory):
    """Run a program with a Python that has pip and nothing else."""
    folder = tmp_path_factory.mktemp("bare") / "venv"
    venv.create(folder, with_pip=True, symlinks=True)

    def run(source, *args):
        return subprocess.run(
            [folder / "bin" / "python", "-c", source, *map(str, args)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run


ENSURE = "import sys\nfrom studio import bootstrap\nbootstrap.ensure(sys.argv[1])\n"


def test_a_bare_kernel_gets_what_it_lacks_and_only_once(bare_kernel, tmp_path):
    package = tmp_path / "tiny_lesson"
    package.mkdir()
    (package / "pyproject.toml").write_text(PROJECT_FILE)
    (package / "backend.py").write_text(BACKEND)
    requirements = tmp_path / "requirements.txt"
    requirements.write_text(f"tiny-lesson @ {package.as_uri()}\n")

    first = bare_kernel(ENSURE + "import tiny_lesson\nprint(tiny_lesson.VALUE)", requirements)
    assert first.returncode == 0, first.stderr
    assert "Installing tiny-lesson, and what they need." in first.stdout
    assert first.stdout.endswith("42\n")

    second = bare_kernel(ENSURE, requirements)
    assert "everything that this course needs is installed" in second.stdout


def test_a_package_that_cannot_be_had_ends_with_a_sentence(bare_kernel, tmp_path):
    requirements = tmp_path / "requirements.txt"
    requirements.write_text(f"another-lesson @ {(tmp_path / 'nowhere').as_uri()}\n")
    done = bare_kernel(ENSURE, requirements)
    assert done.returncode == 1
    assert "pip could not install requirements.txt; its words are above." in done.stderr
    assert "Traceback" not in done.stderr
