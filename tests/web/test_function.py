"""The function behind the page, with a real endpoint and a real bucket of a local cloud."""

import base64
import gzip
import json
import logging
import os
import subprocess
import sys
import time
import uuid
import zlib
from datetime import datetime, timezone
from types import SimpleNamespace

import boto3
import pytest
from botocore.config import Config
from botocore.stub import Stubber
from hypothesis import HealthCheck, example, given, settings
from malformed import CLASSES, PICTURES, REQUESTS, http_event
from samples import encode, noise, write_tar

from studio.cloud import ROOT, start_local_cloud
from web import function

BUCKET, PREFIX, ENDPOINT = "web-app-tests", "corrections", "web-app"
JSON = "application/json"
# A model that tells what it was sent, and can be told by the width of a picture to fail.
MODEL = """
import io, json, os, time, zlib
from PIL import Image

def model_fn(model_dir):
    return None

def input_fn(body, content_type):
    return bytes(body), content_type

def predict_fn(data, model):
    body, content_type = data
    image = Image.open(io.BytesIO(body))
    if image.width == 1:
        raise RuntimeError("secret of the container")
    if image.width == 2:
        time.sleep(1)
    if image.width == 3:
        return "no prediction"
    try:
        image.load()
    except OSError:
        return 400, {"error": "the picture is truncated or damaged"}
    label = None if image.width == 4 else "watches"
    scores = {content_type: 1.0, str(zlib.crc32(body)): 0.0}
    return 200, {"label": label, "confidence": 0.5, "scores": scores, "more": "kept back"}

def output_fn(prediction, accept, context):
    if isinstance(prediction, str):
        return prediction, "text/plain"
    status, answer = prediction
    context.set_response_status(status, "")
    return json.dumps(answer), accept
"""


@pytest.fixture(scope="module")
def cloud(tmp_path_factory):
    """A local cloud with a bucket and an endpoint, as the environment of the function."""
    patch = pytest.MonkeyPatch()
    folder = tmp_path_factory.mktemp("cloud")
    patch.setenv("LOCAL_CLOUD_HOME", str(folder / "home"))
    for name, value in start_local_cloud().items():
        patch.setenv(name, value)
    patch.delenv("AWS_PROFILE", raising=False)
    patch.setattr(boto3, "DEFAULT_SESSION", None)  # It would keep another module's credentials.
    patch.setenv("ENDPOINT_NAME", ENDPOINT)
    patch.setenv("CLASS_NAMES", json.dumps(CLASSES))
    patch.setenv("CORRECTIONS_BUCKET", BUCKET)
    patch.setenv("CORRECTIONS_PREFIX", PREFIX)
    function._client.cache_clear()
    cloud = SimpleNamespace(s3=boto3.client("s3"), sagemaker=boto3.client("sagemaker"))
    try:
        write_tar(folder / "model.tar", {"code/inference.py": MODEL.encode()})
        serve(cloud, gzip.compress((folder / "model.tar").read_bytes()))
        yield cloud
    finally:
        command = [sys.executable, "-m", "local_cloud", "reset"]
        subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
        function._client.cache_clear()
        patch.undo()


def serve(cloud, model):
    cloud.s3.create_bucket(Bucket=BUCKET)
    cloud.s3.put_object(Bucket=BUCKET, Key="model.tar.gz", Body=model)
    cloud.sagemaker.create_model(
        ModelName=ENDPOINT,
        ExecutionRoleArn="arn:aws:iam::123456789012:role/tester",
        PrimaryContainer={"Image": "any:1", "ModelDataUrl": f"s3://{BUCKET}/model.tar.gz"},
    )
    variant = {"VariantName": "only", "ModelName": ENDPOINT, "InstanceType": "ml.m5.large"}
    cloud.sagemaker.create_endpoint_config(
        EndpointConfigName=ENDPOINT, ProductionVariants=[{**variant, "InitialInstanceCount": 1}]
    )
    cloud.sagemaker.create_endpoint(EndpointName=ENDPOINT, EndpointConfigName=ENDPOINT)
    waiter = cloud.sagemaker.get_waiter("endpoint_in_service")
    waiter.wait(EndpointName=ENDPOINT, WaiterConfig={"Delay": 1, "MaxAttempts": 60})


@pytest.fixture
def log(monkeypatch):
    """What the function has logged, as text; each line must be JSON."""
    lines = []
    handler = function.logger.registered_handler
    monkeypatch.setattr(handler, "emit", lambda record: lines.append(handler.format(record)))
    yield lines
    assert all(json.loads(line) for line in lines)


def context():
    """What Lambda hands to a handler, as far as it is used."""
    return SimpleNamespace(
        function_name="photo-classifier",
        memory_limit_in_mb=1024,
        invoked_function_arn="arn:aws:lambda:eu-central-1:123456789012:function:photo-classifier",
        aws_request_id=str(uuid.uuid4()),
    )


def ask(method, path, content_type, body):
    """Answer one request as API Gateway has it answered: status, headers, JSON."""
    event = http_event(method, path, content_type, body)
    response = function.handler(event, context())
    headers = {name.lower(): value for name, value in response["headers"].items()}
    answer = json.loads(response["body"])
    assert response["isBase64Encoded"] is False
    assert headers["content-type"] == JSON
    assert headers["x-correlation-id"] == event["requestContext"]["requestId"]
    assert answer.get("request_id", headers["x-correlation-id"]) == headers["x-correlation-id"]
    return response["statusCode"], headers, answer


def post(path, body, content_type=JSON):
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    return ask("POST", path, content_type, body)


def refusal(status, answer):
    """The sentence of a refusal, which must be one and say nothing of our code."""
    assert 400 <= status < 600
    text = answer["error"]
    assert text
    assert "\n" not in text
    assert not any(word in json.dumps(answer) for word in ("Traceback", "Error", ".py", "secret"))
    return text


def coded(data):
    return base64.b64encode(data).decode()


def correction(**fields):
    image = coded(PICTURES["image/jpeg"])
    right = {"image": image, "label": "watches", "predicted": "furniture", "consent": True}
    return {name: value for name, value in {**right, **fields}.items() if value != "left out"}


# ---- answers ----


@pytest.mark.parametrize("kind", PICTURES)
@pytest.mark.parametrize("way", ["bytes", "JSON"])
def test_a_picture_reaches_the_endpoint_untouched_and_its_answer_comes_back(cloud, kind, way):
    data = PICTURES[kind]
    body, content_type = (data, kind) if way == "bytes" else ({"image": coded(data)}, JSON)
    status, _, answer = post("/classify", body, content_type)
    assert status == 200
    del answer["request_id"]
    scores = {kind: 1.0, str(zlib.crc32(data)): 0.0}
    assert answer == {"label": "watches", "confidence": 0.5, "scores": scores}


def test_the_type_is_what_the_bytes_say(cloud):
    status, _, answer = post("/classify", PICTURES["image/png"], "image/jpeg; name=photo.jpg")
    assert status == 200
    assert "image/png" in answer["scores"]


def test_not_sure_is_an_answer(cloud):
    status, _, answer = post("/classify", encode(noise(width=4)), "image/png")
    assert (status, answer["label"]) == (200, None)


@pytest.mark.parametrize("kind", ["bytes", "bytearray", "dict"])
def test_the_function_can_be_invoked_with_a_picture_alone(cloud, kind):
    data = PICTURES["image/jpeg"]
    event = {"bytes": data, "bytearray": bytearray(data), "dict": {"image": coded(data)}}[kind]
    answer = function.handler(event, None if kind == "bytes" else context())
    assert sorted(answer) == ["confidence", "label", "request_id", "scores"]
    assert answer["label"] == "watches"


NO_PICTURE = {
    "nothing": (b"", 400, "the request has no picture"),
    "a text": (b"Dear all,", 400, "this is not a JPEG, PNG or WebP picture"),
    "a number": ({"image": 5}, 400, '"image" must be the picture in base64'),
    "no field": ({}, 400, '"image" must be the picture in base64'),
    "null": (None, 400, "the body must be a JSON object"),
    "half an event": ({"requestContext": {}}, 400, '"image" must be the picture in base64'),
    "too large": (bytes(1_000_001), 413, "the picture is larger than 1 MB: scale it down"),
}


@pytest.mark.parametrize("case", NO_PICTURE)
def test_an_invocation_without_a_picture_is_refused(case):
    event, status, sentence = NO_PICTURE[case]
    answer = function.handler(event, None)
    assert refusal(status, answer) == sentence
    assert sorted(answer) == ["error", "request_id", "status"]
    assert answer["status"] == status


# ---- refusals ----

PNG = PICTURES["image/png"]
HUGE = PNG[:16] + (60_000).to_bytes(4, "big") * 2 + PNG[24:29]
HUGE += zlib.crc32(HUGE[12:29]).to_bytes(4, "big") + PNG[33:]
LARGE = PICTURES["image/jpeg"] + bytes(1_000_000)
NOT_ONE = "this is not a JPEG, PNG or WebP picture"
REFUSED = {
    "no body": ("POST", "/classify", "image/png", b"", 400, "the request has no picture"),
    "a text named .jpg": ("POST", "/classify", "image/jpeg", b"Dear all,", 400, NOT_ONE),
    "a GIF": ("POST", "/classify", "image/png", encode(noise(), "GIF"), 400, NOT_ONE),
    "truncated": (
        *("POST", "/classify", "image/png", PNG[:-60], 400),
        "the picture is truncated or damaged",
    ),
    "too large": (
        *("POST", "/classify", "image/jpeg", LARGE, 413),
        "the picture is larger than 1 MB: scale it down",
    ),
    "far too large": (
        *("POST", "/classify", "image/jpeg", bytes(2_000_000), 413),
        "the request is too large: send a smaller picture",
    ),
    "far too large JSON": (
        *("POST", "/classify", JSON, b'{"image": "' + b"A" * 1_500_000, 413),
        "the request is too large: send a smaller picture",
    ),
    "3,600 million pixels": (
        *("POST", "/classify", "image/png", HUGE, 413),
        "the picture has more than 25 million pixels",
    ),
    "SVG": (
        *("POST", "/classify", "image/svg+xml", b"<svg/>", 415),
        "the content type must be application/json or one of image/jpeg, image/png, image/webp",
    ),
    "no content type": (
        *("POST", "/classify", None, PNG, 415),
        "the content type must be application/json or one of image/jpeg, image/png, image/webp",
    ),
    "a form": (
        *("POST", "/corrections", "application/x-www-form-urlencoded", b"label=watches", 415),
        "the content type must be application/json",
    ),
    "GET": ("GET", "/classify", None, b"", 405, "ask by POST"),
    "elsewhere": ("POST", "/admin", JSON, b"{}", 404, "there is nothing here"),
    "a link": (
        *("POST", "/classify", JSON, b'{"image": "https://example.org/1.jpg"}', 400),
        '"image" must be the picture in base64',
    ),
    "a list": ("POST", "/classify", JSON, b"[]", 400, "the body must be a JSON object"),
    "bad JSON": ("POST", "/classify", JSON, b"{", 400, "the body must be a JSON object"),
    "bad UTF-8": ("POST", "/classify", JSON, b'{"image": "\xff"}', 400, None),
    "deep": ("POST", "/classify", JSON, b"[" * 100_000, 400, "the body must be a JSON object"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_caller_did_wrong_is_told_in_one_sentence(cloud, case):
    *request, expected, sentence = REFUSED[case]
    status, headers, answer = ask(*request)
    assert status == expected
    assert refusal(status, answer) == (sentence or answer["error"])
    assert sorted(answer) == ["error", "request_id"]
    assert headers.get("allow") == ("POST" if status == 405 else None)


def test_a_body_that_is_not_the_base64_it_should_be_is_refused():
    event = {**http_event("POST", "/classify", "image/png", PNG), "body": "?", "headers": {}}
    event["headers"]["content-type"] = "image/png"
    response = function.handler(event, context())
    assert (response["statusCode"], "base64" in response["body"]) == (400, True)


# ---- faults behind the API ----


def fault(width):
    """Ask about a picture of this width; returns status and sentence of the fault."""
    status, headers, answer = post("/classify", encode(noise(width=width)), "image/png")
    assert sorted(answer) == ["error", "request_id", "retry_after"]
    assert headers["retry-after"] == str(answer["retry_after"])
    return status, refusal(status, answer)


def test_a_model_that_fails_is_a_502_that_keeps_its_trace(cloud, log):
    assert fault(width=1) == (502, "the classifier does not work: try again later")
    assert json.loads(log[0])["original_status"] == 500
    assert "secret" not in "".join(log)


def test_an_answer_that_is_no_prediction_is_a_502(cloud):
    assert fault(width=3) == (502, "the classifier gave no prediction: try again later")


def test_a_slow_endpoint_is_a_504_after_two_attempts(cloud, monkeypatch):
    client = boto3.client(
        "sagemaker-runtime", config=function.CONFIG.merge(Config(read_timeout=0.5))
    )
    monkeypatch.setattr(function, "_client", lambda service: client)
    started = time.monotonic()
    assert fault(width=2) == (504, "the classifier does not answer in time: try again later")
    assert 1 < time.monotonic() - started < 5


def test_an_absent_endpoint_is_a_502(cloud, monkeypatch, log):
    monkeypatch.setenv("ENDPOINT_NAME", "gone")
    assert fault(width=9) == (502, "the classifier does not work: try again later")
    assert json.loads(log[0])["code"] == "ValidationError"


def test_a_cloud_that_cannot_be_reached_is_a_502(cloud, monkeypatch):
    client = boto3.client(
        "sagemaker-runtime", endpoint_url="http://127.0.0.1:9", config=function.CONFIG
    )
    monkeypatch.setattr(function, "_client", lambda service: client)
    assert fault(width=9) == (502, "the classifier does not answer: try again later")


@pytest.mark.parametrize(
    "code",
    [
        "ThrottlingException",
        "ModelNotReadyException",
        "ServiceUnavailable",
        "AccessDeniedException",
    ],
)
def test_a_refusal_of_the_service_is_a_502(cloud, monkeypatch, code, log):
    client = boto3.client("sagemaker-runtime")
    monkeypatch.setattr(function, "_client", lambda service: client)
    with Stubber(client) as stub:
        stub.add_client_error("invoke_endpoint", code, "not now")
        assert fault(width=9)[0] == 502
    assert json.loads(log[0])["code"] == code


def test_a_fault_of_our_own_is_logged_where_it_happened_and_told_in_one_sentence(
    cloud, monkeypatch, log
):
    monkeypatch.delenv("ENDPOINT_NAME")
    status, _, answer = post("/classify", PNG, "image/png")
    assert (status, refusal(status, answer)) == (500, "something failed here, and has been logged")
    entry = json.loads(log[0])
    assert entry["fault"] == "KeyError"
    assert "function.py" in "".join(entry["trace"])
    assert entry["correlation_id"] == answer["request_id"]


# ---- corrections ----


def stored(cloud):
    pages = cloud.s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=PREFIX)
    return {
        entry["Key"]: cloud.s3.get_object(Bucket=BUCKET, Key=entry["Key"])
        for page in pages
        for entry in page.get("Contents", [])
    }


@pytest.mark.parametrize(
    ("kind", "suffix"), [("image/jpeg", "jpg"), ("image/png", "png"), ("image/webp", "webp")]
)
def test_a_correction_is_stored_with_its_record(cloud, kind, suffix):
    predicted = None if kind == "image/png" else "furniture"
    before = set(stored(cloud))
    request = correction(image=coded(PICTURES[kind]), predicted=predicted)
    status, headers, answer = post("/corrections", request)
    assert (status, list(answer)) == (201, ["id"])
    picture, record = f"watches/{answer['id']}.{suffix}", f".records/{answer['id']}.json"
    after = stored(cloud)
    assert set(after) - before == {f"{PREFIX}/{picture}", f"{PREFIX}/{record}"}
    picture, record = after[f"{PREFIX}/{picture}"], after[f"{PREFIX}/{record}"]
    assert picture["Body"].read() == PICTURES[kind]
    assert picture["ContentType"] == kind
    content = json.loads(record["Body"].read())
    age = datetime.now(timezone.utc) - datetime.fromisoformat(content.pop("time"))
    assert abs(age.total_seconds()) < 60
    assert content == {
        "id": answer["id"],
        "label": "watches",
        "predicted": predicted,
        "request_id": headers["x-correlation-id"],
    }


CONSENT = 'a correction is stored only with "consent": true'
LABEL = '"label" must be one of the classes'
PREDICTED = '"predicted" must be one of the classes, or null'


IMAGE = '"image" must be the picture in base64'
NO_CORRECTION = {
    "consent false": ({"consent": False}, CONSENT),
    "consent a text": ({"consent": "true"}, CONSENT),
    "consent 1": ({"consent": 1}, CONSENT),
    "consent null": ({"consent": None}, CONSENT),
    "no consent": ({"consent": "left out"}, CONSENT),
    "unknown label": ({"label": "chairs"}, LABEL),
    "label a path": ({"label": "../watches"}, LABEL),
    "label null": ({"label": None}, LABEL),
    "label a list": ({"label": ["watches"]}, LABEL),
    "no label": ({"label": "left out"}, LABEL),
    "unknown prediction": ({"predicted": "chairs"}, PREDICTED),
    "prediction a number": ({"predicted": 7}, PREDICTED),
    "no image": ({"image": "left out"}, IMAGE),
    "no base64": ({"image": "ab*="}, IMAGE),
    "a text": ({"image": coded(b"Dear all,")}, NOT_ONE),
    "truncated": ({"image": coded(PNG[:-60])}, "the picture is truncated or damaged"),
}


@pytest.mark.parametrize("case", NO_CORRECTION)
def test_a_correction_that_is_not_one_is_refused_and_not_stored(cloud, case):
    fields, sentence = NO_CORRECTION[case]
    before = set(stored(cloud))
    status, _, answer = post("/corrections", correction(**fields))
    assert (status, refusal(status, answer)) == (400, sentence)
    assert set(stored(cloud)) == before


def test_a_correction_that_cannot_be_stored_is_a_502(cloud, monkeypatch, log):
    monkeypatch.setenv("CORRECTIONS_BUCKET", "no-such-bucket-here")
    status, headers, answer = post("/corrections", correction())
    assert status == 502
    assert refusal(status, answer) == "the correction could not be stored: try again later"
    assert headers["retry-after"] == str(answer["retry_after"])
    assert json.loads(log[0])["code"] == "NoSuchBucket"


# ---- logs and metrics ----


def test_no_log_line_has_a_picture_and_all_have_the_correlation_id(cloud, log, monkeypatch, capsys):
    function.logger.setLevel(logging.DEBUG)
    data = PICTURES["image/jpeg"]
    requests = [
        ("/classify", data, "image/jpeg"),
        ("/classify", {"image": coded(data)}, JSON),
        ("/classify", {"image": coded(data) + "*"}, JSON),
        ("/classify", coded(data).encode(), "image/jpeg"),
        ("/corrections", correction(), JSON),
        ("/corrections", correction(label=coded(data)), JSON),
    ]
    try:
        ids = {post(*request)[1]["x-correlation-id"] for request in requests}
    finally:
        function.logger.setLevel(os.environ.get("LOG_LEVEL", "INFO"))
    text = "".join(log) + capsys.readouterr().out
    assert {json.loads(line)["correlation_id"] for line in log} == ids
    for part in (data[-300:-200], data[100:200]):
        assert coded(part[:99]) not in text
        assert repr(part)[2:-1] not in text
    assert coded(data)[:40] not in text


def test_metrics_count_answers_refusals_and_faults(cloud, capsys):
    post("/classify", PNG, "image/png")
    post("/classify", b"?", "image/png")
    fault(width=3)
    counted = [
        {entry["Name"] for entry in json.loads(line)["_aws"]["CloudWatchMetrics"][0]["Metrics"]}
        for line in capsys.readouterr().out.splitlines()
        if '"_aws"' in line
    ]
    assert counted == [{"Answers", "NotSure", "EndpointTime"}, {"Refusals"}, {"Faults"}]


# ---- anything ----


@settings(
    max_examples=500,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
@example(request=("POST", "/classify", JSON, b'{"image": "\\ud800"}'))
@given(request=REQUESTS)
def test_malformed_requests_never_get_a_500(cloud, request):
    status, _, answer = ask(*request)
    assert status in (200, 201, 400, 404, 405, 413, 415)
    if status > 201:
        refusal(status, answer)
