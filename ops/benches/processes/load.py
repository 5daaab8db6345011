"""The client of the benchmarks, a process of its own: 64 connections, each sending as soon as it is answered.

`python -m ops.benches.processes.load HOST PORT SECONDS ACCOUNTS CHATS` makes signed hooks, of so many
accounts and chats in turn, before its clock starts, posts them, and prints one JSON object: how many were
answered 200, in how many seconds, how many were not.
"""

import asyncio
import json
import sys
import time
from collections.abc import Iterator
from typing import cast

import uvloop

from domain import ids
from ops.benches import samples

CONNECTIONS = 64
RATE_MAX = 14_000


class Asker(asyncio.Protocol):
    """One connection: the next request goes out when the last is answered."""

    def __init__(self, requests: Iterator[bytes], count: dict[str, int], ended: asyncio.Event) -> None:
        self._requests = requests
        self._count = count
        self._ended = ended
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the first request."""
        self._transport = cast("asyncio.WriteTransport", transport)
        self._ask()

    def data_received(self, data: bytes) -> None:
        """Count an answer, which is small enough to come in one piece."""
        if data.startswith(b"HTTP/1.1 200"):
            self._count["good"] += 1
        elif data.startswith(b"HTTP/1.1 "):
            self._count["bad"] += 1
        else:
            return
        self._ask()

    def _ask(self) -> None:
        assert self._transport is not None
        request = next(self._requests, None)
        if request is None:
            self._ended.set()
        elif not self._ended.is_set():
            self._transport.write(request)


def requests(host: str, count: int, accounts: int, chats: int) -> list[bytes]:
    """Whole requests, ready to be written."""
    made = []
    scopes = [
        ids.scope_of("bench", samples.CHANNEL_ID, samples.account(number)) for number in range(accounts)
    ]
    for number in range(count):
        scope = scopes[number % accounts]
        path = f"/kommo/{scope.scope_id}"
        body, signature = samples.hook(number % chats, scope.account)
        made.append(
            b"POST %b HTTP/1.1\r\nHost: %b\r\nContent-Type: application/json\r\nX-Signature: %b\r\n"
            b"Content-Length: %d\r\n\r\n%b"
            % (path.encode(), host.encode(), signature.encode(), len(body), body)
        )
    return made


async def load(host: str, port: int, seconds: float, accounts: int, chats: int) -> dict[str, float]:
    """Send for so many seconds, or until the prepared requests are used up."""
    source = iter(requests(host, int(seconds * RATE_MAX), accounts, chats))
    count, ended = {"good": 0, "bad": 0}, asyncio.Event()
    loop = asyncio.get_running_loop()
    start = time.perf_counter()
    made = [
        await loop.create_connection(lambda: Asker(source, count, ended), host, port)
        for _ in range(CONNECTIONS)
    ]
    try:
        await asyncio.wait_for(ended.wait(), seconds)
    except TimeoutError:
        ended.set()
    took = time.perf_counter() - start
    for transport, _ in made:
        transport.abort()
    return {"good": count["good"], "bad": count["bad"], "seconds": took}


if __name__ == "__main__":
    host, port, seconds, accounts, chats = sys.argv[1:]
    print(json.dumps(uvloop.run(load(host, int(port), float(seconds), int(accounts), int(chats)))))
