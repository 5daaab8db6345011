"""The facts that wait about a name that no message has, until one takes it or the fact is recorded again.

A fact that names its conversation may wait under a name that another message has; it stays until it is
recorded for the message that it means, with the waiting fact as its cause.
"""

from collections.abc import Iterator
from typing import get_args

from domain.events import Fact, MessageNamed, MessageSent, Reported, tag
from projections.columns import GO_ON, Page, Statement, booleans, longs, texts, texts_repeated, times, uuids

NAME = "waiting"
VERSION = 1

# `stream` is the name, `within` whether the fact names its conversation.
SCHEMA = """
CREATE TABLE waiting (position bigint PRIMARY KEY, id uuid NOT NULL, stream uuid NOT NULL,
  within boolean NOT NULL, type text NOT NULL, by text NOT NULL, channel text NOT NULL, account_id text,
  at timestamptz NOT NULL, recorded_at timestamptz NOT NULL)
  WITH (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 1000);
CREATE INDEX waiting_id ON waiting (id);
CREATE INDEX waiting_stream ON waiting (stream);
"""
INDEXES = ""

# Nothing but this list is made of the view, and it must not keep the others waiting.
ON_FAULT = GO_ON
TOPICS = ("message.", "reaction.")

APPLIED = "DELETE FROM waiting WHERE id = ANY (%b::uuid[])"
CLAIMED = "DELETE FROM waiting WHERE stream = ANY (%b::uuid[]) AND NOT within"
WAITS = """
INSERT INTO waiting (position, id, stream, within, type, by, channel, account_id, at, recorded_at)
SELECT * FROM unnest(%b::bigint[], %b::uuid[], %b::uuid[], %b::boolean[], %b::text[], %b::text[], %b::text[],
  %b::text[], %b::timestamptz[], %b::timestamptz[])
"""

_FACTS = frozenset(get_args(Reported))
_CLAIMS = {MessageSent, MessageNamed}


def project(page: Page) -> Iterator[Statement]:
    """Yield the statements that bring the list to the end of a page."""
    opened: dict[str, tuple[int, Fact]] = {}
    applied: list[str] = []
    claimed: list[str] = []
    for position, event in page:
        kind = type(event)
        if kind in _CLAIMS:
            claimed.append(event.stream)
            for one in [one for one, (_, fact) in opened.items() if fact.stream == event.stream]:
                if not opened[one][1].within:
                    del opened[one]
        elif kind in _FACTS and isinstance(event, Fact):
            if event.message is None:
                opened[event.id] = position, event
            elif event.cause and opened.pop(event.cause, None) is None:
                applied.append(event.cause)
    if applied:
        yield APPLIED, (uuids(applied),)
    if claimed:
        yield CLAIMED, (uuids(claimed),)
    if opened:
        yield WAITS, _rows([*opened.values()])


def _rows(rows: list[tuple[int, Fact]]) -> tuple[object, ...]:
    facts = [fact for _, fact in rows]
    return (
        longs([position for position, _ in rows]),
        uuids([fact.id for fact in facts]),
        uuids([fact.stream for fact in facts]),
        booleans([fact.within is not None for fact in facts]),
        texts([tag(fact) for fact in facts]),  # type: ignore[arg-type]  # each is one of Reported
        texts_repeated([fact.by for fact in facts]),
        texts_repeated([fact.channel for fact in facts]),
        texts_repeated([fact.account for fact in facts]),
        times([fact.at for fact in facts]),
        times([fact.recorded_at for fact in facts]),
    )
