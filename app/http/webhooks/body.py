"""DOC"""

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, TypeAlias

from msgspec import Struct

from app import problems
from app.problems import ProblemError

Message: TypeAlias = MutableMapping[str, Any]  # ASGI's own shape
Receive: TypeAlias = Callable[[], Awaitable[Message]]
BODY_BYTES_MAX = 256 * 1024
LARGE = f"a body holds at most {BODY_BYTES_MAX // 1024} KB: send less"
COMPRESSED = "the body is compressed: send it as it is"

RETRY_AFTER_SECONDS = 1
UNSIGNED = "the signature is missing or wrong: sign the exact bytes of the body with the channel's secret"
BUSY = "the ledger cannot take it now: send it again"


class Answer(Struct, frozen=True):
    """A response: status, headers and body."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = {}


OK = Answer(200)


class HangUp(Exception):
    """The client went away before its body was complete."""


async def read(headers: dict[bytes, bytes], receive: Receive) -> bytes:
    """The body, as far as the limit; raises ProblemError (413, 415) and HangUp."""
    if headers.get(b"content-encoding", b"").strip().lower() not in (b"", b"identity"):
        raise ProblemError(415, COMPRESSED)
    length = headers.get(b"content-length", b"0")
    if length.isdigit() and int(length) > BODY_BYTES_MAX:
        raise ProblemError(413, LARGE)
    message = await receive()
    body: bytes = message.get("body", b"")
    while message.get("more_body"):
        message = await receive()
        body += message.get("body", b"")
        if len(body) > BODY_BYTES_MAX:
            raise ProblemError(413, LARGE)
    if message["type"] == "http.disconnect":
        raise HangUp
    if len(body) > BODY_BYTES_MAX:
        raise ProblemError(413, LARGE)
    return body


def as_text(headers: Mapping[bytes, bytes]) -> dict[str, str]:
    """Headers as texts: ASGI gives their names in lower case, and their values as bytes."""
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in headers.items()}


def refuse(wrong: ProblemError) -> Answer:
    """A problem as an answer."""
    headers = {"Content-Type": problems.MEDIA_TYPE, **wrong.headers}
    return Answer(wrong.status, problems.encode(wrong.problem), headers)
