"""Hooks that were not taken are kept whole and listed, because Kommo does not send them again.

A hook that comes again byte for byte is kept once, as what it was first, with the number of its arrivals.
Each scope keeps its own share of each kind, so that what comes in masses drops nothing of another account's,
and nothing that Kommo itself sent: whoever captured hooks can only send old ones and those of other accounts.
Beyond the share the oldest go, with a line in the log. An operator has them taken up after a fix, see
`operations/hooks`.
"""

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal, NoReturn

import psycopg
from msgspec import Struct
from psycopg.rows import class_row

from app import metrics
from app.database.connection import Db
from app.database.pool import Pool
from app.printable import printable
from app.views.cursor import LIMIT, decode_cursor, encode_cursor

log = logging.getLogger("chatledger.webhooks")
Order = Literal["asc", "desc"]

KEPT_MAX = (
    1000  # Chosen, of each scope and kind: more than anybody looks through, and retried within seconds.
)
KEPT_BYTES_MAX = 32 * 1024 * 1024  # Chosen, of each scope and kind: 128 of the largest bodies.
KEPT_DAYS = 30  # Chosen: a fix comes sooner, and personal data does not stay for ever.
PRUNE_SECONDS = 3600.0  # Chosen: a limit of days needs no more.

KEEP = """WITH again AS (
  UPDATE ledger.refused SET times = times + 1, received_at = now()
  WHERE id = (SELECT id FROM ledger.refused
    WHERE scope_id = %(scope_id)s AND sha256(body) = sha256(%(body)s) LIMIT 1) RETURNING id),
made AS (
  INSERT INTO ledger.refused (id, scope_id, first_at, received_at, reason, why, body)
  SELECT %(id)s, %(scope_id)s, now(), now(), %(reason)s, %(why)s, %(body)s
  WHERE NOT EXISTS (SELECT FROM again) RETURNING id)
SELECT id::text, false FROM again UNION ALL SELECT id::text, true FROM made"""
TRIM = """DELETE FROM ledger.refused WHERE id IN (SELECT id FROM (
  SELECT id, row_number() OVER latest AS number, sum(octet_length(body)) OVER latest AS bytes
  FROM ledger.refused WHERE scope_id = %(scope_id)s AND why = %(why)s
  WINDOW latest AS (ORDER BY received_at DESC, id)) AS kept
  WHERE number > %(number_max)s OR bytes > %(bytes_max)s)"""
EXPIRE = "DELETE FROM ledger.refused WHERE received_at < now() - make_interval(days => %s)"
FIRST = "coalesce(first_at, received_at)"
COLUMNS = """SELECT id::text, scope_id, times, why, reason, body,
 to_char(received_at, 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS received_at,
 to_char(coalesce(first_at, received_at), 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS first_received_at,
 (extract(epoch FROM {key}) * 1000000)::bigint AS moment FROM ledger.refused"""
PAGE = """{columns}
 WHERE %(moment)s::bigint IS NULL OR
 ((extract(epoch FROM {key}) * 1000000)::bigint, id) {after} (%(moment)s::bigint, %(id)s::uuid)
 ORDER BY {key} {order}, id {order} LIMIT %(limit)s::bigint"""
LATEST = PAGE.format(columns=COLUMNS.format(key="received_at"), key="received_at", after="<", order="DESC")
EARLIEST = PAGE.format(columns=COLUMNS.format(key=FIRST), key=FIRST, after=">", order="ASC")
LOCKED = "SELECT scope_id, body FROM ledger.refused WHERE id = %s::uuid FOR UPDATE"
DELETE = "DELETE FROM ledger.refused WHERE id = %s::uuid"
REASON = "UPDATE ledger.refused SET reason = %s WHERE id = %s::uuid"
COUNT = "SELECT count(*) AS count FROM ledger.refused"


class RefusedHook(Struct, frozen=True, kw_only=True):
    """A hook that was not taken; `body` is its exact bytes, `times` how often it came.

    `scope_id` is `crm:` and the account for a webhook of the CRM. `moment` places it in the list.
    """

    id: str
    scope_id: str
    received_at: str
    first_received_at: str
    times: int
    why: str
    reason: str
    body: bytes
    moment: int


class RefusedHooks(Struct, frozen=True):
    """A page of hooks, and the cursor of the next page."""

    items: list[RefusedHook]
    next: str | None


class Kept(Struct, frozen=True):
    """A hook that is being taken up: where it came in, and its exact bytes."""

    scope_id: str
    body: bytes


class Count(Struct):
    """The number of hooks that are kept."""

    count: int


async def keep(pool: Pool, scope_id: str, reason: str, body: bytes, *, why: str, what: str) -> str:
    """Keep the exact bytes of a hook, and return the id it is listed under.

    `why` is the kind of the reason, `what` names the kind of hook in the log. Raises
    psycopg.OperationalError.
    """
    values = {"id": str(uuid.uuid4()), "scope_id": scope_id, "body": body, "why": why}
    values["reason"] = printable(reason)
    limits = {"scope_id": scope_id, "why": why, "number_max": KEPT_MAX, "bytes_max": KEPT_BYTES_MAX}
    async with pool.connection() as db:
        row = await (await db.execute(KEEP, values)).fetchone()
        dropped = (await db.execute(TRIM, limits)).rowcount
    assert row is not None
    kept, is_new = str(row[0]), row[1]
    if is_new:  # Whoever captured a hook can send it again as often as they like.
        metrics.REFUSED.labels(why).inc()
        log.error("%s was refused and kept: id %s, %d bytes", what, kept, len(body))
    if dropped:
        metrics.DROPPED.inc(dropped)
        log.error("%d refused hooks of %s are dropped: the oldest of over %d", dropped, scope_id, KEPT_MAX)
    return kept


async def list_refused(
    pool: Pool, *, order: Order = "desc", limit: int = LIMIT, cursor: str | None = None
) -> RefusedHooks:
    """Returns a page of the hooks that were not taken.

    "desc": the latest arrival first; "asc": in the order in which they first came. Raises BadCursor.
    """
    moment, id_ = decode_cursor(cursor, tuple[int, str]) if cursor else (None, None)
    values = {"moment": moment, "id": id_, "limit": limit + 1}
    rows = await pool.fetch(RefusedHook, LATEST if order == "desc" else EARLIEST, values, prepare=False)
    items = rows[:limit]
    following = encode_cursor((items[-1].moment, items[-1].id)) if len(rows) > limit else None
    return RefusedHooks(items, following)


async def count_refused(pool: Pool) -> int:
    """Returns how many hooks are kept."""
    (row,) = await pool.fetch(Count, COUNT, {})
    return row.count


@asynccontextmanager
async def taken_up(pool: Pool, id_: str) -> AsyncIterator[Kept | None]:
    """Lend a hook to one caller at a time, None if it is gone, and delete it unless the block raises.

    The connection is none of the pool's, which the block may need. Raises psycopg.OperationalError.
    """
    async with await pool.connect_dedicated() as db, db.transaction():
        hook = await _locked(db, id_)
        yield hook
        if hook:
            await db.execute(DELETE, (id_,))


async def give_reason(pool: Pool, id_: str, reason: str) -> None:
    """Note why a hook is still not taken."""
    async with pool.connection() as db:
        await db.execute(REASON, (printable(reason), id_))


async def expire(pool: Pool) -> NoReturn:
    """Drop what is too old, from time to time, until cancelled; any number of processes may."""
    while True:
        try:
            await drop_aged(pool)
        except psycopg.Error as error:
            log.warning("refused hooks: %s", str(error).strip())
        await asyncio.sleep(PRUNE_SECONDS)


async def drop_aged(pool: Pool) -> None:
    """Drop the hooks that are older than KEPT_DAYS. Raises psycopg.OperationalError."""
    async with pool.connection() as db:
        dropped = (await db.execute(EXPIRE, (KEPT_DAYS,))).rowcount
    if dropped:
        metrics.DROPPED.inc(dropped)
        log.error("%d refused hooks are dropped: older than %d days", dropped, KEPT_DAYS)


async def _locked(db: Db, id_: str) -> Kept | None:
    async with db.cursor(binary=True, row_factory=class_row(Kept)) as cursor:
        await cursor.execute(LOCKED, (id_,))
        return await cursor.fetchone()
