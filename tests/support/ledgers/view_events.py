"""A ledger for the tests of views: plausible events, stored as the append would, with nothing decided."""

import random
from collections.abc import Iterable, Sequence
from uuid import UUID

import psycopg

from app import clock
from app.database import schema
from domain import events as e
from domain.ids import channel_stream, connection_stream, conversation_id, message_id, scope_of
from tests.support.ids import SCOPE

START_MS = 1_795_000_000_000
WHERE = scope_of("acme", "f90ba33d-c9d9-44da-b76c-c349b0ecbe41", "af9945ff-1490-4cad-807d-945c15d88bec")


class Book:
    """Writes events in the order of their positions, which are 1, 2, 3 …; the clock moves 10 ms an event."""

    def __init__(self, seed: int = 1) -> None:
        self.random = random.Random(seed)
        self.events: list[e.AnyEvent] = []
        self.versions: dict[str, int] = {}
        self.ms = START_MS

    def add(self, kind: type[e.AnyEvent], stream: str, /, **fields: object) -> e.AnyEvent:
        """Append an event; `channel`, `account`, times and ids are given unless named."""
        self.ms += 10
        self.versions[stream] = version = self.versions.get(stream, 0) + 1
        now = clock.text(self.ms)
        defaults = {"at": now, "recorded_at": now, "by": "messenger", "schema": e.SCHEMA}
        defaults |= {"channel": SCOPE.channel, "account": SCOPE.account}
        defaults["id"] = str(UUID(int=(self.ms << 80) | 0x7 << 76 | 0x8 << 60 | len(self.events)))
        event = kind(**{**defaults, **fields, "stream": stream, "version": version})
        self.events.append(event)
        return event

    def start(self, name: str, side: str = "messenger") -> str:
        """A conversation is seen first; returns its id."""
        conversation = conversation_id(SCOPE, side, name)
        ends = e.Ends(conversation_id=name) if side == "messenger" else e.Ends(chat_id=name)
        self.add(e.ConversationStarted, conversation, conversation=conversation, side=side, content=ends)
        return conversation

    def send(
        self, conversation: str, name: str, *, side: str = "messenger", **fields: object
    ) -> e.MessageSent:
        """A message of a side, by the name it gives it."""
        message = message_id(SCOPE, side, name)
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
        alias = message_id(SCOPE, side, remote_id)
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


def wild(seed: int, count: int) -> Book:
    """A book of everything that can happen, in an order that a ledger can have."""
    book = Book(seed)
    chats = [book.start(f"conv-{number}", side) for number, side in enumerate(("messenger", "kommo") * 2)]
    while len(book.events) < count:
        doings = (_message, _message, _facts, _facts, _chat, _echo, _waiting, _channel, _operator)
        book.random.choice(doings)(book, chats)
    return book


def _sent(book: Book) -> list[e.MessageSent]:
    return [event for event in book.events if isinstance(event, e.MessageSent)]


def _message(book: Book, chats: list[str]) -> None:
    side = book.random.choice(("messenger", "kommo"))
    fields = {"silent": True, "source": "web", "imported": True} if book.random.random() < 0.2 else {}
    sent = book.send(book.random.choice(chats), f"m-{len(book.events)}", side=side, **fields)
    if book.random.random() < 0.7:
        book.accept(sent, f"x-{len(book.events)}")


def _facts(book: Book, chats: list[str]) -> None:
    for _ in range(book.random.randrange(4)):
        if sent := _sent(book):
            fact(book, book.random.choice(sent))


def fact(book: Book, sent: e.MessageSent) -> e.AnyEvent:
    """Some fact about a message; of two at the same time the ids decide."""
    pick, at = book.random.choice, clock.text(START_MS + book.random.randrange(5))
    push = pick((None, "kommo"))
    kind, fields = pick(
        (
            (e.MessageDelivered, {"push": push}),
            (e.MessageRead, {"push": push}),
            (e.MessageFailed, {"push": push, "code": 901 + book.random.randrange(5), "text": "no"}),
            (e.MessageEdited, {"push": push, "content": e.Content(type="text", text=f"{len(book.events)}")}),
            (e.MessageDeleted, {}),
            (e.ReactionAdded, {"sender": e.Party(id=pick("ab")), "emoji": pick("👍👎"), "content": e.Ends()}),
            (e.ReactionRemoved, {"sender": e.Party(id=pick("ab")), "content": e.Ends(), "push": push}),
            (e.DeliveryCompleted, {"cause": pick(book.events).id}),
            (e.DeliveryDeferred, {"cause": pick(book.events).id, "reason": pick(("HTTP 500", "slow"))}),
            (e.DeliveryParked, {"cause": pick(book.events).id, "reason": "HTTP 404"}),
            (e.DeliveryResumed, {"cause": pick(book.events).id}),
        )
    )
    return book.about(kind, sent, at=at, **fields)


def _chat(book: Book, chats: list[str]) -> None:
    one, two = book.random.sample(chats, 2)
    name = f"other-{len(book.events)}"
    what = book.random.randrange(3)
    if what == 0:
        for stream in (one, conversation_id(SCOPE, "kommo", name)):
            ends = e.Ends(chat_id=name)
            book.add(e.ConversationBound, stream, conversation=one, side="kommo", content=ends)
    elif what == 1:
        contact, lead = book.random.randrange(9), book.random.choice((None, 7))
        book.add(e.ConversationLinked, one, conversation=one, contact_id=contact, lead_id=lead)
    else:
        chats.append(book.start(name))
        book.add(e.ConversationMerged, two, conversation=two, into=one)


def _echo(book: Book, chats: list[str]) -> None:
    """Our message comes back under the other side's name before that name is known."""
    name = f"x-{len(book.events)}"
    original = book.send(book.random.choice(chats), f"m-{name}", side="kommo")
    echo = book.send(book.random.choice(chats), name, side="messenger")
    for _ in range(book.random.randrange(4)):
        book.random.choice((_message, _facts, _chat))(book, chats)
        fact(book, echo)
    book.accept(original, name)


def _waiting(book: Book, chats: list[str]) -> None:
    """A status that comes before its message is known by that name."""
    name = f"x-{len(book.events)}"
    sent = book.send(book.random.choice(chats), f"m-{name}", side="kommo")
    early = book.add(e.MessageRead, message_id(SCOPE, "messenger", name))
    book.accept(sent, name)
    book.about(e.MessageRead, sent, cause=early.id, push="kommo")


def _operator(book: Book, chats: list[str]) -> None:
    """An operator sends, and Kommo is to show it: either is taken, or is not yet, or comes to nothing."""
    mine = {"side": "operator", "sent_by": "operator"}
    sent = book.send(book.random.choice(chats), f"o-{len(book.events)}", **mine)
    told = {"msec": sent.msec, "sender": sent.sender, "receiver": e.Party(id="u-1"), "push": "kommo"}
    copy = book.about(e.MessageMirrored, sent, content=sent.content, **told)
    for _ in range(book.random.randrange(4)):
        book.random.choice((_message, _facts, _chat))(book, chats)
    for what in book.random.sample(("sent", "copy", "parked"), 2):
        if what == "sent":
            book.accept(sent, f"x-{len(book.events)}")
        elif what == "parked":
            book.about(e.DeliveryParked, sent, cause=copy.id, reason="refused")
        else:
            name = f"k-{len(book.events)}"
            taken = {"side": "kommo", "remote_id": name, "copy": True, "cause": copy.id}
            book.about(e.MessageAccepted, sent, **taken)
            named = message_id(SCOPE, "kommo", name)
            book.add(e.MessageNamed, named, conversation=sent.conversation, message=sent.message)


def _channel(book: Book, chats: list[str]) -> None:
    name = book.random.choice(("acme", "beta"))
    where = {"channel": name, "account": None}
    stream = channel_stream(name)
    scope = f"{name}_account"
    if stream not in book.versions:
        registered = {"channel_id": name, "kind": "webhook", "url": "http://localhost/"}
        book.add(e.ChannelRegistered, stream, **where, **registered)
        return
    connection = connection_stream(scope_of(name, name, "account"))
    kind, at, fields = book.random.choice(
        (
            (e.ChannelChanged, stream, {**where, "url": f"http://localhost/{len(book.events)}"}),
            (e.ChannelConnected, connection, {"channel": name, "scope_id": scope, "title": "A title"}),
            (e.ChannelDisconnected, connection, {"channel": name, "scope_id": scope}),
        )
    )
    book.add(kind, at, **fields)
