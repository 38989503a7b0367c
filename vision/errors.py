"""The faults a reader can put right, each told in one sentence."""


class ExpectedError(Exception):
    """A fault outside the program; the message is one sentence with the way out."""


class PictureError(ExpectedError):
    """A picture that is refused.

    `status` is the HTTP status an endpoint answers with: 400 not a readable picture, 413 too
    large, 415 a kind of data that is not accepted.
    """

    def __init__(self, message: str, status: int = 400):
        super().__init__(message)
        self.status = status
