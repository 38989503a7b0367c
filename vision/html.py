"""The pages of the reports: one HTML file each that needs no script, network or other file."""

import base64
from collections.abc import Callable, Mapping
from pathlib import Path

from jinja2 import ChoiceLoader, Environment, FileSystemLoader, StrictUndefined


def render(template: Path, figures: Path, filters: Mapping[str, Callable], **context) -> str:
    """Return a page that extends base.html, all values in it escaped.

    In the template, `figure(name)` is the address of the figure <name>.png of a folder.
    """
    environment = Environment(
        loader=ChoiceLoader(
            [FileSystemLoader(template.parent), FileSystemLoader(Path(__file__).parent)]
        ),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, **filters}
    return environment.get_template(template.name).render(
        figure=lambda name: encode((figures / f"{name}.png").read_bytes()), **context
    )


def percent(value: float) -> str:
    """Write a share as a percentage with one decimal."""
    return f"{value:.1%}"


def encode(png: bytes) -> str:
    """Return a picture as an address that holds it."""
    return "data:image/png;base64," + base64.b64encode(png).decode()
