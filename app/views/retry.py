"""What is parked for a view is tried again: if any of it can be taken now, all views are built again.

Only a rebuild takes an event in its place among the others, so there is no shorter way that is right. It is
spared if nothing has changed: an event that still cannot be decoded, or makes its view fail before PostgreSQL
is asked, would only be parked again.
"""

import msgspec
from msgspec import Struct

from app.database.connection import Db
from app.database.names import VIEWS_SCHEMA
from app.views import tables
from app.views.parking import describe
from app.views.rebuild import Progress, rebuild

PARKED = """
SELECT view, position, cause, error FROM parked WHERE %s::text IS NULL OR view = %s ORDER BY position, view
"""


class Parked(Struct, frozen=True):
    """What is parked for a view, and why."""

    view: str
    position: int
    cause: str
    error: str


class UnknownView(Exception):
    """There is no view of this name; the message names those that there are."""


async def retry(url: str, view: str | None = None, progress: Progress | None = None) -> list[Parked]:
    """Try again what is parked for a view, or for all; returns what is parked for it after that.

    Raises UnknownView, RebuildRefused.
    """
    async with await tables.connect(url, VIEWS_SCHEMA, patience_seconds=None) as db:
        if not await tables.complete(db):
            return []
        names = [one.view for one in await tables.standings(db)]
        if view is not None and view not in {*names, *(one.NAME for one in tables.VIEWS)}:
            raise UnknownView(f"there is no view {view!r}: give one of {', '.join(names)}, or none for all")
        before = await _parked(db, view)
        if not before:
            return []
        still = [await _fails(db, one) for one in before]
        if all(still):
            return [
                msgspec.structs.replace(one, error=error) for one, error in zip(before, still, strict=True)
            ]
    await rebuild(url, progress)
    async with await tables.connect(url, VIEWS_SCHEMA, patience_seconds=None) as db:
        return await _parked(db, view)


async def _parked(db: Db, view: str | None) -> list[Parked]:
    rows = await (await db.execute(PARKED.encode(), (view, view))).fetchall()
    return [msgspec.convert(dict(zip(Parked.__struct_fields__, row, strict=True)), Parked) for row in rows]


async def _fails(db: Db, parked: Parked) -> str:
    """Why the event would only be parked again, as far as that shows without PostgreSQL; else nothing."""
    if parked.position == 0 or parked.cause == "version":
        return ""
    read = await tables.read(db, parked.position - 1, 1)
    if read.damaged:
        return read.damaged.error
    view = next((one for one in tables.VIEWS if parked.view == one.NAME), None)
    try:
        for _ in view.project(read.page) if view else ():
            pass
    except Exception as error:  # Whatever a projection has against this event.
        return describe(error)
    return ""
