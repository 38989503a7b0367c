"""One endpoint: its present deployment, the next one while it is updated, and its requests."""

import contextlib
import logging
import threading

from local_cloud import data_capture
from local_cloud.asynchronous import AsyncQueue
from local_cloud.data_capture import DataCapture
from local_cloud.errors import JobFailed
from local_cloud.jobs import MAX_REASON
from local_cloud.serving import NoAnswer, definitions
from local_cloud.store import now
from local_cloud.variants import Variant, choose, in_parallel

ENDPOINT = "Endpoint"
INVOCATION_TIMEOUT = 60  # Seconds; the service's own limit for a real-time answer.
TIMEOUT_VARIABLES = ("SAGEMAKER_MODEL_SERVER_TIMEOUT", "SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS")
log = logging.getLogger(__name__)


class UnknownVariant(Exception):
    """No variant has the name that the request targets, or none has any weight."""


class Deployment:
    """The running variants of one endpoint configuration.

    Args:
        snapshot: the records that it is made of, as at its creation: `Config`, and `Models` by
            name. The endpoint goes on even where they are deleted meanwhile.
        shares: {variant name: (number of instances, weight)}.
    """

    def __init__(self, aws, region, endpoint_name, snapshot, shares):
        self.aws, self.endpoint_name, self.snapshot = aws, endpoint_name, snapshot
        self.config = snapshot["Config"]
        self.variants = {}
        for definition in self.config["ProductionVariants"]:
            name, model = definition["VariantName"], snapshot["Models"][definition["ModelName"]]
            self.variants[name] = Variant(
                aws, region, endpoint_name, definition, model, *shares[name]
            )
        self.capture = None

    def start(self):
        """Start every instance and wait until all answer.

        Raises:
            JobFailed: one of them never will; the others are closed again.
        """
        for instance in self.instances():
            instance.start()
        try:
            for instance in self.instances():
                instance.wait()
        except BaseException:
            in_parallel(lambda instance: instance.close(), self.instances())
            raise
        if data_capture.is_enabled(self.config.get("DataCaptureConfig")):
            capture = self.config["DataCaptureConfig"]
            self.capture = DataCapture(self.aws, self.endpoint_name, capture)

    def instances(self):
        return [instance for variant in self.variants.values() for instance in variant.instances]

    def begin_to_close(self):
        for instance in self.instances():
            for container in instance.containers:
                container.begin_to_close()

    def close(self, drain=0):
        """End every instance, after `drain` seconds at most for the requests that it works on."""

        def end(instance):
            instance.drain(drain)
            instance.close()

        in_parallel(end, self.instances())
        if self.capture is not None:
            self.capture.close()

    def choose(self, target):
        """The variant for the next request; UnknownVariant where there is none."""
        variant = self.variants.get(target) if target else choose(self.variants.values())
        if variant is None:
            raise UnknownVariant(target)
        return variant

    def fields(self):
        """What DescribeEndpoint shows of this deployment once it is in service."""
        shown = {
            "EndpointConfigName": self.config["EndpointConfigName"],
            "ProductionVariants": self.summaries(),
            "Deployment": self.snapshot,
        }
        if "DataCaptureConfig" in self.config:
            shown["DataCaptureConfig"] = data_capture.summary(self.config["DataCaptureConfig"])
        if "AsyncInferenceConfig" in self.config:
            shown["AsyncInferenceConfig"] = self.config["AsyncInferenceConfig"]
        return shown

    def summaries(self, status=None):
        return [variant.summary(status) for variant in self.variants.values()]

    def timeout(self, variant):
        """Seconds that a real-time request may take: the service's limit or the model's own."""
        limits = [INVOCATION_TIMEOUT]
        for definition in definitions(variant.model):
            environment = definition.get("Environment", {})
            values = [environment.get(name, "") for name in TIMEOUT_VARIABLES]
            limits += [int(value) for value in values if value.isdecimal()]
        return min(limits)


class Endpoint:
    """Carries out what happens to one endpoint, and answers its requests.

    Every change runs in a thread of its own; the status in the store admits one at a time.
    """

    def __init__(self, store, aws, name, region):
        self.store, self.aws, self.name, self.region = store, aws, name, region
        self.queue = None
        self._lock = threading.Lock()  # Who is asked, and who serves, change together.
        self._live = None
        self._starting = None
        self._threads = []

    @property
    def is_live(self):
        return self._live is not None

    def make_deployment(self, snapshot, shares):
        return Deployment(self.aws, self.region, self.name, snapshot, shares)

    def create(self, deployment):
        """Bring the first deployment into service."""
        self._starting = deployment
        self._in_background(self._create, deployment)

    def update(self, deployment):
        """Replace the live deployment by another, which answers before the old one ends."""
        self._starting = deployment
        self._in_background(self._update, deployment)

    def scale(self, shares):
        """Change weights and numbers of instances; `shares` as of `Deployment`."""
        self._in_background(self._scale, shares)

    def close(self, after):
        """End everything, then call `after`."""
        threading.Thread(target=self._close, args=(after,), daemon=True).start()

    @contextlib.contextmanager
    def borrow(self, target=None):
        """The deployment, variant and instance for one request, kept alive meanwhile.

        Raises:
            NoAnswer: the endpoint is being deleted.
            NotReady: no instance answers just now.
            ServiceError: ThrottlingException.
            UnknownVariant: nobody has this name.
        """
        with self._lock:
            deployment = self._live
            if deployment is None:
                raise NoAnswer("the endpoint is being deleted")
            variant = deployment.choose(target)
            instance = variant.next_instance()
            instance.enter()
        try:
            yield deployment, variant, instance
        finally:
            instance.leave()

    def _in_background(self, function, argument):
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        thread = threading.Thread(target=function, args=(argument,), daemon=True, name=self.name)
        self._threads.append(thread)
        thread.start()

    def _start(self, deployment):
        """Start a deployment; None, or why it could not be started."""
        try:
            deployment.start()
        except Exception as error:
            return reason_of(error)
        finally:
            self._starting = None
        return None

    def _create(self, deployment):
        failure = self._start(deployment)
        if failure:
            self._change(EndpointStatus="Failed", FailureReason=failure)
            return
        self._switch(deployment)
        self._change(EndpointStatus="InService", **deployment.fields())

    def _update(self, deployment):
        failure = self._start(deployment)
        if failure:
            # As on AWS: the old deployment has answered all along, and goes on.
            self._change(EndpointStatus="InService", FailureReason=failure)
            return
        old = self._switch(deployment)
        self._change(EndpointStatus="InService", **deployment.fields())
        old.close(drain=INVOCATION_TIMEOUT)

    def _scale(self, shares):
        deployment = self._live
        added = {}
        for name, (count, _) in shares.items():
            variant = deployment.variants[name]
            missing = max(0, count - len(variant.instances))
            added[name] = [variant.make_instance() for _ in range(missing)]
        fresh = [instance for instances in added.values() for instance in instances]
        for instance in fresh:
            instance.start()
        try:
            for instance in fresh:
                instance.wait()
        except Exception as error:
            in_parallel(lambda instance: instance.close(), fresh)
            variants = deployment.summaries()
            failure = reason_of(error)
            self._change(
                EndpointStatus="InService", FailureReason=failure, ProductionVariants=variants
            )
            return
        surplus = self._apply(deployment, shares, added)
        self._change(EndpointStatus="InService", ProductionVariants=deployment.summaries())
        for instance in surplus:
            instance.drain(INVOCATION_TIMEOUT)
            instance.close()

    def _apply(self, deployment, shares, added):
        """Give the variants their new instances and weights; return the instances left over."""
        surplus = []
        with self._lock:
            for name, (count, weight) in shares.items():
                variant = deployment.variants[name]
                instances = variant.instances + added[name]
                variant.instances, variant.weight = instances[:count], weight
                surplus += instances[count:]
            if self.queue is not None:
                self.queue.resize(len(deployment.instances()))
        return surplus

    def _switch(self, deployment):
        """Let the next request go to `deployment`; return the one that answered until now."""
        config = deployment.config.get("AsyncInferenceConfig")
        with self._lock:
            old, self._live = self._live, deployment
            # What waits in an old queue is still answered, by the new deployment.
            count = len(deployment.instances())
            self.queue = AsyncQueue(self.aws, self, config, count) if config else None
        return old

    def _change(self, **fields):
        """Bring the record up to date, unless the endpoint is being deleted."""

        def edit(record):
            if record["EndpointStatus"] == "Deleting":
                return
            record.pop("PendingDeploymentSummary", None)
            record.pop("FailureReason", None)
            if "EndpointConfigName" in fields:
                for optional in ("DataCaptureConfig", "AsyncInferenceConfig"):
                    record.pop(optional, None)
            record.update(fields)

        self.store.edit(ENDPOINT, self.name, edit)

    def _close(self, after):
        with self._lock:
            live, self._live = self._live, None
            queue, self.queue = self.queue, None
        if queue is not None:
            queue.cancel()
        starting = self._starting
        if starting is not None:
            starting.begin_to_close()
        for thread in self._threads:
            thread.join()
        # What was starting may have gone live since; nobody else changes it any more.
        for deployment in (live, self._live):
            if deployment is not None:
                deployment.close()
        after()


def reason_of(error):
    """The FailureReason for an exception."""
    if not isinstance(error, JobFailed):
        log.error("endpoint", exc_info=error)
        error = f"InternalFailure: {type(error).__name__}: {error}"
    return str(error)[:MAX_REASON]


def pending(deployment):
    """The `PendingDeploymentSummary` of DescribeEndpoint while `deployment` starts."""
    return {
        "EndpointConfigName": deployment.config["EndpointConfigName"],
        "ProductionVariants": deployment.summaries("Creating"),
        "StartTime": now(),
    }
