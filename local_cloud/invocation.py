"""The runtime API: InvokeEndpoint and InvokeEndpointAsync."""

import json
import re
import time
import uuid

from werkzeug import Response
from werkzeug.datastructures import Headers

from local_cloud import ACCOUNT_ID
from local_cloud.asynchronous import TIME_TO_LIVE, TIMEOUT, AsyncRequest, locations
from local_cloud.endpoint import ENDPOINT, UnknownVariant
from local_cloud.errors import ServiceError
from local_cloud.serving import NoAnswer, NotReady, TimedOut, definitions
from local_cloud.variants import LOG_GROUP

MAX_BODY = 6_291_456  # Bytes; of botocore's model of the service.
MAX_SERVERLESS_BODY = 4 << 20
MAX_ASYNC_BODY = 128_000  # Bytes of a payload inside the request itself.
PREFIX = "X-Amzn-SageMaker-"
ATTRIBUTES = f"{PREFIX}Custom-Attributes"
# The service's own bounds, by botocore's model: header and most characters.
BOUNDS = {
    ATTRIBUTES: 1024,
    f"{PREFIX}Inference-Id": 64,
    f"{PREFIX}Target-Variant": 63,
    "Accept": 1024,
    "Content-Type": 1024,
}
NOT_OFFERED = {
    f"{PREFIX}Target-Model": "multi-model endpoints",
    f"{PREFIX}Inference-Component": "inference components",
    f"{PREFIX}Enable-Explanations": "explanations",
    f"{PREFIX}Session-Id": "stateful sessions",
}
S3_URI = re.compile(r"s3://[^/]+/.+")


def refused(message):
    """The runtime's word for a request that breaks a rule."""
    return ServiceError("ValidationError", message)


class Runtime:
    """Answers the requests to all endpoints of one `Hosting`."""

    def __init__(self, store, endpoints):
        self.store, self.endpoints = store, endpoints
        self.operations = {
            "invocations": self.invoke,
            "async-invocations": self.invoke_async,
            "invocations-response-stream": self.invoke_stream,
        }

    def __call__(self, operation, name, headers, body):
        """The response to `POST /endpoints/<name>/<operation>`; None for an unknown operation."""
        function = self.operations.get(operation)
        if function is None:
            return None
        check_headers(headers)
        return function(self.endpoint(name), headers, body)

    def endpoint(self, name):
        """The running endpoint of this name.

        Raises:
            ServiceError: there is none, or it does not serve yet or any more.
        """
        endpoint = self.endpoints.get(name)
        if endpoint is not None and endpoint.is_live:
            return endpoint
        if not self.store.has(ENDPOINT, name):
            raise refused(f"Endpoint {name} of account {ACCOUNT_ID} not found.")
        status = self.store.get(ENDPOINT, name)["EndpointStatus"]
        raise refused(f"Endpoint {name} is in status {status}; it must be InService.")

    def invoke(self, endpoint, headers, body):
        if endpoint.queue is not None:
            raise refused(
                f"Endpoint {endpoint.name} is asynchronous: it takes InvokeEndpointAsync only."
            )
        if len(body) > MAX_BODY:
            raise ServiceError("413", f"HTTP content length exceeded {MAX_BODY} bytes.", 413)
        sent = {name: headers[name] for name in ("Content-Type", "Accept") if name in headers}
        answer, variant = ask(endpoint, headers, sent, body)
        response = Response(answer.body, 200, content_type=answer.content_type)
        response.headers["x-Amzn-Invoked-Production-Variant"] = variant.name
        if ATTRIBUTES in answer.headers:
            response.headers[ATTRIBUTES] = answer.headers[ATTRIBUTES]
        return response

    def invoke_async(self, endpoint, headers, body):
        queue = endpoint.queue
        if queue is None:
            raise refused(f"Endpoint {endpoint.name} is not asynchronous.")
        source = headers.get(f"{PREFIX}InputLocation")
        if not source:
            source = inline_payload(body)
        elif not S3_URI.fullmatch(source):
            # An https address is never fetched, whatever the service's pattern says.
            raise refused(f"InputLocation must be an s3:// address; {source!r} is not.")
        output, failure = locations(
            queue.config, headers.get(f"{PREFIX}S3OutputPathExtension"), filename(headers)
        )
        sent = {
            name: headers[PREFIX + name]
            for name in ("Content-Type", "Accept")
            if PREFIX + name in headers
        }
        request = AsyncRequest(
            source,
            sent,
            seconds(headers, "InvocationTimeoutSeconds", TIMEOUT),
            time.monotonic() + seconds(headers, "RequestTTLSeconds", TIME_TO_LIVE),
            output,
            failure,
        )
        known = Headers(headers)  # The request's own are gone when it is carried out.

        def answer(payload, request):
            found, _ = ask(endpoint, known, request.headers, payload, request.timeout, strict=False)
            return found

        queue.put(request, answer)
        inference_id = headers.get(f"{PREFIX}Inference-Id") or str(uuid.uuid4())
        text = json.dumps({"InferenceId": inference_id})
        response = Response(text, 202, content_type="application/json")
        response.headers[f"{PREFIX}OutputLocation"] = output
        if failure:
            response.headers[f"{PREFIX}FailureLocation"] = failure
        return response

    def invoke_stream(self, endpoint, headers, body):
        raise refused(
            "local_cloud does not stream answers, because the inference toolkit does not either: "
            "call InvokeEndpoint."
        )


def check_headers(headers):
    """Refuse what is longer than the service allows, or asks for what is not offered here."""
    for name, bound in BOUNDS.items():
        if len(headers.get(name, "")) > bound:
            raise refused(f"{name} has more than {bound} characters.")
    for name, words in NOT_OFFERED.items():
        if headers.get(name):
            raise refused(f"local_cloud does not offer {words}.")


def inline_payload(body):
    if not body:
        raise refused("The request needs an InputLocation or a Body.")
    if len(body) > MAX_ASYNC_BODY:
        raise ServiceError("413", f"HTTP content length exceeded {MAX_ASYNC_BODY} bytes.", 413)
    return body


def filename(headers):
    name = headers.get(f"{PREFIX}Filename")
    if name and not re.fullmatch(r"(?!.*\..*\.)[a-zA-Z0-9][\w.-]{0,31}", name):
        raise refused(f"{name!r} is no valid Filename.")
    return name


def seconds(headers, name, default):
    value = headers.get(PREFIX + name)
    if value is None:
        return default
    if not value.isdecimal() or int(value) < 1:
        raise refused(f"{name} must be a number of seconds.")
    return int(value)


def ask(endpoint, headers, sent, body, timeout=None, strict=True):
    """Pass one request to an instance of the endpoint.

    Args:
        headers: the caller's headers, any case.
        sent: content type and accepted types, as the container will see them.
        timeout: seconds; None for the limits of real-time requests.
        strict: whether the container's refusal, and that none is ready, are a ModelError.

    Returns:
        (`Answer`, the `Variant` that gave it).

    Raises:
        NotReady: no instance is ready, where that is no ModelError.
        ServiceError: ModelError, with the container's own status and message.
    """
    attributes = headers.get(ATTRIBUTES)
    if attributes:
        sent = {**sent, ATTRIBUTES: attributes}
    log_group = f"{LOG_GROUP}/{endpoint.name}"
    container = "primary"
    try:
        with endpoint.borrow(headers.get(f"{PREFIX}Target-Variant")) as borrowed:
            deployment, variant, instance = borrowed
            if variant.serverless and len(body) > MAX_SERVERLESS_BODY:
                raise refused(f"Request {uuid.uuid4()} has oversize body.")
            container = instance.containers[-1].name
            only = target_container(headers, variant.model)
            answer = instance.invoke(body, sent, timeout or deployment.timeout(variant), only)
            if answer.status < 300 and deployment.capture is not None:
                deployment.capture.offer(
                    variant.name,
                    (body, sent.get("Content-Type")),
                    (answer.body, answer.content_type),
                    headers,
                )
    except UnknownVariant as error:
        raise refused(unknown_variant(endpoint, error)) from None
    except TimedOut:
        words = (
            f"Your invocation timed out while waiting for a response from container {container}. "
            "Review the latency metrics for each container in Amazon CloudWatch, resolve the "
            "issue, and try again."
        )
        raise model_error(0, container, words, endpoint.region, log_group) from None
    except NoAnswer as error:
        if isinstance(error, NotReady) and not strict:
            raise
        raise model_error(500, container, str(error), endpoint.region, log_group) from error
    if strict and answer.status >= 300:
        words = answer.body.decode("utf-8", "replace")
        raise model_error(answer.status, answer.container, words, endpoint.region, log_group)
    return answer, variant


def target_container(headers, model):
    """The host name of the one container to ask; None where a request passes through all."""
    name = headers.get(f"{PREFIX}Target-Container-Hostname")
    mode = model.get("InferenceExecutionConfig", {}).get("Mode", "Serial")
    if mode != "Direct":
        if name:
            raise refused("TargetContainerHostname needs a model of the execution mode Direct.")
        return None
    names = [definition["ContainerHostname"] for definition in definitions(model)]
    if name not in names:
        given = f"{name!r} is not" if name else "it is missing"
        raise refused(
            f"In the execution mode Direct TargetContainerHostname must be one of "
            f"{', '.join(names)}; {given}."
        )
    return name


def unknown_variant(endpoint, error):
    if error.args[0]:
        return f"Variant {error.args[0]} of endpoint {endpoint.name} not found."
    return f"No variant of endpoint {endpoint.name} has a weight above 0."


def model_error(status, container, message, region, log_group):
    """The service's error for what went wrong inside a container."""
    kind = "client" if 400 <= status < 500 else "server"
    return ServiceError(
        "ModelError",
        f'Received {kind} error ({status}) from {container} with message "{message}". '
        f"See {log_group} in CloudWatch Logs for more information.",
        status=424,
        OriginalStatusCode=status,
        OriginalMessage=message,
        LogStreamArn=f"arn:aws:logs:{region}:{ACCOUNT_ID}:log-group:{log_group}",
    )
