"""Reads go over a few connections, made when needed and mended when broken, and wait their turn."""

import asyncio
import select
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TypeAlias, TypeVar, cast

import psycopg
from psycopg import sql
from psycopg.pq import TransactionStatus
from psycopg.rows import class_row, tuple_row

from app import schema
from app.project import SCHEMA

CONNECTIONS = 4
STATEMENT_TIMEOUT_SECONDS = 10

Link: TypeAlias = psycopg.AsyncConnection[tuple[object, ...]]
Row = TypeVar("Row")


class ViewsMissing(Exception):
    """The views are not made yet: try again in a moment."""


class BadFilter(ValueError):
    """A value that cannot be looked for, such as text with a NUL character or an id that is no UUID."""


class Pool:
    """At most `connections` connections that read the views; they time out after 10 s a statement."""

    def __init__(self, url: str, *, connections: int = CONNECTIONS) -> None:
        self._url = url
        self._free: list[Link] = []
        self._places = asyncio.Semaphore(connections)

    async def close(self) -> None:
        """Close the connections that nobody uses; those in use are closed when they are given back."""
        self._places = asyncio.Semaphore(0)
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
        except (psycopg.errors.UndefinedTable, psycopg.errors.InternalError):
            pass  # The views were switched between the planning of the statement and its run.
        try:
            return await self._fetch(kind, statement, values, prepare)
        except psycopg.errors.UndefinedTable as error:
            raise ViewsMissing("the views are being made") from error

    async def _fetch(
        self, kind: type[Row], statement: str, values: Mapping[str, object], prepare: bool
    ) -> list[Row]:
        async with self.link() as link:
            try:
                async with link.cursor(binary=True, row_factory=class_row(kind)) as cursor:
                    await cursor.execute(statement, values, prepare=prepare)
                    return await cursor.fetchall()
            except psycopg.DataError as error:
                raise BadFilter(str(error).strip()) from error

    async def rows(self, statement: str, values: Mapping[str, object]) -> list[tuple[object, ...]]:
        """All rows of a statement about the ledger itself, as tuples."""
        async with self.link() as link, link.cursor(binary=True, row_factory=tuple_row) as cursor:
            await cursor.execute(statement, values, prepare=True)
            return await cursor.fetchall()

    @asynccontextmanager
    async def link(self) -> AsyncIterator[Link]:
        """One of the connections, to this caller alone."""
        places = self._places
        async with places:
            link = await self._take()
            try:
                yield link
            finally:
                idle = link.info.transaction_status == TransactionStatus.IDLE
                if idle and not link.closed and places is self._places:
                    self._free.append(link)
                else:
                    await link.close()

    async def _take(self) -> Link:
        """A free connection that still works, or a new one."""
        while self._free:
            link = self._free.pop()
            if not link.closed and not _hung_up(link):
                return link
            await link.close()
        link = await schema.connect(self._url)
        timeout = sql.Literal(f"{STATEMENT_TIMEOUT_SECONDS}s")
        try:
            await link.execute(sql.SQL("SET search_path = {}").format(sql.Identifier(SCHEMA)))
            await link.execute(sql.SQL("SET statement_timeout = {}").format(timeout))
            await link.execute("SET timezone = 'UTC'")
        except psycopg.Error:
            await link.close()
            raise
        return link


def _hung_up(link: Link) -> bool:
    """Whether the server has closed its end: an idle connection has nothing to read but that."""
    poll = select.poll()
    poll.register(link.fileno(), select.POLLIN | select.POLLHUP)
    if not poll.poll(0):
        return False
    try:
        link.pgconn.consume_input()
    except psycopg.OperationalError:
        return True
    return link.closed or cast("int", link.pgconn.status) != 0
