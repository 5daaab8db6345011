"""The deliveries that are not done: of every event that requires one, except typing, until it is closed.

A send is closed by `message.accepted` or `delivery.completed`, and by `message.named` in its stream, because
then it was an echo. After `message.failed` it stays, as failed, because it can be resumed, until it is shown
that the message has arrived all the same. The mirror of an operator's message is closed by the
`message.accepted` of the mirror. Anything else is closed by the `delivery.completed` whose cause it is.

A page is folded, and its statements are in an order of their own. The outcome is that of the events one by
one: a row that is closed stays so, of a failure and another change the later one counts, and a page is cut
where something arrives whose failure or change it has too, because only what has failed ends by that.
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
    MessageDelivered,
    MessageEdited,
    MessageFailed,
    MessageMirrored,
    MessageNamed,
    MessageRead,
    MessageSent,
    Reaction,
    Status,
    tag,
)
from domain.ids import partition
from projections.columns import (
    GO_ON,
    Page,
    Statement,
    booleans,
    ints,
    longs,
    smalls,
    texts_repeated,
    times,
    uuids,
)

NAME = "deliveries"
VERSION = 4

OPEN, DEFERRED, PARKED, FAILED = "open", "deferred", "parked", "failed"

# `answer` is the other side's text, `since` the time of the event or of the last resumption.
# `send` is the message that the row sends, if it sends one. Rows come and go, so the table stays small and is
# created with two of its indexes. `imported` marks the sends of an import, of which there may be very many at
# once.
SCHEMA = """
CREATE TABLE deliveries (position bigint PRIMARY KEY, id uuid NOT NULL, updated bigint NOT NULL,
  recorded_at timestamptz NOT NULL, conversation uuid, message uuid, send uuid, attempts integer NOT NULL,
  partition smallint NOT NULL, destination text NOT NULL, channel text NOT NULL, account_id text,
  type text NOT NULL, state text NOT NULL, reason text, answer text, imported boolean NOT NULL,
  since timestamptz NOT NULL)
  WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 1000);
CREATE INDEX deliveries_id ON deliveries (id);
CREATE INDEX deliveries_send ON deliveries (send) WHERE send IS NOT NULL;
"""
INDEXES = """
CREATE INDEX deliveries_state ON deliveries (state, position);
CREATE INDEX deliveries_imported ON deliveries (partition, position)
  WHERE imported AND state IN ('open', 'deferred');
CREATE INDEX deliveries_failed ON deliveries (send) WHERE state = 'failed';
ANALYZE deliveries;
"""

# To stand still would end every delivery at the next start, for one event of one conversation. Nothing is
# skipped in silence: it is parked, an alert, and opened by the next rebuild. An event that closes a delivery
# may be skipped too, because delivery asks the ledger before it repeats anything old.
ON_FAULT = GO_ON
TOPICS = ("message.", "reaction.", "delivery.")

CLOSE = "DELETE FROM deliveries WHERE id = ANY (%b::uuid[])"
CLOSE_SENDS = "DELETE FROM deliveries WHERE send = ANY (%b::uuid[])"
CHANGE = """
UPDATE deliveries AS d SET state = i.state, reason = i.reason, answer = i.answer,
  attempts = d.attempts + i.attempts, updated = i.updated, since = coalesce(i.since, d.since)
FROM unnest(%b::uuid[], %b::text[], %b::text[], %b::text[], %b::integer[], %b::bigint[], %b::timestamptz[])
  AS i(id, state, reason, answer, attempts, updated, since) WHERE d.id = i.id
"""
# A page may have a message fail and be resumed, in either order: the later of the two counts.
FAIL = """
UPDATE deliveries AS d SET state = 'failed', reason = i.reason, answer = i.answer, updated = i.updated
FROM unnest(%b::uuid[], %b::text[], %b::text[], %b::bigint[]) AS i(send, reason, answer, updated)
WHERE d.send = i.send AND d.updated < i.updated
"""
ARRIVE = "DELETE FROM deliveries WHERE send = ANY (%b::uuid[]) AND state = 'failed'"
OPENED = """
INSERT INTO deliveries (position, id, updated, recorded_at, conversation, message, send, attempts, partition,
  destination, channel, account_id, type, state, reason, answer, imported, since)
SELECT * FROM unnest(%b::bigint[], %b::uuid[], %b::bigint[], %b::timestamptz[], %b::uuid[], %b::uuid[],
  %b::uuid[], %b::integer[], %b::smallint[], %b::text[], %b::text[], %b::text[], %b::text[],
  %b::text[], %b::text[], %b::text[], %b::boolean[], %b::timestamptz[])
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


class _State(Struct, gc=False):
    """The state of a delivery, as far as the page changes it."""

    updated: int
    state: str = OPEN
    reason: str | None = None
    answer: str | None = None
    attempts: int = 0
    since: str | None = None


class _Fold:
    """The deliveries that a page opens and leaves open, and its changes to those opened before it."""

    def __init__(self) -> None:
        self.opened: dict[str, tuple[int, Pushed]] = {}
        self.sends: dict[str, str] = {}
        self.begun: set[str] = set()
        self.states: dict[str, _State] = {}
        self.closed: list[str] = []
        self.closed_sends: list[str] = []
        self.failed: dict[str, tuple[int, MessageFailed]] = {}
        self.arrived: set[str] = set()
        self.changed: set[str] = set()  # the messages of deliveries that began before, failures among them

    def must_end_before(self, event: AnyEvent) -> bool:
        """Whether the statements so far must come before those of an event."""
        message = event.message or event.stream
        if isinstance(event, MessageDelivered | MessageRead):
            return message in self.changed and message not in self.begun
        changes = isinstance(event, MessageFailed | DeliveryDeferred | DeliveryParked | DeliveryResumed)
        return changes and message in self.arrived

    def begin(self, position: int, event: Pushed) -> None:
        if isinstance(event, MessageFailed):
            self._fail(position, event)
        elif isinstance(event, MessageDelivered | MessageRead) and event.message:
            self._arrive(event.message)
        if event.push:
            self.opened[event.id] = (position, event)
            if isinstance(event, MessageSent):
                self.sends[event.stream] = event.id
                self.begun.add(event.stream)

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
        else:
            self._take_change(position, event)

    def _take_change(self, position: int, event: AnyEvent) -> None:
        if (message := event.message or event.stream) not in self.begun:
            self.changed.add(message)
        if isinstance(event, DeliveryDeferred):
            self._change(position, event.cause, DEFERRED, event.reason, event.answer).attempts += 1
        elif isinstance(event, DeliveryParked):
            self._change(position, event.cause, PARKED, event.reason, event.answer)
        elif isinstance(event, DeliveryResumed):
            self._change(position, event.cause, OPEN).since = event.recorded_at

    def _close(self, cause: str | None) -> None:
        if cause and self.opened.pop(cause, None) is None:
            self.closed.append(cause)

    def _close_send(self, message: str | None) -> None:
        if message is None:
            return
        sent = self.sends.pop(message, None)
        if sent is None:
            self.closed_sends.append(message)
            self.changed.discard(message)
        else:
            self.opened.pop(sent, None)

    def _fail(self, position: int, event: MessageFailed) -> None:
        if event.message is None:
            return
        if event.message not in self.begun:
            self.failed[event.message] = position, event
            self.changed.add(event.message)
        elif sent := self.sends.get(event.message):
            self._change(position, sent, FAILED, _reason(event), event.text or None)

    def _arrive(self, message: str) -> None:
        if message not in self.begun:
            self.arrived.add(message)
            return
        state = self.states.get(self.sends.get(message, ""))
        if state and state.state == FAILED:
            self._close_send(message)

    def _change(
        self,
        position: int,
        cause: str | None,
        state: str,
        reason: str | None = None,
        answer: str | None = None,
    ) -> _State:
        key = cause or ""
        delivery = self.states.get(key)
        if delivery is None:
            delivery = self.states[key] = _State(position)
        delivery.updated, delivery.state, delivery.reason, delivery.answer = position, state, reason, answer
        return delivery


def _reason(event: MessageFailed) -> str:
    return event.reason or f"reported as failed, with code {event.code}"


def project(page: Page) -> Iterator[Statement]:
    """Yield the statements for a page; a delivery opened and closed within it is not written at all."""
    fold = _Fold()
    for position, event in page:
        kind = type(event)
        if kind not in _OPENING and kind not in _OTHERS:
            continue
        if fold.must_end_before(event):
            yield from _statements(fold)
            fold = _Fold()
        if kind in _OPENING:
            fold.begin(position, cast("Pushed", event))
        else:
            fold.take(position, event)
    yield from _statements(fold)


def _statements(fold: _Fold) -> Iterator[Statement]:
    before = {
        cause: delivery for cause, delivery in fold.states.items() if cause and cause not in fold.opened
    }
    if fold.closed:
        yield CLOSE, (uuids(fold.closed),)
    if fold.closed_sends:
        yield CLOSE_SENDS, (uuids(fold.closed_sends),)
    if before:
        yield CHANGE, _changes(before)
    if fold.failed:
        yield FAIL, _failures(fold.failed)
    if fold.arrived:
        yield ARRIVE, (uuids(list(fold.arrived)),)
    if fold.opened:
        yield OPENED, _rows(fold)


def _changes(changed: dict[str, _State]) -> tuple[object, ...]:
    states = changed.values()
    return (
        uuids(list(changed)),
        texts_repeated([delivery.state for delivery in states]),
        texts_repeated([delivery.reason for delivery in states]),
        texts_repeated([delivery.answer for delivery in states]),
        ints([delivery.attempts for delivery in states]),
        longs([delivery.updated for delivery in states]),
        times([delivery.since for delivery in states]),
    )


def _failures(failed: dict[str, tuple[int, MessageFailed]]) -> tuple[object, ...]:
    events = [event for _, event in failed.values()]
    return (
        uuids(list(failed)),
        texts_repeated([_reason(event) for event in events]),
        texts_repeated([event.text or None for event in events]),
        longs([position for position, _ in failed.values()]),
    )


def _rows(fold: _Fold) -> tuple[object, ...]:
    positions = [position for position, _ in fold.opened.values()]
    events = [event for _, event in fold.opened.values()]
    states = [fold.states.get(event.id) or _State(position) for position, event in fold.opened.values()]
    return (
        longs(positions),
        uuids([event.id for event in events]),
        longs([delivery.updated for delivery in states]),
        times([event.recorded_at for event in events]),
        uuids([event.conversation for event in events]),
        uuids([event.message for event in events]),
        uuids([event.stream if isinstance(event, MessageSent) else None for event in events]),
        ints([delivery.attempts for delivery in states]),
        smalls([partition(event.conversation) for event in events]),
        texts_repeated([event.push for event in events]),
        texts_repeated([event.channel for event in events]),
        texts_repeated([event.account for event in events]),
        texts_repeated([tag(event) for event in events]),
        texts_repeated([delivery.state for delivery in states]),
        texts_repeated([delivery.reason for delivery in states]),
        texts_repeated([delivery.answer for delivery in states]),
        booleans([isinstance(event, MessageSent) and event.imported for event in events]),
        times([delivery.since or event.recorded_at for delivery, event in zip(states, events, strict=True)]),
    )
