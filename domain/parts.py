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
