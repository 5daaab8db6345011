"""Schema of what we post to a messenger of the kind "webhook", and of its answers: `webhooks` in /schema.

The bodies are made by `webhook.request`; a test compares the two.
"""

from typing import Annotated, Literal, TypeAlias

from msgspec import Meta, Struct

from domain.content import Way, carrying
from domain.parts import Json

CallId = Annotated[str, Meta(min_length=1, max_length=255)]


class CallSender(Struct, frozen=True, omit_defaults=True):
    """Who wrote in Kommo: the amojo id of a manager or of the channel's bot, and the name if it is known."""

    id: str
    name: str | None = None


class CallReceiver(Struct, frozen=True, omit_defaults=True):
    """The customer: the messenger's own id, and the phone if Kommo has one.

    A customer to whom a manager writes first has a phone only.
    """

    id: str | None = None
    phone: str | None = None


class CallReply(Struct, frozen=True, omit_defaults=True):
    """The messenger's id of the message that is answered, or its content if the messenger never had it."""

    message_id: str | None = None
    quoted: Json | None = None


class CallSource(Struct, frozen=True):
    """The source of Kommo that the message goes through."""

    external_id: str


@carrying(Way.TO_MESSENGER)
class CallMessage(Struct, frozen=True):
    """A message's content; the fields are those of an action's message, and some more."""

    type: str


class MessageSend(Struct, frozen=True, tag_field="type", tag="message.send", omit_defaults=True):
    """A manager, or an operator, wrote to a customer: show it to them, and answer with your id of it.

    `id` is ours of the message, the same in every repeat; `webhook-id` is too. `conversation_id` is null when
    a manager writes first: then open a conversation with `receiver`, and answer with its id as well.
    """

    id: str
    account_id: str
    conversation_id: str | None
    message: CallMessage
    sender: CallSender
    receiver: CallReceiver
    at: str
    reply_to: CallReply | None = None
    source: CallSource | None = None


class TypingCall(Struct, frozen=True, tag_field="type", tag="typing", omit_defaults=True):
    """A manager is typing until `expires_at`; `post_id` is the post under which a comment is written."""

    account_id: str
    conversation_id: str
    sender: CallSender
    expires_at: str
    post_id: str | None = None


class ReactionAddedCall(Struct, frozen=True, tag_field="type", tag="reaction.added", omit_defaults=True):
    """A manager reacted to a message; `message_id` is the messenger's own id of it."""

    account_id: str
    conversation_id: str
    message_id: str | None
    sender: CallSender
    at: str
    emoji: str = ""


class ReactionRemovedCall(Struct, frozen=True, tag_field="type", tag="reaction.removed", omit_defaults=True):
    """A manager took the reaction back."""

    account_id: str
    conversation_id: str
    message_id: str | None
    sender: CallSender
    at: str
    emoji: str = ""


class Probe(Struct, frozen=True, tag_field="type", tag="probe"):
    """`chatledger doctor` asks whether you take our calls: answer with `{}`, and do nothing.

    Answer any type that you do not know in this way: there may be more types later.
    """

    id: str
    at: str


Call: TypeAlias = MessageSend | TypingCall | ReactionAddedCall | ReactionRemovedCall | Probe


class MessageTaken(Struct, frozen=True):
    """The messenger's id of the message, by which it reports what becomes of it.

    `message_id` is unique in the channel and account, or in the conversation if the channel says so. A whole
    number is read as its digits. `conversation_id` is needed where the call had none.
    """

    message_id: CallId | int
    conversation_id: CallId | int | None = None
    receiver_id: CallId | int | None = None


class CallTaken(Struct, frozen=True):
    """An empty object: nothing more is wanted."""


class CallRefused(Struct, frozen=True):
    """Why a message cannot be sent: one of Kommo's codes, 905 without one, and words for the manager."""

    code: Literal[901, 902, 903, 904, 905] = 905
    text: str = ""


# By the name under which /schema has it: the body, its answer, and the summary.
CALLS: dict[str, tuple[type[Struct], type[Struct], str]] = {
    "message.send": (MessageSend, MessageTaken, "Send a message to a customer"),
    "typing": (TypingCall, CallTaken, "Show that a manager is typing"),
    "reaction.added": (ReactionAddedCall, CallTaken, "Show a manager's reaction"),
    "reaction.removed": (ReactionRemovedCall, CallTaken, "Take a manager's reaction back"),
    "probe": (Probe, CallTaken, "Say that you take our calls"),
}
