"""Readers are told pages in a stable order, by keys that later events do not move.

Conversations come with the latest activity first: by `position` descending, which is their last event's; one
that becomes active while somebody pages moves to the front, and no other is seen twice. Everything else comes
by position. Cursors are opaque.
"""

import base64
import binascii
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar
from uuid import UUID

import msgspec
from msgspec import Raw

from app.database.pool import Pool
from app.http.webhooks.refused import REFUSED, RefusedHook
from app.views import conversations, deliveries, messages
from app.views.conversations import CONVERSATION, CONVERSATIONS, ConversationRow, told_conversation
from app.views.deliveries import COUNTS, DELIVERIES, CountRow
from app.views.events import (
    _KINDS,
    _LAST,
    EVENTS,
    EVENTS_OF_CONVERSATION,
    EVERYTHING,
    HEAD,
    LEDGER_PAGE,
    PERIOD_RANGE,
    PLACES,
    STREAM_PAGE_EVENTS,
    EventRow,
    Events,
    Filter,
    HeadRow,
    PlaceRow,
    RangeRow,
    Stored,
)
from app.views.messages import (
    MESSAGE,
    MESSAGES,
    MESSAGES_DESCENDING,
    STREAM,
    MessageRow,
    Order,
    told_message,
    told_moment,
)
from app.views.status import CHANNELS, CONNECTIONS, VIEWS, Channel, Connection, Standing, ViewRow, ViewStatus
from domain.events import AnyEvent, MessageNamed, decode
from projections.deliveries import DEFERRED, OPEN, PARKED
from projections.events import PERIOD, place

LIMIT = 50
LIMIT_MAX = 1000

Key = TypeVar("Key")


class BadCursor(ValueError):
    """The cursor was not made by this list: start again without one."""


class Reads:
    """Everything that can be asked of the ledger and its views.

    `limit` is 1..1000. All raise BadCursor, BadFilter, ViewsMissing and psycopg.OperationalError.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def list_conversations(
        self,
        *,
        channel: str | None = None,
        account_id: str | None = None,
        conversation_id: str | None = None,
        chat_id: str | None = None,
        limit: int = LIMIT,
        cursor: str | None = None,
    ) -> conversations.Conversations:
        """Conversations, the latest activity first."""
        position, last = _opened(cursor, tuple[int, UUID]) if cursor else (None, None)
        values = {
            "channel": channel,
            "account_id": account_id,
            "conversation_id": conversation_id,
            "chat_id": chat_id,
            "position": position,
            "id": last,
            "limit": limit + 1,
        }
        rows = await self._pool.fetch(ConversationRow, CONVERSATIONS, values, prepare=False)
        items = [told_conversation(row) for row in rows[:limit]]
        more = len(rows) > limit
        return conversations.Conversations(
            items, _closed((items[-1].position, items[-1].id)) if more else None
        )

    async def get_conversation(self, conversation: str) -> conversations.Conversation | None:
        """A conversation, or the one (with another id) it was merged into; None if there is none."""
        if not _is_uuid(conversation):
            return None
        rows = await self._pool.fetch(ConversationRow, CONVERSATION, {"id": conversation})
        return told_conversation(rows[0]) if rows else None

    async def list_messages(
        self, conversation: str, *, limit: int = LIMIT, cursor: str | None = None, order: Order = "asc"
    ) -> messages.Messages:
        """Messages of a conversation (or of the one it was merged into) by position."""
        if not _is_uuid(conversation):
            return messages.Messages([], None)
        start = 0 if order == "asc" else _LAST
        position = _opened(cursor, int) if cursor else start
        values: dict[str, object] = {"conversation": conversation, "position": position, "limit": limit + 1}
        statement = MESSAGES if order == "asc" else MESSAGES_DESCENDING
        rows = await self._pool.fetch(MessageRow, statement, values)
        items = [messages.Message(**told_message(row)) for row in rows[:limit]]
        return messages.Messages(items, _closed(items[-1].position) if len(rows) > limit else None)

    async def get_message(self, message: str) -> messages.History | None:
        """A message by our id, or by the stream of the other side's, with its timeline; None if unknown."""
        if not _is_uuid(message):
            return None
        events = await self._stream(message)
        named = next((event for _, event in events if isinstance(event, MessageNamed)), None)
        if named and named.message:
            message = named.message
            events = await self._stream(message)
        rows = await self._pool.fetch(MessageRow, MESSAGE, {"id": message})
        if not rows:
            return None
        return messages.History(**told_message(rows[0]), timeline=[told_moment(*row) for row in events])

    async def _stream(self, stream: str) -> list[tuple[int, AnyEvent]]:
        rows = await self._pool.fetch(EventRow, STREAM, {"stream": stream})
        return [(row.position, decode(row.event)) for row in rows]

    async def list_events(self, *, after: int = 0, limit: int = LIMIT, only: Filter = EVERYTHING) -> Events:
        """Events after a position, exactly as stored."""
        rows = await self._events(after, limit + 1, only)
        items = [Stored(row.position, Raw(row.event)) for row in rows[:limit]]
        return Events(items, items[-1].position if len(rows) > limit else None)

    async def stream_events(
        self,
        *,
        after: int = 0,
        only: Filter = EVERYTHING,
        wait: Callable[[], Awaitable[object]] | None = None,
    ) -> AsyncIterator[list[tuple[int, bytes]]]:
        """Pages of (position, stored JSON) after a position, to the end, or on and on.

        With `wait`, it is awaited whenever there is nothing more, and should return when there may be.
        """
        while True:
            rows = await self._events(after, STREAM_PAGE_EVENTS, only)
            if rows:
                yield [(row.position, row.event) for row in rows]
                after = rows[-1].position
            elif wait is None:
                return
            else:
                await wait()

    async def _events(self, after: int, limit: int, only: Filter) -> list[EventRow]:
        values: dict[str, object] = {"after": after, "limit": limit}
        if only == EVERYTHING:
            return await self._pool.fetch(EventRow, LEDGER_PAGE, values)
        if only.type is not None and only.type not in _KINDS:
            return []
        times: dict[str, object] = {"since": only.since, "until": only.until}
        low, high = await self._range(times) if only.since or only.until else (0, _LAST)
        values |= times
        values |= {"low": low, "high": high, "kind": _KINDS.get(only.type or ""), **await self._places(only)}
        if only.conversation is None:
            return await self._pool.fetch(EventRow, EVENTS, values, prepare=False)
        values["conversation"] = only.conversation
        return await self._pool.fetch(EventRow, EVENTS_OF_CONVERSATION, values, prepare=False)

    async def _range(self, times: dict[str, object]) -> tuple[int, int]:
        """The positions between which all events of a time are."""
        (row,) = await self._pool.fetch(RangeRow, PERIOD_RANGE, times)
        if row.low is None or row.high is None:
            return (_LAST, 0)
        return row.low * PERIOD, row.high * PERIOD + PERIOD - 1

    async def _places(self, only: Filter) -> dict[str, object]:
        if only.channel is None and only.account_id is None:
            return {"place": None, "places": None}
        if only.channel is not None and only.account_id is not None:
            return {"place": place(only.channel, only.account_id), "places": None}
        values: dict[str, object] = {"channel": only.channel, "account": only.account_id}
        found = [row.id for row in await self._pool.fetch(PlaceRow, PLACES, values)]
        return {"place": found[0], "places": None} if len(found) == 1 else {"place": None, "places": found}

    async def head(self) -> int:
        """The ledger's last position, 0 if it is empty."""
        (row,) = await self._pool.fetch(HeadRow, HEAD, {})
        return row.head

    async def status(self) -> Standing:
        """How far the ledger and each view are, and what is still to be delivered."""
        views = await self._pool.fetch(ViewRow, VIEWS, {})
        counts = {row.state: row for row in await self._pool.fetch(CountRow, COUNTS, {})}
        head = await self.head()
        open_, deferred, parked = (counts[s].count if s in counts else 0 for s in (OPEN, DEFERRED, PARKED))
        oldest = min((row.oldest for row in counts.values()), default=None)
        return Standing(
            head,
            [ViewStatus(row.view, row.position, max(0, head - row.position)) for row in views],
            deliveries.DeliveryCounts(open_, deferred, parked, oldest),
        )

    async def list_deliveries(
        self,
        *,
        state: str | None = None,
        destination: str | None = None,
        channel: str | None = None,
        account_id: str | None = None,
        conversation: str | None = None,
        limit: int = LIMIT,
        cursor: str | None = None,
    ) -> deliveries.Deliveries:
        """What is not delivered, the oldest first; `state` is open, deferred or parked."""
        after = _opened(cursor, int) if cursor else 0
        values: dict[str, object] = {
            "state": state,
            "destination": destination,
            "channel": channel,
            "account_id": account_id,
            "conversation": conversation,
            "after": after,
            "limit": limit + 1,
        }
        rows = await self._pool.fetch(deliveries.Delivery, DELIVERIES, values, prepare=False)
        items = rows[:limit]
        return deliveries.Deliveries(items, _closed(items[-1].position) if len(rows) > limit else None)

    async def refused(self, limit: int = LIMIT) -> list[RefusedHook]:
        """Signed hooks that could not be read, the latest first."""
        return await self._pool.fetch(RefusedHook, REFUSED, {"limit": limit})

    async def list_channels(self) -> list[Channel]:
        """All channels with their connections, by name."""
        channels = await self._pool.fetch(Channel, CHANNELS, {})
        connections = await self.list_connections()
        return [
            msgspec.structs.replace(one, connections=[c for c in connections if c.channel == one.name])
            for one in channels
        ]

    async def list_connections(self, channel: str | None = None) -> list[Connection]:
        """Connections, also those that are no more, by channel and account."""
        return await self._pool.fetch(Connection, CONNECTIONS, {"channel": channel}, prepare=False)


def _is_uuid(text: str) -> bool:
    try:
        UUID(text)
    except ValueError:
        return False
    return True


def _closed(key: object) -> str:
    """The cursor after an item."""
    return base64.urlsafe_b64encode(msgspec.json.encode(key)).rstrip(b"=").decode()


def _opened(cursor: str, kind: type[Key]) -> Key:
    """The key in a cursor."""
    try:
        raw = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        return msgspec.json.decode(raw, type=kind)
    except (ValueError, binascii.Error, msgspec.MsgspecError) as error:
        raise BadCursor("this cursor is not one that this list gave: start without a cursor") from error
