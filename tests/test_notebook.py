"""The committed notebooks, as a reader finds them."""

import platform
import re

import nbformat
import pytest
from notebook_runs import (
    BINS,
    COURSE,
    DOGS,
    LISTINGS,
    OWN_FOLDER,
    all_text,
    assert_clean,
    code_cells,
)

MACHINE = re.compile(r"(?<![\w.])/(root|home|work|tmp|Users|var|mnt|private)/", re.IGNORECASE)
REGISTRIES = re.compile(r"pypi\.org|pythonhosted\.org|/opt/pypi|/opt/wheels|site-packages")
# A result: it belongs into what a cell computes, where a new run makes it anew.
TYPED_RESULT = re.compile(r"\d\.\d+ ?(%|ms\b|s\b|seconds)")
ALL = [COURSE, LISTINGS, BINS, DOGS, OWN_FOLDER]


@pytest.fixture(scope="module", params=ALL, ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.fixture(scope="module")
def committed(path):
    return nbformat.read(path, as_version=4)


def prose_of(notebook):
    return "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def test_it_is_a_valid_notebook_of_bearable_length(committed, path):
    nbformat.validate(committed)
    assert 30 <= len(committed.cells) <= 115
    assert path.stat().st_size < 3_000_000


def test_its_cells_are_short(committed):
    sources = [cell.source for cell in code_cells(committed)]
    lengths = [len(source.splitlines()) for source in sources]
    # Parameters are a list, with what each is for; the others do something.
    limits = [21 if source.startswith("WHERE = ") else 20 for source in sources]
    assert all(length <= limit for length, limit in zip(lengths, limits, strict=True))
    assert sorted(lengths)[len(lengths) // 2] <= 10


def test_its_code_is_introduced_by_prose(committed):
    kinds = [cell.cell_type for cell in committed.cells]
    bare = [i for i, kind in enumerate(kinds) if kind == "code" and kinds[i - 1] != "markdown"]
    assert kinds[0] == "markdown"
    assert len(bare) <= 0.2 * kinds.count("code"), f"cells without prose before them: {bare}"


def test_its_prose_states_no_result(committed):
    assert TYPED_RESULT.search(prose_of(committed)) is None


def test_it_is_committed_as_executed_from_top_to_bottom(committed):
    counts = [cell.execution_count for cell in code_cells(committed)]
    assert counts == list(range(1, len(counts) + 1))


def test_its_outputs_hold_no_error_and_no_warning(committed):
    assert_clean(committed)


def test_it_names_no_path_and_no_host_of_the_machine_that_ran_it(committed):
    text = "\n".join(cell.source for cell in committed.cells) + all_text(committed)
    # Figures inside the report's page: any letters can come up in their base64.
    lines = re.sub(r"base64,[\w+/=]+", "", text).splitlines()
    names = re.compile(rf"{MACHINE.pattern}|{REGISTRIES.pattern}|{re.escape(platform.node())}")
    assert [line for line in lines if names.search(line)] == []


def test_its_links_to_files_of_the_project_lead_somewhere(committed, path):
    found = re.findall(r"\]\(([^)]+)\)", prose_of(committed))
    targets = [target for target in found if not target.startswith("http")]
    assert targets
    assert [target for target in targets if not (path.parent / target).exists()] == []
