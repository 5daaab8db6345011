"""DOC"""

from msgspec import Struct

from app.views.deliveries import DeliveryCounts

VIEWS = 'SELECT "view", position FROM positions ORDER BY "view"'
CHANNELS = "SELECT name, channel_id, kind, url, bot_id, position FROM channels ORDER BY name"
CONNECTIONS = """
SELECT channel, account_id, scope_id, title, connected, is_time_window_disabled, position,
  to_char(connected_at, 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS connected_at
FROM connections WHERE %(channel)s::text IS NULL OR channel = %(channel)s::text ORDER BY channel, account_id
"""


class ViewRow(Struct):
    """How far a view is."""

    view: str
    position: int


class Connection(Struct, frozen=True, kw_only=True):
    """A channel's connection to a Kommo account, present or past."""

    channel: str
    account_id: str
    scope_id: str
    title: str
    connected: bool
    connected_at: str
    position: int
    is_time_window_disabled: bool = False


class Channel(Struct, frozen=True, kw_only=True):
    """A chat channel of Kommo and the messenger behind it."""

    name: str
    channel_id: str
    kind: str
    url: str
    bot_id: str | None
    position: int
    connections: list[Connection] = []


class ViewStatus(Struct, frozen=True):
    """How far a view is; `lag` is how many events it is behind."""

    view: str
    position: int
    lag: int


class Standing(Struct, frozen=True):
    """The ledger's last position, the views, and the deliveries."""

    head: int
    views: list[ViewStatus]
    deliveries: DeliveryCounts
