"""Whether the ledger can store something now, without storing anything.

The probe appends nothing: that takes every lock of an append, needs the right to write and a server that may
write, and leaves no event. It has a connection of its own, so that it waits for no read. A full disk shows
only where something is really stored, so the writers' last failure counts too, for a while.
"""

import asyncio
import time

import psycopg

from app.database.connection import Db, connect
from app.ledger.session import reason_of
from app.ledger.writer import Ledger

SECONDS_MAX = 3.0  # Chosen: below the 4.5 s after which a command fails.
KEPT_SECONDS = 1.0  # Chosen: however many ask, the database is asked once a second.
FAILURE_SECONDS = 10.0  # Chosen: without new commands, a failure says nothing about now.
NOTHING = "SELECT head FROM ledger.append('{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}')"
FULL = "the queue of commands is full"


class Probe:
    """Looks whether the ledger could store a command, at most once a second."""

    def __init__(self, url: str, ledger: Ledger) -> None:
        self._url = url
        self._ledger = ledger
        self._db: Db | None = None
        self._turn = asyncio.Lock()
        self._found = ""
        self._until = 0.0

    async def check(self) -> str:
        """Returns why nothing can be stored; empty if something can."""
        async with self._turn:
            if time.monotonic() >= self._until:
                self._found = await self._look()
                self._until = time.monotonic() + KEPT_SECONDS
        if self._found:
            return self._found
        if not self._ledger.has_room(1, 1):
            return FULL
        failed = self._ledger.failure
        return failed.reason if failed and time.monotonic() - failed.at < FAILURE_SECONDS else ""

    async def close(self) -> None:
        """Close the connection."""
        if self._db is not None:
            await self._db.close()

    async def _look(self) -> str:
        try:
            async with asyncio.timeout(SECONDS_MAX):
                if self._db is None or self._db.closed:
                    self._db = await connect(self._url)
                await self._db.execute(NOTHING)
        except TimeoutError:
            await self._drop()
            return f"the database did not store anything within {SECONDS_MAX:g} seconds"
        except psycopg.Error as error:
            await self._drop()
            return reason_of(error)
        return ""

    async def _drop(self) -> None:
        if self._db is not None:
            await self._db.close()
        self._db = None
