"""The page as it is served in an account, with a stand-in for the API that can be told to fail."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

from samples import encode, noise

PAGE = Path(__file__).resolve().parents[2] / "web" / "page"
CLASSES = ["furniture", "laptops", "mobiles", "motorcycles", "watches"]
SCORES = dict(zip(CLASSES, [0.02, 0.9, 0.05, 0.01, 0.02]))
ANSWER = {"label": "laptops", "confidence": 0.9, "scores": SCORES, "request_id": "r-1"}
TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}
TYPES |= {".json": "application/json", ".svg": "image/svg+xml", ".jpg": "image/jpeg"}
# Trusted types: the browser itself refuses whatever would turn data into HTML.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self' {api}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)


class Listener:
    """An HTTP server on 127.0.0.1 that answers by `self.answer(request)`.

    A request has method, path, headers and body; an answer is (status, headers, body), or None
    where the connection is cut.
    """

    def __init__(self):
        self.requests = []
        listener = self

        class Handler(BaseHTTPRequestHandler):
            def do(self):
                length = int(self.headers.get("content-length", 0))
                request = SimpleNamespace(
                    method=self.command,
                    path=self.path,
                    headers=self.headers,
                    body=self.rfile.read(length),
                )
                if request.method != "OPTIONS":
                    listener.requests.append(request)
                answer = listener.answer(request)
                if answer is None:
                    return
                status, headers, body = answer
                self.send_response(status)
                for name, value in {**headers, "content-length": len(body)}.items():
                    self.send_header(name, str(value))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = do_OPTIONS = do

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


class Api(Listener):
    """Answers from `answers`, one after the other, then always ANSWER; to one origin only."""

    def __init__(self):
        super().__init__()
        self.answers, self.origin = [], None

    def answer(self, request):
        cors = {
            "access-control-allow-origin": self.origin,
            "access-control-expose-headers": "retry-after, x-correlation-id",
        }
        if request.method == "OPTIONS":
            return 204, {**cors, "access-control-allow-headers": "content-type"}, b""
        answer = self.answers.pop(0) if self.answers else reply(ANSWER)
        if callable(answer):
            answer = answer()
        if answer is None:
            return None
        status, headers, body = answer
        return status, {**cors, **headers}, body


def reply(body, status=200, **headers):
    """An answer of the API; a text is sent as it is."""
    data = body if isinstance(body, str) else json.dumps(body)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return status, {"content-type": "application/json", **named}, data.encode()


class Site(Listener):
    """Serves web/page/, site.json and the samples, with the headers of the deployed page."""

    def __init__(self, api):
        super().__init__()
        self.api = api
        self.settings = {
            "title": "What is for sale?",
            "api": api.url,
            "image_size": 112,
            "classes": CLASSES,
            "threshold": 0.5,
            "samples": [{"file": f"samples/{i}.jpg", "alt": f"sample {i}"} for i in (1, 2, 3)],
            "about": "It knows five kinds of things that people sell.",
        }
        api.origin = self.url

    def answer(self, request):
        path = request.path.lstrip("/") or "index.html"
        body = self.content(path)
        if body is None:
            return 404, {"content-type": "text/plain"}, b"not found"
        headers = {
            "content-type": TYPES[path[path.rindex(".") :]],
            "content-security-policy": POLICY.format(api=self.api.url),
            "x-content-type-options": "nosniff",
        }
        return 200, headers, body

    def content(self, path):
        if path == "site.json":
            return self.settings and json.dumps(self.settings).encode()
        if path.startswith("samples/"):
            return encode(noise(60, 80, seed=int(path[8])), "JPEG")
        file = PAGE / path
        return file.read_bytes() if file.is_file() else None
