"""memory: the resident size of one process after hooks at full speed, delivery, and reads of everything."""

import asyncio
import random

import aiohttp
import msgspec

from ops.benches import service
from ops.benches.ingest import asked
from ops.benches.measure import Figure, new_database, private_servers, say

TARGET_MB = 250
HOOK_ROUNDS = 9
PAGES = 500
DRAIN_SECONDS_MAX = 180.0


async def memory() -> list[Figure]:
    """Resident megabytes of one process with every role, once all it accepted is delivered."""
    async with private_servers() as (where, folder):
        url = await new_database(where, "memory")
        async with service.process("ops.benches.processes.strangers") as (_, strangers):
            settings = service.environment(where, url, folder, strangers)
            async with service.process("app", "serve", settings=settings) as (child, ready):
                await service.register(ready, f"{strangers}/messenger")
                say(f"memory: {service.resident_megabytes(child.pid):.0f} MB at rest")
                for _ in range(HOOK_ROUNDS):
                    await asked(ready)
                say(f"memory: {service.resident_megabytes(child.pid):.0f} MB after hooks at full speed")
                await _read_all(ready)
                megabytes = round(service.resident_megabytes(child.pid), 1)
    return [Figure("memory", megabytes, "MB", None, None, f"<= {TARGET_MB}", megabytes <= TARGET_MB)]


async def _read_all(url: str) -> None:
    """Wait until everything is delivered, then read pages of chats and the whole ledger as lines."""
    headers = {"Authorization": f"Bearer {service.ADMIN_KEY}"}
    async with aiohttp.ClientSession(url, headers=headers) as session:
        async with asyncio.timeout(DRAIN_SECONDS_MAX):
            while await _open(session):  # noqa: ASYNC110  # another process is asked
                await asyncio.sleep(1)
        async with session.get("/v1/conversations?limit=1000") as answer:
            chats = [item["id"] for item in msgspec.json.decode(await answer.read())["items"]]
        for _ in range(PAGES):
            async with session.get(f"/v1/conversations/{random.choice(chats)}/messages") as answer:
                await answer.read()
        async with session.get("/v1/events", headers={"Accept": "application/x-ndjson"}) as answer:
            async for _line in answer.content:
                pass


async def _open(session: aiohttp.ClientSession) -> int:
    async with session.get("/v1/status") as answer:
        told = msgspec.json.decode(await answer.read())
    deliveries = told["deliveries"]
    say(f"memory: {deliveries['pending'] + deliveries['deferred']} deliveries open")
    return int(deliveries["pending"] + deliveries["deferred"])
