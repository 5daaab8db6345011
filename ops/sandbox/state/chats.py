"""Kommo's state: connections, people, chats and messages, each found by either side's id."""

import time
from collections import defaultdict, deque
from itertools import count
from typing import Any
from uuid import uuid4

from msgspec import Struct, field

from ops.sandbox.config import CALLS_MAX, CHATS_MAX, MESSAGES_MAX, RECORDS_MAX
from ops.sandbox.state.store import Store

KINDS = ("connection", "person", "chat", "message")


class Connection(Struct, kw_only=True):
    scope_id: str
    channel_id: str
    account_id: str
    title: str
    is_time_window_disabled: bool = False
    active: bool = True
    connected_at: float = 0.0


class Person(Struct, kw_only=True):
    """A participant; `client_id` is what the integration calls it."""

    id: str
    scope_id: str
    client_id: str = ""
    name: str = ""
    avatar: str = ""
    phone: str = ""
    email: str = ""


class Chat(Struct, kw_only=True):
    """A chat with one client; `client_id` is empty until the integration has named it (write first)."""

    id: str
    scope_id: str
    client: str
    client_id: str = ""
    source: str = ""
    touched_ms: int = 0
    unread: int = 0


class StatusCall(Struct, kw_only=True):
    """One accepted call of delivery_status."""

    message_id: str
    status: int
    error_code: int | None = None
    error: str = ""
    arrived_ns: int = 0


class Reaction(Struct, kw_only=True):
    by: str
    emoji: str


class Message(Struct, kw_only=True):
    """`id` is Kommo's, `client_id` the integration's; `direction` is `in` from the customer, else `out`."""

    n: int
    id: str
    scope_id: str
    chat_id: str
    direction: str
    sender: str
    sender_name: str = ""
    receiver: str = ""
    client_id: str = ""
    timestamp: int = 0
    msec_timestamp: int = 0
    message: dict[str, object]
    reply_to: Any = None
    forwards: object = None
    source: str = ""
    silent: bool = False
    arrived_ns: int = 0
    repeats: int = 0
    statuses: list[StatusCall] = field(default_factory=list)
    edits: list[dict[str, object]] = field(default_factory=list)
    reactions: list[Reaction] = field(default_factory=list)
    hook: str = ""

    @property
    def status(self) -> str:
        """The status that the tick shows: the last one reported, `sent` before the first."""
        names = {1: "delivered", 2: "read", -1: "failed"}
        return names[self.statuses[-1].status] if self.statuses else "sent"


class Typing(Struct, kw_only=True):
    conversation_id: str
    sender_id: str
    duration_ms: int
    arrived_ns: int
    until_ms: int


class ReactCall(Struct, kw_only=True):
    message_id: str
    by: str
    type: str
    emoji: str
    arrived_ns: int


class Crm:
    """The tables of the fake Kommo, in memory and in the store."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.reset()
        for connection in store.load("connection", Connection):
            self.connections[connection.scope_id] = connection
        for person in store.load("person", Person):
            self._index_person(person)
        for chat in store.load("chat", Chat):
            self._index_chat(chat)
        for message in store.load("message", Message):
            self._index_message(message)
        self.numbers = count(max((message.n for message in self.messages.values()), default=0) + 1)

    def reset(self) -> None:
        """Start empty, in memory."""
        self.connections: dict[str, Connection] = {}
        self.people: dict[str, Person] = {}
        self.chats: dict[str, Chat] = {}
        self.messages: dict[str, Message] = {}
        self.timelines: dict[str, list[Message]] = defaultdict(list)
        self.statuses: deque[StatusCall] = deque(maxlen=RECORDS_MAX)
        self.typings: deque[Typing] = deque(maxlen=RECORDS_MAX)
        self.reactions: deque[ReactCall] = deque(maxlen=RECORDS_MAX)
        self._people: dict[tuple[str, str], Person] = {}
        self._chats: dict[tuple[str, str], Chat] = {}
        self._messages: dict[tuple[str, str], Message] = {}
        self.numbers = count(1)

    def clear(self, *, keep_connections: bool) -> None:
        """Forget everything, and the connections too unless asked to keep them."""
        connections = self.connections if keep_connections else {}
        self.reset()
        self.connections = connections
        self.store.clear(KINDS[1:] if keep_connections else KINDS)

    def person(self, scope_id: str, client_id: str) -> Person | None:
        """The participant with this id of the integration's."""
        return self._people.get((scope_id, client_id))

    def chat(self, scope_id: str, client_id: str) -> Chat | None:
        """The chat with this id of the integration's."""
        return self._chats.get((scope_id, client_id))

    def client(self, chat: Chat) -> Person:
        """The chat's client; only an id if it was forgotten beyond the limit."""
        return self.people.get(chat.client) or Person(id=chat.client, scope_id=chat.scope_id)

    def message(self, scope_id: str, *, id: str = "", client_id: str = "") -> Message | None:
        """A message of this scope by Kommo's id, else by the integration's."""
        if not id:
            return self._messages.get((scope_id, client_id))
        found = self.messages.get(id)
        return found if found is not None and found.scope_id == scope_id else None

    def save_connection(self, connection: Connection) -> None:
        """Keep a connection, new or changed."""
        self.connections[connection.scope_id] = connection
        self.store.save("connection", connection.scope_id, connection)

    def save_person(self, person: Person) -> Person:
        """Keep a participant, new or changed."""
        self._index_person(person)
        self.store.save("person", person.id, person)
        return person

    def save_chat(self, chat: Chat) -> Chat:
        """Keep a chat, new or changed."""
        self._index_chat(chat)
        self.store.save("chat", chat.id, chat)
        if len(self.chats) > CHATS_MAX:
            self._forget_chat(next(iter(self.chats.values())))
        return chat

    def save_message(self, message: Message) -> Message:
        """Keep a message, new or changed; beyond the limit the oldest is forgotten."""
        self._index_message(message)
        del message.statuses[:-CALLS_MAX], message.edits[:-CALLS_MAX]
        self.store.save("message", message.id, message)
        if len(self.messages) > MESSAGES_MAX:
            self._forget(next(iter(self.messages.values())))
        return message

    def append(self, message: Message) -> None:
        """A new message at the end of its chat."""
        chat = self.chats[message.chat_id]
        chat.touched_ms = now_ms()
        if message.direction == "in" and not message.silent:
            chat.unread += 1
        self.save_message(message)
        self.save_chat(chat)

    def _index_person(self, person: Person) -> None:
        self.people[person.id] = person
        if person.client_id:
            self._people[person.scope_id, person.client_id] = person

    def _index_chat(self, chat: Chat) -> None:
        self.chats[chat.id] = chat
        if chat.client_id:
            self._chats[chat.scope_id, chat.client_id] = chat

    def _index_message(self, message: Message) -> None:
        if message.id not in self.messages:
            self.timelines[message.chat_id].append(message)
        self.messages[message.id] = message
        if message.client_id:
            self._messages[message.scope_id, message.client_id] = message

    def _forget_chat(self, chat: Chat) -> None:
        for message in list(self.timelines.pop(chat.id, [])):
            del self.messages[message.id]
            self._messages.pop((message.scope_id, message.client_id), None)
            self.store.delete("message", message.id)
        del self.chats[chat.id]
        self._chats.pop((chat.scope_id, chat.client_id), None)
        self.store.delete("chat", chat.id)
        client = self.people.pop(chat.client, None)
        if client is not None:
            self._people.pop((client.scope_id, client.client_id), None)
            self.store.delete("person", client.id)

    def _forget(self, message: Message) -> None:
        del self.messages[message.id]
        self._messages.pop((message.scope_id, message.client_id), None)
        self.timelines[message.chat_id].remove(message)
        self.store.delete("message", message.id)


def new_id() -> str:
    """An id of Kommo's own."""
    return str(uuid4())


def now_ms() -> int:
    """Unix milliseconds."""
    return time.time_ns() // 1_000_000
