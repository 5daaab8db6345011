"""What the REST API answers, field by field; times are text with three decimals and `Z`."""

from typing import Literal

from msgspec import UNSET, Raw, Struct, UnsetType

from app.problems import Problem
from domain.events import Contact, Json, Location, Party, Reply


class Conversation(Struct, frozen=True, kw_only=True):
    """A chat. `position` is that of its last event; `last` is its latest message, for a list."""

    id: str
    channel: str
    account_id: str | None
    conversation_id: str | None
    chat_id: str | None
    contact_id: int | None
    lead_id: int | None
    last_message_at: str | None
    messages: int
    position: int
    last: "Snippet | None" = None


class Snippet(Struct, frozen=True, kw_only=True):
    """The latest message of a conversation; no text if it has none or is deleted."""

    direction: Literal["in", "out"]
    type: str
    text: str | None
    status: str
    deleted: bool


class Failure(Struct, frozen=True):
    """Why a message did not arrive: a code of Kommo's (901..905) and a text."""

    code: int
    text: str


class Remote(Struct, frozen=True):
    """What each side calls a message."""

    kommo: str | None
    messenger: str | None


class ReactionShown(Struct, frozen=True):
    """Somebody's reaction; `by` is the side they are on."""

    emoji: str
    by: str
    sender_id: str
    at: str


class Message(Struct, frozen=True, kw_only=True):
    """A message as it stands now; of a deleted one the content is not told.

    `sent_by` is who sent it: the messenger also when the business wrote on its own phone ("out").

    `file_size` is in bytes, `media_duration` in seconds. `failure` is told while the status is "failed".
    """

    id: str
    position: int
    conversation: str
    channel: str
    account_id: str | None
    direction: Literal["in", "out"]
    sent_by: str
    type: str
    text: str | None = None
    media: str | None = None
    thumbnail: str | None = None
    file_name: str | None = None
    file_size: int | None = None
    media_duration: int | None = None
    media_group_id: str | None = None
    sticker_id: str | None = None
    location: Location | None = None
    contact: Contact | None = None
    callback_data: str | None = None
    shared_post: Json | None = None
    post: Json | None = None
    markup: Json | None = None
    template: Json | None = None
    tag: str | None = None
    reply_to: Reply | None = None
    forwards: Json | None = None
    forwards_cut: int = 0
    forwarded: Reply | None = None
    sender: Party
    receiver: Party | None
    source: str | None
    silent: bool
    imported: bool
    sent_at: str
    recorded_at: str
    status: str
    failure: Failure | None
    remote: Remote
    edited: bool
    edited_at: str | None
    deleted: bool
    reactions: list[ReactionShown]


class Moment(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One event of a message's stream: what became known, when, from whom, and the evidence it came with.

    `copy`: it is about the copy, in Kommo, of a message that an operator sent.
    """

    position: int
    id: str
    type: str
    at: str
    recorded_at: str
    by: str
    cause: str | None = None
    push: str | None = None
    side: str | None = None
    remote_id: str | None = None
    code: int | None = None
    text: str | None = None
    emoji: str | None = None
    reason: str | None = None
    superseded: str | None = None
    copy: bool = False


class History(Message, frozen=True, kw_only=True):
    """A message and every transition of it, in order."""

    timeline: list[Moment]


class Stored(Struct, frozen=True):
    """An event of the ledger: exactly the stored JSON."""

    position: int
    event: Raw


class Delivery(Struct, frozen=True, kw_only=True):
    """A push that is not done. `id` and `position` are those of the event that asks for it."""

    position: int
    id: str
    type: str
    destination: str
    channel: str
    account_id: str | None
    conversation: str | None
    message: str | None
    state: Literal["open", "deferred", "parked"]
    reason: str | None
    attempts: int
    recorded_at: str
    updated: int


class Connection(Struct, frozen=True, kw_only=True):
    """A channel's connection to a Kommo account, present or past."""

    channel: str
    account_id: str
    scope_id: str
    title: str
    connected: bool
    connected_at: str
    position: int
    is_time_window_disabled: bool = False


class Channel(Struct, frozen=True, kw_only=True):
    """A chat channel of Kommo and the messenger behind it."""

    name: str
    channel_id: str
    kind: str
    url: str
    bot_id: str | None
    position: int
    connections: list[Connection] = []


class ViewStatus(Struct, frozen=True):
    """How far a view is; `lag` is how many events it is behind."""

    view: str
    position: int
    lag: int


class DeliveryCounts(Struct, frozen=True):
    """How many pushes are not done, and the position of the first."""

    pending: int
    deferred: int
    parked: int
    oldest_position: int | None


class Standing(Struct, frozen=True):
    """The ledger's last position, the views, and the deliveries."""

    head: int
    views: list[ViewStatus]
    deliveries: DeliveryCounts


class Conversations(Struct, frozen=True):
    """A page, and the cursor of the next."""

    items: list[Conversation]
    next: str | None


class Messages(Struct, frozen=True):
    """A page, and the cursor of the next."""

    items: list[Message]
    next: str | None


class Events(Struct, frozen=True):
    """A page, and the `after` of the next."""

    items: list[Stored]
    next: int | None


class Deliveries(Struct, frozen=True):
    """A page, and the cursor of the next."""

    items: list[Delivery]
    next: str | None


class Outcome(Struct, frozen=True):
    """What became of one action: our message id, its position and whether it was a repeat; or a problem."""

    id: str | UnsetType | None = UNSET
    position: int | UnsetType | None = UNSET
    duplicate: bool | UnsetType = UNSET
    error: Problem | UnsetType = UNSET


class Outcomes(Struct, frozen=True):
    """One for each action, in their order."""

    results: list[Outcome]


class Alive(Struct, frozen=True):
    """That the process lives, or can take requests."""

    status: Literal["ok", "ready"]
