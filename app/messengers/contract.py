"""Schema of the actions a messenger may post; unknown fields are ignored.

What a type cannot express is in `checks`. The fields of a message are those of `domain/content` that travel
from the messenger.
"""

from datetime import datetime
from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta, Struct

from app.limits import ID_CHARACTERS_MAX, INTEGER_MAX, OTHER_FAILURE
from domain.content import MessageType, Way, carrying

# Chosen: a messenger repeats the action while somebody goes on writing.
TYPING_MS_MAX = 60_000

Name = Annotated[str, Meta(min_length=1, max_length=ID_CHARACTERS_MAX)]
Words = Annotated[str, Meta(max_length=1024)]
# Spaces pass within it, for real links have them; control characters and a line end do not.
URL_PATTERN = r"^[hH][tT][tT][pP][sS]?://[^\x00-\x20/\x7f-\x9f][^\x00-\x1f\x7f-\x9f]*$(?!\n)"
Url = Annotated[str, Meta(pattern=URL_PATTERN, max_length=4096)]
Count = Annotated[int, Meta(ge=0, le=INTEGER_MAX)]
Moment = Annotated[datetime, Meta(tz=True)]
Degrees = Annotated[float, Meta(ge=-180, le=180)]


class Sender(Struct, frozen=True):
    """The acting person, by the messenger's id; `user_id` is the amojo id of a manager."""

    id: Name
    name: Words
    phone: Words | None = None
    email: Words | None = None
    avatar: Url | None = None
    profile_link: Url | None = None
    user_id: Name | None = None


class Actor(Struct, frozen=True):
    """A `Sender` that may have no name."""

    id: Name
    name: Words | None = None
    user_id: Name | None = None


class Location(Struct, frozen=True):
    """Degrees."""

    lon: Degrees
    lat: Annotated[float, Meta(ge=-90, le=90)]


class Contact(Struct, frozen=True):
    """A shared address-book entry."""

    name: Words
    phone: Words


class Post(Struct, frozen=True, omit_defaults=True):
    """The post that a comment is on: then the message is that comment."""

    id: Name
    url: Url
    preview_url: Url | None = None
    preview_permalink: Url | None = None
    username: Words | None = None
    caption: str | None = None


@carrying(Way.FROM_MESSENGER, {str: Words, int: Count})
class Message(Struct, frozen=True):
    """A message's content; `checks.NEEDS` has what each type needs.

    `file_size` is in bytes, `media_duration` in seconds.
    """

    type: MessageType
    text: str | None = None
    media: Url | None = None
    sticker_id: Name | None = None
    location: Location | None = None
    contact: Contact | None = None
    post: Post | None = None


class Author(Struct, frozen=True):
    """The author of a quoted message; `user_id` is the amojo id of a manager."""

    name: Words
    id: Name | None = None
    user_id: Name | None = None


class ReplyTo(Struct, frozen=True):
    """The messenger's id of the message that is answered.

    With `message`, `sender` and `at` Kommo shows it also if it was written before the channel was connected.
    """

    message_id: Name
    message: Message | None = None
    sender: Author | None = None
    at: Moment | None = None


class Forward(Struct, frozen=True):
    """A forwarded message: by the messenger's id of it, quoted in full, or both."""

    message_id: Name | None = None
    message: Message | None = None
    sender: Author | None = None
    at: Moment | None = None


class Forwards(Struct, frozen=True):
    """The forwarded message, and its conversation; Kommo takes one message."""

    messages: Annotated[list[Forward], Meta(min_length=1, max_length=1)]
    conversation_id: Name | None = None


class Source(Struct, frozen=True):
    """One of Kommo's sources, whose ids are up to 40 printable ASCII characters."""

    external_id: Annotated[str, Meta(pattern=r"^[ -~]{1,40}$(?!\n)")]


class Sent(Struct, frozen=True, tag="message.sent"):
    """A customer wrote; or ("out") the business did, on its own phone, and `receiver` is the customer."""

    conversation_id: Name
    message_id: Name
    at: Moment
    sender: Sender
    message: Message
    account_id: str | None = None
    reply_to: ReplyTo | None = None
    forwards: Forwards | None = None
    source: Source | None = None
    silent: bool = False
    direction: Literal["in", "out"] = "in"
    receiver: Sender | None = None


class ReportedStatus(Struct, frozen=True):
    """How far an edited message has come; `code` (901..905) and `text` are of a failure."""

    status: Literal["delivered", "read", "failed"]
    code: int = OTHER_FAILURE
    text: Words = ""


class Edited(Struct, frozen=True, tag="message.edited"):
    """A customer changed a message."""

    conversation_id: Name
    message_id: Name
    at: Moment
    message: Message
    account_id: str | None = None
    delivery_status: ReportedStatus | None = None


class Deleted(Struct, frozen=True, tag="message.deleted"):
    """A customer took a message back."""

    conversation_id: Name
    message_id: Name
    at: Moment
    account_id: str | None = None


class Status(Struct, frozen=True):
    """How far a message of ours has come: `message_id` as the messenger answered, or `id` as we gave it."""

    conversation_id: Name
    at: Moment
    message_id: Name | None = None
    id: str | None = None
    account_id: str | None = None


class Delivered(Status, frozen=True, tag="message.delivered"):
    """Our message is on the customer's device."""


class Read(Status, frozen=True, tag="message.read"):
    """The customer saw our message."""


class Failed(Status, frozen=True, tag="message.failed"):
    """Our message will not arrive."""

    code: int = OTHER_FAILURE
    text: Words = ""


class Typing(Struct, frozen=True, tag="typing"):
    """A customer is writing; Kommo shows it for `duration_ms`."""

    conversation_id: Name
    at: Moment
    sender: Actor
    account_id: str | None = None
    duration_ms: Annotated[int, Meta(ge=1, le=TYPING_MS_MAX)] | None = None


class Reaction(Struct, frozen=True):
    """A reaction to a message, which is named as in `Status`."""

    conversation_id: Name
    at: Moment
    sender: Actor
    message_id: Name | None = None
    id: str | None = None
    account_id: str | None = None


class ReactionAdded(Reaction, frozen=True, tag="reaction.added"):
    """A customer reacted."""

    emoji: Annotated[str, Meta(min_length=1, max_length=64)] = msgspec.field(default="")


class ReactionRemoved(Reaction, frozen=True, tag="reaction.removed"):
    """A customer took a reaction back."""

    emoji: Annotated[str, Meta(max_length=64)] = ""


Action: TypeAlias = (
    Sent | Edited | Deleted | Delivered | Read | Failed | Typing | ReactionAdded | ReactionRemoved
)
STATUSES: dict[type, Literal["delivered", "read", "failed"]] = {
    Delivered: "delivered",
    Read: "read",
    Failed: "failed",
}
