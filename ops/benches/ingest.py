"""ingest: signed hooks made durable over HTTP, against a Litestar handler that does nothing."""

import asyncio
import json
import sys
from urllib.parse import urlsplit

from ops.benches import service
from ops.benches.measure import Figure, compared, new_database, private_servers, say

ROUNDS = 21  # One says little: the machine drifts by a third from one second to the next.
SECONDS = 1.2


async def asked(url: str, accounts: int = 1, chats: int = 200) -> float:
    """Responses with status 200 per second, as the load process counts them."""
    port, process = str(urlsplit(url).port), "ops.benches.processes.load"
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", process, "127.0.0.1", port, str(SECONDS), str(accounts), str(chats),
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, _ = await child.communicate()
    told = json.loads(out)
    if told["bad"]:
        raise RuntimeError(f"{told['bad']} hooks were refused")
    return float(told["good"] / told["seconds"])


async def ingest() -> list[Figure]:
    """The web role in a process of its own; the projector and the relay run in another."""
    async with private_servers() as (where, folder):
        url = await new_database(where, "ingest")
        async with service.process("ops.benches.processes.strangers") as (_, strangers):
            settings = service.environment(where, url, folder, strangers)
            async with service.process("app", "serve", settings=settings) as (_, ready):
                await service.register(ready, f"{strangers}/messenger")
        arguments = ("app", "serve", "--roles", "web")
        async with (
            service.process(*arguments, settings=settings) as (_, ours),
            service.process("ops.benches.processes.empty") as (_, empty),
        ):
            await asked(ours)
            await asked(empty)
            pairs = []
            for number in range(ROUNDS):
                order = (ours, empty) if number % 2 else (empty, ours)
                rates = {each: await asked(each) for each in order}
                pairs.append((rates[ours], rates[empty]))
                say(f"ingest round {number + 1}: {pairs[-1][0]:.0f}/s, empty {pairs[-1][1]:.0f}/s")
    value, baseline, ratio = compared(pairs)
    return [Figure("ingest", value, "hooks/s", baseline, ratio, "ratio >= 0.9", ratio >= 0.9)]
