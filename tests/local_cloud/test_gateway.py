"""The gateway, asked over HTTP: events, answers, faults of the function, refusals, and its end."""

import base64
import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
from harness import PROJECT, is_alive, until
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from samples import heed_ctrl_c

from local_cloud.errors import CloudError
from local_cloud.gateway import gateway
from local_cloud.http_api import Routes, TokenBucket, read_result

TEMPLATE = """
Parameters:
  PageOrigin: {Type: String}
  Seconds: {Type: Number, Default: 20}
Globals:
  Function:
    Runtime: python3.12
    Environment: {Variables: {COLOUR: green, SHAPE: round}}
Resources:
  Api:
    Type: AWS::Serverless::HttpApi
    Properties:
      CorsConfiguration:
        AllowOrigins: [!Ref PageOrigin]
        AllowMethods: [POST, PUT]
        AllowHeaders: [content-type]
        ExposeHeaders: [x-colour]
        MaxAge: 300
      RouteSettings: {"GET /rare": {ThrottlingRateLimit: 0.001, ThrottlingBurstLimit: 3}}
  Answer:
    Type: AWS::Serverless::Function
    Properties:
      CodeUri: code
      Handler: main.handler
      Timeout: !Ref Seconds
      MemorySize: 256
      Environment: {Variables: {SHAPE: !Sub "${AWS::Region} is not ${PageOrigin}"}}
      Events:
        Do: {Type: HttpApi, Properties: {ApiId: !Ref Api, Path: "/do/{what}", Method: any}}
        Rare: {Type: HttpApi, Properties: {ApiId: !Ref Api, Path: /rare, Method: get}}
  Headers:
    Type: AWS::CloudFront::ResponseHeadersPolicy
    Properties:
      ResponseHeadersPolicyConfig:
        SecurityHeadersConfig:
          ContentSecurityPolicy: {ContentSecurityPolicy: !Sub "connect-src ${PageOrigin}"}
          ContentTypeOptions: {Override: true}
        CustomHeadersConfig: {Items: [{Header: X-Colour, Value: blue, Override: true}]}
  Page:
    Type: AWS::CloudFront::Distribution
    Properties:
      DistributionConfig: {DefaultCacheBehavior: {ResponseHeadersPolicyId: !Ref Headers}}
"""
HANDLER = """
import base64, json, os, subprocess, sys, time
from pathlib import Path

def handler(event, context):
    what = event.get("pathParameters", {}).get("what", "event")
    print("asked to", what)
    return globals().get(what, echo)(event, context)

def event(event, context):
    return event

def echo(event, context):
    headers = {"content-type": event["headers"].get("content-type", "a/b"), "X-Shape": "é"}
    return {"statusCode": "201", "headers": headers, "body": event.get("body"),
            "isBase64Encoded": event["isBase64Encoded"], "cookies": ["a=1", "b=2"]}

def environment(event, context):
    return dict(os.environ)

def context(event, context):
    kept = {k: v for k, v in vars(context).items() if isinstance(v, str)}
    return kept | {"left": context.get_remaining_time_in_millis()}

def meet(event, context):
    place = Path(os.environ["PLACE"], "meeting")
    place.mkdir(exist_ok=True)
    (place / str(os.getpid())).touch()
    while len(list(place.iterdir())) < 3:
        time.sleep(0.01)
    return os.getpid()

def pid(event, context):
    return os.getpid()

def own_cors(event, context):
    headers = {"access-control-allow-origin": "*", "access-control-allow-methods": "PATCH"}
    return {"statusCode": 200, "headers": headers}

def split(event, context):
    return {"statusCode": 200, "headers": {"x": "1\\r\\nset-cookie: a=b"}}

def no_json(event, context):
    return {1, 2}

def fail(event, context):
    raise ValueError("a secret of the function")

def crash(event, context):
    os._exit(3)

def end(event, context):
    sys.exit("enough")

def hang(event, context):
    child = subprocess.Popen(["sleep", "600"])
    Path(os.environ["PLACE"], "hangs").write_text(f"{os.getpid()} {child.pid}")
    while True:
        pass
"""
FAILED = (500, {"message": "Internal Server Error"})


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with a template, the function's code and a site."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "template.yaml").write_text(TEMPLATE)
    (folder / "code").mkdir()
    (folder / "code" / "main.py").write_text(HANDLER)
    (folder / "place").mkdir()
    (folder / "secret.txt").write_text("secret")
    site = folder / "site"
    (site / "sub").mkdir(parents=True)
    (site / "index.html").write_text("<p>hello")
    (site / "sub" / "app.js").write_text("1")
    (site / "link.txt").symlink_to(folder / "secret.txt")
    (site / "folder").symlink_to(folder)
    return folder


@pytest.fixture(scope="module")
def start(project, tmp_path_factory):
    """Starts gateways that are closed at the end."""
    patch = pytest.MonkeyPatch()
    patch.setenv("LOCAL_CLOUD_HOME", str(tmp_path_factory.mktemp("none") / "home"))
    patch.setenv("SECRET_OF_MINE", "1")
    started = []

    def start(**values):
        started.append(
            gateway(
                project / "template.yaml",
                parameters={"PageOrigin": "{page_url}", **values},
                environment={"PLACE": project / "place"},
                site=project / "site",
            )
        )
        return started[-1]

    yield start
    for each in started:
        each.close()
    patch.undo()


@pytest.fixture(scope="module")
def running(start):
    return start()


def request(url, method="POST", path="/do/event", body=None, **headers):
    """(status, headers, body) of one request over a connection of its own."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, body, names)
    answer = connection.getresponse()
    result = answer.status, answer.headers, answer.read()
    connection.close()
    return result


def ask(running, path, method="POST", **headers):
    """Status and JSON of one request to the API."""
    status, _, body = request(running.api_url, method, path, **headers)
    return status, json.loads(body)


def raw(url, data):
    """Everything that is answered to bytes sent as they are."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(1 << 16), b""))


# --- Events and answers -------------------------------------------------------------------------


def test_the_event_is_that_of_payload_format_2(running):
    host = running.api_url.removeprefix("http://")
    sent = (
        f"PUT /do/event?b=2&a=%C3%A9&b=x&c HTTP/1.1\r\nHost: {host}\r\nX-Thing: 1\r\n"
        "x-thing: 2\r\nCookie: k=v; l=w\r\nUser-Agent: me\r\nContent-Type: text/csv\r\n"
        "Content-Length: 3\r\nConnection: close\r\n\r\n1,2"
    )
    before = time.time()
    head, _, body = raw(running.api_url, sent.encode()).partition(b"\r\n\r\n")
    event = json.loads(body)
    context = event["requestContext"]
    assert before - 1 < context.pop("timeEpoch") / 1000 < time.time() + 1
    assert re.fullmatch(r"\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d \+0000", context.pop("time"))
    assert f"apigw-requestid: {context.pop('requestId')}" in head.decode()
    assert event == {
        "version": "2.0",
        "routeKey": "ANY /do/{what}",
        "rawPath": "/do/event",
        "rawQueryString": "b=2&a=%C3%A9&b=x&c",
        "cookies": ["k=v", "l=w"],
        "headers": {
            "host": host,
            "x-thing": "1,2",
            "user-agent": "me",
            "content-type": "text/csv",
            "content-length": "3",
            "x-forwarded-for": "127.0.0.1",
            "x-forwarded-port": host.partition(":")[2],
            "x-forwarded-proto": "http",
        },
        "queryStringParameters": {"b": "2,x", "a": "é", "c": ""},
        "pathParameters": {"what": "event"},
        "requestContext": {
            "accountId": "123456789012",
            "apiId": "local",
            "domainName": host,
            "domainPrefix": "127",
            "http": {
                "method": "PUT",
                "path": "/do/event",
                "protocol": "HTTP/1.1",
                "sourceIp": "127.0.0.1",
                "userAgent": "me",
            },
            "routeKey": "ANY /do/{what}",
            "stage": "$default",
        },
        "body": "1,2",
        "isBase64Encoded": False,
    }


@pytest.mark.parametrize(
    ("content_type", "is_text"),
    [
        ("application/json; charset=utf-8", True),
        ("text/html", True),
        ("application/xml", True),
        ("image/png", False),
        ("application/x-www-form-urlencoded", False),
        ("application/problem+json", False),
    ],
)
def test_text_comes_as_text_and_all_else_in_base64(running, content_type, is_text):
    headers = {"body": b'{"a": 1}', "Content_Type": content_type}
    _, event = ask(running, "/do/event", **headers)
    assert event["isBase64Encoded"] is not is_text
    body = event["body"] if is_text else base64.b64decode(event["body"]).decode()
    assert body == '{"a": 1}'


def test_bytes_come_back_as_they_were_sent(running):
    data = bytes(range(256)) * 400
    status, headers, body = request(
        running.api_url, path="/do/echo", body=data, Content_Type="image/jpeg"
    )
    assert (status, body, headers["content-type"]) == (201, data, "image/jpeg")
    assert headers.get_all("set-cookie") == ["a=1", "b=2"]
    assert headers["x-shape"] == "é"


@pytest.mark.parametrize(
    ("result", "status", "kind", "body"),
    [
        ('"Hello from Lambda!"', 200, "application/json", "Hello from Lambda!"),
        ('{"message": "hi"}', 200, "application/json", '{"message": "hi"}'),
        ("null", 200, "application/json", "null"),
        ('{"statusCode": 404}', 404, "text/plain;charset=UTF-8", ""),
        ('{"statusCode": 200, "body": {"a": 1}}', 200, "text/plain;charset=UTF-8", '{"a": 1}'),
        ('{"statusCode": 200, "body": "YQ==", "isBase64Encoded": true, "headers": {"Content-Type":'
         ' "image/gif", "Connection": "close"}}', 200, "image/gif", "a"),
        ('{"statusCode": "no"}', 500, "application/json", '{"message": "Internal Server Error"}'),
        ('{"statusCode": 200, "body": "é", "isBase64Encoded": true}', 500, "application/json",
         '{"message": "Internal Server Error"}'),
        ('{"statusCode": 200, "headers": [1]}', 500, "application/json",
         '{"message": "Internal Server Error"}'),
    ],
    ids=range(9),
)  # fmt: skip
def test_results_are_read_as_the_developer_guide_says(result, status, kind, body):
    answer = read_result(result)
    assert (answer.status, answer.headers, answer.body.decode()) == (
        status,
        [("content-type", kind)],
        body,
    )


def test_routes_are_chosen_by_how_specific_they_are():
    routes = Routes(["$default", "ANY /{all+}", "GET /a/{x}", "ANY /a/b", "GET /a/b"])
    assert routes.find("GET", "/a/b") == ("GET /a/b", {})
    assert routes.find("PUT", "/a/b") == ("ANY /a/b", {})
    assert routes.find("GET", "/a/c%20d") == ("GET /a/{x}", {"x": "c d"})
    assert routes.find("PUT", "/a/c/d") == ("ANY /{all+}", {"all": "a/c/d"})
    assert routes.find("GET", "/") == ("$default", {})
    assert Routes(["GET /a.b"]).find("GET", "/aXb") == (None, {})


def test_an_unknown_route_is_not_found(running):
    assert ask(running, "/do/event/") == (404, {"message": "Not Found"})
    assert ask(running, "/rare") == (404, {"message": "Not Found"})


def test_the_function_sees_what_it_declares_and_nothing_of_this_machine(running):
    _, seen = ask(running, "/do/environment")
    assert (seen["COLOUR"], seen["SHAPE"]) == ("green", f"us-east-1 is not {running.page_url}")
    assert "SECRET_OF_MINE" not in seen
    assert "AWS_SECRET_ACCESS_KEY" not in seen
    assert "HOME" not in seen
    assert (seen["AWS_CONFIG_FILE"], seen["AWS_SHARED_CREDENTIALS_FILE"]) == ("/dev/null",) * 2


def test_the_context_is_lambdas(running):
    _, seen = ask(running, "/do/context")
    assert seen["function_name"] == "Answer"
    assert seen["invoked_function_arn"] == "arn:aws:lambda:us-east-1:123456789012:function:Answer"
    assert seen["memory_limit_in_mb"] == "256"
    assert 19_000 < seen["left"] <= 20_000


# --- The rules of the API -----------------------------------------------------------------------


def test_a_preflight_request_is_answered_without_the_function(running):
    asks = {"Access_Control_Request_Method": "POST"}
    status, headers, body = request(
        running.api_url, "OPTIONS", "/any", Origin=running.page_url, **asks
    )
    assert (status, body) == (204, b"")
    found = {k.lower(): v for k, v in headers.items() if k.lower().startswith("access-control-")}
    assert found == {
        "access-control-allow-origin": running.page_url,
        "access-control-allow-methods": "POST,PUT",
        "access-control-allow-headers": "content-type",
        "access-control-expose-headers": "x-colour",
        "access-control-max-age": "300",
    }
    for origin in ("http://evil.example", "null", running.api_url):
        status, headers, _ = request(running.api_url, "OPTIONS", "/any", Origin=origin, **asks)
        assert status == 204
        assert "access-control-allow-origin" not in headers


@pytest.mark.parametrize("path", ["/do/own_cors", "/do/fail", "/nowhere"])
def test_answers_carry_the_apis_cors_headers_and_not_the_functions(running, path):
    _, headers, _ = request(running.api_url, path=path, Origin=running.page_url)
    assert headers["access-control-allow-origin"] == running.page_url
    assert "access-control-allow-methods" not in headers
    _, headers, _ = request(running.api_url, path=path, Origin="http://evil.example")
    assert "access-control-allow-origin" not in headers


def test_what_is_over_the_limit_is_throttled(running):
    answers = [ask(running, "/rare", "GET") for _ in range(5)]
    assert [status for status, _ in answers] == [200, 200, 200, 429, 429]
    assert answers[-1][1] == {"message": "Too Many Requests"}


def test_a_bucket_fills_again(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    bucket = TokenBucket(rate=2, burst=3)
    assert [bucket.take() for _ in range(4)] == [True, True, True, False]
    now[0] += 0.5
    assert [bucket.take() for _ in range(2)] == [True, False]
    now[0] += 3600
    assert [bucket.take() for _ in range(4)] == [True, True, True, False]


def test_a_body_over_10_mb_is_refused_before_it_is_read(running):
    host = running.api_url.removeprefix("http://")
    head = f"POST /do/event HTTP/1.1\r\nHost: {host}\r\nContent-Length: {(10 << 20) + 1}\r\n\r\n"
    answer = raw(running.api_url, head.encode())
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert answer.endswith(b'{"message": "Request Too Long"}')


def test_an_event_over_6_mb_is_refused_as_lambda_does(running):
    status, _, body = request(running.api_url, body=bytes(5_000_000), Content_Type="image/png")
    assert (status, json.loads(body)) == (413, {"message": "Request Too Long"})


# --- Faults of the function ---------------------------------------------------------------------


@pytest.mark.parametrize("what", ["fail", "crash", "end", "no_json", "split"])
def test_a_fault_of_the_function_is_told_without_details(running, what):
    assert ask(running, f"/do/{what}") == FAILED
    assert ask(running, "/do/pid")[0] == 200


def has_threads(pid):
    """Whether threads of a process that has ended still hold its connections, for a moment."""
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid).num_threads() > 1
    return False


def test_a_worker_is_kept_and_replaced_when_it_is_killed(running):
    pid = ask(running, "/do/pid")[1]
    assert ask(running, "/do/pid")[1] == pid
    os.kill(pid, signal.SIGKILL)
    until(lambda: not is_alive(pid) and not has_threads(pid))
    status, other = ask(running, "/do/pid")
    assert status == 200
    assert other != pid


def test_three_requests_run_in_three_workers_at_once(running):
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda _: ask(running, "/do/meet"), range(3)))
    assert [status for status, _ in answers] == [200, 200, 200]
    assert len({pid for _, pid in answers}) == 3


def test_a_function_that_hangs_is_killed_with_its_children_at_its_timeout(start, project):
    slow = start(Seconds=1)
    begun = time.monotonic()
    assert ask(slow, "/do/hang") == FAILED
    assert time.monotonic() - begun < 10
    pids = [int(pid) for pid in (project / "place" / "hangs").read_text().split()]
    until(lambda: not any(map(is_alive, pids)))
    assert ask(slow, "/do/pid")[0] == 200


def test_what_takes_longer_than_the_api_waits_is_unavailable(start, monkeypatch):
    slow = start()
    assert ask(slow, "/do/pid")[0] == 200
    monkeypatch.setattr("local_cloud.gateway.INTEGRATION_SECONDS", 0.5)
    assert ask(slow, "/do/hang") == (503, {"message": "Service Unavailable"})


def test_after_its_end_an_open_connection_gets_no_answer(project):
    parameters = {"PageOrigin": "{page_url}"}
    with gateway(
        project / "template.yaml",
        parameters=parameters,
        environment={"PLACE": project / "place"},
        site=project / "site",
    ) as ending:
        connection = http.client.HTTPConnection(ending.page_url.removeprefix("http://"), timeout=60)
        connection.request("GET", "/")
        answer = connection.getresponse()
        assert (answer.status, bool(answer.read())) == (200, True)
    connection.request("GET", "/")
    answer = connection.getresponse()
    assert (answer.status, answer.read()) == (503, b"")
    assert answer.headers["connection"] == "close"


def test_a_handler_that_cannot_be_imported_fails_every_request(project, start, tmp_path):
    (tmp_path / "main.py").write_text("import nothing_of_that_name")
    with gateway(
        project / "template.yaml", parameters={"PageOrigin": "x"}, code=tmp_path
    ) as broken:
        assert [ask(broken, "/do/pid") for _ in range(2)] == [FAILED, FAILED]


def test_what_the_handler_prints_goes_to_cloudwatch_logs(cloud, project, monkeypatch):
    monkeypatch.setenv("LOCAL_CLOUD_HOME", str(cloud.home))
    parameters = {"PageOrigin": "x", "Seconds": 1}
    environment = {"PLACE": project / "place"}
    with gateway(
        project / "template.yaml", parameters=parameters, environment=environment
    ) as logged:
        _, seen = ask(logged, "/do/environment")
        assert seen["AWS_ENDPOINT_URL"] == cloud.url
        assert seen["AWS_SECRET_ACCESS_KEY"] == cloud.env["AWS_SECRET_ACCESS_KEY"]
        ask(logged, "/do/fail")
        ask(logged, "/do/hang")
        stream = seen["AWS_LAMBDA_LOG_STREAM_NAME"]
        assert seen["AWS_LAMBDA_LOG_GROUP_NAME"] == "/aws/lambda/Answer"
        until(
            lambda: any("timed out" in line for line in cloud.lines("/aws/lambda/Answer", stream))
        )
    text = "\n".join(cloud.lines("/aws/lambda/Answer", stream))
    pattern = r"START .*asked to environment\nEND .*REPORT RequestId: \S+\tDuration: [0-9.]+ ms\t"
    assert re.search(pattern, text, re.DOTALL)
    assert "ValueError: a secret of the function" in text
    assert text.endswith("Task timed out after 1.00 seconds")


# --- Who may ask, and for what ------------------------------------------------------------------


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1", "localhost:1", "", "[::1]:{port}"])
def test_requests_under_another_name_are_refused(running, host):
    for url in (running.page_url, running.api_url):
        line = host.format(port=url.rpartition(":")[2])
        answer = raw(url, f"GET / HTTP/1.1\r\nHost: {line}\r\n\r\n".encode())
        assert answer.startswith(b"HTTP/1.1 403 ")
    port = running.page_url.rpartition(":")[2]
    status, headers, _ = request(running.page_url, "GET", "/a?b=c", Host=f"localhost:{port}")
    assert (status, headers["location"]) == (307, f"{running.page_url}/a?b=c")
    port = running.api_url.rpartition(":")[2]
    assert request(running.api_url, path="/do/pid", Host=f"localhost:{port}")[0] == 200


def test_it_listens_on_this_machine_alone(running):
    ports = [int(url.rpartition(":")[2]) for url in (running.page_url, running.api_url)]
    connections = psutil.Process().net_connections("inet")
    listening = [c.laddr for c in connections if c.status == "LISTEN" and c.laddr.port in ports]
    assert {address.ip for address in listening} == {"127.0.0.1"}


def test_the_page_is_served_with_the_headers_of_its_distribution(running, project):
    status, headers, body = request(running.page_url, "GET", "/")
    assert (status, body) == (200, b"<p>hello")
    assert headers["content-type"].startswith("text/html")
    assert headers["content-security-policy"] == f"connect-src {running.page_url}"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-colour"] == "blue"
    assert len(headers.get_all("date")) == 1
    (project / "site" / "late.json").write_text("{}")
    assert request(running.page_url, "GET", "/late.json")[2] == b"{}"
    tag = headers["etag"]
    assert request(running.page_url, "GET", "/", If_None_Match=tag)[0] == 304
    assert request(running.page_url, "HEAD", "/sub/app.js")[::2] == (200, b"")
    assert request(running.page_url, "POST", "/", b"x")[0] == 413
    assert request(running.page_url, "POST", "/")[0] == 405


@pytest.mark.parametrize(
    "path",
    [
        *("/../secret.txt", "/%2e%2e/secret.txt", "/..%2fsecret.txt", "/sub/../../secret.txt"),
        *("/link.txt", "/folder/secret.txt", "/sub", "/sub/", "//etc/passwd", "/%2fetc/passwd"),
        *("/nothing", "/%00", "/" + 300 * "a", "/index.html/x", "/..%5csecret.txt", "/%ff"),
    ],
)
def test_nothing_outside_of_the_site_is_served_and_no_folder_listed(running, path):
    status, headers, body = request(running.page_url, "GET", path)
    assert (status, body) == (404, b"Not Found\n")
    assert headers["x-content-type-options"] == "nosniff"


UNCLEAR = [
    b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
    b"Content-Length: +3\r\n\r\nabc",
    b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    b"Transfer-Encoding: gzip, chunked\r\n\r\n",
    b"Transfer-Encoding: chunked\r\n\r\nno length\r\n",
    b"Content-Length: 10\r\n\r\nabc",
]


@pytest.mark.parametrize("rest", UNCLEAR, ids=range(len(UNCLEAR)))
def test_a_request_whose_end_is_unclear_is_refused(running, rest):
    host = running.api_url.removeprefix("http://").encode()
    answer = raw(running.api_url, b"POST /do/pid HTTP/1.1\r\nHost: " + host + b"\r\n" + rest)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.endswith(b'{"message": "Bad Request"}')
    assert answer.count(b"HTTP/1.1") == 1


def test_a_chunked_body_arrives_whole(running):
    status, _, body = request(
        running.api_url, path="/do/echo", body=iter([b"ab", b"c"]), Content_Type="text/plain"
    )
    assert (status, body) == (201, b"abc")


# --- Malformed requests -------------------------------------------------------------------------

noise = st.binary(max_size=40)
lines = st.sampled_from(
    [b"POST", b"GET", b"OPTIONS", b"", b"p\x00st", b"\xff", b"CONNECT", b"HEAD", b"X" * 70_000]
)
addresses = st.one_of(
    st.sampled_from(
        [
            b"/do/echo",
            b"/do/event?a=%",
            b"//[",
            b"http://[::1/",
            b"*",
            b"/do/%00",
            b"/" + b"%ff" * 9,
        ]
    ),
    noise,
)
versions = st.sampled_from([b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"HTTP/1", b"HTTP/x.y", b""])
fields = st.one_of(
    st.sampled_from(
        [
            *(b"Content-Length: 4", b"Content-Length: -1", b"Content-Length: 99999999999999999999"),
            *(
                b"Transfer-Encoding: chunked",
                b"Content-Type: image/png",
                b"Content-Type: \xff/\xfe",
            ),
            *(b"Content-Type: application/json", b"Expect: 100-continue", b"Origin: null"),
            *(
                b"Cookie: ;;=;",
                b"Connection: keep-alive",
                b"X_Y: 1",
                b"NoColon",
                b" folded",
                b": a",
            ),
        ]
    ),
    noise,
)


@settings(max_examples=500, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(lines, addresses, versions, st.lists(fields, max_size=5), noise, st.booleans())
def test_malformed_requests_are_never_our_fault(
    running, method, address, version, headers, body, has_host
):
    host = [b"Host: " + running.api_url.removeprefix("http://").encode()] if has_host else []
    head = b"\r\n".join([b" ".join([method, address, version]), *host, *headers])
    answer = raw(running.api_url, head + b"\r\n\r\n" + body)
    for status in re.findall(rb"^HTTP/1\.1 (\d+)", answer, re.MULTILINE):
        assert int(status) < 500 or status == b"505", answer
    assert b"Traceback" not in answer


def test_it_still_answers_after_all_of_these(running):
    assert ask(running, "/do/pid")[0] == 200


# --- The command, and its end -------------------------------------------------------------------


@pytest.fixture
def command(project, tmp_path):
    """Starts the command line; returns the process and the two addresses that it prints."""
    processes = []

    def command(*words):
        arguments = ["--template", project / "template.yaml", "--site", project / "site"]
        arguments += ["--parameter", "PageOrigin={page_url}", "--env", f"PLACE={tmp_path}", *words]
        process = subprocess.Popen(
            [sys.executable, "-m", "local_cloud", "gateway", *map(str, arguments)],
            cwd=PROJECT,
            env={**os.environ, "LOCAL_CLOUD_HOME": str(tmp_path / "home")},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=heed_ctrl_c,
        )
        processes.append(process)
        return process, re.findall(
            r"http://\S+", process.stdout.readline() + process.stdout.readline()
        )

    yield command
    for process in processes:
        process.kill()
        process.communicate()


def hang(api_url, place):
    """Let the function hang; return the numbers of its process and of that one's child."""

    def ask_in_vain():
        with contextlib.suppress(OSError, http.client.HTTPException):
            request(api_url, path="/do/hang")

    threading.Thread(target=ask_in_vain, daemon=True).start()
    told = place / "hangs"
    return [int(pid) for pid in until(lambda: told.exists() and told.read_text().split())]


def test_when_it_is_killed_no_worker_is_left(command, tmp_path):
    process, (_, api_url) = command()
    pids = hang(api_url, tmp_path)
    idle = json.loads(request(api_url, path="/do/pid")[2])
    process.kill()
    until(lambda: not any(map(is_alive, [*pids, idle])))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_it_with_all_its_workers(command, tmp_path, number):
    process, (page_url, api_url) = command()
    assert request(page_url, "GET", "/")[0] == 200
    pids = hang(api_url, tmp_path)
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "Traceback" not in out + err
    assert not any(map(is_alive, pids))


def test_a_port_in_use_is_one_sentence(command, running):
    port = running.api_url.rpartition(":")[2]
    process, _ = command("--api-port", port)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 1
    assert err == (
        f"local_cloud: port {port} on 127.0.0.1 cannot be used (Address already in use); "
        "choose another with --api-port, or 0 for any free one.\n"
    )


def test_a_template_that_lacks_a_value_is_one_sentence(project):
    with pytest.raises(CloudError, match=r"^the template's parameter PageOrigin has no default"):
        gateway(project / "template.yaml")
