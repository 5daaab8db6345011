"""The commands that the ledger takes; time and ids are values in them, so that decisions stay pure.

`id` is a UUIDv7 ending in `00`, the base of the ids of the events that follow; `lane` is the key within which
commands keep their order: the conversation, or the best name of it that the sender knows.
"""

from typing import Literal, NotRequired, TypeAlias, TypedDict

from msgspec import Struct

from domain.events import Author, ChannelOptions, Content, DeliveryStatus, Direction, Ends, Party, Side
from domain.ids import Scope


class End(Struct, frozen=True, gc=False):
    """One side's name for a conversation, and the stream that the name stands for."""

    side: Side
    stream: str
    ends: Ends


class Stamp(TypedDict):
    """The fields that every command has, as keyword arguments of its constructor."""

    scope: Scope
    id: str
    lane: str
    at: str
    now: str
    now_ms: int
    by: str
    claimed_at: NotRequired[str | None]


class Command(Struct, frozen=True, kw_only=True, gc=False):
    """A request to record something. `at` is the time of the source's clock and `now` of ours, as text.

    `now_ms` is `now` in unix milliseconds; `by` is the side that reports. `claimed_at` is the source's time
    if it was too far ahead to be believed; `at` is the arrival then.
    """

    scope: Scope
    id: str
    lane: str
    at: str
    now: str
    now_ms: int
    by: str
    claimed_at: str | None = None


class Send(Command, frozen=True, kw_only=True, gc=False):
    """Somebody wrote a message. `ends` are the names of the conversation, the most trusted first.

    `side` is the sender's. `direction` matters only for the messenger, because the business may write on its
    own phone ("out"; then `receiver` is the customer). `imported`: the message is older than its recording.
    `stream_within` is the message's name within its conversation, for use if `stream` names another message.
    """

    stream: str
    stream_within: str | None = None
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


class About(Command, frozen=True, kw_only=True, gc=False):
    """Somebody reports a fact about a message that was sent before, or that is still to be recorded.

    `streams` are names of the message inside the scope, and `ours` is our own id of it as the reporter states
    it, which counts only if it is a message of the scope. `ends` name the conversation, none if the reporter
    does not; a message of another conversation is not meant. The fact waits in a stream of `streams` while
    there is no such message. `request` identifies the request, the same if it is repeated.
    """

    streams: tuple[str, ...]
    ours: str | None = None
    ends: tuple[End, ...] = ()
    request: str | None = None


class Edit(About, frozen=True, kw_only=True, gc=False):
    """The messenger changed the content of a message."""

    content: Content
    delivery_status: DeliveryStatus | None = None


class Delete(About, frozen=True, kw_only=True, gc=False):
    """The messenger took back a message."""


class Confirm(About, frozen=True, kw_only=True, gc=False):
    """The messenger reports the status of a message."""

    status: Literal["delivered", "read", "failed"]
    code: int = 0
    text: str = ""


class React(About, frozen=True, kw_only=True, gc=False):
    """Somebody on `side` reacted to a message, or undid it."""

    side: Side
    sender: Party
    emoji: str
    removed: bool


class Type(Command, frozen=True, kw_only=True, gc=False):
    """Somebody on `side` is typing; stale if `at_ms` is over 5 s before `now_ms`."""

    stream: str
    side: Side
    at_ms: int
    ends: tuple[End, ...]
    sender: Party
    expires_at: str
    duration_ms: int | None = None
    post_id: str | None = None


class Begin(Command, frozen=True, kw_only=True, gc=False):
    """Kommo created a chat for a conversation before anybody wrote; `receiver` is its customer."""

    ends: tuple[End, ...]
    receiver: Party


class Accept(Command, frozen=True, kw_only=True, gc=False):
    """The receiving side accepted a message.

    `alias` is the stream that `remote_id` names, and `alias_within` the stream that it names within the
    conversation, for use if `alias` names another message. `end` is the messenger's name for the
    conversation, from the same answer. `copy`: Kommo accepted the mirror of a message that an operator sent.
    `left_out` names the parts that it was refused with, and sent again without.
    """

    stream: str
    side: Side
    remote_id: str | None = None
    alias: str | None = None
    alias_within: str | None = None
    end: End | None = None
    cause: str | None = None
    copy: bool = False
    left_out: tuple[str, ...] = ()


class Reject(Command, frozen=True, kw_only=True, gc=False):
    """The receiving side refused a message for good: `text` is its own, `reason` ours."""

    stream: str
    code: int
    text: str
    cause: str | None = None
    reason: str | None = None


class Complete(Command, frozen=True, kw_only=True, gc=False):
    """The delivery of event `cause` is done, or no longer needed for the reason in `superseded`."""

    stream: str
    cause: str
    superseded: str | None = None


class Defer(Command, frozen=True, kw_only=True, gc=False):
    """An attempt to deliver event `cause` failed and will be repeated; `answer` is the other side's text."""

    stream: str
    cause: str
    reason: str
    answer: str | None = None


class Park(Command, frozen=True, kw_only=True, gc=False):
    """The delivery of event `cause` stops until an operator resumes it; `answer` is the other side's text."""

    stream: str
    cause: str
    reason: str
    answer: str | None = None


class Resume(Command, frozen=True, kw_only=True, gc=False):
    """An operator resumes the parked or failed delivery of event `cause`."""

    stream: str
    cause: str


class Register(Command, frozen=True, kw_only=True, gc=False):
    """A channel and its messenger are registered."""

    stream: str
    channel_id: str
    kind: str
    url: str
    bot_id: str | None = None
    options: ChannelOptions = ChannelOptions()


class Change(Command, frozen=True, kw_only=True, gc=False):
    """A channel's address, options or secrets are replaced.

    `secrets` has the secrets' names, never their values.
    """

    stream: str
    url: str
    bot_id: str | None
    secrets: tuple[str, ...]
    options: ChannelOptions = ChannelOptions()


class Connect(Command, frozen=True, kw_only=True, gc=False):
    """Kommo connected the channel; `again` records it even if it was connected already.

    `renewed`: delivery connected again, which is not to be recorded once an operator has disconnected.
    """

    stream: str
    title: str
    again: bool = False
    renewed: bool = False
    is_time_window_disabled: bool = False


class Disconnect(Command, frozen=True, kw_only=True, gc=False):
    """Kommo disconnected the channel."""

    stream: str


class LinkContact(Command, frozen=True, kw_only=True, gc=False):
    """The conversation that `stream` names belongs to a contact of the CRM, and perhaps to a lead."""

    stream: str
    contact_id: int
    lead_id: int | None = None


class Talk(Command, frozen=True, kw_only=True, gc=False):
    """Kommo reports the state of a talk. `chats` are the streams that its chat may have, one per scope.

    `fields` are those of `events.TalkAdded`.
    """

    stream: str
    added: bool
    fields: dict[str, object]
    chats: tuple[tuple[Scope, str], ...] = ()


class Lead(Command, frozen=True, kw_only=True, gc=False):
    """Kommo reports what happened to an incoming lead; `fields` are those of `events.LeadReceived`."""

    stream: str
    became: Literal["received", "accepted", "declined", "linked"]
    fields: dict[str, object]
    chats: tuple[tuple[Scope, str], ...] = ()


class Review(Command, frozen=True, kw_only=True, gc=False):
    """Kommo reports the reviews of a template; `fields` are those of `events.TemplateReview`."""

    stream: str
    fields: dict[str, object]


class Authorize(Command, frozen=True, kw_only=True, gc=False):
    """An administrator of an account has authorized us to use its CRM."""

    stream: str
    crm_url: str


class Withdraw(Command, frozen=True, kw_only=True, gc=False):
    """We may no longer use the account's CRM; `answer` is Kommo's text."""

    stream: str
    reason: str
    answer: str | None = None


class Move(Command, frozen=True, kw_only=True, gc=False):
    """The account's CRM has another address."""

    stream: str
    crm_url: str


class Source(Command, frozen=True, kw_only=True, gc=False):
    """The account has the source that chats come from unless they name another."""

    stream: str
    source_id: int


class Subscribe(Command, frozen=True, kw_only=True, gc=False):
    """The account's CRM sends us its webhooks."""

    stream: str


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
    | Move
    | Source
    | Subscribe
)
