"""How a call to Kommo or to a messenger ends, in the same words for both."""

from typing import TypeAlias

from msgspec import Struct


class Done(Struct, frozen=True):
    """Accepted. The other side's names for the message and the conversation, if it returns them.

    `recovered`: not the call itself shows it, but a look into the history of the chat.
    """

    remote_id: str | None = None
    conversation_id: str | None = None
    recovered: bool = False


class Retry(Struct, frozen=True):
    """Not now. The other side asks to wait `after_seconds`; `unknown`: it may have accepted all the same.

    `pause`: nothing else for this destination is to be tried before that either.
    """

    reason: str
    after_seconds: float = 0.0
    unknown: bool = False
    pause: bool = False


class Refused(Struct, frozen=True):
    """Refused for good: the HTTP status, Kommo's code (901..905), and the reason in words."""

    http: int
    code: int
    text: str


class Gone(Struct, frozen=True):
    """The other side does not know the channel, the account or the message (404)."""

    text: str


class Forbidden(Struct, frozen=True):
    """The other side refuses our signature, clock or address (403): someone must look."""

    text: str


Outcome: TypeAlias = Done | Retry | Refused | Gone | Forbidden
