"""Reads every new event from the ledger: nothing else is pushed, whatever stands in the stream.

Two signals wake it. A commit of this process does so at once, so that a push need not wait for the stream,
whose fsyncs cost 17 to 28 ms at 200 messages a second on two cores (measured). The stream brings the position
of every commit, also those of other processes; a position that has been read before costs no query.

A page is small, because events may be large. While a full one is handed over, the next is on its way.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import NamedTuple, NoReturn, Protocol, cast

import psycopg

from app.database.connection import Db, connect
from app.database.packed import unpack
from app.delivery.job import Head, read_head

log = logging.getLogger("chatledger.deliver")
# Chosen: some 2 MB of open deliveries, read from the view.
PAGE = 2_000
# Chosen: PostgreSQL restarts in about a second.
BACKOFF_SECONDS = 1.0
# Chosen: two pages of the largest events are 77 MB, and pages of this size are read at 40,000 events a
# second. A bound in bytes would double the time of each query (measured: 0.2 ms for 0.08 ms).
PAGE_OF_NEWS = 100
NEWS = """SELECT notification_id, state FROM ledger.stored_events WHERE notification_id > %s
 ORDER BY notification_id LIMIT %s"""

Row = tuple[int, bytes]


class Arrival(NamedTuple):
    """An event that delivery is concerned with, as JSON."""

    position: int
    head: Head
    raw: bytes


def arrivals(rows: Sequence[Row]) -> list[Arrival]:
    """Those of stored events that ask to be pushed, or that take up a parked delivery.

    An event that cannot be read is logged and left out: it stops no other delivery.
    """
    found = []
    for position, stored in rows:
        raw = unpack(stored)
        try:
            head = read_head(raw)
        except (ValueError, RecursionError) as error:
            log.error("deliver: event %d cannot be read and is not pushed: %s", position, error)
            continue
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
        self.wake.set()

    def leave(self, reader: Reader) -> None:
        """Give a range nothing more."""
        self._readers.discard(reader)

    def reached(self, position: int) -> None:
        """Read the ledger if it has not been read up to this position, which a stranger may have made up."""
        if position > self._after:
            self.wake.set()

    async def run(self) -> NoReturn:
        """Read until cancelled."""
        while True:
            try:
                async with await connect(self._url) as connection:
                    await self._read(connection)
            except psycopg.Error as error:
                log.warning("deliver: reading the ledger: %s", str(error).strip())
            await asyncio.sleep(BACKOFF_SECONDS)
            self.wake.set()  # The failed read may have been for what nothing signals again.

    async def _read(self, connection: Db) -> NoReturn:
        while True:
            await self.wake.wait()
            self.wake.clear()
            if self._readers:
                await self._read_to_the_head(connection)

    async def _read_to_the_head(self, connection: Db) -> None:
        """Read page by page; after a full one the next is asked for before the first is handed over.

        `_after` is what was handed over; between its check and its change nothing else runs.
        """
        after = self._after
        rows, page = await _page(connection, after), None
        try:
            while rows:
                if len(rows) == PAGE_OF_NEWS:  # Else nothing more is there, and a task would only cost time.
                    page = asyncio.create_task(_page(connection, rows[-1][0]), name="deliver page")
                    await asyncio.sleep(0)  # The query goes out now.
                if self._after != after:  # A range has joined meanwhile: begin where it needs.
                    self.wake.set()
                    return
                news, upto = arrivals(rows), rows[-1][0]
                for reader in tuple(self._readers):
                    reader.read(news, upto)
                self._after = after = upto
                rows, page = await page if page else [], None
        finally:
            if page:
                page.cancel()
                await asyncio.wait([page])


async def _page(connection: Db, after: int) -> list[Row]:
    return cast("list[Row]", await fetch_all(connection, NEWS, (after, PAGE_OF_NEWS)))


async def fetch_all(
    connection: Db, statement: str, parameters: Sequence[object] | Mapping[str, object] = ()
) -> list[tuple[object, ...]]:
    """All rows of a statement, over the binary protocol."""
    cursor = connection.cursor(binary=True)
    await cursor.execute(statement.encode(), parameters)
    return await cursor.fetchall()
