"""One executed notebook: its cells as HTML, and what a card says about it."""

import re
from dataclasses import dataclass
from pathlib import Path

import nbformat
from bs4 import BeautifulSoup
from jinja2 import FileSystemLoader
from nbconvert import HTMLExporter
from nbconvert.filters import markdown2html
from traitlets.config import Config

from tools.site.page import words

TEMPLATES = Path(__file__).with_name("templates")
# The row of the closing table that tells the one who ran it where to look.
NO_RESULT = "look at the jobs"
# What nbformat raises for other files than notebooks: JSON of another shape, other texts, …
NO_NOTEBOOK = (ValueError, KeyError, TypeError, AttributeError, nbformat.ValidationError)


class NoNotebook(Exception):
    """The file holds something else; the message says what is wrong with it."""


@dataclass(frozen=True)
class Notebook:
    """A notebook, rendered.

    Attributes:
        lead: its first paragraph, as text.
        body: its cells as HTML; the pictures are files.
        figures: content of each picture by its file name.
        cover: file name of the picture that stands for the notebook; "" where it has none.
        results: the rows of the table that its cell tagged `summary` left.
    """

    title: str
    lead: str
    body: str
    figures: dict[str, bytes]
    cover: str
    results: list[tuple[str, str]]


def read(path: Path, key: str) -> Notebook:
    """Render a notebook.

    Args:
        key: what the names of its pictures begin with.

    Raises:
        NoNotebook: the file holds something else.
        OSError: it cannot be read.
    """
    content = path.read_bytes()
    try:
        notebook = nbformat.reads(content.decode("utf-8"), as_version=4)
        nbformat.validate(notebook)
    except NO_NOTEBOOK as error:
        raise NoNotebook(str(error).strip().split("\n")[0].strip().rstrip(".:")) from error
    say_what_pictures_are(notebook)
    exporter = HTMLExporter(
        config=Config(ExtractOutputPreprocessor={"enabled": True}),
        extra_loaders=[FileSystemLoader(TEMPLATES)],
        template_file="notebook.html.j2",
        exclude_anchor_links=True,
    )
    body, resources = exporter.from_notebook_node(notebook, {"unique_key": key})
    figures = resources["outputs"]  # Named <key>_<number of the cell>_<number of the output>.png.
    first = next((c.source for c in notebook.cells if c.cell_type == "markdown"), "")
    title, lead = title_and_lead(first, path.stem)
    cover = find_cover(notebook, figures)
    return Notebook(title, lead, body, figures, cover, results_of(notebook))


def title_and_lead(markdown: str, default: str) -> tuple[str, str]:
    """The first heading of a text and its first paragraph, both without any markup."""
    soup = BeautifulSoup(markdown2html(markdown), "html.parser")
    for link in soup.select(".anchor-link"):
        link.decompose()
    # Where the paragraph leads over to a list, that sentence says nothing without it.
    lead = re.sub(r"(?<=\. )[^.]*:$", "", words(soup.find("p"))).strip()
    return words(soup.find("h1")) or default, lead


def say_what_pictures_are(notebook) -> None:
    """Note in every code cell, as `alt`, what pictures of it show: the question before it."""
    section = prose = ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            section = (re.findall(r"^#+ (.+)$", cell.source, re.MULTILINE) or [section])[-1]
            soup = BeautifulSoup(markdown2html(cell.source), "html.parser")
            prose = words((soup.find_all("p") or [None])[-1])
        if cell.cell_type == "code":
            sentence = re.match(r".*?[.?!:](?= |$)|.*", prose)[0]
            cell.metadata["alt"] = f"Figure in “{re.sub('[`*]', '', section)}”: {sentence}"


def find_cover(notebook, figures: dict[str, bytes]) -> str:
    """The picture of the cell tagged `cover`, else the largest file: it shows the most."""
    cells = {name: notebook.cells[int(name.rsplit("_", 2)[1])] for name in figures}
    tagged = [name for name, cell in cells.items() if "cover" in cell.metadata.get("tags", [])]
    return max(tagged or figures, key=lambda name: len(figures[name]), default="")


def results_of(notebook) -> list[tuple[str, str]]:
    """The rows of the table that the cell tagged `summary` left: name and value."""
    rows = []
    for cell in notebook.cells:
        if "summary" in cell.metadata.get("tags", []):
            for output in cell.get("outputs", []):
                soup = BeautifulSoup(output.get("data", {}).get("text/html", ""), "html.parser")
                rows += [[words(td) for td in tr.find_all("td")] for tr in soup.find_all("tr")]
    return [tuple(row) for row in rows if len(row) == 2 and row[0] != NO_RESULT]
