"""Reads go over a few connections, made when needed and mended when broken, and wait their turn."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TypeVar

import psycopg
from psycopg import sql
from psycopg.pq import TransactionStatus
from psycopg.rows import class_row

from app.database import connection
from app.database.connection import Db
from app.database.names import VIEWS_SCHEMA

CONNECTIONS = 4
STATEMENT_TIMEOUT_SECONDS = 10

Row = TypeVar("Row")


# Views of an older version lack columns; they are in force until the new ones, made beside them, are ready.
MISSING = (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn)


class ViewsMissing(Exception):
    """The views are not made yet, or still those of an older version: try again in a moment."""


class BadFilter(ValueError):
    """A value that cannot be looked for, such as text with a NUL character or an id that is no UUID."""


class Pool:
    """At most `connections` connections that read the views; they time out after 10 s a statement."""

    def __init__(self, url: str, *, connections: int = CONNECTIONS) -> None:
        self._url = url
        self._free: list[Db] = []
        self._places = asyncio.Semaphore(connections)
        self._closed = False

    async def close(self) -> None:
        """Close the connections that nobody uses; those in use are closed when they are given back."""
        self._closed = True
        await self._drop()

    async def _drop(self) -> None:
        while self._free:
            await self._free.pop().close()

    async def fetch(
        self, kind: type[Row], statement: str, values: Mapping[str, object], *, prepare: bool = True
    ) -> list[Row]:
        """All rows of a statement, each as a `kind` made by the names of its columns.

        `prepare=False` plans it for these very values. Raises ViewsMissing, BadFilter, OperationalError.
        """
        try:
            return await self._fetch(kind, statement, values, prepare)
        except (*MISSING, psycopg.errors.InternalError):
            pass  # The views were switched between the planning of the statement and its run.
        except psycopg.OperationalError as error:
            if isinstance(error, psycopg.errors.QueryCanceled):
                raise
            await self._drop()  # One link is broken: the server was away, so the others are as well.
        try:
            return await self._fetch(kind, statement, values, prepare)
        except MISSING as error:
            raise ViewsMissing("the views are being made") from error

    async def _fetch(
        self, kind: type[Row], statement: str, values: Mapping[str, object], prepare: bool
    ) -> list[Row]:
        async with self.connection() as link:
            try:
                async with link.cursor(binary=True, row_factory=class_row(kind)) as cursor:
                    await cursor.execute(statement, values, prepare=prepare)
                    return await cursor.fetchall()
            except psycopg.DataError as error:
                raise BadFilter(str(error).strip()) from error

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Db]:
        """One of the connections, to this caller alone."""
        async with self._places:
            if self._closed:
                raise psycopg.OperationalError("the pool is closed")
            link = await self._take()
            try:
                yield link
            finally:
                idle = link.info.transaction_status == TransactionStatus.IDLE
                if idle and not link.closed and not self._closed:
                    self._free.append(link)
                else:
                    await link.close()

    async def connect_dedicated(self) -> Db:
        """A connection beside the pool, for who holds a lock with it, and closes it."""
        return await connection.connect(self._url)

    async def _take(self) -> Db:
        """A free connection, or a new one."""
        while self._free:
            link = self._free.pop()
            if not link.closed:
                return link
        link = await connection.connect(self._url)
        timeout = sql.Literal(f"{STATEMENT_TIMEOUT_SECONDS}s")
        try:
            await link.execute(sql.SQL("SET search_path = {}").format(sql.Identifier(VIEWS_SCHEMA)))
            await link.execute(sql.SQL("SET statement_timeout = {}").format(timeout))
            await link.execute("SET timezone = 'UTC'")
        except psycopg.Error:
            await link.close()
            raise
        return link
