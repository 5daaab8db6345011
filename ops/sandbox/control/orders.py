"""The orders of the control API; misspelt and missing fields are refused by name."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from ops.sandbox.chats.manager import Receiver

Name = Annotated[str, Meta(max_length=4096)]


class ManagerMessage(Struct, forbid_unknown_fields=True, kw_only=True):
    """`message` goes into the hook as it is: type, text, media, markup, template, reply_to, post …

    `template_id` begins it with one of the account's templates, `params` says what its markers mean.
    `source` is the external_id a new chat is written by (write first).
    """

    message: dict[str, object] = msgspec.field(default_factory=dict)
    template_id: int = 0
    params: dict[str, str] = msgspec.field(default_factory=dict)
    source: Name = ""
    scope_id: Name = ""
    chat_id: Name = ""
    conversation_id: Name = ""
    phone: Name = ""
    receiver: Receiver | None = None
    sender_id: Name = ""


class ManagerTyping(Struct, forbid_unknown_fields=True, kw_only=True):
    scope_id: Name = ""
    chat_id: Name = ""
    conversation_id: Name = ""
    phone: Name = ""
    sender_id: Name = ""
    variant: Literal["sample", "table"] = "sample"


class ManagerReaction(Struct, forbid_unknown_fields=True, kw_only=True):
    """`id` is Kommo's, `msgid` the integration's; an empty emoji takes the reaction away."""

    scope_id: Name = ""
    id: Name = ""
    msgid: Name = ""
    emoji: Name = ""
    sender_id: Name = ""
    variant: Literal["sample", "table"] = "table"


class RawHook(Struct, forbid_unknown_fields=True, kw_only=True):
    """Any bytes as a signed hook: `body` as JSON, or `raw` as they are."""

    scope_id: Name = ""
    body: dict[str, object] | None = None
    raw: str = ""


class Who(Struct, forbid_unknown_fields=True):
    id: Name = "u-1"
    name: Name = ""
    phone: Name = ""


class CustomerMessage(Struct, forbid_unknown_fields=True, kw_only=True):
    """`message` or `text`; ids are made if they are not given; the rest goes along as it is."""

    conversation_id: Name = ""
    sender: Who = msgspec.field(default_factory=Who)
    message: dict[str, object] | None = None
    text: str = ""
    message_id: Name = ""
    at: str = ""
    reply_to: Name = ""
    source: dict[str, object] | None = None
    silent: bool | None = None


class CustomerEdit(Struct, forbid_unknown_fields=True, kw_only=True):
    message_id: Name
    message: dict[str, object]
    at: str = ""


class CustomerDelete(Struct, forbid_unknown_fields=True, kw_only=True):
    message_id: Name
    at: str = ""


class CustomerStatus(Struct, forbid_unknown_fields=True, kw_only=True):
    """Of a message that came by a push; `message_id` is the messenger's, `id` the ledger's."""

    status: Literal["delivered", "read", "failed"]
    conversation_id: Name = ""
    message_id: Name = ""
    id: Name = ""
    code: int | None = None
    text: str = ""
    at: str = ""


class CustomerTyping(Struct, forbid_unknown_fields=True, kw_only=True):
    conversation_id: Name
    sender: Who = msgspec.field(default_factory=Who)
    at: str = ""


class CustomerReaction(Struct, forbid_unknown_fields=True, kw_only=True):
    """An empty emoji takes the reaction away."""

    message_id: Name
    emoji: Name = ""
    sender: Who = msgspec.field(default_factory=Who)
    conversation_id: Name = ""
    at: str = ""
