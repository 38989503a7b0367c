"""The model servers: one process a container, one or more containers an instance."""

import logging
import secrets
import sys
import threading
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

import urllib3

from local_cloud.aws import LogStream
from local_cloud.container import OPT_ML, Container
from local_cloud.errors import JobFailed
from local_cloud.requirements import are_installed

MODEL_SERVER = Path(__file__).with_name("model_server.py")
STARTUP_TIMEOUT = 600  # Seconds until the first answer to a ping; the toolkit's own default.
STARTUP_VARIABLE = "SAGEMAKER_STARTUP_TIMEOUT"
MAX_PAUSE = 30  # Seconds between two attempts to start a server again that keeps crashing.
MAX_WORDS = 800  # Characters of a FailureReason that quote what the server printed.
POLL = 0.02  # Seconds between two looks at whether a server that starts is ready.
CONNECTIONS = 256  # Kept open to one model server.
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """What a container answered: HTTP status, headers and body."""

    status: int
    headers: dict
    body: bytes
    container: str

    @property
    def content_type(self):
        return self.headers.get("Content-Type")


class NoAnswer(Exception):
    """The model server could not be reached, or ended before it answered."""


class NotReady(NoAnswer):
    """No model server took the request: they are starting again."""


class TimedOut(Exception):
    """The model server did not answer in time."""


def definitions(model):
    """The container definitions of a model's record, in the order in which they are asked."""
    return model.get("Containers") or [model["PrimaryContainer"]]


def model_sources(definition):
    """Where a container's files come from: (an `S3ModelDataSource`, folder below /opt/ml)."""
    found = []
    if definition.get("ModelDataUrl"):
        found.append((archive_source(definition["ModelDataUrl"]), "model"))
    main = definition.get("ModelDataSource", {}).get("S3DataSource")
    if main:
        found.append((main, "model"))
    for source in definition.get("AdditionalModelDataSources", []):
        folder = f"additional-model-data-sources/{source['ChannelName']}"
        found.append((source["S3DataSource"], folder))
    return found


def archive_source(uri):
    """The `S3ModelDataSource` of one gzip-compressed tar archive."""
    return {"S3Uri": uri, "S3DataType": "S3Object", "CompressionType": "Gzip"}


def submitted_code(definition):
    """The S3 address of the source archive in `SAGEMAKER_SUBMIT_DIRECTORY`, or None."""
    directory = definition.get("Environment", {}).get("SAGEMAKER_SUBMIT_DIRECTORY", "")
    return directory if directory.startswith("s3://") else None


def default_handlers(definition):
    """Whose default handlers apply; images are names here, and the name says the framework."""
    image = definition.get("Image", "")
    return next((name for name in ("pytorch", "scikit-learn") if name in image), "base")


class ModelContainer:
    """The model server of one container definition, kept running until it is closed.

    Args:
        definition: a `ContainerDefinition` of CreateModel.
        log_group, stream: where in CloudWatch Logs its lines go.
        name: what error messages call it.
        variables: environment variables besides those of the definition.
        startup_timeout: seconds until it must have answered a ping.
        owner: what follows its name in the reason for a failure.
    """

    def __init__(
        self,
        aws,
        region,
        definition,
        log_group,
        stream,
        name="primary",
        variables=None,
        startup_timeout=STARTUP_TIMEOUT,
        owner="",
    ):
        self.aws, self.region, self.definition, self.name = aws, region, definition, name
        self.variables = {**definition.get("Environment", {}), **(variables or {})}
        own = self.variables.get(STARTUP_VARIABLE, "")
        self.startup_timeout = min(startup_timeout, int(own) if own.isdecimal() else sys.maxsize)
        self.owner = owner
        self.failure = None
        self._log_target = (log_group, stream)
        self._url = None
        self._token = secrets.token_urlsafe(30)
        self._pool = urllib3.PoolManager(maxsize=CONNECTIONS)
        self._container = None
        self._ready_at = None  # When it last began to answer, by the clock of `time.monotonic`.
        self._closing = threading.Event()
        self._settled = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name=stream)

    @property
    def is_ready(self):
        return self._url is not None

    def start(self):
        self._thread.start()

    def wait(self):
        """Wait until the server answers pings.

        Raises:
            JobFailed: it never will; the message says why.
        """
        self._settled.wait()
        if self.failure or self._closing.is_set():
            raise JobFailed(self.failure or "It was deleted while it started.")

    def begin_to_close(self):
        """End the process; `join` waits until nothing of it is left."""
        self._closing.set()
        container = self._container
        if container is not None:
            container.kill()

    def join(self):
        self._thread.join()

    def invoke(self, body, headers, timeout):
        """The `Answer` to one request.

        Args:
            body: the payload as bytes.
            headers: what the container sees of the caller's headers.
            timeout: seconds.

        Raises:
            NotReady: the server is not there.
            NoAnswer: it ended while it worked on this.
            TimedOut: it took longer.
        """
        url = self._url
        if url is None:
            raise NotReady("the model server is starting again")
        sent = {**headers, "Authorization": f"Bearer {self._token}"}
        limits = urllib3.Timeout(connect=5, read=timeout)
        try:
            answer = self._pool.request(
                "POST",
                f"{url}/invocations",
                body=body,
                headers=sent,
                timeout=limits,
                retries=False,
                preload_content=True,
            )
        except urllib3.exceptions.ReadTimeoutError:
            raise TimedOut from None
        except urllib3.exceptions.NewConnectionError as error:  # It has just ended.
            raise NotReady("the model server is starting again") from error
        except urllib3.exceptions.HTTPError as error:
            raise NoAnswer(f"no answer from the model server: {error}") from error
        text = answer.data
        if answer.status >= 300:
            text = self._container.globalize(text.decode("utf-8", "replace")).encode()
        return Answer(answer.status, answer.headers, text, self.name)

    def _new_folder(self):
        """A folder named as the endpoint or the transform job, for this container alone."""
        group, stream = self._log_target
        work = Path(self.aws.instance.work_folder)
        _, found, endpoint = group.partition("/Endpoints/")
        if found:
            return work / "endpoints" / f"{endpoint}-{uuid.uuid4().hex}"
        job = stream.partition("/")[0]
        return work / "jobs" / "TransformJob" / f"{job}-{uuid.uuid4().hex}"

    def _run(self):
        try:
            self._container = Container(self._new_folder(), self.aws, self.region)
            stream = LogStream(self.aws, self.region, *self._log_target)
            try:
                code = self._prepare(stream)
                self._serve(code, stream)
            finally:
                stream.close()
        except JobFailed as error:
            self.failure = str(error)
        except Exception as error:
            if not self._is_over():
                log.exception("model server of %s", self._log_target)
            self.failure = f"InternalFailure: {type(error).__name__}: {error}"
        finally:
            self._url = None
            self._settled.set()
            self._pool.clear()
            if self._container is not None:
                self._container.remove()

    def _prepare(self, stream):
        """Lay out `/opt/ml`, install what the code asks for; return the folder of the code."""
        container = self._container
        for source, folder in model_sources(self.definition):
            self._fetch(source, container.ml / folder)
        model = container.ml / "model"
        model.mkdir(exist_ok=True)
        code = model / "code"
        submitted = submitted_code(self.definition)
        if submitted:
            code = container.ml / "code"
            self._fetch(archive_source(submitted), code)
            self.variables["SAGEMAKER_SUBMIT_DIRECTORY"] = f"{OPT_ML}/code"
        if code.is_dir():
            container.localize_scripts(code)
        container.add_python()
        container.environment.update(
            {name: container.localize(value) for name, value in self.variables.items()}
        )
        container.environment["SM_MODEL_DIR"] = str(model)
        container.environment["LOCAL_CLOUD_TOKEN"] = self._token
        self._install(code / "requirements.txt", stream)
        return code

    def _fetch(self, source, folder):
        """Bring an `S3ModelDataSource` to `folder`; JobFailed where that is not possible."""
        folder.mkdir(parents=True, exist_ok=True)
        if source["CompressionType"] == "Gzip":
            self.aws.download_archive(source["S3Uri"], folder, self._container.root / ".download")
        elif source["S3DataType"] == "S3Object":
            self.aws.download_object(source["S3Uri"], folder)
        else:
            self.aws.download(source["S3Uri"], folder)

    def _install(self, requirements, stream):
        """Install the code's own packages into this container, as the toolkit does."""
        if not requirements.is_file() or are_installed(requirements):
            return
        command = [*self._python(), "-m", "pip", "install", "-r", str(requirements)]
        code = self._container.run(command, requirements.parent, stream.write)
        if code != 0 and not self._closing.is_set():
            raise JobFailed(f"failed to install required packages: {self._last_words()}")

    def _python(self):
        return [str(self._container.root / "python" / "bin" / "python3")]

    def _last_words(self):
        # The end of the output says why; the beginning is what has to go where it is too long.
        return "\n".join(self._container.last_lines)[-MAX_WORDS:] or "it printed nothing"

    def _serve(self, code, stream):
        """Keep the model server running until it is closed.

        Raises:
            JobFailed: it ended before it was ever in service, or did not answer in time then.
        """
        container = self._container
        model, port_file = container.ml / "model", container.root / "port"
        handlers = default_handlers(self.definition)
        command = [*self._python(), str(MODEL_SERVER), str(model), str(code), str(port_file)]
        pause = 0.05
        while not self._is_over():
            port_file.unlink(missing_ok=True)
            self._ready_at = None
            self._run_server([*command, handlers], model, port_file, stream)
            self._url = None
            if self._is_over():
                return
            if not self._settled.is_set():
                raise JobFailed(
                    f"The {self.name} container{self.owner} did not pass the ping health check. "
                    f"Please check CloudWatch logs. Its last lines:\n{self._last_words()}"
                )
            # The service replaces what crashed, too, and the endpoint stays in service meanwhile.
            pause = 0.1 if self._has_served_long() else min(2 * pause, MAX_PAUSE)
            self._closing.wait(pause)

    def _has_served_long(self):
        return self._ready_at is not None and time.monotonic() - self._ready_at > MAX_PAUSE

    def _is_over(self):
        return self._closing.is_set() or self.aws.ending.is_set()

    def _run_server(self, command, cwd, port_file, stream):
        """Run the server's process once, to its end."""
        ended = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(port_file, ended), daemon=True)
        watcher.start()
        try:
            self._container.run(command, cwd, stream.write)
        finally:
            ended.set()
            watcher.join()

    def _watch(self, port_file, ended):
        """Wait until the server answers pings; end it where it does not in time."""
        deadline = time.monotonic() + self.startup_timeout
        while time.monotonic() < deadline:
            if ended.wait(POLL) or self._closing.is_set():
                return
            if port_file.exists():
                url = f"http://127.0.0.1:{port_file.read_text()}"
                if self._pings(url):
                    self._url, self._ready_at = url, time.monotonic()
                    self._settled.set()
                    return
        self._container.last_lines.append(
            f"No answer to a ping within {self.startup_timeout} s of its start."
        )
        self._container.end_process()

    def _pings(self, url):
        headers = {"Authorization": f"Bearer {self._token}"}
        try:
            answer = self._pool.request(
                "GET", f"{url}/ping", headers=headers, timeout=2, retries=False
            )
        except urllib3.exceptions.HTTPError:
            return False
        return answer.status == 200


class ServingInstance:
    """One instance: the containers of a model, asked one after the other.

    Args:
        containers: `ModelContainer`s in order.
    """

    def __init__(self, containers):
        self.containers = containers
        self._in_flight = 0
        self._idle = threading.Condition()

    @property
    def is_ready(self):
        return all(container.is_ready for container in self.containers)

    @property
    def in_flight(self):
        return self._in_flight

    def start(self):
        for container in self.containers:
            container.start()

    def wait(self):
        """Wait until every container answers; JobFailed where one never will."""
        for container in self.containers:
            container.wait()

    def enter(self):
        with self._idle:
            self._in_flight += 1

    def leave(self):
        with self._idle:
            self._in_flight -= 1
            self._idle.notify_all()

    def invoke(self, body, headers, timeout, only=None):
        """Pass a request through the containers; the `Answer` of the last, or of one that refuses.

        Args:
            only: the host name of the one container to ask, in the execution mode `Direct`.
        """
        *others, last = [c for c in self.containers if only in (None, c.name)]
        for container in others:
            sent = {name: value for name, value in headers.items() if name != "Accept"}
            answer = container.invoke(body, sent, timeout)
            if answer.status >= 300:
                return answer
            body = answer.body
            headers = {**headers, "Content-Type": answer.content_type or "application/json"}
        return last.invoke(body, headers, timeout)

    def drain(self, timeout):
        """Wait until nobody waits for an answer of this instance, at most `timeout` seconds."""
        with self._idle:
            self._idle.wait_for(lambda: self._in_flight == 0, timeout)

    def close(self):
        """End every process and wait until their folders are gone."""
        for container in self.containers:
            container.begin_to_close()
        for container in self.containers:
            container.join()


def make_instance(aws, region, model, log_group, stream_prefix, **options):
    """A `ServingInstance` for a model's record, not started yet.

    Args:
        stream_prefix: its lines go to `<stream_prefix>/<instance>`; a pipeline's containers add
            their host names.
        options: further arguments of `ModelContainer`.
    """
    stream = f"{stream_prefix}/i-{uuid.uuid4().hex[:17]}"
    containers = definitions(model)
    if len(containers) == 1:
        name = containers[0].get("ContainerHostname", "primary")
        return ServingInstance(
            [ModelContainer(aws, region, containers[0], log_group, stream, name, **options)]
        )
    names = [d.get("ContainerHostname", f"container-{n}") for n, d in enumerate(containers, 1)]
    return ServingInstance(
        [
            ModelContainer(aws, region, d, log_group, f"{stream}/{name}", name, **options)
            for d, name in zip(containers, names)
        ]
    )
