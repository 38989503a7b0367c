"""What every page of the site needs of its HTML: links that lead somewhere, tables that fit, …"""

import io
import re
from collections.abc import Callable
from urllib.parse import unquote

from bs4 import BeautifulSoup, Tag
from PIL import Image

# An edge of a flow chart in Mermaid's words: -- what is said --> .
EDGE = re.compile(r'\s*--\s*"?([^"]*?)"?\s*-->\s*')
NODE = re.compile(r"(\w+)(?:\[\(?(.+?)\)?\])?")


def tidy(html: str, anchor: Callable[[str], str]) -> BeautifulSoup:
    """Make HTML of nbconvert fit into a page.

    What is wide scrolls by itself, with the keyboard, too; headings have anchors of their own;
    what would run or load something from elsewhere goes.

    Args:
        anchor: gives a heading's text its anchor.
    """
    soup = BeautifulSoup(html, "html.parser")
    for element in soup.select(".anchor-link, style, script, link, iframe[src]"):
        element.decompose()
    name_headings(soup, anchor)
    for diagram in soup.select("pre.mermaid"):
        # Between its pieces of text are line breaks.
        diagram.parent.replace_with(flow(soup, diagram.get_text("; ")))
    for table in soup.find_all("table"):
        table.attrs = {"class": "dataframe"} if "dataframe" in table.get("class", []) else {}
        table.wrap(soup.new_tag("div", attrs={"class": "wide", "tabindex": "0"}))
        # Markdown's bars in a table are escaped, also in code, where nbconvert leaves the sign.
        for code in table.find_all("code"):
            code.string = code.get_text().replace("\\|", "|")
    for pre in soup.find_all("pre"):
        pre["tabindex"] = "0"
    return soup


def name_headings(soup: BeautifulSoup, anchor: Callable[[str], str]) -> None:
    """Give every heading an id that no other element has."""
    taken = set()
    for heading in soup.find_all(re.compile(r"h[1-6]")):
        name = plain = anchor(words(heading))
        count = 0
        while name in taken:
            count += 1
            name = f"{plain}-{count}"
        taken.add(name)
        heading["id"] = name


def words(element: Tag | None) -> str:
    """The text of an element, on one line."""
    return " ".join(element.get_text().split()) if element else ""


def notebook_anchor(heading: str) -> str:
    """The anchor of a heading as Jupyter and nbconvert make it."""
    return heading.replace(" ", "-")


def github_anchor(heading: str) -> str:
    """The anchor of a heading in a Markdown file as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def contents(soup: BeautifulSoup) -> list[tuple[int, str, str]]:
    """Level, anchor and text of the headings below the title."""
    return [
        (int(heading.name[1]), heading["id"], words(heading))
        for heading in soup.find_all(["h2", "h3"])
    ]


def flow(soup: BeautifulSoup, mermaid: str) -> Tag:
    """A flow chart in Mermaid's words as a list of who sends what to whom."""
    names, found = {}, soup.new_tag("ul", attrs={"class": "flow"})
    for line in mermaid.strip().splitlines()[1:]:
        nodes_and_edges = EDGE.split(line.strip())
        nodes = [NODE.fullmatch(node) for node in nodes_and_edges[::2]]
        names |= {node[1]: node[2] for node in nodes if node[2]}
        ends = [names[node[1]] for node in nodes]
        for start, said, end in zip(ends, nodes_and_edges[1::2], ends[1:]):
            item = soup.new_tag("li")
            arrow = f"{start} → {end}"
            item.append(soup.new_tag("b", string=arrow))
            item.append(f": {said}")
            found.append(item)
    return found


def size_pictures(soup: BeautifulSoup, read: Callable[[str], bytes | None]) -> None:
    """Note width and height of every picture, so that nothing moves while they are loaded.

    Args:
        read: gives the content of the picture at an address; None of one that is not at hand.
    """
    for image in soup.find_all("img"):
        content = read(unquote(image["src"]))
        if content is None:
            continue
        with Image.open(io.BytesIO(content)) as picture:
            image["width"], image["height"] = map(str, picture.size)
