"""Every connection of the service works as the role `chatledger`, which cannot change or delete an event."""

import asyncio
from typing import TypeAlias

import psycopg
from psycopg import AsyncConnection, sql

from app.database.names import ROLE

Db: TypeAlias = AsyncConnection[tuple[object, ...]]


async def connect(url: str) -> Db:
    """Open an autocommit connection as the role `chatledger`. Raises psycopg.OperationalError."""
    connection = await AsyncConnection.connect(url, autocommit=True)
    try:
        await connection.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(ROLE)))
    except (psycopg.Error, asyncio.CancelledError):
        await connection.close()
        raise
    return connection
