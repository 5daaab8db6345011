"""The views follow the ledger: pages in order, each in one transaction with its position.

One process projects, whoever holds the lock; the others stand by and observe. Views made by other code than
this are built anew beside the old ones, which are read until the new ones take their place.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import cast

import psycopg
from psycopg import sql

from app.database import connection, names
from app.database.names import VIEWS_SCHEMA
from app.views.tables import (
    EXISTS,
    FINGERPRINTS,
    POSITION,
    Db,
    PageOutOfOrder,
    UnreadableEvent,
    apply,
    connect,
    fetch_value,
    read,
    rebuild,
    stored_fingerprints,
)
from projections.columns import Page

PAGE_EVENTS = 2_000
POLL_SECONDS = 1.0
OBSERVE_SECONDS = 0.02
RECONNECT_SECONDS_MIN, RECONNECT_SECONDS_MAX = 0.05, 2.0
FEED_PAGES_MAX = 256
log = logging.getLogger("chatledger.project")


"""In the order in which a page is applied: messages need the merges of conversations."""


class FeedBehind(Exception):
    """The reader of a feed was too slow for it: read the ledger instead."""


class Feed:
    """Pages of (position, event) in order, each once it is in the views; raises FeedBehind if it is not read.

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
            raise FeedBehind
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
        """Project, or stand by, until cancelled; a broken db is mended. Raises UnreadableEvent."""
        wait = RECONNECT_SECONDS_MIN
        while True:
            before = self.position
            try:
                await self._session(lead)
            except psycopg.OperationalError as error:
                log.warning("project: the db broke at position %d: %s", self.position, str(error).strip())
            except UnreadableEvent as error:
                log.error("project: stopped: %s", error)
                raise
            finally:
                self.leading = False
            if self.position > before:
                wait = RECONNECT_SECONDS_MIN
            await asyncio.sleep(wait)
            wait = min(wait * 2, RECONNECT_SECONDS_MAX)

    async def _session(self, lead: bool) -> None:
        async with await connect(self._url, VIEWS_SCHEMA) as db:
            while not (lead and await fetch_value(db, "SELECT pg_try_advisory_lock(%s)", names.PROJECT_LOCK)):
                await self._observe(db)
            await self._prepare(db)
            self.leading = True
            listener = asyncio.create_task(self._listen(), name="project: listen")
            try:
                await self._lead(db, listener)
            finally:
                listener.cancel()
                await asyncio.wait([listener])

    async def _observe(self, db: Db) -> None:
        """Learn how far the projector of another process is."""
        self._woken.clear()
        if await fetch_value(db, EXISTS):
            position = cast("int", await fetch_value(db, POSITION))
            while self._known and self._feeds and self.position < position:
                page = await read(db, self.position, self._page_events)
                page = [row for row in page if row[0] <= position]
                self._reached(page[-1][0], page)
            self._reached(position, ())
        await self._pause(OBSERVE_SECONDS if self._waiters or self._feeds else POLL_SECONDS)

    async def _prepare(self, db: Db) -> None:
        """Make views that fit this code, if they do not."""
        if not await fetch_value(db, EXISTS) or await stored_fingerprints(db) != FINGERPRINTS:
            log.info("project: building the views anew")
            await rebuild(self._url, only_if_needed=True)
        self._reached(cast("int", await fetch_value(db, POSITION)), ())

    async def _listen(self) -> None:
        async with await connection.connect(self._url) as db:
            await db.execute(sql.SQL("LISTEN {}").format(sql.Identifier(names.CHANNEL)))
            self._woken.set()
            async for _ in db.notifies():
                self._woken.set()

    async def _lead(self, db: Db, listener: "asyncio.Task[None]") -> None:
        while True:
            self._woken.clear()
            if listener.done():
                listener.result()
            page = await read(db, self.position, self._page_events)
            if not page:
                await self._pause(POLL_SECONDS)
            elif await self._apply(db, page):
                self._reached(page[-1][0], page)

    async def _apply(self, db: Db, page: Page) -> bool:
        """Apply a page; False if the views were switched meanwhile, and the page is not the next any more."""
        try:
            await apply(db, page, self.position)
        except (PageOutOfOrder, psycopg.errors.UndefinedTable) as error:
            position = cast("int", await fetch_value(db, POSITION))
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


"""The views that this code makes."""
