"""The views follow the ledger: pages in order, each in one transaction with its position.

Theory of operation. One process leads: the one whose connection holds PROJECT_LOCK. It reads the page after
the views' position, applies it (`tables.apply`), tells its feeds and waiters, and sleeps until the ledger
notifies, `wake` is called, or POLL_SECONDS have passed. All other processes stand by: they poll the lock and
the stored position, so that their own `wait_for` and feeds work as well. When the leader's connection ends,
the database releases the lock and another process leads.

Before it leads, a process compares the fingerprints of the views in force with its own; if they differ, it
rebuilds the views, which stay readable until the new ones take their place. If the rebuild is refused, the
views in force stay: those that are the same in this program are brought forward, the others stand still. A
rebuild may also be started by hand while a leader works. The leader then finds that its page does not fit, or
that a table is gone; it reads the new position and goes on from there.

No event and no view ends the projector: what a view cannot take is parked for it (`parking`), and a view that
stands still holds up no other. `position` is that of the views that are brought forward.

Invariant. `position` never exceeds what is committed in the views, and feeds receive each page once it is.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Sequence
from typing import NoReturn

from psycopg import sql

from app.database import connection, names
from app.database.connection import Db
from app.database.leases import ANSWER_SECONDS, TERM_SECONDS, LeaseLost, Leases
from app.database.names import VIEWS_SCHEMA
from app.views.parking import ABSENT, PARK, Applier
from app.views.rebuild import RebuildRefused, fits, rebuild, was_refused
from app.views.tables import (
    COMPLETE,
    VIEWS,
    PageOutOfOrder,
    Read,
    Standing,
    View,
    complete,
    connect,
    fetch_value,
    fingerprint,
    position_of,
    read,
    standings,
)
from projections.columns import Page

LEASE = "project"
PAGE_EVENTS = 2_000  # chosen: some 50 ms of work for a page, so that readers who wait do not wait for long
POLL_SECONDS = 1.0  # chosen: how late the views may be if a notification was lost
OBSERVE_SECONDS = 0.02  # chosen: how late a process that stands by may learn of a position somebody waits for
RECONNECT_SECONDS_MIN, RECONNECT_SECONDS_MAX = 0.05, 2.0  # chosen: PostgreSQL restarts in about a second
FEED_PAGES_MAX = 256  # chosen: a reader that leaves more unread is better off reading the ledger
# A leader that is suspended within a page's transaction would hold up the next one by its locks.
SILENT = f"SET idle_in_transaction_session_timeout = '{TERM_SECONDS:.0f}s'".encode()
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

    def __init__(
        self,
        url: str,
        leases: Leases,
        *,
        page_events: int = PAGE_EVENTS,
        views: Sequence[View] = VIEWS,
    ) -> None:
        self.position = 0
        self.leading = False
        self.standing: dict[str, int] = {}  # the views that stand still, and where
        self._url = url
        self._leases = leases
        self._page_events = page_events
        self._views = views
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

    async def wait_for(self, position: int, timeout_seconds: float = 5.0, *, view: str | None = None) -> bool:
        """Wait until the views include `position`; False if they do not within `timeout_seconds`.

        A view that stands still holds up only those who name it as the `view` that they read.
        """
        if view in self.standing:
            return self.standing[view] >= position
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

    async def run(self, *, lead: bool = True) -> NoReturn:
        """Lead or stand by until cancelled, reconnecting whenever needed."""
        wait = RECONNECT_SECONDS_MIN
        while True:
            before = self.position
            try:
                await self._session(lead)
            except (*ABSENT, LeaseLost) as error:
                log.warning("project: begins anew at position %d: %s", self.position, str(error).strip())
            except PageOutOfOrder:
                log.warning("project: the views are not at position %d any more", self.position)
            finally:
                self.leading = False
            if self.position > before:
                wait = RECONNECT_SECONDS_MIN
            await asyncio.sleep(wait)
            wait = min(wait * 2, RECONNECT_SECONDS_MAX)

    async def _session(self, lead: bool) -> None:
        async with await connect(self._url, VIEWS_SCHEMA) as db:
            await db.execute(SILENT)
            if lead:
                await self._leases.connected(ANSWER_SECONDS)
            while not (lead and await self._leases.take({LEASE: names.PROJECT_LOCK})):
                await self._observe(db)
            try:
                applier = await self._prepare(db)
                self.leading = True
                listener = asyncio.create_task(self._listen(), name="project: listen")
                try:
                    await self._lead(db, applier, listener)
                finally:
                    listener.cancel()
                    await asyncio.wait([listener])
            finally:
                await self._leases.release([LEASE])

    async def _observe(self, db: Db) -> None:
        """Learn how far the leader has come, and pass its pages on to the feeds of this process."""
        self._woken.clear()
        if await fetch_value(db, COMPLETE):
            position = self._learn(await standings(db))
            while self._known and self._feeds and self.position < position:
                found = await read(db, self.position, self._page_events)
                page = [row for row in found.page if row[0] <= position]
                self._reached(min(found.last, position), page)
            self._reached(position, ())
        await self._pause(OBSERVE_SECONDS if self._waiters or self._feeds else POLL_SECONDS)

    async def _prepare(self, db: Db) -> Applier:
        """Rebuild the views unless they fit this program or were refused before; take over their position."""
        in_force = await standings(db) if await complete(db) else []
        if not fits(in_force, self._views):
            if in_force and await was_refused(db, self._views):
                log.error(
                    "project: a rebuild was refused before: see `parked`, then `chatledger views retry`"
                )
            else:
                log.info("project: rebuilding the views")
                await self._rebuild()
            await self._leave_outdated(db)
        applier = Applier(db, self._views)
        await self._load(db, applier)
        return applier

    async def _rebuild(self) -> None:
        try:
            await rebuild(self._url, only_if_needed=True, views=self._views)
        except RebuildRefused as error:
            log.error("project: %s", error)

    async def _leave_outdated(self, db: Db) -> None:
        """Let the views in force that are another version than this program's stand still."""
        ours = {view.NAME: fingerprint(view) for view in self._views}
        for view in await standings(db):
            if not view.stands and ours.get(view.view) != view.fingerprint:
                reason = "this program has another version of the view, and its rebuild was refused"
                values = (view.view, view.position, "version", True, reason, view.fingerprint)
                await db.execute(PARK, values)

    async def _load(self, db: Db, applier: Applier) -> None:
        await applier.load()
        self._learn(await standings(db))
        self._reached(applier.position, ())

    def _learn(self, views: Sequence[Standing]) -> int:
        """Note which views stand still; returns the position of the others."""
        self.standing = {view.view: view.position for view in views if view.stands}
        return position_of(views)

    async def _listen(self) -> None:
        async with await connection.connect(self._url) as db:
            await db.execute(sql.SQL("LISTEN {}").format(sql.Identifier(names.CHANNEL)))
            self._woken.set()
            async for _ in connection.notified(db):
                self._woken.set()

    async def _lead(self, db: Db, applier: Applier, listener: "asyncio.Task[None]") -> None:
        while True:
            self._woken.clear()
            self._leases.fence(LEASE)
            if listener.done():
                listener.result()
            found = await read(db, self.position, self._page_events)
            if not found:
                await self._pause(POLL_SECONDS)
            elif await self._apply(db, applier, found):
                self._reached(found.last, found.page)

    async def _apply(self, db: Db, applier: Applier, found: Read) -> bool:
        """Apply what was read; False if the views were switched and it no longer comes next."""
        followed = len(applier.followed)
        try:
            await applier.take(found)
        except PageOutOfOrder:
            before = self.position
            await self._load(db, applier)
            if not fits(await standings(db), self._views):
                raise
            log.info("project: views were rebuilt: from position %d to %d", before, self.position)
            return False
        if len(applier.followed) < followed:
            self._learn(await standings(db))
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
