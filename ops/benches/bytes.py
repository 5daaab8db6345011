"""bytes: what a customer's message leaves on disk, in PostgreSQL and in JetStream, once it is delivered."""

from collections.abc import Iterator
from pathlib import Path

import psycopg

from app.database.names import VIEWS_SCHEMA
from app.stream import jetstream
from app.views import tables
from app.views.rebuild import rebuild
from domain import events as e
from ops.benches import samples
from ops.benches.measure import Figure, new_database, private_servers, say
from ops.benches.relay import publish

MESSAGES = 50_000
TOGETHER = 500  # messages that are stored, and then accepted, at the same time
VACUUM_EVENTS = 30_000  # as autovacuum does once a minute
# Half of what 0.2.1 needed.
POSTGRES_MAX, JETSTREAM_MAX = 1_650, 1_300
SIZES = """
SELECT n.nspname || '.' || c.relname, c.relkind = 'i', pg_relation_size(c.oid)
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname IN ('ledger', 'views', 'pg_toast') AND c.relkind IN ('r', 'i', 't')
  AND (n.nspname <> 'pg_toast' OR c.oid IN (SELECT reltoastrelid FROM pg_class AS t
    JOIN pg_namespace AS m ON m.oid = t.relnamespace WHERE m.nspname IN ('ledger', 'views')))
ORDER BY 3 DESC
"""


async def bytes_() -> list[Figure]:
    """Bytes for each message: of all tables and indexes after VACUUM, and of the stream's files."""
    figures = []
    async with private_servers() as (where, folder):
        for packed in (False, True):
            url = await new_database(where, "bytes_packed" if packed else "bytes")
            events = await _fill(url, packed=packed)
            stored = await _stored(url)
            unit = "bytes in PostgreSQL, packed" if packed else "bytes in PostgreSQL"
            figures.append(_figure(stored, unit, POSTGRES_MAX))
        nats = await jetstream.connect(where.nats_url, name="bench")
        await publish(url, nats, events)
        await nats.close()
        figures.append(_figure(_size(folder / "nats") / MESSAGES, "bytes in JetStream", JETSTREAM_MAX))
    return figures


def _figure(value: float, unit: str, limit: int) -> Figure:
    return Figure("bytes", round(value), unit, None, None, f"<= {limit}", value <= limit)


async def _stored(url: str) -> float:
    """Bytes of all tables and indexes for each message."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as db:
        await db.execute("VACUUM (ANALYZE)")
        rows = await (await db.execute(SIZES)).fetchall()
    stored = 0.0
    for name, is_index, size in rows:
        stored += int(size) / MESSAGES
        if int(size) > MESSAGES:
            say(f"bytes: {int(size) / MESSAGES:6.0f} {'index' if is_index else 'table'} {name}")
    return stored


async def _fill(url: str, *, packed: bool) -> int:
    """Store messages and bring the views to them in batches, as in service; returns the last position."""
    await rebuild(url)
    events, position = samples.history(MESSAGES, replies=False), 0
    async with (
        await psycopg.AsyncConnection.connect(url, autocommit=True) as ledger,
        await tables.connect(url, VIEWS_SCHEMA) as views,
    ):
        for page in _pages(events):
            await samples.write(ledger, iter(page), packed=packed)
            while read := await tables.read(views, position, len(page)):
                await tables.apply(views, read.page, position)
                position = read.last
            if position % VACUUM_EVENTS < len(page):
                await ledger.execute("VACUUM views.deliveries, views.conversations, views.message_states")
    return position


def _pages(events: Iterator[e.AnyEvent]) -> Iterator[list[e.AnyEvent]]:
    """The events of so many messages: those that send them, then what became of them."""
    outcomes = (e.MessageAccepted, e.MessageNamed)
    lives: list[list[e.AnyEvent]] = []
    for event in events:
        if isinstance(event, outcomes):
            lives[-1].append(event)
            continue
        if len(lives) == TOGETHER and isinstance(event, e.MessageSent):
            yield [one for life in lives for one in life if not isinstance(one, outcomes)]
            yield [one for life in lives for one in life if isinstance(one, outcomes)]
            lives = []
        lives.append([event])
    yield [one for life in lives for one in life if not isinstance(one, outcomes)]
    yield [one for life in lives for one in life if isinstance(one, outcomes)]


def _size(folder: Path) -> int:
    """Bytes that the files of a folder take on disk."""
    return sum(file.stat().st_blocks * 512 for file in folder.rglob("*") if file.is_file())
