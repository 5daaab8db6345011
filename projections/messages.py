"""One row per message as it stands now, whatever the order in which its facts were recorded.

The highest rank of status counts; of edits, and of a sender's reactions, the latest `at`, then the latest
position. Deleted is final, and the first `remote_id` stays. A message that turns out to be an echo of our
own is removed.
"""

from collections.abc import Iterator
from typing import TypeAlias, TypeVar

from msgspec import Struct

from domain.events import (
    AnyEvent,
    ConversationMerged,
    DeliveryResumed,
    MessageAccepted,
    MessageDeleted,
    MessageDelivered,
    MessageEdited,
    MessageFailed,
    MessageNamed,
    MessageRead,
    MessageSent,
    Reaction,
    ReactionAdded,
    ReactionRemoved,
    author,
)
from domain.state import RANKS
from projections.columns import (
    GO_ON,
    Page,
    Statement,
    booleans,
    longs,
    longs_or_null,
    smalls,
    texts,
    texts_repeated,
    times,
    uuids,
)

NAME = "messages"
VERSION = 5

# What the event that sends a message says of it stays in the ledger, at `position`. Here is what changes, and
# what is searched for. `edit` is the position of the event that the content comes from, unless it is the
# message itself; `failure` is that of the event that `failure_code` and `failure_text` come from. `copy_id`
# is Kommo's id of the mirror of an operator's message, `sent_by` the first letter of the side.
#
# `messages` is what readers ask. It reads an event only for the columns after `source`, which reports and
# older programs use; of an event that is stored packed they are null. JSON as PostgreSQL knows it has no NUL.
SCHEMA = """
CREATE TABLE message_states (id uuid PRIMARY KEY, conversation uuid NOT NULL, position bigint NOT NULL,
  sent_at timestamptz NOT NULL, edited_at timestamptz, edit bigint, failure bigint, failure_code bigint,
  status smallint NOT NULL, outgoing boolean NOT NULL, deleted boolean NOT NULL, sent_by "char" NOT NULL,
  remote_id text, copy_id text, failure_text text, source text)
  WITH (fillfactor = 85, autovacuum_vacuum_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.05);
CREATE FUNCTION event_field(state bytea, field text) RETURNS json LANGUAGE sql IMMUTABLE PARALLEL SAFE
  RETURN CASE WHEN substr(state, 1, 1) = '{' THEN
    replace(convert_from(state, 'UTF8'), '\\u0000', '\\ufffd')::json -> field END;
CREATE VIEW messages AS SELECT m.id, m.position, m.conversation, m.sent_at, m.edited_at, m.edit, m.failure,
  m.failure_code, m.status, m.outgoing, m.deleted,
  CASE m.sent_by WHEN 'k' THEN 'kommo' WHEN 'm' THEN 'messenger' WHEN 'o' THEN 'operator' END AS sent_by,
  m.remote_id, m.copy_id, m.failure_text, m.source,
  convert_to(event_field(s.state, 'sender')::text, 'UTF8') AS sender,
  convert_to(event_field(s.state, 'receiver')::text, 'UTF8') AS receiver,
  (event_field(s.state, 'recorded_at') #>> '{}')::timestamptz AS recorded_at,
  CASE WHEN substr(s.state, 1, 1) = '{' THEN
    coalesce((event_field(s.state, 'silent') #>> '{}')::boolean, false) END AS silent,
  CASE WHEN substr(s.state, 1, 1) = '{' THEN
    coalesce((event_field(s.state, 'imported') #>> '{}')::boolean, false) END AS imported,
  event_field(s.state, 'channel') #>> '{}' AS channel,
  event_field(s.state, 'account') #>> '{}' AS account_id,
  event_field(s.state, 'own_id') #>> '{}' AS own_id,
  convert_to(event_field(c.state, 'content')::text, 'UTF8') AS content
FROM message_states AS m
LEFT JOIN ledger.stored_events AS s ON s.notification_id = m.position
LEFT JOIN ledger.stored_events AS c ON c.notification_id = coalesce(m.edit, m.position);
CREATE TABLE reactions (message uuid NOT NULL, "by" text NOT NULL, sender_id text NOT NULL,
  emoji text NOT NULL, removed boolean NOT NULL, at timestamptz NOT NULL, position bigint NOT NULL,
  PRIMARY KEY (message, "by", sender_id));
"""
INDEXES = """
CREATE INDEX messages_conversation ON message_states (conversation, position);
ANALYZE message_states, reactions;
"""

# A history that lacks one message, or one fact about it, is better than no history after it.
ON_FAULT = GO_ON
TOPICS = ("message.", "reaction.", "conversation.merged", "delivery.resumed")

ADVANCE = """
UPDATE message_states AS m SET
  status = CASE WHEN i.again AND m.status = {failed} THEN i.status ELSE greatest(m.status, i.status) END,
  remote_id = coalesce(m.remote_id, i.remote_id), copy_id = coalesce(m.copy_id, i.copy_id),
  deleted = m.deleted OR i.deleted
FROM unnest(%b::uuid[], %b::smallint[], %b::text[], %b::text[], %b::boolean[], %b::boolean[])
  AS i(id, status, remote_id, copy_id, deleted, again) WHERE m.id = i.id
""".format(failed=RANKS["failed"])
EDIT = """
UPDATE message_states AS m SET edited_at = i.edited_at, edit = i.edit
FROM unnest(%b::uuid[], %b::timestamptz[], %b::bigint[]) AS i(id, edited_at, edit)
WHERE m.id = i.id AND (m.edit IS NULL OR (i.edited_at, i.edit) > (m.edited_at, m.edit))
"""
FAIL = """
UPDATE message_states AS m SET failure = i.failure, failure_code = i.code, failure_text = i.text
FROM unnest(%b::uuid[], %b::bigint[], %b::bigint[], %b::text[]) AS i(id, failure, code, text)
WHERE m.id = i.id AND (m.failure IS NULL OR i.failure > m.failure)
"""
INSERT = """
INSERT INTO message_states (id, conversation, position, sent_at, edited_at, edit, failure, failure_code,
  status, outgoing, deleted, sent_by, remote_id, copy_id, failure_text, source)
SELECT i.id, coalesce(g.winner, i.conversation), i.position, i.sent_at, i.edited_at, i.edit, i.failure,
  i.failure_code, i.status, i.outgoing, i.deleted, i.sent_by::"char", i.remote_id, i.copy_id, i.failure_text,
  i.source
FROM unnest(%b::uuid[], %b::uuid[], %b::bigint[], %b::timestamptz[], %b::timestamptz[], %b::bigint[],
  %b::bigint[], %b::bigint[], %b::smallint[], %b::boolean[], %b::boolean[], %b::text[], %b::text[],
  %b::text[], %b::text[], %b::text[])
  AS i(id, conversation, position, sent_at, edited_at, edit, failure, failure_code, status, outgoing, deleted,
  sent_by, remote_id, copy_id, failure_text, source)
LEFT JOIN merges AS g ON g.loser = i.conversation
"""
REACT = """
INSERT INTO reactions AS r (message, "by", sender_id, emoji, removed, at, position)
SELECT i.* FROM unnest(%b::uuid[], %b::text[], %b::text[], %b::text[], %b::boolean[], %b::timestamptz[],
  %b::bigint[]) AS i(message, "by", sender_id, emoji, removed, at, position)
JOIN message_states AS m ON m.id = i.message
ON CONFLICT (message, "by", sender_id) DO UPDATE SET emoji = excluded.emoji, removed = excluded.removed,
  at = excluded.at, position = excluded.position
WHERE (excluded.at, excluded.position) > (r.at, r.position)
"""
MOVE = """
UPDATE message_states AS m SET conversation = g.winner FROM merges AS g
WHERE g.loser = ANY (%b::uuid[]) AND m.conversation = g.loser
"""
FORGET = "DELETE FROM message_states WHERE id = ANY (%b::uuid[])"
FORGET_REACTIONS = "DELETE FROM reactions WHERE message = ANY (%b::uuid[])"

Dated = TypeVar("Dated", MessageEdited, Reaction)
At: TypeAlias = tuple[int, Dated]  # a position, and the event that stands there


class _Facts(Struct, gc=False):
    """The changes that a page makes to a message, apart from sending it.

    `again`: it had failed and is sent again, so that `status` counts from there.
    """

    status: int = 0
    again: bool = False
    remote_id: str | None = None
    copy_id: str | None = None
    deleted: bool = False
    edit: At[MessageEdited] | None = None
    failure: tuple[int, MessageFailed] | None = None
    reactions: dict[tuple[str, str], At[Reaction]] | None = None


def _later(one: At[Dated] | None, two: At[Dated]) -> At[Dated]:
    """Returns the one in force; `two` has the higher position."""
    return two if one is None or two[1].at >= one[1].at else one


class _Fold:
    """A page as the messages that it adds, the facts about messages, and the messages that were echoes."""

    def __init__(self) -> None:
        self.sent: dict[str, tuple[int, MessageSent]] = {}
        self.facts: dict[str, _Facts] = {}
        self.echoes: list[str] = []
        self.merged: list[str] = []

    def take(self, position: int, event: AnyEvent) -> None:
        if isinstance(event, MessageSent):
            if event.message:
                self.sent[event.message] = (position, event)
                self.facts[event.message] = _Facts()
        elif isinstance(event, MessageNamed):
            if self.sent.pop(event.stream, None) is None and event.version > 1:
                self.echoes.append(event.stream)
        elif isinstance(event, ConversationMerged):
            self.merged.append(event.conversation or "")

    def note(self, position: int, event: AnyEvent) -> None:
        if event.message is None or (isinstance(event, DeliveryResumed) and event.was != "failed"):
            return  # It waits in the stream of an unknown id, and is recorded again once the id is known.
        facts = self.facts.get(event.message)
        if facts is None:
            facts = self.facts[event.message] = _Facts()
        if isinstance(event, MessageAccepted) and event.copy:
            facts.copy_id = facts.copy_id or event.remote_id
            return
        if isinstance(event, DeliveryResumed):
            facts.again = True
            facts.status = 0 if facts.status == RANKS["failed"] else facts.status
        rank = _RANKS.get(type(event), 0)
        if rank > facts.status:
            facts.status = rank
        if isinstance(event, MessageAccepted):
            facts.remote_id = facts.remote_id or event.remote_id
        elif rank == 0 or isinstance(event, MessageFailed):
            _note(facts, position, event)


def _note(facts: _Facts, position: int, event: AnyEvent) -> None:
    match event:
        case MessageFailed():
            facts.failure = position, event
        case MessageEdited():
            facts.edit = _later(facts.edit, (position, event))
        case MessageDeleted():
            facts.deleted = True
        case ReactionAdded() | ReactionRemoved():
            reactions = facts.reactions = facts.reactions or {}
            who = (event.by, event.sender.id or "")
            reactions[who] = _later(reactions.get(who), (position, event))


_RANKS: dict[type[AnyEvent], int] = {
    MessageAccepted: RANKS["accepted"],
    MessageFailed: RANKS["failed"],
    MessageDelivered: RANKS["delivered"],
    MessageRead: RANKS["read"],
}
_NOTED = {*_RANKS, DeliveryResumed, MessageEdited, MessageDeleted, ReactionAdded, ReactionRemoved}
_TAKEN = {MessageSent, MessageNamed, ConversationMerged}


def project(page: Page) -> Iterator[Statement]:
    """Yield the statements for a page; they need the table `merges` as it is at the page's end."""
    fold = _Fold()
    for position, event in page:
        kind = type(event)
        if kind in _NOTED:
            fold.note(position, event)
        elif kind in _TAKEN:
            fold.take(position, event)
    known = {message: facts for message, facts in fold.facts.items() if message not in fold.sent}
    if known:
        yield from _advance(known)
    if fold.sent:
        yield INSERT, _rows(fold)
    reactions = [
        (message, position, reaction)
        for message, facts in fold.facts.items()
        if facts.reactions
        for position, reaction in facts.reactions.values()
    ]
    if reactions:
        yield REACT, _reactions(reactions)
    if fold.merged:
        yield MOVE, (uuids(fold.merged),)
    if fold.echoes:
        yield FORGET, (uuids(fold.echoes),)
        yield FORGET_REACTIONS, (uuids(fold.echoes),)


def _advance(known: dict[str, _Facts]) -> Iterator[Statement]:
    facts = known.values()
    yield (
        ADVANCE,
        (
            uuids(list(known)),
            smalls([fact.status for fact in facts]),
            texts([fact.remote_id for fact in facts]),
            texts([fact.copy_id for fact in facts]),
            booleans([fact.deleted for fact in facts]),
            booleans([fact.again for fact in facts]),
        ),
    )
    edits = {message: fact.edit for message, fact in known.items() if fact.edit}
    if edits:
        yield (
            EDIT,
            (
                uuids(list(edits)),
                times([edit.at for _, edit in edits.values()]),
                longs([position for position, _ in edits.values()]),
            ),
        )
    failures = {message: fact.failure for message, fact in known.items() if fact.failure}
    if failures:
        yield (
            FAIL,
            (
                uuids(list(failures)),
                longs([position for position, _ in failures.values()]),
                longs([failure.code for _, failure in failures.values()]),
                texts([failure.text for _, failure in failures.values()]),
            ),
        )


def _rows(fold: _Fold) -> tuple[object, ...]:
    positions = [position for position, _ in fold.sent.values()]
    sent = [event for _, event in fold.sent.values()]
    facts = [fold.facts[message] for message in fold.sent]
    edits = [fact.edit for fact in facts]
    failures = [fact.failure for fact in facts]
    return (
        uuids(list(fold.sent)),
        uuids([event.conversation for event in sent]),
        longs(positions),
        times([event.at for event in sent]),
        times([edit[1].at if edit else None for edit in edits]),
        longs_or_null([edit[0] if edit else None for edit in edits]),
        longs_or_null([failure[0] if failure else None for failure in failures]),
        longs_or_null([failure[1].code if failure else None for failure in failures]),
        smalls([fact.status for fact in facts]),
        booleans([event.direction == "out" for event in sent]),
        booleans([fact.deleted for fact in facts]),
        texts_repeated([author(event) for event in sent]),
        texts([fact.remote_id for fact in facts]),
        texts_repeated([fact.copy_id for fact in facts]),
        texts_repeated([failure[1].text if failure else None for failure in failures]),
        texts_repeated([event.source for event in sent]),
    )


def _reactions(reactions: list[tuple[str, int, Reaction]]) -> tuple[object, ...]:
    return (
        uuids([message for message, _, _ in reactions]),
        texts([event.by for _, _, event in reactions]),
        texts([event.sender.id or "" for _, _, event in reactions]),
        texts([event.emoji for _, _, event in reactions]),
        booleans([isinstance(event, ReactionRemoved) for _, _, event in reactions]),
        times([event.at for _, _, event in reactions]),
        longs([position for _, position, _ in reactions]),
    )
