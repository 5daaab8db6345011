"""Which views there are, and how a page of events is read from the ledger and applied to them.

A page of events and the new position of the views commit in one transaction, so the views always show the
ledger exactly as it was at one position. `ADVANCE` turns the position into a null, which the table refuses,
if the views are not where the page begins or are no longer those that the caller knows; then nothing of the
page is applied.

Each view has a fingerprint, a hash of its statements and version. A program whose fingerprints differ from
those stored with the views rebuilds them (`rebuild`); so views are never migrated. The table `parked` says
which events a view could not take (`parking`).
"""

import struct
from collections.abc import Iterator, Sequence
from hashlib import sha256
from typing import Protocol, cast

import msgspec
import psycopg
from msgspec import Struct
from psycopg import sql

from app.database import connection
from app.database.binary import take_columns
from app.database.connection import PATIENCE_SECONDS, Db
from app.database.names import MIGRATE_LOCK
from app.database.packed import unpack
from domain.events import AnyEvent, decode
from projections import channels, conversations, deliveries, events, messages, waiting
from projections.columns import Page, Statement, texts

PAGE_BYTES = 16 * 1024 * 1024  # chosen: the memory that a page of large events may take
POSITIONS = """
CREATE TABLE positions (view text PRIMARY KEY, position bigint NOT NULL, fingerprint text NOT NULL)
  WITH (fillfactor = 50)
"""
FIRST = "INSERT INTO positions (view, position, fingerprint) VALUES (%s, 0, %s)"
# What a view could not take, and why. `cause` says what it was: an "event"; a "rebuild", which parked the
# event and so did not take the place of these views; or this program's other "version" of the view. A view
# with a row that `stands` is no longer brought forward.
PARKED = """
CREATE TABLE IF NOT EXISTS {schema}parked (view text NOT NULL, position bigint NOT NULL, cause text NOT NULL,
  stands boolean NOT NULL, error text NOT NULL, fingerprint text NOT NULL,
  parked_at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (view, position, cause))
"""
# If the position is not the one that the page was read after, or the table is that of other views, it becomes
# null, and the whole page is refused.
ADVANCE = """
UPDATE positions SET position = CASE WHEN position = %b::bigint AND tableoid = coalesce(%b::oid, tableoid)
  THEN %b::bigint END WHERE view = ANY (%b::text[])
"""
STANDINGS = """
SELECT p.view, p.position, p.fingerprint, coalesce(s.stands, false), coalesce(s.outdated, false),
  coalesce(s.events, 0), p.tableoid::bigint
FROM positions AS p LEFT JOIN (SELECT view, bool_or(stands) AS stands,
  bool_or(cause = 'version') AS outdated, count(*) FILTER (WHERE cause = 'event') AS events
  FROM parked GROUP BY view) AS s USING (view) ORDER BY p.view
"""
EXISTS = "SELECT to_regclass('views.positions') IS NOT NULL"
COMPLETE = "SELECT to_regclass('views.parked') IS NOT NULL"
HEAD = "SELECT coalesce(max(notification_id), 0) FROM ledger.stored_events"
PAGE = """
SELECT position, state, topic FROM (
  SELECT notification_id AS position, state, topic, octet_length(state) AS size,
    sum(octet_length(state)) OVER (ORDER BY notification_id) AS total
  FROM ledger.stored_events WHERE notification_id > %b::bigint
  ORDER BY notification_id LIMIT %b::bigint) AS page
WHERE total - size < %b::bigint ORDER BY position
"""
# Rows are looked up by key. A plan made while a table is small would read the whole table, and PostgreSQL
# would keep that plan while the table grows: measured under a flood, four million rows read in half a minute.
PLANS = "SET enable_seqscan = off"
# Constants of a view that decide nothing about its rows.
POLICY = {"ON_FAULT", "TOPICS"}
# The order in which a page is applied: messages need the merges of conversations.
VIEWS = cast("tuple[View, ...]", (conversations, messages, deliveries, events, channels, waiting))


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
    """A page has an event that a view cannot take; the message says in which positions."""


class PageOutOfOrder(Exception):
    """The page does not begin at the position of the views: nothing of it was applied."""


class Damaged(Struct, frozen=True):
    """Positions of the ledger without an event that this program can read: from `first` to `last`.

    `topic` is the type of the event as it is stored beside it, None if the ledger lacks the positions.
    """

    first: int
    last: int
    topic: str | None
    error: str


class Read(Struct, frozen=True):
    """What comes next in the ledger: events, or positions that hold none; or nothing."""

    page: Page
    damaged: Damaged | None = None

    @property
    def last(self) -> int:
        """The last position of what was read."""
        return self.damaged.last if self.damaged else self.page[-1][0]

    def __bool__(self) -> bool:
        return bool(self.page or self.damaged)


class Standing(Struct, frozen=True):
    """How far a view in force is. `stands`: it is not brought forward; `parked` counts its parked events.

    `outdated`: a program with another version of the view let it stand. `table` is the number of the table
    that says all this: it changes when the views are switched.
    """

    view: str
    position: int
    fingerprint: str
    stands: bool
    outdated: bool
    parked: int
    table: int


async def connect(url: str, views: str, *, patience_seconds: float | None = PATIENCE_SECONDS) -> Db:
    """Open a connection on which the tables of projections are those in the schema `views`.

    Its commits do not wait for the disk, because what a crash takes from the views is projected again.
    """
    db = await connection.connect(url, patience_seconds=patience_seconds)
    try:
        await db.execute(sql.SQL("SET search_path = {}").format(sql.Identifier(views)))
        await db.execute("SET synchronous_commit = off")
        await db.execute(PLANS)
    except psycopg.Error:
        await db.close()
        raise
    take_columns(db)
    return db


async def read(db: Db, after: int, count: int) -> Read:
    """Returns the events after a position: at most `count`, fewer if large or if one cannot be read."""
    cursor = db.cursor(binary=True)
    await cursor.execute(PAGE, (after, count, PAGE_BYTES), prepare=True)
    rows = cast("list[tuple[int, bytes, str]]", await cursor.fetchall())
    try:
        page = [(position, decode(unpack(state))) for position, state, _ in rows]
    except (ValueError, RecursionError):
        page = []
    if page and page[-1][0] == after + len(page):
        return Read(page)
    return _read_up_to_damage(rows, after) if rows else Read([])


def _read_up_to_damage(rows: Sequence[tuple[int, bytes, str]], after: int) -> Read:
    """The events before the first position without a readable one, or that position if it comes first."""
    page: list[tuple[int, AnyEvent]] = []
    damaged = None
    for expected, (position, state, topic) in enumerate(rows, after + 1):
        if position != expected:
            damaged = Damaged(expected, position - 1, None, "the ledger lacks this position")
            break
        try:
            page.append((position, decode(unpack(state))))
        except (ValueError, RecursionError) as error:
            damaged = Damaged(position, position, topic, f"it cannot be decoded: {error}")
            break
    return Read(page) if page else Read([], damaged)


async def apply(
    db: Db, page: Page, after: int, views: Sequence[View] | None = None, table: int | None = None
) -> None:
    """Bring views (all of them by default) from position `after` to the end of a page, in one transaction.

    Raises PageOutOfOrder if the views are not at `after`, or their positions are not in the `table` with this
    number; UnreadableEvent if an event cannot be stored in them; whatever a projection raises.
    """
    views = VIEWS if views is None else views
    try:
        async with db.pipeline(), db.transaction():
            await advance(db, after, page[-1][0], views, table)
            await _project(db, page, views)
    except psycopg.errors.NotNullViolation as error:
        if error.diag.table_name == "positions":
            raise PageOutOfOrder from error
        raise _unreadable(page, error) from error
    except (psycopg.DataError, psycopg.IntegrityError, ValueError, KeyError, struct.error) as error:
        raise _unreadable(page, error) from error


async def apply_alone(db: Db, page: Page, view: View) -> None:
    """Apply a page to one view, inside a transaction of the caller; raises whatever goes wrong."""
    async with db.transaction():
        await _project(db, page, [view])


async def _project(db: Db, page: Page, views: Sequence[View]) -> None:
    cursor = db.cursor(binary=True)
    for view in views:
        for statement, values in view.project(page):
            await cursor.execute(statement, values, prepare=True)


async def advance(db: Db, after: int, to: int, views: Sequence[View], table: int | None) -> None:
    """Move the position of views; a position that is not `after` makes PostgreSQL refuse the transaction."""
    names = texts([view.NAME for view in views])
    await db.cursor(binary=True).execute(ADVANCE, (after, table, to, names), prepare=True)


def _unreadable(page: Page, error: Exception) -> UnreadableEvent:
    return UnreadableEvent(f"positions {page[0][0]} to {page[-1][0]}: {type(error).__name__}: {error}")


async def create_views(db: Db, views: Sequence[View] | None = None) -> dict[str, Exception]:
    """Create empty views in the next schema, without the indexes that are built faster over all rows.

    Returns the views whose tables PostgreSQL refuses to create, with its errors.
    """
    refused: dict[str, Exception] = {}
    async with db.transaction():
        await run_script(
            db, "DROP SCHEMA IF EXISTS views_next CASCADE; DROP SCHEMA IF EXISTS views_old CASCADE"
        )
        await db.execute("CREATE SCHEMA views_next")
        await db.execute(POSITIONS)
        await db.execute(PARKED.format(schema="").encode())
        for view in VIEWS if views is None else views:
            try:
                async with db.transaction():
                    await run_script(db, view.SCHEMA)
            except psycopg.ProgrammingError as error:
                refused[view.NAME] = error
            await db.execute(FIRST, (view.NAME, fingerprint(view)))
    return refused


async def run_script(db: Db, statements: str) -> None:
    """Execute the statements of a text, if it has any."""
    if statements:
        await db.execute(statements.encode())


async def complete(db: Db) -> bool:
    """Whether there are views in force; those of an older program get the table `parked`."""
    if not await fetch_value(db, EXISTS):
        return False
    if not await fetch_value(db, COMPLETE):
        async with db.transaction():
            await db.execute("SELECT pg_advisory_xact_lock(%s)", (MIGRATE_LOCK,))
            await db.execute(PARKED.format(schema="views.").encode())
    return True


async def fetch_value(db: Db, statement: str, *values: object) -> object:
    """Returns the first column of a statement's first row, None without a row."""
    row = await (await db.execute(statement, values or None)).fetchone()
    return row[0] if row else None


async def standings(db: Db) -> list[Standing]:
    """Returns how far each view in force is."""
    rows = await (await db.execute(STANDINGS)).fetchall()
    return [
        msgspec.convert(dict(zip(Standing.__struct_fields__, row, strict=True)), Standing) for row in rows
    ]


def position_of(views: Sequence[Standing]) -> int:
    """Returns the position of the views that are brought forward; the highest one if none is."""
    followed = [view.position for view in views if not view.stands]
    return min(followed) if followed else max((view.position for view in views), default=0)


def fingerprint(view: View) -> str:
    """Returns a hash of the constants that decide a view's rows: its statements, its version, and others."""
    constants = {name: value for name, value in vars(view).items() if isinstance(value, str | int | tuple)}
    pairs = sorted(
        (name, repr(value)) for name, value in constants.items() if name.isupper() and name not in POLICY
    )
    return sha256(repr(pairs).encode()).hexdigest()
