"""Builds the site from the notebooks, the documents, and the files that they link to."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from urllib.parse import quote, unquote, urlsplit

from bs4 import BeautifulSoup
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from nbconvert.filters import markdown2html

from tools.site import notebook as notebooks
from tools.site import page, source
from tools.site.notebook import Notebook

TEMPLATES = notebooks.TEMPLATES
README = "README.md"
INDEX = "index.html"
MARK = '<meta name="generator" content="tools.site">'  # Of index.html: the folder is ours.
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".svg")


class SiteError(Exception):
    """The site cannot be built; the message is a sentence."""


@dataclass
class Page:
    """A page of the site.

    Attributes:
        origin: what it is made from, relative to the project, as links name it.
        html: its content.
        notebook: None of a document.
    """

    origin: str
    title: str
    lead: str
    html: BeautifulSoup
    notebook: Notebook | None = None

    @property
    def target(self) -> str:
        """Its file, relative to the site."""
        return str(PurePosixPath(self.origin).with_suffix(".html"))

    @property
    def contents(self) -> list[tuple[int, str, str]]:
        return page.contents(self.html)

    def beside(self, name: str) -> str:
        """A file in the folder of the page, relative to the site."""
        return str(PurePosixPath(self.target).parent / name)


@dataclass
class Site:
    """Pages, and the files of the project that they link to.

    Attributes:
        sources: the anchors, as `L3-L7`, that links into each text file name.
        pictures: files that are shown or linked, as they are.
        dead_links: a sentence for each link that leads nowhere.
    """

    root: Path
    pages: list[Page]
    sources: dict[str, set[str]] = field(default_factory=dict)
    pictures: set[str] = field(default_factory=set)
    dead_links: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        count = sum(each.notebook is not None for each in self.pages)
        return (
            f"{count} notebooks, {len(self.pages) - count} documents and "
            f"{len(self.sources)} files that they link to"
        )


def build(paths: Sequence[Path], output: Path, root: Path) -> Site:
    """Write the site of these notebooks and of all documents of the project into a folder.

    Raises:
        SiteError: a notebook is none, or the folder cannot be taken.
    """
    check_output(output)
    pages = [read_notebook(path, root) for path in paths]
    pages += [read_document(path, root) for path in documents_of(root)]
    site = Site(root, pages)
    for each in pages:
        link(site, each)
    # Beside its place and moved at once: whoever reads the old site never sees half of a new one.
    partial_output = output.with_name(f".{output.name}-{os.getpid()}")
    try:
        write(site, partial_output)
        shutil.rmtree(output, ignore_errors=True)
        partial_output.replace(output)
    except OSError as error:
        raise SiteError(f"{output} cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(partial_output, ignore_errors=True)
    return site


def documents_of(root: Path) -> list[Path]:
    """The Markdown files of the project; one without a title is a part of another."""
    paths = sorted((root / "docs").glob("*.md"))
    titled = [path for path in paths if path.read_text(encoding="utf-8").startswith("# ")]
    return [root / README, *titled]


def check_output(output: Path) -> None:
    """Refuse a place where something else is."""
    if output.is_dir():
        index = output / INDEX
        ours = index.is_file() and MARK in index.read_text(encoding="utf-8", errors="replace")
        if any(output.iterdir()) and not ours:
            raise SiteError(f"{output} holds other things than a site; name an empty folder")
    elif output.exists():
        raise SiteError(f"{output} is a file; name a folder for the site")


# ---- reading ----


def read_notebook(path: Path, root: Path) -> Page:
    """Render a notebook.

    Raises:
        SiteError: it is none.
    """
    try:
        found = notebooks.read(path, path.stem)
    except OSError as error:
        raise SiteError(f"{path} cannot be read: {error.strerror}") from error
    except notebooks.NoNotebook as error:
        raise SiteError(f"{path} is not a notebook: {error}") from error
    html = page.tidy(found.body, page.notebook_anchor)
    page.size_pictures(html, lambda address: found.figures.get(PurePosixPath(address).name))
    return Page(origin(path, root), found.title, found.lead, html, found)


def read_document(path: Path, root: Path) -> Page:
    """Render a Markdown file."""
    text = path.read_text(encoding="utf-8")
    title, lead = notebooks.title_and_lead(text, path.stem)
    html = page.tidy(markdown2html(text), page.github_anchor)

    def read(address: str) -> bytes | None:
        picture = path.parent / address
        return picture.read_bytes() if picture.is_file() else None

    page.size_pictures(html, read)
    # Its title is that of the whole project, as the course's is.
    return Page(origin(path, root), path.stem if path.name == README else title, lead, html)


def origin(path: Path, root: Path) -> str:
    """A path relative to the project; the name alone of a file elsewhere."""
    path = path.resolve()
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name


# ---- links ----


def link(site: Site, here: Page) -> None:
    """Lead the links and pictures of a page to places within the site, or make them plain text."""
    for element in here.html.find_all(["a", "img"]):
        attribute = "href" if element.name == "a" else "src"
        address = urlsplit(element.get(attribute, ""))
        if element.name == "img" and address.scheme in ("http", "https"):
            told = element.get("alt") or element["src"]  # A link loads nothing by itself.
            element.replace_with(here.html.new_tag("a", href=element["src"], string=told))
        if address.scheme or address.netloc or not address.path:
            continue
        if here.notebook and element.name == "img":
            continue  # A figure: it lies where the page looks for it.
        target = locate(site, here, unquote(address.path), unquote(address.fragment))
        if target:
            element[attribute] = relative(here.target, target)
        else:
            element.unwrap()


def locate(site: Site, here: Page, path: str, fragment: str) -> str | None:
    """Where in the site the file is that a page links to; None where the link is plain text."""
    file = Path(os.path.normpath(site.root / PurePosixPath(here.origin).parent / path))
    if not file.exists() or not file.is_relative_to(site.root):
        site.dead_links.append(f"{here.origin} links to {path}, which is not there")
        return None
    name = file.relative_to(site.root).as_posix()
    for other in site.pages:
        if other.origin == name:
            return with_fragment(other.target, fragment)
    if file.is_dir() or file.suffix == ".ipynb":
        return None
    if file.suffix in PICTURES:
        site.pictures.add(name)
        return name
    spans = site.sources.setdefault(name, set())
    if source.LINES.fullmatch(fragment):
        spans.add(fragment)
    return with_fragment(f"{name}.html", fragment)


def with_fragment(target: str, fragment: str) -> str:
    return f"{target}#{fragment}" if fragment else target


def relative(here: str, target: str) -> str:
    """The address of a page of the site, seen from another one."""
    path, _, fragment = target.partition("#")
    way = os.path.relpath(path, PurePosixPath(here).parent)
    return with_fragment(quote(way), quote(fragment, safe="-._~!$&'()*+,;=:@/?"))


# ---- writing ----


def write(site: Site, folder: Path) -> None:
    """Write all files of the site."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    readme = next(each for each in site.pages if each.origin == README)

    def put(target: str, template: str, **context) -> None:
        text = environment.get_template(template).render(
            here=target, to=partial(relative, target), **context
        )
        save(folder / target, text.encode())

    title = page.words(readme.html.h1)
    put(INDEX, "index.html", title=title, lead=readme.lead, pages=site.pages)
    for before, each, after in zip([None, *site.pages], site.pages, [*site.pages[1:], None]):
        put(each.target, "page.html", page=each, title=each.title, before=before, after=after)
        for name, content in (each.notebook.figures if each.notebook else {}).items():
            save(folder / each.beside(f"figures/{name}"), content)
    for name, spans in site.sources.items():
        text = (site.root / name).read_text(encoding="utf-8", errors="replace")
        lines = source.render(name, text, spans)
        put(f"{name}.html", "source.html", title=name, lines=lines)
    for name in site.pictures:
        save(folder / name, (site.root / name).read_bytes())
    save(folder / "style.css", (TEMPLATES / "style.css").read_bytes())


def save(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
