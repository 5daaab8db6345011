"""The binary fast path to PostgreSQL, past psycopg's conversions: columns, and prepared statements.

A column (`projections.columns`) is an array in PostgreSQL's own binary format, so it is sent as it is.
"""

import asyncio
import socket
from collections.abc import Callable, Sequence
from struct import Struct
from typing import cast

import psycopg
from psycopg.adapt import Dumper
from psycopg.pq import ExecStatus, Format
from psycopg.pq.abc import PGresult

from app.database.connection import NO_ANSWER, Db, Session
from projections.columns import COLUMNS, Column

_ELEMENT = Struct(">ii")  # size, value
_ARRAY_HEAD = 20  # bytes before the first element of a one-dimensional array
# Chosen: more than a full batch of the ledger; Linux grants what its own limit allows.
SEND_BYTES = 1024 * 1024


class _ColumnDumper(Dumper):
    format = Format.BINARY

    def dump(self, obj: Column) -> Column:
        return obj


_DUMPERS = [
    (column, cast("type[Dumper]", type(column.__name__, (_ColumnDumper,), {"oid": column.OID})))
    for column in COLUMNS
]


def take_columns(connection: Db) -> None:
    """Let a connection take columns as parameters, at a fifth of the cost of dumping lists."""
    for column, dumper in _DUMPERS:
        connection.adapters.register_dumper(column, dumper)


class Prepared:
    """A prepared statement that returns one row, at a third of the cost of psycopg's cursor.

    Only one call at a time is allowed, and nothing else may use the connection meanwhile.
    """

    def __init__(self, connection: Db, name: str) -> None:
        self._pg = connection.pgconn
        self._patience_seconds = connection.patience_seconds if isinstance(connection, Session) else None
        self._name = name.encode()
        self._loop = asyncio.get_running_loop()
        _enlarge_buffer(self._pg.socket)

    async def row(self, parameters: Sequence[bytes]) -> list[bytes | None]:
        """Run the statement; returns the row's values in binary format. Raises psycopg.Error, as a cursor
        would, and closes the connection as `Session` does.

        `parameters` are columns or other values in PostgreSQL's binary format.
        """
        try:
            async with asyncio.timeout(self._patience_seconds):
                return await self._row(parameters)
        except TimeoutError:
            self._pg.finish()
            raise psycopg.OperationalError(NO_ANSWER) from None

    async def _row(self, parameters: Sequence[bytes]) -> list[bytes | None]:
        pg, descriptor = self._pg, self._pg.socket
        pg.send_query_prepared(self._name, parameters, [Format.BINARY] * len(parameters), Format.BINARY)
        while pg.flush():
            await self._ready(descriptor, self._loop.add_writer, self._loop.remove_writer)
        results: list[PGresult] = []
        while True:  # To the end even after an error, or the next statement would read what is left.
            while pg.is_busy():
                await self._ready(descriptor, self._loop.add_reader, self._loop.remove_reader)
                pg.consume_input()
            if (one := pg.get_result()) is None:
                break
            results.append(one)
        while pg.notifies():
            pass
        result = results[-1] if results else None
        if result is None or result.status != ExecStatus.TUPLES_OK:
            raise _error(result)
        return [result.get_value(0, column) for column in range(result.nfields)]

    async def _ready(
        self, descriptor: int, watch: Callable[..., None], unwatch: Callable[[int], bool]
    ) -> None:
        """Wait until the socket is readable or writable."""
        ready = self._loop.create_future()
        watch(descriptor, _set, ready)
        try:
            await ready
        finally:
            unwatch(descriptor)


def _enlarge_buffer(descriptor: int) -> None:
    """Let a Unix socket take a statement whole, because PostgreSQL waits for the rest while our loop is busy.

    Linux grants at most twice `net.core.wmem_max`, which is 416 KB by default; the buffer of a TCP socket
    grows by itself.
    """
    borrowed = socket.socket(fileno=descriptor)
    try:
        if borrowed.family == socket.AF_UNIX:
            borrowed.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BYTES)
    finally:
        borrowed.detach()  # The descriptor belongs to psycopg.


def _set(ready: "asyncio.Future[None]") -> None:
    if not ready.done():
        ready.set_result(None)


def _error(result: PGresult | None) -> psycopg.Error:
    if result is None or result.status != ExecStatus.FATAL_ERROR:
        return psycopg.OperationalError("the server did not answer one row")
    return psycopg.errors.error_from_result(result)


def int_array(raw: bytes | None) -> list[int]:
    """Returns the elements of an integer[] without nulls; an empty list for NULL and for an empty array."""
    return [value for _, value in _ELEMENT.iter_unpack(raw[_ARRAY_HEAD:])] if raw else []
