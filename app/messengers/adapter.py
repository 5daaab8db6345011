"""The messenger port: what each kind of messenger implements, so that the rest of the service knows no kind.

A request comes in at the kind's own path. `verify` finds the channel whose messenger made it and `receive`
turns it into actions of the contract; from there on all kinds share one way into the ledger. `answer` makes
the body of the 200. On the way out, delivery reads the ledger and `push` makes the one call. The doctor uses
`check`, and whoever registers a channel uses `faults`.

A messenger whose accounts have credentials of their own declares their fields in `credentials`, and says with
`try_credentials` whether they work; they come with the connection, as its `messenger`.

A kind is one module and one line in `kinds.KINDS`. It reaches HTTP only through `Http`, and it gets the
channel, or the channel and its connection, with every call: so it reads credentials where it uses them.
"""

import abc
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, NamedTuple, Protocol

from msgspec import Struct

from app.channels.directory import Channel, Connection
from app.http_client import Answer
from app.messengers.contract import Action
from app.outcome import Outcome
from app.problems import Problem
from domain import events as e
from domain.events import Json


class Route(NamedTuple):
    """Where a kind takes requests: a method and a path such as `/messengers/{channel}`.

    The first part of the path is a word; a part in braces stands for anything but an empty text.
    """

    method: str
    path: str


class Request(Struct, frozen=True):
    """A request as it came in: the parts of its path that are in braces, headers in lower case, the body."""

    parts: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes


class Received(NamedTuple):
    """The checked actions of a request.

    `array`: an action that fails has a result of its own; without it, the failure is the answer. `request` is
    short, and the same if the messenger repeats the request.
    """

    actions: Sequence[Action]
    array: bool
    request: str | None = None


class Result(Struct, frozen=True):
    """The outcome of an action: our message id (None while no message has that name), and its position."""

    id: str | None
    position: int | None
    duplicate: bool


class Push(Struct, frozen=True):
    """An event for the messenger, and the messenger's names of the conversation and of messages.

    `message_id` is the message that a reaction is about, `reply_id` the message that is answered; `forwards`
    are the event's, with `message_id` where the messenger has a name of the message. None: not known.
    """

    event: e.MessageSent | e.TypingStarted | e.Reaction
    conversation_id: str | None = None
    message_id: str | None = None
    reply_id: str | None = None
    forwards: Json | None = None


class Credential(NamedTuple):
    """A field of a connection's credentials, as a form asks for it.

    `label` and `hint` are English, and are translated where the settings page's catalogues have them. What is
    `secret` is never shown again.
    """

    name: str
    label: str
    secret: bool = False
    hint: str = ""


class UnknownSender(Exception):
    """No channel belongs to the request."""


class Unsigned(Exception):
    """The request does not prove that the channel's messenger made it."""


class WrongClock(Unsigned):
    """The proof is right, but of another time; the message says how far off it is."""


class Unfit(Exception):
    """The messenger does not take our calls as it should: `says` what is wrong, `todo` what to do."""

    def __init__(self, says: str, todo: str) -> None:
        super().__init__(says)
        self.says = says
        self.todo = todo


class Http(Protocol):
    """The one way out: a call, bounded in time and size. Raises Unreached."""

    async def call(self, method: str, url: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        """Send and read the answer."""


class Messenger(abc.ABC):
    """A kind of messenger."""

    routes: ClassVar[tuple[Route, ...]]
    credentials: ClassVar[tuple[Credential, ...]] = ()

    def __init__(self, http: Http) -> None:
        self._http = http

    @abc.abstractmethod
    def verify(self, request: Request, channels: Mapping[str, Channel]) -> Channel:
        """The channel whose messenger made the request; raises UnknownSender and Unsigned."""

    @abc.abstractmethod
    async def receive(self, request: Request, channel: Channel) -> Received:
        """The actions of a verified request, checked against the contract; raises ActionRefused."""

    @abc.abstractmethod
    def answer(self, results: Sequence[Result | Problem]) -> bytes:
        """The body of a 200, once all actions are durable: JSON."""

    @abc.abstractmethod
    async def push(self, channel: Channel, connection: Connection, push: Push) -> Outcome:
        """Make the call that an event asks for; an answer that does not come is an outcome too."""

    @abc.abstractmethod
    async def check(self, channel: Channel) -> str:
        """Call the messenger without any effect; returns its answer in words. Raises Unreached, Unfit."""

    async def try_credentials(self, channel: Channel, credentials: Mapping[str, str]) -> str | None:
        """Call the messenger with an account's credentials, without any effect; returns its name for them.

        Without credentials of its own, a kind is called as by `check`. Raises Unreached, and Unfit if the
        messenger refuses them.
        """
        await self.check(channel)
        return None

    @staticmethod
    @abc.abstractmethod
    def faults(secret: str) -> Iterator[tuple[str, str]]:
        """What is wrong with a channel's settings for its messenger as written: setting and advice."""
