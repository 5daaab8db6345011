"""import: history made durable by one process with every role, and the growth of its memory."""

import time
from collections.abc import AsyncIterator, Iterator

import aiohttp
import msgspec

from app import clock
from ops.benches import samples, service
from ops.benches.measure import Figure, new_database, private_servers, say

MESSAGES, MORE = 100_000, 300_000
CHATS = 1_000
PIECE = 1_000
TARGET = 1_667  # 100,000 in a minute
GROWTH_MB = 50


async def imports() -> list[Figure]:
    """Messages a second from the first byte sent to the report, deliveries going on meanwhile."""
    async with private_servers() as (where, folder):
        url = await new_database(where, "imports")
        async with service.process("ops.benches.processes.strangers") as (_, strangers):
            settings = service.environment(where, url, folder, strangers)
            async with service.process("app", "serve", settings=settings) as (child, ready):
                await service.register(ready, f"{strangers}/messenger")
                say(f"import: {service.resident_megabytes(child.pid):.0f} MB at rest")
                seconds = await _timed(ready, "a", MESSAGES)
                before = service.resident_megabytes(child.pid)
                say(f"import: {MESSAGES} in {seconds:.1f} s, {before:.0f} MB")
                longer = await _timed(ready, "b", MORE)
                after = service.resident_megabytes(child.pid)
                say(f"import: {MORE} in {longer:.1f} s, {after:.0f} MB")
    rate, growth = round(MESSAGES / seconds), round(after - before, 1)
    good, flat = rate >= TARGET, growth <= GROWTH_MB
    return [
        Figure("import", rate, "messages/s", None, None, f">= {TARGET}/s", good),
        Figure("import memory", growth, "MB more", before, None, f"<= {GROWTH_MB} for thrice as many", flat),
    ]


async def _timed(url: str, name: str, messages: int) -> float:
    headers = {"Authorization": f"Bearer {service.ADMIN_KEY}"}
    start = time.perf_counter()
    timeout = aiohttp.ClientTimeout(total=None)
    async with (
        aiohttp.ClientSession(url, headers=headers, timeout=timeout) as session,
        session.post("/v1/import?channel=bench", data=_file(name, messages)) as answer,
    ):
        last = [line async for line in answer.content][-1]
    report = msgspec.json.decode(last)
    if report["imported"] != messages:
        raise RuntimeError(f"not all of the file was imported: {report}")
    return time.perf_counter() - start


async def _file(name: str, messages: int) -> AsyncIterator[bytes]:
    lines = _lines(name, messages)
    for _ in range(0, messages, PIECE):
        yield b"".join(next(lines) for _ in range(PIECE))


def _lines(name: str, messages: int) -> Iterator[bytes]:
    begin = clock.now_ms() - messages * 1000
    for number in range(messages):
        chat = f"{name}-{number % CHATS}"
        customer = {"id": f"u-{chat}", "name": "Ann Example", "phone": "+15550100"}
        outgoing = number // CHATS % 2 == 1
        line = {
            "type": "message.sent",
            "direction": "out" if outgoing else "in",
            "conversation_id": chat,
            "message_id": f"{name}-{number}",
            "at": clock.text(begin + number * 1000),
            "sender": {"id": "m", "name": "Maria", "user_id": samples.MANAGER} if outgoing else customer,
            "message": {"type": "text", "text": samples.text()},
        } | ({"receiver": customer} if outgoing else {})
        yield msgspec.json.encode(line) + b"\n"
