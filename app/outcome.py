"""What can become of an attempt to push something: each outcome says what follows, whoever was called."""

from typing import TypeAlias

from msgspec import Struct


class Done(Struct, frozen=True):
    """Taken. The other side's names for the message, the conversation and the receiver, if it told them.

    `recovered`: it said so only when asked later.
    """

    remote_id: str | None = None
    conversation_id: str | None = None
    receiver_id: str | None = None
    recovered: bool = False


class Retry(Struct, frozen=True):
    """Not now. `after_seconds` is what the other side asked to wait; `unknown`: it may have been taken.

    `pause` says that nothing else for this destination should be tried before that either.
    """

    reason: str
    after_seconds: float = 0.0
    unknown: bool = False
    pause: bool = False


class Refused(Struct, frozen=True):
    """Never: a status code of HTTP, and what the other side says about it."""

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
