"""Databases of a test's own on the PostgreSQL that all tests share."""

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import psycopg
from psycopg import sql

from app.servers.servers import Servers

NewDatabase = Callable[..., Awaitable[str]]


@asynccontextmanager
async def database(servers: Servers, template: str = "template0") -> AsyncIterator[str]:
    """A new database, empty or a copy of another; gives its URL and drops it at the end.

    A template, to which nobody may be connected, is copied in milliseconds.
    """
    name = f"test_{secrets.token_hex(8)}"
    made, copied = sql.Identifier(name), sql.Identifier(template)
    async with await psycopg.AsyncConnection.connect(servers.database_url, autocommit=True) as connection:
        await connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(made, copied))
        try:
            yield servers.database_url.replace("/postgres?", f"/{name}?")
        finally:
            await connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(made))
