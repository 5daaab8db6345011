"""Which views there are, how a page of events is applied to them, and how all of them are rebuilt.

A page of events and the new position of the views commit in one transaction, so the views always show the
ledger exactly as it was at one position. `ADVANCE` turns the position into a null, which the table refuses,
if the views are not where the page begins; then nothing of the page is applied.

A rebuild fills a second schema beside the views in force, without their slower indexes, and reads and
projection go on meanwhile. Then it adds the indexes and follows the ledger to its head. For the switch it
locks the positions of the views in force, so that they stand still, applies the last events, and renames both
schemas in one transaction: readers see the old views or the new ones, and the position never falls.

Each view has a fingerprint, a hash of its statements and version. A program whose fingerprints differ from
those stored with the views rebuilds them; so views are never migrated.
"""

import asyncio
import struct
from collections.abc import Callable, Iterator
from hashlib import sha256
from typing import Protocol, TypeAlias, cast

import msgspec
import psycopg
from psycopg import sql

from app.database import connection
from app.database.binary import take_columns
from app.database.connection import Db
from app.database.names import REBUILD_LOCK, VIEWS_NEXT_SCHEMA, VIEWS_SCHEMA
from domain.events import decode
from projections import channels, conversations, deliveries, events, messages
from projections.columns import Page, Statement

BULK_PAGE_EVENTS = 5_000  # chosen: about 100 ms of work for a page of a rebuild
PAGE_BYTES = 16 * 1024 * 1024  # chosen: the memory that a page of large events may take
Progress: TypeAlias = Callable[[int, int], None]
POSITIONS = """
CREATE TABLE positions (view text PRIMARY KEY, position bigint NOT NULL, fingerprint text NOT NULL)
  WITH (fillfactor = 50)
"""
FIRST = "INSERT INTO positions (view, position, fingerprint) VALUES (%s, 0, %s)"
# If the position is not the one that the page was read after, it becomes null, and the whole page is refused.
ADVANCE = "UPDATE positions SET position = CASE WHEN position = %b::bigint THEN %b::bigint END"
POSITION = "SELECT min(position) FROM positions"
STORED_FINGERPRINTS = "SELECT view, fingerprint FROM positions"
EXISTS = "SELECT to_regclass('views.positions') IS NOT NULL"
HEAD = "SELECT coalesce(max(notification_id), 0) FROM ledger.stored_events"
PAGE = """
SELECT position, state FROM (
  SELECT notification_id AS position, state, octet_length(state) AS size,
    sum(octet_length(state)) OVER (ORDER BY notification_id) AS total
  FROM ledger.stored_events WHERE notification_id > %b::bigint
  ORDER BY notification_id LIMIT %b::bigint) AS page
WHERE total - size < %b::bigint ORDER BY position
"""
# The order in which a page is applied: messages need the merges of conversations.
VIEWS = cast("tuple[View, ...]", (conversations, messages, deliveries, events, channels))


class View(Protocol):
    """A module of `projections`."""

    NAME: str
    VERSION: int
    SCHEMA: str
    INDEXES: str

    @staticmethod
    def project(page: Page) -> Iterator[Statement]:
        """Yield the statements that bring the view to the end of a page."""


class UnreadableEvent(Exception):
    """The ledger has an event that this program cannot read, or lacks one: projection stops before it."""


class PageOutOfOrder(Exception):
    """The page does not begin at the position of the views: nothing of it was applied."""


async def connect(url: str, views: str) -> Db:
    """Open a connection on which the tables of projections are those in the schema `views`.

    Its commits do not wait for the disk, because what a crash takes from the views is projected again.
    """
    db = await connection.connect(url)
    try:
        await db.execute(sql.SQL("SET search_path = {}").format(sql.Identifier(views)))
        await db.execute("SET synchronous_commit = off")
    except psycopg.Error:
        await db.close()
        raise
    take_columns(db)
    return db


async def read(db: Db, after: int, count: int) -> Page:
    """Returns the events after a position: at most `count`, fewer if large. Raises UnreadableEvent."""
    cursor = db.cursor(binary=True)
    await cursor.execute(PAGE, (after, count, PAGE_BYTES), prepare=True)
    rows = cast("list[tuple[int, bytes]]", await cursor.fetchall())
    if rows and rows[-1][0] != after + len(rows):
        raise UnreadableEvent(f"the ledger lacks positions between {after} and {rows[-1][0]}")
    try:
        return [(position, decode(state)) for position, state in rows]
    except msgspec.MsgspecError:
        for position, state in rows:
            try:
                decode(state)
            except msgspec.MsgspecError as error:
                raise UnreadableEvent(f"position {position}: {error}") from error
        raise


async def apply(db: Db, page: Page, after: int) -> None:
    """Bring the views from position `after` to the end of a page, in one transaction.

    Raises PageOutOfOrder if the views are not at `after`, UnreadableEvent if an event cannot be stored in
    them.
    """
    try:
        async with db.pipeline(), db.transaction():
            cursor = db.cursor(binary=True)
            await cursor.execute(ADVANCE, (after, page[-1][0]), prepare=True)
            for view in VIEWS:
                for statement, values in view.project(page):
                    await cursor.execute(statement, values, prepare=True)
    except psycopg.errors.NotNullViolation as error:
        if error.diag.table_name == "positions":
            raise PageOutOfOrder from error
        raise _unreadable(page, error) from error
    except (psycopg.DataError, psycopg.IntegrityError, ValueError, KeyError, struct.error) as error:
        raise _unreadable(page, error) from error


def _unreadable(page: Page, error: Exception) -> UnreadableEvent:
    return UnreadableEvent(f"positions {page[0][0]} to {page[-1][0]}: {type(error).__name__}: {error}")


async def rebuild(
    url: str,
    progress: Progress | None = None,
    *,
    page_events: int = BULK_PAGE_EVENTS,
    only_if_needed: bool = False,
) -> int:
    """Build all views from the ledger and put them in the place of the old ones; returns their position.

    `progress(done, total)` is called after each page, in events. `only_if_needed`: do nothing if another
    process has just built views that fit this program. Raises UnreadableEvent.
    """
    async with await connect(url, VIEWS_NEXT_SCHEMA) as writer, await connect(url, VIEWS_SCHEMA) as reader:
        await writer.execute("SELECT pg_advisory_lock(%s)", (REBUILD_LOCK,))
        if (
            only_if_needed
            and await fetch_value(reader, EXISTS)
            and await stored_fingerprints(reader) == FINGERPRINTS
        ):
            return cast("int", await fetch_value(reader, POSITION))
        await create_views(writer)
        position = await _load(reader, writer, 0, page_events, progress)
        await writer.execute("SET maintenance_work_mem = '128MB'")
        for view in VIEWS:
            await _script(writer, view.INDEXES)
        position = await _load(reader, writer, position, page_events, progress)
        async with await connection.connect(url) as switch, switch.transaction():
            if await fetch_value(switch, EXISTS):
                # From here on the old views stand still, so that the new ones cannot be behind them.
                await switch.execute("LOCK TABLE views.positions IN EXCLUSIVE MODE")
                position = await _load(reader, writer, position, page_events, progress)
                await switch.execute("ALTER SCHEMA views RENAME TO views_old")
            await switch.execute("ALTER SCHEMA views_next RENAME TO views")
        await writer.execute("DROP SCHEMA IF EXISTS views_old CASCADE")
    return position


async def create_views(db: Db) -> None:
    """Create empty views in the next schema, without the indexes that are built faster over all rows."""
    async with db.transaction():
        await _script(db, "DROP SCHEMA IF EXISTS views_next CASCADE; DROP SCHEMA IF EXISTS views_old CASCADE")
        await db.execute("CREATE SCHEMA views_next")
        await db.execute(POSITIONS)
        for view in VIEWS:
            await _script(db, view.SCHEMA)
            await db.execute(FIRST, (view.NAME, FINGERPRINTS[view.NAME]))


async def _script(db: Db, statements: str) -> None:
    if statements:
        await db.execute(statements)


async def _load(reader: Db, writer: Db, after: int, count: int, progress: Progress | None) -> int:
    """Apply all pages after a position, each while the next one is read; returns the last position."""
    total = cast("int", await fetch_value(reader, HEAD))
    page: Page = await read(reader, after, count)
    while page:
        last = page[-1][0]
        applying = asyncio.create_task(apply(writer, page, after))
        await asyncio.sleep(0)
        try:
            page = await read(reader, last, count)
        finally:
            await applying
        after = last
        if progress:
            progress(after, max(total, after))
    return after


async def fetch_value(db: Db, statement: str, *values: object) -> object:
    """Returns the first column of a statement's first row, None without a row."""
    row = await (await db.execute(statement, values or None)).fetchone()
    return row[0] if row else None


async def stored_fingerprints(db: Db) -> dict[str, str]:
    """Returns the fingerprints of the views in force, by view."""
    rows = await (await db.execute(STORED_FINGERPRINTS)).fetchall()
    return {str(view): str(fingerprint) for view, fingerprint in rows}


def fingerprint(view: View) -> str:
    """Returns a hash of the constants that decide a view's rows: its statements, its version, and others."""
    constants = {name: value for name, value in vars(view).items() if isinstance(value, str | int | tuple)}
    pairs = sorted((name, repr(value)) for name, value in constants.items() if name.isupper())
    return sha256(repr(pairs).encode()).hexdigest()


FINGERPRINTS = {view.NAME: fingerprint(view) for view in VIEWS}
