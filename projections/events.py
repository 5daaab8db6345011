"""An index from type, channel, account, conversation and time to positions; the events stay in the ledger.

A row of `event_runs` is one event, or up to RUN_MAX that follow each other and differ only in the type:
what one commit says of one chat. Its indexes have the `block` of a position instead of the position: so
PostgreSQL stores equal keys once, with six bytes for each row, and sorts what it finds of a block.
"""

from collections.abc import Iterator
from functools import lru_cache
from hashlib import sha1
from typing import get_args

from domain.events import AnyEvent
from projections.columns import (
    GO_ON,
    Page,
    Statement,
    blobs,
    ints,
    longs,
    smalls,
    texts,
    times,
    uuids_repeated,
)

NAME = "events"
VERSION = 2

PERIOD = 1024
"""Positions in a row of `periods`."""

BLOCK_BITS = 8
"""A block is 256 positions that begin at a multiple of it. Chosen: sorting one costs a fraction of a page."""

RUN_MAX = 4  # chosen: a commit has one to three events of a chat, and a reader tries all places of a run

TAGS = tuple(str(kind.__struct_config__.tag) for kind in get_args(AnyEvent))
"""An event's `kind` is the index of its tag."""

# They come with every message, so a page of one of them is found by reading the events in order, and the
# index of the others is small. Any other event begins a run of its own, so it is the run's `head`.
COMMON = ("message.sent", "message.accepted", "message.named")

# `periods` has the earliest and latest time of each 1024 positions. Times grow only roughly with positions; a
# search for a time becomes a narrow range of positions after reading a thousandth as many rows. `more` has a
# byte for the kind of each event after the first. `events` is what readers ask.
SCHEMA = """
CREATE TABLE places (id bigint PRIMARY KEY, channel text NOT NULL, account text);
CREATE TABLE event_runs (position bigint NOT NULL, place bigint NOT NULL, recorded_at timestamptz NOT NULL,
  conversation uuid, kind smallint NOT NULL, more bytea NOT NULL)
  WITH (autovacuum_analyze_scale_factor = 0.05, autovacuum_vacuum_insert_scale_factor = 0.05);
CREATE VIEW events AS SELECT r.position + n.n AS position, r.place, r.recorded_at, r.conversation,
  CASE n.n WHEN 0 THEN r.kind ELSE get_byte(r.more, n.n - 1)::smallint END AS kind,
  r.position >> {bits} AS block, r.kind AS head
FROM event_runs AS r JOIN (VALUES {places}) AS n(n) ON n.n <= octet_length(r.more);
CREATE TABLE periods (period integer PRIMARY KEY, low timestamptz NOT NULL, high timestamptz NOT NULL)
  WITH (fillfactor = 70);
""".format(bits=BLOCK_BITS, places=", ".join(f"({n})" for n in range(RUN_MAX)))
# An index that lacks one event still finds the others; the event itself stays in the ledger.
ON_FAULT = GO_ON
TOPICS = ("",)

PLACES = """
INSERT INTO places (id, channel, account)
SELECT * FROM unnest(%b::bigint[], %b::text[], %b::text[]) ON CONFLICT (id) DO NOTHING
"""
INSERT = """
INSERT INTO event_runs (position, place, recorded_at, conversation, kind, more)
SELECT * FROM unnest(%b::bigint[], %b::bigint[], %b::timestamptz[], %b::uuid[], %b::smallint[], %b::bytea[])
"""
PERIODS = """
INSERT INTO periods AS p (period, low, high)
SELECT * FROM unnest(%b::int[], %b::timestamptz[], %b::timestamptz[]) AS i(period, low, high)
ON CONFLICT (period) DO UPDATE SET low = least(p.low, excluded.low), high = greatest(p.high, excluded.high)
"""

INDEXES = """
CREATE INDEX events_block ON event_runs ((position >> {bits}));
CREATE INDEX events_conversation ON event_runs (conversation, (position >> {bits}))
  WHERE conversation IS NOT NULL;
CREATE INDEX events_kind ON event_runs (kind, (position >> {bits})) WHERE kind NOT IN ({common});
CREATE INDEX events_place ON event_runs (place, (position >> {bits}));
ANALYZE places, event_runs, periods;
""".format(bits=BLOCK_BITS, common=", ".join(str(TAGS.index(tag)) for tag in COMMON))

_KINDS = {kind: number for number, kind in enumerate(get_args(AnyEvent))}
_BLOCK_MASK = (1 << BLOCK_BITS) - 1
_COMMON = {kind: bytes([number]) for kind, number in _KINDS.items() if TAGS[number] in COMMON}


@lru_cache(maxsize=4096)
def place(channel: str, account: str | None) -> int:
    """Returns a 64-bit number for a channel and an account: their hash, so that no look-up is needed."""
    digest = sha1(f"{channel}\n{account or ''}".encode(), usedforsecurity=False).digest()
    return int.from_bytes(digest[:8], signed=True)


def project(page: Page) -> Iterator[Statement]:
    """Yield the statements for the runs of a page, and for the places and periods that it touches."""
    runs = _runs(page)
    firsts = [first for _, first, _ in runs]
    numbers = [place(first.channel, first.account) for first in firsts]
    owners = dict(zip(numbers, firsts, strict=True))
    yield (
        PLACES,
        (
            longs(list(owners)),
            texts([first.channel for first in owners.values()]),
            texts([first.account for first in owners.values()]),
        ),
    )
    yield (
        INSERT,
        (
            longs([position for position, _, _ in runs]),
            longs(numbers),
            times([first.recorded_at for first in firsts]),
            uuids_repeated([first.conversation for first in firsts]),
            smalls([_KINDS[type(first)] for first in firsts]),
            blobs([more for _, _, more in runs]),
        ),
    )
    yield PERIODS, _periods(page[0][0], [event.recorded_at for _, event in page])


def _runs(page: Page) -> list[tuple[int, AnyEvent, bytes]]:
    """The position and first event of each run, and the kinds of its other events, a byte each."""
    runs: list[tuple[int, AnyEvent, bytes]] = []
    begun, first, more = page[0][0], page[0][1], b""
    for position, event in page[1:]:
        kind = _COMMON.get(type(event))
        if kind and position & _BLOCK_MASK and len(more) < RUN_MAX - 1 and _alike(first, event):
            more += kind
            continue
        runs.append((begun, first, more))
        begun, first, more = position, event, b""
    runs.append((begun, first, more))
    return runs


def _alike(first: AnyEvent, event: AnyEvent) -> bool:
    return (
        event.recorded_at == first.recorded_at
        and event.conversation == first.conversation
        and event.account == first.account
        and event.channel == first.channel
        and type(first) in _COMMON
    )


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
