"""The records of a data capture, and the charts that they are drawn on."""

import base64
import io
import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tiny_jobs import put

from studio import explore, monitoring


def photo():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def test_each_change_shows_in_the_measure_that_is_meant_for_it():
    changes = (monitoring.blurred, monitoring.darkened, monitoring.covered)
    pictures = [photo(), *(monitoring.changed(photo(), change) for change in changes)]
    plain, blurred, dark, covered = explore.quality(pictures).to_dict("records")
    assert blurred["sharpness"] < 0.1 * plain["sharpness"]
    assert blurred["brightness"] == pytest.approx(plain["brightness"], rel=0.02)
    assert dark["brightness"] == pytest.approx(monitoring.DARK * plain["brightness"], rel=0.05)
    with Image.open(io.BytesIO(pictures[-1])) as picture:
        pixels = np.asarray(picture.convert("L"))
    # A strap of 14 of the 40 rows, from the 13th to the 27th.
    assert pixels[15:25].std() < 5 < pixels[:10].std()
    assert covered["sharpness"] < plain["sharpness"]


def test_a_photo_is_changed_as_it_is_seen_not_as_the_camera_was_held():
    exif = Image.Exif()
    exif[0x0112] = 6  # Its left side is up.
    buffer = io.BytesIO()
    Image.new("RGB", (60, 40), "red").save(buffer, "JPEG", exif=exif)
    with Image.open(io.BytesIO(monitoring.changed(buffer.getvalue(), monitoring.covered))) as seen:
        assert seen.size == (40, 60)


def record(number, picture, answer, encoding="JSON"):
    text = json.dumps(answer)
    data = text if encoding == "JSON" else base64.b64encode(text.encode()).decode()
    return {
        "captureData": {
            "endpointInput": {"data": base64.b64encode(picture).decode(), "encoding": "BASE64"},
            "endpointOutput": {"data": data, "encoding": encoding},
        },
        "eventMetadata": {"inferenceId": f"{number:03}", "inferenceTime": "2026-11-22T00:00:00Z"},
    }


def test_records_of_several_files_come_in_the_order_of_their_ids(cloud):
    first = [record(2, b"c", {"label": "3"}), record(0, b"a", {"label": "1"})]
    second = [record(1, b"b", {"label": "2"}, encoding="BASE64")]
    for name, records in (("00-01.jsonl", first), ("00-02.jsonl", second)):
        put(cloud, f"captured/only/{name}", "\n".join(map(json.dumps, records)).encode())
    table = monitoring.captured(cloud, cloud.s3_uri("captured"), 3)
    assert list(table["id"]) == ["000", "001", "002"]
    assert list(table["picture"]) == [b"a", b"b", b"c"]
    assert [answer["label"] for answer in table["answer"]] == ["1", "2", "3"]


def test_records_that_do_not_come_are_missed(cloud, monkeypatch):
    monkeypatch.setattr(monitoring, "PATIENCE_LOCAL", 0)
    with pytest.raises(TimeoutError, match="only 0 of 1 requests"):
        monitoring.captured(cloud, cloud.s3_uri("nothing"), 1)


def test_the_limits_are_three_standard_errors_from_the_mean():
    # Standard deviation of 1, 2, 3, 4, 5: the root of 2.5; of a mean over 4, half of that.
    low, high = monitoring.limits([1, 2, 3, 4, 5], window=4)
    assert (low, high) == pytest.approx((3 - 1.5 * 2.5**0.5, 3 + 1.5 * 2.5**0.5))


def test_an_alarm_is_the_first_mean_of_its_own_stretch_outside_the_limits():
    values = {"before": [1, 1, 1, 1], "as ever": [1, 1, 1, 1], "lower": [1, 0, 0, 0]}
    stream = pd.DataFrame(
        [(name, value) for name, rows in values.items() for value in rows],
        columns=["stretch", "confidence"],
    )
    means = monitoring.rolling_means(stream, "confidence", 2)
    assert means.isna().tolist() == [True, False, False, False] * 3
    assert means[8:].tolist()[1:] == [0.5, 0, 0]
    found = monitoring.alarms(stream, "confidence", (0.4, 1.1), window=2)
    assert found == {"as ever": None, "lower": 10}
