"""Answer what a picture shows: the four handlers of a SageMaker endpoint, and a command line.

    python inference.py --model-dir build/model picture.png
    python inference.py --model-dir build/model --dry-run       # asks about a generated picture

A model server calls model_fn once, and for each request input_fn, predict_fn and output_fn. A
request is a JPEG, PNG or WebP picture (image/jpeg, image/png, image/webp, application/x-image)
or application/json {"image": "<base64>"}; the answer is JSON:

    {"label": "Coat", "confidence": 0.93, "scores": {"Bag": 0.01, "Coat": 0.93, ...}}

The label is null where the confidence is under the model's threshold. A refused request is
answered with {"error": "<one sentence>"} and status 400, 406, 413 or 415.
"""

import argparse
import base64
import binascii
import io
import json
import os
import sys
from http import HTTPStatus
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from vision.classifier import Classifier, load_classifier
from vision.cli import ArgumentParser, add_dry_run, run
from vision.errors import ExpectedError, PictureError
from vision.preprocessing import MAX_BYTES, open_picture

JSON = "application/json"
PICTURE_TYPES = ("image/jpeg", "image/png", "image/webp", "application/x-image")


def model_fn(model_dir: str) -> Classifier:
    """Load the model, onto the GPU where there is one."""
    if "OMP_NUM_THREADS" not in os.environ:
        # A server runs several workers, one a core unless told otherwise; together they should
        # use each core once, because workers that fight for cores answer more slowly.
        cores = os.cpu_count() or 1
        workers = int(os.environ.get("SAGEMAKER_MODEL_SERVER_WORKERS") or cores)
        torch.set_num_threads(max(1, cores // workers))
    return load_classifier(model_dir, "cuda" if torch.cuda.is_available() else "cpu")


def input_fn(body: bytes | str, content_type: str | None, context=None) -> bytes | PictureError:
    """Return the bytes of the picture in a request, or why it is refused.

    A refusal is returned, not raised: an exception would reach the caller as a 500 with a trace.
    """
    try:
        kind = (content_type or "").partition(";")[0].strip().lower()
        if kind == JSON:
            data = _picture_in_json(body)
        elif kind in PICTURE_TYPES:
            data = bytes(body)
        else:
            raise PictureError(
                f"the content type must be {JSON} or one of {', '.join(PICTURE_TYPES)}", status=415
            )
        # From the header alone, before a pixel is decoded.
        open_picture(data, MAX_BYTES)
        return data
    except PictureError as refusal:
        return refusal


def _picture_in_json(body: bytes | str) -> bytes:
    # Base64 takes four characters for three bytes; the rest is room for the JSON around it.
    if len(body) > MAX_BYTES * 4 // 3 + 1024:
        raise PictureError(f"the request is larger than {MAX_BYTES / 1e6:.1f} MB", status=413)
    try:
        return base64.b64decode(json.loads(body)["image"], validate=True)
    except (ValueError, KeyError, TypeError, RecursionError, binascii.Error) as error:
        raise PictureError('the JSON must be {"image": "<the picture in base64>"}') from error


def predict_fn(
    data: bytes | PictureError, model: Classifier, context=None
) -> dict[str, Any] | PictureError:
    """Return label, confidence and scores for the picture, or why it is refused."""
    if isinstance(data, PictureError):
        return data
    try:
        images = model.decode(data, MAX_BYTES).unsqueeze(0)
    except PictureError as refusal:
        return refusal
    return model.answer(model.probabilities(images)[0])


def output_fn(
    prediction: dict[str, Any] | PictureError, accept: str | None, context=None
) -> tuple[str, str]:
    """Return the JSON text of the answer and its content type; set the status of a refusal."""
    if not _accepts_json(accept):
        prediction = PictureError(f"the answer is {JSON}: accept that or */*", status=406)
    if isinstance(prediction, PictureError):
        if context is not None:
            phrase = HTTPStatus(prediction.status).phrase
            context.set_response_status(code=prediction.status, phrase=phrase)
        prediction = {"error": str(prediction)}
    return json.dumps(prediction), JSON


def _accepts_json(accept: str | None) -> bool:
    kinds = [kind.partition(";")[0].strip().lower() for kind in (accept or "*/*").split(",")]
    return any(kind in (JSON, "application/*", "*/*") for kind in kinds)


def get_args_parser() -> ArgumentParser:
    parser = ArgumentParser(__doc__)
    parser.add_argument("picture", nargs="?", help="a JPEG, PNG or WebP file")
    parser.add_argument(
        "--model-dir",
        default=os.environ.get("SM_MODEL_DIR", "build/model"),
        help="folder that train_model.py wrote ($SM_MODEL_DIR)",
    )
    add_dry_run(parser, "ask about a generated grey picture")
    return parser


def main(args: argparse.Namespace) -> int:
    if bool(args.picture) == args.dry_run:
        raise ExpectedError("name one picture, or --dry-run without one")
    model = model_fn(args.model_dir)
    body = _grey_picture() if args.dry_run else _read(Path(args.picture))
    prediction = predict_fn(input_fn(body, "application/x-image"), model)
    print(output_fn(prediction, JSON)[0])
    return 1 if isinstance(prediction, PictureError) else 0


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ExpectedError(f"{path} cannot be read: {error.strerror}") from error


def _grey_picture() -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (64, 64), 128).save(buffer, "PNG")
    return buffer.getvalue()


if __name__ == "__main__":
    sys.exit(run(main, get_args_parser().parse()))
