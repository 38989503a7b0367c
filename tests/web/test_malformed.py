"""Malformed requests over HTTP, through gateway and function: answered, and never with a 500."""

import http.client
import json

import pytest
from hypothesis import HealthCheck, given, settings
from malformed import CLASSES, REQUESTS

from local_cloud.gateway import gateway
from studio.cloud import ROOT


@pytest.fixture(scope="module")
def connection():
    """An open connection to the API; there is no endpoint behind it, which is a 502."""
    # Faster than any account would let them through.
    parameters = {"PageOrigin": "{page_url}", "ApiOrigin": "{api_url}"}
    parameters |= {"RequestsPerSecond": 1e6, "RequestsAtOnce": 1_000_000}
    environment = {"ENDPOINT_NAME": "none", "CLASS_NAMES": json.dumps(CLASSES)}
    environment |= {"CORRECTIONS_BUCKET": "none", "CORRECTIONS_PREFIX": "corrections"}
    with gateway(
        ROOT / "web" / "template.yaml",
        parameters=parameters,
        environment=environment,
        local=False,
    ) as running:
        connection = http.client.HTTPConnection(running.api_url.removeprefix("http://"), timeout=60)
        yield connection
        connection.close()


@settings(max_examples=500, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(request_=REQUESTS)
def test_malformed_requests_never_get_a_500(connection, request_):
    method, path, content_type, body = request_
    headers = {} if content_type is None else {"Content-Type": content_type}
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    text = answer.read()
    assert answer.status in (400, 404, 413, 415, 502)
    assert b"Traceback" not in text
    if method == "HEAD":
        return
    told = json.loads(text)
    if answer.status == 404:
        assert told == {"message": "Not Found"}
    else:
        assert set(told) - {"retry_after"} == {"error", "request_id"}
        assert answer.headers["x-correlation-id"] == told["request_id"]
