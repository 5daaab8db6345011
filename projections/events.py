"""An index from type, channel, account, conversation and time to positions; the events stay in the ledger."""

from collections.abc import Iterator
from functools import lru_cache
from hashlib import sha1
from typing import get_args

from domain.events import AnyEvent
from projections.columns import GO_ON, Page, Statement, ints, longs, smalls, texts, times, uuids_repeated

NAME = "events"
VERSION = 1

# `periods` has the earliest and latest time of each 1024 positions. Times grow only roughly with positions; a
# search for a time becomes a narrow range of positions after reading a thousandth as many rows.
SCHEMA = """
CREATE TABLE places (id bigint PRIMARY KEY, channel text NOT NULL, account text);
CREATE TABLE events (position bigint NOT NULL, place bigint NOT NULL, recorded_at timestamptz NOT NULL,
  conversation uuid, kind smallint NOT NULL)
  WITH (autovacuum_analyze_scale_factor = 0.05, autovacuum_vacuum_insert_scale_factor = 0.05);
CREATE TABLE periods (period integer PRIMARY KEY, low timestamptz NOT NULL, high timestamptz NOT NULL)
  WITH (fillfactor = 70);
"""
# An index that lacks one event still finds the others; the event itself stays in the ledger.
ON_FAULT = GO_ON
TOPICS = ("",)

PLACES = """
INSERT INTO places (id, channel, account)
SELECT * FROM unnest(%b::bigint[], %b::text[], %b::text[]) ON CONFLICT (id) DO NOTHING
"""
INSERT = """
INSERT INTO events (position, place, recorded_at, conversation, kind)
SELECT * FROM unnest(%b::bigint[], %b::bigint[], %b::timestamptz[], %b::uuid[], %b::smallint[])
"""
PERIODS = """
INSERT INTO periods AS p (period, low, high)
SELECT * FROM unnest(%b::int[], %b::timestamptz[], %b::timestamptz[]) AS i(period, low, high)
ON CONFLICT (period) DO UPDATE SET low = least(p.low, excluded.low), high = greatest(p.high, excluded.high)
"""

PERIOD = 1024
"""Positions in a row of `periods`."""

TAGS = tuple(str(kind.__struct_config__.tag) for kind in get_args(AnyEvent))
"""An event's `kind` is the index of its tag."""

# They come with every message, so a page of one of them is found by reading the events in order, and the
# index of the others is small.
COMMON = ("message.sent", "message.accepted", "message.named")
INDEXES = """
ALTER TABLE events ADD PRIMARY KEY (position);
CREATE INDEX events_conversation ON events (conversation, position) WHERE conversation IS NOT NULL;
CREATE INDEX events_kind ON events (kind, position) WHERE kind NOT IN ({common});
CREATE INDEX events_place ON events (place, position);
ANALYZE places, events, periods;
""".format(common=", ".join(str(TAGS.index(tag)) for tag in COMMON))

_KINDS = {kind: number for number, kind in enumerate(get_args(AnyEvent))}


@lru_cache(maxsize=4096)
def place(channel: str, account: str | None) -> int:
    """Returns a 64-bit number for a channel and an account: their hash, so that no look-up is needed."""
    digest = sha1(f"{channel}\n{account or ''}".encode(), usedforsecurity=False).digest()
    return int.from_bytes(digest[:8], signed=True)


def project(page: Page) -> Iterator[Statement]:
    """Yield the statements for the rows of a page, and for the places and periods that it touches."""
    events = [event for _, event in page]
    numbers = [place(event.channel, event.account) for event in events]
    recorded = [event.recorded_at for event in events]
    owners = dict(zip(numbers, events, strict=True))
    yield (
        PLACES,
        (
            longs(list(owners)),
            texts([event.channel for event in owners.values()]),
            texts([event.account for event in owners.values()]),
        ),
    )
    yield (
        INSERT,
        (
            longs([position for position, _ in page]),
            longs(numbers),
            times(recorded),
            uuids_repeated([event.conversation for event in events]),
            smalls([_KINDS[type(event)] for event in events]),
        ),
    )
    yield PERIODS, _periods(page[0][0], recorded)


def _periods(first: int, recorded: list[str]) -> tuple[object, ...]:
    """Returns the extremes of each period; positions have no gaps, so a period is a slice."""
    offset = first % PERIOD
    starts = range(-offset, len(recorded), PERIOD)
    spans = [recorded[max(start, 0) : start + PERIOD] for start in starts]
    return (
        ints([first // PERIOD + number for number in range(len(spans))]),
        times([min(span) for span in spans]),
        times([max(span) for span in spans]),
    )
