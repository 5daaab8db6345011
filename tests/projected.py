"""A ledger for the tests of views: plausible events, stored as the append would, without deciding anything."""

import random
from collections.abc import Iterable, Sequence
from uuid import UUID

import psycopg

from app import clock, schema
from domain import events as e
from domain.ids import conversation_id, link, message_id

START_MS = 1_795_000_000_000
WHERE = link("acme", "f90ba33d-c9d9-44da-b76c-c349b0ecbe41", "af9945ff-1490-4cad-807d-945c15d88bec")


class Book:
    """Writes events in the order of their positions, which are 1, 2, 3 …; the clock moves 10 ms an event."""

    def __init__(self, seed: int = 1) -> None:
        self.random = random.Random(seed)
        self.events: list[e.AnyEvent] = []
        self.versions: dict[str, int] = {}
        self.ms = START_MS

    def add(self, kind: type[e.AnyEvent], stream: str, **fields: object) -> e.AnyEvent:
        """Append an event; `channel`, `account`, times and ids are given unless named."""
        self.ms += 10
        self.versions[stream] = version = self.versions.get(stream, 0) + 1
        now = clock.text(self.ms)
        defaults = {"at": now, "recorded_at": now, "by": "messenger", "schema": e.SCHEMA}
        defaults |= {"channel": WHERE.channel, "account": WHERE.account}
        defaults["id"] = str(UUID(int=(self.ms << 80) | 0x7 << 76 | 0x8 << 60 | len(self.events)))
        event = kind(**{**defaults, **fields, "stream": stream, "version": version})
        self.events.append(event)
        return event

    def start(self, name: str, side: str = "messenger") -> str:
        """A conversation is seen first; returns its id."""
        conversation = conversation_id(WHERE, side, name)
        ends = e.Ends(conversation_id=name) if side == "messenger" else e.Ends(chat_id=name)
        self.add(e.ConversationStarted, conversation, conversation=conversation, side=side, content=ends)
        return conversation

    def send(self, conversation: str, name: str, *, side: str = "messenger", **fields: object) -> e.MessageSent:
        """A message of a side, by the name it gives it."""
        message = message_id(WHERE, side, name)
        given = {
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
        return self.add(e.MessageSent, message, **{**given, **fields})

    def about(self, kind: type[e.AnyEvent], sent: e.MessageSent, **fields: object) -> e.AnyEvent:
        """A fact about a message, in its stream."""
        given = {"conversation": sent.conversation, "message": sent.message}
        return self.add(kind, sent.stream, **{**given, **fields})

    def accept(self, sent: e.MessageSent, remote_id: str) -> None:
        """The other side took a message: it is accepted, and named by `remote_id`."""
        side = "kommo" if sent.direction == "in" else "messenger"
        self.about(e.MessageAccepted, sent, side=side, remote_id=remote_id, by=side)
        alias = message_id(WHERE, side, remote_id)
        self.add(e.MessageNamed, alias, conversation=sent.conversation, message=sent.message, by=side)

    def exchange(self, conversation: str, name: str) -> None:
        """A manager's message, accepted, delivered and read, and Kommo told so: seven events."""
        sent = self.send(conversation, name, side="kommo")
        self.accept(sent, f"x-{name}")
        for kind in (e.MessageDelivered, e.MessageRead):
            status = self.about(kind, sent, remote_id=name, push="kommo")
            self.about(e.DeliveryCompleted, sent, cause=status.id, by="system")


def busy(count: int, *, conversations: int, seed: int = 1) -> Book:
    """A book of at least `count` events: conversations whose exchanges are interleaved."""
    book = Book(seed)
    started: list[str] = []
    for number in range(count):
        if len(book.events) >= count:
            break
        if number < conversations:
            started.append(book.start(f"conv-{number}"))
        book.exchange(book.random.choice(started), f"m-{number}")
    return book


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
    ("places", "id"),
    ("periods", "period"),
    ("channels", "name"),
    ("connections", "channel, account_id"),
    ("positions", "view"),
)


async def tables(url: str) -> dict[str, list[tuple[object, ...]]]:
    """Every row of every view."""
    async with await psycopg.AsyncConnection.connect(url) as connection:
        found = {}
        for table, key in TABLES:
            rows = await connection.execute(f"SELECT * FROM views.{table} ORDER BY {key}")
            found[table] = await rows.fetchall()
        return found
