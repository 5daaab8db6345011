"""The messenger's state: customers, conversations, messages, accepted pushes and actions to post."""

import time
from collections import defaultdict, deque
from datetime import UTC, datetime
from itertools import count
from typing import Any, Literal
from uuid import uuid4

from msgspec import Struct, field

from ops.sandbox.config import CHATS_MAX, MESSAGES_MAX, RECORDS_MAX
from ops.sandbox.state.store import Store

KINDS = ("customer", "conversation", "letter", "push", "action")


class Customer(Struct, kw_only=True):
    id: str
    name: str
    phone: str = ""


class Conversation(Struct, kw_only=True):
    id: str
    customer_id: str
    account_id: str = ""
    touched_ms: int = 0
    unread: int = 0


class MessengerReaction(Struct, kw_only=True):
    by: str
    emoji: str


class MessengerMessage(Struct, kw_only=True):
    """A message on the customer's phone; `mine` is the customer's own, else it came by a push.

    Status of one's own: sending, sent, failed; of a received one: delivered, read.
    """

    id: str
    conversation_id: str
    mine: bool
    message: dict[str, object]
    status: str
    sender_name: str = ""
    ledger_id: str = ""
    at: str = ""
    problem: str = ""
    edited: bool = False
    deleted: bool = False
    reply_to: str = ""
    reactions: list[MessengerReaction] = field(default_factory=list)


class Push(Struct, kw_only=True):
    """One webhook-id and its answer; `repeats` counts its later arrivals."""

    n: int
    webhook_id: str
    type: str
    id: str
    conversation_id: str
    body: dict[str, Any]
    answer: dict[str, object]
    arrived_ns: int
    repeats: int = 0


class Action(Struct, kw_only=True):
    """A customer's action, posted until it is accepted or refused."""

    n: int
    type: str
    conversation_id: str
    body: dict[str, Any]
    message_id: str = ""
    state: Literal["waiting", "accepted", "refused", "dropped"] = "waiting"
    status: int | None = None
    error: str = ""
    attempts: int = 0
    queued_ns: int = 0
    answered_ns: int = 0
    answer: str = ""


class MessengerState:
    """The tables of the demo messenger, in memory and in the store."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.reset()
        for customer in store.load("customer", Customer):
            self.customers[customer.id] = customer
        for conversation in store.load("conversation", Conversation):
            self.conversations[conversation.id] = conversation
        for letter in store.load("letter", MessengerMessage):
            self._index(letter)
        for push in store.load("push", Push):
            self.pushes[push.webhook_id] = push
        self.pending += store.load("action", Action)
        self.numbers = count(max((action.n for action in self.pending), default=0) + 1)
        self.arrivals = count(max((push.n for push in self.pushes.values()), default=0) + 1)

    def reset(self) -> None:
        """Start empty, in memory."""
        self.customers: dict[str, Customer] = {}
        self.conversations: dict[str, Conversation] = {}
        self.letters: dict[str, MessengerMessage] = {}
        self.timelines: dict[str, list[MessengerMessage]] = defaultdict(list)
        self.pushes: dict[str, Push] = {}
        self.actions: deque[Action] = deque(maxlen=RECORDS_MAX)
        self.pending: list[Action] = []
        self.numbers, self.arrivals = count(1), count(1)

    def clear(self) -> None:
        """Forget everything."""
        self.reset()
        self.store.clear(KINDS)

    def customer(self, customer_id: str, name: str = "", phone: str = "") -> Customer:
        """The customer, created or renamed."""
        known = self.customers.get(customer_id)
        if known is None:
            known = self.customers[customer_id] = Customer(
                id=customer_id, name=name or customer_id, phone=phone
            )
        elif (name and name != known.name) or (phone and phone != known.phone):
            known.name, known.phone = name or known.name, phone or known.phone
        else:
            return known
        self.store.save("customer", known.id, known)
        if len(self.customers) > CHATS_MAX:
            oldest = next(iter(self.customers))
            del self.customers[oldest]
            self.store.delete("customer", oldest)
        return known

    def by_phone(self, phone: str) -> Customer:
        """The customer with this number; every number belongs to one."""
        for customer in self.customers.values():
            if customer.phone == phone:
                return customer
        return self.customer(new_id("u"), phone, phone)

    def conversation(self, conversation_id: str, customer_id: str, account_id: str = "") -> Conversation:
        """The conversation, made if it is new."""
        known = self.conversations.get(conversation_id)
        if known is None:
            known = Conversation(id=conversation_id, customer_id=customer_id, account_id=account_id)
            self.save_conversation(known)
        return known

    def save_conversation(self, conversation: Conversation) -> None:
        """Keep a conversation, new or changed."""
        self.conversations[conversation.id] = conversation
        self.store.save("conversation", conversation.id, conversation)
        if len(self.conversations) > CHATS_MAX:
            self._forget(next(iter(self.conversations.values())))

    def save_letter(self, letter: MessengerMessage) -> None:
        """Keep a message, new or changed; beyond the limit the oldest is forgotten."""
        self._index(letter)
        self.store.save("letter", letter.id, letter)
        if len(self.letters) > MESSAGES_MAX:
            oldest = next(iter(self.letters.values()))
            del self.letters[oldest.id]
            self.timelines[oldest.conversation_id].remove(oldest)
            self.store.delete("letter", oldest.id)

    def add_letter(self, letter: MessengerMessage) -> None:
        """A new message at the end of its conversation."""
        conversation = self.conversations[letter.conversation_id]
        conversation.touched_ms = time.time_ns() // 1_000_000
        conversation.unread += not letter.mine
        self.save_letter(letter)
        self.save_conversation(conversation)

    def save_push(self, push: Push) -> None:
        """Keep a push, new or repeated; beyond the limit the oldest is forgotten."""
        self.pushes[push.webhook_id] = push
        self.store.save("push", push.webhook_id, push)
        if len(self.pushes) > RECORDS_MAX:
            oldest = next(iter(self.pushes))
            del self.pushes[oldest]
            self.store.delete("push", oldest)

    def save_action(self, action: Action) -> None:
        """Keep an action while it has to be posted, and no longer."""
        if action.state == "waiting":
            self.store.save("action", str(action.n), action)
        else:
            self.store.delete("action", str(action.n))

    def _forget(self, conversation: Conversation) -> None:
        for letter in self.timelines.pop(conversation.id, []):
            del self.letters[letter.id]
            self.store.delete("letter", letter.id)
        del self.conversations[conversation.id]
        self.store.delete("conversation", conversation.id)

    def _index(self, letter: MessengerMessage) -> None:
        if letter.id not in self.letters:
            self.timelines[letter.conversation_id].append(letter)
        self.letters[letter.id] = letter


def new_id(prefix: str) -> str:
    """An id of the messenger's own: `x-…`, `m-…`, `u-…`, `conv-…`."""
    return f"{prefix}-{uuid4().hex[:12]}"


def instant(moment: datetime | None = None) -> str:
    """RFC 3339 in UTC with three decimals, the time now by default."""
    moment = moment or datetime.now(UTC)
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
