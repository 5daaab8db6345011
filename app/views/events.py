"""Reads events exactly as stored, all of them or those that a filter selects."""

from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec
from msgspec import Raw, Struct

from app.database.packed import unpack
from app.database.pool import Pool, ViewsMissing
from app.views.accounts import connected
from app.views.cursor import LIMIT, POSITION_LAST
from projections.events import BLOCK_BITS, COMMON, PERIOD, TAGS, place

HEAD = "SELECT coalesce(max(notification_id), 0) AS head FROM ledger.stored_events"
LEDGER_PAGE = """
SELECT notification_id AS position, state AS event FROM ledger.stored_events
WHERE notification_id > %(after)s::bigint ORDER BY notification_id LIMIT %(limit)s::bigint
"""
# What is of no channel is an account's consents.
_OURS = "".join((" AND (channel = '' OR ", connected("places", "account"), "))"))
PLACES = "".join(
    (
        "SELECT id FROM places WHERE (%(channel)s::text IS NULL OR channel = %(channel)s::text)",
        " AND (%(account)s::text IS NULL OR account = %(account)s::text",
        _OURS,
        " AND (%(accounts)s::text[] IS NULL OR account = ANY (%(accounts)s::text[])",
        _OURS,
    )
)
PERIOD_RANGE = """
SELECT min(period) AS low, max(period) AS high FROM periods
WHERE (%(since)s::timestamptz IS NULL OR high >= %(since)s::timestamptz)
  AND (%(until)s::timestamptz IS NULL OR low < %(until)s::timestamptz)
"""
# The order of `block` and then of position is that of the indexes.
EVENTS = """
SELECT e.notification_id AS position, e.state AS event FROM (
  SELECT position FROM events
  WHERE position > %(after)s::bigint AND position >= %(low)s::bigint AND position <= %(high)s::bigint
    AND block BETWEEN %(first_block)s::bigint AND %(last_block)s::bigint
    AND (%(kind)s::smallint IS NULL OR kind = %(kind)s::smallint)
    AND (%(head)s::smallint IS NULL OR head = %(head)s::smallint)
    AND (%(place)s::bigint IS NULL OR place = %(place)s::bigint)
    AND (%(places)s::bigint[] IS NULL OR place = ANY (%(places)s::bigint[]))
    AND (%(since)s::timestamptz IS NULL OR recorded_at >= %(since)s::timestamptz)
    AND (%(until)s::timestamptz IS NULL OR recorded_at < %(until)s::timestamptz)
  ORDER BY block, position LIMIT %(limit)s::bigint) AS p
JOIN ledger.stored_events AS e ON e.notification_id = p.position ORDER BY p.position
"""
# The events of a conversation are its own and those of the conversations merged into it, whichever id is
# asked for.
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
      AND block BETWEEN %(first_block)s::bigint AND %(last_block)s::bigint
      AND (%(kind)s::smallint IS NULL OR kind = %(kind)s::smallint)
      AND (%(place)s::bigint IS NULL OR place = %(place)s::bigint)
      AND (%(places)s::bigint[] IS NULL OR place = ANY (%(places)s::bigint[]))
      AND (%(since)s::timestamptz IS NULL OR recorded_at >= %(since)s::timestamptz)
      AND (%(until)s::timestamptz IS NULL OR recorded_at < %(until)s::timestamptz)
    ORDER BY block, position LIMIT %(limit)s::bigint) AS f
  ORDER BY f.position LIMIT %(limit)s::bigint) AS p
JOIN ledger.stored_events AS e ON e.notification_id = p.position ORDER BY p.position
"""

STREAM_HEAD = """SELECT notification_id AS head FROM ledger.stored_events
WHERE originator_id = %(stream)s::uuid ORDER BY originator_version LIMIT 1"""

STREAM_PAGE_EVENTS = 1000  # chosen: about a megabyte in memory for each reader that streams
BLOCK = f"(position >> {BLOCK_BITS})"
_KINDS = {name: number for number, name in enumerate(TAGS)}


class Filter(Struct, frozen=True, kw_only=True):
    """Which events to read: those recorded from the time `since` on and before the time `until`.

    `accounts`: only those of these.
    """

    type: str | None = None
    conversation: str | None = None
    channel: str | None = None
    account_id: str | None = None
    accounts: list[str] | None = None
    since: str | None = None
    until: str | None = None


EVERYTHING = Filter()
UNREADABLE = "unreadable"  # the `type` that is shown of what is stored and no JSON object


class EventRow(Struct):
    """The position and stored JSON of an event."""

    position: int
    event: bytes


class PlaceRow(Struct):
    """The number of a channel with an account."""

    id: int


class RangeRow(Struct):
    """The first and last period in which a time lies."""

    low: int | None
    high: int | None


class _Any(Struct):
    """Any JSON object."""


class HeadRow(Struct):
    """The ledger's last position."""

    head: int


_check_json = msgspec.json.Decoder(_Any).decode


class Stored(Struct, frozen=True):
    """An event of the ledger: exactly the stored JSON.

    Of what was damaged so that it is no JSON object: `{"type":"unreadable","base64":…}`.
    """

    position: int
    event: Raw


class Events(Struct, frozen=True):
    """A page of events, and the `after` of the next page."""

    items: list[Stored]
    next: int | None


async def list_events(pool: Pool, *, after: int = 0, limit: int = LIMIT, only: Filter = EVERYTHING) -> Events:
    """Returns a page of events after a position, exactly as stored."""
    rows = await _events(pool, after, limit + 1, only)
    items = [Stored(row.position, Raw(row.event)) for row in rows[:limit]]
    return Events(items, items[-1].position if len(rows) > limit else None)


async def stream_events(
    pool: Pool,
    *,
    after: int = 0,
    only: Filter = EVERYTHING,
    wait: Callable[[], Awaitable[object]] | None = None,
) -> AsyncIterator[list[tuple[int, bytes]]]:
    """Yield pages of (position, stored JSON) after a position, to the end of the ledger.

    With `wait`, never end: `wait` is awaited whenever there is no further event, and returns when there may
    be one.
    """
    while True:
        rows = await _events(pool, after, STREAM_PAGE_EVENTS, only)
        if rows:
            yield [(row.position, row.event) for row in rows]
            after = rows[-1].position
        elif wait is None:
            return
        else:
            await wait()


async def _events(pool: Pool, after: int, limit: int, only: Filter) -> list[EventRow]:
    """The rows; what is stored but is no JSON object is shown as one, so that no answer breaks."""
    rows = await _select(pool, after, limit, only)
    for row in rows:
        row.event = unpack(row.event)
        try:
            row.event.decode()
            _check_json(row.event)
        except (ValueError, RecursionError):
            row.event = msgspec.json.encode({"type": UNREADABLE, "base64": row.event})
    return rows


async def _select(pool: Pool, after: int, limit: int, only: Filter) -> list[EventRow]:
    values: dict[str, object] = {"after": after, "limit": limit}
    if only == EVERYTHING:
        return await pool.fetch(EventRow, LEDGER_PAGE, values)
    if only.type is not None and only.type not in _KINDS:
        return []
    times: dict[str, object] = {"since": only.since, "until": only.until}
    low, high = await _range(pool, times) if only.since or only.until else (0, POSITION_LAST)
    values |= times
    values |= {"first_block": max(after + 1, low) >> BLOCK_BITS, "last_block": high >> BLOCK_BITS}
    kind = _KINDS.get(only.type or "")
    head = None if only.type in COMMON else kind  # Only these follow others in a run.
    values |= {"low": low, "high": high, "kind": kind, "head": head, **await _places(pool, only)}
    statement = EVENTS
    if only.conversation is not None:
        statement, values["conversation"] = EVENTS_OF_CONVERSATION, only.conversation
    try:
        return await pool.fetch(EventRow, statement, values, prepare=False)
    except ViewsMissing:  # Those of an older version have no runs.
        older = statement.replace("AND block", f"AND {BLOCK}").replace("BY block", f"BY {BLOCK}")
        older = older.replace("head =", "kind =")
        return await pool.fetch(EventRow, older, values, prepare=False)


async def _range(pool: Pool, times: dict[str, object]) -> tuple[int, int]:
    """Returns the first and last position between which all events of a time lie."""
    (row,) = await pool.fetch(RangeRow, PERIOD_RANGE, times)
    if row.low is None or row.high is None:
        return (POSITION_LAST, 0)
    return row.low * PERIOD, row.high * PERIOD + PERIOD - 1


async def _places(pool: Pool, only: Filter) -> dict[str, object]:
    """Returns the parameters `place` and `places` of the statements: one number, several, or neither."""
    if only.channel is None and only.account_id is None and only.accounts is None:
        return {"place": None, "places": None}
    if only.channel is not None and only.account_id is not None and only.accounts is None:
        return {"place": place(only.channel, only.account_id), "places": None}
    values: dict[str, object] = {
        "channel": only.channel,
        "account": only.account_id,
        "accounts": only.accounts,
    }
    places = [row.id for row in await pool.fetch(PlaceRow, PLACES, values)]
    if len(places) == 1:  # An equality lets PostgreSQL read the index in order of position.
        return {"place": places[0], "places": None}
    return {"place": None, "places": places}


async def is_stream(pool: Pool, stream: str) -> bool:
    """Returns whether the ledger has an event of this stream."""
    return bool(await pool.fetch(HeadRow, STREAM_HEAD, {"stream": stream}))


async def ledger_head(pool: Pool) -> int:
    """Returns the ledger's last position, 0 if it is empty."""
    (row,) = await pool.fetch(HeadRow, HEAD, {})
    return row.head
