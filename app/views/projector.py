"""The views follow the ledger: pages in order, each in one transaction with its position.

Theory of operation. One process leads: the one whose connection holds PROJECT_LOCK. It reads the page after
the views' position, applies it (`tables.apply`), tells its feeds and waiters, and sleeps until the ledger
notifies, `wake` is called, or POLL_SECONDS have passed. All other processes stand by: they poll the lock and
the stored position, so that their own `wait_for` and feeds work as well. When the leader's connection ends,
the database releases the lock and another process leads.

Before it leads, a process compares the fingerprints of the views in force with its own; if they differ, it
rebuilds the views, which stay readable until the new ones take their place. A rebuild may also be started by
hand while a leader works. The leader then finds that its page does not fit, or that a table is gone; it reads
the new position and goes on from there.

Invariant. `position` never exceeds what is committed in the views, and feeds receive each page once it is.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import cast

import psycopg
from psycopg import sql

from app.database import connection, names
from app.database.connection import Db
from app.database.names import VIEWS_SCHEMA
from app.views.tables import (
    EXISTS,
    FINGERPRINTS,
    POSITION,
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

PAGE_EVENTS = 2_000  # chosen: some 50 ms of work for a page, so that readers who wait do not wait for long
POLL_SECONDS = 1.0  # chosen: how late the views may be if a notification was lost
OBSERVE_SECONDS = 0.02  # chosen: how late a process that stands by may learn of a position somebody waits for
RECONNECT_SECONDS_MIN, RECONNECT_SECONDS_MAX = 0.05, 2.0  # chosen: PostgreSQL restarts in about a second
FEED_PAGES_MAX = 256  # chosen: a reader that leaves more unread is better off reading the ledger
log = logging.getLogger("chatledger.project")


class FeedBehind(Exception):
    """The reader of a feed was too slow: read the ledger instead."""


class Feed:
    """Pages of (position, event) in order, each once it is in the views; raises FeedBehind if read too
    slowly.

    Close the feed after use, or use it as a context manager.
    """

    def __init__(self, feeds: "set[Feed]") -> None:
        self._feeds = feeds
        self._pages: asyncio.Queue[Page] = asyncio.Queue(FEED_PAGES_MAX)
        self._behind = False
        feeds.add(self)

    def put(self, page: Page) -> None:
        """Add a page, or close the feed if too many are unread."""
        try:
            self._pages.put_nowait(page)
        except asyncio.QueueFull:
            self._behind = True
            self.close()

    def close(self) -> None:
        """Receive no more pages."""
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
    """Keeps the views at the ledger's head, and knows their `position` whichever process keeps them.

    Create one in every process and `run` it, with `lead=False` where the views are only read. `leading` says
    whether this process keeps the views.
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
        """Look for new events; may be called at any time and from any task."""
        self._woken.set()

    def follow(self) -> Feed:
        """Returns a feed of the pages that are applied from now on."""
        feed = Feed(self._feeds)
        self._woken.set()
        return feed

    async def wait_for(self, position: int, timeout_seconds: float = 5.0) -> bool:
        """Wait until the views include `position`; False if they do not within `timeout_seconds`."""
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
        """Lead or stand by until cancelled, reconnecting whenever needed. Raises UnreadableEvent."""
        wait = RECONNECT_SECONDS_MIN
        while True:
            before = self.position
            try:
                await self._session(lead)
            except psycopg.OperationalError as error:
                log.warning(
                    "project: the connection broke at position %d: %s", self.position, str(error).strip()
                )
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
        """Learn how far the leader has come, and pass its pages on to the feeds of this process."""
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
        """Rebuild the views unless they fit this program; take over their position."""
        if not await fetch_value(db, EXISTS) or await stored_fingerprints(db) != FINGERPRINTS:
            log.info("project: rebuilding the views")
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
        """Apply a page; False if the views were switched and the page no longer comes next."""
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
