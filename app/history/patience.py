"""While the database is away an import waits, some minutes in all, and then says what to do."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import psycopg

PAUSE_SECONDS = 0.5
AWAY_SECONDS_MAX = 600.0  # Chosen: a failover takes seconds, an upgrade of PostgreSQL some minutes.
Found = TypeVar("Found")


class Stopped(Exception):
    """The import cannot go on now; the message says why and what to do."""


class Patience:
    """How long the database has been away; `is_stopping` ends the wait."""

    def __init__(self, is_stopping: Callable[[], bool]) -> None:
        self._is_stopping = is_stopping
        self._since: float | None = None

    def answered(self) -> None:
        """It is there."""
        self._since = None

    async def pause(self, why: str) -> None:
        """Wait a moment. Raises Stopped if it has been away for too long."""
        now = asyncio.get_running_loop().time()
        self._since = now if self._since is None else self._since
        if self._is_stopping() or now - self._since > AWAY_SECONDS_MAX:
            raise Stopped(f"{why}: run the same command again to go on")
        await asyncio.sleep(PAUSE_SECONDS)

    async def ask(self, ask: Callable[[], Awaitable[Found]]) -> Found:
        """Ask until it is there. Raises Stopped, and what `ask` raises but psycopg.OperationalError."""
        while True:
            try:
                found = await ask()
            except psycopg.OperationalError as error:
                await self.pause(f"the database is away ({str(error).strip()})")
            else:
                self.answered()
                return found
