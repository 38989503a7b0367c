"""What API Gateway's HTTP APIs make of a request for a Lambda function, and of its answer.

Sources, in the API Gateway developer guide: "Create AWS Lambda proxy integrations for HTTP APIs"
(event and response, format 2.0), "Create routes for HTTP APIs" (which route is chosen), "Configure
CORS for HTTP APIs", "Throttle requests to your HTTP APIs" and "Quotas" (30 s, 10 MB). What it
leaves open was seen on the service by others, as named below.
"""

import base64
import binascii
import json
import re
import threading
import time
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import parse_qsl, unquote

from werkzeug import Request

from local_cloud import ACCOUNT_ID

API_ID = "local"
STAGE = "$default"
MAX_BODY = 10 << 20  # Bytes.
INTEGRATION_SECONDS = 30  # What the function may take, its queue included.
# The event has the body as text for these types, else in base64; without a type, too. Seen on the
# service: github.com/ministackorg/ministack/pull/766.
TEXTS = ("application/json", "application/javascript", "application/xml")
# Of one connection, or set by the gateway itself.
HOP_BY_HOP = ("connection", "content-length", "keep-alive", "transfer-encoding", "upgrade")
TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
CORS_LISTS = {
    "AllowMethods": "access-control-allow-methods",
    "AllowHeaders": "access-control-allow-headers",
}


@dataclass(frozen=True)
class Answer:
    """An HTTP answer: status, list of (name, value) and body as bytes."""

    status: int
    headers: list
    body: bytes


def refusal(status, message=None):
    """An answer of the gateway itself."""
    body = json.dumps({"message": message or HTTPStatus(status).phrase}).encode()
    return Answer(status, [("content-type", "application/json")], body)


# The service says so of an exception, a crash and of a function's own timeout, which other kinds of
# API answer with 502: github.com/denoland/deno_registry2/issues/87.
FAILED = refusal(500, "Internal Server Error")
# Of INTEGRATION_SECONDS: github.com/cortexlabs/cortex/issues/1225.
UNAVAILABLE = refusal(503, "Service Unavailable")
# github.com/koki-develop/lgtm-generator/issues/10.
TOO_LARGE = refusal(413, "Request Too Long")


class Routes:
    """Finds the route of a request: the most specific one, `$default` last.

    Args:
        keys: such as `POST /items/{id}`, `ANY /{proxy+}` and `$default`.
    """

    def __init__(self, keys):
        self.patterns = [(key, *key.split(" ", 1)) for key in keys if key != "$default"]
        self.has_default = "$default" in keys

    def find(self, method, path):
        """The key of the route and the path's parameters; (None, {}) where there is none."""
        found = []
        for key, wanted, pattern in self.patterns:
            match = re.fullmatch(expression(pattern), path)
            if match and wanted in (method, "ANY"):
                is_greedy, variables = "+}" in pattern, pattern.count("{")
                rank = (is_greedy, variables, wanted == "ANY")
                values = {name: unquote(value) for name, value in match.groupdict().items()}
                found.append((rank, key, values))
        if found:
            return min(found, key=lambda each: each[0])[1:]
        return ("$default" if self.has_default else None), {}


def expression(pattern):
    """The regular expression of a route's path."""
    parts = re.split(r"\{(\w+)(\+?)\}", pattern)
    text = re.escape(parts[0])
    for name, greedy, rest in zip(parts[1::3], parts[2::3], parts[3::3]):
        text += f"(?P<{name}>{'.+' if greedy else '[^/]+'}){re.escape(rest)}"
    return text


def make_event(environ, body, route, parameters, request_id):
    """The event of payload format 2.0.

    Args:
        environ: of WSGI, as werkzeug's server makes it.
        body: bytes.
        route: key of the route; parameters: of its path.
    """
    request = Request(environ)
    path, query = raw_address(environ)
    headers = {name.lower(): value for name, value in request.headers.items()}
    cookies = [each.strip() for each in headers.pop("cookie", "").split(";") if each.strip()]
    for name in ("connection", "keep-alive", "transfer-encoding"):
        headers.pop(name, None)
    headers["x-forwarded-for"] = request.remote_addr
    headers["x-forwarded-port"] = environ["SERVER_PORT"]
    headers["x-forwarded-proto"] = environ["wsgi.url_scheme"]
    now = time.time()
    http = {
        "method": request.method,
        "path": path,
        "protocol": environ["SERVER_PROTOCOL"],
        "sourceIp": request.remote_addr,
        "userAgent": headers.get("user-agent", ""),
    }
    event = {
        "version": "2.0",
        "routeKey": route,
        "rawPath": path,
        "rawQueryString": query,
        "headers": headers,
        "requestContext": {
            "accountId": ACCOUNT_ID,
            "apiId": API_ID,
            "domainName": request.host,
            "domainPrefix": request.host.partition(".")[0],
            "http": http,
            "requestId": request_id,
            "routeKey": route,
            "stage": STAGE,
            "time": time.strftime("%d/%b/%Y:%H:%M:%S +0000", time.gmtime(now)),
            "timeEpoch": int(1000 * now),
        },
        "isBase64Encoded": False,
    }
    if cookies:
        event["cookies"] = cookies
    if query:
        event["queryStringParameters"] = query_parameters(query)
    if parameters:
        event["pathParameters"] = parameters
    if body:
        is_text = request.mimetype.startswith("text/") or request.mimetype in TEXTS
        event["isBase64Encoded"] = not is_text
        event["body"] = (
            body.decode("utf-8", "replace") if is_text else base64.b64encode(body).decode()
        )
    return event


def raw_address(environ):
    """Path and query as they were sent."""
    # werkzeug has written the bytes of the request line as if they had been Latin-1 twice.
    sent = environ["RAW_URI"].encode("latin-1").decode()
    path, _, query = re.sub(r"^[a-zA-Z][a-zA-Z0-9+.-]*://[^/?]*", "", sent).partition("?")
    return path or "/", query


def query_parameters(query):
    """Each parameter once; several values of one are joined by commas."""
    values = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        values.setdefault(name, []).append(value)
    return {name: ",".join(all_of_it) for name, all_of_it in values.items()}


def read_result(text):
    """The `Answer` that a handler's result stands for, `FAILED` where it stands for none.

    Args:
        text: the result as JSON.
    """
    result = json.loads(text)
    try:
        if not isinstance(result, dict) or "statusCode" not in result:
            body = result if isinstance(result, str) else text
            return Answer(200, [("content-type", "application/json")], body.encode())
        status = int(result["statusCode"])
        body = result.get("body") or ""
        body = body if isinstance(body, str) else json.dumps(body)
        if result.get("isBase64Encoded"):
            body = base64.b64decode(body, validate=True)
        else:
            body = body.encode()
        headers = read_headers(result)
    except (TypeError, ValueError, AttributeError, binascii.Error):
        return FAILED
    return Answer(status, headers, body) if 200 <= status <= 599 else FAILED


def read_headers(result):
    """Names and values; ValueError where they would break the answer."""
    given = {str(name).lower(): value for name, value in (result.get("headers") or {}).items()}
    headers = {"content-type": "text/plain;charset=UTF-8", **given}
    pairs = [(name, str(value)) for name, value in headers.items() if name not in HOP_BY_HOP]
    pairs += [("set-cookie", str(cookie)) for cookie in result.get("cookies") or []]
    for name, value in pairs:
        value.encode("latin-1")
        if not TOKEN.fullmatch(name) or re.search(r"[\x00\r\n]", value):
            raise ValueError(f"the header {name!r} cannot be sent")
    return pairs


class Cors:
    """Answers preflight requests and adds headers to answers, as an API's settings say.

    Args:
        settings: members of SAM's `HttpApiCorsConfiguration`; None for none.
    """

    def __init__(self, settings):
        self.settings = settings

    def preflight(self, environ):
        """The answer to a preflight request; None where a request is none, or CORS is not set."""
        is_preflight = (
            environ["REQUEST_METHOD"] == "OPTIONS"
            and "HTTP_ORIGIN" in environ
            and "HTTP_ACCESS_CONTROL_REQUEST_METHOD" in environ
        )
        if self.settings is None or not is_preflight:
            return None
        headers = self.headers(environ)
        if headers:
            for member, name in CORS_LISTS.items():
                if self.settings.get(member):
                    headers.append((name, ",".join(self.settings[member])))
            if "MaxAge" in self.settings:
                headers.append(("access-control-max-age", str(self.settings["MaxAge"])))
        return Answer(204, headers, b"")

    def headers(self, environ):
        """What is added to every answer to an allowed origin; nothing for others."""
        origin = environ.get("HTTP_ORIGIN", "")
        allowed = self.settings.get("AllowOrigins", []) if self.settings else []
        schemes = [each[:-1] for each in allowed if each in ("http://*", "https://*")]
        if not origin or not ({"*", origin} & set(allowed) or origin.startswith(tuple(schemes))):
            return []
        headers = [("access-control-allow-origin", "*" if "*" in allowed else origin)]
        if self.settings.get("AllowCredentials"):
            headers.append(("access-control-allow-credentials", "true"))
        if self.settings.get("ExposeHeaders"):
            exposed = ",".join(self.settings["ExposeHeaders"])
            headers.append(("access-control-expose-headers", exposed))
        return headers

    def apply(self, answer, environ):
        """`answer` with the API's headers in place of those that the function may have set."""
        if self.settings is None:
            return answer
        own = [each for each in answer.headers if not each[0].startswith("access-control-")]
        return Answer(answer.status, own + self.headers(environ), answer.body)


class TokenBucket:
    """Lets `rate` requests a second through, and `burst` at once."""

    def __init__(self, rate, burst):
        self.rate, self.burst = rate, burst
        self.tokens, self.filled = float(burst), time.monotonic()
        self.lock = threading.Lock()

    def take(self):
        """Whether a request may pass."""
        with self.lock:
            now = time.monotonic()
            self.tokens = min(self.burst, self.tokens + self.rate * (now - self.filled))
            self.filled = now
            if self.tokens < 1:
                return False
            self.tokens -= 1
            return True
