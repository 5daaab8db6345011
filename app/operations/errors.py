"""Errors of operations: the class says whose fault it is, the message says what to do about it.

    OperationError
    ├── InvalidInput       theirs: a value does not fit; `faults` has each one by its JSON path
    ├── AccessDenied       theirs: the caller does not prove who they are
    ├── NotFound           theirs: nothing has this name or id
    ├── StateConflict      theirs: the request does not fit what is recorded, connected or configured
    ├── NotPossible        theirs: Kommo understands the request and cannot carry it out
    ├── KommoFailed        Kommo's: Kommo refuses us or gives no answer; nothing is recorded
    ├── NoRoom             ours: the disk is full
    └── NotYet             nobody's: the same request succeeds after `retry_after` seconds
        ├── LedgerBusy
        └── ViewsBehind

A rule that several operations check has a class of its own, next to the operation. Nothing here knows HTTP:
the one table from these classes to statuses is `PROBLEMS` in `service/application.py`.
"""

from collections.abc import Sequence
from typing import ClassVar, TypeAlias

from app.http_client import RETRIED, Answer
from app.printable import printable

RETRY_SECONDS = 1  # The ledger and the views catch up within a second unless something is down.
Faults: TypeAlias = Sequence[tuple[str, str]]


class OperationError(Exception):
    """An operation was not carried out; the message is written for its caller, MESSAGE if there is one only.

    The message is ours and may stand in a log; `text` is the other side's, which only the caller is shown.
    `faults` are pairs of a JSON path and a message, where single values are at fault. `position` is that of
    the event that stands in the way, if there is one.
    """

    MESSAGE: ClassVar[str] = ""

    def __init__(
        self, message: str = "", *, faults: Faults = (), position: int | None = None, text: str = ""
    ) -> None:
        super().__init__(message or self.MESSAGE)
        self.faults = faults
        self.position = position
        self.text = text

    @property
    def detail(self) -> str:
        """The message for the caller, with the other side's text as one line."""
        return f"{self}; Kommo says: {printable(self.text)}" if self.text else str(self)


class InvalidInput(OperationError):
    """A value does not fit."""

    @classmethod
    def at(cls, path: str, message: str) -> "InvalidInput":
        """The value at this JSON path does not fit."""
        return cls(f"{path}: {message}", faults=[(path, message)])


class AccessDenied(OperationError):
    """The caller does not prove that they may do this."""


class NotFound(OperationError):
    """Nothing has this name or id."""


class StateConflict(OperationError):
    """The request does not fit what is recorded, connected or configured."""


class NotPossible(OperationError):
    """Kommo understands the request and cannot carry it out."""


class KommoFailed(OperationError):
    """Kommo refuses with `answer`, or gives none (None); nothing is recorded."""

    def __init__(self, message: str, answer: Answer | None = None, *, text: str = "") -> None:
        super().__init__(message, text=text or (answer.text if answer else ""))
        self.answer = answer

    @property
    def is_transient(self) -> bool:
        """Whether the same call may succeed later although nobody changes anything."""
        answer = self.answer
        return answer is None or answer.html or answer.status in RETRIED or answer.status >= 500


class NoRoom(OperationError):
    """The disk is full."""


class NotYet(OperationError):
    """The same request succeeds after `retry_after` seconds."""

    def __init__(self, message: str, retry_after: int = RETRY_SECONDS) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class LedgerBusy(NotYet):
    """The ledger is full or out of reach; `advice` says how to repeat the request."""

    def __init__(self, advice: str = "send it again") -> None:
        super().__init__(f"the ledger cannot take it now: {advice}")


class ViewsBehind(NotYet):
    """The views have not reached a position within the time that a reader waits."""

    def __init__(self, position: int) -> None:
        super().__init__(
            f"the views have not reached position {position} yet: ask again; if GET /v1/status shows a view "
            "that stands still, run `chatledger views retry`"
        )
