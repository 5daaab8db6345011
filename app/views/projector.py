"""The views follow the ledger: pages in order, each in one transaction with its position.

One process projects, whoever holds the lock; the others stand by and observe. Views made by other code than
this are built anew beside the old ones, which are read until the new ones take their place.
"""

import asyncio
import contextlib
import logging
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from hashlib import sha256
from typing import Protocol, TypeAlias, cast

import msgspec
import psycopg
from psycopg import sql

from app.database import schema
from app.database.binary import take_columns
from domain.events import decode
from projections import channels, conversations, deliveries, events, messages
from projections.columns import Page, Statement

SCHEMA = "views"
SCHEMA_NEXT = "views_next"
SCHEMA_OLD = "views_old"
REBUILD_LOCK = schema.PROJECT_LOCK + 0x100
PAGE_EVENTS = 2_000
BULK_PAGE_EVENTS = 5_000
PAGE_BYTES = 16 * 1024 * 1024
POLL_SECONDS = 1.0
OBSERVE_SECONDS = 0.02
RECONNECT_SECONDS_MIN, RECONNECT_SECONDS_MAX = 0.05, 2.0
FEED_PAGES_MAX = 256
log = logging.getLogger("chatledger.project")

Link: TypeAlias = psycopg.AsyncConnection[tuple[object, ...]]
Progress: TypeAlias = Callable[[int, int], None]

POSITIONS = """
CREATE TABLE positions (view text PRIMARY KEY, position bigint NOT NULL, fingerprint text NOT NULL)
  WITH (fillfactor = 50)
"""
FIRST = "INSERT INTO positions (view, position, fingerprint) VALUES (%s, 0, %s)"
# If the position is not what it was when the page was read, it becomes null, and the whole page is refused.
ADVANCE = "UPDATE positions SET position = CASE WHEN position = %b::bigint THEN %b::bigint END"
POSITION = "SELECT min(position) FROM positions"
FINGERPRINTS = "SELECT view, fingerprint FROM positions"
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


class View(Protocol):
    """A module of `projections`."""

    NAME: str
    VERSION: int
    SCHEMA: str
    INDEXES: str

    @staticmethod
    def project(page: Page) -> Iterator[Statement]:
        """The statements that bring the view to the end of a page."""


VIEWS = cast("tuple[View, ...]", (conversations, messages, deliveries, events, channels))
"""In the order in which a page is applied: messages need the merges of conversations."""


class Unreadable(Exception):
    """The ledger has an event that this program cannot read, or lacks one: projecting stops before it."""


class NotNext(Exception):
    """The page does not begin where the views are: nothing of it was applied."""


class Behind(Exception):
    """The reader of a feed was too slow for it: read the ledger instead."""


class Feed:
    """Pages of (position, event) in order, each once it is in the views; raises Behind if it is not read.

    Close it after use, or use it as a context.
    """

    def __init__(self, feeds: "set[Feed]") -> None:
        self._feeds = feeds
        self._pages: asyncio.Queue[Page] = asyncio.Queue(FEED_PAGES_MAX)
        self._behind = False
        feeds.add(self)

    def put(self, page: Page) -> None:
        """Add a page, or give up on a reader that leaves too many unread."""
        try:
            self._pages.put_nowait(page)
        except asyncio.QueueFull:
            self._behind = True
            self.close()

    def close(self) -> None:
        """Take no more pages."""
        self._feeds.discard(self)

    def __enter__(self) -> "Feed":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __aiter__(self) -> AsyncIterator[Page]:
        return self

    async def __anext__(self) -> Page:
        if self._behind:
            raise Behind
        return await self._pages.get()


class Projector:
    """Keeps the views at the ledger's head, and knows how far they are, in whichever process they are kept.

    Create one in every process and `run` it, with `lead=False` where the views are only read.
    """

    def __init__(self, url: str, *, page_events: int = PAGE_EVENTS) -> None:
        self.position = 0
        self.leading = False
        self._url = url
        self._page_events = page_events
        self._known = False
        self._woken = asyncio.Event()
        self._feeds: set[Feed] = set()
        self._waiters: set[tuple[int, asyncio.Future[None]]] = set()

    def wake(self, position: int = 0) -> None:
        """Say that the ledger has grown; may be called at any time, as often as one likes."""
        self._woken.set()

    def follow(self) -> Feed:
        """The events that come into the views from now on."""
        feed = Feed(self._feeds)
        self._woken.set()
        return feed

    async def wait_for(self, position: int, timeout_seconds: float = 5.0) -> bool:
        """Whether the views have seen `position`, waiting at most `timeout_seconds` for it."""
        if self.position >= position:
            return True
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiter = (position, future)
        self._waiters.add(waiter)
        self._woken.set()
        try:
            async with asyncio.timeout(timeout_seconds):
                await future
        except TimeoutError:
            return False
        finally:
            self._waiters.discard(waiter)
        return True

    async def run(self, *, lead: bool = True) -> None:
        """Project, or stand by, until cancelled; a broken link is mended. Raises Unreadable."""
        wait = RECONNECT_SECONDS_MIN
        while True:
            before = self.position
            try:
                await self._session(lead)
            except psycopg.OperationalError as error:
                log.warning("project: the link broke at position %d: %s", self.position, str(error).strip())
            except Unreadable as error:
                log.error("project: stopped: %s", error)
                raise
            finally:
                self.leading = False
            if self.position > before:
                wait = RECONNECT_SECONDS_MIN
            await asyncio.sleep(wait)
            wait = min(wait * 2, RECONNECT_SECONDS_MAX)

    async def _session(self, lead: bool) -> None:
        async with await connect(self._url, SCHEMA) as link:
            while not (lead and await _one(link, "SELECT pg_try_advisory_lock(%s)", schema.PROJECT_LOCK)):
                await self._observe(link)
            await self._prepare(link)
            self.leading = True
            listener = asyncio.create_task(self._listen(), name="project: listen")
            try:
                await self._lead(link, listener)
            finally:
                listener.cancel()
                await asyncio.wait([listener])

    async def _observe(self, link: Link) -> None:
        """Learn how far the projector of another process is."""
        self._woken.clear()
        if await _one(link, EXISTS):
            position = cast("int", await _one(link, POSITION))
            while self._known and self._feeds and self.position < position:
                page = await read(link, self.position, self._page_events)
                page = [row for row in page if row[0] <= position]
                self._reached(page[-1][0], page)
            self._reached(position, ())
        await self._pause(OBSERVE_SECONDS if self._waiters or self._feeds else POLL_SECONDS)

    async def _prepare(self, link: Link) -> None:
        """Make views that fit this code, if they do not."""
        if not await _one(link, EXISTS) or await _fingerprints(link) != FINGERPRINT:
            log.info("project: building the views anew")
            await rebuild(self._url, only_if_needed=True)
        self._reached(cast("int", await _one(link, POSITION)), ())

    async def _listen(self) -> None:
        async with await schema.connect(self._url) as link:
            await link.execute(sql.SQL("LISTEN {}").format(sql.Identifier(schema.CHANNEL)))
            self._woken.set()
            async for _ in link.notifies():
                self._woken.set()

    async def _lead(self, link: Link, listener: "asyncio.Task[None]") -> None:
        while True:
            self._woken.clear()
            if listener.done():
                listener.result()
            page = await read(link, self.position, self._page_events)
            if not page:
                await self._pause(POLL_SECONDS)
            elif await self._apply(link, page):
                self._reached(page[-1][0], page)

    async def _apply(self, link: Link, page: Page) -> bool:
        """Apply a page; False if the views were switched meanwhile, and the page is not the next any more."""
        try:
            await apply(link, page, self.position)
        except (NotNext, psycopg.errors.UndefinedTable) as error:
            position = cast("int", await _one(link, POSITION))
            if position == self.position:
                raise
            log.info(
                "project: views were rebuilt: from position %d to %d: %s", self.position, position, error
            )
            self._reached(position, ())
            return False
        return True

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._woken.wait()

    def _reached(self, position: int, page: Page) -> None:
        self.position, self._known = position, True
        if page:
            for feed in list(self._feeds):
                feed.put(page)
        for waited, future in self._waiters:
            if waited <= position and not future.done():
                future.set_result(None)


async def connect(url: str, views: str) -> Link:
    """A connection on which the tables of projections are those in the schema `views`.

    Its commits do not wait for the disk: what a crash takes from the views is projected again.
    """
    link = await schema.connect(url)
    try:
        await link.execute(sql.SQL("SET search_path = {}").format(sql.Identifier(views)))
        await link.execute("SET synchronous_commit = off")
    except psycopg.Error:
        await link.close()
        raise
    take_columns(link)
    return link


async def read(link: Link, after: int, count: int) -> Page:
    """The events after a position, at most `count`, less if they are large; raises Unreadable."""
    cursor = link.cursor(binary=True)
    await cursor.execute(PAGE, (after, count, PAGE_BYTES), prepare=True)
    rows = cast("list[tuple[int, bytes]]", await cursor.fetchall())
    if rows and rows[-1][0] != after + len(rows):
        raise Unreadable(f"the ledger lacks positions between {after} and {rows[-1][0]}")
    try:
        return [(position, decode(state)) for position, state in rows]
    except msgspec.MsgspecError:
        for position, state in rows:
            try:
                decode(state)
            except msgspec.MsgspecError as error:
                raise Unreadable(f"position {position}: {error}") from error
        raise


async def apply(link: Link, page: Page, after: int) -> None:
    """Bring the views from position `after` to the end of a page, in one transaction.

    Raises NotNext if they are not at `after`, Unreadable if an event cannot be shown.
    """
    try:
        async with link.pipeline(), link.transaction():
            cursor = link.cursor(binary=True)
            await cursor.execute(ADVANCE, (after, page[-1][0]), prepare=True)
            for view in VIEWS:
                for statement, values in view.project(page):
                    await cursor.execute(statement, values, prepare=True)
    except psycopg.errors.NotNullViolation as error:
        if error.diag.table_name == "positions":
            raise NotNext from error
        raise _stuck(page, error) from error
    except (psycopg.DataError, psycopg.IntegrityError, ValueError, KeyError, struct.error) as error:
        raise _stuck(page, error) from error


def _stuck(page: Page, error: Exception) -> Unreadable:
    return Unreadable(f"positions {page[0][0]} to {page[-1][0]}: {type(error).__name__}: {error}")


async def rebuild(
    url: str,
    progress: Progress | None = None,
    *,
    page_events: int = BULK_PAGE_EVENTS,
    only_if_needed: bool = False,
) -> int:
    """Make all views anew from the ledger and put them in the place of the old ones; returns their position.

    `progress(done, total)` is called after each page, in events. Reads and the projector of another process
    go on meanwhile. Raises Unreadable.
    """
    async with await connect(url, SCHEMA_NEXT) as writer, await connect(url, SCHEMA) as reader:
        await writer.execute("SELECT pg_advisory_lock(%s)", (REBUILD_LOCK,))
        if only_if_needed and await _one(reader, EXISTS) and await _fingerprints(reader) == FINGERPRINT:
            return cast("int", await _one(reader, POSITION))
        await _create(writer)
        position = await _load(reader, writer, 0, page_events, progress)
        await writer.execute("SET maintenance_work_mem = '128MB'")
        for view in VIEWS:
            await _script(writer, view.INDEXES)
        position = await _load(reader, writer, position, page_events, progress)
        async with await schema.connect(url) as switch, switch.transaction():
            if await _one(switch, EXISTS):
                # The old views stand still from here on, so that the new ones cannot be behind them.
                await switch.execute("LOCK TABLE views.positions IN EXCLUSIVE MODE")
                position = await _load(reader, writer, position, page_events, progress)
                await switch.execute("ALTER SCHEMA views RENAME TO views_old")
            await switch.execute("ALTER SCHEMA views_next RENAME TO views")
        await writer.execute("DROP SCHEMA IF EXISTS views_old CASCADE")
    return position


async def _create(link: Link) -> None:
    """Empty views in the schema of the link, without the indexes that are made faster later."""
    async with link.transaction():
        await _script(
            link, "DROP SCHEMA IF EXISTS views_next CASCADE; DROP SCHEMA IF EXISTS views_old CASCADE"
        )
        await link.execute("CREATE SCHEMA views_next")
        await link.execute(POSITIONS)
        for view in VIEWS:
            await _script(link, view.SCHEMA)
            await link.execute(FIRST, (view.NAME, FINGERPRINT[view.NAME]))


async def _script(link: Link, statements: str) -> None:
    if statements:
        await link.execute(statements)


async def _load(reader: Link, writer: Link, after: int, count: int, progress: Progress | None) -> int:
    """Apply all pages after a position, each while the next one is read and decoded."""
    total = cast("int", await _one(reader, HEAD))
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


async def _one(link: Link, statement: str, *values: object) -> object:
    row = await (await link.execute(statement, values or None)).fetchone()
    return row[0] if row else None


async def _fingerprints(link: Link) -> dict[str, str]:
    rows = await (await link.execute(FINGERPRINTS)).fetchall()
    return {str(view): str(fingerprint) for view, fingerprint in rows}


def fingerprint(view: View) -> str:
    """A hash of all that makes a view's rows: its statements, its version, and its other constants."""
    constants = {name: value for name, value in vars(view).items() if isinstance(value, str | int | tuple)}
    said = sorted((name, repr(value)) for name, value in constants.items() if name.isupper())
    return sha256(repr(said).encode()).hexdigest()


FINGERPRINT = {view.NAME: fingerprint(view) for view in VIEWS}
"""The views that this code makes."""
