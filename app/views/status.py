"""Reads how far the views are, how many deliveries are not done, and the channels."""

import msgspec
from msgspec import Struct

from app.database.pool import Pool
from app.views.deliveries import COUNTS, CountRow, DeliveryCounts
from app.views.events import ledger_head
from projections.deliveries import DEFERRED, OPEN, PARKED

VIEWS = 'SELECT "view", position FROM positions ORDER BY "view"'
CHANNELS = "SELECT name, channel_id, kind, url, bot_id, position FROM channels ORDER BY name"
CONNECTIONS = """
SELECT channel, account_id, scope_id, title, connected, is_time_window_disabled, position,
  to_char(connected_at, 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS connected_at
FROM connections WHERE %(channel)s::text IS NULL OR channel = %(channel)s::text ORDER BY channel, account_id
"""


class ViewRow(Struct):
    """The position that a view has reached."""

    view: str
    position: int


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
    """The position that a view has reached; `lag` is how many events it is behind the ledger."""

    view: str
    position: int
    lag: int


class Standing(Struct, frozen=True):
    """The ledger's last position, the views' positions, and the counts of deliveries."""

    head: int
    views: list[ViewStatus]
    deliveries: DeliveryCounts


async def view_status(pool: Pool) -> Standing:
    """Returns how far the ledger and each view are, and how many deliveries are not done."""
    views = await pool.fetch(ViewRow, VIEWS, {})
    counts = {row.state: row for row in await pool.fetch(CountRow, COUNTS, {})}
    head = await ledger_head(pool)
    open_, deferred, parked = (counts[s].count if s in counts else 0 for s in (OPEN, DEFERRED, PARKED))
    oldest = min((row.oldest for row in counts.values()), default=None)
    return Standing(
        head,
        [ViewStatus(row.view, row.position, max(0, head - row.position)) for row in views],
        DeliveryCounts(open_, deferred, parked, oldest),
    )


async def list_channels(pool: Pool) -> list[Channel]:
    """Returns all channels with their connections, by name."""
    channels = await pool.fetch(Channel, CHANNELS, {})
    connections = await list_connections(pool)
    return [
        msgspec.structs.replace(one, connections=[c for c in connections if c.channel == one.name])
        for one in channels
    ]


async def list_connections(pool: Pool, channel: str | None = None) -> list[Connection]:
    """Returns the connections, past ones too, by channel and account."""
    return await pool.fetch(Connection, CONNECTIONS, {"channel": channel}, prepare=False)
