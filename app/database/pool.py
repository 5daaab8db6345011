"""A small pool of read connections, opened lazily and replaced when broken.

A read waits its turn for one of the connections. When a connection turns out to be broken, the server was
away, so all idle ones are dropped and the read is tried once more on a new connection; the same happens when
the views are switched between the planning of a statement and its run.

The pool is our own because psycopg_pool measured worse. With `list_messages` it did 0.94 of the reads a
second at 16 readers and 0.92 at 64, with a p99 1.11 times ours at both. While the server is away, ours
reports it within a millisecond and works 20 ms after it is back; psycopg_pool makes every reader wait for its
timeout first, and worked 2 to 9 s after the server was back, because it reconnects in the background at
growing intervals.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TypeVar

import psycopg
from psycopg import sql
from psycopg.pq import TransactionStatus
from psycopg.rows import class_row

from app.database import connection
from app.database.connection import NO_ANSWER, Db
from app.database.names import VIEWS_SCHEMA
from app.deadline import ANSWER_SECONDS, within

CONNECTIONS = 4  # chosen: more would only compete for the same cores of the database server
# Chosen: a connection that is dead makes room for another one before the answer is given up.
PATIENCE_SECONDS = 4.0
STATEMENT_TIMEOUT_SECONDS = 10  # chosen: every read has an index, so a longer one is a mistake


Row = TypeVar("Row")

# Views of an older version lack columns. They are in force until the new ones, built beside them, are ready.
MISSING = (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn)


class ViewsMissing(Exception):
    """The views are not built yet, or still those of an older version: try again in a moment."""


class BadFilter(ValueError):
    """A value that PostgreSQL cannot search for: text with a NUL character, or an id that is no UUID."""


class Pool:
    """At most `connections` connections that read the views; a statement times out after 10 s."""

    def __init__(self, url: str, *, connections: int = CONNECTIONS) -> None:
        self._url = url
        self._idle: list[Db] = []
        self._slots = asyncio.Semaphore(connections)
        self._closed = False

    async def close(self) -> None:
        """Close the idle connections now, and each of the others when it is returned."""
        self._closed = True
        await self._close_idle()

    async def _close_idle(self) -> None:
        while self._idle:
            await self._idle.pop().close()

    async def fetch(
        self, kind: type[Row], statement: str, values: Mapping[str, object], *, prepare: bool = True
    ) -> list[Row]:
        """Returns the rows of a statement, each as a `kind` whose fields are named like the columns.

        `prepare=False` plans the statement for these values instead of reusing a plan. Raises ViewsMissing,
        BadFilter, psycopg.OperationalError, also if there is no answer within 4.5 s.
        """
        try:
            return await within(ANSWER_SECONDS, self._fetch_again(kind, statement, values, prepare))
        except TimeoutError:
            raise psycopg.OperationalError(NO_ANSWER) from None

    async def _fetch_again(
        self, kind: type[Row], statement: str, values: Mapping[str, object], prepare: bool
    ) -> list[Row]:
        """The rows, at the second try if the first met a broken connection or views that were switched."""
        try:
            return await self._fetch(kind, statement, values, prepare)
        except (*MISSING, psycopg.errors.InternalError):
            pass  # The views were switched between the planning of the statement and its run.
        except psycopg.OperationalError as error:
            if isinstance(error, psycopg.errors.QueryCanceled):
                raise
            await self._close_idle()  # One connection is broken, so the server was away and all are.
        try:
            return await self._fetch(kind, statement, values, prepare)
        except MISSING as error:
            raise ViewsMissing("the views are being made") from error

    async def _fetch(
        self, kind: type[Row], statement: str, values: Mapping[str, object], prepare: bool
    ) -> list[Row]:
        async with self.connection() as db:
            try:
                async with db.cursor(binary=True, row_factory=class_row(kind)) as cursor:
                    await cursor.execute(statement, values, prepare=prepare)
                    return await cursor.fetchall()
            except psycopg.DataError as error:
                raise BadFilter(str(error).strip()) from error

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Db]:
        """Lend one of the connections to this caller. Raises psycopg.OperationalError."""
        async with self._slots:
            if self._closed:
                raise psycopg.OperationalError("the pool is closed")
            db = await self._take()
            try:
                yield db
            finally:
                usable = db.info.transaction_status == TransactionStatus.IDLE
                if usable and not db.closed and not self._closed:
                    self._idle.append(db)
                else:
                    await db.close()

    async def connect_dedicated(self) -> Db:
        """Open a connection outside the pool for a caller that holds a lock with it; the caller closes it."""
        return await connection.connect(self._url)

    async def _take(self) -> Db:
        """Returns an idle connection, or a new one."""
        while self._idle:
            db = self._idle.pop()
            if not db.closed:
                return db
        db = await connection.connect(self._url, patience_seconds=PATIENCE_SECONDS)
        timeout = sql.Literal(f"{STATEMENT_TIMEOUT_SECONDS}s")
        try:
            await db.execute(sql.SQL("SET search_path = {}").format(sql.Identifier(VIEWS_SCHEMA)))
            await db.execute(sql.SQL("SET statement_timeout = {}").format(timeout))
            await db.execute("SET timezone = 'UTC'")
        except psycopg.Error:
            await db.close()
            raise
        return db
