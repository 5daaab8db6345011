"""Schema of the hooks of Kommo's Chats API, version v2, with all that a real hook may have in another type.

Fields that nothing here reads are ignored. Kommo leaves out what is not there, or sends null, "", 0 or, since
PHP writes an empty object so, []. It may write a number as a text. See `hooks` for how those are repaired.
"""

import msgspec
from msgspec import Struct

from app.limits import is_uuid
from domain.content import Way, carrying
from domain.parts import Contact, Json, Location


class Participant(Struct, frozen=True):
    """A user or a customer: `id` is Kommo's, `client_id` the messenger's id of a customer."""

    id: str | None = None
    client_id: str | None = None
    name: str | None = None
    phone: str | None = None
    email: str | None = None


class HookConversation(Struct, frozen=True):
    """A conversation: `id` is Kommo's, `client_id` the messenger's, absent in a chat that Kommo started."""

    id: str | None = None
    client_id: str | None = None


class HookSource(Struct, frozen=True):
    """The source that a chat belongs to."""

    external_id: str | None = None


class MessageNames(Struct, frozen=True):
    """A message that is answered or reacted to: `id` is Kommo's, `msgid` (or `client_id`) ours."""

    id: str | None = None
    msgid: str | None = None
    client_id: str | None = None

    @property
    def ours(self) -> str | None:
        """Our id of the message, if it is one of ours."""
        return next((name for name in (self.msgid, self.client_id) if name and is_uuid(name)), None)


@carrying(Way.FROM_KOMMO, {int: int | str})
class HookMessage(Struct, frozen=True):
    """The message itself, with the fields of a content that travel from Kommo."""

    id: str
    type: str = "text"
    text: str | None = None
    tag: str | None = None
    location: Location | None = None
    contact: Contact | None = None
    markup: Json | list[object] | None = None
    template: Json | list[object] | None = None
    reply_to: Json | list[object] | None = None
    forwards: Json | None = None
    post: Json | None = None
    shared_post: Json | None = None


class Outgoing(Struct, frozen=True):
    """A manager wrote to a customer."""

    message: HookMessage
    conversation: HookConversation
    sender: Participant = Participant()
    receiver: Participant = Participant()
    source: HookSource | None = None
    timestamp: int | None = None
    msec_timestamp: int | None = None


class TypingHook(Struct, frozen=True):
    """A manager is writing. `user` stands here or beside this object; `expired_at` is in unix seconds."""

    conversation: HookConversation
    user: Participant | None = None
    expired_at: int | None = None
    post_id: object = None


class ReactionHook(Struct, frozen=True):
    """A manager reacted to a message, which is an object or only its `msgid`."""

    conversation: HookConversation
    type: str
    user: Participant = Participant()
    message: MessageNames | None = None
    msgid: str | None = None
    emoji: str | None = None


class HookAction(Struct, frozen=True):
    """A typing or a reaction."""

    typing: TypingHook | None = None
    reaction: ReactionHook | None = None
    user: Participant | None = None


class Hook(Struct, frozen=True):
    """A v2 hook: `message` or `action`; `time` is in unix seconds. A v1 hook has `conversation_id` here."""

    account_id: str | None = None
    time: int | None = None
    message: Outgoing | None = None
    action: HookAction | None = None
    conversation_id: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)
