"""What is asked of the ledger; time and ids come in as values, so that deciding stays pure.

`id` is a UUIDv7 ending in `00`, the base of the ids of the events that follow; `lane` is the key within which
commands keep their order (the conversation, or what is known of it).
"""

from typing import Literal, TypeAlias, TypedDict

from msgspec import Struct

from domain.events import Author, Content, DeliveryStatus, Direction, Ends, Party, Side
from domain.ids import Scope


class End(Struct, frozen=True, gc=False):
    """One side's name of a conversation: `stream` is made from it."""

    side: Side
    stream: str
    ends: Ends


class Stamp(TypedDict):
    """The fields that every command has, as they are given to its constructor."""

    scope: Scope
    id: str
    lane: str
    at: str
    now: str
    now_ms: int
    by: str


class Command(Struct, frozen=True, kw_only=True, gc=False):
    """`at` is the source's clock and `now` ours, as text; `now_ms` is `now` in unix milliseconds."""

    scope: Scope
    id: str
    lane: str
    at: str
    now: str
    now_ms: int
    by: str


class Send(Command, frozen=True, kw_only=True, gc=False):
    """Somebody wrote. `ends` are the names of the conversation, the most trusted first.

    `side` is who sends; `direction` matters only of the messenger, on whose phone the business may write too
    ("out", then `receiver` is the customer). `imported`: it was written before we were there to see it.
    """

    stream: str
    side: Author
    own_id: str
    msec: int
    ends: tuple[End, ...]
    sender: Party
    content: Content
    receiver: Party | None = None
    reply_stream: str | None = None
    forward_stream: str | None = None
    source: str | None = None
    silent: bool = False
    direction: Direction = "in"
    imported: bool = False


class Edit(Command, frozen=True, kw_only=True, gc=False):
    """The messenger changed the content of the message that `stream` names."""

    stream: str
    content: Content
    delivery_status: DeliveryStatus | None = None


class Delete(Command, frozen=True, kw_only=True, gc=False):
    """The messenger took back the message that `stream` names."""

    stream: str


class Confirm(Command, frozen=True, kw_only=True, gc=False):
    """The messenger says how far the message that `stream` names has come."""

    stream: str
    status: Literal["delivered", "read", "failed"]
    code: int = 0
    text: str = ""


class React(Command, frozen=True, kw_only=True, gc=False):
    """Somebody on `side` reacted to the message that the first known of `streams` names, or took it back."""

    streams: tuple[str, ...]
    side: Side
    sender: Party
    emoji: str
    removed: bool


class Type(Command, frozen=True, kw_only=True, gc=False):
    """Somebody on `side` is writing; stale if `at_ms` is over 5 s before `now_ms`."""

    stream: str
    side: Side
    at_ms: int
    ends: tuple[End, ...]
    sender: Party
    expires_at: str
    duration_ms: int | None = None
    post_id: str | None = None


class Begin(Command, frozen=True, kw_only=True, gc=False):
    """Kommo made a chat for a conversation before anybody wrote; `receiver` is its customer."""

    ends: tuple[End, ...]
    receiver: Party


class Accept(Command, frozen=True, kw_only=True, gc=False):
    """The side that a message was pushed to took it.

    `alias` is the stream that its `remote_id` names; `end` the messenger's name of the conversation, learned
    from the same answer. `copy`: Kommo took the copy of a message that an operator sent.
    """

    stream: str
    side: Side
    remote_id: str | None = None
    alias: str | None = None
    end: End | None = None
    cause: str | None = None
    copy: bool = False


class Reject(Command, frozen=True, kw_only=True, gc=False):
    """The side that a message was pushed to refused it for good."""

    stream: str
    code: int
    text: str
    cause: str | None = None


class Complete(Command, frozen=True, kw_only=True, gc=False):
    """The push that event `cause` asked for is done, or `superseded` says why it is not wanted."""

    stream: str
    cause: str
    superseded: str | None = None


class Defer(Command, frozen=True, kw_only=True, gc=False):
    """An attempt failed and will be repeated."""

    stream: str
    cause: str
    reason: str


class Park(Command, frozen=True, kw_only=True, gc=False):
    """A delivery is given up until someone looks."""

    stream: str
    cause: str
    reason: str


class Resume(Command, frozen=True, kw_only=True, gc=False):
    """A parked delivery is taken up again."""

    stream: str
    cause: str


class Register(Command, frozen=True, kw_only=True, gc=False):
    """A channel and its messenger become known."""

    stream: str
    channel_id: str
    kind: str
    url: str
    bot_id: str | None = None


class Change(Command, frozen=True, kw_only=True, gc=False):
    """A channel's address or secrets are replaced; `secrets` names which, never what."""

    stream: str
    url: str
    bot_id: str | None
    secrets: tuple[str, ...]


class Connect(Command, frozen=True, kw_only=True, gc=False):
    """Kommo connected the channel; `again` records it even if it was connected."""

    stream: str
    title: str
    again: bool = False
    is_time_window_disabled: bool = False


class Disconnect(Command, frozen=True, kw_only=True, gc=False):
    """Kommo disconnected the channel."""

    stream: str


class LinkContact(Command, frozen=True, kw_only=True, gc=False):
    """The conversation that `stream` names belongs to a contact of the CRM, and perhaps a lead."""

    stream: str
    contact_id: int
    lead_id: int | None = None


class Talk(Command, frozen=True, kw_only=True, gc=False):
    """Kommo tells how a talk stands. `chats` are the streams that its chat may have, by channel.

    `fields` are those of `events.TalkAdded`.
    """

    stream: str
    added: bool
    fields: dict[str, object]
    chats: tuple[tuple[Scope, str], ...] = ()


class Lead(Command, frozen=True, kw_only=True, gc=False):
    """Kommo tells what became of an incoming lead; `fields` are those of `events.LeadReceived`."""

    stream: str
    became: Literal["received", "accepted", "declined", "linked"]
    fields: dict[str, object]
    chats: tuple[tuple[Scope, str], ...] = ()


class Review(Command, frozen=True, kw_only=True, gc=False):
    """Kommo tells how the reviews of a template stand; `fields` are those of `events.TemplateReview`."""

    stream: str
    fields: dict[str, object]


class Authorize(Command, frozen=True, kw_only=True, gc=False):
    """An account's administrator let us into its CRM."""

    stream: str
    crm_url: str


class Withdraw(Command, frozen=True, kw_only=True, gc=False):
    """We may no longer use the account's CRM."""

    stream: str
    reason: str


AnyCommand: TypeAlias = (
    Send
    | Edit
    | Delete
    | Confirm
    | React
    | Type
    | Begin
    | Accept
    | Reject
    | Complete
    | Defer
    | Park
    | Resume
    | Register
    | Change
    | Connect
    | Disconnect
    | LinkContact
    | Talk
    | Lead
    | Review
    | Authorize
    | Withdraw
)
