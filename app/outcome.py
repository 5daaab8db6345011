"""How a call to Kommo or to a messenger ends, in the same words for both."""

from typing import TypeAlias

from msgspec import Struct


class Done(Struct, frozen=True):
    """Accepted. The other side's names for the message and the conversation, if it returns them.

    `recovered`: not the call itself shows it, but a look into the history of the chat. `per_conversation`:
    the name of the message is unique only within its conversation.
    """

    remote_id: str | None = None
    conversation_id: str | None = None
    recovered: bool = False
    per_conversation: bool = False


class Retry(Struct, frozen=True):
    """Not now. The other side asks to wait `after_seconds`; `unknown`: it may have accepted all the same.

    `pause`: nothing else for this destination is to be tried before that either.
    """

    reason: str
    after_seconds: float = 0.0
    unknown: bool = False
    pause: bool = False


class Refused(Struct, frozen=True):
    """Refused for good: the HTTP status, Kommo's code (901..905), and the other side's reason in words.

    `sure`: the reason is the contract's, so that no part of the message can be to blame.
    """

    http: int
    code: int
    text: str
    sure: bool = False


class Gone(Struct, frozen=True):
    """The other side does not know the channel, the account or the message (404)."""

    text: str


class Forbidden(Struct, frozen=True):
    """The other side refuses us and not the message, until somebody changes something there or here.

    Kommo: the secret, the clock, the address or the account's plan (401, 402, 403, 423). A messenger: the
    channel's address or secret (401, 403, 404, 405, 410).
    """

    text: str
    http: int = 403


Outcome: TypeAlias = Done | Retry | Refused | Gone | Forbidden
