"""The data that passes along delivery: a job, what it has shown so far, one push, and what a push ends in.

    lane -> settle -> prepare -> destinations, gate -> decide -> the ledger

Each file is called by the one before it, gets a value and returns a value; none calls back.
"""

from collections.abc import Callable
from typing import Literal, TypeAlias

import msgspec
from msgspec import Struct

from app.channels.directory import Channel, Connection
from app.database.leases import Fence
from app.kommo.chats.payloads import Created
from app.messengers import adapter
from app.outcome import Forbidden, Gone, Outcome, Refused
from domain import events as e
from domain import ids

Pushed: TypeAlias = Created | e.MessageEdited | e.Status | e.Reaction | e.TypingStarted
# The lane of an event: its conversation and destination. What is imported has a lane for each partition,
# channel and account instead of one for each conversation.
Imports: TypeAlias = tuple[int, str, str | None]
LaneKey: TypeAlias = tuple[str | None, str, Imports | None]
# A channel, an account and a side: what rests as one.
RestKey: TypeAlias = tuple[str, str, str]

DISCONNECTED = "disconnected: the channel is not connected to the account"
UNCONNECTED = "waiting for a connection: the channel is not connected to the account"


class Head(Struct, frozen=True, gc=False):
    """The fields of a stored event that say whether it is to be delivered, where, and in which lane.

    Measured: 0.5 us for a message, half of what it takes to decode the message or to search its bytes.
    """

    type: str
    channel: str
    account: str | None = None
    conversation: str | None = None
    push: str | None = None
    imported: bool = False

    @property
    def resumes(self) -> bool:
        """Whether the event takes up a parked delivery."""
        return self.type == "delivery.resumed"


read_head = msgspec.json.Decoder(Head).decode


class Doubt(Struct, frozen=True):
    """An answer that may not mean what it says. The next pass looks elsewhere before it is acted on.

    In the ledger: Kommo does not know the message (404, or 400 for an edit), and its sending may be open.
    In Kommo's history: Kommo refuses a message that an earlier attempt may have brought there.
    At the connection: 404 and 403 are also what a dropped connection looks like, so connect again.
    `tried_at` is when the attempt began that got the answer, in seconds of the clock.
    """

    answer: Refused | Gone | Forbidden
    look: Literal["ledger", "history", "connection"]
    tried_at: float = 0.0


class Progress(Struct, frozen=True):
    """What the attempts so far have shown.

    `again`: it may have been tried before, by this process or by one that is gone. `unknown`: an attempt may
    have been accepted although no answer came. `attempts` counts the failures and `told` those that were
    recorded; `reason` is that of the last of these, `since` the time of the first, in seconds of the clock.
    `reconnected`: the channel was connected again on its behalf. `left_out` is what the message is sent
    without, `untried` what else it can be sent without (None: it was not refused yet).
    """

    again: bool = False
    unknown: bool = False
    attempts: int = 0
    reason: str = ""
    told: int = 0
    since: float | None = None
    reconnected: bool = False
    doubt: Doubt | None = None
    left_out: tuple[str, ...] = ()
    untried: tuple[tuple[str, ...], ...] | None = None


def _nothing() -> None:
    """No lease is needed."""


class Job(Struct):
    """An event to push, at its position.

    `resting`: it waits for its next attempt. `called`: the attempt at hand has gone so far that Kommo may
    know of it. `broken`: it met an error that no rule expects, so it is only to be parked. `waits_from` is
    when it was resumed, if it was. `superseded`: a later job of the lane says what this one would have said;
    `taken_back`: it takes back the reaction that this one adds. `fence` is what its outcome is recorded
    under, and `check` raises LeaseLost once its partition is another process's.
    """

    position: int
    event: Pushed
    progress: Progress = Progress()
    resting: bool = False
    called: bool = False
    broken: bool = False
    waits_from: str = ""
    superseded: bool = False
    taken_back: bool = False
    fence: Fence | None = None
    check: Callable[[], None] = _nothing

    def call(self) -> None:
        """Note that Kommo may know of the attempt from now on."""
        self.called = True


def subject(event: Pushed) -> tuple[str, ...] | None:
    """What an event gives a new value: the message's content, or a sender's reaction to it; None: nothing.

    Of two events with one subject, the later makes the earlier needless. An edit that also reports a status
    has none.
    """
    match event:
        case e.MessageEdited(delivery_status=None):
            return "content", event.stream
        case e.ReactionAdded() | e.ReactionRemoved():
            return "reaction", event.stream, event.by, event.sender.id or ""
    return None


class Push(Struct, frozen=True):
    """Everything that one call needs, so that nothing is asked of the ledger once the call has its turn.

    `event` has the names that Kommo needs, `names` those that the messenger needs (None: it goes to Kommo).
    With a `doubt` nothing is pushed: the call clears up the doubt. `chat_id` is Kommo's id of the chat then.
    `waits_from` is since when the event waits: how long it may wait for a messenger counts from then.
    `left_out` is what it is sent without.
    """

    event: Pushed
    channel: Channel
    connection: Connection
    names: adapter.Push | None = None
    doubt: Doubt | None = None
    chat_id: str | None = None
    waits_from: str = ""
    left_out: tuple[str, ...] = ()


class Superseded(Struct, frozen=True):
    """It is no longer wanted, for this reason."""

    reason: str


class Settled(Struct, frozen=True):
    """The ledger has its outcome already, whoever brought that about."""


class Disconnected(Struct, frozen=True):
    """The channel is not connected to the account, for this reason: it never was, or no longer is."""

    reason: str


class Missing(Struct, frozen=True):
    """It cannot be pushed before someone looks, for this reason."""

    reason: str


class Expired(Struct, frozen=True):
    """It has waited for the messenger as long as its channel allows; `answer` is the messenger's text."""

    reason: str
    answer: str | None = None


class Reconnected(Struct, frozen=True):
    """Kommo has connected the channel again; `connection` None: for another job, which records that."""

    connection: Connection | None


class Lost(Struct, frozen=True):
    """Connecting again does not help, for this reason; `answer` is Kommo's text."""

    reason: str
    answer: str | None = None


# What preparing may end in, so that nothing is called.
Unsent: TypeAlias = Outcome | Superseded | Settled | Disconnected | Missing
Result: TypeAlias = Unsent | Reconnected | Lost | Expired


def is_imported(event: Pushed | Head) -> bool:
    """Whether nobody waits for the event: it gives way to what is live."""
    return isinstance(event, e.MessageSent | Head) and event.imported


def lane_key(event: Pushed | Head) -> LaneKey:
    """The lane of an event that is to be pushed."""
    side = event.push or ""
    if is_imported(event):
        return None, side, (ids.partition(event.conversation), event.channel, event.account)
    return event.conversation, side, None
