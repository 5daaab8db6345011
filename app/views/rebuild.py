"""All views are built from the ledger beside those in force, and take their place unless they are worse.

A rebuild fills a second schema beside the views in force, without their slower indexes, and reads and
projection go on meanwhile. Then it adds the indexes and follows the ledger to its head. For the switch it
locks the positions of the views in force, so that they stand still, applies the last events, and renames both
schemas in one transaction: readers see the old views or the new ones, and the position never falls.

A view that cannot take an event parks it, in a rebuild as ever. If the view in force has taken that event, or
the view is a new one and the others have, the new views would be worse than those in force: the rebuild ends
with RebuildRefused, the views in force stay, and their table `parked` says why. `park=True` switches all the
same.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeAlias, cast

import psycopg

from app.database import connection
from app.database.connection import Db
from app.database.names import REBUILD_LOCK, VIEWS_NEXT_SCHEMA, VIEWS_SCHEMA
from app.views import tables
from app.views.parking import PARK, Applier, Fault
from app.views.tables import EXISTS, HEAD, Read, Standing, View, fetch_value

BULK_PAGE_EVENTS = 5_000  # chosen: about 100 ms of work for a page of a rebuild
Progress: TypeAlias = Callable[[int, int], None]
KNOWN = "SELECT view, position FROM views.parked WHERE cause = 'event'"
REFUSED = "SELECT view, fingerprint FROM views.parked WHERE cause = 'rebuild'"
FORGET = "DELETE FROM parked WHERE cause = 'rebuild'"


class RebuildRefused(Exception):
    """The rebuilt views would lack an event that the views in force have; these stay."""

    def __init__(self, fault: Fault) -> None:
        what = f"parks position {fault.position}" if fault.position else "cannot be made"
        super().__init__(
            f"the view {fault.view} {what} ({fault.error}): the views in force stay. Mend the view, or "
            "switch all the same with `chatledger rebuild --park`"
        )
        self.fault = fault


class Guard:
    """Refuses a fault that the views in force do not have."""

    def __init__(self, in_force: Sequence[Standing], parked: set[tuple[str, int]]) -> None:
        self._positions = {view.view: view.position for view in in_force}
        self._oldest = min(self._positions.values(), default=0)
        self._parked = parked
        self._any = {position for _, position in parked}

    def check(self, fault: Fault) -> None:
        """Raises RebuildRefused if the views in force are better off."""
        if fault.view in self._positions:
            known = (fault.view, fault.position) in self._parked or fault.position > self._positions[
                fault.view
            ]
        else:
            known = fault.position in self._any or fault.position > self._oldest
        if not known:
            raise RebuildRefused(fault)


async def rebuild(
    url: str,
    progress: Progress | None = None,
    *,
    page_events: int = BULK_PAGE_EVENTS,
    only_if_needed: bool = False,
    park: bool = False,
    views: Sequence[View] | None = None,
) -> int:
    """Build all views from the ledger and put them in the place of the old ones; returns their position.

    `progress(done, total)` is called after each page, in events. `only_if_needed`: do nothing if another
    process has just built views that fit this program. Raises RebuildRefused unless `park`.
    """
    views = tables.VIEWS if views is None else views
    async with (
        await tables.connect(url, VIEWS_NEXT_SCHEMA, patience_seconds=None) as writer,
        await tables.connect(url, VIEWS_SCHEMA, patience_seconds=None) as reader,
    ):
        await writer.execute("SELECT pg_advisory_lock(%s)", (REBUILD_LOCK,))
        in_force = await tables.standings(reader) if await tables.complete(reader) else []
        if only_if_needed and fits(in_force, views):
            return tables.position_of(in_force)
        guard = Guard(in_force, await _parked(reader)) if in_force and not park else None
        try:
            return await _build(url, reader, writer, views, guard, progress, page_events)
        except RebuildRefused as refused:
            await tables.run_script(writer, "DROP SCHEMA views_next CASCADE")
            await _tell(reader, refused.fault, views)
            raise


def fits(in_force: Sequence[Standing], views: Sequence[View]) -> bool:
    """Whether the views in force are those of this program, and can be brought forward together."""
    followed = {view.position for view in in_force if not view.stands}
    stored = {view.view: view.fingerprint for view in in_force}
    same = stored == {view.NAME: tables.fingerprint(view) for view in views}
    return same and len(followed) <= 1 and not any(view.outdated for view in in_force)


async def was_refused(db: Db, views: Sequence[View]) -> bool:
    """Whether the last rebuild with one of these views was refused because of it."""
    rows = await (await db.execute(REFUSED)).fetchall()
    current = {(view.NAME, tables.fingerprint(view)) for view in views}
    return any((name, stored) in current for name, stored in rows)


async def _parked(reader: Db) -> set[tuple[str, int]]:
    return cast("set[tuple[str, int]]", set(await (await reader.execute(KNOWN)).fetchall()))


async def _tell(reader: Db, fault: Fault, views: Sequence[View]) -> None:
    """Keep beside the views in force why a rebuild was refused; only the last one counts."""
    stored = next(tables.fingerprint(view) for view in views if fault.view == view.NAME)
    async with reader.transaction():
        await reader.execute(FORGET)
        await reader.execute(PARK, (fault.view, fault.position, "rebuild", False, fault.error, stored))


async def _build(
    url: str,
    reader: Db,
    writer: Db,
    views: Sequence[View],
    guard: Guard | None,
    progress: Progress | None,
    page_events: int,
) -> int:
    applier = Applier(writer, views, on_fault=guard.check if guard else lambda fault: None)
    refused = await tables.create_views(writer, views)
    await applier.load()
    for view in [view for view in views if view.NAME in refused]:
        await applier.stand(view, refused[view.NAME])
    await _load(reader, applier, page_events, progress)
    await writer.execute("SET maintenance_work_mem = '128MB'")
    for view in list(applier.followed):
        await _index(writer, applier, view)
    await _load(reader, applier, page_events, progress)
    async with await connection.connect(url, patience_seconds=None) as switch, switch.transaction():
        if await fetch_value(switch, EXISTS):
            # From here on the old views stand still, so that the new ones cannot be behind them.
            await switch.execute("LOCK TABLE views.positions IN EXCLUSIVE MODE")
            await _load(reader, applier, page_events, progress)
            await switch.execute("ALTER SCHEMA views RENAME TO views_old")
        await switch.execute("ALTER SCHEMA views_next RENAME TO views")
    await tables.run_script(writer, "DROP SCHEMA IF EXISTS views_old CASCADE")
    return applier.position


async def _index(writer: Db, applier: Applier, view: View) -> None:
    try:
        async with writer.transaction():
            await tables.run_script(writer, view.INDEXES)
    except (psycopg.ProgrammingError, psycopg.IntegrityError, psycopg.DataError) as error:
        await applier.stand(view, error)


async def _load(reader: Db, applier: Applier, count: int, progress: Progress | None) -> None:
    """Apply all pages after the position of the views, each while the next one is read."""
    total = cast("int", await fetch_value(reader, HEAD))
    read: Read = await tables.read(reader, applier.position, count)
    while read:
        last = read.last
        applying = asyncio.create_task(applier.take(read))
        await asyncio.sleep(0)
        try:
            read = await tables.read(reader, last, count)
        finally:
            await applying
        if progress:
            progress(last, max(total, last))
