"""What an endpoint's data capture tells: the records in S3, and whether they drift."""

import base64
import io
import json
import time

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps

from studio.jobs import keys_below, poll, split_uri

PATIENCE_LOCAL, PATIENCE_AWS = 30, 900  # Seconds until a captured record must be in S3.
BLUR = 3  # pixels, the standard deviation
DARK = 0.35  # of the brightness
COVERED = 0.35  # of the height


def blurred(picture):
    """A picture as a camera out of focus sees it."""
    return picture.filter(ImageFilter.GaussianBlur(BLUR))


def darkened(picture):
    """A picture as a camera sees it whose lamp is failing."""
    return ImageEnhance.Brightness(picture).enhance(DARK)


def covered(picture):
    """A picture across whose middle hangs a grey strap."""
    strapped = picture.copy()
    top = round(picture.height * (1 - COVERED) / 2)
    bottom = round(picture.height * (1 + COVERED) / 2)
    ImageDraw.Draw(strapped).rectangle((0, top, picture.width, bottom), fill=(110, 110, 110))
    return strapped


def changed(content, change):
    """The bytes of a JPEG in which a picture, given as bytes, is changed by one of the above."""
    with Image.open(io.BytesIO(content)) as opened:
        # As the endpoint sees it: what is saved here no longer says how the camera was held.
        picture = change(ImageOps.exif_transpose(opened).convert("RGB"))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def captured(cloud, uri, count):
    """The records of a data capture, once there are `count`: a DataFrame in the order of their ids.

    Args:
        uri: where the endpoint writes them; AWS takes minutes for it, this machine a second.

    Columns: id (InferenceId), time, picture (the bytes of the request), answer (the JSON answered).

    Raises:
        TimeoutError: there are fewer after a while.
    """
    deadline = time.monotonic() + (PATIENCE_LOCAL if cloud.is_local else PATIENCE_AWS)
    while True:
        rows = [_row(json.loads(line)) for line in _lines(cloud, uri)]
        if len(rows) >= count:
            return pd.DataFrame(rows).sort_values("id", ignore_index=True)
        if time.monotonic() > deadline:
            raise TimeoutError(f"only {len(rows)} of {count} requests were captured in {uri}")
        time.sleep(poll(cloud))


def _lines(cloud, uri):
    bucket, _ = split_uri(uri)
    s3 = cloud.client("s3")
    for key in keys_below(cloud, uri):
        body = s3.get_object(Bucket=bucket, Key=key)["Body"]
        yield from body.read().decode().splitlines()


def _row(record):
    data, metadata = record["captureData"], record["eventMetadata"]
    return {
        "id": metadata.get("inferenceId", ""),
        "time": metadata["inferenceTime"],
        "picture": _content(data["endpointInput"]),
        "answer": json.loads(_content(data["endpointOutput"])),
    }


def _content(side):
    data = side["data"]
    return base64.b64decode(data) if side["encoding"] == "BASE64" else data.encode()


def limits(reference, window):
    """Between which two values the mean over a window stays while nothing changes.

    Mean and three standard errors of the reference: Shewhart's control chart (*Economic Control of
    Quality of Manufactured Product*, 1931).
    """
    values = np.asarray(reference, dtype=float)
    reach = 3 * values.std(ddof=1) / np.sqrt(window)
    return values.mean() - reach, values.mean() + reach


def rolling_means(stream, measure, window):
    """The mean over the last `window` requests of the same stretch; NaN until there are so many.

    Args:
        stream: DataFrame, one row a request; column stretch names what was done to its picture.
    """
    stretches = stream.groupby("stretch", sort=False)[measure]
    return stretches.rolling(window).mean().droplevel(0).sort_index()


def alarms(stream, measure, between, window):
    """Dict of stretch → place of the first mean outside the limits, or None; not of the first one.

    Args:
        between: what `limits` returned for the first stretch.
    """
    means = rolling_means(stream, measure, window)
    outside = (means < between[0]) | (means > between[1])
    later = stream["stretch"].unique()[1:]
    found = {name: np.flatnonzero(outside & (stream["stretch"] == name)) for name in later}
    return {name: int(places[0]) if len(places) else None for name, places in found.items()}
