"""Errors that a caller of the API sees."""


class ServiceError(Exception):
    """An answer that is not a result: AWS error code, sentence and HTTP status."""

    def __init__(self, code, message, status=400, **details):
        super().__init__(message)
        self.code = code
        self.message = message
        self.status = status
        self.details = details


def invalid(message):
    """A request that breaks a rule of the service."""
    return ServiceError("ValidationException", message)


class JobFailed(Exception):
    """A job cannot go on; the message becomes its `FailureReason`."""


class CloudError(Exception):
    """A sentence for the person at the command line."""
