"""What is still to be pushed: every event that asks for it until a later one closes it; typing never waits.

A send is closed by `message.accepted`, `message.failed` or `delivery.completed`, and by `message.named` in
its stream, for then it was an echo; the copy of an operator's by the `message.accepted` of the copy; anything
else by the `delivery.completed` that names it as its cause.
"""

from collections.abc import Iterator
from typing import TypeAlias, cast, get_args

from msgspec import Struct

from domain.events import (
    AnyEvent,
    DeliveryCompleted,
    DeliveryDeferred,
    DeliveryParked,
    DeliveryResumed,
    MessageAccepted,
    MessageEdited,
    MessageFailed,
    MessageMirrored,
    MessageNamed,
    MessageSent,
    Reaction,
    Status,
    tag,
)
from domain.ids import partition
from projections.columns import Page, Statement, booleans, ints, longs, smalls, texts_repeated, times, uuids

NAME = "deliveries"
VERSION = 2

OPEN, DEFERRED, PARKED = "open", "deferred", "parked"

# `send` is the message whose sending the row is; rows come and go, so the table stays small and is made with
# its indexes. `imported` are the sends of an import, of which there may be very many at once.
SCHEMA = """
CREATE TABLE deliveries (position bigint PRIMARY KEY, id uuid NOT NULL, updated bigint NOT NULL,
  recorded_at timestamptz NOT NULL, conversation uuid, message uuid, send uuid, attempts integer NOT NULL,
  partition smallint NOT NULL, destination text NOT NULL, channel text NOT NULL, account_id text,
  type text NOT NULL, state text NOT NULL, reason text, imported boolean NOT NULL)
  WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 1000);
CREATE INDEX deliveries_id ON deliveries (id);
CREATE INDEX deliveries_send ON deliveries (send) WHERE send IS NOT NULL;
"""
INDEXES = """
CREATE INDEX deliveries_state ON deliveries (state, position);
CREATE INDEX deliveries_imported ON deliveries (partition, position) WHERE imported;
ANALYZE deliveries;
"""

CLOSE = "DELETE FROM deliveries WHERE id = ANY (%b::uuid[])"
CLOSE_SENDS = "DELETE FROM deliveries WHERE send = ANY (%b::uuid[])"
CHANGE = """
UPDATE deliveries AS d SET state = i.state, reason = i.reason, attempts = d.attempts + i.attempts,
  updated = i.updated
FROM unnest(%b::uuid[], %b::text[], %b::text[], %b::integer[], %b::bigint[])
  AS i(id, state, reason, attempts, updated) WHERE d.id = i.id
"""
OPENED = """
INSERT INTO deliveries (position, id, updated, recorded_at, conversation, message, send, attempts, partition,
  destination, channel, account_id, type, state, reason, imported)
SELECT * FROM unnest(%b::bigint[], %b::uuid[], %b::bigint[], %b::timestamptz[], %b::uuid[], %b::uuid[],
  %b::uuid[], %b::integer[], %b::smallint[], %b::text[], %b::text[], %b::text[], %b::text[],
  %b::text[], %b::text[], %b::boolean[])
"""


Pushed: TypeAlias = MessageSent | MessageMirrored | MessageEdited | Status | Reaction
_OPENING = set(get_args(Pushed))
_OTHERS = {
    MessageAccepted,
    MessageNamed,
    DeliveryCompleted,
    DeliveryDeferred,
    DeliveryParked,
    DeliveryResumed,
}


class _Stand(Struct, gc=False):
    """How a delivery stands, as far as the page says."""

    updated: int
    state: str = OPEN
    reason: str | None = None
    attempts: int = 0


class _Fold:
    """What a page opens and leaves open, and what it says of deliveries that were opened before it."""

    def __init__(self) -> None:
        self.opened: dict[str, tuple[int, Pushed]] = {}
        self.sends: dict[str, str] = {}
        self.stands: dict[str, _Stand] = {}
        self.closed: list[str] = []
        self.closed_sends: list[str] = []

    def begin(self, position: int, event: Pushed) -> None:
        if isinstance(event, MessageFailed):
            self._close_send(event.message)
        if event.push:
            self.opened[event.id] = (position, event)
            if isinstance(event, MessageSent):
                self.sends[event.stream] = event.id

    def take(self, position: int, event: AnyEvent) -> None:
        if isinstance(event, DeliveryCompleted):
            self._close(event.cause)
        elif isinstance(event, MessageAccepted):
            if event.copy:
                self._close(event.cause)
            else:
                self._close_send(event.message)
        elif isinstance(event, MessageNamed):
            if event.version > 1 or event.stream in self.sends:
                self._close_send(event.stream)
        elif isinstance(event, DeliveryDeferred):
            self._stand(position, event.cause, DEFERRED, event.reason).attempts += 1
        elif isinstance(event, DeliveryParked):
            self._stand(position, event.cause, PARKED, event.reason)
        elif isinstance(event, DeliveryResumed):
            self._stand(position, event.cause, OPEN, None)

    def _close(self, cause: str | None) -> None:
        if cause and self.opened.pop(cause, None) is None:
            self.closed.append(cause)

    def _close_send(self, message: str | None) -> None:
        if message is None:
            return
        sent = self.sends.pop(message, None)
        if sent is None:
            self.closed_sends.append(message)
        else:
            self.opened.pop(sent, None)

    def _stand(self, position: int, cause: str | None, state: str, reason: str | None) -> _Stand:
        key = cause or ""
        stand = self.stands.get(key)
        if stand is None:
            stand = self.stands[key] = _Stand(position)
        stand.updated, stand.state, stand.reason = position, state, reason
        return stand


def project(page: Page) -> Iterator[Statement]:
    """Statements for a page; what is opened and closed within it is not written at all."""
    fold = _Fold()
    for position, event in page:
        kind = type(event)
        if kind in _OPENING:
            fold.begin(position, cast("Pushed", event))
        elif kind in _OTHERS:
            fold.take(position, event)
    before = {cause: stand for cause, stand in fold.stands.items() if cause and cause not in fold.opened}
    if fold.closed:
        yield CLOSE, (uuids(fold.closed),)
    if fold.closed_sends:
        yield CLOSE_SENDS, (uuids(fold.closed_sends),)
    if before:
        yield CHANGE, _changes(before)
    if fold.opened:
        yield OPENED, _rows(fold)


def _changes(changed: dict[str, _Stand]) -> tuple[object, ...]:
    stands = changed.values()
    return (
        uuids(list(changed)),
        texts_repeated([stand.state for stand in stands]),
        texts_repeated([stand.reason for stand in stands]),
        ints([stand.attempts for stand in stands]),
        longs([stand.updated for stand in stands]),
    )


def _rows(fold: _Fold) -> tuple[object, ...]:
    positions = [position for position, _ in fold.opened.values()]
    events = [event for _, event in fold.opened.values()]
    stands = [fold.stands.get(event.id) or _Stand(position) for position, event in fold.opened.values()]
    return (
        longs(positions),
        uuids([event.id for event in events]),
        longs([stand.updated for stand in stands]),
        times([event.recorded_at for event in events]),
        uuids([event.conversation for event in events]),
        uuids([event.message for event in events]),
        uuids([event.stream if isinstance(event, MessageSent) else None for event in events]),
        ints([stand.attempts for stand in stands]),
        smalls([partition(event.conversation) for event in events]),
        texts_repeated([event.push for event in events]),
        texts_repeated([event.channel for event in events]),
        texts_repeated([event.account for event in events]),
        texts_repeated([tag(event) for event in events]),
        texts_repeated([stand.state for stand in stands]),
        texts_repeated([stand.reason for stand in stands]),
        booleans([isinstance(event, MessageSent) and event.imported for event in events]),
    )
