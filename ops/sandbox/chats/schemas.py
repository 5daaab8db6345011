"""The requests of Kommo's Chats API, typed as strictly as documented: null and other types are refused.

Unknown fields are ignored. Where the documents disagree, every documented variant is taken.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

Id = Annotated[str, Meta(min_length=1, max_length=255)]
External = Annotated[str, Meta(min_length=1, max_length=40, pattern=r"^[\x20-\x7e]+$")]
Seconds = Annotated[int, Meta(ge=0, le=2**33)]
Millis = Annotated[int, Meta(ge=0, le=2**43)]
Size = Annotated[int, Meta(ge=0, le=2**53)]
Link = Annotated[str, Meta(pattern=r"^https?://")]
Kind = Literal["text", "contact", "file", "video", "picture", "voice", "audio", "sticker", "location"]

MEDIA = ("file", "video", "picture", "voice", "audio")


class Connect(Struct):
    account_id: Id
    hook_api_version: Literal["v1", "v2"] = "v1"
    title: str | UnsetType = UNSET
    is_time_window_disabled: bool = False


class Disconnect(Struct):
    account_id: Id


class Source(Struct):
    external_id: External


class Profile(Struct):
    phone: str | UnsetType = UNSET
    email: str | UnsetType = UNSET


class Person(Struct):
    """`sender` and `receiver` of a message, and the `user` of a new chat."""

    id: Id
    name: str
    ref_id: str | UnsetType = UNSET
    avatar: str | UnsetType = UNSET
    profile: Profile | UnsetType = UNSET
    profile_link: str | UnsetType = UNSET


class NewChat(Struct):
    conversation_id: Id
    user: Person
    source: Source | UnsetType = UNSET


class Location(Struct):
    lon: float
    lat: float


class Contact(Struct):
    name: str
    phone: str


class StatusOnEdit(Struct):
    status_code: int
    error_code: int | UnsetType = UNSET
    error: str | UnsetType = UNSET


class SharedPost(Struct):
    url: str
    preview_link: str | UnsetType = UNSET
    preview_permalink: str | UnsetType = UNSET
    type: Literal["post"] = "post"
    site_name: str | UnsetType = UNSET


class Post(Struct):
    id: str
    url: str
    preview_url: str | UnsetType = UNSET
    preview_permalink: str | UnsetType = UNSET
    username: str | UnsetType = UNSET
    caption: str | UnsetType = UNSET


class Content(Struct, omit_defaults=True):
    """The content of a message, `message` in the documents."""

    type: Kind
    text: str | UnsetType = UNSET
    media: Link | UnsetType = UNSET
    file_name: str | UnsetType = UNSET
    file_size: Size | UnsetType = UNSET
    media_duration: Size | UnsetType = UNSET
    sticker_id: str | UnsetType = UNSET
    location: Location | UnsetType = UNSET
    contact: Contact | UnsetType = UNSET
    callback_data: str | UnsetType = UNSET
    delivery_status: StatusOnEdit | UnsetType = UNSET
    shared_post: SharedPost | UnsetType = UNSET
    post: Post | UnsetType = UNSET

    def problem(self, *, edit: bool = False) -> str:
        """The missing field that its type needs; empty if there is none."""
        if self.type == "text" and not self.text:
            return "message.text: required for text"
        if self.type in MEDIA and self.media is UNSET and not edit:
            return f"message.media: required for {self.type}"
        if self.type == "sticker" and self.media is UNSET and self.sticker_id is UNSET and not edit:
            return "message.media: required for sticker without sticker_id"
        if self.type == "location" and self.location is UNSET:
            return "message.location: required for location"
        if self.type == "contact" and self.contact is UNSET:
            return "message.contact: required for contact"
        return ""


class EmbeddedSender(Struct):
    id: str | UnsetType = UNSET
    ref_id: str | UnsetType = UNSET
    name: str | UnsetType = UNSET


class Embedded(Struct, omit_defaults=True):
    """The quoted or forwarded message: by an id, or in full."""

    id: Id | UnsetType = UNSET
    msgid: Id | UnsetType = UNSET
    type: Kind | UnsetType = UNSET
    text: str | UnsetType = UNSET
    timestamp: Seconds | UnsetType = UNSET
    msec_timestamp: Millis | UnsetType = UNSET
    sender: EmbeddedSender | UnsetType = UNSET
    media: str | UnsetType = UNSET
    file_name: str | UnsetType = UNSET
    file_size: Size | UnsetType = UNSET
    media_duration: Size | UnsetType = UNSET
    location: Location | UnsetType = UNSET
    contact: Contact | UnsetType = UNSET

    def problem(self) -> str:
        """What it lacks if it is given in full; empty if nothing."""
        if self.id is not UNSET or self.msgid is not UNSET:
            return ""
        for name in ("type", "timestamp", "msec_timestamp", "sender"):
            if getattr(self, name) is UNSET:
                return f"{name}: required without id and msgid"
        if self.type == "text" and self.text is UNSET:
            return "text: required for text"
        return ""


class ReplyTo(Embedded, omit_defaults=True):
    """The quoted message is in `message`, or, in one of the documents, stands here itself."""

    message: Embedded | UnsetType = UNSET

    @property
    def quoted(self) -> Embedded:
        """The quoted message, wherever it stands."""
        return self.message if isinstance(self.message, Embedded) else self


class Forwards(Struct):
    messages: Annotated[list[Embedded], Meta(min_length=1, max_length=1)]
    conversation_ref_id: str | UnsetType = UNSET
    conversation_id: str | UnsetType = UNSET


class NewMessage(Struct):
    timestamp: Seconds
    msec_timestamp: Millis
    msgid: Id
    conversation_id: Id
    sender: Person
    message: Content
    receiver: Person | UnsetType = UNSET
    conversation_ref_id: Id | UnsetType = UNSET
    silent: bool = False
    source: Source | UnsetType = UNSET
    reply_to: ReplyTo | UnsetType = UNSET
    forwards: Forwards | UnsetType = UNSET


class EditMessage(Struct):
    """Sender, receiver, source, reply_to and forwards are ignored on an edit."""

    timestamp: Seconds
    msec_timestamp: Millis
    conversation_id: Id
    message: Content
    msgid: Id | UnsetType = UNSET
    id: Id | UnsetType = UNSET
    silent: bool = False


class Envelope(Struct):
    event_type: Literal["new_message", "edit_message"]
    payload: Raw


class DeliveryStatus(Struct):
    """Variant A has `msgid` and `delivery_status`, variant B `status_code`; both at once must agree."""

    msgid: str | UnsetType = UNSET
    delivery_status: int | UnsetType = UNSET
    status_code: int | UnsetType = UNSET
    error_code: int | UnsetType = UNSET
    error: str | UnsetType = UNSET


class TypingSender(Struct):
    id: Id


class Typing(Struct):
    conversation_id: Id
    sender: TypingSender
    duration_ms: Annotated[int, Meta(ge=0, le=600_000)] = 5000


class Reactor(Struct):
    id: Id | UnsetType = UNSET
    ref_id: Id | UnsetType = UNSET


class React(Struct):
    user: Reactor
    type: Literal["react", "unreact"]
    conversation_id: Id | UnsetType = UNSET
    conversation_ref_id: Id | UnsetType = UNSET
    id: Id | UnsetType = UNSET
    msgid: Id | UnsetType = UNSET
    emoji: Annotated[str, Meta(min_length=1, max_length=64)] | UnsetType = UNSET


CONNECT = msgspec.json.Decoder(Connect)
DISCONNECT = msgspec.json.Decoder(Disconnect)
NEW_CHAT = msgspec.json.Decoder(NewChat)
ENVELOPE = msgspec.json.Decoder(Envelope)
NEW_MESSAGE = msgspec.json.Decoder(NewMessage)
EDIT_MESSAGE = msgspec.json.Decoder(EditMessage)
DELIVERY_STATUS = msgspec.json.Decoder(DeliveryStatus)
TYPING = msgspec.json.Decoder(Typing)
REACT = msgspec.json.Decoder(React)
