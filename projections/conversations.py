"""The conversations by their latest activity; two that turn out to be one become one row.

A row's `position` is that of its last `conversation.*` or `message.sent`. `messages` does not count early
echoes of our own messages. An event that still names a merged conversation counts for the one it was merged
into.
"""

from collections.abc import Iterator

from msgspec import Struct

from domain.events import (
    AnyEvent,
    ConversationBound,
    ConversationLinked,
    ConversationMerged,
    ConversationStarted,
    MessageNamed,
    MessageSent,
)
from projections.columns import GO_ON, Page, Statement, ints, longs, longs_or_null, texts, times, uuids

NAME = "conversations"
VERSION = 1

SCHEMA = """
CREATE TABLE conversations (id uuid PRIMARY KEY, channel text NOT NULL, account_id text,
  conversation_id text, chat_id text, contact_id bigint, lead_id bigint, messages integer NOT NULL,
  last_message_at timestamptz, position bigint NOT NULL)
  WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.05);
CREATE TABLE merges (loser uuid PRIMARY KEY, winner uuid NOT NULL, position bigint NOT NULL);
CREATE INDEX merges_winner ON merges (winner);
"""
# A list that lacks what one event says of a chat is better than a list that ends there for every chat.
ON_FAULT = GO_ON
TOPICS = ("conversation.", "message.sent", "message.named")
INDEXES = """
CREATE INDEX conversations_position ON conversations (position, id);
CREATE INDEX conversations_account ON conversations (account_id, position, id);
CREATE INDEX conversations_conversation_id ON conversations (conversation_id, position, id);
CREATE INDEX conversations_chat_id ON conversations (chat_id, position, id);
ANALYZE conversations, merges;
"""

UNCOUNT = """
UPDATE conversations AS c SET messages = c.messages - e.echoes
FROM (SELECT conversation, count(*)::integer AS echoes FROM messages
  WHERE id = ANY (%b::uuid[]) GROUP BY 1) AS e
WHERE c.id = e.conversation
"""
TOUCH = """
INSERT INTO conversations AS c (id, channel, account_id, messages, last_message_at, position)
SELECT coalesce(g.winner, i.id), min(i.channel), min(i.account_id), sum(i.messages)::integer,
  max(i.last_message_at), max(i.position)
FROM unnest(%b::uuid[], %b::text[], %b::text[], %b::integer[], %b::timestamptz[], %b::bigint[])
  AS i(id, channel, account_id, messages, last_message_at, position)
LEFT JOIN merges AS g ON g.loser = i.id GROUP BY 1
ON CONFLICT (id) DO UPDATE SET messages = c.messages + excluded.messages,
  last_message_at = greatest(c.last_message_at, excluded.last_message_at),
  position = greatest(c.position, excluded.position)
"""
# The first name that a side gave stays, as in `domain`; the latest link to a contact counts.
NAMES = """
UPDATE conversations AS c SET conversation_id = coalesce(c.conversation_id, n.conversation_id),
  chat_id = coalesce(c.chat_id, n.chat_id), contact_id = coalesce(n.contact_id, c.contact_id),
  lead_id = CASE WHEN n.contact_id IS NULL THEN c.lead_id ELSE n.lead_id END
FROM (
  SELECT coalesce(g.winner, i.id) AS id,
    (array_agg(i.conversation_id ORDER BY i.n) FILTER (WHERE i.conversation_id IS NOT NULL))[1]
      AS conversation_id,
    (array_agg(i.chat_id ORDER BY i.n) FILTER (WHERE i.chat_id IS NOT NULL))[1] AS chat_id,
    (array_agg(i.contact_id ORDER BY i.n DESC) FILTER (WHERE i.contact_id IS NOT NULL))[1] AS contact_id,
    (array_agg(i.lead_id ORDER BY i.n DESC) FILTER (WHERE i.contact_id IS NOT NULL))[1] AS lead_id
  FROM unnest(%b::uuid[], %b::text[], %b::text[], %b::bigint[], %b::bigint[]) WITH ORDINALITY
    AS i(id, conversation_id, chat_id, contact_id, lead_id, n)
  LEFT JOIN merges AS g ON g.loser = i.id GROUP BY 1) AS n
WHERE c.id = n.id
"""
MERGE = """
INSERT INTO merges (loser, winner, position)
SELECT m.loser, m.winner, %b::bigint
FROM (SELECT %b::uuid AS loser,
  coalesce((SELECT winner FROM merges WHERE loser = %b::uuid), %b::uuid) AS winner) AS m
WHERE m.loser <> m.winner ON CONFLICT (loser) DO NOTHING
"""
SHORTEN = """
UPDATE merges AS g SET winner = l.winner FROM merges AS l WHERE l.loser = %b::uuid AND g.winner = l.loser
"""
UNITE = """
UPDATE conversations AS w SET messages = w.messages + l.messages,
  last_message_at = greatest(w.last_message_at, l.last_message_at),
  position = greatest(w.position, l.position),
  conversation_id = coalesce(w.conversation_id, l.conversation_id), chat_id = coalesce(w.chat_id, l.chat_id),
  contact_id = coalesce(w.contact_id, l.contact_id),
  lead_id = CASE WHEN w.contact_id IS NULL THEN l.lead_id ELSE w.lead_id END
FROM conversations AS l JOIN merges AS g ON g.loser = l.id WHERE l.id = %b::uuid AND w.id = g.winner
"""
REMOVE = """
DELETE FROM conversations WHERE id = %b::uuid AND EXISTS (SELECT FROM merges WHERE loser = %b::uuid)
"""


class _Activity(Struct, gc=False):
    channel: str
    account: str | None
    position: int
    messages: int = 0
    last_message_at: str | None = None


class _Names(Struct, gc=False):
    id: str | None
    conversation_id: str | None = None
    chat_id: str | None = None
    contact_id: int | None = None
    lead_id: int | None = None


class _Part:
    """The changes between two merges: sums and maxima per conversation, and the names in order."""

    def __init__(self) -> None:
        self.rows: dict[str | None, _Activity] = {}
        self.names: list[_Names] = []

    def touch(self, conversation: str | None, channel: str, account: str | None, position: int) -> _Activity:
        row = self.rows.get(conversation)
        if row is None:
            row = self.rows[conversation] = _Activity(channel, account, position)
        elif position > row.position:
            row.position = position
        return row

    def statements(self) -> Iterator[Statement]:
        if self.rows:
            yield TOUCH, self._touched()
        if self.names:
            yield NAMES, self._named()

    def _touched(self) -> tuple[object, ...]:
        rows = self.rows.values()
        return (
            uuids(list(self.rows)),
            texts([row.channel for row in rows]),
            texts([row.account for row in rows]),
            ints([row.messages for row in rows]),
            times([row.last_message_at for row in rows]),
            longs([row.position for row in rows]),
        )

    def _named(self) -> tuple[object, ...]:
        return (
            uuids([name.id for name in self.names]),
            texts([name.conversation_id for name in self.names]),
            texts([name.chat_id for name in self.names]),
            longs_or_null([name.contact_id for name in self.names]),
            longs_or_null([name.lead_id for name in self.names]),
        )


_SENDING = {MessageSent, MessageNamed}
_IDENTITY = {ConversationStarted, ConversationBound, ConversationLinked, ConversationMerged}


class _Fold:
    """A page cut at its merges, because a merge needs the changes before it to be in the tables."""

    def __init__(self) -> None:
        self.part = _Part()
        self.parts: list[tuple[_Part, ConversationMerged, int]] = []
        self.sent: dict[str, tuple[int, MessageSent]] = {}
        self.echoes: list[str] = []

    def sending(self, position: int, event: AnyEvent) -> None:
        if isinstance(event, MessageSent):
            self.sent[event.stream] = (position, event)
            self._count(position, event, 1)
            return
        early = self.sent.pop(event.stream, None)
        if early:
            self._count(*early, -1)
        elif event.version > 1:
            self.echoes.append(event.stream)

    def identity(self, position: int, event: AnyEvent) -> None:
        match event:
            case ConversationStarted() | ConversationBound():
                self._touch(position, event)
                ends = event.content
                self.part.names.append(_Names(event.conversation, ends.conversation_id, ends.chat_id))
            case ConversationLinked():
                self._touch(position, event)
                link = _Names(event.conversation, contact_id=event.contact_id, lead_id=event.lead_id)
                self.part.names.append(link)
            case ConversationMerged(into=into):
                self._touch(position, event)
                self.part.touch(into, event.channel, event.account, position)
                self.parts.append((self.part, event, position))
                self.part = _Part()

    def _count(self, position: int, event: MessageSent, messages: int) -> None:
        row = self._touch(position, event)
        row.messages += messages
        if row.last_message_at is None or event.at > row.last_message_at:
            row.last_message_at = event.at

    def _touch(self, position: int, event: AnyEvent) -> _Activity:
        return self.part.touch(event.conversation, event.channel, event.account, position)


def project(page: Page) -> Iterator[Statement]:
    """Yield the statements for a page; those of `messages` for the same page must come after them."""
    fold = _Fold()
    for position, event in page:
        kind = type(event)
        if kind in _SENDING:
            fold.sending(position, event)
        elif kind in _IDENTITY:
            fold.identity(position, event)
    if fold.echoes:
        yield UNCOUNT, (uuids(fold.echoes),)
    for part, merged, position in fold.parts:
        yield from part.statements()
        loser, winner = merged.conversation, merged.into
        yield MERGE, (position, loser, winner, winner)
        yield SHORTEN, (loser,)
        yield UNITE, (loser,)
        yield REMOVE, (loser, loser)
    yield from fold.part.statements()
