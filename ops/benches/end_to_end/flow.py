"""flow: signed messages accepted and delivered, both ways, against a forwarder that stores nothing."""

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import aiohttp
import msgspec

from ops.benches import service
from ops.benches.measure import Figure, compared, new_database, private_servers, say

ROUNDS = 5
MESSAGES, CHATS = 10_000, 500
WARM_UP = 1_000
RATIO_MIN = 0.7
# What the bench's one account may be sent: its limits are not what is measured.
CONFIG = "[budgets]\nchats_per_second = 10000\n"
SIDES = {"kommo": "hooks to the messenger", "messenger": "actions to Kommo"}
DELIVERED_SECONDS_MAX = 120.0
POLL_SECONDS = 0.02
TICKS = os.sysconf("SC_CLK_TCK")


class Parts(NamedTuple):
    """A running chatledger, where it and the far side listen, and the folder of its servers."""

    pid: int
    url: str
    strangers: str
    folder: Path


async def flow() -> list[Figure]:
    """Delivered messages a second, counted where they arrive; one process with every role."""
    async with both("flow") as parts, service.process("ops.benches.processes.naive", parts.strangers) as told:
        _, naive = told
        figures = []
        for side, name in SIDES.items():
            for url in (parts.url, naive):
                await delivered(url, parts.strangers, side, WARM_UP, CHATS)
            pairs = []
            for number in range(ROUNDS):
                order = (parts.url, naive) if number % 2 else (naive, parts.url)
                rates = {}
                for url in order:
                    before = processor_seconds(parts)
                    rates[url] = await delivered(url, parts.strangers, side, MESSAGES, CHATS)
                    if url == parts.url:
                        spent = used(before, processor_seconds(parts))
                pairs.append((rates[parts.url], rates[naive]))
                say(f"flow {name} {number + 1}: {pairs[-1][0]:.0f}/s, naive {pairs[-1][1]:.0f}/s; {spent}")
            value, baseline, ratio = compared(pairs)
            target = f"ratio >= {RATIO_MIN}"
            figures.append(
                Figure(f"flow, {name}", value, "messages/s", baseline, ratio, target, ratio >= RATIO_MIN)
            )
        return figures


@contextlib.asynccontextmanager
async def both(name: str, *strangers_arguments: str) -> AsyncIterator[Parts]:
    """A chatledger with every role, and its far side."""
    async with private_servers() as (where, folder):
        url = await new_database(where, name)
        config = folder / "bench.toml"
        config.write_text(CONFIG)
        async with service.process("ops.benches.processes.strangers", *strangers_arguments) as (_, strangers):
            settings = service.environment(where, url, folder, strangers)
            arguments = ("app", "--config", str(config), "serve")
            async with service.process(*arguments, settings=settings) as (child, ready):
                await service.register(ready, f"{strangers}/messenger")
                yield Parts(child.pid, ready, strangers, folder)


async def delivered(url: str, strangers: str, side: str, messages: int, chats: int) -> float:
    """Send so many messages and wait until all are answered by the far side; returns messages a second."""
    async with aiohttp.ClientSession(strangers) as session:
        await (await session.get("/arrived")).read()
        parts = urlsplit(url)
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "ops.benches.processes.burst", "127.0.0.1", str(parts.port), side,
            str(messages), str(chats), stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, _ = await child.communicate()
        told = json.loads(out)
        if told["good"] < messages:
            raise RuntimeError(f"{url}: {told} answered")
        async with asyncio.timeout(DELIVERED_SECONDS_MAX):
            while True:
                async with session.get("/counted") as answer:
                    count, last, most = msgspec.json.decode(await answer.read())
                if count >= messages:
                    break
                await asyncio.sleep(POLL_SECONDS)
    if most:
        say(f"at most {most} in flight")
    if count > messages:
        raise RuntimeError(f"{count - messages} messages were delivered twice")
    return float(messages / ((last - told["began"]) / 1e9))


def processor_seconds(parts: Parts) -> dict[str, float]:
    """The seconds of CPU that ours, nats-server and PostgreSQL have used; of all PostgreSQL's processes."""
    seconds = {"ours": _seconds(parts.pid), "nats-server": 0.0, "postgres": 0.0}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            name = (path / "comm").read_text().strip()
            if name in seconds and _belongs(path, parts.folder):
                seconds[name] += _seconds(int(path.name))
    return seconds


def _belongs(process: Path, folder: Path) -> bool:
    """Whether a server, or a child of it, is the bench's own: others may run on the same machine."""
    parent = (process / "stat").read_text().rpartition(")")[2].split()[1]
    lines = [(one / "cmdline").read_bytes() for one in (process, Path("/proc") / parent)]
    return any(str(folder).encode() in line for line in lines)


def _seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(fields[number]) for number in (11, 12)) / TICKS


def used(before: dict[str, float], after: dict[str, float]) -> str:
    """What was used in between, for people."""
    return ", ".join(f"{name} {after[name] - before[name]:.1f} s" for name in before) + " of CPU"
