import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from studio import weights
from vision import models


@pytest.fixture
def server():
    """The address of an HTTP server that knows one file, /there."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(200 if self.path == "/there" else 404)
            self.end_headers()

        def log_message(self, *args):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(("path", "has"), [("/there", True), ("/gone", False)])
def test_weights_are_at_hand_where_the_server_has_them(monkeypatch, server, path, has):
    monkeypatch.setattr(models, "weights_source", lambda name: (server + path, Path("nowhere")))
    assert weights.at_hand(["resnet18", "resnet50"]) is has


def test_weights_in_the_cache_need_no_server(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(weights, "_answers", lambda url: False)
    url, file = models.weights_source("resnet50")
    assert url.startswith("https://download.pytorch.org/")
    assert weights.at_hand(["resnet50"]) is False
    file.parent.mkdir(parents=True)
    file.touch()
    assert weights.at_hand(["resnet50"]) is True
    assert weights.at_hand(["resnet50", "resnet18"]) is False


def test_a_server_that_says_nothing_is_not_waited_for(monkeypatch):
    end = threading.Event()

    def silent(*args, **kwargs):
        end.wait(60)
        raise OSError

    monkeypatch.setattr(weights, "PATIENCE", 0.1)
    monkeypatch.setattr(weights.urllib.request, "urlopen", silent)
    assert weights.at_hand(["resnet18"]) is False
    end.set()
