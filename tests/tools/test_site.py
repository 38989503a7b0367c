"""The site of the notebooks: built by its command, then opened in Chromium from its files."""

import re
import subprocess
import sys
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
from browser import assert_accessible, assert_fits
from bs4 import BeautifulSoup

from tools import ROOT, notebooks_of
from tools.site.page import flow

# As the reader's device: a desktop by day and a phone by night.
VIEWS = {"desktop": (1280, "light"), "phone": (360, "dark")}


def make(*arguments):
    command = [sys.executable, "-m", "tools.site", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site") / "built site"
    done = make("--output", folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.match(r"\d+ notebooks, \d+ documents and \d+ files that they link to", done.stdout)
    assert str(folder / "index.html") in done.stdout
    return folder


@pytest.fixture(scope="module")
def pages(site):
    """Every page by its path in the site, parsed."""
    return {
        path.relative_to(site).as_posix(): BeautifulSoup(path.read_text(), "html.parser")
        for path in sorted(site.rglob("*.html"))
    }


def target_of(path):
    return path.relative_to(ROOT).with_suffix(".html").as_posix()


# ---- what is there ----


def test_every_notebook_and_document_has_a_page(pages):
    for path in [*notebooks_of(ROOT), ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        # What has no title is a part of another document.
        titled = path.suffix == ".ipynb" or path.read_text().startswith("# ")
        assert (target_of(path) in pages) == titled
    # What a row of the rubric names, lines and all.
    assert pages["train_model.py.html"].find(id=re.compile(r"L\d+-L\d+"))


def test_a_page_has_every_cell_and_output_of_its_notebook(pages):
    for path in notebooks_of(ROOT):
        page = pages[target_of(path)]
        cells = [c for c in nbformat.read(path, 4).cells if c.cell_type == "code"]
        shown = page.select(".cell")
        assert [each["id"] for each in shown] == [f"cell-id={cell.id}" for cell in cells]
        for cell, each in zip(cells, shown):
            assert each.select_one(".number").text == f"In [{cell.execution_count or ' '}]"
            assert each.select_one(".code").text.strip() == cell.source.strip()
            pictures = [o for o in cell.outputs if "image/png" in o.get("data", {})]
            assert len(each.select(".output img[src^='figures/']")) == len(pictures)


def test_the_index_has_a_card_for_every_notebook_with_its_results(pages, site):
    cards = pages["index.html"].find_all("article")
    assert len(cards) == len(notebooks_of(ROOT))
    for path, card in zip(notebooks_of(ROOT), cards):
        notebook = nbformat.read(path, 4)
        assert card.h3.text == notebook.cells[0].source.splitlines()[0].removeprefix("# ")
        assert len(card.p.text) > 80
        picture = (site / card.img["src"]).read_bytes()
        assert picture.startswith(b"\x89PNG")
        (summary,) = [c for c in notebook.cells if "summary" in c.metadata.get("tags", [])]
        printed = summary.outputs[-1].data["text/plain"]
        names = [term.text for term in card.find_all("dt")]
        assert "test accuracy" in names
        for value in card.find_all("dd"):
            assert value.text in printed


def test_the_cell_tagged_cover_gives_the_picture_of_the_card(pages, site):
    notebook = nbformat.read(notebooks_of(ROOT)[0], 4)
    (cover,) = [i for i, c in enumerate(notebook.cells) if "cover" in c.metadata.get("tags", [])]
    assert pages["index.html"].article.img["src"].startswith(f"figures/train_and_deploy_{cover}_")


def test_next_leads_through_all_pages_and_back(pages):
    order, target = [], "train_and_deploy.html"
    while target:
        order.append(target)
        following = pages[target].select_one("header a[rel=next]")
        before, target = target, following and resolve(target, following["href"])[0]
        if target:
            back = pages[target].select_one("header a[rel=prev]")
            assert resolve(target, back["href"])[0] == before
    assert order[: len(notebooks_of(ROOT))] == [target_of(path) for path in notebooks_of(ROOT)]
    assert set(order) == {name for name in pages if pages[name].select(".way")} - {"index.html"}


def resolve(here, href):
    """File and anchor, in the site, of an address on a page."""
    from posixpath import dirname, join, normpath

    address = urlsplit(href)
    path = normpath(join(dirname(here), unquote(address.path))) if address.path else here
    return path, unquote(address.fragment)


def test_headings_are_listed_beside_the_text(pages):
    page = pages["train_and_deploy.html"]
    listed = [a["href"] for a in page.select("nav.contents a")]
    headings = [heading["id"] for heading in page.main.find_all(["h2", "h3"])]
    assert [unquote(href) for href in listed] == [f"#{name}" for name in headings]
    assert "3-The-search-for-hyperparameters" in headings


def test_a_flow_chart_becomes_a_list():
    found = flow(
        BeautifulSoup("", "html.parser"),
        'flowchart LR\n  A[page] -- "GET x" --> B[(a bucket)] -- z --> C[c]\n  A -- q --> C\n',
    )
    told = [item.text for item in found.find_all("li")]
    assert told == ["page → a bucket: GET x", "a bucket → c: z", "page → c: q"]


def test_the_chart_of_the_web_app_is_such_a_list(pages):
    told = pages["docs/web.html"].select_one(".flow").text
    assert "function → SageMaker endpoint: InvokeEndpoint" in told
    assert "POST /classify, /corrections; CORS: this page only" in told
    assert "-->" not in pages["docs/web.html"].main.text


# ---- in a browser ----


class Visit:
    """What a browser found out about a page."""

    def __init__(self, page, path):
        self.said, self.asked = [], []
        page.on("console", lambda message: self.said.append(message.text))
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.on("request", lambda request: self.asked.append(request.url))
        page.goto(path.as_uri())
        self.links = page.evaluate("[...document.links].map(link => link.href)")
        self.ids = set(page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)"))
        self.images = page.evaluate(
            "Promise.all([...document.images].map(i => i.decode().then(() => i.naturalWidth)))"
        )


@pytest.mark.parametrize("view", VIEWS)
def test_every_page_opens_alone_fits_and_is_accessible(chromium, site, pages, view):
    width, scheme = VIEWS[view]
    size = {"width": width, "height": 800}
    context = chromium.new_context(viewport=size, color_scheme=scheme, is_mobile=width < 600)
    visits, base = {}, site.as_uri() + "/"
    checked_sources = 0
    for name in pages:
        with context.new_page() as page:
            visits[name] = visit = Visit(page, site / name)
            assert visit.said == [], name
            abroad = [url for url in visit.asked if not url.startswith((base, "data:", "about:"))]
            assert abroad == [], name
            assert all(visit.images), name
            assert page.evaluate("innerWidth") == width
            assert_fits(page)
            checked_sources += "source" in page.locator("body").get_attribute("class")
            if checked_sources < 3 or "source" not in page.locator("body").get_attribute("class"):
                assert_accessible(page, name)
    context.close()
    checked = 0
    for name, visit in visits.items():
        for url in visit.links:
            if not url.startswith("file:"):
                continue
            file, _, anchor = url.partition("#")
            assert file.startswith(base), (name, url)
            target = unquote(file.removeprefix(base))
            assert target in visits or (site / target).is_file(), (name, url)
            assert not anchor or unquote(anchor) in visits[target].ids, (name, url)
            checked += 1
    assert checked > 300


def test_a_row_of_the_rubric_leads_to_its_cell_and_lines(chromium, site):
    with chromium.new_page(viewport={"width": 1280, "height": 800}) as page:
        page.goto((site / "docs" / "rubric.html").as_uri())
        row = page.locator("tr", has_text="The best hyperparameters are retrieved")
        row.locator("a", has_text="In [").first.click()
        cell = page.locator(":target")
        assert "tuner.best_training_job()" in cell.inner_text()
        assert cell.evaluate("e => e.getBoundingClientRect().top < innerHeight")
        page.go_back()
        row.locator("a[href*='studio/jobs.py']").click()
        mark = page.locator(":target").bounding_box()
        first, last = map(int, re.findall(r"\d+", urlsplit(page.url).fragment))
        # From one line to the next: the box of a line's text is lower than the line.
        tops = [page.locator(f"#L{number}").bounding_box()["y"] for number in (first, first + 1)]
        assert mark["height"] == pytest.approx((last - first + 1) * (tops[1] - tops[0]), rel=0.15)
        assert page.locator(f"#L{first}").inner_text().startswith("def trials(")


def test_on_paper_only_the_text_remains_and_no_code_is_cut(chromium, site):
    with chromium.new_page(viewport={"width": 700, "height": 900}) as page:
        page.goto((site / "train_and_deploy.html").as_uri())
        page.emulate_media(media="print")
        for part in ("header", "footer", "nav.contents", "details.contents"):
            assert not page.locator(part).is_visible()
        cut = "e => e.scrollWidth > e.clientWidth + 1"
        assert page.locator(".code pre").evaluate_all(f"all => all.filter({cut}).length") == 0
        assert page.pdf().startswith(b"%PDF")


def test_the_keyboard_reaches_the_text_at_once(chromium, site):
    with chromium.new_page() as page:
        page.goto((site / "train_and_deploy.html").as_uri())
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
        page.keyboard.press("Enter")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.closest('main') !== null")


# ---- other notebooks ----


def notebook(*cells):
    return nbformat.writes(nbformat.v4.new_notebook(cells=cells))


def test_what_is_in_a_notebook_loads_and_runs_nothing(chromium, tmp_path):
    evil = (
        "<script>document.title = 'ran'</script><b>kept</b>"
        "<link rel=stylesheet href='https://example.org/x.css'>"
        "<img src='https://example.org/x.png' alt='far away'>"
        "<iframe src='https://example.org'></iframe>"
    )
    output = nbformat.v4.new_output("display_data", {"text/html": evil})
    (tmp_path / "evil.ipynb").write_text(
        notebook(
            nbformat.v4.new_markdown_cell("# A & B <i>x</i>\n\nFirst.\n\n[gone](gone.md) [dir](.)"),
            nbformat.v4.new_code_cell("1 < 2", outputs=[output]),
        )
    )
    done = make(tmp_path / "evil.ipynb", "--output", tmp_path / "site")
    assert done.returncode == 0
    assert done.stderr == "site: evil.ipynb links to gone.md, which is not there\n"
    with chromium.new_page() as page:
        visit = Visit(page, tmp_path / "site" / "evil.html")
        assert [url for url in visit.asked if not url.startswith(("file:", "data:"))] == []
        assert page.title() == "A & B x"
        assert page.locator("main").inner_text().count("kept") == 1
        assert page.locator("a", has_text="far away").count() == 1
        assert page.locator("a", has_text="gone").count() == 0


def test_a_second_site_replaces_the_first(tmp_path):
    plain = nbformat.v4.new_markdown_cell("# One\n\nFirst.")
    for name in ("one", "two"):
        (tmp_path / f"{name}.ipynb").write_text(notebook(plain))
        assert make(tmp_path / f"{name}.ipynb", "--output", tmp_path / "site").returncode == 0
    assert not (tmp_path / "site" / "one.html").exists()
    assert (tmp_path / "site" / "two.html").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.ipynb", "site", "two.ipynb"]


NO_NOTEBOOKS = {
    "text": b"hello",
    "bytes": b"\x89PNG\r\n\x1a\n\xff\xfe",
    "empty": b"",
    "a list": b"[]",
    "an object": b"{}",
    "no cells": b'{"nbformat": 4, "nbformat_minor": 5, "metadata": {}}',
    "cells of another kind": b'{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [1]}',
    "a version of tomorrow": b'{"nbformat": 99, "cells": [], "metadata": {}}',
}


def only_sentence(done):
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("site: ")
    return line


@pytest.mark.parametrize("kind", NO_NOTEBOOKS)
def test_what_is_no_notebook_is_refused_and_the_old_site_stays(tmp_path, kind):
    (tmp_path / "site").mkdir()
    index = '<meta name="generator" content="tools.site">'
    (tmp_path / "site" / "index.html").write_text(index)
    (tmp_path / "bad.ipynb").write_bytes(NO_NOTEBOOKS[kind])
    line = only_sentence(make(tmp_path / "bad.ipynb", "--output", tmp_path / "site"))
    assert f"{tmp_path / 'bad.ipynb'} is not a notebook: " in line
    assert (tmp_path / "site" / "index.html").read_text() == index


def test_a_notebook_that_is_not_there_is_named(tmp_path):
    line = only_sentence(make(tmp_path / "none.ipynb", "--output", tmp_path / "site"))
    assert line.endswith("none.ipynb cannot be read: No such file or directory")
    assert not (tmp_path / "site").exists()


def test_a_place_that_is_taken_is_left_alone(tmp_path):
    (tmp_path / "file").write_text("mine")
    assert "is a file" in only_sentence(make("--output", tmp_path / "file"))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine.txt").write_text("mine")
    assert "holds other things" in only_sentence(make("--output", tmp_path / "folder"))
    line = only_sentence(make("--output", tmp_path / "file" / "site"))
    assert line.endswith("cannot be written: Not a directory")
    assert (tmp_path / "file").read_text() == (tmp_path / "folder" / "mine.txt").read_text()


def test_help_tells_how_it_is_used():
    told = make("--help").stdout
    assert "python -m tools.site" in told
    assert "--output" in told
