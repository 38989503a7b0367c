"""Writes docs/rubric.md: for each thing that is asked for, where to see it.

    python -m tools.rubric             # writes the page
    python -m tools.rubric --check     # says whether it is up to date, and writes nothing

The rows stand in tools/criteria.py. Every cell, function and test that they name is looked up, so
the page cannot name one that is not there: a cell has to have run, without an error.
"""

import argparse
import ast
import functools
import json
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from tools import ROOT, notebooks_of
from tools.criteria import GROUPS, Row

PAGE = ROOT / "docs" / "rubric.md"
HEADING = re.compile(r"^#{2,} (.+)$", re.MULTILINE)
LONGEST_CODE = 76  # Characters of a line of code that a column of the table shows.
# What a Markdown link may hold unchanged; parentheses would end it.
SAFE = "-._~!$&'*+,;=:@/?"

INTRODUCTION = """\
# What is asked for, and where to see it

<!-- Written by `python -m tools.rubric`. Do not edit: change tools/criteria.py, write it again. -->

Each row names one thing that projects of this kind are graded on, in the words of the field; then
the cells that show it as they were executed, the lines that do it, and the tests of it. `In [24]`
is the number beside a cell. Its link leads to the cell itself in JupyterLab and in the pages of
`make site`, that of the section also in nbviewer. GitHub shows a notebook in a frame that may open
at its top; look for the number there.
"""


class NotFound(Exception):
    """What a row names is not there; the message is a sentence."""


@dataclass(frozen=True)
class Cell:
    """A code cell of a notebook.

    Attributes:
        number: its execution count, or None where it has not run.
        section: the heading that it stands under.
    """

    id: str
    source: str
    number: int | None
    section: str
    has_output: bool
    failed: bool


def get_args_parser():
    parser = argparse.ArgumentParser(
        prog="python -m tools.rubric",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--check", action="store_true", help="write nothing; 1 where it is stale")
    return parser


def main(args):
    try:
        text = page(GROUPS)
    except NotFound as error:
        print(f"rubric: {error}", file=sys.stderr)
        return 1
    stale = not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text
    name = PAGE.relative_to(ROOT)
    if args.check:
        print(f"{name} is {'stale: python -m tools.rubric writes it' if stale else 'up to date'}.")
        return int(stale)
    PAGE.write_text(text, encoding="utf-8")
    print(f"{name} is written.")
    return 0


# ---- the page ----


def page(groups: dict[str, list[Row]], root: Path = ROOT) -> str:
    """The text of docs/rubric.md.

    Raises:
        NotFound: one line for each thing that a row names and that is not there.
    """
    tables, problems = [], []
    for title, rows in groups.items():
        lines = [f"## {title}", "", "| asked for | where to see it |", "| --- | --- |"]
        for row in rows:
            try:
                lines.append(table_row(row, root))
            except NotFound as error:
                problems.append(f"{row.asked}: {error}")
        tables.append("\n".join(lines))
    if problems:
        raise NotFound("\n".join(problems))
    return "\n\n".join([INTRODUCTION + "\n" + verdict(groups), *tables]) + "\n"


def verdict(groups: dict[str, list[Row]]) -> str:
    """How many rows are shown, and which are not, as a list."""
    rows = [row for rows in groups.values() for row in rows]
    shown = [row for row in rows if row.cells]
    by_code = [row for row in rows if not row.cells and row.tests]
    absent = [row for row in rows if not row.cells and not row.tests]
    said = [f"- {len(shown)} of {len(rows)} rows are shown by a notebook as it was executed."]
    if by_code:
        said.append(f"- In code and tests, but in no notebook: {names(by_code)}.")
    if absent:
        said.append(f"- Not in this project: {names(absent)}.")
    return "\n".join(said)


def names(rows: Iterable[Row]) -> str:
    return "; ".join(f"*{row.asked}*" for row in rows)


def table_row(row: Row, root: Path) -> str:
    """One row of a table, with all that it names looked up.

    Raises:
        NotFound: something that the row names is not there, or what it calls absent is.
    """
    if not row.cells:
        check_absence(row, root)
    cells = [find_cell(root, *split(each)) for each in row.cells]
    if row.cells and not any(cell.has_output for cell in cells):
        raise NotFound("none of its cells has an output")
    places = [f"Cell: {cell_link(*split(name), cell)}" for name, cell in zip(row.cells, cells)]
    places += [f"Code: {code_link(root, *split(each))}" for each in row.code]
    places += [f"Test: {test_link(root, *split(each))}" for each in row.tests]
    asked = f"**{row.asked}**" + (f"<br>{row.note}" if row.note else "")
    return f"| {asked} | {'<br>'.join(places) or 'not here'} |"


def check_absence(row: Row, root: Path) -> None:
    """A row without a cell has to say so, and no executed cell may do what it speaks of.

    Raises:
        NotFound: it is there after all.
    """
    if not row.note or not row.unless:
        raise NotFound("a row without a cell needs a note and the words that would refute it")
    for path in notebooks_of(root):
        for cell in read_notebook(path):
            for words in row.unless:
                if cell.number is not None and words in cell.source:
                    name = path.relative_to(root)
                    raise NotFound(f"said to be in no notebook, but {name} has run `{words}`")


def cell_link(notebook: str, words: str, cell: Cell) -> str:
    """The number, the section and the line of a cell, with links to the first two."""
    line = next(line.strip() for line in cell.source.splitlines() if words in line)
    return (
        f"{Path(notebook).stem}, [{escaped(cell.section)}](../{notebook}#{anchor(cell.section)}), "
        f"[In [{cell.number}]](../{notebook}#cell-id={cell.id}) "
        f"{code(line if len(line) <= LONGEST_CODE else words)}"
    )


def code_link(root: Path, path: str, words: str) -> str:
    first, last = find_lines(root, path, words)
    what = f" {code(words)}" if words else ""
    return f"[{path}](../{path}#{span(first, last)}){what}"


def test_link(root: Path, path: str, name: str) -> str:
    first, last = find_test(root, path, name)
    told = name.removeprefix("test_").replace("_", " ")
    return f"[{path}](../{path}#{span(first, last)}): {told}"


def span(first: int, last: int) -> str:
    """The anchor of some lines, as GitHub writes it."""
    return f"L{first}" if first == last else f"L{first}-L{last}"


def anchor(heading: str) -> str:
    """The anchor that Jupyter and nbconvert give to a heading."""
    return quote(re.sub(r"[`*]", "", heading).replace(" ", "-"), safe=SAFE)


def code(words: str) -> str:
    return f"`{escaped(words)}`"


def escaped(text: str) -> str:
    """Text for a cell of a table: a bar would end it, inside of backquotes, too."""
    return text.replace("|", "\\|")


# ---- looking up ----


def split(reference: str) -> tuple[str, str]:
    """A path and what is meant in it, as `path::words`."""
    path, _, words = reference.partition("::")
    return path, words


def find_cell(root: Path, notebook: str, words: str) -> Cell:
    """The one cell with these words of code.

    Raises:
        NotFound: none or several have them, or it has not run, or ended in an error.
    """
    path = root / notebook
    if not path.is_file():
        raise NotFound(f"{notebook} is not there")
    found = [cell for cell in read_notebook(path) if words in cell.source]
    if len(found) != 1:
        raise NotFound(f"{len(found)} cells of {notebook} have `{words}`, and it takes one")
    (cell,) = found
    if cell.number is None:
        raise NotFound(f"the cell of {notebook} with `{words}` has not run")
    if cell.failed:
        raise NotFound(f"the cell of {notebook} with `{words}` ended in an error")
    return cell


@functools.cache
def read_notebook(path: Path) -> list[Cell]:
    """The code cells of a notebook, in order."""
    cells, section = [], ""
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            section = (HEADING.findall(source) or [section])[-1]
        if cell["cell_type"] == "code":
            kinds = [output["output_type"] for output in cell["outputs"]]
            number = cell["execution_count"]
            cells.append(Cell(cell["id"], source, number, section, bool(kinds), "error" in kinds))
    return cells


def find_lines(root: Path, path: str, words: str) -> tuple[int, int]:
    """First and last line of a function or class, or of the statement with these words of code.

    Without words it is the whole file. `Class.method` names a method.

    Raises:
        NotFound: there is no such file, or nothing or more than one thing of that kind in it.
    """
    if not (root / path).is_file():
        raise NotFound(f"{path} is not there")
    text = (root / path).read_text(encoding="utf-8")
    lines = text.splitlines()
    if not words:
        return 1, len(lines)
    tree = ast.parse(text) if path.endswith(".py") else ast.Module([], [])
    node = definition(tree, words.split("."))
    if node is not None:
        return extent(node)
    found = [number for number, line in enumerate(lines, 1) if words in line]
    if len(found) != 1:
        raise NotFound(f"{len(found)} lines of {path} have `{words}`, and it takes one")
    (line,) = found
    around = [extent(node) for node in ast.walk(tree) if isinstance(node, ast.stmt)]
    around = [(first, last) for first, last in around if first <= line <= last]
    return min(around, key=lambda lines: lines[1] - lines[0], default=(line, line))


def definition(tree: ast.AST, names: list[str]) -> ast.stmt | None:
    """The function or class of that name, in the class before it."""
    for name in names:
        kinds = (ast.FunctionDef, ast.ClassDef)
        tree = next((n for n in tree.body if isinstance(n, kinds) and n.name == name), None)
        if tree is None:
            return None
    return tree


def extent(node: ast.stmt) -> tuple[int, int]:
    """First and last line of a statement, its decorators included."""
    decorators = [each.lineno for each in getattr(node, "decorator_list", [])]
    return min([node.lineno, *decorators]), node.end_lineno


def find_test(root: Path, path: str, name: str) -> tuple[int, int]:
    """First and last line of a test.

    Raises:
        NotFound: pytest would not collect such a test from that file.
    """
    if not (root / path).is_file():
        raise NotFound(f"{path} is not there")
    tree = ast.parse((root / path).read_text(encoding="utf-8"))
    node = definition(tree, [name]) if name.startswith("test_") else None
    if not isinstance(node, ast.FunctionDef):
        raise NotFound(f"{path} has no test {name}")
    return extent(node)


if __name__ == "__main__":
    sys.exit(main(get_args_parser().parse_args()))
