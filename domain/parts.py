"""What events are made of; of an event, personal data lives in its parties, contents and quotes only."""

from typing import Literal, TypeAlias

from msgspec import Struct

Json: TypeAlias = dict[str, object]
Side: TypeAlias = Literal["kommo", "messenger"]
Direction: TypeAlias = Literal["in", "out"]
Author: TypeAlias = Literal["kommo", "messenger", "operator"]


class Party(Struct, frozen=True, omit_defaults=True, gc=False):
    """Somebody who writes or reads. `id` is what the acting side calls them; `client_id` is the messenger's
    name of a receiver that Kommo speaks of, `ref_id` Kommo's name of a sender that the messenger speaks of.
    """

    id: str | None = None
    name: str | None = None
    phone: str | None = None
    email: str | None = None
    avatar: str | None = None
    profile_link: str | None = None
    client_id: str | None = None
    ref_id: str | None = None


class Location(Struct, frozen=True, gc=False):
    """Degrees, WGS 84."""

    lon: float
    lat: float


class Contact(Struct, frozen=True, gc=False):
    """A shared address-book entry."""

    name: str
    phone: str


class Reply(Struct, frozen=True, omit_defaults=True, gc=False):
    """What a message answers. `id` is as its sender named it; the rest is known once that is resolved.

    `message` is our id, `sent_by` who sent it and `own_id` what they call it; `remote_id` is what the side
    calls it that it was sent to. `quoted` is the message as its quoter tells it, kept while it is not known.
    """

    id: str
    message: str | None = None
    sent_by: Author | None = None
    own_id: str | None = None
    remote_id: str | None = None
    quoted: Json | None = None


class Ends(Struct, frozen=True, omit_defaults=True, gc=False):
    """A conversation's names: the messenger's `conversation_id` and Kommo's `chat_id`."""

    conversation_id: str | None = None
    chat_id: str | None = None


class Content(Struct, frozen=True, omit_defaults=True):
    """A message's content, and the conversation as both sides name it.

    type: text, picture, file, video, voice, audio, sticker, location or contact. `file_size` is in bytes,
    `media_duration` in seconds. `forwards_cut` says how many forwarded messages were too long to keep;
    `forwarded` is the forwarded message of a customer, if it was named by an id.
    """

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
    conversation_id: str | None = None
    chat_id: str | None = None
    forwarded: Reply | None = None


class DeliveryStatus(Struct, frozen=True, omit_defaults=True, gc=False):
    """How far an edited message has come, as Kommo is told: 1 delivered, 2 read, -1 failed."""

    status_code: int
    error_code: int | None = None
    error: str | None = None


class Review(Struct, frozen=True, omit_defaults=True, gc=False):
    """How the review of a template stands for one source: `approved`, `review`, `paused` or `rejected`."""

    id: int
    source_id: int | None = None
    status: str | None = None
    reject_reason: str | None = None
