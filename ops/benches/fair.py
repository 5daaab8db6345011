"""fair: a neighbour's hooks, alone and while the messenger of another account posts at full speed."""

import asyncio
import json
import sys
import time

import aiohttp

from ops.benches import samples, service
from ops.benches.measure import Figure, compared, new_database, percentile, private_servers, say

ROUNDS = 3
SECONDS = 5.0
RATE = 50
CHATS = 50
# The messenger at full speed: (connections, actions in a body).
FLOODS = ((16, 500), (64, 1))
FLOODER = {"channel": "flooder", "channel_id": "f62a0162-46a6-4a63-a5ff-0b1e2b1d1a02",
           "account": "52e591f7-c98f-4255-8495-827210138c82"}  # fmt: skip
TIMES = 2.0
# Until the client has made its bodies and the service is busy.
FLOOD_STARTS_SECONDS = 4.0


async def fair() -> list[Figure]:
    """The p50 and p99 of a hook, from request to answer, in milliseconds; one process has every role."""
    figures = []
    for connections, actions in FLOODS:
        async with private_servers() as (where, folder):
            url = await new_database(where, "fair")
            async with service.process("ops.benches.processes.strangers") as (_, strangers):
                settings = service.environment(where, url, folder, strangers)
                async with service.process("app", "serve", settings=settings) as (_, ready):
                    await service.register(ready, f"{strangers}/messenger")
                    await service.register(ready, f"{strangers}/messenger", **FLOODER)
                    figures += await _compare(ready, connections, actions)
    return figures


async def _compare(url: str, connections: int, actions: int) -> list[Figure]:
    """All rounds alone come first, because what a flood has left open would be delivered beside them."""
    name = f"fair, {actions} in a body" if actions > 1 else "fair, one by one"
    async with aiohttp.ClientSession(url) as session:
        await hooks(session, SECONDS)
        alone = [await hooks(session, SECONDS) for _ in range(ROUNDS)]
        flooding = asyncio.create_task(_flood(url, connections, actions))
        await asyncio.sleep(FLOOD_STARTS_SECONDS)
        beside = [await hooks(session, SECONDS) for _ in range(ROUNDS)]
        told = await flooding
    rate = told["good"] / told["seconds"]
    say(f"{name}: {rate:.0f}/s, {told['refused']:.0f} refused; p50 and p99 alone {alone}, beside {beside}")
    p50, p99 = (compared([(b[n], a[n]) for a, b in zip(alone, beside, strict=True)]) for n in (0, 1))
    return [
        Figure(f"{name} p50", p50[0], "ms", p50[1], p50[2], "shown", True),
        Figure(f"{name} p99", p99[0], "ms", p99[1], p99[2], f"ratio <= {TIMES:.0f}", p99[2] <= TIMES),
    ]


async def _flood(url: str, connections: int, actions: int) -> dict[str, float]:
    seconds = ROUNDS * SECONDS + FLOOD_STARTS_SECONDS
    arguments = (url, FLOODER["channel"], samples.MESSENGER_SECRET, connections, actions, seconds)
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "ops.benches.processes.flood",
        *map(str, arguments),
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await child.communicate()
    told: dict[str, float] = json.loads(out)
    return told


async def hooks(session: aiohttp.ClientSession, seconds: float) -> tuple[float, float]:
    """The p50 and p99 of hooks at an even rate, in milliseconds; a late answer delays no request."""
    times: list[float] = []

    async def one(chat: int, due: float) -> None:
        body, signature = samples.hook(chat)
        path = f"/kommo/{samples.LINK.scope_id}"
        async with session.post(path, data=body, headers={"X-Signature": signature}) as answer:
            answer.raise_for_status()
            await answer.read()
        times.append((time.perf_counter() - due) * 1000)

    start = time.perf_counter()
    tasks = []
    for number in range(int(seconds * RATE)):
        due = start + number / RATE
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        tasks.append(asyncio.create_task(one(number % CHATS, due)))
    await asyncio.gather(*tasks)
    return percentile(times, 0.5), percentile(times, 0.99)
