"""DOC"""

from msgspec import Raw, Struct

from projections.events import TAGS

HEAD = "SELECT coalesce(max(notification_id), 0) AS head FROM ledger.stored_events"
LEDGER_PAGE = """
SELECT notification_id AS position, state AS event FROM ledger.stored_events
WHERE notification_id > %(after)s::bigint ORDER BY notification_id LIMIT %(limit)s::bigint
"""
PLACES = """
SELECT id FROM places WHERE (%(channel)s::text IS NULL OR channel = %(channel)s::text)
  AND (%(account)s::text IS NULL OR account = %(account)s::text)
"""
PERIOD_RANGE = """
SELECT min(period) AS low, max(period) AS high FROM periods
WHERE (%(since)s::timestamptz IS NULL OR high >= %(since)s::timestamptz)
  AND (%(until)s::timestamptz IS NULL OR low < %(until)s::timestamptz)
"""
EVENTS = """
SELECT e.notification_id AS position, e.state AS event FROM (
  SELECT position FROM events
  WHERE position > %(after)s::bigint AND position >= %(low)s::bigint AND position <= %(high)s::bigint
    AND (%(kind)s::smallint IS NULL OR kind = %(kind)s::smallint)
    AND (%(place)s::bigint IS NULL OR place = %(place)s::bigint)
    AND (%(places)s::bigint[] IS NULL OR place = ANY (%(places)s::bigint[]))
    AND (%(since)s::timestamptz IS NULL OR recorded_at >= %(since)s::timestamptz)
    AND (%(until)s::timestamptz IS NULL OR recorded_at < %(until)s::timestamptz)
  ORDER BY position LIMIT %(limit)s::bigint) AS p
JOIN ledger.stored_events AS e ON e.notification_id = p.position ORDER BY p.position
"""
# A conversation's events are its own and those of the ones merged into it, whichever of them was asked for.
EVENTS_OF_CONVERSATION = """
WITH asked AS (
  SELECT coalesce((SELECT winner FROM merges WHERE loser = %(conversation)s::uuid),
    %(conversation)s::uuid) AS id)
SELECT e.notification_id AS position, e.state AS event FROM (
  SELECT f.position FROM (SELECT id FROM asked UNION ALL
    SELECT g.loser FROM merges AS g JOIN asked ON g.winner = asked.id) AS c
  CROSS JOIN LATERAL (SELECT position FROM events
    WHERE conversation = c.id
      AND position > %(after)s::bigint AND position >= %(low)s::bigint AND position <= %(high)s::bigint
      AND (%(kind)s::smallint IS NULL OR kind = %(kind)s::smallint)
      AND (%(place)s::bigint IS NULL OR place = %(place)s::bigint)
      AND (%(places)s::bigint[] IS NULL OR place = ANY (%(places)s::bigint[]))
      AND (%(since)s::timestamptz IS NULL OR recorded_at >= %(since)s::timestamptz)
      AND (%(until)s::timestamptz IS NULL OR recorded_at < %(until)s::timestamptz)
    ORDER BY position LIMIT %(limit)s::bigint) AS f
  ORDER BY f.position LIMIT %(limit)s::bigint) AS p
JOIN ledger.stored_events AS e ON e.notification_id = p.position ORDER BY p.position
"""

STREAM_PAGE_EVENTS = 1000
_LAST = (1 << 63) - 1
_KINDS = {name: number for number, name in enumerate(TAGS)}


class Filter(Struct, frozen=True, kw_only=True):
    """Which events: `recorded_at` is from `since` on and before `until`; both are times."""

    type: str | None = None
    conversation: str | None = None
    channel: str | None = None
    account_id: str | None = None
    since: str | None = None
    until: str | None = None


EVERYTHING = Filter()


class EventRow(Struct):
    """An event's position and stored JSON."""

    position: int
    event: bytes


class PlaceRow(Struct):
    """A channel and account by their number."""

    id: int


class RangeRow(Struct):
    """The periods between which a time is."""

    low: int | None
    high: int | None


class HeadRow(Struct):
    """The ledger's last position."""

    head: int


class Stored(Struct, frozen=True):
    """An event of the ledger: exactly the stored JSON."""

    position: int
    event: Raw


class Events(Struct, frozen=True):
    """A page, and the `after` of the next."""

    items: list[Stored]
    next: int | None
