"""Builds the site: the page's files as they are, site.json and a few sample photos."""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

PAGE = Path(__file__).resolve().parent / "page"
SAMPLE_SIDE = 512  # Pixels; a sample is shown small, and made smaller still before it is sent.


def build(
    target: str | Path,
    *,
    api: str,
    model_json: dict[str, Any],
    pictures: Sequence[Path],
    title: str,
) -> Path:
    """Write the folder that is served to browsers, or bring it up to date; return its path.

    Args:
        api: origin of the API, https://… .
        model_json: content of the model's model.json.
        pictures: photos to offer as samples, each in a folder that is named as its class.

    Raises:
        ValueError: model_json does not describe a model, or a picture cannot be read.
    """
    try:
        names = [str(name) for name in model_json["class_names"]]
        settings = {
            "title": title,
            "api": api.rstrip("/"),
            "image_size": int(model_json["image_size"]),
            "classes": names,
            "threshold": model_json.get("threshold") or None,
        }
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"this is not the model.json of a classifier: {error!r}") from error
    target = Path(target)
    # Without what operating systems leave in folders, such as .DS_Store.
    shutil.copytree(PAGE, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".*"))
    settings["samples"] = [
        {"file": _sample(path, target, number), "alt": f"sample photo: {path.parent.name}"}
        for number, path in enumerate(map(Path, pictures), 1)
    ]
    settings["about"] = f"The model knows {_enumerate(names)}, and nothing else."
    # Last and at once: a page that finds it finds all that it names.
    partial = target / f".site.json-{os.getpid()}"
    partial.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    partial.replace(target / "site.json")
    return target


def _sample(path: Path, target: Path, number: int) -> str:
    """Write a small JPEG without the original's metadata; return its path within the site."""
    name = f"samples/{number}.jpg"
    try:
        with Image.open(path) as image:
            image = ImageOps.exif_transpose(image).convert("RGBA")
    except OSError as error:
        raise ValueError(f"{path} is not a readable picture") from error
    image.thumbnail((SAMPLE_SIDE, SAMPLE_SIDE))
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    (target / "samples").mkdir(exist_ok=True)
    image.save(target / name, "JPEG", quality=90)
    return name


def _enumerate(names: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]])) if names else "no class"
