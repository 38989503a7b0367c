"""The one server: checks every signature, then hands the request to moto or to SageMaker."""

import io
import json
import logging
import os
import secrets
import signal
import threading

from werkzeug import Request, Response
from werkzeug.serving import make_server

from local_cloud.errors import CloudError, ServiceError
from local_cloud.instance import MARKER, Instance, home_folder, write_instance

# moto adds CORS headers for any web page unless told not to, before it is imported.
os.environ["MOTO_DISABLE_GLOBAL_CORS"] = "true"

from moto.moto_server.werkzeug_app import (  # noqa: E402
    DomainDispatcherApplication,
    MotoRequestHandler,
    create_backend_app,
)

from local_cloud import iam, signature  # noqa: E402
from local_cloud.api import ControlPlane  # noqa: E402
from local_cloud.aws import LocalAws  # noqa: E402
from local_cloud.hosting import Hosting  # noqa: E402
from local_cloud.processing import Processing  # noqa: E402
from local_cloud.store import Store  # noqa: E402
from local_cloud.tags import Tags  # noqa: E402
from local_cloud.training import Training  # noqa: E402
from local_cloud.tuning import Tuning  # noqa: E402

HOST = "127.0.0.1"
MOTO_SERVICES = ("s3", "iam", "sts", "logs")
MAX_BODY = 1 << 30  # 1 GiB; the clients upload larger objects in parts of 8 MiB.
log = logging.getLogger(__name__)


class QuietHandler(MotoRequestHandler):
    """Answers without a log line a request, and keeps connections open between requests."""

    protocol_version = "HTTP/1.1"

    def log_request(self, code="-", size="-"):
        pass


class Cloud:
    """The WSGI application of one instance, and the services behind it."""

    def __init__(self, instance):
        self.instance = instance
        self.moto = DomainDispatcherApplication(create_backend_app)
        aws = LocalAws(instance)
        store = Store()
        training = Training(store, aws)
        self.hosting = Hosting(store, aws)
        services = [training, Tuning(store, aws, training), Processing(store, aws)]
        self.control_plane = ControlPlane([*services, self.hosting, Tags(store)])

    def __call__(self, environ, start_response):
        request = Request(environ)
        request.max_content_length = MAX_BODY
        try:
            answer = self.answer(request, environ)
        except ServiceError as error:
            answer = refusal(request, error)
        except Exception:
            log.exception("%s %s", request.method, request.path)
            answer = refusal(request, ServiceError("InternalFailure", "See server.log.", 500))
        return answer(environ, start_response)

    def answer(self, request, environ):
        """The WSGI response to one request; raises ServiceError where it is refused."""
        body = request.get_data(cache=False)
        raw_path = environ.get("RAW_URI") or environ["REQUEST_URI"]
        caller = signature.check(
            request.method,
            f"http://{request.host}{raw_path}",
            request.headers,
            body,
            self.instance.access_key,
            self.instance.secret_key,
        )
        # The body was read for its signature; whoever answers reads it again.
        environ["wsgi.input"] = io.BytesIO(body)
        environ["CONTENT_LENGTH"] = str(len(body))
        environ.pop("HTTP_TRANSFER_ENCODING", None)
        if caller.service == "sagemaker":
            return self.sagemaker(request, body, caller.region)
        if caller.service not in MOTO_SERVICES:
            raise ServiceError(
                "UnknownOperationException", f"local_cloud does not offer {caller.service!r}."
            )
        if caller.service == "iam":
            form = Request({**environ, "wsgi.input": io.BytesIO(body)}).form
            if form.get("Action") == iam.ACTION:
                status, text = iam.simulate_principal_policy(form)
                return Response(text, status, content_type="text/xml")
        return self.moto

    def sagemaker(self, request, body, region):
        """The answer of SageMaker's control plane or of an endpoint."""
        target = request.headers.get("X-Amz-Target")
        if target:
            answer = self.control_plane(target, body, region)
            return Response(answer, content_type="application/x-amz-json-1.1")
        parts = request.path.strip("/").split("/")
        if len(parts) == 3 and parts[0] == "endpoints" and parts[2] == "invocations":
            return self.hosting.invoke(parts[1], request.headers, body)
        raise ServiceError("UnknownOperationException", f"local_cloud has no {request.path}.", 404)


def refusal(request, error):
    """An error in the form that the caller's protocol expects: XML for query and S3, else JSON."""
    json_client = "X-Amz-Target" in request.headers or "invocations" in request.path
    if json_client or "Authorization" not in request.headers:
        body = {"__type": error.code, "message": error.message, **error.details}
        response = Response(json.dumps(body), error.status, content_type="application/json")
        response.headers["x-amzn-ErrorType"] = error.code
        return response
    body = iam.error(error.code, error.message)
    return Response(body, error.status, content_type="text/xml")


def serve(port, region, work_folder):
    """Run the server until SIGTERM; the clients' credentials are made here and never printed."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    application = ApplicationSlot()
    try:
        server = make_server(HOST, port, application, threaded=True, request_handler=QuietHandler)
    except (OSError, SystemExit) as error:
        raise CloudError(
            f"port {port} on {HOST} is in use; choose another with --port, or 0 for any free one."
        ) from error
    server.daemon_threads = True
    instance = Instance(
        name=os.environ[MARKER],
        url=f"http://{HOST}:{server.server_port}",
        pid=os.getpid(),
        region=region,
        access_key="LOCAL" + secrets.token_hex(8).upper(),
        secret_key=secrets.token_urlsafe(30),
        work_folder=work_folder,
    )
    application.cloud = Cloud(instance)
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    write_instance(home_folder(), instance)
    server.serve_forever(poll_interval=0.1)


class ApplicationSlot:
    """Lets the port be taken before the application, which needs the port's number, is made."""

    cloud = None

    def __call__(self, environ, start_response):
        return self.cloud(environ, start_response)
