"""Delivery's real code on a virtual clock, a ledger in memory, and functions that answer as both sides do."""

import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple, TypeAlias

from app.channels.directory import Channel, Connection, Secrets
from app.clock import LoopClock
from app.database.leases import Fence
from app.delivery.destinations import Destinations
from app.delivery.job import Job, Pushed, lane_key
from app.delivery.lane import Lanes
from app.delivery.prepare import Preparer
from app.delivery.reconnect import Reconnector
from app.delivery.settle import Settle
from app.http_client import Answer, Unreached
from app.kommo.chats.payloads import Created
from app.kommo.chats.signature import Credentials
from app.ledger.writer import LedgerFull, LedgerUnavailable, Recorded
from app.messengers import adapter
from app.outcome import Done, Outcome
from domain import commands as c
from domain import events as e
from domain.ids import Scope
from domain.state import State
from tests.support.ids import SCOPE
from tests.support.ledgers.decisions import START_MS, Ledger
from tests.support.virtual.loop import START_SECONDS

COMMIT_SECONDS = 0.004
CALL_SECONDS = 0.05
READ_SECONDS = 0.001
IDLE_SECONDS = 0.5
TAKEN = Answer(200, "application/json", 0.0, b"{}")
KommoAnswers: TypeAlias = Callable[[Pushed], Outcome]
MessengerAnswers: TypeAlias = Callable[[adapter.Push], Outcome]


class VirtualClock(LoopClock):
    """The loop's time, and a time of day that goes with it."""

    def now_ms(self) -> int:
        return START_MS + int(self.passed * 1000)

    @property
    def passed(self) -> float:
        """Seconds since the start."""
        return self.time() - START_SECONDS


class Memory:
    """A ledger in memory; a share `failing` of the commands meet a full queue, or get no answer."""

    def __init__(self, clock: VirtualClock, dice: random.Random) -> None:
        self.book = Ledger()
        self.failing = 0.0
        self.listeners: list[Callable[[int, e.AnyEvent], None]] = []
        self._clock = clock
        self._dice = dice

    async def submit(self, command: c.AnyCommand, *, fence: Fence | None = None) -> Recorded:
        if self._dice.random() < self.failing:
            raise LedgerFull
        await self._clock.sleep(COMMIT_SECONDS)
        recorded = self.give(command)
        if self._dice.random() < self.failing:
            raise LedgerUnavailable("no answer, though it is recorded")
        return recorded

    def give(self, command: c.AnyCommand) -> Recorded:
        """Record at once, and bring what is new to whoever listens."""
        before = len(self.book.events)
        decision = self.book.record(command)
        for position, event in enumerate(self.book.events[before:], start=before + 1):
            for listener in self.listeners:
                listener(position, event)
        last = len(self.book.events) if decision.events else None
        return Recorded(last, decision.duplicate, decision.conflict, decision.message, last)

    async def states(self, streams: Sequence[str]) -> dict[str, State]:
        await self._clock.sleep(READ_SECONDS)
        return {stream: self.book.states[stream] for stream in streams if stream in self.book.states}

    async def sends(self, stream: str) -> list[e.AnyEvent]:
        await self._clock.sleep(READ_SECONDS)
        return [one for one in self.book.events if one.stream == stream and isinstance(one, Created)]


class Call(NamedTuple):
    """A call that was made: when, in seconds since the start, of which event, and what came back."""

    at: float
    event: e.AnyEvent
    outcome: Outcome


class Kommo:
    """Answers as `script` says. A message that it takes is in `history` under its own id of it."""

    def __init__(self, clock: VirtualClock, script: KommoAnswers) -> None:
        self.script = script
        self.calls: list[Call] = []
        self.connects: list[float] = []
        self.history: dict[str, str] = {}
        self.finds: list[str | Unreached | None] = []
        self.connecting: Callable[[], Answer] = lambda: TAKEN
        self._clock = clock

    def take(self, event: Created) -> Done:
        """Keep a message; returns the answer."""
        message = event.message or event.stream
        return Done(remote_id=self.history.setdefault(message, f"kommo-{len(self.history)}"))

    async def push(
        self, who: Credentials, scope_id: str, event: e.AnyEvent, began: Callable[[], None]
    ) -> Outcome:
        began()
        await self._clock.sleep(CALL_SECONDS)
        outcome = self.script(event)  # type: ignore[arg-type]  # only events that are pushed come here
        self.calls.append(Call(self._clock.passed, event, outcome))
        return outcome

    async def find(self, who: Credentials, scope_id: str, event: Created, chat_id: str | None) -> str | None:
        await self._clock.sleep(CALL_SECONDS)
        if self.finds and isinstance(found := self.finds.pop(0), Unreached):
            raise found
        return self.history.get(event.message or event.stream)

    async def connect(
        self, who: Credentials, account: str, title: str, *, is_time_window_disabled: bool = False
    ) -> Answer:
        await self._clock.sleep(CALL_SECONDS)
        self.connects.append(self._clock.passed)
        return self.connecting()


class Messenger:
    """Answers as `script` says."""

    def __init__(self, clock: VirtualClock, script: MessengerAnswers) -> None:
        self.script = script
        self.calls: list[Call] = []
        self._clock = clock

    async def push(self, channel: Channel, connection: Connection, push: adapter.Push) -> Outcome:
        await self._clock.sleep(CALL_SECONDS)
        outcome = self.script(push)
        self.calls.append(Call(self._clock.passed, push.event, outcome))
        return outcome


class Simulation:
    """One channel between a Kommo and a messenger; what is given to the ledger is delivered."""

    def __init__(self, seed: int = 0) -> None:
        self.dice = random.Random(seed)
        self.clock = VirtualClock()
        self.ledger = Memory(self.clock, self.dice)
        self.kommo = Kommo(self.clock, self._kommo_takes)
        self.messenger = Messenger(self.clock, lambda push: Done(f"m-{push.event.id}"))
        self.problems: list[str | None] = []
        self.connected = True
        self.done: dict[int, int] = {}
        self.failures: list[BaseException] = []
        reconnector = Reconnector(self.kommo, self, self, self.clock)
        kinds = {"simulated": self.messenger}
        self.destinations = Destinations(self.kommo, kinds, reconnector, self.clock)
        preparer = Preparer(self.ledger, self)
        settle = Settle(self.ledger, preparer, self.destinations, self.clock, self.dice.random)
        self.lanes = Lanes(settle, self)
        self.ledger.listeners.append(self._arrived)

    def _kommo_takes(self, event: Pushed) -> Outcome:
        return self.kommo.take(event) if isinstance(event, Created) else Done()

    def _arrived(self, position: int, event: e.AnyEvent) -> None:
        if isinstance(event, Pushed) and event.push:
            self.lanes.of(lane_key(event)).put(Job(position, event))

    async def channel(self, name: str) -> Channel:
        """The channel as the directory has it."""
        ended = 0 if self.connected else len(self.ledger.book.events)  # After all that is recorded.
        connection = Connection(SCOPE, "Acme", self.connected, "", position=ended)
        secrets = Secrets("kommo", "messenger")
        return Channel(name, "id", "simulated", "", None, secrets, {SCOPE.account: connection})

    async def record(
        self, channel: str, account: str = "", problem: str | None = None, answer: str = ""
    ) -> None:
        """Keep how an attempt to connect ended."""
        self.problems.append(problem)

    @asynccontextmanager
    async def turn(self, channel: str, account: str) -> AsyncIterator[None]:
        """Nobody else connects."""
        yield

    async def is_connected(self, scope: Scope) -> bool:
        """Whether the channel is connected as the ledger has it now."""
        return self.connected

    def failed(self, error: BaseException) -> None:
        """A lane cannot go on."""
        self.failures.append(error)

    def has_room(self) -> None:
        """A lane that was cut off has room again."""

    async def idle(self) -> None:
        """Wait until nothing is left to deliver."""
        while any(lane.busy for _, lane in self.lanes):
            await self.clock.sleep(IDLE_SECONDS)
        assert not self.failures

    def events(self, *kinds: type[e.AnyEvent]) -> list[e.AnyEvent]:
        """What is recorded, of some types."""
        return [event for event in self.ledger.book.events if isinstance(event, kinds)]
