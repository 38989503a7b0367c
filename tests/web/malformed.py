"""Requests to the web app's API: one as API Gateway records it, and malformed ones by the hundred.

A request is (method, path, content type or None, body in bytes); `http_event` turns it into what
the function is invoked with, and anything else can send it over HTTP as it is.
"""

import base64
import json
import uuid

from hypothesis import strategies as st
from samples import encode, noise

CLASSES = ["furniture", "watches"]
PICTURES = {
    "image/jpeg": encode(noise(), "JPEG"),
    "image/png": encode(noise(), "PNG"),
    "image/webp": encode(noise(), "WEBP"),
}
PATHS = ("/classify", "/corrections")
# API Gateway decides by the content type whether a body is handed on as text or in base64 (AWS
# Compute Blog, R. Potucek, on binary and text media types in HTTP APIs); the function looks
# at isBase64Encoded only.
TEXT_TYPES = ("text/", "application/json", "application/xml", "application/javascript")


def http_event(method, path, content_type, body):
    """The event of an HTTP API, payload format 2.0.

    Source of the fields: API Gateway Developer Guide, "Create AWS Lambda proxy integrations for
    HTTP APIs in API Gateway"; the values are those of a page in Chromium behind CloudFront.
    """
    is_text = (content_type or "").startswith(TEXT_TYPES)
    text = body.decode(errors="surrogateescape") if is_text else base64.b64encode(body).decode()
    headers = {
        "accept": "*/*",
        "accept-encoding": "gzip, deflate, br, zstd",
        "accept-language": "de-DE,de;q=0.9",
        "content-length": str(len(body)),
        "host": "a1b2c3d4e5.execute-api.eu-central-1.amazonaws.com",
        "origin": "https://d111111abcdef8.cloudfront.net",
        "user-agent": "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 Chrome/140.0.0.0",
        "x-amzn-trace-id": "Root=1-68f0a1b2-3c4d5e6f708192a3b4c5d6e7",
        "x-forwarded-for": "203.0.113.7",
        "x-forwarded-port": "443",
        "x-forwarded-proto": "https",
    }
    event = {
        "version": "2.0",
        "routeKey": f"{method} {path}",
        "rawPath": path,
        "rawQueryString": "",
        "headers": headers if content_type is None else {**headers, "content-type": content_type},
        "requestContext": {
            "accountId": "123456789012",
            "apiId": "a1b2c3d4e5",
            "domainName": "a1b2c3d4e5.execute-api.eu-central-1.amazonaws.com",
            "domainPrefix": "a1b2c3d4e5",
            "http": {
                "method": method,
                "path": path,
                "protocol": "HTTP/1.1",
                "sourceIp": "203.0.113.7",
                "userAgent": headers["user-agent"],
            },
            # In the form of API Gateway's own: 15 characters of base64 and "=".
            "requestId": base64.b64encode(uuid.uuid4().bytes[:11]).decode(),
            "routeKey": f"{method} {path}",
            "stage": "$default",
            "time": "16/Oct/2025:08:15:30 +0000",
            "timeEpoch": 1760602530123,
        },
        "body": text,
        "isBase64Encoded": not is_text,
    }
    if not body:
        del event["body"]
    return event


@st.composite
def damaged(draw):
    """A picture with a byte changed, cut off, or something put in."""
    data = draw(st.sampled_from(list(PICTURES.values())))
    place = draw(st.integers(0, len(data)))
    put_in = draw(st.binary(max_size=9))
    return data[:place] + put_in + data[place + draw(st.sampled_from((0, 1, len(data)))) :]


def coded(data):
    return base64.b64encode(data).decode()


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3), max_leaves=5)
IMAGES = st.sampled_from(list(PICTURES.values())).map(coded)
ODD_IMAGES = damaged().map(coded) | st.binary(max_size=40).map(coded) | st.text(max_size=40)
ODD_LABELS = st.sampled_from(["", "../furniture", "records"]) | st.text(max_size=9)
RIGHT = {"image": IMAGES, "label": st.sampled_from(CLASSES), "consent": st.just(True)}
ODD = {"image": ODD_IMAGES, "label": ODD_LABELS, "predicted": ODD_LABELS, "consent": st.none()}
NEARLY = st.one_of(
    # As a rule only one part is odd, so that the others let it come far.
    *[st.fixed_dictionaries({**RIGHT, name: values | VALUES}) for name, values in ODD.items()],
    *[st.fixed_dictionaries({k: v for k, v in RIGHT.items() if k != name}) for name in RIGHT],
)
TEXTS = (NEARLY | VALUES).map(lambda value: json.dumps(value).encode())
CUT = st.tuples(TEXTS, st.integers(0, 60)).map(lambda pair: pair[0][: pair[1]])
DEEP = st.sampled_from((b"[" * 100_000, b'{"image":' * 20_000, b'{"image": "' + b"A" * 2_000_000))
BODIES = damaged() | TEXTS | CUT | st.binary(max_size=200) | DEEP
JSON_TYPES = st.sampled_from(["application/json", "Application/JSON; charset=utf-16"])
TYPES = st.sampled_from(list(PICTURES)) | JSON_TYPES
ODD_TYPES = st.sampled_from(["text/plain", "image/gif", "image/svg+xml", "multipart/form-data", ""])
METHODS = st.sampled_from(["GET", "PUT", "DELETE", "PATCH", "HEAD"])
ODD_PATHS = st.sampled_from(["/", "/classify/", "/classify/..", "//corrections", "/%2e%2e/x", "/*"])
POST, ROUTES = st.just("POST"), st.sampled_from(PATHS)
REQUESTS = st.one_of(
    *[st.tuples(POST, st.just("/classify"), st.sampled_from(list(PICTURES)), damaged())] * 3,
    *[st.tuples(POST, ROUTES, JSON_TYPES, NEARLY.map(lambda v: json.dumps(v).encode()))] * 4,
    *[st.tuples(POST, ROUTES, TYPES, BODIES)] * 3,
    st.tuples(POST, ROUTES, st.none() | ODD_TYPES, BODIES),
    st.tuples(METHODS | POST, ROUTES | ODD_PATHS, TYPES, BODIES),
)
