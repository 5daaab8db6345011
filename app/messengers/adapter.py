"""DOC"""

from msgspec import Struct

from domain import events as e
from domain.events import Json


class Push(Struct, frozen=True):
    """An event to tell the messenger, with what was learned since: the conversation's and messages' names."""

    event: e.MessageSent | e.TypingStarted | e.Reaction
    conversation_id: str | None = None
    message_id: str | None = None
    reply_id: str | None = None
    forwards: Json | None = None
