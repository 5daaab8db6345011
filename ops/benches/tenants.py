"""tenants: ten thousand accounts on one deployment, against one with ten thousand chats on another."""

import asyncio
import time
from collections.abc import Mapping
from statistics import median

import aiohttp
import msgspec
import psycopg

from app import clock
from app.ledger.writer import Ledger
from domain import commands as c
from domain import ids
from ops.benches import samples, service
from ops.benches.ingest import asked
from ops.benches.measure import Figure, compared, new_database, private_servers, say

ACCOUNTS = 10_000
ROUNDS = 11
READS = 100
INGEST_MIN, MEGABYTES_MAX, READY_SECONDS_MAX = 0.9, 200, 5.0
CONNECTED = "SELECT count(*) FROM ledger.connecting WHERE problem IS NULL AND tried_at > %s"
# What nobody may wait for: all are connected again in the background.
RECONNECTED_SECONDS_MAX = 300.0


async def tenants() -> list[Figure]:
    """Hooks, reads, memory and a start, with ten thousand connected accounts and with one."""
    async with private_servers() as small, private_servers() as large:
        async with service.process("ops.benches.processes.strangers") as (_, strangers):
            one, many = [
                service.environment(where, await new_database(where, "tenants"), folder, strangers)
                for where, folder in (small, large)
            ]
            for settings in (one, many):
                async with service.process("app", "serve", settings=settings) as (_, ready):
                    await service.register(ready, f"{strangers}/messenger")
            await _connect(many["CHATLEDGER_DATABASE_URL"])
            started = await _start(many)
        measured = await _beside(one, many)
    return [*started, *measured]


async def _connect(url: str) -> None:
    """Record the connections of all accounts but the first, as the API would."""
    ledger = Ledger(url, lambda _: None)
    await ledger.open()
    try:
        scopes = [
            ids.scope_of("bench", samples.CHANNEL_ID, samples.account(number))
            for number in range(1, ACCOUNTS)
        ]
        for first in range(0, len(scopes), 500):
            await asyncio.gather(*(ledger.submit(_connected(scope)) for scope in scopes[first : first + 500]))
    finally:
        await ledger.close()


def _connected(scope: ids.Scope) -> c.Connect:
    stream = ids.connection_stream(scope)
    stamp = clock.stamp(scope, stream, ids.OPERATOR, now=clock.now_ms())
    return c.Connect(**stamp, stream=stream, title=scope.channel)


async def _start(settings: Mapping[str, str]) -> list[Figure]:
    """A start with every role: until it takes requests, and until Kommo was asked to connect all again."""
    began = time.perf_counter()
    async with (
        await psycopg.AsyncConnection.connect(settings["CHATLEDGER_DATABASE_URL"], autocommit=True) as db,
        service.process("app", "serve", settings=settings) as (child, _),
    ):
        seconds = round(time.perf_counter() - began, 2)
        say(f"tenants: ready after {seconds} s")
        cursor = await db.execute("SELECT now()")
        since, done = await cursor.fetchone(), 0
        while done < ACCOUNTS and time.perf_counter() - began < RECONNECTED_SECONDS_MAX:
            await asyncio.sleep(1)
            cursor = await db.execute(CONNECTED, since)
            ((done,),) = await cursor.fetchall()
        again = round(time.perf_counter() - began, 1)
        say(f"tenants: {service.resident_megabytes(child.pid):.0f} MB once all are connected again")
    return [
        Figure("tenants, start", seconds, "s", None, None, f"<= {READY_SECONDS_MAX:.0f}",
               seconds <= READY_SECONDS_MAX),
        Figure("tenants, connected again", again, "s", None, None, "all", done == ACCOUNTS),
    ]  # fmt: skip


async def _beside(one: Mapping[str, str], many: Mapping[str, str]) -> list[Figure]:
    """Web processes side by side, in turn: hooks, then reads, then the memory of both."""
    roles = ("app", "serve", "--roles", "web")
    async with (
        service.process(*roles, settings=one) as (small, alone),
        service.process(*roles, settings=many) as (large, crowded),
    ):
        await asked(alone, 1, ACCOUNTS)
        await asked(crowded, ACCOUNTS, ACCOUNTS)
        pairs = []
        for number in range(ROUNDS):
            sides = [(alone, 1), (crowded, ACCOUNTS)]
            rates = {
                url: await asked(url, count, ACCOUNTS)
                for url, count in (sides if number % 2 else sides[::-1])
            }
            pairs.append((rates[crowded], rates[alone]))
            say(f"tenants round {number + 1}: {pairs[-1][0]:.0f}/s, one account {pairs[-1][1]:.0f}/s")
        value, baseline, ratio = compared(pairs)
        figures = [
            Figure("tenants, ingest", value, "hooks/s", baseline, ratio, f"ratio >= {INGEST_MIN}",
                   ratio >= INGEST_MIN),
            await _memory(small.pid, large.pid),
        ]  # fmt: skip
        return figures + await _reads(alone, crowded)


async def _memory(small: int, large: int) -> Figure:
    less, more = (round(service.resident_megabytes(pid), 1) for pid in (small, large))
    target = f"<= {MEGABYTES_MAX} more"
    return Figure("tenants, memory", more, "MB", less, None, target, more - less <= MEGABYTES_MAX)


async def _reads(alone: str, crowded: str) -> list[Figure]:
    """The median times of reads that name an account, in milliseconds."""
    figures = []
    async with (
        aiohttp.ClientSession(alone, headers=_headers()) as small,
        aiohttp.ClientSession(crowded, headers=_headers()) as large,
    ):
        for name, path in (
            ("conversations", f"/v1/conversations?account_id={samples.ACCOUNT}&limit=1"),
            ("events", f"/v1/events?account_id={samples.ACCOUNT}&limit=1"),
        ):
            times: dict[aiohttp.ClientSession, list[float]] = {small: [], large: []}
            for _ in range(READS):
                for session, spent in times.items():
                    began = time.perf_counter()
                    async with session.get(path) as answer:
                        msgspec.json.decode(await answer.read())
                    spent.append((time.perf_counter() - began) * 1000)
            value, baseline = (round(median(times[each]), 2) for each in (large, small))
            ratio = round(value / baseline, 2)
            figures.append(Figure(f"tenants, {name}", value, "ms", baseline, ratio, "shown", True))
    return figures


def _headers() -> dict[str, str]:
    return {"Authorization": f"Bearer {service.ADMIN_KEY}"}
