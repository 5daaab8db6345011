"""DOC"""

from typing import TypeAlias

from msgspec import Struct

from app.kommo.chats.payloads import Created
from app.outcome import Done, Forbidden, Gone, Outcome, Refused, Retry
from domain import events as e

Pushed: TypeAlias = Created | e.MessageEdited | e.Status | e.Reaction | e.TypingStarted

DISCONNECTED = "disconnected: the channel is not connected to the account"


class Job(Struct):
    """An event to push, at its position.

    `again`: it may have been tried before, by us or by a process that is gone; `unknown`: an attempt may have
    been taken without our learning of it. `since` is when the first attempt failed and `tried_at` when the
    last one began, in seconds of the loop. `resting`: it waits for its next attempt. `called`: the attempt at
    hand has gone so far that the other side may know of it. `broken`: it met an error that no rule expects.
    """

    position: int
    event: Pushed
    again: bool = False
    unknown: bool = False
    attempts: int = 0
    reason: str = ""
    since: float = 0.0
    tried_at: float = 0.0
    reconnected: bool = False
    resting: bool = False
    called: bool = False
    broken: bool = False


class Superseded(Struct, frozen=True):
    """It is no longer wanted, for this reason."""

    reason: str


class Settled(Struct, frozen=True):
    """It is done already: the ledger has its outcome, whoever brought it about."""


class Disconnected(Struct, frozen=True):
    """The channel is not connected to the account."""


class Missing(Struct, frozen=True):
    """Kommo does not have the message that it is about, and will not before someone looks."""

    reason: str


Result: TypeAlias = Outcome | Superseded | Settled | Disconnected | Missing


def _live(event: Pushed) -> bool:
    """Whether somebody waits for it: what is imported gives way."""
    return not (isinstance(event, e.MessageSent) and event.imported)


def classify(result: Result) -> str:
    """A word for metrics."""
    match result:
        case Done():
            return "done"
        case Refused():
            return "refused"
        case Retry() | Forbidden():
            return "deferred"
        case Gone() | Disconnected() | Missing():
            return "gone"
        case Superseded() | Settled():
            return "superseded"


def _unknown(result: Result) -> bool:
    """Whether Kommo may say by it that it does not know the message: with 404, of an edit with 400."""
    return isinstance(result, Gone) or (isinstance(result, Refused) and result.http == 400)
