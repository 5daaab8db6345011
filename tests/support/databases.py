"""Databases of a test's own on the PostgreSQL that all tests share."""

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import psycopg
from psycopg import sql

from app.servers.servers import Servers

NewDatabase = Callable[..., Awaitable[str]]


@asynccontextmanager
async def database(servers: Servers) -> AsyncIterator[str]:
    """A database of its own on the servers that all tests share."""
    name = f"story_{secrets.token_hex(8)}"
    async with await psycopg.AsyncConnection.connect(servers.database_url, autocommit=True) as connection:
        await connection.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(name))
        )
        try:
            yield servers.database_url.replace("/postgres?", f"/{name}?")
        finally:
            await connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
