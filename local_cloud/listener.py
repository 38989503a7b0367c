"""An HTTP server on 127.0.0.1 that keeps connections open: werkzeug's, with another handler."""

import os
import socket

from werkzeug import serving

from local_cloud.errors import CloudError
from local_cloud.instance import HOST

MAX_DRAINED = 64 << 20  # Of a refused body that is read and thrown away,
DRAIN_SECONDS = 1  # unless nothing of it comes for so long.
BODY_READ = "local_cloud.body_read"  # Set in the environment of a request.


def make_server(port, application, handler, option="--port"):
    """A server of a WSGI application, listening but not yet serving; port 0 for any free one.

    Args:
        option: of the command line, that gives the port.

    Raises:
        CloudError: the port cannot be used.
    """
    try:
        listener = socket.create_server((HOST, port))
    except OSError as error:
        raise CloudError(
            f"port {port} on {HOST} cannot be used ({os.strerror(error.errno)}); "
            f"choose another with {option}, or 0 for any free one."
        ) from error
    with listener:
        return serving.make_server(
            HOST,
            port,
            application,
            threaded=True,
            request_handler=handler,
            fd=listener.fileno(),
        )


class ApplicationSlot:
    """Lets the port be taken before the application, which needs the port's number, is made."""

    app = None

    def __call__(self, environ, start_response):
        return self.app(environ, start_response)


class KeepAlive:
    """Mixed into a request handler, answers many requests over one connection, without log lines.

    werkzeug's own handler closes the connection after every answer, because it cannot know whether
    the request's body was read to its end. The application says so by `BODY_READ`.
    """

    protocol_version = "HTTP/1.1"
    timeout = 60  # Seconds after which a connection that nobody uses is closed.
    wbufsize = -1  # Head and body leave in one piece.

    def log_request(self, code="-", size="-"):
        pass

    def log_error(self, form, *args):
        """Idle connections and requests that are not HTTP are the clients' affair."""

    def run_wsgi(self):
        if self.headers.get("Expect", "").strip().lower() == "100-continue":
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.wfile.flush()
        try:
            environ = self.make_environ()
        except ValueError:  # The address cannot be parsed.
            self.send_error(400)
            return
        try:
            status, headers, body = self.answer_of(environ)
            self.close_connection |= BODY_READ not in environ
            self.send_answer(status, headers, body)
            if BODY_READ not in environ:
                self.drain()
        except OSError:  # The client has gone.
            self.close_connection = True

    def drain(self):
        """Read the rest of a refused body: else its sender sees a reset and no answer."""
        self.connection.settimeout(DRAIN_SECONDS)
        left = MAX_DRAINED
        while left > 0 and (data := self.rfile.read1(1 << 20)):
            left -= len(data)

    def answer_of(self, environ):
        """Status, headers and body that the application gives to a request."""
        started = []

        def start_response(status, headers, exc_info=None):
            started[:] = status, headers

        chunks = self.server.app(environ, start_response)
        try:
            return (*started, b"".join(chunks))
        finally:
            getattr(chunks, "close", lambda: None)()

    def send_answer(self, status, headers, body):
        code, _, words = status.partition(" ")
        self.send_response(int(code), words)
        for name, value in headers:
            self.send_header(name, value)
        bodiless = self.command == "HEAD" or int(code) in (204, 304)
        if not bodiless and "content-length" not in {name.lower() for name, _ in headers}:
            self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(b"" if bodiless else body)
        self.wfile.flush()
