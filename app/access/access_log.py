"""Who looked: each read of content, each change and each sign-in, with who did it, outside the ledger.

Theory of operation. An entry costs a request nothing but memory: entries wait in this process and are written
together, once a second or when many have come. Whose a conversation or a message is, is looked up then. Reads
stay fast, also while the database is slow; what does not fit, or cannot be written, is counted, and the count
is written as an entry of its own as soon as entries can be written again, so that a gap is seen.

A process that is killed loses the entries of its last second. So that this is seen, each process has a row,
which it touches every few seconds and deletes when all it had is written. The others find a row that nobody
touches any more, and write an entry that says so.

Entries older than the configured days are deleted, a bounded number at a time.
"""

import asyncio
import contextlib
import logging
from collections import deque
from itertools import islice
from typing import LiteralString, NoReturn
from uuid import UUID, uuid4

import psycopg
from msgspec import Struct
from psycopg.rows import TupleRow

from app import clock, metrics
from app.access.callers import Caller
from app.database.pool import Pool
from app.views.cursor import LIMIT, decode_cursor, encode_cursor, is_uuid

FLUSH_SECONDS = 1.0  # Chosen: what a killed process may lose, and one small write a second.
ENTRIES_MAX = 20_000  # Chosen: some 10 MB, or a minute of a busy API while the database is away.
ROWS_MAX = 1_000  # Chosen: what is written at once.
EXPIRE_SECONDS = 3600.0
SIGN_SECONDS = 10.0  # Chosen: how exactly it is told when a process was killed.
GONE_SECONDS = 60.0  # Chosen: a process that is only slow is not taken for a killed one.
CLOSE_SECONDS = 3.0  # Chosen: a process ends within 10 s, and a database that stalls is not waited for.
EXPIRED_MAX = 50_000  # Chosen: what is deleted at once, within a second.
LOST = "entries lost"  # The route of an entry that tells how many there is none of.
log = logging.getLogger("chatledger.access")

WRITE = """INSERT INTO ledger.access
 (at, key_id, key_name, method, route, account_id, conversation, message, address, status)
 SELECT e.at, e.key_id, e.key_name, e.method, e.route, coalesce(e.account_id,
   (SELECT c.account_id FROM conversations AS c WHERE c.id = coalesce(
     (SELECT g.winner FROM merges AS g WHERE g.loser = e.of), e.of)),
   (SELECT c.account_id FROM messages AS m JOIN conversations AS c ON c.id = m.conversation
     WHERE m.id = e.about), e.sole), e.conversation, e.message, e.address, e.status
 FROM unnest(%(at)s::timestamptz[], %(key_id)s::uuid[], %(key_name)s::text[], %(method)s::text[],
  %(route)s::text[], %(account_id)s::text[], %(conversation)s::text[], %(message)s::text[],
  %(address)s::text[], %(status)s::int[], %(sole)s::text[], %(of)s::uuid[], %(about)s::uuid[]) AS e
  (at, key_id, key_name, method, route, account_id, conversation, message, address, status, sole, of, about)
"""
SIGN = """INSERT INTO ledger.access_writers AS w (id, seen_at) VALUES (%s, now())
 ON CONFLICT (id) DO UPDATE SET seen_at = excluded.seen_at"""
SIGN_OFF = "DELETE FROM ledger.access_writers WHERE id = %s"
GONE = """DELETE FROM ledger.access_writers WHERE seen_at < now() - make_interval(secs => %s)
 RETURNING to_char(seen_at, 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')"""
USED = """UPDATE ledger.keys AS k SET last_used_at = greatest(k.last_used_at, u.at)
 FROM (SELECT id, max(at) AS at FROM unnest(%(key_id)s::uuid[], %(at)s::timestamptz[]) AS u(id, at)
  WHERE id IS NOT NULL GROUP BY id) AS u WHERE k.id = u.id"""
EXPIRE = """DELETE FROM ledger.access WHERE position IN (SELECT position FROM ledger.access
 WHERE at < now() - make_interval(days => %s) ORDER BY position LIMIT %s)"""
# What was read without naming an account may have been about any, so it is shown for each; but not to a key
# that is limited to `accounts`. Neither is what was refused: it shows who tried, and not who looked.
LIST = """SELECT position, to_char(at, 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS at, key_id::text, key_name, method,
 route, account_id, conversation, message, address, status FROM ledger.access
 WHERE position < %(before)s::bigint
 AND (%(key)s::text IS NULL OR key_id::text = %(key)s::text OR key_name = %(key)s::text)
 AND (%(account_id)s::text IS NULL OR account_id IS NULL OR account_id = %(account_id)s::text)
 AND (%(accounts)s::text[] IS NULL OR account_id = ANY (%(accounts)s::text[]) AND status NOT IN (403, 404))
 AND (%(since)s::timestamptz IS NULL OR at >= %(since)s::timestamptz)
 AND (%(until)s::timestamptz IS NULL OR at < %(until)s::timestamptz)
 ORDER BY position DESC LIMIT %(limit)s::bigint"""
LAST = 2**63 - 1


class Entry(Struct, frozen=True, kw_only=True):
    """A request that was answered: when, by whose key, for what, from where, and with which status.

    `account_id`, `conversation` and `message` are what the path, the query or the body names; without an
    account it is the one of the conversation or message, else the `sole` one in the key's reach.
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


class _Waiting(Entry, frozen=True, kw_only=True):
    sole: str | None = None


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
        self._entries: deque[_Waiting] = deque()
        self._lost = 0
        self._full = asyncio.Event()
        self._writing = asyncio.Lock()
        self._id = uuid4()
        self._signed = False

    @property
    def waiting(self) -> int:
        """How many entries are not written yet."""
        return len(self._entries) + bool(self._lost)

    def note(self, entry: _Waiting) -> None:
        """Keep an entry until it is written, or count it if there is no room."""
        if len(self._entries) >= ENTRIES_MAX:
            self._lose()
            return
        self._entries.append(entry)
        if len(self._entries) >= ROWS_MAX:
            self._full.set()

    async def close(self) -> None:
        """Write what is left; what cannot be is told in the log now, and by another process."""
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self.flush()
                if self._signed:
                    await self._execute(SIGN_OFF, self._id)
        except (psycopg.Error, TimeoutError) as error:
            left = len(self._entries) + self._lost
            log.error("access: %d entries are not written: %s", left, str(error).strip() or "no answer")

    async def run(self) -> NoReturn:
        """Write entries and delete old ones, until cancelled."""
        loop, reason = asyncio.get_running_loop(), ""
        expire_at = sign_at = loop.time()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FLUSH_SECONDS):
                    await self._full.wait()
            self._full.clear()
            try:
                if loop.time() >= sign_at:
                    sign_at = loop.time() + SIGN_SECONDS
                    await self._sign()
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
            self._entries.append(_told(f"{lost} {LOST}"))
        rows = list(islice(self._entries, ROWS_MAX))
        try:
            await self._write(rows)
        except psycopg.DataError:  # One that PostgreSQL refuses keeps back no other.
            for row in rows:
                await self._write_alone(row)
        for _ in rows:
            self._entries.popleft()

    async def _write_alone(self, row: _Waiting) -> None:
        try:
            await self._write([row])
        except psycopg.DataError as error:
            log.error("access: an entry of %s is lost: %s", row.key_name, str(error).strip())
            self._lose()

    def _lose(self) -> None:
        self._lost += 1
        metrics.ACCESS_LOST.inc()

    async def _sign(self) -> None:
        """Show that this process is there, and tell of those that have gone without a word."""
        await self._execute(SIGN, self._id)
        self._signed = True
        for (seen,) in await self._execute(GONE, GONE_SECONDS):
            self.note(_told(f"{LOST}: those of the last second of a process that was killed", at=str(seen)))

    async def _execute(self, statement: LiteralString, value: object) -> list[TupleRow]:
        async with self._pool.connection() as db:
            cursor = await db.execute(statement, (value,))
            return await cursor.fetchall() if cursor.description else []

    async def _write(self, rows: list[_Waiting]) -> None:
        fields: dict[str, list[object]] = {
            name: [getattr(row, name) for row in rows] for name in _Waiting.__struct_fields__
        }
        fields["of"] = [_uuid(row.conversation) for row in rows]
        fields["about"] = [_uuid(row.message) for row in rows]
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
) -> _Waiting:
    """Returns the entry of a request; `names` are the account, conversation and message that it names."""
    only, account = caller.limited_to or [], names.get("account_id")
    return _Waiting(
        at=clock.text(clock.now_ms()),
        key_id=caller.id,
        key_name=caller.name,
        method=method,
        route=route,
        account_id=account.lower() if account else None,
        conversation=names.get("conversation"),
        message=names.get("message"),
        address=address,
        status=status,
        sole=only[0] if len(only) == 1 else None,
    )


def _told(text: str, at: str = "") -> _Waiting:
    at = at or clock.text(clock.now_ms())
    return _Waiting(at=at, key_id=None, key_name="", method="", route=text, address="", status=0)


def _uuid(text: str | None) -> str | None:
    """An id as PostgreSQL reads it; None if it can be none of ours."""
    return str(UUID(text)) if text and is_uuid(text) else None


async def list_access(
    pool: Pool,
    *,
    key: str | None = None,
    account_id: str | None = None,
    accounts: list[str] | None = None,
    since: str | None = None,
    until: str | None = None,
    limit: int = LIMIT,
    cursor: str | None = None,
) -> AccessPage:
    """Returns a page of entries, the latest first; `key` is a key's id or name. Raises BadCursor.

    `accounts`: only those about one of these, and only of requests that were let pass.
    """
    values = {
        "key": key,
        "account_id": account_id.lower() if account_id else None,
        "accounts": accounts,
        "since": since,
        "until": until,
        "before": decode_cursor(cursor, int) if cursor else LAST,
        "limit": limit + 1,
    }
    rows = await pool.fetch(Access, LIST, values, prepare=False)
    items = rows[:limit]
    return AccessPage(items, encode_cursor(items[-1].position) if len(rows) > limit else None)
