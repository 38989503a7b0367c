"""The SageMaker control plane: from a JSON request to a function and back.

The shapes come from botocore's own description of the service, so a request is checked against the
same members, types and bounds that the SDK knows.
"""

import datetime
import json
import logging

import botocore.session
from botocore.model import ServiceModel

from local_cloud import validation
from local_cloud.errors import ServiceError, invalid

TARGET_PREFIX = "SageMaker."
# Operations of this cloud alone, and the service's operation whose shapes they share.
LOCAL_OPERATIONS = {"LocalInterruptTrainingJob": "StopTrainingJob"}
log = logging.getLogger(__name__)


class ControlPlane:
    """Dispatches control-plane requests to the operations of the given services.

    Args:
        services: objects whose `operations` attribute maps an operation's name to a function of
            (params, region) that returns the answer as a dictionary.
    """

    def __init__(self, services):
        self.model = service_model()
        self.operations = {}
        for service in services:
            self.operations.update(service.operations)

    def __call__(self, target, body, region):
        """The answer to one request as JSON bytes.

        Raises:
            ServiceError: the request is malformed, not offered here, or refused by the operation.
        """
        name = target.removeprefix(TARGET_PREFIX)
        function = self.operations.get(name)
        if function is None:
            raise ServiceError(
                "UnknownOperationException",
                f"local_cloud does not offer the SageMaker operation {name!r}.",
            )
        params = self.parse(name, body)
        wire = json.dumps(function(params, region) or {}, default=to_wire)
        self.check_answer(name, wire)
        return wire.encode()

    def parse(self, name, body):
        """The parameters of a request, checked against the service's input shape."""
        try:
            params = json.loads(body or b"{}", parse_constant=refuse_constant)
        except (ValueError, RecursionError):
            raise ServiceError("SerializationException", "The body is not JSON.") from None
        shape = self.model.operation_model(name).input_shape
        try:
            params = validation.parsed(params, shape)
        except validation.WrongType as error:
            raise ServiceError("SerializationException", str(error)) from None
        found = validation.problems(params, shape)
        if found:
            raise invalid(validation.message(found))
        return params

    def check_answer(self, name, wire):
        """Write a line to the server's log where an answer is not what the service promises."""
        shape = self.model.operation_model(name).output_shape
        if shape is None:
            return
        for problem in validation.answer_problems(json.loads(wire), shape):
            log.error("The answer of %s breaks its shape: %s", name, problem)


def refuse_constant(name):
    """`NaN` and `Infinity` are Python's, not JSON's."""
    raise ValueError(name)


def service_model():
    """botocore's description of SageMaker, with the operations of this cloud alone."""
    data = botocore.session.get_session().get_service_data("sagemaker")
    operations = dict(data["operations"])
    for name, like in LOCAL_OPERATIONS.items():
        operations[name] = {**operations[like], "name": name}
    return ServiceModel({**data, "operations": operations}, "sagemaker")


def to_wire(value):
    """JSON form of what is not JSON: times go as seconds since 1970."""
    if isinstance(value, datetime.datetime):
        return value.timestamp()
    raise TypeError(f"{type(value).__name__} cannot be sent.")
