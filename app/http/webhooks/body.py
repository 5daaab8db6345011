"""A webhook's body is read within its limits, and its answer is written; no framework takes part."""

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, TypeAlias

from msgspec import Struct

from app import problems
from app.problems import ProblemError

Message: TypeAlias = MutableMapping[str, Any]  # ASGI's own shape
Receive: TypeAlias = Callable[[], Awaitable[Message]]
BODY_BYTES_MAX = 256 * 1024
LARGE = f"a body holds at most {BODY_BYTES_MAX // 1024} KB: send less"
COMPRESSED = "the body is compressed: send it as it is, without Content-Encoding"
CHARSET = "the body is in another charset: send UTF-8"
CHARSETS = {b"utf-8", b"utf8", b"us-ascii", b"ascii"}
# Headers that prove who sends: a second one would make it unclear what was proven.
ONCE = (
    b"authorization",
    b"content-encoding",
    b"content-type",
    b"webhook-id",
    b"webhook-signature",
    b"webhook-timestamp",
    b"x-signature",
)

RETRY_AFTER_SECONDS = 1
UNSIGNED = "the signature is missing or wrong: sign the exact bytes of the body with the channel's secret"
BUSY = "the ledger cannot take it now: send it again"


class Answer(Struct, frozen=True):
    """A response: status, headers and body."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = {}


OK = Answer(200)


class WrongSignature(ProblemError):
    """A request whose signature is missing or wrong."""

    def __init__(self, status: int) -> None:
        super().__init__(status, UNSIGNED)


class HangUp(Exception):
    """The client went away before its body was complete."""


def headers_of(scope: Mapping[str, Any]) -> dict[bytes, bytes]:
    """The headers of a request; raises ProblemError (400) if one that counts stands there twice."""
    listed: list[tuple[bytes, bytes]] = scope["headers"]
    headers = dict(listed)
    if len(headers) != len(listed):
        names = [name for name, _ in listed]
        for name in ONCE:
            if names.count(name) > 1:
                raise ProblemError(400, f"there are several headers {name.decode()}: send one")
    return headers


def check_encoding(headers: Mapping[bytes, bytes]) -> None:
    """A body is sent as it is, not compressed; raises ProblemError (415)."""
    encoding = headers.get(b"content-encoding")
    if encoding and not {one.strip() for one in encoding.lower().split(b",")} <= {b"", b"identity"}:
        raise ProblemError(415, COMPRESSED)


def check_charset(headers: Mapping[bytes, bytes]) -> None:
    """A text is in UTF-8; raises ProblemError (415)."""
    kind = headers.get(b"content-type", b"").lower()
    if b"charset" in kind:
        for parameter in kind.split(b";")[1:]:
            name, _, value = parameter.partition(b"=")
            if name.strip() == b"charset" and value.strip(b" \t\"'") not in CHARSETS:
                raise ProblemError(415, CHARSET)


async def read(headers: dict[bytes, bytes], receive: Receive) -> bytes:
    """The body, as far as the limit; raises ProblemError (413, 415) and HangUp."""
    check_encoding(headers)
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
