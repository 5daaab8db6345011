"""What happened: immutable facts with permanent tags; fields are only ever added, with defaults.

An event is encoded once, by `encode`; the same bytes are stored, published and hashed. Personal data is only
in `sender`, `receiver` and `content`. Times are text, `2026-11-22T08:00:00.000Z`. An event with `push`
requires a delivery to that side ("kommo" or "messenger") and has all the fields that the delivery needs.
"""

from typing import Literal, TypeAlias, get_args

import msgspec
from msgspec import Struct

from domain.content import Content
from domain.parts import (
    Author,
    ChannelOptions,
    Contact,
    DeliveryStatus,
    Direction,
    Ends,
    Json,
    Location,
    Party,
    Reply,
    Review,
    Side,
)

__all__ = [
    "Author", "ChannelOptions", "Contact", "Content", "DeliveryStatus", "Direction", "Ends", "Json",
    "Location", "Party", "Reply", "Review", "Side",
]  # fmt: skip

SCHEMA = 1
# Chosen: more than the longest line of an import (256 KB), and half of what the stream accepts.
EVENT_BYTES_MAX = 384 * 1024


class Event(Struct, frozen=True, kw_only=True, tag_field="type", omit_defaults=True, gc=False):
    """A fact. `at` is the source's time, `recorded_at` ours; `cause` is the event that led to it.

    `claimed_at` is the source's time where it was too far ahead to be believed; `at` is the arrival then.
    """

    id: str
    stream: str
    version: int
    channel: str
    account: str | None = None
    conversation: str | None = None
    message: str | None = None
    at: str
    recorded_at: str
    by: str
    cause: str | None = None
    schema: int
    claimed_at: str | None = None


class ChannelRegistered(Event, frozen=True, kw_only=True, gc=False, tag="channel.registered"):
    """A Kommo chat channel and its messenger are registered; their secrets are not in the event."""

    channel_id: str
    kind: str
    url: str
    bot_id: str | None = None
    options: ChannelOptions = ChannelOptions()


class ChannelChanged(Event, frozen=True, kw_only=True, gc=False, tag="channel.changed"):
    """The messenger's address, an option or a secret was changed."""

    url: str
    bot_id: str | None = None
    secrets: list[str] = []
    options: ChannelOptions = ChannelOptions()


class ChannelConnected(Event, frozen=True, kw_only=True, gc=False, tag="channel.connected"):
    """Kommo connected the channel to the account."""

    scope_id: str
    title: str = ""
    is_time_window_disabled: bool = False


class ChannelDisconnected(Event, frozen=True, kw_only=True, gc=False, tag="channel.disconnected"):
    """The channel no longer serves the account."""

    scope_id: str


class ConversationStarted(Event, frozen=True, kw_only=True, gc=False, tag="conversation.started"):
    """A chat is first seen, under this side's name; `receiver` is the customer if somebody else wrote."""

    side: Side
    content: Ends
    receiver: Party | None = None


class ConversationBound(Event, frozen=True, kw_only=True, gc=False, tag="conversation.bound"):
    """The other side's name for the chat is learned; recorded in the chat's stream and in the name's.

    `apart`: the name belonged to a chat that had started separately, so Kommo has two chats.
    """

    side: Side
    content: Ends
    apart: bool = False


class ConversationMerged(Event, frozen=True, kw_only=True, gc=False, tag="conversation.merged"):
    """Two chats turned out to be one; `into` is the earlier of them."""

    into: str


class ConversationLinked(Event, frozen=True, kw_only=True, gc=False, tag="conversation.linked"):
    """The chat belongs to a Kommo contact, and perhaps a lead; the latest link counts."""

    contact_id: int
    lead_id: int | None = None


class MessageSent(Event, frozen=True, kw_only=True, gc=False, tag="message.sent"):
    """Somebody wrote a message. `own_id` is the sender's own id; `msec` orders the chat in Kommo's feed.

    `sent_by` is absent where the direction implies it: "in" is from the messenger, "out" from Kommo.
    """

    direction: Direction
    own_id: str
    msec: int
    sender: Party
    content: Content
    receiver: Party | None = None
    source: str | None = None
    silent: bool = False
    imported: bool = False
    push: Side | None = None
    sent_by: Author | None = None


class MessageMirrored(Event, frozen=True, kw_only=True, gc=False, tag="message.mirrored"):
    """Kommo is to show a message that an operator sent, without a notification."""

    msec: int
    sender: Party
    receiver: Party
    content: Content
    source: str | None = None
    push: Side | None = None


class Fact(Event, frozen=True, kw_only=True, gc=False):
    """Something about a message. It waits while `message` is None, because nothing has the name yet.

    `within` is then the stream of the conversation that it names: a message of another one is not meant.
    `request` identifies the messenger's request, so that its repetition is recognised.
    """

    within: str | None = None
    request: str | None = None


class MessageEdited(Fact, frozen=True, kw_only=True, gc=False, tag="message.edited"):
    """The content was changed; the latest `at` wins, then the position. `remote_id` is Kommo's id of it."""

    content: Content
    push: Side | None = None
    delivery_status: DeliveryStatus | None = None
    remote_id: str | None = None


class MessageDeleted(Fact, frozen=True, kw_only=True, gc=False, tag="message.deleted"):
    """The message was deleted; this is final."""


class MessageAccepted(Event, frozen=True, kw_only=True, gc=False, tag="message.accepted"):
    """The receiving side accepted the message; `remote_id` is its id for it (None: it did not say).

    `copy`: Kommo accepted the mirror of a message that an operator sent; the message's own status is
    unchanged. `left_out` names the parts that it was refused with, and sent again without.
    """

    side: Side
    remote_id: str | None = None
    copy: bool = False
    left_out: list[str] = []


class MessageNamed(Event, frozen=True, kw_only=True, gc=False, tag="message.named"):
    """The name of this stream is another name for `message`."""


class MessageDelivered(Fact, frozen=True, kw_only=True, gc=False, tag="message.delivered"):
    """The receiver's device has the message. `remote_id` is Kommo's id of it."""

    remote_id: str | None = None
    push: Side | None = None


class MessageRead(Fact, frozen=True, kw_only=True, gc=False, tag="message.read"):
    """The receiver has read the message. `remote_id` is Kommo's id of it."""

    remote_id: str | None = None
    push: Side | None = None


class MessageFailed(Fact, frozen=True, kw_only=True, gc=False, tag="message.failed"):
    """The message will not arrive; `code` is Kommo's (901..905), `remote_id` Kommo's id of the message.

    `text` is the other side's; `reason` is ours, where delivery found out.
    """

    code: int
    text: str
    reason: str | None = None
    remote_id: str | None = None
    push: Side | None = None


class ReactionAdded(Fact, frozen=True, kw_only=True, gc=False, tag="reaction.added"):
    """Somebody reacted. `sent_by` is the side that sent the message, and `own_id` that side's id of it."""

    sender: Party
    content: Ends
    emoji: str = ""
    sent_by: Author | None = None
    own_id: str | None = None
    push: Side | None = None


class ReactionRemoved(Fact, frozen=True, kw_only=True, gc=False, tag="reaction.removed"):
    """Somebody took a reaction back."""

    sender: Party
    content: Ends
    emoji: str = ""
    sent_by: Author | None = None
    own_id: str | None = None
    push: Side | None = None


class TypingStarted(Event, frozen=True, kw_only=True, gc=False, tag="typing.started"):
    """Somebody is typing, until `expires_at`. `duration_ms` is how long, if the source said so.

    `post_id` is the post under which a comment is being written.
    """

    sender: Party
    content: Ends
    expires_at: str
    push: Side | None = None
    duration_ms: int | None = None
    post_id: str | None = None


class DeliveryCompleted(Event, frozen=True, kw_only=True, gc=False, tag="delivery.completed"):
    """The delivery of event `cause` is done, or no longer needed for the reason in `superseded`."""

    superseded: str | None = None


class DeliveryDeferred(Event, frozen=True, kw_only=True, gc=False, tag="delivery.deferred"):
    """An attempt to deliver event `cause` failed and will be repeated; `answer` is the other side's text."""

    reason: str
    answer: str | None = None


class DeliveryParked(Event, frozen=True, kw_only=True, gc=False, tag="delivery.parked"):
    """The delivery of event `cause` has stopped until it is resumed; `answer` is the other side's text."""

    reason: str
    answer: str | None = None


class DeliveryResumed(Event, frozen=True, kw_only=True, gc=False, tag="delivery.resumed"):
    """The delivery of event `cause` goes on; `was` is how it stood: a failed message is sent again."""

    was: Literal["parked", "failed"] = "parked"


class AccountAuthorized(Event, frozen=True, kw_only=True, gc=False, tag="account.authorized"):
    """An administrator authorized us to use the account's CRM at `crm_url`; tokens are not in the event."""

    crm_url: str


class AccountWithdrawn(Event, frozen=True, kw_only=True, gc=False, tag="account.withdrawn"):
    """We may no longer use the account's CRM: consent was withdrawn, or the integration disabled.

    `answer` is Kommo's text.
    """

    reason: str
    answer: str | None = None


class AccountMoved(Event, frozen=True, kw_only=True, gc=False, tag="account.moved"):
    """The account's CRM is at `crm_url` from now on."""

    crm_url: str


class SourceMade(Event, frozen=True, kw_only=True, gc=False, tag="source.made"):
    """The account has our source, which chats come from that name no other; `source_id` is Kommo's."""

    source_id: int


class AccountSubscribed(Event, frozen=True, kw_only=True, gc=False, tag="account.subscribed"):
    """The account's CRM sends us its webhooks."""


class _Talk(Event, frozen=True, kw_only=True, gc=False):
    talk_id: int
    changed: int
    chat_id: str | None = None
    contact_id: int | None = None
    entity_id: int | None = None
    entity_type: str | None = None
    is_in_work: bool = False
    is_read: bool = False
    rate: int | None = None
    origin: str | None = None


class TalkAdded(_Talk, frozen=True, kw_only=True, gc=False, tag="talk.added"):
    """A talk began in Kommo: one stretch of a chat. `changed` is Kommo's `updated_at`, in unix seconds."""


class TalkUpdated(_Talk, frozen=True, kw_only=True, gc=False, tag="talk.updated"):
    """A talk was answered, closed, rated, or moved to another contact or lead."""


class _Lead(Event, frozen=True, kw_only=True, gc=False):
    uid: str
    chat_id: str | None = None
    contact_id: int | None = None
    lead_id: int | None = None
    user_id: int | None = None


class LeadReceived(_Lead, frozen=True, kw_only=True, gc=False, tag="lead.received"):
    """A chat led to an incoming lead, which waits in Kommo to be accepted; `uid` is Kommo's id of it."""


class LeadAccepted(_Lead, frozen=True, kw_only=True, gc=False, tag="lead.accepted"):
    """A user of the CRM accepted an incoming lead, which became `lead_id`."""


class LeadDeclined(_Lead, frozen=True, kw_only=True, gc=False, tag="lead.declined"):
    """An incoming lead was declined."""


class LeadLinked(_Lead, frozen=True, kw_only=True, gc=False, tag="lead.linked"):
    """An incoming lead was joined with an existing lead."""


class TemplateReview(Event, frozen=True, kw_only=True, gc=False, tag="template.review"):
    """The reviews of a message template, one per source. `kind` is the template's type in Kommo: `waba`.

    `changed` is Kommo's `updated_at`, in unix seconds. The text of the template is only in Kommo.
    """

    template_id: int
    kind: str | None = None
    name: str | None = None
    changed: int = 0
    reviews: list[Review] = []


class ConflictNoticed(Event, frozen=True, kw_only=True, gc=False, tag="conflict.noticed"):
    """Two facts exclude each other; the first recorded stands.

    `about` is "content": the same id came again with other content. It is "message_id": the receiving side
    named the message `remote_id`, which names another message. It is "conversation_id": what came with the
    message names `remote_id` as its conversation, which is another customer's.
    """

    sender: Party
    content: Content
    source: str | None = None
    about: Literal["content", "message_id", "conversation_id"] = "content"
    remote_id: str | None = None


Reported: TypeAlias = (
    MessageEdited
    | MessageDeleted
    | MessageDelivered
    | MessageRead
    | MessageFailed
    | ReactionAdded
    | ReactionRemoved
)
Status: TypeAlias = MessageDelivered | MessageRead | MessageFailed
Reaction: TypeAlias = ReactionAdded | ReactionRemoved
ChannelEvent: TypeAlias = ChannelRegistered | ChannelChanged | ChannelConnected | ChannelDisconnected
ConversationEvent: TypeAlias = (
    ConversationStarted | ConversationBound | ConversationMerged | ConversationLinked
)
DeliveryEvent: TypeAlias = DeliveryCompleted | DeliveryDeferred | DeliveryParked | DeliveryResumed
MessageEvent: TypeAlias = (
    MessageSent
    | MessageEdited
    | MessageDeleted
    | MessageAccepted
    | MessageNamed
    | Status
    | Reaction
    | ConflictNoticed
)
AccountEvent: TypeAlias = AccountAuthorized | AccountWithdrawn
InstallEvent: TypeAlias = AccountMoved | SourceMade | AccountSubscribed
TalkEvent: TypeAlias = TalkAdded | TalkUpdated
LeadEvent: TypeAlias = LeadReceived | LeadAccepted | LeadDeclined | LeadLinked
CaseEvent: TypeAlias = TalkEvent | LeadEvent | TemplateReview
AnyEvent: TypeAlias = (
    ChannelEvent
    | ConversationEvent
    | MessageEvent
    | TypingStarted
    | DeliveryEvent
    | AccountEvent
    | TalkEvent
    | LeadEvent
    | MessageMirrored  # New types go to the end, because the view `events` stores a type as its index here.
    | TemplateReview
    | InstallEvent
)

encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder(AnyEvent).decode


TAGS: dict[type, str] = {kind: str(kind.__struct_config__.tag) for kind in get_args(AnyEvent)}


def tag(event: AnyEvent) -> str:
    """Returns the permanent name of the event's type."""
    return TAGS[type(event)]


def author(sent: MessageSent) -> Author:
    """Returns the side that sent a message: the messenger also if the business wrote on its own phone."""
    return sent.sent_by or ("messenger" if sent.direction == "in" else "kommo")
