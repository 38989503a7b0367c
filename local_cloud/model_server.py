"""Serves one model by the handler contract of AWS's inference toolkit.

Run as a plain script inside an endpoint's container:

    model_server.py MODEL_DIR CODE_DIR PORT_FILE DEFAULTS

It loads `$SAGEMAKER_PROGRAM` (`inference.py`) of the code folder, calls `model_fn` once, then
`input_fn`, `predict_fn` and `output_fn` (or `transform_fn`) for every `POST /invocations`. What the
script leaves out is what the toolkit does by default: `sagemaker_inference` 1.10 where DEFAULTS is
`base`, `sagemaker_pytorch_serving_container` where it is `pytorch`, `sagemaker_sklearn_container`
where it is `scikit-learn`. An exception becomes status 500 or that of the toolkit's own
`BaseInferenceToolkitError`; the body is the message, then the trace.

It listens on a free port of 127.0.0.1, writes the port to PORT_FILE, and answers only to the
endpoint that started it, which knows the token. Imports nothing of this project: its folder is
taken off the path, so that the model's own code finds its own modules.
"""

import sys

sys.path.pop(0)

import contextlib
import hmac
import importlib.util
import inspect
import io
import json
import os
import socketserver
import threading
import traceback
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

JSON, CSV = "application/json", "text/csv"
NPY, NPZ = "application/x-npy", "application/x-npz"
TEXTS = (JSON, CSV)  # What the toolkit decodes as UTF-8 before the handler sees it.
MAX_BODY = 1 << 30  # Bytes; the service's limit for asynchronous requests, the largest there is.


class UnsupportedFormat(Exception):
    """No default handler reads or writes this content type."""

    def __init__(self, content_type):
        super().__init__(
            f"Content type {content_type} is not supported by this framework.\n\nPlease implement "
            "input_fn to read the request or output_fn to write the response."
        )


class RequestProcessor:
    """The part of the model server's context that holds the request's headers."""

    def __init__(self, headers):
        self._headers = headers

    def get_request_properties(self):
        return self._headers


class Context:
    """What a handler with one more parameter gets, as from the model servers in AWS's images.

    Source: `mms/context.py` of multi-model-server, which TorchServe's context follows.
    """

    def __init__(self, headers, model_dir):
        self.system_properties = {
            "model_dir": model_dir,
            "gpu_id": None,
            "batch_size": 1,
            "server_name": "local_cloud",
            "server_version": "1",
        }
        self.request_ids = {0: str(uuid.uuid4())}
        self.request_processor = [RequestProcessor(headers)]
        self.manifest = {}
        self.status = 200
        self.phrase = ""
        self.response_headers = {}
        self._headers = headers

    def get_request_id(self, idx=0):
        return self.request_ids[idx]

    def get_request_header(self, idx, key):
        return self._headers.get(key)

    def get_all_request_header(self, idx):
        return dict(self._headers)

    def get_response_status(self, idx):
        return self.status, self.phrase

    def set_response_status(self, code=200, phrase="", idx=0):
        self.status, self.phrase = int(code), phrase

    def get_response_content_type(self, idx):
        return self.response_headers.get("Content-Type")

    def set_response_content_type(self, idx, value):
        self.response_headers["Content-Type"] = value

    def get_response_headers(self, idx):
        return self.response_headers

    def set_response_header(self, idx, key, value):
        self.response_headers[key] = value


class Defaults:
    """The handlers of `sagemaker_inference.default_inference_handler`."""

    def model_fn(self, model_dir):
        raise NotImplementedError("Please provide a model_fn implementation.")

    def input_fn(self, body, content_type):
        return decode(body, content_type)

    def predict_fn(self, data, model):
        raise NotImplementedError("Please provide a predict_fn implementation.")

    def output_fn(self, prediction, accept):
        kind = negotiate(accept)
        return encode(prediction, kind), kind


class PyTorchDefaults(Defaults):
    """The handlers of `sagemaker_pytorch_serving_container.default_pytorch_inference_handler`."""

    def model_fn(self, model_dir):
        import torch

        path = Path(model_dir) / "model.pt"
        if not path.exists():
            found = [p for p in sorted(Path(model_dir).iterdir()) if p.suffix in (".pt", ".pth")]
            if len(found) != 1:
                names = [p.name for p in found]
                raise ValueError(
                    f"Exactly one .pth or .pt file is required for PyTorch models: {names}"
                )
            path = found[0]
        return torch.jit.load(path, map_location=self.device()).to(self.device())

    def input_fn(self, body, content_type):
        import torch

        array = decode(body, content_type)
        tensor = torch.FloatTensor(array) if content_type in TEXTS else torch.from_numpy(array)
        return tensor.to(self.device())

    def predict_fn(self, data, model):
        import torch

        with torch.no_grad():
            model = model.to(self.device())
            model.eval()
            return model(data.to(self.device()))

    def output_fn(self, prediction, accept):
        import torch

        if isinstance(prediction, torch.Tensor):
            prediction = prediction.detach().cpu().numpy().tolist()
        return encode(prediction, negotiate(accept))

    @staticmethod
    def device():
        import torch

        return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class SklearnDefaults(Defaults):
    """The handlers of `sagemaker_sklearn_container.serving`."""

    def input_fn(self, body, content_type):
        array = decode(body, content_type)
        return array.astype("float32") if content_type in TEXTS else array

    def predict_fn(self, data, model):
        return model.predict(data)


DEFAULTS = {"base": Defaults, "pytorch": PyTorchDefaults, "scikit-learn": SklearnDefaults}


def decode(body, content_type):
    """A request as an array, by the toolkit's decoders; pickled objects are refused."""
    # Imported here: a model without arrays starts in a fraction of the time without it.
    import numpy

    if content_type == JSON:
        return numpy.array(json.loads(body))
    if content_type == CSV:
        return numpy.genfromtxt(io.StringIO(body), dtype=None, delimiter=",")
    if content_type == NPY:
        return numpy.load(io.BytesIO(body), allow_pickle=False)
    if content_type == NPZ:
        import scipy.sparse

        return scipy.sparse.load_npz(io.BytesIO(body))
    raise UnsupportedFormat(content_type)


def encode(prediction, content_type):
    """An answer by the toolkit's encoders."""
    if content_type == JSON:
        return json.dumps(prediction, default=as_list)
    import numpy

    buffer = io.BytesIO()
    if content_type == NPY:
        numpy.save(buffer, prediction)
    else:
        numpy.savetxt(buffer, prediction, delimiter=",", fmt="%s")
    return buffer.getvalue()


def as_list(value):
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


def negotiate(accept):
    """The first content type of an Accept header that there is an encoder for."""
    for kind in accept.replace(" ", "").split(","):
        if kind in (JSON, CSV, NPY):
            return kind
    raise UnsupportedFormat(accept)


class Model:
    """The user's handlers and the model that `model_fn` returned.

    Raises:
        SystemExit: there is no script, and no defaults that could do without.
    """

    def __init__(self, model_dir, code_dir, defaults):
        self.model_dir = model_dir
        self.accept = os.environ.get("SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT", JSON)
        self.defaults = DEFAULTS[defaults]()
        self.script = load_script(Path(code_dir), required=defaults != "pytorch")
        if self.custom("transform_fn") and any(
            self.custom(name) for name in ("input_fn", "predict_fn", "output_fn")
        ):
            raise ValueError(
                "Cannot use transform_fn implementation in conjunction with input_fn, predict_fn, "
                "and/or output_fn implementation"
            )
        self.transform = self.custom("transform_fn") or self.three_steps
        self.model = self.load()

    def custom(self, name):
        return getattr(self.script, name, None)

    def handler(self, name):
        return self.custom(name) or getattr(self.defaults, name)

    def load(self):
        context = Context({}, self.model_dir)
        if self.custom("pre_model_fn"):
            call(self.custom("pre_model_fn"), [self.model_dir], context)
        model = call(self.handler("model_fn"), [self.model_dir], context)
        if self.custom("model_warmup_fn"):
            call(self.custom("model_warmup_fn"), [self.model_dir, model], context)
        return model

    def three_steps(self, model, body, content_type, accept, context):
        data = call(self.handler("input_fn"), [body, content_type], context)
        prediction = call(self.handler("predict_fn"), [data, model], context)
        return call(self.handler("output_fn"), [prediction, accept], context)

    def answer(self, body, context):
        """The body of the answer; status and headers are in the context afterwards."""
        content_type = context.get_request_header(0, "Content-Type")
        accept = context.get_request_header(0, "Accept")
        if not accept or accept == "*/*":
            accept = self.accept
        try:
            if content_type in TEXTS:
                body = body.decode("utf-8")
            result = call(self.transform, [self.model, body, content_type, accept], context)
            result, kind = result if isinstance(result, tuple) else (result, accept)
            context.set_response_content_type(0, kind)
            return as_bytes(result)
        except Exception as error:
            trace = traceback.format_exc()
            print(trace, file=sys.stderr)
            status, message, phrase = failure(error)
            context.set_response_status(status, phrase)
            context.response_headers.pop("Content-Type", None)
            return f"{message}\n{trace}".encode()


def failure(error):
    """Status, message and phrase of an exception: only the toolkit's own errors choose them."""
    toolkit = sys.modules.get("sagemaker_inference.errors")
    if toolkit and isinstance(error, toolkit.BaseInferenceToolkitError):
        return int(error.status_code), error.message, error.phrase
    message = str(error) or "Invalid Request"
    return 500, message, message


def as_bytes(result):
    """What a handler returned as the bytes that the model servers make of it."""
    if isinstance(result, (bytes, bytearray)):
        return bytes(result)
    return (result if isinstance(result, str) else json.dumps(result)).encode()


def load_script(code, required):
    """Import the user's script, with its folder first on the path; None where there is none."""
    program = os.environ.get("SAGEMAKER_PROGRAM", "inference.py")
    script = code / (program if program.endswith(".py") else f"{program}.py")
    if not script.is_file():
        if required:
            raise SystemExit(f"The model has no {code.name}/{script.name}.")
        return None
    sys.path.insert(0, str(code))
    spec = importlib.util.spec_from_file_location(script.stem, script)
    module = importlib.util.module_from_spec(spec)
    sys.modules[script.stem] = module
    spec.loader.exec_module(module)
    return module


def call(function, arguments, context):
    """Call a handler, with the context where it takes exactly one parameter more."""
    count = len(inspect.signature(function).parameters)
    if count == len(arguments):
        return function(*arguments)
    if count == len(arguments) + 1:
        return function(*arguments, context)
    raise TypeError(f"{function.__name__} takes {count} arguments but {len(arguments)} were given.")


def workers():
    """What limits how many requests the handlers see at once.

    The toolkit's `SAGEMAKER_MODEL_SERVER_WORKERS` is a number of processes; here it is a number of
    threads, so that 1 protects handlers that are not safe to call from several.
    """
    count = os.environ.get("SAGEMAKER_MODEL_SERVER_WORKERS")
    return threading.BoundedSemaphore(int(count)) if count else contextlib.nullcontext()


class Handler(BaseHTTPRequestHandler):
    """`GET /ping` and `POST /invocations`, over connections that stay open."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # Else the end of an answer may wait 40 ms for an ACK.
    wbufsize = -1  # Head and body leave together.

    def do_GET(self):
        known = self.path == "/ping"
        if self.is_allowed():
            self.reply(200 if known else 404, b"" if known else b"not found")

    def do_POST(self):
        if not self.is_allowed():
            return
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > MAX_BODY:
            self.close_connection = True  # The body that follows is not read.
            self.reply(413, f"The request needs a Content-Length of at most {MAX_BODY}.".encode())
            return
        body = self.rfile.read(int(length))
        if self.path != "/invocations":
            self.reply(404, b"not found")
            return
        context = Context(self.headers, self.server.model.model_dir)
        with self.server.workers:
            answer = self.server.model.answer(body, context)
        self.reply(context.status, answer, context.response_headers, context.phrase)

    def is_allowed(self):
        sent = self.headers.get("Authorization", "").encode()
        if hmac.compare_digest(sent, f"Bearer {self.server.token}".encode()):
            del self.headers["Authorization"]  # No header that a handler would see on AWS.
            return True
        self.close_connection = True
        self.reply(403, b"forbidden")
        return False

    def reply(self, status, body, headers=None, phrase=None):
        if not 200 <= status <= 599:
            status = 500  # Others have a meaning of their own in HTTP.
        if status in (204, 304):
            body = b""  # These have none; it would be read as the next answer's beginning.
        # A phrase with a line break would begin a header of its own.
        self.send_response(status, " ".join(phrase.split()) if phrase else None)
        for name, value in (headers or {}).items():
            self.send_header(name, " ".join(str(value).split()))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, model, token):
        self.model, self.token, self.workers = model, token, workers()
        super().__init__(("127.0.0.1", 0), Handler)

    def server_bind(self):
        # HTTPServer's own asks the name service for this machine's name, which may take seconds.
        socketserver.TCPServer.server_bind(self)


def main(model_dir, code_dir, port_file, defaults):
    token = os.environ.pop("LOCAL_CLOUD_TOKEN")
    server = Server(Model(model_dir, code_dir, defaults), token)
    draft = Path(f"{port_file}.draft")
    draft.write_text(str(server.server_address[1]))
    draft.replace(port_file)
    server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
