"""Checks presigned addresses of S3, whose signature is in the query: version 4 or version 2.

boto3 still presigns by version 2 in the older regions, us-east-1 among them. The arithmetic is
botocore's own, as in `signature`. Specification: Amazon S3 API Reference, "Authenticating Requests:
Using Query Parameters".
"""

import datetime
import re
import time
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from botocore.auth import HmacV1QueryAuth, S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from local_cloud import DEFAULT_REGION
from local_cloud.signature import Caller, check_key, check_signature, forbidden, signature_of

SCOPE = re.compile(r"(?P<key>[^/]+)/\d{8}/(?P<region>[\w-]+)/s3/aws4_request")
# What a signature adds to the query: by version 4, and by version 2.
PARAMETERS = ("X-Amz-Algorithm", "X-Amz-Credential", "X-Amz-Date", "X-Amz-Expires")
PARAMETERS += ("X-Amz-SignedHeaders", "X-Amz-Security-Token", "X-Amz-Signature")
PARAMETERS += ("AWSAccessKeyId", "Expires", "Signature")
MAX_SECONDS = 604_800  # Seven days; the service's own limit.


class Version2(HmacV1QueryAuth):
    """botocore's signer with the moment of expiry that an address names, in place of a new one."""

    def _get_date(self):
        return self._expires


def names_key(query, access_key):
    """Whether the query names `access_key`; no proof of the secret one."""
    credential = query.get("X-Amz-Credential", "").partition("/")[0]
    return access_key in (credential, query.get("AWSAccessKeyId"))


def check(method, url, headers, access_key, secret_key):
    """The `Caller` of a request to a presigned address.

    Args:
        method: HTTP method.
        url: the URL as sent, with host, raw path and raw query.
        headers: mapping of header names, any case, to values.

    Raises:
        ServiceError: 403 for a missing, foreign, wrong or expired signature.
    """
    headers = {name.lower(): value for name, value in headers.items()}
    query = dict(parse_qsl(urlsplit(url).query, keep_blank_values=True))
    credentials = Credentials(access_key, secret_key)
    scope = SCOPE.fullmatch(query.get("X-Amz-Credential", ""))
    if scope:
        check_key(scope["key"], access_key)
        auth = S3SigV4QueryAuth(credentials, "s3", scope["region"])
        check_version_4(method, url, headers, query, auth)
        return Caller("s3", scope["region"])
    if "AWSAccessKeyId" in query:
        check_key(query["AWSAccessKeyId"], access_key)
        check_version_2(method, url, headers, query, credentials)
        return Caller("s3", DEFAULT_REGION)
    raise forbidden("MissingAuthenticationToken", "The request is not signed.")


def check_version_4(method, url, headers, query, auth):
    signed = query.get("X-Amz-SignedHeaders", "").split(";")
    # Whoever got the address must not make another request of it, such as a copy.
    if any(name.startswith("x-amz-") and name not in signed for name in headers):
        raise forbidden("AccessDenied", "Headers of the request were not signed.")
    parts = urlsplit(url)
    rest = [word for word in parts.query.split("&") if not word.startswith("X-Amz-Signature=")]
    request = AWSRequest(method=method, url=urlunsplit(parts._replace(query="&".join(rest))))
    for name in signed:
        request.headers[name] = headers.get(name, "")
    request.context["timestamp"] = query.get("X-Amz-Date", "")
    check_signature(query.get("X-Amz-Signature", ""), signature_of(request, auth))
    try:
        seconds = int(query["X-Amz-Expires"])
        began = datetime.datetime.strptime(f"{query['X-Amz-Date']}+0000", "%Y%m%dT%H%M%SZ%z")
    except (KeyError, ValueError):
        raise forbidden("AuthorizationQueryParametersError", "It says no expiry.") from None
    if seconds > MAX_SECONDS:
        words = f"X-Amz-Expires must be at most {MAX_SECONDS} seconds."
        raise forbidden("AuthorizationQueryParametersError", words)
    check_end(began.timestamp() + seconds)


def check_version_2(method, url, headers, query, credentials):
    request = AWSRequest(method=method, url=url)
    for name, value in {**{name.lower(): query[name] for name in query}, **headers}.items():
        if name.startswith("x-amz-") or name in ("content-md5", "content-type"):
            request.headers[name] = value
    ends = query.get("Expires", "")
    right = Version2(credentials, ends).get_signature(method, urlsplit(url), request.headers)
    check_signature(query.get("Signature", ""), right)
    check_end(int(ends) if ends.isdecimal() else 0)


def check_end(ends):
    """Refuse an address after the moment `ends`, in seconds since 1970."""
    if time.time() > ends:
        raise forbidden("AccessDenied", "Request has expired.")
