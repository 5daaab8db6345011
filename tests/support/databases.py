"""Databases of a test's own on the PostgreSQL that all tests share."""

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import psycopg
from psycopg import sql

from app.servers.servers import Servers

WITHOUT_A_SECRET = """CREATE SCHEMA ledger;
CREATE TABLE ledger.meta (one boolean PRIMARY KEY DEFAULT true CHECK (one),
  id uuid NOT NULL DEFAULT gen_random_uuid(), version integer NOT NULL);
INSERT INTO ledger.meta (version) VALUES (1)"""
NewDatabase = Callable[..., Awaitable[str]]


async def make_without_a_secret(url: str) -> None:
    """Give an empty database the sign of a ledger from before ids had a secret."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as new:
        await new.execute(WITHOUT_A_SECRET)


@asynccontextmanager
async def database(
    servers: Servers, template: str = "template0", *, keyed: bool = False
) -> AsyncIterator[str]:
    """A new database, or a copy of another; gives its URL and drops it at the end.

    A template, to which nobody may be connected, is copied in milliseconds. Another one holds nothing but the
    sign of a ledger from before ids had a secret, so that a test makes the same ids as the services that it
    starts; a `keyed` one is empty, and only for services in processes of their own.
    """
    name = f"test_{secrets.token_hex(8)}"
    made, copied = sql.Identifier(name), sql.Identifier(template)
    async with await psycopg.AsyncConnection.connect(servers.database_url, autocommit=True) as connection:
        await connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(made, copied))
        try:
            url = servers.database_url.replace("/postgres?", f"/{name}?")
            if template == "template0" and not keyed:
                await make_without_a_secret(url)
            yield url
        finally:
            await connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(made))
