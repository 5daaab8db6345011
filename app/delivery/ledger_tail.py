"""DOC"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import NoReturn, cast

import psycopg

from app.database.connection import Database, connect
from app.delivery.deliverer import _Range

log = logging.getLogger("chatledger.deliver")
PAGE = 2_000
BACKOFF_SECONDS = 1.0
NEWS = """SELECT notification_id, state FROM ledger.stored_events WHERE notification_id > %s
 ORDER BY notification_id LIMIT %s"""


class _News:
    """Reads what the ledger has gained since, and gives it to the ranges at work here."""

    def __init__(self, database_url: str) -> None:
        self.wake = asyncio.Event()
        self._url = database_url
        self._after = 0
        self._readers: set[_Range] = set()

    def join(self, reader: "_Range", after: int) -> None:
        """Give a range everything after a position, from now on; the others skip what they have had."""
        self._after = min(self._after, after) if self._readers else after
        self._readers.add(reader)

    def leave(self, reader: "_Range") -> None:
        """Give it nothing more."""
        self._readers.discard(reader)

    async def run(self) -> NoReturn:
        while True:
            try:
                async with await connect(self._url) as connection:
                    await self._read(connection)
            except psycopg.Error as error:
                log.warning("deliver: reading the ledger: %s", str(error).strip())
            await asyncio.sleep(BACKOFF_SECONDS)

    async def _read(self, connection: Database) -> NoReturn:
        while True:
            await self.wake.wait()
            self.wake.clear()
            after = self._after
            rows = await _all(connection, NEWS, (after, PAGE)) if self._readers else []
            if not rows or self._after != after:  # A range has joined meanwhile: begin where it needs.
                continue
            self._after = cast("int", rows[-1][0])
            for reader in tuple(self._readers):
                reader.read(cast("list[tuple[int, bytes]]", rows))
            if len(rows) == PAGE:
                self.wake.set()


async def _all(
    connection: Database, statement: str, parameters: Sequence[object] | Mapping[str, object] = ()
) -> list[tuple[object, ...]]:
    cursor = connection.cursor(binary=True)
    await cursor.execute(statement.encode(), parameters)
    return await cursor.fetchall()
