"""The structs that events consist of; personal data is only in parties, contents and quotes."""

from typing import Literal, TypeAlias

from msgspec import Struct

Json: TypeAlias = dict[str, object]
Side: TypeAlias = Literal["kommo", "messenger"]
Direction: TypeAlias = Literal["in", "out"]
Author: TypeAlias = Literal["kommo", "messenger", "operator"]
MessageIds: TypeAlias = Literal["per channel", "per conversation"]


# Chosen: a deployment is corrected by then, and a manager who waits for longer must know of it.
WAIT_FOR_MESSENGER = "15m"
UNITS_MS = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


class ChannelOptions(Struct, frozen=True, omit_defaults=True, gc=False):
    """How a channel's messenger speaks.

    `message_ids`: whether its ids of messages are unique in the channel and account, or in a conversation
    only. `default_account` takes what names no account in a channel that has several. `wait_for_messenger` is
    how long managers' messages wait while the messenger refuses our calls (401, 403, 404, 405, 410), before
    they fail: a number with s, m, h or d.
    """

    message_ids: MessageIds = "per channel"
    default_account: str | None = None
    wait_for_messenger: str = WAIT_FOR_MESSENGER

    @property
    def wait_ms(self) -> int:
        """`wait_for_messenger` in milliseconds."""
        return int(self.wait_for_messenger[:-1]) * UNITS_MS[self.wait_for_messenger[-1]]


class Party(Struct, frozen=True, omit_defaults=True, gc=False):
    """Somebody who writes or reads; `id` is the acting side's id for them.

    `client_id` is the messenger's id of a receiver that Kommo reports, `ref_id` Kommo's id of a sender that
    the messenger reports.
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
    """The message that another one answers or forwards. `id` comes from the sender, the rest once it is
    known.

    `message` is our id; `sent_by` is the side that sent it and `own_id` that side's id; `remote_id` is the id
    of the side that received it. `quoted` is the text that came with the reference, kept while the message is
    unknown.
    """

    id: str
    message: str | None = None
    sent_by: Author | None = None
    own_id: str | None = None
    remote_id: str | None = None
    quoted: Json | None = None


class Ends(Struct, frozen=True, omit_defaults=True, gc=False):
    """The names of a conversation: the messenger's `conversation_id` and Kommo's `chat_id`."""

    conversation_id: str | None = None
    chat_id: str | None = None


class DeliveryStatus(Struct, frozen=True, omit_defaults=True, gc=False):
    """The status that Kommo gets with an edited message: 1 delivered, 2 read, -1 failed."""

    status_code: int
    error_code: int | None = None
    error: str | None = None


class Review(Struct, frozen=True, omit_defaults=True, gc=False):
    """The review of a template for one source: `approved`, `review`, `paused` or `rejected`."""

    id: int
    source_id: int | None = None
    status: str | None = None
    reject_reason: str | None = None
