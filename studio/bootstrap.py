"""Makes sure that the kernel has what the notebook needs; uses nothing but the standard library.

In the project's own `.venv` there is nothing to do. In SageMaker Studio, or any bare kernel, what
is missing or too old is installed, and said.
"""

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

REQUIREMENTS = Path(__file__).resolve().parent.parent / "requirements.txt"


def ensure(requirements=REQUIREMENTS):
    """Install what `requirements` asks for and this kernel lacks; say so.

    Raises:
        SystemExit: the installation failed; pip's own words come first.
    """
    lacking = missing(requirements)
    if not lacking:
        print(f"Python {sys.version.split()[0]}: everything that this course needs is installed.")
        return
    print(f"Installing {', '.join(lacking)}, and what they need. This takes a few minutes ...")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "-r", str(requirements)]
    if subprocess.run(command).returncode:
        sys.exit(f"pip could not install {Path(requirements).name}; its words are above.")
    print("Installed. If a package was imported before, restart the kernel and run this again.")


def missing(requirements):
    """Names of the requirements that are not installed in a version that fits."""
    lines = (line.partition("#")[0].strip() for line in Path(requirements).read_text().splitlines())
    return [re.match(r"[\w.-]+", line)[0] for line in lines if line and not is_met(line)]


def is_met(line):
    """Whether one line of a requirements file is met by what is installed."""
    from pip._vendor.packaging.requirements import Requirement  # A bare kernel has pip, not more.

    requirement = Requirement(line)
    try:
        installed = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return False
    return requirement.specifier.contains(installed, prereleases=True)
