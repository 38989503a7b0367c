"""The README's table of the web app: it says what benchmarks/web.json says."""

import json

import numpy as np
import pytest
from PIL import Image, ImageOps

from benchmarks import web
from benchmarks.results import README


def test_percentiles_are_those_of_the_definition():
    assert web.percentiles(range(1, 101)) == "50 ms | 95 ms"
    assert web.percentiles(range(1, 31)) == "16 ms | 29 ms"
    assert web.percentiles([7]) == "7 ms | 7 ms"


def test_the_table_has_every_part():
    times = {"whole": [400, 500, 600]} | {part: [1, 2, 3] for part in web.WORDS}
    latency = {"photo_bytes": 5_000_000, "sent_bytes": 9000, "milliseconds": times}
    users = {"users": 20, "seconds": 60.0, "think_seconds": 1.0}
    users |= {"milliseconds": [50] * 1200, "errors": []}
    rows = web.table({"latency": {"figures": latency}, "users": {"figures": users}}).splitlines()
    assert len(rows) == 2 + 1 + len(web.WORDS) + 1
    assert (
        "12 megapixels (5.0 MB) chosen on the page to its answer, 3 times | 500 ms | 600 ms"
        in (rows[2])
    )
    assert "who think for 1 s: 1,200 answers, 20.0 a second, 0 errors | 50 ms | 50 ms" in rows[-1]
    assert {row.count("|") for row in rows} == {5}


def test_the_photo_lies_on_its_side_and_is_not_smooth(tmp_path, monkeypatch):
    monkeypatch.setattr(web, "PHOTO", (800, 600))  # Twelve megapixels take seconds.
    rng = np.random.default_rng(0)
    for number in range(12):
        pixels = rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")

    class Dataset:
        def files(self, split):
            return [(path, "class") for path in sorted(tmp_path.glob("*.png"))]

    size = web.phone_photo(Dataset(), tmp_path / "photo.jpg")
    with Image.open(tmp_path / "photo.jpg") as photo:
        assert photo.size == (800, 600)
        assert photo.getexif()[0x0112] == 6
        assert ImageOps.exif_transpose(photo).size == (600, 800)
    assert size > 2_000_000 / 25


@pytest.mark.skipif(not web.RESULTS.exists(), reason="nothing was measured yet")
def test_the_readme_has_the_table_of_the_last_run():
    assert web.table(json.loads(web.RESULTS.read_text())) in README.read_text(encoding="utf-8")
