"""An event that a view cannot take is parked for that view with its error; all other views take it.

Theory of operation. A page is applied to all views at once. If that fails, the page is halved until the event
at fault is alone, so that what is before and after it still goes in pages. Of that event each view gets its
statements under a savepoint: what fails is undone and parked, the rest commits with the position.

A view chooses with its constant `ON_FAULT` what comes next: it goes on without the event, or it stands still
before it. A view with PARKED_MAX parked events stands still whatever it has chosen, because then the fault is
the view's. Only a rebuild brings forward a view that stands still, or takes up a parked event, because only a
rebuild takes every event in its order.

A position without a readable event is parked for the views whose `TOPICS` it concerns, by the type that is
stored beside the event.

An error of the connection is nobody's fault, and is raised.
"""

import logging
import traceback
from collections.abc import Callable, Sequence
from typing import cast

import psycopg
from msgspec import Struct

from app.database.connection import Db
from app.printable import printable
from app.views.tables import (
    Damaged,
    PageOutOfOrder,
    Read,
    View,
    advance,
    apply,
    apply_alone,
    fingerprint,
    standings,
)
from projections.columns import GO_ON, STAND_STILL, Page

PARKED_MAX = 1_000  # chosen: more is no list that a person reads, and each costs some milliseconds to find
ERROR_CHARACTERS_MAX = 300  # chosen: the error's words, not the event that PostgreSQL may quote after them
# A database that may only be read, after a failover or for want of room, takes nothing of any view.
ABSENT = (psycopg.OperationalError, psycopg.InterfaceError, psycopg.errors.ReadOnlySqlTransaction)
PARK = """
INSERT INTO parked (view, position, cause, stands, error, fingerprint) VALUES (%s, %s, %s, %s, %s, %s)
ON CONFLICT (view, position, cause) DO UPDATE SET stands = excluded.stands, error = excluded.error,
  fingerprint = excluded.fingerprint, parked_at = now()
"""
STAY = "UPDATE positions SET position = %s WHERE view = %s"
log = logging.getLogger("chatledger.project")


class Fault(Struct, frozen=True):
    """What a view cannot take: the event at `position`, or with position 0 its own tables. `where`: in which
    line of our code, if it was there."""

    view: str
    position: int
    error: str
    where: str = ""


class Applier:
    """Brings the views of one schema forward over one connection, and parks what a view cannot take.

    Call `load` first, and again after PageOutOfOrder. `position` is that of the views in `followed`.
    """

    def __init__(
        self, db: Db, views: Sequence[View], *, on_fault: Callable[[Fault], None] = lambda fault: None
    ) -> None:
        """`on_fault` is called before a fault is parked, and may raise to keep the page out."""
        self.position = 0
        self.followed: list[View] = []
        self._db = db
        self._views = views
        self._on_fault = on_fault
        self._table: int | None = None
        self._parked: dict[str, int] = {}

    async def load(self) -> None:
        """Learn where the views are, and which of them stand still."""
        found = {view.view: view for view in await standings(self._db)}
        self._table = next((view.table for view in found.values()), None)
        self._parked = {name: view.parked for name, view in found.items()}
        self.followed = [view for view in self._views if view.NAME in found and not found[view.NAME].stands]
        positions = [found[view.NAME].position for view in self.followed]
        self.position = (
            min(positions) if positions else max((one.position for one in found.values()), default=0)
        )

    async def take(self, read: Read) -> None:
        """Bring the views to the end of what was read. Raises PageOutOfOrder and errors of the connection."""
        if read.damaged:
            await self._park_damaged(read.damaged)
        else:
            await self._take(read.page)
        self.position = read.last

    async def stand(self, view: View, error: Exception) -> None:
        """Let a view stand still where it is, because its own tables cannot be made."""
        await self._park([(view, _fault(view, 0, error))], self.position, stands=True)

    async def _take(self, page: Page) -> None:
        first, _ = page[0]
        try:
            if self.followed:
                await apply(self._db, page, first - 1, self.followed, self._table)
        except (PageOutOfOrder, *ABSENT):
            raise
        except Exception:  # Of which event and which view, the halves show.
            if len(page) == 1:
                await self._take_one(page)
                return
            middle = len(page) // 2
            await self._take(page[:middle])
            await self._take(page[middle:])

    async def _take_one(self, page: Page) -> None:
        ((position, _),) = page
        faults = []
        async with self._db.transaction():
            await self._advance(position - 1, position)
            for view in self.followed:
                try:
                    await apply_alone(self._db, page, view)
                except ABSENT:
                    raise
                except Exception as error:  # Whatever a projection or PostgreSQL has against this event.
                    faults.append((view, _fault(view, position, error)))
            await self._store(faults, position - 1)
        self._note(faults)

    async def _park_damaged(self, damaged: Damaged) -> None:
        topic = damaged.topic
        faults = [
            (view, Fault(view.NAME, damaged.first, damaged.error))
            for view in self.followed
            if topic is None or any(topic.startswith(one) for one in topics(view))
        ]
        await self._park(faults, damaged.first - 1, to=damaged.last)

    async def _park(
        self, faults: list[tuple[View, Fault]], before: int, *, to: int | None = None, stands: bool = False
    ) -> None:
        async with self._db.transaction():
            if to is not None:
                await self._advance(before, to)
            await self._store(faults, before, stands=stands)
        self._note(faults, stands=stands)

    async def _advance(self, after: int, to: int) -> None:
        if not self.followed:
            return
        try:
            await advance(self._db, after, to, self.followed, self._table)
        except (psycopg.errors.NotNullViolation, psycopg.errors.UndefinedTable) as error:
            raise PageOutOfOrder from error

    async def _store(self, faults: list[tuple[View, Fault]], before: int, *, stands: bool = False) -> None:
        for view, fault in faults:
            self._on_fault(fault)
            stays = stands or self._stands(view)
            values = (view.NAME, fault.position, "event", stays, fault.error, fingerprint(view))
            await self._db.execute(PARK, values)
            if stays:
                await self._db.execute(STAY, (before, view.NAME))

    def _note(self, faults: list[tuple[View, Fault]], *, stands: bool = False) -> None:
        for view, fault in faults:
            stays = stands or self._stands(view)
            self._parked[view.NAME] = self._parked.get(view.NAME, 0) + 1
            if stays:
                self.followed.remove(view)
            then = "stands still" if stays else "goes on without it"
            log.error("view %s %s: position %d is parked%s", view.NAME, then, fault.position, fault.where)

    def _stands(self, view: View) -> bool:
        return on_fault(view) == STAND_STILL or self._parked.get(view.NAME, 0) + 1 >= PARKED_MAX


def on_fault(view: View) -> str:
    """Returns what a view does about an event that it cannot take; it goes on unless it says otherwise."""
    return cast("str", getattr(view, "ON_FAULT", GO_ON))


def topics(view: View) -> tuple[str, ...]:
    """Returns how the types of the events begin that a view takes; all, unless it says otherwise."""
    return cast("tuple[str, ...]", getattr(view, "TOPICS", ("",)))


def _fault(view: View, position: int, error: Exception) -> Fault:
    ours = [one for one in traceback.extract_tb(error.__traceback__) if "site-packages" not in one.filename]
    where = f" ({type(error).__name__} in {ours[-1].name}, line {ours[-1].lineno})" if ours else ""
    return Fault(view.NAME, position, describe(error), where)


def describe(error: Exception) -> str:
    """Returns an error in one line of printable characters."""
    words = error.diag.message_primary if isinstance(error, psycopg.Error) else None
    text = f"{type(error).__name__}: {words or error}"
    return printable(text[:ERROR_CHARACTERS_MAX])
