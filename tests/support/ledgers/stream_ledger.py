"""Ledgers for the tests of relay and consumer: any history, stored as the append would."""

import asyncio
import contextlib
import shutil
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

import nats
import psycopg

from app import clock
from app.database import names, schema
from app.database.leases import Leases, leasing
from app.servers.nats import PrivateNats
from app.stream import jetstream
from app.stream.relay import Relay
from domain import events as e
from domain import ids
from tests.support.ids import SCOPE

WHERE = ids.scope_of("acme", "f90ba33d-c9d9-44da-b76c-c349b0ecbe41", "af9945ff-1490-4cad-807d-945c15d88bec")
DAY_MS = 24 * 3600 * 1000
INSERT = """
INSERT INTO ledger.stored_events (originator_id, originator_version, topic, state, notification_id)
VALUES (%s, %s, %s, %s, %s)
"""


def message(
    position: int, *, text: str = "Hello", age_ms: int = 0, cause: str | None = None
) -> e.MessageSent:
    """A message of one of twenty conversations, recorded `age_ms` ago, never twice the same."""
    now, stream = clock.now_ms() - age_ms, str(uuid.uuid4())
    return e.MessageSent(
        id=str(uuid.uuid4()),
        stream=stream,
        version=1,
        channel=SCOPE.channel,
        account=SCOPE.account,
        conversation=ids.conversation_id(SCOPE, "messenger", f"conv-{position % 20}"),
        message=stream,
        at=clock.text(now),
        recorded_at=clock.text(now),
        by="messenger",
        cause=cause,
        schema=e.SCHEMA,
        direction="in",
        own_id=f"m-{position}",
        msec=now,
        sender=e.Party(id="u-1", name="Ann"),
        content=e.Content(type="text", text=text),
    )


class Ledger:
    """The ledger of one database: `rows` is what it holds, by position."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.id = ""
        self.rows: dict[int, bytes] = {}

    async def open(self, ledger_id: str | None = None) -> "Ledger":
        async with await psycopg.AsyncConnection.connect(self.url, autocommit=True) as connection:
            await schema.migrate(connection)
            if ledger_id:
                await connection.execute("UPDATE ledger.meta SET id = %s", (ledger_id,))
            self.id = (await schema.check(connection)).ledger
        return self

    async def write(self, *events: e.AnyEvent) -> int:
        """Append and tell it, as another process would; returns the last position."""
        first = len(self.rows) + 1
        added = dict(enumerate(map(e.encode, events), first))
        values = [
            (event.stream, event.version, e.tag(event), added[n], n) for n, event in enumerate(events, first)
        ]
        async with await psycopg.AsyncConnection.connect(self.url) as connection:
            await connection.cursor().executemany(INSERT, values)
            await connection.execute(f"NOTIFY {names.CHANNEL}")
        self.rows |= added
        return len(self.rows)

    async def fill(self, count: int, *, age_ms: int = 0) -> int:
        """Appends `count` messages recorded `age_ms` ago; returns the last position."""
        first = len(self.rows) + 1
        return await self.write(*(message(n, age_ms=age_ms) for n in range(first, first + count)))


@contextlib.asynccontextmanager
async def relaying(ledger: Ledger, nats_url: str, **options: Any) -> AsyncIterator[Relay]:
    """A relay at work, which must not end by itself; `options` are keyword arguments of `Relay`."""
    connection = await jetstream.connect(nats_url, name="relay")
    try:
        async with leasing(leases := Leases(ledger.url)):
            relay = Relay(ledger.url, connection, ledger.id, leases, **options)
            task = asyncio.create_task(relay.run())
            try:
                yield relay
                assert not task.done()
            finally:
                task.cancel()
                await asyncio.wait([task])
    finally:
        await connection.close()


async def wipe(server: PrivateNats) -> None:
    """Restart a NATS server without all that it stored, as after the loss of its disk."""
    await server.stop()
    shutil.rmtree(server.folder / "store", ignore_errors=True)
    await server.start()


async def until(true: Callable[[], bool], seconds: float = 20) -> None:
    """Wait until something has come about."""
    async with asyncio.timeout(seconds):
        while not true():  # noqa: ASYNC110 - of any state, most of which has no event
            await asyncio.sleep(0.005)


async def stored(nats_url: str) -> dict[int, bytes]:
    """What the stream holds, by sequence, read by another client than ours."""
    client = await nats.connect(nats_url.split(","))
    try:
        state = (await client.jetstream().stream_info(jetstream.STREAM)).state
        found: dict[int, bytes] = {}
        if state.messages:
            reader = await client.jetstream().subscribe(jetstream.SUBJECTS, ordered_consumer=True)
            while len(found) < state.messages:
                received = await reader.next_msg(timeout=5)
                found[received.metadata.sequence.stream] = received.data
            await reader.unsubscribe()
        return found
    finally:
        await client.close()


async def differing(nats_url: str, rows: dict[int, bytes]) -> list[int]:
    """Sequences at which the stream does not hold exactly these rows; a whole diff would be megabytes."""
    found = await stored(nats_url)
    return sorted(n for n in found.keys() | rows.keys() if found.get(n) != rows.get(n))
