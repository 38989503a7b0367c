"""Whether the packages that a `requirements.txt` asks for are there already."""

from importlib import metadata
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement


def are_installed(path):
    """Whether this interpreter has everything that the file at `path` asks for.

    Asking pip takes one to three seconds, and containers see all packages of this machine. False
    where a line is more than a name and versions: only pip knows what it means.
    """
    lines = [line.partition(" #")[0].strip() for line in Path(path).read_text().splitlines()]
    return all(is_installed(line) for line in lines if line and not line.startswith("#"))


def is_installed(line):
    try:
        requirement = Requirement(line)
        if requirement.url or requirement.extras:
            return False
        if requirement.marker and not requirement.marker.evaluate():
            return True
        return requirement.specifier.contains(metadata.version(requirement.name))
    except (InvalidRequirement, metadata.PackageNotFoundError):
        return False
