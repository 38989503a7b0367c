"""The SageMaker control plane: from a JSON request to a function and back.

The shapes come from botocore's own description of the service, so a request is checked against the
same members, types and bounds that the SDK knows.
"""

import datetime
import json
import re

import botocore.session
from botocore.model import ServiceModel
from botocore.validate import ParamValidator

from local_cloud.errors import ServiceError, invalid

TARGET_PREFIX = "SageMaker."
# Operations of this cloud alone, and the service's operation whose shapes they share.
LOCAL_OPERATIONS = {"LocalInterruptTrainingJob": "StopTrainingJob"}


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
        return json.dumps(function(params, region) or {}, default=to_wire).encode()

    def parse(self, name, body):
        """The parameters of a request, checked against the service's input shape."""
        try:
            params = json.loads(body or b"{}")
        except ValueError:
            raise ServiceError("SerializationException", "The body is not JSON.") from None
        if not isinstance(params, dict):
            raise ServiceError("SerializationException", "The body is not a JSON object.")
        shape = self.model.operation_model(name).input_shape
        report = ParamValidator().validate(params, shape)
        if report.has_errors():
            raise invalid(report.generate_report())
        for member, value in params.items():
            self.check_pattern(member, value, shape.members.get(member))
        return params

    @staticmethod
    def check_pattern(member, value, shape):
        """Names must have the form that the service demands (they become paths here)."""
        pattern = getattr(shape, "metadata", {}).get("pattern")
        if pattern and isinstance(value, str) and not re.fullmatch(pattern, value):
            raise invalid(
                f"Value '{value}' at '{member}' failed to satisfy constraint: "
                f"Member must satisfy regular expression pattern: {pattern}"
            )


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
