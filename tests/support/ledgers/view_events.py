"""Plausible events for the tests of views, stored as the append would store them; nothing is decided."""

import random
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias, TypeVar
from uuid import UUID

import psycopg

from app import clock
from app.database import schema
from domain import events as e
from domain.ids import channel_stream, connection_stream, conversation_id, message_id, scope_of
from tests.support.ids import SCOPE

START_MS = 1_795_000_000_000
SIDES: tuple[e.Side, ...] = ("messenger", "kommo")
Fact = TypeVar("Fact", bound=e.AnyEvent)
Kind: TypeAlias = tuple[type[e.AnyEvent], dict[str, Any]]


class EventLog:
    """Events in the order of their positions, which are 1, 2, 3 …; the clock moves 10 ms an event."""

    def __init__(self, seed: int = 1) -> None:
        self.random = random.Random(seed)
        self.events: list[e.AnyEvent] = []
        self.versions: dict[str, int] = {}
        self.ms = START_MS

    def add(self, kind: type[Fact], stream: str, /, **fields: Any) -> Fact:
        """Appends an event; `channel`, `account`, times and ids have defaults."""
        self.ms += 10
        self.versions[stream] = version = self.versions.get(stream, 0) + 1
        now = clock.text(self.ms)
        defaults: dict[str, Any] = {"at": now, "recorded_at": now, "by": "messenger", "schema": e.SCHEMA}
        defaults |= {"channel": SCOPE.channel, "account": SCOPE.account}
        defaults["id"] = str(UUID(int=(self.ms << 80) | 0x7 << 76 | 0x8 << 60 | len(self.events)))
        event = kind(**{**defaults, **fields, "stream": stream, "version": version})
        self.events.append(event)
        return event

    def start(self, name: str, side: e.Side = "messenger") -> str:
        """Starts a conversation; returns its id."""
        conversation = conversation_id(SCOPE, side, name)
        ends = e.Ends(conversation_id=name) if side == "messenger" else e.Ends(chat_id=name)
        self.add(e.ConversationStarted, conversation, conversation=conversation, side=side, content=ends)
        return conversation

    def send(
        self, conversation: str, name: str, *, side: e.Author = "messenger", **fields: Any
    ) -> e.MessageSent:
        """A message from a side, which names it `name`."""
        message = message_id(SCOPE, side, name)
        defaults = {
            "conversation": conversation,
            "message": message,
            "direction": "in" if side == "messenger" else "out",
            "own_id": name,
            "msec": self.ms,
            "sender": e.Party(id="u-1", name="Ann", phone="+15550100"),
            "content": e.Content(type="text", text=f"Hello, this is {name}", conversation_id="conv-1"),
            "push": "kommo" if side == "messenger" else "messenger",
            "by": side,
        }
        return self.add(e.MessageSent, message, **{**defaults, **fields})

    def about(self, kind: type[Fact], sent: e.MessageSent, **fields: Any) -> Fact:
        """A fact about a message, in its stream."""
        ours = {"conversation": sent.conversation, "message": sent.message}
        return self.add(kind, sent.stream, **{**ours, **fields})

    def accept(self, sent: e.MessageSent, remote_id: str) -> None:
        """The other side accepts a message and names it `remote_id`."""
        side = "kommo" if sent.direction == "in" else "messenger"
        accepted = self.about(e.MessageAccepted, sent, side=side, remote_id=remote_id, by=side)
        alias = message_id(SCOPE, side, remote_id)
        self.add(
            e.MessageNamed,
            alias,
            conversation=sent.conversation,
            message=sent.message,
            by=side,
            recorded_at=accepted.recorded_at,
        )

    def exchange(self, conversation: str, name: str) -> None:
        """A manager's message, accepted, delivered and read, both statuses pushed to Kommo: seven events."""
        sent = self.send(conversation, name, side="kommo")
        self.accept(sent, f"x-{name}")
        for kind in (e.MessageDelivered, e.MessageRead):
            status = self.about(kind, sent, remote_id=name, push="kommo")
            self.about(e.DeliveryCompleted, sent, cause=status.id, by="system")


def busy_log(count: int, *, conversations: int, seed: int = 1) -> EventLog:
    """At least `count` events: conversations whose exchanges are interleaved."""
    log = EventLog(seed)
    started: list[str] = []
    for number in range(count):
        if len(log.events) >= count:
            break
        if number < conversations:
            started.append(log.start(f"conv-{number}"))
        log.exchange(log.random.choice(started), f"m-{number}")
    return log


async def store(url: str, events: Sequence[e.AnyEvent], *, first: int = 1) -> None:
    """Store events at consecutive positions, as the owner of the tables."""
    async with await psycopg.AsyncConnection.connect(url) as connection, connection.cursor() as cursor:
        into = "COPY ledger.stored_events (originator_id, originator_version, topic, state, notification_id)"
        async with cursor.copy(f"{into} FROM STDIN (FORMAT binary)") as copy:
            copy.set_types(["uuid", "int8", "text", "bytea", "int8"])
            for position, event in enumerate(events, start=first):
                row = (UUID(event.stream), event.version, e.tag(event), e.encode(event), position)
                await copy.write_row(row)


async def prepare(url: str, events: Sequence[e.AnyEvent] = ()) -> None:
    """Make the ledger's tables in an empty database and store events in them."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        await schema.migrate(connection)
    await store(url, events)


TABLES: Iterable[tuple[str, str]] = (
    ("conversations", "id"),
    ("merges", "loser"),
    ("messages", "id"),
    ("reactions", 'message, "by", sender_id'),
    ("deliveries", "position"),
    ("events", "position"),
    ("waiting", "position"),
    ("places", "id"),
    ("periods", "period"),
    ("channels", "name"),
    ("connections", "channel, account_id"),
    ("positions", "view"),
)
# Which event is the first of a run depends on where a page begins.
COLUMNS = {"events": "position, place, recorded_at, conversation, kind"}


async def tables(url: str) -> dict[str, list[tuple[object, ...]]]:
    """Every row of every view."""
    async with await psycopg.AsyncConnection.connect(url) as connection:
        found = {}
        for table, key in TABLES:
            rows = await connection.execute(
                f"SELECT {COLUMNS.get(table, '*')} FROM views.{table} ORDER BY {key}"
            )
            found[table] = await rows.fetchall()
        return found


def random_log(seed: int, count: int) -> EventLog:
    """At least `count` events of every type, in an order that a ledger can have."""
    log = EventLog(seed)
    chats = [log.start(f"conv-{number}", side) for number, side in enumerate(SIDES * 2)]
    while len(log.events) < count:
        doings = (_message, _message, _facts, _facts, _chat, _echo, _waiting, _channel, _operator)
        log.random.choice(doings)(log, chats)
    return log


def _sent(log: EventLog) -> list[e.MessageSent]:
    return [event for event in log.events if isinstance(event, e.MessageSent)]


def _message(log: EventLog, chats: list[str]) -> None:
    side = log.random.choice(SIDES)
    fields: dict[str, Any] = (
        {"silent": True, "source": "web", "imported": True} if log.random.random() < 0.2 else {}
    )
    sent = log.send(log.random.choice(chats), f"m-{len(log.events)}", side=side, **fields)
    if log.random.random() < 0.7:
        log.accept(sent, f"x-{len(log.events)}")


def _facts(log: EventLog, chats: list[str]) -> None:
    for _ in range(log.random.randrange(4)):
        if sent := _sent(log):
            fact(log, log.random.choice(sent))


def fact(log: EventLog, sent: e.MessageSent) -> e.AnyEvent:
    """A fact about a message, at one of five times, so that positions must decide the order."""
    pick, at = log.random.choice, clock.text(START_MS + log.random.randrange(5))
    push = pick((None, "kommo"))
    kinds: tuple[Kind, ...] = (
        (e.MessageDelivered, {"push": push}),
        (e.MessageRead, {"push": push}),
        (e.MessageFailed, {"push": push, "code": 901 + log.random.randrange(5), "text": "no"}),
        (e.MessageEdited, {"push": push, "content": e.Content(type="text", text=f"{len(log.events)}")}),
        (e.MessageDeleted, {}),
        (e.ReactionAdded, {"sender": e.Party(id=pick("ab")), "emoji": pick("👍👎"), "content": e.Ends()}),
        (e.ReactionRemoved, {"sender": e.Party(id=pick("ab")), "content": e.Ends(), "push": push}),
        (e.DeliveryCompleted, {"cause": pick(log.events).id}),
        (e.DeliveryDeferred, {"cause": pick(log.events).id, "reason": pick(("HTTP 500", "slow"))}),
        (e.DeliveryParked, {"cause": pick(log.events).id, "reason": "HTTP 404"}),
        (e.DeliveryResumed, {"cause": pick(log.events).id}),
    )
    kind, fields = pick(kinds)
    return log.about(kind, sent, at=at, **fields)


def _chat(log: EventLog, chats: list[str]) -> None:
    one, two = log.random.sample(chats, 2)
    name = f"other-{len(log.events)}"
    what = log.random.randrange(3)
    if what == 0:
        for stream in (one, conversation_id(SCOPE, "kommo", name)):
            ends = e.Ends(chat_id=name)
            log.add(e.ConversationBound, stream, conversation=one, side="kommo", content=ends)
    elif what == 1:
        contact, lead = log.random.randrange(9), log.random.choice((None, 7))
        log.add(e.ConversationLinked, one, conversation=one, contact_id=contact, lead_id=lead)
    else:
        chats.append(log.start(name))
        log.add(e.ConversationMerged, two, conversation=two, into=one)


def _echo(log: EventLog, chats: list[str]) -> None:
    """Our message comes back under the other side's name before we know that name."""
    name = f"x-{len(log.events)}"
    original = log.send(log.random.choice(chats), f"m-{name}", side="kommo")
    echo = log.send(log.random.choice(chats), name, side="messenger")
    for _ in range(log.random.randrange(4)):
        log.random.choice((_message, _facts, _chat))(log, chats)
        fact(log, echo)
    log.accept(original, name)


def _waiting(log: EventLog, chats: list[str]) -> None:
    """A status arrives before its message is known by that name."""
    name = f"x-{len(log.events)}"
    sent = log.send(log.random.choice(chats), f"m-{name}", side="kommo")
    early = log.add(e.MessageRead, message_id(SCOPE, "messenger", name))
    log.accept(sent, name)
    log.about(e.MessageRead, sent, cause=early.id, push="kommo")


def _operator(log: EventLog, chats: list[str]) -> None:
    """An operator sends, and Kommo is to show a copy: either may be accepted, pending or parked."""
    chat, name = log.random.choice(chats), f"o-{len(log.events)}"
    sent = log.send(chat, name, side="operator", sent_by="operator")
    people = {"sender": sent.sender, "receiver": e.Party(id="u-1")}
    copy = log.about(e.MessageMirrored, sent, content=sent.content, msec=sent.msec, push="kommo", **people)
    for _ in range(log.random.randrange(4)):
        log.random.choice((_message, _facts, _chat))(log, chats)
    for what in log.random.sample(("sent", "copy", "parked"), 2):
        if what == "sent":
            log.accept(sent, f"x-{len(log.events)}")
        elif what == "parked":
            log.about(e.DeliveryParked, sent, cause=copy.id, reason="refused")
        else:
            name = f"k-{len(log.events)}"
            log.about(e.MessageAccepted, sent, side="kommo", remote_id=name, copy=True, cause=copy.id)
            named = message_id(SCOPE, "kommo", name)
            log.add(e.MessageNamed, named, conversation=sent.conversation, message=sent.message)


def _channel(log: EventLog, chats: list[str]) -> None:
    name = log.random.choice(("acme", "beta"))
    where = {"channel": name, "account": None}
    stream = channel_stream(name)
    scope = f"{name}_account"
    if stream not in log.versions:
        registered = {"channel_id": name, "kind": "webhook", "url": "http://localhost/"}
        log.add(e.ChannelRegistered, stream, **where, **registered)
        return
    connection = connection_stream(scope_of(name, name, "account"))
    changed = {**where, "url": f"http://localhost/{len(log.events)}"}
    kinds: tuple[tuple[Kind, str], ...] = (
        ((e.ChannelChanged, changed), stream),
        ((e.ChannelConnected, {"channel": name, "scope_id": scope, "title": "A title"}), connection),
        ((e.ChannelDisconnected, {"channel": name, "scope_id": scope}), connection),
    )
    (kind, fields), stream = log.random.choice(kinds)
    log.add(kind, stream, **fields)
