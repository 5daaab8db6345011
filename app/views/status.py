"""Reads how far the views are, what they could not take, how many deliveries wait, and the channels."""

from typing import Literal

import msgspec
from msgspec import Struct

from app.database.pool import Pool
from app.views.deliveries import COUNTS, CountRow, DeliveryCounts
from app.views.events import ledger_head
from projections.deliveries import DEFERRED, FAILED, OPEN, PARKED

CONNECTIONS_SHOWN = 100  # chosen: what a person reads of a channel; there may be ten thousand
PARKED_SHOWN = 20  # chosen: what a person reads; `parked` of each view has the number
VIEWS = """
SELECT p."view", p.position, count(q.view) FILTER (WHERE q.cause = 'event') AS parked,
  coalesce(bool_or(q.stands), false) AS stands
FROM positions AS p LEFT JOIN parked AS q USING ("view") GROUP BY p."view", p.position ORDER BY p."view"
"""
FAULTS = """
SELECT "view", position, cause, error, to_char(parked_at, 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS parked_at
FROM parked WHERE %(view)s::text IS NULL OR "view" = %(view)s::text
ORDER BY cause DESC, position, "view" LIMIT %(limit)s::bigint
"""
CHANNELS = "SELECT name, channel_id, kind, url, bot_id, position FROM channels ORDER BY name"
CONNECTIONS = """
SELECT k.channel, k.account_id, k.scope_id, k.title, k.connected, k.is_time_window_disabled, k.position,
  to_char(k.connected_at, 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS connected_at
FROM channels AS c CROSS JOIN LATERAL (SELECT * FROM connections AS n WHERE n.channel = c.name
  AND (%(accounts)s::text[] IS NULL OR n.account_id = ANY (%(accounts)s::text[]))
  ORDER BY n.account_id LIMIT %(limit)s::bigint) AS k
ORDER BY k.channel, k.account_id
"""


class ViewRow(Struct):
    """The position of a view, how many events are parked for it, and whether it stands still."""

    view: str
    position: int
    parked: int
    stands: bool


class Connection(Struct, frozen=True, kw_only=True):
    """A connection of a channel to a Kommo account, present or past."""

    channel: str
    account_id: str
    scope_id: str
    title: str
    connected: bool
    connected_at: str
    position: int
    is_time_window_disabled: bool = False


class Channel(Struct, frozen=True, kw_only=True):
    """A Kommo chat channel and the messenger behind it."""

    name: str
    channel_id: str
    kind: str
    url: str
    bot_id: str | None
    position: int
    connections: list[Connection] = []


class ViewStatus(Struct, frozen=True):
    """The position that a view has reached; `lag` is how many events it is behind the ledger.

    `parked` is the number of events that the view could not take; if it `stands` still, it takes no more.
    """

    view: str
    position: int
    lag: int
    parked: int = 0
    stands: bool = False


class Parked(Struct, frozen=True):
    """What a view could not take, with the error.

    `cause`: an "event" of the ledger; a "rebuild" of the views, which therefore did not take their place; or
    another "version" of the view in this program, whose rebuild was refused.
    """

    view: str
    position: int
    cause: Literal["event", "rebuild", "version"]
    error: str
    parked_at: str


class Projection(Struct, frozen=True):
    """What the views could not take: the first events by position; each view counts all of its own."""

    parked: list[Parked]


class Standing(Struct, frozen=True):
    """The ledger's last position, the views' positions and faults, and the counts of deliveries."""

    head: int
    views: list[ViewStatus]
    projection: Projection
    deliveries: DeliveryCounts


async def view_status(pool: Pool) -> Standing:
    """Returns how far the ledger and each view are, and how many deliveries are not done."""
    views = await pool.fetch(ViewRow, VIEWS, {})
    counts = {row.state: row for row in await pool.fetch(CountRow, COUNTS, {})}
    head = await ledger_head(pool)
    states = (OPEN, DEFERRED, PARKED, FAILED)
    open_, deferred, parked, failed = (counts[s].count if s in counts else 0 for s in states)
    oldest = min((row.oldest for row in counts.values() if row.state != FAILED), default=None)
    return Standing(
        head,
        [
            ViewStatus(row.view, row.position, max(0, head - row.position), row.parked, row.stands)
            for row in views
        ],
        Projection(await list_parked(pool)),
        DeliveryCounts(open_, deferred, parked, oldest, failed),
    )


async def list_parked(pool: Pool, view: str | None = None, limit: int = PARKED_SHOWN) -> list[Parked]:
    """Returns what the views, or one of them, could not take, the first ones by position."""
    return await pool.fetch(Parked, FAULTS, {"view": view, "limit": limit})


async def list_channels(
    pool: Pool, accounts: list[str] | None = None, limit: int = CONNECTIONS_SHOWN
) -> list[Channel]:
    """Returns all channels by name, each with its first connections by account, past ones too.

    `accounts` are the only ones that are shown, None for all.
    """
    channels = await pool.fetch(Channel, CHANNELS, {})
    values = {"accounts": accounts, "limit": limit}
    connections = await pool.fetch(Connection, CONNECTIONS, values, prepare=False)
    return [
        msgspec.structs.replace(one, connections=[c for c in connections if c.channel == one.name])
        for one in channels
    ]
