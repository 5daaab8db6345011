"""A burst of signed messages: so many, over so many chats, from 64 connections that send when answered.

`python -m ops.benches.processes.burst HOST PORT SIDE COUNT CHATS` makes hooks of Kommo (SIDE `kommo`) or
actions of a messenger (SIDE `messenger`) before its clock starts, posts them, and prints one JSON object: the
monotonic time in nanoseconds at which it began, the seconds until the last was answered, and how many were
answered 200 and otherwise.
"""

import asyncio
import json
import sys
import time
from collections.abc import Callable, Mapping

import msgspec
import uvloop

from app import clock
from app.messengers import webhook
from ops.benches import samples
from ops.benches.processes.load import CONNECTIONS, Asker

Made = tuple[str, bytes, Mapping[str, str]]
# A service on such a machine takes at least a hundred a second, or something is broken.
RATE_MIN = 100


class Burst(Asker):
    """A connection that misses no answer: one that is closed counts as such."""

    def connection_lost(self, exc: Exception | None) -> None:
        """Count what was not answered."""
        if self._count["good"] + self._count["bad"] < self._count["all"]:
            self._count["bad"] += 1


def hook(chat: int) -> Made:
    """A path of ours, and what Kommo posts there."""
    body, signature = samples.hook(chat)
    return f"/kommo/{samples.LINK.scope_id}", body, {"X-Signature": signature}


def action(chat: int) -> Made:
    """A path of ours, and what a messenger posts there."""
    now = clock.now_ms()
    command = samples.send(f"conv-{chat}", now)
    body = msgspec.json.encode(
        {
            "type": "message.sent",
            "conversation_id": f"conv-{chat}",
            "message_id": command.own_id,
            "at": clock.text(now),
            "sender": {"id": f"u-{chat}", "name": "Ann Example"},
            "message": {"type": "text", "text": command.content.text},
        }
    )
    return "/messengers/bench", body, webhook.signed(samples.MESSENGER_SECRET, command.id, body)


MAKERS: dict[str, Callable[[int], Made]] = {"kommo": hook, "messenger": action}


def request(host: str, made: Made) -> bytes:
    """A whole request, ready to be written."""
    path, body, headers = made
    lines = {"Host": host, "Content-Type": "application/json", **headers, "Content-Length": str(len(body))}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + body


async def burst(host: str, port: int, side: str, count: int, chats: int) -> dict[str, float]:
    """Send all, and wait for the last answer."""
    source = iter([request(host, MAKERS[side](number % chats)) for number in range(count)])
    counts, ended = {"good": 0, "bad": 0, "all": count}, asyncio.Event()
    loop = asyncio.get_running_loop()
    began = time.monotonic_ns()
    for _ in range(CONNECTIONS):
        await loop.create_connection(lambda: Burst(source, counts, ended), host, port)
    ends_at = loop.time() + count / RATE_MIN
    while counts["good"] + counts["bad"] < count and loop.time() < ends_at:  # noqa: ASYNC110
        await asyncio.sleep(0.001)  # The last answers are on their way.
    return {"began": began, "seconds": (time.monotonic_ns() - began) / 1e9, **counts}


if __name__ == "__main__":
    host, port, side, count, chats = sys.argv[1:]
    print(json.dumps(uvloop.run(burst(host, int(port), side, int(count), int(chats)))))
