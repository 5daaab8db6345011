"""A Kommo and a messenger that accept everything at once and remember when: the far end of each latency.

`python -m ops.benches.processes.strangers` answers on one free port. `GET /arrived` gives, and forgets, the
id of each message (Kommo's `msgid`, the messenger's `id`) and the monotonic time in nanoseconds at which it
came.
"""

import itertools
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import uvicorn
from msgspec import Struct

arrived: list[tuple[str, int]] = []
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
    elif path.endswith("/connect"):
        channel_id = path.split("/")[-2]
        account = read(body).account_id
        answer = {"account_id": account, "scope_id": f"{channel_id}_{account}"}
    elif path == "/messenger":
        call = read(body)
        arrived.append((call.id, now))
        answer = {"message_id": f"x-{next(numbers)}"}
    else:
        call = read(body)
        arrived.append((call.payload.msgid, now))
        answer = {"new_message": {"msgid": f"k-{next(numbers)}", "ref_id": call.payload.msgid}}
    raw = msgspec.json.encode(answer)
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(raw)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": raw})


def main() -> None:
    """Listen on a free port and say which."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    config = uvicorn.Config(
        app,
        http="httptools",
        loop="uvloop",
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        timeout_keep_alive=75,
    )
    print(f"ready on http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
