"""Who looked: each read of content, each change and each sign-in, with who did it, outside the ledger.

Theory of operation. An entry costs a request nothing but memory: entries wait in this process and are written
together, once a second or when many have come. Reads stay fast, also while the database is slow; what does
not fit is counted, and the count is written as an entry of its own as soon as entries can be written again,
so that a gap is seen. A process that is killed loses the entries of its last second.

Entries older than the configured days are deleted, a bounded number at a time.
"""

import asyncio
import contextlib
import logging
from collections import deque
from itertools import islice
from typing import NoReturn

import psycopg
from msgspec import Struct

from app import clock, metrics
from app.access.callers import Caller
from app.database.pool import Pool
from app.views.cursor import LIMIT, decode_cursor, encode_cursor

FLUSH_SECONDS = 1.0  # Chosen: what a killed process may lose, and one small write a second.
ENTRIES_MAX = 20_000  # Chosen: some 10 MB, or a minute of a busy API while the database is away.
ROWS_MAX = 1_000  # Chosen: what is written at once.
EXPIRE_SECONDS = 3600.0
EXPIRED_MAX = 50_000  # Chosen: what is deleted at once, within a second.
LOST = "entries lost"  # The route of an entry that tells how many there is none of.
log = logging.getLogger("chatledger.access")

WRITE = """INSERT INTO ledger.access
 (at, key_id, key_name, method, route, account_id, conversation, message, address, status)
 SELECT * FROM unnest(%(at)s::timestamptz[], %(key_id)s::uuid[], %(key_name)s::text[], %(method)s::text[],
  %(route)s::text[], %(account_id)s::text[], %(conversation)s::text[], %(message)s::text[],
  %(address)s::text[], %(status)s::int[])"""
USED = """UPDATE ledger.keys AS k SET last_used_at = greatest(k.last_used_at, u.at)
 FROM (SELECT id, max(at) AS at FROM unnest(%(key_id)s::uuid[], %(at)s::timestamptz[]) AS u(id, at)
  WHERE id IS NOT NULL GROUP BY id) AS u WHERE k.id = u.id"""
EXPIRE = """DELETE FROM ledger.access WHERE position IN (SELECT position FROM ledger.access
 WHERE at < now() - make_interval(days => %s) ORDER BY position LIMIT %s)"""
# What was read without naming an account may have been about any, so it is shown for each.
LIST = """SELECT position, to_char(at, 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS at, key_id::text, key_name, method,
 route, account_id, conversation, message, address, status FROM ledger.access
 WHERE position < %(before)s::bigint
 AND (%(key)s::text IS NULL OR key_id::text = %(key)s::text OR key_name = %(key)s::text)
 AND (%(account_id)s::text IS NULL OR account_id IS NULL OR account_id = %(account_id)s::text)
 AND (%(since)s::timestamptz IS NULL OR at >= %(since)s::timestamptz)
 AND (%(until)s::timestamptz IS NULL OR at < %(until)s::timestamptz)
 ORDER BY position DESC LIMIT %(limit)s::bigint"""
LAST = 2**63 - 1


class Entry(Struct, frozen=True, kw_only=True):
    """A request that was answered: when, by whose key, for what, from where, and with which status.

    `account_id`, `conversation` and `message` are what the path or the query names.
    """

    at: str
    key_id: str | None
    key_name: str
    method: str
    route: str
    account_id: str | None = None
    conversation: str | None = None
    message: str | None = None
    address: str
    status: int


class Access(Entry, frozen=True, kw_only=True):
    """An entry as it is kept; without an `account_id` it may be about any account in the key's reach."""

    position: int


class AccessPage(Struct, frozen=True):
    """A page of entries, the latest first, and the cursor of the next page."""

    items: list[Access]
    next: str | None


class AccessLog:
    """The entries of this process that are not written yet; they are while `run` is running."""

    def __init__(self, pool: Pool, days: int) -> None:
        """`days`: how long an entry is kept."""
        self._pool = pool
        self._days = days
        self._entries: deque[Entry] = deque()
        self._lost = 0
        self._full = asyncio.Event()
        self._writing = asyncio.Lock()

    def note(self, entry: Entry) -> None:
        """Keep an entry until it is written, or count it if there is no room."""
        if len(self._entries) >= ENTRIES_MAX:
            self._lost += 1
            metrics.ACCESS_LOST.inc()
            return
        self._entries.append(entry)
        if len(self._entries) >= ROWS_MAX:
            self._full.set()

    async def close(self) -> None:
        """Write what is left."""
        try:
            await self.flush()
        except psycopg.Error as error:
            log.error("access: %d entries are not written: %s", len(self._entries), str(error).strip())

    async def run(self) -> NoReturn:
        """Write entries and delete old ones, until cancelled."""
        loop, reason = asyncio.get_running_loop(), ""
        expire_at = loop.time()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FLUSH_SECONDS):
                    await self._full.wait()
            self._full.clear()
            try:
                await self.flush()
                if loop.time() >= expire_at:
                    expire_at = loop.time() + EXPIRE_SECONDS
                    await self._expire()
                reason = ""
            except psycopg.Error as error:
                if str(error) != reason:  # An outage is one line in the log.
                    reason = str(error)
                    log.warning("access: entries wait for the database: %s", reason.strip())
                await asyncio.sleep(FLUSH_SECONDS)

    async def flush(self) -> None:
        """Write all entries that wait. Raises psycopg.Error; they wait on then."""
        async with self._writing:
            while self._entries or self._lost:
                await self._write_some()

    async def _write_some(self) -> None:
        if self._lost and len(self._entries) < ENTRIES_MAX:
            lost, self._lost = self._lost, 0
            self._entries.append(_told(lost))
        rows = list(islice(self._entries, ROWS_MAX))
        await self._write(rows)
        for _ in rows:
            self._entries.popleft()

    async def _write(self, rows: list[Entry]) -> None:
        fields: dict[str, list[object]] = {
            name: [getattr(row, name) for row in rows] for name in Entry.__struct_fields__
        }
        async with self._pool.connection() as db, db.transaction():
            await db.execute(WRITE, fields)
            if any(fields["key_id"]):
                await db.execute(USED, {"key_id": fields["key_id"], "at": fields["at"]})

    async def _expire(self) -> None:
        async with self._pool.connection() as db:
            while True:
                cursor = await db.execute(EXPIRE, (self._days, EXPIRED_MAX))
                if cursor.rowcount < EXPIRED_MAX:
                    return


def entry_of(
    caller: Caller, *, method: str, route: str, names: dict[str, str | None], address: str, status: int
) -> Entry:
    """Returns the entry of a request; `names` are the account, conversation and message that it names."""
    return Entry(
        at=clock.text(clock.now_ms()),
        key_id=caller.id,
        key_name=caller.name,
        method=method,
        route=route,
        account_id=names.get("account_id"),
        conversation=names.get("conversation"),
        message=names.get("message"),
        address=address,
        status=status,
    )


def _told(lost: int) -> Entry:
    text = f"{lost} {LOST}"
    at = clock.text(clock.now_ms())
    return Entry(at=at, key_id=None, key_name="", method="", route=text, address="", status=0)


async def list_access(
    pool: Pool,
    *,
    key: str | None = None,
    account_id: str | None = None,
    since: str | None = None,
    until: str | None = None,
    limit: int = LIMIT,
    cursor: str | None = None,
) -> AccessPage:
    """Returns a page of entries, the latest first; `key` is a key's id or name. Raises BadCursor."""
    values = {
        "key": key,
        "account_id": account_id.lower() if account_id else None,
        "since": since,
        "until": until,
        "before": decode_cursor(cursor, int) if cursor else LAST,
        "limit": limit + 1,
    }
    rows = await pool.fetch(Access, LIST, values, prepare=False)
    items = rows[:limit]
    return AccessPage(items, encode_cursor(items[-1].position) if len(rows) > limit else None)
