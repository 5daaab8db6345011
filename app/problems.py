"""Errors as RFC 9457 problem details: each says what is wrong and what to do."""

import msgspec
from msgspec import Struct

BODY_BYTES_MAX = 1024 * 1024
OURS = "something went wrong on our side: look at the log"
MEDIA_TYPE = "application/problem+json"
TITLES = {
    400: "Bad request",
    401: "Not signed in",
    403: "Forbidden",
    404: "Not found",
    405: "Method not allowed",
    408: "Too slow",
    409: "Conflict",
    413: "Too large",
    415: "Unsupported media type",
    422: "Cannot be done",
    429: "Too many",
    431: "Too large",
    500: "Our fault",
    502: "The other side refused",
    503: "Not now",
    507: "No room",
}


class Fault(Struct, frozen=True):
    """One thing wrong with a body: where, as a JSON path, and what to do."""

    path: str
    message: str


class Problem(Struct, frozen=True, omit_defaults=True):
    """The body of an error. `type` is `about:blank`: the status and the detail say it all.

    `retry_after` is in seconds, as the header of the same name, which the actions of an array have not.
    """

    title: str
    status: int
    detail: str
    errors: list[Fault] = []
    position: int | None = None
    retry_after: int | None = None
    type: str = msgspec.field(default="about:blank")


class ProblemError(Exception):
    """A request that is answered with a problem."""

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        errors: list[Fault] | None = None,
        position: int | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.retry_after = retry_after
        title = TITLES.get(status, "Error")
        self.problem = Problem(title, status, detail, errors or [], position, retry_after)

    @property
    def headers(self) -> dict[str, str]:
        """Retry-After (seconds) where waiting helps."""
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}


def plain(problem: Problem) -> dict[str, object]:
    """The problem as a plain object, its type written out."""
    return {"type": problem.type, **msgspec.to_builtins(problem)}


def encode(problem: Problem) -> bytes:
    """The problem as JSON."""
    return msgspec.json.encode(plain(problem))
