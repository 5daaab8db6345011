"""The destinations that rest, kept in the database: a person sees them, and a restart goes on with them.

An account of Kommo, or a messenger, that refuses us rests: what is for it waits, and it is tried again from
time to time (`delivery.destinations`). A row lasts as long as the rest. `marks` shows whether anything has
changed that may end it, so that it is tried at once: the channel's settings, its connection, the account's
consent to our using its CRM, or somebody who resumes deliveries (`nudge`).
"""

import asyncio
import logging
from collections.abc import Sequence
from typing import cast

import psycopg
from msgspec import Struct

from app.clock import text
from app.database.connection import Db, connect
from app.delivery.job import RestKey

log = logging.getLogger("chatledger.push")

BEGIN = """INSERT INTO ledger.rests AS r (channel, account_id, destination, since, next_at, reason, answer)
 VALUES (%(channel)s, %(account)s, %(side)s, %(now)s, %(next)s, %(reason)s, %(answer)s)
 ON CONFLICT (channel, account_id, destination) DO UPDATE SET next_at = excluded.next_at,
 reason = excluded.reason, answer = excluded.answer, tries = r.tries + 1
 RETURNING (extract(epoch FROM since) * 1000)::bigint"""
END = """DELETE FROM ledger.rests
 WHERE channel = %(channel)s AND account_id = %(account)s AND destination = %(side)s"""
MARKS = """SELECT k.channel, k.account_id, k.side,
 concat_ws(' ', c.position, n.position, t.generation, r.nudges)
 FROM unnest(%(channels)s::text[], %(accounts)s::text[], %(sides)s::text[]) AS k(channel, account_id, side)
 LEFT JOIN views.channels AS c ON c.name = k.channel
 LEFT JOIN views.connections AS n ON n.channel = k.channel AND n.account_id = k.account_id
 LEFT JOIN ledger.tokens AS t ON t.account_id = k.account_id
 LEFT JOIN ledger.rests AS r
   ON (r.channel, r.account_id, r.destination) = (k.channel, k.account_id, k.side)"""
NUDGE = """UPDATE ledger.rests SET nudges = nudges + 1
 WHERE (%(channel)s::text IS NULL OR channel = %(channel)s)
 AND (%(account)s::text IS NULL OR account_id = %(account)s)"""
RESTS = """SELECT channel, account_id, destination, reason, answer, tries,
 to_char(since AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS since,
 to_char(next_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS next_try_at
 FROM ledger.rests ORDER BY since, channel, account_id, destination LIMIT 1000"""


class Resting(Struct, frozen=True):
    """A destination that refuses us since `since`: what is for it waits. `answer` is its own text.

    `tries` counts the refused calls that showed it, the first included.
    """

    channel: str
    account_id: str
    destination: str
    since: str
    next_try_at: str
    tries: int
    reason: str
    answer: str


class Rests:
    """The table of rests. A database that is away costs the record of a rest, never the rest itself."""

    def __init__(self, database_url: str) -> None:
        self._url = database_url
        self._connection: Db | None = None
        self._turn = asyncio.Lock()

    async def close(self) -> None:
        """Close the connection to the database."""
        if self._connection is not None:
            await self._connection.close()

    async def begin(self, key: RestKey, now_ms: int, next_ms: int, reason: str, answer: str) -> int:
        """Record a refusal; returns since when the destination rests, in unix milliseconds."""
        values = _named(key) | {"now": text(now_ms), "next": text(next_ms), "reason": reason}
        rows = await self._all(BEGIN, values | {"answer": answer.replace("\0", "")})
        return cast("int", rows[0][0]) if rows else now_ms

    async def end(self, key: RestKey) -> None:
        """Forget a rest: the destination has taken something."""
        await self._all(END, _named(key))

    async def marks(self, keys: Sequence[RestKey]) -> dict[RestKey, str]:
        """A text for each rest that changes when something has changed that may end it."""
        columns = zip(("channels", "accounts", "sides"), zip(*keys, strict=True), strict=True)
        rows = await self._all(MARKS, {name: list(values) for name, values in columns})
        return {(str(row[0]), str(row[1]), str(row[2])): str(row[3]) for row in rows}

    async def nudge(self, channel: str | None = None, account: str | None = None) -> None:
        """Have the rests that fit tried at once."""
        await self._all(NUDGE, {"channel": channel, "account": account})

    async def _all(self, statement: str, values: dict[str, object]) -> list[tuple[object, ...]]:
        for _ in range(2):  # The first time, the connection may have broken since it was used.
            try:
                async with self._turn:  # Two that need a new connection at once would leave one open.
                    if self._connection is None or self._connection.closed:
                        self._connection = await connect(self._url)
                    cursor = await self._connection.execute(statement.encode(), values)
                    return [] if cursor.description is None else await cursor.fetchall()
            except psycopg.Error as error:
                problem = str(error).strip()
        log.warning("a rest is not recorded: %s", problem)
        return []


def _named(key: RestKey) -> dict[str, object]:
    return dict(zip(("channel", "account", "side"), key, strict=True))
