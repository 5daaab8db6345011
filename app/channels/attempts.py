"""The last attempt to connect each channel to each account, and why it failed if it did, for every process.

A row without an account is about the channel itself. A later connection of the channel makes a row obsolete.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import cast

import psycopg
from msgspec import Struct

from app.database import names
from app.database.connection import Db, connect
from app.database.leases import Leases
from app.database.packed import unpack
from domain import events as e
from domain import ids
from domain.ids import Scope

LOCK_POLL_SECONDS = 0.5  # chosen: a start waits this much longer than it must
LEASE = "connect"
# A turn lasts for a call of Kommo's and an append; a process that vanishes or is suspended with it loses it.
ENDS = """SET tcp_keepalives_idle = 5; SET tcp_keepalives_interval = 3; SET tcp_keepalives_count = 3;
SET tcp_user_timeout = 15000; SET idle_session_timeout = '60s'"""
TAKE_TURN = "SELECT pg_advisory_lock(%s, hashtext(%s))"
LAST_EVENT = """SELECT state FROM ledger.stored_events WHERE originator_id = %(stream)s::uuid
 ORDER BY originator_version DESC LIMIT 1"""
NOW = "SELECT extract(epoch FROM clock_timestamp())::float8"
RECORD = """
INSERT INTO ledger.connecting (channel, account_id, tried_at, problem, answer)
VALUES (%(channel)s, %(account)s, clock_timestamp(), %(problem)s, %(answer)s)
ON CONFLICT (channel, account_id) DO UPDATE
SET tried_at = excluded.tried_at, problem = excluded.problem, answer = excluded.answer
"""
SUCCEEDED = """
SELECT channel, account_id FROM ledger.connecting WHERE problem IS NULL
  AND extract(epoch FROM tried_at)::float8 > %(since)s
"""
PROBLEMS = """
SELECT p.channel, nullif(p.account_id, '') AS account_id, p.problem, p.answer,
  to_char(p.tried_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS tried_at
FROM ledger.connecting AS p LEFT JOIN connections AS c USING (channel, account_id)
WHERE p.problem IS NOT NULL AND (c.channel IS NULL OR NOT c.connected OR c.connected_at < p.tried_at)
ORDER BY p.channel, p.account_id LIMIT 1000
"""


class Problem(Struct, frozen=True):
    """Why the last attempt to connect a channel failed; without an account, why it is not registered.

    `answer` is Kommo's text.
    """

    channel: str
    account_id: str | None
    problem: str
    tried_at: str
    answer: str | None = None


class Attempts:
    """The table of attempts, read and written over one connection."""

    def __init__(self, database_url: str, leases: Leases) -> None:
        self._url = database_url
        self._leases = leases
        self._here = asyncio.Lock()
        self._db: Db | None = None
        self._asking = asyncio.Lock()

    async def close(self) -> None:
        """Close the connection to the database."""
        if self._db is not None:
            await self._db.close()

    async def now(self) -> float:
        """Returns the database's time in unix seconds, for `succeeded`."""
        ((moment,),) = cast("list[tuple[float]]", await self._all(NOW, {}))
        return moment

    async def record(
        self, channel: str, account: str = "", problem: str | None = None, answer: str = ""
    ) -> None:
        """Record how an attempt ended, with Kommo's text; without a problem, it succeeded."""
        values: dict[str, object] = {"channel": channel, "account": account}
        await self._all(RECORD, values | {"problem": problem, "answer": answer or None})

    async def succeeded(self, *, since: float) -> set[tuple[str, str]]:
        """Channel and account of each last attempt, of any process, that was after `since` and succeeded."""
        return set(cast("list[tuple[str, str]]", await self._all(SUCCEEDED, {"since": since})))

    @contextlib.asynccontextmanager
    async def turn(self, channel: str, account: str) -> AsyncIterator[None]:
        """Hold the turn to connect a channel to an account, or to disconnect it; waits for it.

        Kommo and the ledger are told one after the other, so two who do so at once would end apart.
        """
        async with await connect(self._url, patience_seconds=None) as db:
            await db.execute(ENDS)
            await db.execute(TAKE_TURN, (names.CONNECTION_LOCK, f"{channel} {account}"))
            yield  # The end of the connection releases the lock.

    async def is_connected(self, scope: Scope) -> bool:
        """Whether the channel is connected as the ledger has it now, however far the views are."""
        rows = await self._all(LAST_EVENT, {"stream": ids.connection_stream(scope)})
        return bool(rows) and isinstance(e.decode(unpack(cast("bytes", rows[0][0]))), e.ChannelConnected)

    @contextlib.asynccontextmanager
    async def startup_turn(self) -> AsyncIterator[None]:
        """Hold the turn to connect channels at start, which one process has at a time; waits for it."""
        async with self._here, self._startup_turn():  # The lease is the process's.
            yield

    @contextlib.asynccontextmanager
    async def _startup_turn(self) -> AsyncIterator[None]:
        while not await self._leases.take({LEASE: names.CONNECT_LOCK}):  # noqa: ASYNC110  # of the database
            await asyncio.sleep(LOCK_POLL_SECONDS)
        try:
            yield
        finally:
            await self._leases.release([LEASE])

    async def _all(self, statement: str, values: dict[str, object]) -> list[tuple[object, ...]]:
        async with self._asking:
            if self._db is not None and not self._db.closed:
                with contextlib.suppress(psycopg.OperationalError):  # It broke while it was idle.
                    return await _fetch(self._db, statement, values)
                await self._db.close()
            self._db = await connect(self._url)
            return await _fetch(self._db, statement, values)


async def _fetch(db: Db, statement: str, values: dict[str, object]) -> list[tuple[object, ...]]:
    cursor = await db.execute(statement.encode(), values)
    return await cursor.fetchall() if cursor.description else []
