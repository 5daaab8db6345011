"""Answers leave the sandbox by its rules, by an ordered fault, or not at all."""

from asyncio import BaseTransport, sleep
from collections.abc import Callable
from typing import Any, cast
from urllib.parse import urlsplit

import msgspec
from litestar import Request, Response
from litestar.datastructures import State
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ops.sandbox.errors import Impossible
from ops.sandbox.faults import Fault
from ops.sandbox.world import World

Call = Request[Any, Any, State]
Answer = tuple[int, bytes]

HTML = b"<!doctype html><title>Blocked</title><h1>Too many requests from your address</h1>"
TITLES = {
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    422: "Unprocessable Content",
}


class Protocol(HttpToolsProtocol):
    """Allows an answer to be withheld by cutting its connection."""

    def on_message_begin(self) -> None:
        """Make the connection available to the route that answers the request."""
        super().on_message_begin()
        self.scope["state"]["transport"] = self.transport


def sandbox_of(request: Call) -> World:
    """The sandbox that serves this request."""
    return cast(World, request.app.state.sandbox)


def headers_of(request: Call) -> dict[str, str]:
    """The headers by lower-case name."""
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in request.scope["headers"]}


def same_origin(request: Call) -> None:
    """Refuses orders from pages of other sites."""
    origin = request.headers.get("origin")
    if origin and urlsplit(origin).netloc != request.headers.get("host", ""):
        raise Impossible(403, "orders are taken from the sandbox's own pages only")


def json(status: int, content: object) -> Response[bytes]:
    """An answer of JSON; without content the body is empty."""
    body = msgspec.json.encode(content) if content else b""
    return Response(body, status_code=status, media_type="application/json")


async def behave(request: Call, fault: Fault | None, work: Callable[[], Response[bytes]]) -> Response[bytes]:
    """Do the work and answer, unless a fault forbids it; `slow` and the `_after` faults do the work first."""
    if fault is None:
        return work()
    if fault.action == "drop":
        return await _cut(request)
    if fault.action == "html":
        return _page(fault)
    if fault.is_status:
        return failure(fault)
    answer = work()
    if fault.action == "drop_after":
        return await _cut(request)
    if fault.action == "html_after":
        return _page(fault)
    await sleep(fault.seconds)
    return answer


def failure(fault: Fault) -> Response[bytes]:
    """The ordered status, with its Retry-After and body."""
    status = int(fault.action)
    body = fault.body or {
        "error_code": status,
        "error_type": "ordered",
        "error_description": f"this {status} was ordered by POST /control/faults",
    }
    answer = json(status, body)
    if fault.retry_after is not None:
        answer.headers["Retry-After"] = f"{fault.retry_after:g}"
    return answer


def _page(fault: Fault) -> Response[bytes]:
    """The page of a firewall (403) or gateway (502, 504) in place of the application's answer."""
    return Response(HTML, status_code=fault.status, media_type="text/html")


async def _cut(request: Call) -> Response[bytes]:
    transport: BaseTransport = request.scope["state"]["transport"]
    transport.abort()  # type: ignore[attr-defined]  # every stream transport has it
    await sleep(0.01)
    return Response(b"")
