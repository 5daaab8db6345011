"""The pushes of chatledger as its contract defines them; one that does not fit is refused with a reason."""

import re
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

INSTANT = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$")
Id = Annotated[str, Meta(min_length=1, max_length=255)]
At = Annotated[str, Meta(pattern=INSTANT.pattern)]


class Sender(Struct):
    id: Id
    name: str = ""


class Receiver(Struct):
    id: Id | None = None
    phone: str = ""


class Quoted(Struct):
    message_id: str = ""


class Pushed(Struct, kw_only=True):
    """A push of chatledger as its contract defines it."""

    type: Literal["message.send", "typing", "reaction.added", "reaction.removed"]
    account_id: Id
    sender: Sender
    conversation_id: Id | None = None
    id: str = ""
    message: dict[str, object] | None = None
    message_id: str = ""
    receiver: Receiver | None = None
    reply_to: Quoted | None = None
    emoji: str = ""
    at: At = ""
    expires_at: At = ""


class Probe(Struct, kw_only=True, tag_field="type", tag="probe"):
    """A call of chatledger's doctor, which asks for nothing."""

    id: Id
    at: At


PROBE = msgspec.json.Decoder(Probe)
PUSHED = msgspec.json.Decoder(Pushed)


class Unfit(Exception):
    """The push is refused with this HTTP status, code and text."""

    def __init__(self, status: int, text: str, code: int = 905) -> None:
        super().__init__(text)
        self.status, self.text, self.code = status, text, code
