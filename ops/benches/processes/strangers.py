"""A Kommo and a messenger that accept everything and remember when: the far end of each latency.

`python -m ops.benches.processes.strangers [SECONDS]` answers on one free port: at once, or each push after so
many seconds. `GET /arrived` gives, and forgets, the id of each message (Kommo's `msgid`, the messenger's
`id`) and the monotonic time in nanoseconds at which it came. `GET /counted` gives how many have been answered
since then, the time of the last answer, and how many of those that wait so long were in flight at most.
"""

import asyncio
import itertools
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from msgspec import Struct

from ops.benches.processes.server import serve

DELAY_SECONDS = float(sys.argv[1]) if len(sys.argv) > 1 else 0.0
arrived: list[tuple[str, int]] = []
answered = [0, 0]  # how many, and when the last was
in_flight = [0, 0]  # pushes now, and at most
numbers = itertools.count()
Ask = Callable[[], Awaitable[dict[str, Any]]]
Tell = Callable[[dict[str, Any]], Awaitable[None]]


class _Payload(Struct, frozen=True):
    msgid: str = ""


class _Call(Struct):
    id: str = ""
    payload: _Payload = _Payload()
    scope_id: str = ""
    account_id: str = ""


read = msgspec.json.Decoder(_Call).decode


async def app(scope: dict[str, Any], receive: Ask, send: Tell) -> None:
    """ASGI 3."""
    now = time.monotonic_ns()
    path = scope["path"]
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    answer: object
    if path == "/arrived":
        answer = list(arrived)
        arrived.clear()
        answered[:], in_flight[1] = [0, 0], 0
    elif path == "/counted":
        answer = [*answered, in_flight[1]]
    elif path.endswith("/connect"):
        channel_id = path.split("/")[-2]
        account = read(body).account_id
        answer = {"account_id": account, "scope_id": f"{channel_id}_{account}"}
    elif path.endswith("/history"):
        answer = {"messages": []}
    elif path == "/messenger":
        call = read(body)
        arrived.append((call.id, now))
        answer = {"message_id": f"x-{next(numbers)}"}
        await _answer_later()
    else:
        call = read(body)
        arrived.append((call.payload.msgid, now))
        answer = {"new_message": {"msgid": f"k-{next(numbers)}", "ref_id": call.payload.msgid}}
        await _answer_later()
    raw = msgspec.json.encode(answer)
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(raw)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": raw})


async def _answer_later() -> None:
    if DELAY_SECONDS:
        in_flight[:] = in_flight[0] + 1, max(in_flight[1], in_flight[0] + 1)
        await asyncio.sleep(DELAY_SECONDS)
        in_flight[0] -= 1
    answered[:] = [answered[0] + 1, time.monotonic_ns()]


def main() -> None:
    """Listen on a free port and say which."""
    serve(app)


if __name__ == "__main__":
    main()
