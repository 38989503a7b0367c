"""Checks the AWS Signature Version 4 of a request.

The arithmetic is botocore's own: the request is signed again with the secret key of this start and
the two signatures are compared. Specification: AWS IAM User Guide, "AWS Signature Version 4 for API
requests".
"""

import datetime
import hashlib
import hmac
import re
from dataclasses import dataclass

from botocore.auth import S3SigV4Auth, SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from local_cloud.errors import ServiceError

AUTHORIZATION = re.compile(
    r"AWS4-HMAC-SHA256 Credential=(?P<key>[^/,\s]+)/(?P<date>\d{8})/(?P<region>[\w-]+)/"
    r"(?P<service>[\w.-]+)/aws4_request,\s*SignedHeaders=(?P<headers>[\w;.-]+),\s*"
    r"Signature=(?P<signature>[0-9a-f]{64})"
)
MAX_SKEW = datetime.timedelta(minutes=15)  # The service's own limit.
NOT_HASHED = ("UNSIGNED-PAYLOAD", "STREAMING-")


@dataclass(frozen=True)
class Caller:
    """What a valid signature says: the service and the region it was made for."""

    service: str
    region: str

    @property
    def authorization(self):
        """The beginning of an Authorization header that says both."""
        return f"AWS4-HMAC-SHA256 Credential=x/20260101/{self.region}/{self.service}/aws4_request"


def names_key(headers, access_key):
    """Whether the Authorization header names `access_key`; no proof of the secret one."""
    return f"Credential={access_key}/" in headers.get("Authorization", "")


def forbidden(code, message):
    return ServiceError(code, message, status=403)


def check(method, url, headers, body, access_key, secret_key):
    """The `Caller` of a correctly signed request.

    Args:
        method: HTTP method.
        url: the URL as sent, with host, raw path and raw query.
        headers: mapping of header names, any case, to values.
        body: the payload as bytes.

    Raises:
        ServiceError: 403 for a missing, foreign, wrong or stale signature.
    """
    headers = {name.lower(): value for name, value in headers.items()}
    match = AUTHORIZATION.fullmatch(headers.get("authorization", "").strip())
    if match is None:
        raise forbidden("MissingAuthenticationToken", "The request is not signed.")
    check_key(match["key"], access_key)
    signed = match["headers"].split(";")
    sent_at = headers.get("x-amz-date", "")
    if "host" not in signed or "x-amz-date" not in signed or not is_fresh(sent_at):
        raise forbidden("SignatureDoesNotMatch", "The signature is stale or covers too little.")
    declared = headers.get("x-amz-content-sha256", "")
    if declared and not declared.startswith(NOT_HASHED) and not is_hash_of(body, declared):
        raise forbidden("XAmzContentSHA256Mismatch", "The body is not the one signed.")

    request = AWSRequest(method=method, url=url, data=body)
    for name in signed:
        request.headers[name] = headers.get(name, "")
    request.context["timestamp"] = sent_at
    auth_class = S3SigV4Auth if match["service"] == "s3" else SigV4Auth
    auth = auth_class(Credentials(access_key, secret_key), match["service"], match["region"])
    check_signature(match["signature"], signature_of(request, auth))
    return Caller(match["service"], match["region"])


def check_key(key, access_key):
    if not hmac.compare_digest(key.encode(), access_key.encode()):
        raise forbidden("InvalidClientTokenId", "The access key is not of this local cloud.")


def check_signature(given, right):
    if not hmac.compare_digest(given.encode(), right.encode()):
        raise forbidden("SignatureDoesNotMatch", "The signature does not match the request.")


def signature_of(request, auth):
    """The signature that a version 4 signer of botocore gives a request."""
    return auth.signature(auth.string_to_sign(request, auth.canonical_request(request)), request)


def is_hash_of(body, declared):
    return hmac.compare_digest(declared.encode(), hashlib.sha256(body).hexdigest().encode())


def is_fresh(sent_at):
    """Whether the time stamp of the form `YYYYMMDDTHHMMSSZ` is within the allowed skew."""
    try:
        time = datetime.datetime.strptime(sent_at, "%Y%m%dT%H%M%SZ")
    except ValueError:
        return False
    now = datetime.datetime.now(datetime.timezone.utc).replace(tzinfo=None)
    return abs(now - time) <= MAX_SKEW
