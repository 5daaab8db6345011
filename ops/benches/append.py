"""append and append_limit: the ledger beside the library's own save, and beside bare inserts."""

import asyncio
import time
from collections.abc import Sequence
from uuid import UUID

import psycopg
from eventsourcing.application import Application
from eventsourcing.domain import Aggregate

from app import clock
from app.ledger.writer import Ledger
from app.servers.servers import Servers
from domain import events as e
from domain.commands import Send
from ops.benches import samples
from ops.benches.measure import Figure, compared, new_database, private_servers, say

CONCURRENT = 1000
CHATS = 200
ROUNDS = 7
COMMANDS = 10_000
SAVES = 1_000
BATCH = 500
RAW = """
CREATE SCHEMA raw;
CREATE TABLE raw.stored_events (LIKE ledger.stored_events INCLUDING ALL);
"""
BARE = """INSERT INTO raw.stored_events
 (originator_id, originator_version, topic, state, notification_id)
 SELECT i.o::uuid, i.v, i.t, i.s, i.n
 FROM unnest(%b::text[], %b::bigint[], %b::text[], %b::bytea[], %b::bigint[]) AS i(o, v, t, s, n)"""


async def ours(ledger: Ledger, commands: Sequence[Send]) -> float:
    """Commands a second, 1000 at a time, each waiting for its outcome."""
    left = iter(commands)

    async def worker() -> None:
        for command in left:
            await ledger.submit(command)

    start = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(CONCURRENT)))
    return len(commands) / (time.perf_counter() - start)


def make(count: int) -> list[Send]:
    """Messages of 200 chats."""
    now = clock.now_ms()
    return [samples.send(f"conv-{number % CHATS}", now) for number in range(count)]


async def append() -> list[Figure]:
    """1000 concurrent commands against `Application.save` in threads."""
    async with private_servers() as (where, _):
        url = await new_database(where, "append")
        ledger = Ledger(url, lambda _: None)
        await ledger.open()
        application = Application[UUID](env=_environment(where))
        await ours(ledger, make(1000))
        await _saves(application, 100)
        pairs = []
        for number in range(ROUNDS):
            pairs.append((await ours(ledger, make(COMMANDS)), await _saves(application, SAVES)))
            say(f"append round {number + 1}: {pairs[-1][0]:.0f}/s, save {pairs[-1][1]:.0f}/s")
        await ledger.close()
        application.close()
    value, baseline, ratio = compared(pairs)
    return [Figure("append", value, "commands/s", baseline, ratio, "ratio >= 30", ratio >= 30)]


def _environment(where: Servers) -> dict[str, str]:
    parts = psycopg.conninfo.conninfo_to_dict(where.database_url)
    return {
        "PERSISTENCE_MODULE": "eventsourcing.postgres",
        "POSTGRES_DBNAME": str(parts["dbname"]),
        "POSTGRES_HOST": str(parts["host"]),
        "POSTGRES_PORT": str(parts.get("port", "5432")),
        "POSTGRES_USER": str(parts["user"]),
        "POSTGRES_PASSWORD": str(parts.get("password", "x")),
    }


class Message(Aggregate):
    """The smallest event that the library can store."""

    def __init__(self, text: str) -> None:
        self.text = text


async def _saves(application: "Application[UUID]", count: int) -> float:
    messages = [Message(samples.text() * 4) for _ in range(count)]
    start = time.perf_counter()
    await asyncio.gather(*(asyncio.to_thread(application.save, message) for message in messages))
    return count / (time.perf_counter() - start)


async def append_limit() -> list[Figure]:
    """The same commands against bare inserts of the same rows, in batches of 500 made beforehand."""
    async with private_servers() as (where, _):
        url = await new_database(where, "append_limit")
        ledger = Ledger(url, lambda _: None)
        await ledger.open()
        await ours(ledger, make(1000))
        async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
            await connection.execute(RAW)
            pairs, position = [], 0
            for number in range(ROUNDS):
                rate = await ours(ledger, make(COMMANDS))
                bare = await _bare(connection, make(COMMANDS), position)
                position += COMMANDS
                pairs.append((rate, bare))
                say(f"append_limit round {number + 1}: {rate:.0f}/s, bare {bare:.0f}/s")
        await ledger.close()
    value, baseline, ratio = compared(pairs)
    return [Figure("append_limit", value, "commands/s", baseline, ratio, "ratio >= 0.5", ratio >= 0.5)]


async def _bare(
    connection: psycopg.AsyncConnection[tuple[object, ...]], commands: Sequence[Send], after: int
) -> float:
    events = [_event(command) for command in commands]
    batches = []
    for first in range(0, len(events), BATCH):
        page = events[first : first + BATCH]
        positions = list(range(after + first + 1, after + first + len(page) + 1))
        batches.append(
            (
                [event.stream for event in page],
                [event.version for event in page],
                [e.tag(event) for event in page],
                [e.encode(event) for event in page],
                positions,
            )
        )
    start = time.perf_counter()
    cursor = connection.cursor(binary=True)
    for columns in batches:
        await cursor.execute(BARE.encode(), columns, prepare=True)
    return len(events) / (time.perf_counter() - start)


def _event(command: Send) -> e.MessageSent:
    return e.MessageSent(
        id=command.id,
        stream=command.stream,
        version=1,
        channel=command.scope.channel,
        account=command.scope.account,
        conversation=command.lane,
        message=command.stream,
        at=command.at,
        recorded_at=command.now,
        by=command.by,
        schema=e.SCHEMA,
        direction="in",
        own_id=command.own_id,
        msec=command.msec,
        sender=command.sender,
        content=command.content,
        push="kommo",
    )
