"""busy: an action on a message with 20,000 facts, beside one on a message with 5, and what others notice."""

import asyncio
import itertools
import time
from collections.abc import Iterator

import aiohttp
import msgspec
import psycopg

from app import clock
from app.messengers import webhook
from ops.benches import fair, samples, service
from ops.benches.measure import Figure, compared, new_database, percentile, private_servers, say

FACTS, FEW = 20_000, 5
ROUNDS = 7
ACTIONS = 25
HOOK_ROUNDS, HOOK_SECONDS = 3, 4.0
COSTS, TIMES = 1.5, 2.0
_numbers = itertools.count()


async def busy() -> list[Figure]:
    """Medians of single requests, in milliseconds, and the p99 of hooks in other chats, one process."""
    async with private_servers() as (where, folder):
        url = await new_database(where, "busy")
        async with service.process("ops.benches.processes.strangers") as (_, strangers):
            settings = service.environment(where, url, folder, strangers)
            async with service.process("app", "serve", settings=settings) as (_, ready):
                await service.register(ready, f"{strangers}/messenger")
        now = clock.now_ms()
        async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
            await samples.write(connection, samples.busy("busy", FACTS, now))
            await samples.write(connection, samples.busy("calm", FEW, now))
        async with (
            service.process("ops.benches.processes.strangers") as (_, strangers),
            service.process("app", "serve", settings=settings) as (_, ready),
            aiohttp.ClientSession(ready) as session,
        ):
            await fair.hooks(session, 2)
            say(f"busy: the first action takes {(await _edits(session, 'busy', 1))[0]:.1f} ms")
            return [await _cost(session), await _neighbours(session)]


async def _cost(session: aiohttp.ClientSession) -> Figure:
    pairs = []
    for number in range(ROUNDS):
        calm = percentile(await _edits(session, "calm", ACTIONS), 0.5)
        pairs.append((percentile(await _edits(session, "busy", ACTIONS), 0.5), calm))
        say(f"busy round {number + 1}: {pairs[-1][0]:.2f} ms, calm {calm:.2f} ms")
    value, baseline, ratio = compared(pairs)
    return Figure("busy", value, "ms p50", baseline, ratio, f"ratio <= {COSTS}", ratio <= COSTS)


async def _neighbours(session: aiohttp.ClientSession) -> Figure:
    pairs = []
    for number in range(HOOK_ROUNDS):
        _, alone = await fair.hooks(session, HOOK_SECONDS)
        going = asyncio.create_task(_react(session))
        _, beside = await fair.hooks(session, HOOK_SECONDS)
        going.cancel()
        await asyncio.wait([going])
        pairs.append((beside, alone))
        say(f"busy neighbours {number + 1}: p99 {beside:.1f} ms, alone {alone:.1f} ms")
    value, baseline, ratio = compared(pairs)
    target = f"ratio <= {TIMES:.0f}"
    return Figure("busy neighbours", value, "ms p99", baseline, ratio, target, ratio <= TIMES)


async def _edits(session: aiohttp.ClientSession, own_id: str, count: int) -> list[float]:
    """The times of edits, one after the other."""
    times = []
    for number in itertools.islice(_numbers, count):
        start = time.perf_counter()
        message = {"type": "text", "text": f"edit {number}"}
        await _post(session, own_id, {"type": "message.edited", "message": message})
        times.append((time.perf_counter() - start) * 1000)
    return times


async def _react(session: aiohttp.ClientSession) -> None:
    """One sender reacts to the busy message as fast as the answers come, without end."""
    for emoji in _emojis():
        sender = {"id": "u-fast", "name": "Fast"}
        await _post(session, "busy", {"type": "reaction.added", "emoji": emoji, "sender": sender})


def _emojis() -> Iterator[str]:
    return itertools.cycle("👍👎")


async def _post(session: aiohttp.ClientSession, own_id: str, fields: dict[str, object]) -> None:
    now = clock.now_ms()
    about = {"conversation_id": f"chat-{own_id}", "message_id": own_id, "at": clock.text(now)}
    body = msgspec.json.encode(about | fields)
    headers = webhook.signed(samples.MESSENGER_SECRET, clock.new_id(now), body)
    async with session.post("/messengers/bench", data=body, headers=headers) as answer:
        if answer.status != 200:
            raise RuntimeError(f"HTTP {answer.status}: {await answer.text()}")
        await answer.read()
