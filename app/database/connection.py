"""Every connection of the service: the role `chatledger`, and the session settings that the code relies on.

The role cannot change or delete an event. The settings are set in each session, because a database, a role or
the environment may have others: a `client_encoding` of LATIN1 would write broken text into the views, another
`DateStyle` cannot be read, and `synchronous_commit = off` would make an acknowledged event not durable.

What the URL says about timeouts, keepalives and kinds of servers counts. Of several hosts the primary is
taken, whichever it is now; a standby, which cannot store anything, is refused. Times that the URL leaves out
are short here, because a connection to a host that vanished would otherwise wait for hours. Keepalives do not
find that a server vanished behind a proxy, which answers them itself. So a statement also has a time to be
answered in, after which its connection is closed (`Session`), without a request to cancel it: cancelled while
it waits for a synchronous standby, a commit would be seen by all, and would not be on the standby.
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator
from typing import Any, TypeAlias

import psycopg
from psycopg import AsyncConnection, sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import ConnStatus

from app.database.names import ROLE

Db: TypeAlias = AsyncConnection[tuple[object, ...]]

NO_ANSWER = "the database does not answer in time"
# Chosen: every statement of the service has an index and takes milliseconds; what has lost its way to the
# database finds another one, or another process takes over, within 15 s.
PATIENCE_SECONDS = 5.0
# Chosen: how late a connection that only listens may notice that it is dead; what listens also polls.
ALIVE_SECONDS = 10.0
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
    "target_session_attrs": "primary",
}
# The least that psycopg takes. Hosts are tried one after another, so that of three, two may have vanished.
CONNECT_SECONDS_OF_SEVERAL = 2
# What libpq says of a server that is not of the kind that `target_session_attrs` asks for.
STANDBY = ("server is in hot standby mode", "session is read-only")
# An operator may ask for more than `on` (`remote_apply`), never for less. The empty path leaves pg_catalog.
# PostgreSQL has had transaction_timeout since 17. The server gives up on us, too, when our host has vanished:
# by default it would keep our locks for two hours.
SESSION = """
SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 3; SET tcp_keepalives_count = 3;
SET tcp_user_timeout = 20000;
SET statement_timeout = 0; SET lock_timeout = 0;
SET idle_in_transaction_session_timeout = 0; SET idle_session_timeout = 0;
SET default_transaction_isolation = 'read committed'; SET default_transaction_deferrable = off;
SET default_transaction_read_only = off;
SET DateStyle = 'ISO, MDY'; SET IntervalStyle = 'postgres'; SET TimeZone = 'UTC';
SET search_path = ''; SET bytea_output = 'hex'; SET extra_float_digits = 1;
SET standard_conforming_strings = on; SET array_nulls = on;
SELECT set_config('transaction_timeout', '0', false)
 WHERE current_setting('transaction_timeout', true) IS NOT NULL;
SELECT set_config('synchronous_commit', 'on', false)
 WHERE current_setting('synchronous_commit') NOT IN ('on', 'remote_apply');
"""


class OnlyStandby(psycopg.OperationalError):
    """Those servers at the URL that answer are standbys, or read-only: none of them can store anything."""

    def __init__(self) -> None:
        super().__init__(
            "no server at CHATLEDGER_DATABASE_URL takes writes, each that answers is a standby or read-only:"
            " promote one, or name the primary in the URL, or all servers of the cluster"
        )


class Session(AsyncConnection[tuple[object, ...]]):
    """A connection that is closed when a statement is not answered within `patience_seconds` (None: ever)."""

    patience_seconds: float | None = None

    async def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        """Wait for the server, as psycopg does for every statement; OperationalError if it does not answer.

        `timeout` is that of a wait for notifications, which may well be in vain.
        """
        if timeout is not None:
            return await super().wait(gen, interval, timeout)
        began = time.monotonic()
        try:
            return await super().wait(gen, interval, self.patience_seconds)
        except psycopg.OperationalError as error:
            early = time.monotonic() - began < (self.patience_seconds or math.inf)
            # The server has answered, or is gone, or the error is psycopg's own, as of an aborted pipeline.
            if error.sqlstate or self.pgconn.status != ConnStatus.OK or early:
                raise
            self.pgconn.finish()
            raise psycopg.OperationalError(NO_ANSWER) from error


async def connect(url: str, *, patience_seconds: float | None = PATIENCE_SECONDS) -> Db:
    """Open an autocommit connection as the role `chatledger`. Raises psycopg.OperationalError.

    `patience_seconds` is how long a statement may take, None as long as it needs.
    """
    statements = sql.SQL(SESSION + "SET ROLE {}").format(sql.Identifier(ROLE))
    return await _open(url, statements, patience_seconds)


async def open_session(url: str) -> Db:
    """Open an autocommit connection as the URL's user, who may be the owner of the tables.

    Raises psycopg.OperationalError.
    """
    return await _open(url, sql.SQL(SESSION), None)


async def notified(db: Db) -> AsyncIterator[None]:
    """Yields at each notification, without end. Raises psycopg.OperationalError if the connection is dead."""
    while True:
        async for _ in db.notifies(timeout=ALIVE_SECONDS):
            yield
        await db.execute("SELECT 1")


async def _open(url: str, statements: sql.SQL | sql.Composed, patience_seconds: float | None) -> Db:
    db = await reach(url)
    db.patience_seconds = patience_seconds
    try:
        await db.execute(statements)
    except (psycopg.Error, asyncio.CancelledError):
        await db.close()
        raise
    return db


async def reach(url: str) -> Session:
    """Open an autocommit connection whose settings are still the server's.

    Raises psycopg.OperationalError, and OnlyStandby.
    """
    known = conninfo_to_dict(url)
    parameters = {name: value for name, value in NETWORK.items() if name not in known}
    if "connect_timeout" in parameters and "," in f"{known.get('host', '')}{known.get('hostaddr', '')}":
        parameters["connect_timeout"] = CONNECT_SECONDS_OF_SEVERAL
    try:
        return await Session.connect(
            make_conninfo(url, client_encoding="UTF8", **parameters), autocommit=True
        )
    except psycopg.OperationalError as error:
        if any(words in str(error) for words in STANDBY):
            raise OnlyStandby from error
        raise
