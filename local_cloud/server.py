"""The one server: checks every signature, then hands the request to moto or to SageMaker."""

import io
import json
import logging
import os
import secrets
import signal
import sqlite3
import threading
import time

from werkzeug import Request, Response
from werkzeug.exceptions import RequestEntityTooLarge

from local_cloud.errors import ServiceError
from local_cloud.instance import (
    DEFAULTS,
    HOST,
    MARKER,
    STATE,
    Instance,
    end_processes,
    home_folder,
    is_forgotten,
    processes_of,
    remove_tree,
    write_instance,
)
from local_cloud.listener import BODY_READ, ApplicationSlot, KeepAlive, make_server

# moto adds CORS headers for any web page unless told not to, before it is imported.
os.environ["MOTO_DISABLE_GLOBAL_CORS"] = "true"
# AWS's own policies, such as AmazonSageMakerFullAccess; moto reads them in 0.1 s.
os.environ["MOTO_IAM_LOAD_MANAGED_POLICIES"] = "true"

from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    MotoRequestHandler,
    create_backend_app,
)

from local_cloud import iam, presigned, signature
from local_cloud.api import ControlPlane
from local_cloud.aws import LocalAws
from local_cloud.disk import Disk
from local_cloud.hosting import Hosting
from local_cloud.mirror import Mirror, form_of
from local_cloud.processing import Processing
from local_cloud.store import Store
from local_cloud.tags import Tags
from local_cloud.training import Training
from local_cloud.transform import Transform
from local_cloud.tuning import Tuning

MOTO_SERVICES = ("s3", "iam", "sts", "logs")
MAX_BODY = 1 << 30  # 1 GiB; the clients upload larger objects in parts of 8 MiB.
MAX_STRANGE_BODY = 1 << 20  # Of requests that do not even name the access key.
HOME_SECONDS = 2  # Between two looks at whether the home is still there.
log = logging.getLogger(__name__)


class KeepAliveHandler(KeepAlive, MotoRequestHandler):
    """Keeps connections open, and the names of S3's headers as they were written."""


class Cloud:
    """The WSGI application of one instance, and the services behind it."""

    def __init__(self, instance, disk):
        self.instance = instance
        self.moto = DomainDispatcherApplication(create_backend_app)
        self.mirror = Mirror(disk, self.moto, instance.region)
        self.aws = aws = LocalAws(instance)
        self.store = store = Store(disk)
        training = Training(store, aws)
        self.hosting = Hosting(store, aws)
        self.services = [training, Tuning(store, aws, training), Processing(store, aws)]
        self.services += [self.hosting, Transform(store, aws)]
        self.control_plane = ControlPlane([*self.services, Tags(store)])

    def restore(self):
        """Bring back what an earlier server kept on the disk, and say of every job how it ended."""
        iam.make_role()
        self.mirror.restore()
        for service in self.services:
            service.recover()

    def halt(self):
        """Let what runs be ended without a trace in the records, and without a restart."""
        self.store.freeze()
        self.aws.ending.set()

    def __call__(self, environ, start_response):
        request = Request(environ)
        key = self.instance.access_key
        known = signature.names_key(request.headers, key) or presigned.names_key(request.args, key)
        request.max_content_length = MAX_BODY if known else MAX_STRANGE_BODY
        try:
            answer = self.answer(request, environ)
        except ServiceError as error:
            answer = refusal(request, error)
        except RequestEntityTooLarge:
            limit = request.max_content_length
            error = ServiceError("RequestTooLarge", f"The body is over {limit} bytes.", 413)
            answer = refusal(request, error)
        except sqlite3.Error as error:
            words = f"local_cloud cannot write to its state folder: {error}"
            answer = refusal(request, ServiceError("InternalFailure", words, 500))
        except Exception:
            log.exception("%s %s", request.method, request.path)
            answer = refusal(request, ServiceError("InternalFailure", "See server.log.", 500))
        return answer(environ, start_response)

    def answer(self, request, environ):
        """The WSGI response to one request; raises ServiceError where it is refused."""
        body = request.get_data(cache=False)
        environ[BODY_READ] = True
        raw_path = environ.get("RAW_URI") or environ["REQUEST_URI"]
        sent = (request.method, f"http://{request.host}{raw_path}", request.headers)
        keys = (self.instance.access_key, self.instance.secret_key)
        if "Authorization" in request.headers:
            caller = signature.check(*sent, body, *keys)
        else:
            caller = presigned.check(*sent, *keys)
        # The body was read for its signature; whoever answers reads it again.
        environ["wsgi.input"] = io.BytesIO(body)
        environ["CONTENT_LENGTH"] = str(len(body))
        environ.pop("HTTP_TRANSFER_ENCODING", None)
        # moto goes by this header, which a presigned address lacks.
        environ.setdefault("HTTP_AUTHORIZATION", caller.authorization)
        if caller.service == "sagemaker":
            return self.sagemaker(request, body, caller.region)
        if caller.service not in MOTO_SERVICES:
            raise ServiceError(
                "UnknownOperationException", f"local_cloud does not offer {caller.service!r}."
            )
        if caller.service in ("iam", "sts"):
            form = form_of(request, body)
            operation = iam.OPERATIONS.get(form.get("Action"))
            if operation:
                status, text = operation(form)
                return Response(text, status, content_type="text/xml")
        response = Response.from_app(self.moto, environ)
        if response.status_code < 300:
            self.mirror.record(caller, request, body)
            if caller.service == "sts":
                response.set_data(iam.with_own_keys(response.get_data(as_text=True), self.instance))
        return response

    def sagemaker(self, request, body, region):
        """The answer of SageMaker's control plane or of an endpoint."""
        target = request.headers.get("X-Amz-Target")
        if target:
            answer = self.control_plane(target, body, region)
            return Response(answer, content_type="application/x-amz-json-1.1")
        parts = request.path.strip("/").split("/")
        if len(parts) == 3 and parts[0] == "endpoints":
            answer = self.hosting.runtime(parts[2], parts[1], request.headers, body)
            if answer is not None:
                return answer
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
    server = make_server(port, application, KeepAliveHandler)
    disk = Disk(home_folder() / STATE)
    instance = Instance(
        name=os.environ[MARKER],
        url=f"http://{HOST}:{server.port}",
        pid=os.getpid(),
        region=region,
        access_key="LOCAL" + secrets.token_hex(8).upper(),
        secret_key=secrets.token_urlsafe(30),
        work_folder=work_folder,
        defaults_file=str(home_folder() / DEFAULTS),
    )
    application.app = cloud = Cloud(instance, disk)
    cloud.restore()
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    write_instance(home_folder(), instance)
    threading.Thread(target=shut_down_once_forgotten, args=(server, instance), daemon=True).start()
    server.serve_forever(poll_interval=0.1)
    cloud.halt()
    # `stop` does this, too; a plain SIGTERM must not leave the jobs behind either.
    end_processes([p for p in processes_of(instance.name) if p.pid != instance.pid], grace=2)
    remove_tree(work_folder)
    disk.close()
    # The interpreter would take moto's thousands of classes down one by one, while `stop` waits.
    os._exit(0)


def shut_down_once_forgotten(server, instance):
    """End the server when its home is removed: no `stop` could find it any more."""
    while not is_forgotten(home_folder(), instance):
        time.sleep(HOME_SECONDS)
    server.shutdown()
