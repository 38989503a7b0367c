"""Answers what a photo shows, and keeps corrections: the Lambda function behind the web page.

As an HTTP API (payload format 2.0) it has two routes:

    POST /classify      a JPEG, PNG or WebP picture, or {"image": "<base64>"}
    POST /corrections   {"image": "<base64>", "label": "<class>", "predicted": "<class>" or null,
                         "consent": true}

It can also be invoked with {"image": "<base64>"} alone or, from Python, with the bytes of a
picture: `handler(data, None)`. Then the answer is the dictionary that /classify has as its body:

    {"label": "watches", "confidence": 0.93, "scores": {"furniture": 0.01, …}, "request_id": "…"}

Whatever is refused is answered with {"error": "<one sentence>", "request_id": "…"}, and where the
endpoint is at fault with "retry_after", in seconds. No picture is ever logged, and nothing that a
caller sends is ever fetched.

Environment: ENDPOINT_NAME, CLASS_NAMES (a JSON list), CORRECTIONS_BUCKET, CORRECTIONS_PREFIX.
"""

import base64
import io
import json
import os
import time
import traceback
import uuid
from datetime import datetime, timezone
from functools import cache
from typing import Annotated, Any

import boto3
from aws_lambda_powertools import Logger, Metrics
from aws_lambda_powertools.event_handler import APIGatewayHttpResolver, Response
from aws_lambda_powertools.event_handler.exceptions import NotFoundError
from aws_lambda_powertools.logging import correlation_paths
from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.utilities.parser import BaseModel, ValidationError, parse
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, ConnectTimeoutError, ReadTimeoutError

# Without the second name, Pillow would load all its forty formats when it meets a WebP picture.
from PIL import Image, WebPImagePlugin  # noqa: F401
from pydantic import AfterValidator, BeforeValidator, ConfigDict

JSON = "application/json"
PATHS = ("/classify", "/corrections")
PICTURE_TYPES = ("image/jpeg", "image/png", "image/webp")
FORMATS = ("JPEG", "PNG", "WEBP")
SUFFIXES = {"image/jpeg": "jpg", "image/png": "png", "image/webp": "webp"}
MAX_BYTES = 1_000_000  # Of a picture; the page sends a few thousand.
MAX_JSON = 1_400_000  # Base64 takes four characters for three bytes; the rest is room.
MAX_PIXELS = 25_000_000  # What the endpoint accepts, too.
RETRY_SECONDS = 10
# Two attempts, at 12 s each, end before the function is ended, and that before API Gateway ends.
CONFIG = Config(
    connect_timeout=2, read_timeout=10, retries={"mode": "standard", "total_max_attempts": 2}
)
# A correction is two objects: four attempts, at 6 s each.
S3_CONFIG = CONFIG.merge(Config(read_timeout=4))
# Of an endpoint's refusals, those that are about the picture. The others are about us.
CALLERS_FAULTS = (400, 413, 415)

logger = Logger()
metrics = Metrics(namespace="PhotoClassifier")
# With debug=True the environment could have it answer with traces.
app = APIGatewayHttpResolver(debug=False)


class Refusal(Exception):
    """Why a request is not answered, in one sentence, with its HTTP status."""

    def __init__(self, status: int, sentence: str, retry_after: int | None = None):
        super().__init__(sentence)
        self.status = status
        self.retry_after = retry_after


def _from_base64(text: Any) -> bytes:
    if not isinstance(text, str):
        raise ValueError
    return base64.b64decode(text, validate=True)


def _known_class(name: str | None) -> str | None:
    if name is not None and name not in json.loads(os.environ["CLASS_NAMES"]):
        raise ValueError
    return name


def _given(consent: Any) -> bool:
    if consent is not True:  # Not 1, nor "true": a yes that cannot be mistaken.
        raise ValueError
    return consent


class Question(BaseModel):
    """The JSON of /classify."""

    model_config = ConfigDict(hide_input_in_errors=True)
    image: Annotated[bytes, BeforeValidator(_from_base64)]


class Correction(Question):
    """The JSON of /corrections."""

    label: Annotated[str, AfterValidator(_known_class)]
    predicted: Annotated[str | None, AfterValidator(_known_class)] = None
    consent: Annotated[bool, BeforeValidator(_given)]


SENTENCES = {
    "image": '"image" must be the picture in base64',
    "label": '"label" must be one of the classes',
    "predicted": '"predicted" must be one of the classes, or null',
    "consent": 'a correction is stored only with "consent": true',
}


@metrics.log_metrics
def handler(event: Any, context: Any) -> dict[str, Any]:
    """Answer one request of the HTTP API, or one invocation with a picture.

    Args:
        event: an HTTP API event, {"image": "<base64>"}, or the bytes of a picture.
        context: Lambda's; None will do for what is not HTTP.
    """
    match event:
        case {
            "rawPath": str(),
            "requestContext": {"requestId": str(), "stage": str(), "http": {"method": str()}},
        }:
            return _http(event, context)
    request_id = getattr(context, "aws_request_id", None) or str(uuid.uuid4())
    logger.set_correlation_id(request_id)
    try:
        data = bytes(event) if isinstance(event, bytes | bytearray) else _parse(Question, event)
        return classify(data.image if isinstance(data, Question) else data)
    except Exception as error:
        refusal = _refusal(error)
        return {**_body(refusal), "status": refusal.status}


@logger.inject_lambda_context(
    correlation_id_path=correlation_paths.API_GATEWAY_HTTP, log_event=False, clear_state=True
)
def _http(event: dict[str, Any], context: Any) -> dict[str, Any]:
    return app.resolve(event, context)


@app.post("/classify")
def _post_classify() -> Response:
    kind, body = _content_type(), _request_body()
    if kind == JSON:
        return _response(200, classify(_parse(Question, body).image))
    if kind in PICTURE_TYPES:
        return _response(200, classify(body))
    raise Refusal(415, f"the content type must be {JSON} or one of {', '.join(PICTURE_TYPES)}")


@app.post("/corrections")
def _post_corrections() -> Response:
    if _content_type() != JSON:
        raise Refusal(415, f"the content type must be {JSON}")
    return _response(201, correct(_parse(Correction, _request_body())))


@app.exception_handler(Exception)
def _refuse(error: Exception) -> Response:
    refusal = _refusal(error)
    headers = {"Retry-After": str(refusal.retry_after)} if refusal.retry_after else {}
    if refusal.status == 405:
        headers["Allow"] = "POST"
    return _response(refusal.status, _body(refusal), headers)


def classify(picture: bytes) -> dict[str, Any]:
    """Ask the endpoint; return label, confidence, scores and request_id.

    Raises:
        Refusal: it is no picture that can be asked about, or the endpoint does not answer.
    """
    kind = _picture_type(picture)
    started = time.perf_counter()
    answer = _ask_endpoint(picture, kind)
    elapsed = 1000 * (time.perf_counter() - started)
    metrics.add_metric("Answers", MetricUnit.Count, 1)
    metrics.add_metric("NotSure", MetricUnit.Count, int(answer["label"] is None))
    metrics.add_metric("EndpointTime", MetricUnit.Milliseconds, elapsed)
    logger.info(
        "answered",
        size=len(picture),
        label=answer["label"],
        confidence=answer["confidence"],
        endpoint_ms=round(elapsed),
    )
    return {**answer, "request_id": logger.get_correlation_id()}


def correct(correction: Correction) -> dict[str, str]:
    """Store a picture under the class that it belongs to, and a record of it; return its id.

    Raises:
        Refusal: it is no picture, or it could not be stored.
    """
    kind = _picture_type(correction.image, decode=True)
    name = str(uuid.uuid4())
    record = {
        "id": name,
        "label": correction.label,
        "predicted": correction.predicted,
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "request_id": logger.get_correlation_id(),
    }
    # The picture last: what training reads is then complete or not there. The records stand in a
    # folder that it skips, because of the dot: it is no class.
    objects = (
        (f".records/{name}.json", JSON, json.dumps(record).encode()),
        (f"{correction.label}/{name}.{SUFFIXES[kind]}", kind, correction.image),
    )
    try:
        for key, content_type, body in objects:
            _client("s3").put_object(
                Bucket=os.environ["CORRECTIONS_BUCKET"],
                Key=f"{os.environ['CORRECTIONS_PREFIX']}/{key}",
                ContentType=content_type,
                Body=body,
            )
    except (BotoCoreError, ClientError) as error:
        raise _unreachable(error, "the correction could not be stored") from error
    metrics.add_metric("Corrections", MetricUnit.Count, 1)
    logger.info("corrected", **record)
    return {"id": name}


@cache
def _client(service: str) -> Any:
    return boto3.client(service, config=S3_CONFIG if service == "s3" else CONFIG)


def _ask_endpoint(picture: bytes, kind: str) -> dict[str, Any]:
    name = os.environ["ENDPOINT_NAME"]
    try:
        response = _client("sagemaker-runtime").invoke_endpoint(
            EndpointName=name, Body=picture, ContentType=kind, Accept=JSON
        )
        text = response["Body"].read()
    except ClientError as error:
        refusal = _callers_fault(error)
        raise refusal or _unreachable(error, "the classifier does not work") from error
    except BotoCoreError as error:
        raise _unreachable(error, "the classifier does not answer") from error
    try:
        answer = json.loads(text)
        return {key: answer[key] for key in ("label", "confidence", "scores")}
    except (ValueError, KeyError, TypeError) as error:
        raise _unreachable(error, "the classifier gave no prediction") from error


def _callers_fault(error: ClientError) -> Refusal | None:
    """What the endpoint has to say about the picture, if that is why it refuses."""
    status = error.response.get("OriginalStatusCode")
    if status not in CALLERS_FAULTS:
        return None
    try:
        sentence = json.loads(error.response["OriginalMessage"])["error"]
    except (ValueError, KeyError, TypeError):
        sentence = None
    return Refusal(status, sentence if isinstance(sentence, str) else "the picture is refused")


def _unreachable(error: Exception, sentence: str) -> Refusal:
    """A fault behind the API: 504 when it was too slow, else 502; logged with what AWS says."""
    slow = isinstance(error, ReadTimeoutError | ConnectTimeoutError)
    details = getattr(error, "response", None) or {}
    reason = details.get("Error", {})
    logger.error(
        sentence,
        fault=type(error).__name__,
        code=reason.get("Code"),
        # A ModelError's message is what the container said, which may be anything.
        reason=None if "OriginalStatusCode" in details else reason.get("Message"),
        original_status=details.get("OriginalStatusCode"),
        log_stream=details.get("LogStreamArn"),
    )
    if slow:
        return Refusal(504, f"{sentence} in time: try again later", RETRY_SECONDS)
    return Refusal(502, f"{sentence}: try again later", RETRY_SECONDS)


def _picture_type(data: bytes, decode: bool = False) -> str:
    """The content type of a picture by its own bytes; decodes the pixels only if told to."""
    if not data:
        raise Refusal(400, "the request has no picture")
    if len(data) > MAX_BYTES:
        raise Refusal(413, f"the picture is larger than {MAX_BYTES / 1e6:.0f} MB: scale it down")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        pixels = image.width * image.height
    except Image.DecompressionBombError:
        pixels = MAX_PIXELS + 1
    except Exception:  # Whatever a decoder raises, the bytes are at fault.
        raise Refusal(400, "this is not a JPEG, PNG or WebP picture") from None
    if pixels > MAX_PIXELS:
        raise Refusal(413, f"the picture has more than {MAX_PIXELS / 1e6:.0f} million pixels")
    if decode:
        try:
            image.load()
        except Exception:
            raise Refusal(400, "the picture is truncated or damaged") from None
    # A phone's JPEG may hold several pictures; Pillow then calls it MPO.
    return "image/jpeg" if image.format == "MPO" else Image.MIME[image.format]


def _content_type() -> str:
    return (app.current_event.headers.get("content-type") or "").partition(";")[0].strip().lower()


def _request_body() -> bytes:
    """The bytes that the caller sent; API Gateway wraps all but text in base64."""
    body = app.current_event.body or ""
    if len(body) > MAX_JSON * 4 / 3:
        raise Refusal(413, "the request is too large: send a smaller picture")
    if not app.current_event.is_base64_encoded:
        return body.encode("utf-8", "surrogatepass")
    try:
        return _from_base64(body)
    except ValueError:
        raise Refusal(400, "the body is not base64") from None


def _parse(model: type[BaseModel], data: Any) -> Any:
    """Parse JSON, or what was JSON, by a model; a Refusal says which part does not fit."""
    if isinstance(data, bytes) and len(data) > MAX_JSON:
        raise Refusal(413, "the request is too large: send a smaller picture")
    try:
        return parse(data.decode() if isinstance(data, bytes) else data, model)
    except ValidationError as error:
        where = error.errors(include_input=False, include_url=False)[0]["loc"]
    except UnicodeError:
        where = ()
    sentence = SENTENCES.get(where[0]) if where else None
    raise Refusal(400, sentence or "the body must be a JSON object")


def _refusal(error: Exception) -> Refusal:
    """What the caller is told of an exception; what is our own fault is logged and not told."""
    if isinstance(error, NotFoundError):
        known = app.current_event.path in PATHS
        error = Refusal(405, "ask by POST") if known else Refusal(404, "there is nothing here")
    if not isinstance(error, Refusal):
        # Not the exception's own text: it might quote what it was given.
        trace = traceback.format_tb(error.__traceback__)
        logger.error("failed", fault=type(error).__name__, trace=trace)
        error = Refusal(500, "something failed here, and has been logged")
    metrics.add_metric("Refusals" if error.status < 500 else "Faults", MetricUnit.Count, 1)
    logger.info("refused", status=error.status, sentence=str(error))
    return error


def _body(refusal: Refusal) -> dict[str, Any]:
    body = {"error": str(refusal), "request_id": logger.get_correlation_id()}
    return {**body, "retry_after": refusal.retry_after} if refusal.retry_after else body


def _response(status: int, body: dict[str, Any], headers: dict[str, str] | None = None) -> Response:
    headers = {**(headers or {}), "x-correlation-id": logger.get_correlation_id()}
    return Response(status, JSON, json.dumps(body), headers)
