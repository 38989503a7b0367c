"""Models, endpoint configurations and endpoints: one model server process an endpoint."""

import json
import secrets
import shutil
import threading
import time
import uuid
from pathlib import Path

import urllib3
from werkzeug import Response

from local_cloud.aws import LogStream, unpack
from local_cloud.container import Container
from local_cloud.errors import JobFailed, ServiceError, invalid
from local_cloud.store import arn, now, page

MODEL, CONFIG, ENDPOINT = "Model", "EndpointConfig", "Endpoint"
MODEL_SERVER = Path(__file__).with_name("model_server.py")
STARTUP_TIMEOUT = 120  # Seconds until the first answer to a ping.
INVOCATION_TIMEOUT = 60  # Seconds; the service's own limit for a container.
LOG_GROUP = "/aws/sagemaker/Endpoints"
MAX_REASON = 1024


class Hosting:
    """The operations on models, endpoint configurations and endpoints."""

    def __init__(self, store, aws):
        self.store, self.aws = store, aws
        self.endpoints = {}
        self.operations = {
            "CreateModel": self.create_model,
            "DescribeModel": lambda p, _: self.store.get(MODEL, p["ModelName"]),
            "ListModels": self.list_models,
            "DeleteModel": lambda p, _: self.delete(MODEL, p["ModelName"]),
            "CreateEndpointConfig": self.create_config,
            "DescribeEndpointConfig": lambda p, _: self.store.get(CONFIG, p["EndpointConfigName"]),
            "ListEndpointConfigs": self.list_configs,
            "DeleteEndpointConfig": lambda p, _: self.delete(CONFIG, p["EndpointConfigName"]),
            "CreateEndpoint": self.create_endpoint,
            "DescribeEndpoint": lambda p, _: self.store.get(ENDPOINT, p["EndpointName"]),
            "ListEndpoints": self.list_endpoints,
            "DeleteEndpoint": self.delete_endpoint,
        }

    def keep(self, kind, name, arn_kind, params, region, **fields):
        """Store a new record made of the request and `fields`."""
        record = {key: value for key, value in params.items() if key != "Tags"}
        record.update({f"{kind}Arn": arn(region, arn_kind, name), "CreationTime": now(), **fields})
        self.store.add(kind, name, record)
        self.store.set_tags(record[f"{kind}Arn"], params.get("Tags"))
        return {f"{kind}Arn": record[f"{kind}Arn"]}

    def delete(self, kind, name):
        self.store.remove(kind, name)

    def create_model(self, params, region):
        containers = params.get("Containers") or [params.get("PrimaryContainer")]
        if len(containers) != 1 or containers[0] is None:
            raise invalid("local_cloud serves models of exactly one container.")
        if not model_data(containers[0]):
            raise invalid("local_cloud serves models with ModelDataUrl or ModelDataSource.")
        return self.keep(MODEL, params["ModelName"], "model", params, region)

    def create_config(self, params, region):
        variants = params["ProductionVariants"]
        if len(variants) != 1:
            raise invalid("local_cloud serves endpoints of exactly one production variant.")
        self.store.get(MODEL, variants[0]["ModelName"])
        name = params["EndpointConfigName"]
        return self.keep(CONFIG, name, "endpoint-config", params, region)

    def create_endpoint(self, params, region):
        name = params["EndpointName"]
        config = self.store.get(CONFIG, params["EndpointConfigName"])
        variant = config["ProductionVariants"][0]
        model = self.store.get(MODEL, variant["ModelName"])
        container = (model.get("Containers") or [model.get("PrimaryContainer")])[0]
        answer = self.keep(
            ENDPOINT,
            name,
            "endpoint",
            params,
            region,
            EndpointStatus="Creating",
            LastModifiedTime=now(),
            ProductionVariants=[
                {
                    "VariantName": variant["VariantName"],
                    "CurrentWeight": 1.0,
                    "DesiredWeight": 1.0,
                    "CurrentInstanceCount": 1,
                    "DesiredInstanceCount": 1,
                }
            ],
        )
        endpoint = Endpoint(self.store, self.aws, name, region, variant, container)
        self.endpoints[name] = endpoint
        endpoint.start()
        return answer

    def delete_endpoint(self, params, region):
        name = params["EndpointName"]
        message = f"Endpoint {name} is in status {{status}} already."
        self.store.begin(ENDPOINT, name, "Deleting", ("Deleting",), message)
        endpoint = self.endpoints.pop(name)
        endpoint.close(lambda: self.store.remove(ENDPOINT, name))

    def list_models(self, params, region):
        fields = ("ModelName", "ModelArn", "CreationTime")
        return listing("Models", *page(self.store.all(MODEL), params, "ModelName", None, fields))

    def list_configs(self, params, region):
        fields = ("EndpointConfigName", "EndpointConfigArn", "CreationTime")
        records = self.store.all(CONFIG)
        return listing(
            "EndpointConfigs", *page(records, params, "EndpointConfigName", None, fields)
        )

    def list_endpoints(self, params, region):
        fields = ("EndpointName", "EndpointArn", "CreationTime", "LastModifiedTime")
        fields += ("EndpointStatus",)
        names = ("EndpointName", "EndpointStatus")
        return listing("Endpoints", *page(self.store.all(ENDPOINT), params, *names, fields))

    def invoke(self, name, headers, body):
        """The response of InvokeEndpoint."""
        if not self.store.has(ENDPOINT, name):
            raise invalid(f"Endpoint {name} of account not found.")
        status = self.store.get(ENDPOINT, name)["EndpointStatus"]
        endpoint = self.endpoints.get(name)
        if status != "InService" or endpoint is None:
            raise invalid(f"Endpoint {name} is in status {status}; it must be InService.")
        return endpoint.invoke(headers, body)


def listing(name, summaries, token):
    return {name: summaries, **({"NextToken": token} if token else {})}


def model_data(container):
    """The S3 address of a container's model, or None."""
    source = container.get("ModelDataSource", {}).get("S3DataSource", {})
    return container.get("ModelDataUrl") or source.get("S3Uri")


class Endpoint:
    """The model server of one endpoint and the thread that keeps it running."""

    def __init__(self, store, aws, name, region, variant, definition):
        self.store, self.aws, self.name, self.region = store, aws, name, region
        self.variant, self.definition = variant["VariantName"], definition
        self.closing = threading.Event()
        self.container = None
        self.url = None
        self.token = secrets.token_urlsafe(30)
        self.pool = urllib3.PoolManager(maxsize=32)
        self.stream_name = f"{self.variant}/i-{uuid.uuid4().hex[:17]}"
        self._thread = threading.Thread(target=self._run, daemon=True, name=name)

    def start(self):
        self._thread.start()

    def close(self, after):
        """End the server, then call `after`."""
        self.closing.set()
        if self.container is not None:
            self.container.kill()

        def wait():
            self._thread.join()
            after()

        threading.Thread(target=wait, daemon=True).start()

    def _run(self):
        root = Path(self.aws.instance.work_folder) / "endpoints" / uuid.uuid4().hex
        try:
            self.container = Container(root, self.aws, self.region)
            self.prepare()
            self.serve()
        except Exception as error:
            words = str(error) if isinstance(error, JobFailed) else f"InternalFailure: {error!r}"
            fields = {"EndpointStatus": "Failed", "FailureReason": words[:MAX_REASON]}
            if not self.closing.is_set():
                self.store.change(ENDPOINT, self.name, **fields)
        finally:
            if self.container is not None:
                self.container.remove()

    def prepare(self):
        """Bring the model to `/opt/ml/model` and set the variables that its code may read."""
        container = self.container
        model = container.ml / "model"
        model.mkdir()
        download = container.root / "download"
        self.aws.download(model_data(self.definition), download)
        for path in list(download.iterdir()):
            if path.name.endswith(".tar.gz"):
                unpack(path, model)
            else:
                shutil.move(path, model / path.name)
        container.add_python()
        environment = self.definition.get("Environment", {})
        container.environment.update({k: container.localize(v) for k, v in environment.items()})
        container.environment["SM_MODEL_DIR"] = str(model)
        container.environment["LOCAL_CLOUD_TOKEN"] = self.token

    def serve(self):
        """Keep the model server running until the endpoint is deleted.

        Raises:
            JobFailed: it ended, or did not answer, before it was ever in service.
        """
        stream = LogStream(self.aws, self.region, f"{LOG_GROUP}/{self.name}", self.stream_name)
        port_file = self.container.root / "port"
        python = self.container.root / "python" / "bin" / "python3"
        command = [str(python), str(MODEL_SERVER), str(self.container.ml / "model"), str(port_file)]
        try:
            while not self.closing.is_set():
                port_file.unlink(missing_ok=True)
                ended = threading.Event()
                watcher = threading.Thread(target=self.watch, args=(port_file, ended), daemon=True)
                watcher.start()
                try:
                    self.container.run(command, self.container.ml / "model", stream.write)
                finally:
                    ended.set()
                    watcher.join()
                self.url, was_in_service = None, self.url is not None
                if not was_in_service and not self.closing.is_set():
                    words = "\n".join(self.container.last_lines) or "it printed nothing"
                    raise JobFailed(f"The model server did not start: {words}")
        finally:
            stream.close()

    def watch(self, port_file, ended):
        """Wait until the server answers pings; end it where it does not in time.

        Args:
            port_file: where the server writes its port.
            ended: set when the server's process has ended.
        """
        deadline = time.monotonic() + STARTUP_TIMEOUT
        while time.monotonic() < deadline and not self.closing.is_set():
            if ended.wait(0.05):
                return
            if port_file.exists():
                url = f"http://127.0.0.1:{port_file.read_text()}"
                if self.pings(url):
                    self.url = url
                    self.store.change(ENDPOINT, self.name, EndpointStatus="InService")
                    return
        self.container.kill()

    def pings(self, url):
        try:
            answer = self.pool.request(
                "GET", f"{url}/ping", headers=self.credentials(), timeout=2, retries=False
            )
        except urllib3.exceptions.HTTPError:
            return False
        return answer.status == 200

    def credentials(self):
        return {"Authorization": f"Bearer {self.token}"}

    def invoke(self, headers, body):
        """Pass one request to the model server and its answer back.

        Raises:
            ServiceError: ModelError with the server's own status and message where it is not 2xx.
        """
        sent = self.credentials()
        sent["Content-Type"] = headers.get("Content-Type", "application/json")
        if "Accept" in headers:
            sent["Accept"] = headers["Accept"]
        attributes = headers.get("X-Amzn-SageMaker-Custom-Attributes")
        if attributes:
            sent["X-Amzn-SageMaker-Custom-Attributes"] = attributes
        url = self.url
        try:
            if url is None:
                raise urllib3.exceptions.HTTPError("the model server is starting again")
            answer = self.pool.request(
                "POST",
                f"{url}/invocations",
                body=body,
                headers=sent,
                timeout=urllib3.Timeout(connect=2, read=INVOCATION_TIMEOUT),
                retries=False,
            )
        except urllib3.exceptions.HTTPError as error:
            raise self.model_error(500, f"no answer from the model server: {error}") from error
        if answer.status >= 300:
            raise self.model_error(answer.status, answer.data.decode("utf-8", "replace"))
        response = Response(answer.data, 200, content_type=answer.headers.get("Content-Type"))
        response.headers["x-Amzn-Invoked-Production-Variant"] = self.variant
        return response

    def model_error(self, status, message):
        kind = "client" if status < 500 else "server"
        log_group = f"{LOG_GROUP}/{self.name}"
        return ServiceError(
            "ModelError",
            f"Received {kind} error ({status}) from {self.variant} with message "
            f"{json.dumps(message)}. See {log_group} in CloudWatch Logs for more information.",
            status=424,
            OriginalStatusCode=status,
            OriginalMessage=message,
            LogStreamArn=f"arn:aws:logs:{self.region}:*:log-group:{log_group}",
        )
