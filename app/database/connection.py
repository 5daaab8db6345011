"""Every connection of the service: the role `chatledger`, and the session settings that the code relies on.

The role cannot change or delete an event. The settings are set in each session, because a database, a role or
the environment may have others: a `client_encoding` of LATIN1 would write broken text into the views, another
`DateStyle` cannot be read, and `synchronous_commit = off` would make an acknowledged event not durable.

What the URL says about timeouts and keepalives counts; what it leaves out is short here, because a connection
to a host that vanished would otherwise wait for hours.
"""

import asyncio
from typing import TypeAlias

import psycopg
from psycopg import AsyncConnection, sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from app.database.names import ROLE

Db: TypeAlias = AsyncConnection[tuple[object, ...]]

NO_ANSWER = "the database does not answer in time"
# Times are in seconds, but for tcp_user_timeout in milliseconds. Chosen: a host that vanished is noticed
# within 5 s, as long as Kommo waits for an answer, while a server that is only busy keeps its connections.
NETWORK: dict[str, int | str] = {
    "application_name": "chatledger",
    "connect_timeout": 4,
    "keepalives": 1,
    "keepalives_idle": 2,
    "keepalives_interval": 1,
    "keepalives_count": 3,
    "tcp_user_timeout": 5_000,
}
# An operator may ask for more than `on` (`remote_apply`), never for less. The empty path leaves pg_catalog.
SESSION = """
SET statement_timeout = 0; SET lock_timeout = 0;
SET idle_in_transaction_session_timeout = 0; SET idle_session_timeout = 0;
SET default_transaction_isolation = 'read committed'; SET default_transaction_deferrable = off;
SET default_transaction_read_only = off;
SET DateStyle = 'ISO, MDY'; SET IntervalStyle = 'postgres'; SET TimeZone = 'UTC';
SET search_path = ''; SET bytea_output = 'hex'; SET extra_float_digits = 1;
SET standard_conforming_strings = on;
SELECT set_config('synchronous_commit', 'on', false)
 WHERE current_setting('synchronous_commit') NOT IN ('on', 'remote_apply');
"""


async def connect(url: str) -> Db:
    """Open an autocommit connection as the role `chatledger`. Raises psycopg.OperationalError."""
    return await _open(url, sql.SQL(SESSION + "SET ROLE {}").format(sql.Identifier(ROLE)))


async def open_session(url: str) -> Db:
    """Open an autocommit connection as the URL's user, who may be the owner of the tables.

    Raises psycopg.OperationalError.
    """
    return await _open(url, sql.SQL(SESSION))


async def _open(url: str, statements: sql.SQL | sql.Composed) -> Db:
    known = conninfo_to_dict(url)
    parameters = {name: value for name, value in NETWORK.items() if name not in known}
    db = await AsyncConnection.connect(
        make_conninfo(url, client_encoding="UTF8", **parameters), autocommit=True
    )
    try:
        await db.execute(statements)
    except (psycopg.Error, asyncio.CancelledError):
        await db.close()
        raise
    return db
