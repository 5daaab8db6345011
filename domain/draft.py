"""A decision in the making: each event that is added is at once visible to the next step."""

from collections.abc import Mapping
from typing import TypeVar

from msgspec import Struct

from domain.commands import Command, End
from domain.events import SCHEMA, AnyEvent
from domain.ids import Scope, nth
from domain.state import Case, Chat, Connection, Message, State, evolve

AnEvent = TypeVar("AnEvent", bound=AnyEvent)


class Snapshot(Struct, frozen=True):
    """The states of the streams that a command reads, and the latest `msec` of its conversations."""

    streams: Mapping[str, State]
    clocks: Mapping[str, int]


class Decision(Struct, frozen=True, gc=False):
    """The events to record and the outcome to report.

    `stream` and `version` name the fact that the command reports, new or already recorded (0: there is none).
    `states` are the streams' states after `events`; `clock` is the conversation and the `msec` it has
    reached.
    """

    events: list[AnyEvent]
    states: dict[str, State]
    stream: str
    version: int
    duplicate: bool = False
    conflict: bool = False
    message: str | None = None
    clock: tuple[str, int] | None = None


class Draft:
    """The events decided so far for one command."""

    def __init__(self, command: Command, snapshot: Snapshot) -> None:
        self.command = command
        self.clocks = snapshot.clocks
        self.events: list[AnyEvent] = []
        self.states: dict[str, State] = {}
        self._streams = snapshot.streams
        self.refused: list[End] = []  # names of the conversation that are another customer's

    def state(self, stream: str) -> State | None:
        """Returns the stream's state after the events added so far, None if it is empty."""
        return self.states.get(stream) or self._streams.get(stream)

    def message(self, stream: str) -> Message | None:
        """Returns the state of a stream named by a message's id."""
        state = self.states.get(stream) or self._streams.get(stream)
        return state if isinstance(state, Message) else None

    def chat(self, stream: str) -> Chat | None:
        """Returns the state of a stream named by a conversation's id."""
        state = self.states.get(stream) or self._streams.get(stream)
        return state if isinstance(state, Chat) else None

    def connection(self, stream: str) -> Connection | None:
        """Returns the state of the stream of a channel, a connection or a consent."""
        state = self.state(stream)
        return state if isinstance(state, Connection) else None

    def case(self, stream: str) -> Case | None:
        """Returns the state of the stream of a talk, an incoming lead or a template."""
        state = self.state(stream)
        return state if isinstance(state, Case) else None

    def add(
        self,
        kind: type[AnEvent],
        stream: str,
        fields: Mapping[str, object],
        *,
        at: str | None = None,
        by: str | None = None,
        scope: Scope | None = None,
        claimed_at: str | None = None,
    ) -> AnEvent:
        """Append an event with its own `fields`; `at`, `by` and `scope` default to the command's."""
        command = self.command
        scope = scope or command.scope
        state = self.state(stream)
        event = kind(
            id=self.next_id,
            stream=stream,
            version=state.version + 1 if state else 1,
            channel=scope.channel,
            account=scope.account or None,
            at=at or command.at,
            recorded_at=command.now,
            by=by or command.by,
            schema=SCHEMA,
            claimed_at=claimed_at,
            **fields,  # type: ignore[arg-type]  # each caller names the fields of its kind
        )
        self.append(event)
        return event

    def append(self, event: AnyEvent) -> None:
        """Append an event that the caller has made with the next id and version."""
        self.events.append(event)
        self.states[event.stream] = evolve(self.state(event.stream), event)

    @property
    def next_id(self) -> str:
        """Returns the id of the event to be added next."""
        return nth(self.command.id, len(self.events))

    def done(
        self,
        stream: str,
        version: int,
        *,
        duplicate: bool = False,
        conflict: bool = False,
        message: str | None = None,
        clock: tuple[str, int] | None = None,
    ) -> Decision:
        """Returns the finished decision about the fact at `version` of `stream`."""
        return Decision(self.events, self.states, stream, version, duplicate, conflict, message, clock)
