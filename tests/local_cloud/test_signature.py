"""Only requests signed with the key of this start are answered, and no web page can read one."""

import http.client
import json
import socket
import urllib.parse

import boto3
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from botocore.exceptions import ClientError
from harness import BUCKET

LIST = "SageMaker.ListTrainingJobs"


def address(cloud):
    parts = urllib.parse.urlsplit(cloud.url)
    return parts.hostname, parts.port


def send(cloud, method="POST", path="/", body=b"{}", headers=None):
    """One raw request; returns (status, headers, body)."""
    connection = http.client.HTTPConnection(*address(cloud), timeout=20)
    connection.request(method, path, body=body, headers=headers or {})
    answer = connection.getresponse()
    result = answer.status, dict(answer.getheaders()), answer.read()
    connection.close()
    return result


def signed_headers(cloud, body=b"{}", key=None, secret=None, date=None, **extra):
    """The headers of a signed ListTrainingJobs request."""
    key = key or cloud.env["AWS_ACCESS_KEY_ID"]
    secret = secret or cloud.env["AWS_SECRET_ACCESS_KEY"]
    headers = {"X-Amz-Target": LIST, "Content-Type": "application/x-amz-json-1.1", **extra}
    request = AWSRequest("POST", cloud.url + "/", data=body, headers=headers)
    SigV4Auth(Credentials(key, secret), "sagemaker", "us-east-1").add_auth(request)
    if date:
        request = AWSRequest("POST", cloud.url + "/", data=body, headers=headers)
        request.headers["X-Amz-Date"] = date
        auth = SigV4Auth(Credentials(key, secret), "sagemaker", "us-east-1")
        request.context["timestamp"] = date
        text = auth.string_to_sign(request, auth.canonical_request(request))
        auth._inject_signature_to_request(request, auth.signature(text, request))
    return dict(request.headers.items())


def assert_refused(answer, code=None):
    status, headers, body = answer
    assert status == 403
    assert not [name for name in headers if name.lower().startswith("access-control")]
    if code:
        assert json.loads(body)["__type"] == code


def test_a_signed_request_is_answered(cloud):
    status, _, body = send(cloud, headers=signed_headers(cloud))
    assert status == 200
    assert "TrainingJobSummaries" in json.loads(body)


@pytest.mark.parametrize("path", ["/", "/" + BUCKET, "/endpoints/e/invocations", "/moto-api/reset"])
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD"])
def test_unsigned_requests_are_refused_on_every_path(cloud, method, path):
    assert_refused(send(cloud, method, path))


def test_a_preflight_of_a_web_page_is_refused(cloud):
    headers = {
        "Origin": "http://evil.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "x-amz-target",
    }
    assert_refused(send(cloud, "OPTIONS", headers=headers))


def test_no_answer_permits_other_origins(cloud):
    origin = {"Origin": "http://evil.example"}
    status, headers, _ = send(cloud, headers={**signed_headers(cloud), **origin})
    assert status == 200
    assert not [name for name in headers if name.lower().startswith("access-control")]
    seen = []

    def add_origin(request, **_):
        request.headers["Origin"] = "http://evil.example"

    def keep(http_response, **_):
        seen.append(http_response)

    client = cloud.client("s3")
    client.meta.events.register("before-send.s3", add_origin)
    client.meta.events.register("after-call.s3", keep)
    client.list_objects_v2(Bucket=BUCKET)
    assert seen[0].status_code == 200
    assert not [name for name in seen[0].headers if name.lower().startswith("access-control")]


def test_a_foreign_key_is_refused(cloud):
    headers = signed_headers(cloud, key="AKIAFOREIGN", secret="foreign")
    assert_refused(send(cloud, headers=headers), "InvalidClientTokenId")


def test_a_wrong_secret_is_refused(cloud):
    headers = signed_headers(cloud, secret="guess")
    assert_refused(send(cloud, headers=headers), "SignatureDoesNotMatch")


def test_a_changed_body_is_refused(cloud):
    headers = signed_headers(cloud, body=b"{}")
    assert_refused(send(cloud, body=b'{"MaxResults": 1}', headers=headers), "SignatureDoesNotMatch")
    unhashed = {**headers, "X-Amz-Content-SHA256": "UNSIGNED-PAYLOAD"}
    assert_refused(send(cloud, body=b'{"MaxResults": 1}', headers=unhashed))


def test_a_changed_target_is_refused(cloud):
    headers = {**signed_headers(cloud), "X-Amz-Target": "SageMaker.ListEndpoints"}
    assert_refused(send(cloud, headers=headers), "SignatureDoesNotMatch")


@pytest.mark.parametrize("date", ["20200101T000000Z", "20990101T000000Z", "yesterday"])
def test_a_stale_date_is_refused(cloud, date):
    headers = signed_headers(cloud, date=date)
    assert_refused(send(cloud, headers=headers))


def test_an_unsigned_object_change_is_refused_in_the_words_of_s3(cloud):
    foreign = boto3.client(
        "s3",
        endpoint_url=cloud.url,
        region_name="us-east-1",
        aws_access_key_id="AKIAFOREIGN",
        aws_secret_access_key="x",
    )
    with pytest.raises(ClientError) as refused:
        foreign.put_object(Bucket=BUCKET, Key="a", Body=b"b")
    assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403
    assert refused.value.response["Error"]["Code"] == "InvalidClientTokenId"
    url = foreign.generate_presigned_url("get_object", Params={"Bucket": BUCKET, "Key": "a"})
    assert_refused(send(cloud, "GET", url.removeprefix(cloud.url)))


KEYS = ["a b", "ünï/cödé", "plus+sign", "per%20cent", "what?", "a#b", "a=b&c", "~tilde*", "a//b"]


@pytest.mark.parametrize("key", KEYS)
def test_unusual_keys_pass_the_check(cloud, key):
    cloud.put(f"keys/{key}", key.encode())
    assert cloud.get(f"keys/{key}") == key.encode()
    listed = cloud.s3.list_objects_v2(Bucket=BUCKET, Prefix=f"keys/{key}")["Contents"]
    assert [entry["Key"] for entry in listed] == [f"keys/{key}"]


def test_chunked_bodies_are_read(cloud):
    headers = signed_headers(cloud)
    status, _, body = send(cloud, body=iter([b"{", b"}"]), headers=headers)
    assert status == 200, body


@pytest.mark.parametrize("signed", [True, False])
def test_a_body_beyond_the_limit_is_refused_before_it_is_read(cloud, signed):
    headers = signed_headers(cloud) if signed else {"Content-Type": "text/plain"}
    lines = [f"{name}: {value}" for name, value in headers.items()]
    head = ["POST / HTTP/1.1", "Host: x", f"Content-Length: {2 << 30}", *lines, "", ""]
    with socket.create_connection(address(cloud), timeout=20) as connection:
        connection.sendall("\r\n".join(head).encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")


def presigned(cloud, operation, region="us-east-1", key="signed/a b+ü", seconds=60, **params):
    """The path and query of a presigned address; boto3 uses version 2 in us-east-1."""
    client = cloud.client("s3", region_name=region)
    url = client.generate_presigned_url(
        operation, Params={"Bucket": BUCKET, "Key": key, **params}, ExpiresIn=seconds
    )
    return url.removeprefix(cloud.url)


REGIONS = pytest.mark.parametrize("region", ["us-east-1", "eu-central-1"], ids=["v2", "v4"])


@REGIONS
def test_presigned_addresses(cloud, region):
    body = region.encode() * 200_000  # Over the limit of those who name no key.
    put = presigned(cloud, "put_object", region, ContentType="text/plain")
    assert send(cloud, "PUT", put, body, {"Content-Type": "text/plain"})[0] == 200
    kept = cloud.s3.get_object(Bucket=BUCKET, Key="signed/a b+ü")
    assert (kept["Body"].read(), kept["ContentType"]) == (body, "text/plain")
    get = presigned(cloud, "get_object", region, ResponseContentType="text/csv")
    status, headers, found = send(cloud, "GET", get, None)
    kind = {name.lower(): value for name, value in headers.items()}["content-type"]
    assert (status, kind, found) == (200, "text/csv", body)
    assert send(cloud, "HEAD", presigned(cloud, "head_object", region), None)[0] == 200


@REGIONS
def test_presigned_addresses_that_are_changed_or_expired_are_refused(cloud, region):
    get = presigned(cloud, "get_object", region)
    assert_refused(send(cloud, "PUT", get, b"1"), "SignatureDoesNotMatch")
    assert_refused(send(cloud, "GET", get.replace("signed", "other")), "SignatureDoesNotMatch")
    expired = presigned(cloud, "get_object", region, seconds=-1)
    assert_refused(send(cloud, "GET", expired), "AccessDenied")
    copy = {"x-amz-copy-source": f"/{BUCKET}/secret"}
    assert_refused(send(cloud, "PUT", presigned(cloud, "put_object", region), b"", copy))
