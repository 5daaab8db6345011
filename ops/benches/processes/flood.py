"""A messenger at full speed: connections that each post as soon as they are answered, whatever the answer.

`python -m ops.benches.processes.flood URL CHANNEL SECRET CONNECTIONS ACTIONS SECONDS` makes signed bodies of
so many actions before its clock starts, posts them, and prints one JSON object: how many actions were
answered 200, how many were refused (429 and 503), and in how many seconds.
"""

import asyncio
import json
import sys
import time
from collections.abc import Iterator

import aiohttp
import uvloop

from app import clock
from app.messengers import webhook
from ops.benches import samples

CHATS = 200
# What no service on such a machine takes: of messages in arrays, and of bodies of one.
RATE_MAX, SINGLES_MAX = 20_000, 4_000


def bodies(secret: str, actions: int, count: int) -> Iterator[tuple[bytes, dict[str, str]]]:
    """Bodies of so many new messages each, with their headers."""
    now = clock.now_ms()
    for first in range(0, count * actions, actions):
        sent = ",".join(_action(number, now) for number in range(first, first + actions))
        body = (f"[{sent}]" if actions > 1 else sent).encode()
        yield body, webhook.signed(secret, clock.new_id(now), body)


def _action(number: int, now: int) -> str:
    chat = number % CHATS
    return (
        f'{{"type":"message.sent","conversation_id":"flood-{chat}","message_id":"f-{number}-{samples.RUN}",'
        f'"at":"{clock.text(now)}","sender":{{"id":"u-{chat}","name":"Ann Example"}},'
        f'"message":{{"type":"text","text":"{samples.text()}"}}}}'
    )


async def flood(
    url: str, channel: str, secret: str, connections: int, actions: int, seconds: float
) -> dict[str, float]:
    """Post for so many seconds, or until the prepared bodies are used up."""
    rate = SINGLES_MAX if actions == 1 else RATE_MAX / actions
    source = iter(list(bodies(secret, actions, int(seconds * rate))))
    count = {"good": 0, "refused": 0}
    ends_at = 0.0

    async def post(session: aiohttp.ClientSession) -> None:
        for body, headers in source:
            if time.perf_counter() >= ends_at:
                return
            async with session.post(f"/messengers/{channel}", data=body, headers=headers) as answer:
                await answer.read()
            if answer.status not in (200, 429, 503):
                raise RuntimeError(f"HTTP {answer.status}: {await answer.text()}")
            count["good" if answer.status == 200 else "refused"] += actions

    connector = aiohttp.TCPConnector(limit=connections)
    async with aiohttp.ClientSession(url, connector=connector) as session:
        start = time.perf_counter()
        ends_at = start + seconds
        await asyncio.gather(*(post(session) for _ in range(connections)))
    return {**count, "seconds": time.perf_counter() - start}


if __name__ == "__main__":
    url, channel, secret, connections, actions, seconds = sys.argv[1:]
    result = uvloop.run(flood(url, channel, secret, int(connections), int(actions), float(seconds)))
    print(json.dumps(result))
