"""Serves one model by the handler contract of AWS's inference toolkit.

Run as a plain script inside an endpoint's container: `model_server.py MODEL_DIR PORT_FILE`. It
loads `code/inference.py` (or `$SAGEMAKER_PROGRAM`) of the model folder, calls `model_fn` once, then
`input_fn`, `predict_fn` and `output_fn` (or `transform_fn`) for every `POST /invocations`. It
listens on a free port of 127.0.0.1, writes the port to PORT_FILE, and answers only to the endpoint
that started it, which knows the token.

Imports nothing of this project: its folder is taken off the path, so that the model's own code
finds its own modules.
"""

import hmac
import importlib.util
import inspect
import io
import json
import logging
import os
import sys
import traceback
from pathlib import Path

sys.path.pop(0)

from werkzeug import Request, Response
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.serving import WSGIRequestHandler, make_server

JSON = "application/json"
MAX_BODY = 64 << 20  # Bytes; a bound for this machine's memory, far above the service's limit.


class Context:
    """What a handler with one more parameter gets, as from the toolkit's own servers."""

    def __init__(self, headers, model_dir):
        self.system_properties = {"model_dir": model_dir, "gpu_id": None}
        self.status = 200
        self.content_type = None
        self._headers = headers

    def set_response_status(self, code=200, phrase="", idx=0):
        self.status = code

    def set_response_content_type(self, idx, value):
        self.content_type = value

    def get_request_header(self, idx, key):
        return self._headers.get(key)

    def get_all_request_header(self, idx):
        return dict(self._headers)


class Model:
    """The user's handlers and the model that `model_fn` returned."""

    def __init__(self, model_dir):
        self.model_dir = model_dir
        self.handlers = load_handlers(Path(model_dir) / "code")
        context = Context({}, model_dir)
        self.model = call(self.handler("model_fn", None), [model_dir], context)

    def handler(self, name, default):
        function = getattr(self.handlers, name, default)
        if function is None:
            raise SystemExit(f"{self.handlers.__file__} does not define {name}.")
        return function

    def answer(self, body, content_type, accept, context):
        """The body of the answer and its content type."""
        if content_type.startswith((JSON, "text/")):
            body = body.decode("utf-8")
        transform = getattr(self.handlers, "transform_fn", None)
        if transform:
            result = call(transform, [self.model, body, content_type, accept], context)
        else:
            data = call(self.handler("input_fn", decode), [body, content_type], context)
            prediction = call(self.handler("predict_fn", apply), [data, self.model], context)
            result = call(self.handler("output_fn", encode), [prediction, accept], context)
        if isinstance(result, tuple):
            return result
        return result, context.content_type or accept


def load_handlers(code):
    """Import the user's script, with its folder first on the path."""
    script = code / os.environ.get("SAGEMAKER_PROGRAM", "inference.py")
    if not script.is_file():
        raise SystemExit(f"The model has no {script.relative_to(code.parent)}.")
    sys.path.insert(0, str(code))
    spec = importlib.util.spec_from_file_location(script.stem, script)
    module = importlib.util.module_from_spec(spec)
    sys.modules[script.stem] = module
    spec.loader.exec_module(module)
    return module


def call(function, arguments, context):
    """Call a handler, with the context where it takes one parameter more."""
    takes_context = len(inspect.signature(function).parameters) > len(arguments)
    return function(*arguments, context) if takes_context else function(*arguments)


def decode(body, content_type):
    """Default `input_fn`: JSON, CSV and NPY, as in the toolkit."""
    if content_type.startswith(JSON):
        return json.loads(body)
    import numpy

    if content_type.startswith("text/csv"):
        return numpy.genfromtxt(io.StringIO(body), delimiter=",")
    if content_type.startswith("application/x-npy"):
        return numpy.load(io.BytesIO(body), allow_pickle=False)
    raise ValueError(f"no input_fn for content type {content_type!r}")


def apply(data, model):
    """Default `predict_fn`: call the model."""
    return model(data)


def encode(prediction, accept):
    """Default `output_fn`: JSON."""
    return json.dumps(prediction.tolist() if hasattr(prediction, "tolist") else prediction)


class Application:
    """The WSGI application: `GET /ping` and `POST /invocations`."""

    def __init__(self, model, token):
        self.model, self.token = model, token

    def __call__(self, environ, start_response):
        request = Request(environ)
        request.max_content_length = MAX_BODY
        return self.respond(request)(environ, start_response)

    def respond(self, request):
        sent = request.headers.get("Authorization", "").encode()
        if not hmac.compare_digest(sent, f"Bearer {self.token}".encode()):
            return Response("forbidden", 403)
        if request.path == "/ping":
            return Response("", 200)
        if request.path != "/invocations" or request.method != "POST":
            return Response("not found", 404)
        return self.invoke(request)

    def invoke(self, request):
        context = Context(request.headers, self.model.model_dir)
        accept = request.headers.get("Accept", "*/*")
        try:
            body = request.get_data()
        except RequestEntityTooLarge:
            return Response(f"The request is over {MAX_BODY} bytes.", 413)
        try:
            body, content_type = self.model.answer(
                body,
                request.headers.get("Content-Type", JSON),
                JSON if accept == "*/*" else accept,
                context,
            )
        except Exception as error:
            # The trace goes to the log; the caller gets what AWS's toolkit calls the message.
            traceback.print_exc()
            return Response(str(error), getattr(error, "status_code", 500))
        return Response(body, context.status, content_type=content_type)


class Handler(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_request(self, code="-", size="-"):
        pass


def main(model_dir, port_file):
    token = os.environ.pop("LOCAL_CLOUD_TOKEN")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = make_server(
        "127.0.0.1", 0, Application(Model(model_dir), token), threaded=True, request_handler=Handler
    )
    draft = Path(f"{port_file}.draft")
    draft.write_text(str(server.server_port))
    draft.replace(port_file)
    server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
