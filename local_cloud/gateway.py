"""A web page and the API behind it on this machine: CloudFront, API Gateway and Lambda in small.

    with gateway("template.yaml", site="site") as running:
        print(running.page_url, running.api_url)

Two servers on 127.0.0.1, so that the page and the API are of different origins as in an account.
One serves the files of a folder with the headers that the template's distribution adds; the other
makes of every request the event that API Gateway would make, and of what the function's handler
returns an answer. Would run anybody's function that is written for an HTTP API.
"""

import logging
import re
import threading
import uuid
from pathlib import Path

from werkzeug import Request, Response
from werkzeug.exceptions import BadRequest, RequestEntityTooLarge
from werkzeug.serving import WSGIRequestHandler
from werkzeug.utils import send_file

from local_cloud import sam
from local_cloud.errors import CloudError
from local_cloud.functions import Busy, FunctionFailed, LambdaFunction, TooLarge
from local_cloud.http_api import (
    FAILED,
    INTEGRATION_SECONDS,
    MAX_BODY,
    TOO_LARGE,
    UNAVAILABLE,
    Answer,
    Cors,
    Routes,
    TokenBucket,
    make_event,
    raw_address,
    read_result,
    refusal,
)
from local_cloud.instance import HOST, home_folder, running
from local_cloud.listener import BODY_READ, ApplicationSlot, KeepAlive, make_server

CONCURRENCY = 8  # Workers; they mostly wait for what they ask.
INDEX = "index.html"
log = logging.getLogger(__name__)


class Refused(Exception):
    """A request that goes no further; `answer` says so."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer


class Handler(KeepAlive, WSGIRequestHandler):
    """Refuses what is no clear HTTP request in the words of the gateway."""

    def run_wsgi(self):
        if is_framed(self.headers):
            super().run_wsgi()
        else:
            self.send_error(400)

    def send_error(self, code, message=None, explain=None):
        answer = refusal(int(code))
        self.close_connection = True
        self.command = getattr(self, "command", None)
        self.request_version = getattr(self, "request_version", None) or "HTTP/1.0"
        self.send_answer(f"{int(code)} {self.responses[code][0]}", answer.headers, answer.body)


def is_framed(headers):
    """Whether it is clear where the body ends: else a second request could hide in it."""
    lengths = headers.get_all("Content-Length", [])
    encodings = headers.get_all("Transfer-Encoding", [])
    if encodings:
        return not lengths and [each.strip().lower() for each in encodings] == ["chunked"]
    return not lengths or bool(len(lengths) == 1 and re.fullmatch("[0-9]{1,18}", lengths[0]))


class Application:
    """A WSGI application on one port of this machine; `reply` is what it is about.

    Args:
        port: of its address; requests for any other are refused, because a web page of another
            origin may reach this machine under a name of its own (DNS rebinding).
        max_body: bytes that it reads.
    """

    def __init__(self, port, max_body):
        self.hosts = {f"{name}:{port}" for name in (HOST, "localhost")}
        self.max_body = max_body

    def __call__(self, environ, start_response):
        try:
            is_meant = environ.get("HTTP_HOST", "").lower() in self.hosts
            answer = self.reply(environ) if is_meant else refusal(403)
        except Refused as refused:
            answer = refused.answer
        except Exception:
            log.exception("%s %s", environ["REQUEST_METHOD"], environ["PATH_INFO"])
            answer = FAILED
        if isinstance(answer, Answer):
            answer = Response(answer.body, answer.status, answer.headers)
        return answer(environ, start_response)

    def read(self, environ):
        """The body; Refused where it is too large or broken."""
        request = Request(environ)
        request.max_content_length = self.max_body
        try:
            body = request.get_data(cache=False)
        except RequestEntityTooLarge:
            raise Refused(TOO_LARGE) from None
        except (BadRequest, OSError):  # A part is missing, or a chunk is none.
            raise Refused(refusal(400)) from None
        environ[BODY_READ] = True
        return body

    def reply(self, environ):
        raise NotImplementedError


class Api(Application):
    """The HTTP API of a template, in front of a function."""

    def __init__(self, port, template, function):
        super().__init__(port, MAX_BODY)
        self.function = function
        self.routes, self.cors = Routes(template.routes), Cors(template.cors)
        self.buckets = {key: TokenBucket(*limits) for key, limits in template.throttles.items()}

    def reply(self, environ):
        try:
            body = self.read(environ)
            preflight = self.cors.preflight(environ)
            if preflight:
                return preflight
            answer = self.route(environ, body)
        except Refused as refused:
            answer = refused.answer
        return self.cors.apply(answer, environ)

    def route(self, environ, body):
        key, parameters = self.routes.find(environ["REQUEST_METHOD"], raw_address(environ)[0])
        if key is None:
            return refusal(404)
        if key in self.buckets and not self.buckets[key].take():
            return refusal(429)
        request_id = str(uuid.uuid4())
        answer = self.ask(make_event(environ, body, key, parameters, request_id), request_id)
        headers = [*answer.headers, ("apigw-requestid", request_id)]
        return Answer(answer.status, headers, answer.body)

    def ask(self, event, request_id):
        try:
            return read_result(self.function.invoke(event, request_id, INTEGRATION_SECONDS))
        except TooLarge:
            return TOO_LARGE
        except FunctionFailed:
            return FAILED
        except Busy:
            return UNAVAILABLE


class Page(Application):
    """The files of a folder, as they are when they are asked for; `/` is its index.html."""

    def __init__(self, port, folder, headers):
        super().__init__(port, max_body=0)
        self.url, self.folder, self.headers = f"http://{HOST}:{port}", folder, headers

    def reply(self, environ):
        self.read(environ)
        request = Request(environ)
        path = self.find(request.path)
        if request.host_url != f"{self.url}/":  # localhost: another origin, which the API refuses.
            address = "?".join(filter(None, raw_address(environ)))
            response = Response(status=307, headers={"location": self.url + address})
        elif path is None:
            response = Response("Not Found\n", 404, content_type="text/plain")
        elif environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            response = Response("Method Not Allowed\n", 405, content_type="text/plain")
        else:
            response = send_file(path, environ, conditional=True)
        # Asked for again each time, so that nobody sees an old page after a change.
        for name in ("content-disposition", "date"):  # Not S3's; the server's.
            response.headers.pop(name, None)
        response.headers["cache-control"] = "no-cache"
        response.headers.update(self.headers)
        return response

    def find(self, address):
        """The file of an address; None where there is none, or it is outside of the folder."""
        if self.folder is None or "\x00" in address:
            return None
        folder = Path(self.folder).resolve()
        try:
            path = (folder / (address.lstrip("/") or INDEX)).resolve()  # Links are followed here.
            return path if path.is_relative_to(folder) and path.is_file() else None
        except OSError:  # A name that is too long, a link to itself.
            return None


def closed(environ, start_response):
    """The application of a gateway that has ended: the connection ends, too."""
    start_response("503 Service Unavailable", [])
    return [b""]


class Gateway:
    """A running gateway; `page_url` and `api_url` are its addresses. A context manager."""

    def __init__(self, servers, function):
        self._servers, self._function = servers, function
        self.page_url, self.api_url = (f"http://{HOST}:{server.port}" for server in servers)
        for server in servers:
            threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True).start()

    def close(self):
        """End the servers and the function's workers."""
        for server in self._servers:
            server.shutdown()
            server.app = closed  # Of connections that are still open.
            server.server_close()
        self._function.close()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()


def gateway(
    template,
    *,
    function=None,
    parameters=None,
    environment=None,
    code=None,
    site=None,
    port=0,
    api_port=0,
    concurrency=CONCURRENCY,
    local=True,
):
    """Start a gateway and return it as a `Gateway`.

    Args:
        template, function, parameters, environment, code: as in `sam.read`; in the values of
            parameters, `{page_url}` and `{api_url}` stand for the addresses.
        site: folder that the page is served from; None for no page.
        port, api_port: of the page and of the API; 0 for any free one.
        concurrency: the most requests that the function works on at a time.
        local: the function asks the local cloud, where one runs; else what `environment` says.

    Raises:
        CloudError: a port cannot be used, or the template does not say what is needed.
    """
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    slots = ApplicationSlot(), ApplicationSlot()
    page_server = make_server(port, slots[0], Handler)
    try:
        api_server = make_server(api_port, slots[1], Handler, "--api-port")
    except CloudError:
        page_server.server_close()
        raise
    servers = page_server, api_server
    try:
        values = {
            name: str(value)
            .replace("{page_url}", f"http://{HOST}:{page_server.port}")
            .replace("{api_url}", f"http://{HOST}:{api_server.port}")
            for name, value in (parameters or {}).items()
        }
        read = sam.read(template, function, values, environment, code)
        workers = LambdaFunction(
            read.function, running(home_folder()) if local else None, concurrency
        )
    except BaseException:
        for server in servers:
            server.server_close()
        raise
    slots[0].app = Page(page_server.port, site, read.page_headers)
    slots[1].app = Api(api_server.port, read, workers)
    return Gateway(servers, workers)
