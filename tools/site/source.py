"""A file of the project as a page: highlighted, every line with an anchor."""

import re
from collections.abc import Iterable

from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import TextLexer, get_lexer_for_filename
from pygments.util import ClassNotFound

LINES = re.compile(r"L(\d+)(?:-L(\d+))?")


def render(name: str, text: str, spans: Iterable[str]) -> str:
    """The lines of a file as HTML.

    Args:
        spans: anchors of several lines, as `L3-L7`, that links lead to: those lines can be marked.
    """
    try:
        lexer = get_lexer_for_filename(name, stripnl=False)
    except ClassNotFound:
        lexer = TextLexer(stripnl=False)
    lines = highlight(text, lexer, HtmlFormatter(nowrap=True)).rstrip("\n").split("\n")
    marks = {}
    for span in sorted(spans):
        first, last = LINES.fullmatch(span).groups()
        if last:
            count = int(last) - int(first) + 1
            mark = f'<i class="mark" id="{span}" style="--lines: {count}"></i>'
            marks[int(first)] = marks.get(int(first), "") + mark
    return "\n".join(
        f'<span class="line" id="L{number}">{marks.get(number, "")}{line}</span>'
        for number, line in enumerate(lines, 1)
    )
