"""Reads what this process commits straight from the ledger, so that a push need not wait for the stream.

Measured: the stream's fsyncs cost 17 to 28 ms at 200 messages a second on two cores.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import NamedTuple, NoReturn, Protocol, cast

import psycopg

from app.database.connection import Db, connect
from app.delivery.job import Head, read_head

log = logging.getLogger("chatledger.deliver")
# Chosen: some 2 MB; more than a process commits between two reads.
PAGE = 2_000
# Chosen: PostgreSQL restarts in about a second.
BACKOFF_SECONDS = 1.0
NEWS = """SELECT notification_id, state FROM ledger.stored_events WHERE notification_id > %s
 ORDER BY notification_id LIMIT %s"""


class Arrival(NamedTuple):
    """An event that delivery is concerned with, as it is stored."""

    position: int
    head: Head
    raw: bytes


def arrivals(rows: Sequence[tuple[int, bytes]]) -> list[Arrival]:
    """Those of stored events that ask to be pushed, or that take up a parked delivery."""
    found = []
    for position, raw in rows:
        head = read_head(raw)
        if head.push is not None or head.resumes:
            found.append(Arrival(position, head, raw))
    return found


class Reader(Protocol):
    """Takes what the ledger has gained."""

    def read(self, news: Sequence[Arrival], upto: int) -> None:
        """What concerns delivery of all events after the last position that was read, up to another one."""


class LedgerTail:
    """Reads what the ledger has gained and gives it to the ranges at work here."""

    def __init__(self, database_url: str) -> None:
        self.wake = asyncio.Event()
        self._url = database_url
        self._after = 0
        self._readers: set[Reader] = set()

    def join(self, reader: Reader, after: int) -> None:
        """Give a range everything after a position from now on; the others skip what they have had."""
        self._after = min(self._after, after) if self._readers else after
        self._readers.add(reader)

    def leave(self, reader: Reader) -> None:
        """Give a range nothing more."""
        self._readers.discard(reader)

    async def run(self) -> NoReturn:
        """Read until cancelled."""
        while True:
            try:
                async with await connect(self._url) as connection:
                    await self._read(connection)
            except psycopg.Error as error:
                log.warning("deliver: reading the ledger: %s", str(error).strip())
            await asyncio.sleep(BACKOFF_SECONDS)

    async def _read(self, connection: Db) -> NoReturn:
        while True:
            await self.wake.wait()
            self.wake.clear()
            after = self._after
            rows = await fetch_all(connection, NEWS, (after, PAGE)) if self._readers else []
            if not rows or self._after != after:  # A range has joined meanwhile: begin where it needs.
                continue
            events = cast("list[tuple[int, bytes]]", rows)
            self._after, _ = events[-1]
            news = arrivals(events)
            for reader in tuple(self._readers):
                reader.read(news, self._after)
            if len(rows) == PAGE:
                self.wake.set()


async def fetch_all(
    connection: Db, statement: str, parameters: Sequence[object] | Mapping[str, object] = ()
) -> list[tuple[object, ...]]:
    """All rows of a statement, over the binary protocol."""
    cursor = connection.cursor(binary=True)
    await cursor.execute(statement.encode(), parameters)
    return await cursor.fetchall()
