"""A Kommo and a messenger that accept everything and remember what came, in order: the far end of a cluster.

`python -m ops.benches.cluster.strangers PORT`. `GET /arrived?after=N` gives what came after the first N. A
repeat of an id gets the answer that the first one got.
"""

import itertools
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from msgspec import Struct

from ops.benches.processes.server import serve

Ask = Callable[[], Awaitable[dict[str, Any]]]
Tell = Callable[[dict[str, Any]], Awaitable[None]]


class Arrival(Struct, frozen=True, array_like=True):
    """A message that came to `side`: our id for it, its text, and the monotonic clock, in seconds."""

    side: str
    id: str
    text: str
    at: float


class _Message(Struct, frozen=True):
    text: str = ""


class _Payload(Struct, frozen=True):
    msgid: str = ""
    message: _Message = _Message()


class _Call(Struct, frozen=True):
    id: str = ""
    message: _Message = _Message()
    payload: _Payload = _Payload()
    account_id: str = ""


arrived: list[Arrival] = []
names: dict[str, str] = {}
numbers = itertools.count(1)
read = msgspec.json.Decoder(_Call).decode


async def app(scope: dict[str, Any], receive: Ask, send: Tell) -> None:
    """ASGI 3."""
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    raw = msgspec.json.encode(answer(scope["path"], scope["query_string"], body))
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(raw)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": raw})


def answer(path: str, query: bytes, body: bytes) -> object:
    """What a call is answered."""
    if path == "/arrived":
        return arrived[int(query.partition(b"=")[2]) :]
    call = read(body)
    if path.endswith("/connect"):
        channel_id = path.split("/")[-2]
        return {"account_id": call.account_id, "scope_id": f"{channel_id}_{call.account_id}"}
    if path == "/messenger":
        return {"message_id": take("messenger", call.id, call.message.text)}
    name = take("kommo", call.payload.msgid, call.payload.message.text)
    return {"new_message": {"msgid": name, "ref_id": call.payload.msgid}}


def take(side: str, own_id: str, text: str) -> str:
    """Remember a message; returns the name that it has there."""
    arrived.append(Arrival(side, own_id, text, time.monotonic()))
    return names.setdefault(f"{side} {own_id}", f"{side[0]}-{next(numbers)}")


def main() -> None:
    """Listen."""
    serve(app, int(sys.argv[1]))


if __name__ == "__main__":
    main()
