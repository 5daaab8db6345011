"""One way to Kommo and to every messenger: a push passes its destination's gate, then makes its one call.

What Kommo or a messenger answers also says how hard it may be pressed: `_press` pauses and opens the gate.
Clearing up a doubt (a look into Kommo's history, connecting again) passes no gate: the jobs that wait at the
gate may be waiting for just that.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Protocol, TypeAlias

from app import metrics
from app.channels.directory import Channel, Connection
from app.clock import Clock, text
from app.delivery.gate import Gate
from app.delivery.job import Doubt, Push, Pushed, Reconnected, Result, Superseded, is_imported
from app.delivery.reconnect import Reconnector
from app.http_client import Unreached
from app.kommo.chats.payloads import Created
from app.kommo.chats.signature import Credentials
from app.messengers import adapter
from app.outcome import Done, Forbidden, Gone, Outcome, Refused, Retry
from domain import events as e
from domain.ids import KOMMO

# Chosen: a 403 ends when someone corrects the secret, the clock or the address, so a call a minute is enough.
PROBE_SECONDS = 60.0
# Chosen: a destination that asks to wait without saying how long is left alone at least for this long.
PAUSE_SECONDS_MIN = 1.0
TOO_LATE = "it has waited too long"
log = logging.getLogger("chatledger.push")

GateKey: TypeAlias = tuple[str, str | None, str]


class Kommo(Protocol):
    """The calls of Kommo's Chats API that are needed here."""

    async def push(
        self, who: Credentials, scope_id: str, event: e.AnyEvent, began: Callable[[], None]
    ) -> Outcome:
        """Make the call that an event asks for; `began` is called once Kommo may know of it."""

    async def find(self, who: Credentials, scope_id: str, event: Created, chat_id: str | None) -> str | None:
        """Kommo's id of a message that may have arrived; None if Kommo does not have it. Raises Unreached."""


class Messenger(Protocol):
    """The call of a kind of messenger that is needed here."""

    async def push(self, channel: Channel, connection: Connection, push: adapter.Push) -> Outcome:
        """Make the call that an event asks for."""


class Destinations:
    """Every destination, behind its gate."""

    def __init__(
        self,
        kommo: Kommo,
        messengers: Mapping[str, Messenger],
        reconnector: Reconnector,
        clock: Clock,
        *,
        probe_seconds: float = PROBE_SECONDS,
    ) -> None:
        """`messengers` by kind; `probe_seconds`: how often a scope is tried where Kommo refuses us (403)."""
        self._kommo = kommo
        self._messengers = messengers
        self._reconnector = reconnector
        self._clock = clock
        self._probe_seconds = probe_seconds
        self._gates: dict[GateKey, Gate] = {}
        self._forbidden: set[Gate] = set()

    def gate(self, event: Pushed) -> Gate:
        """The gate of the event's destination."""
        key = (event.channel, event.account, event.push or "")
        gate = self._gates.get(key)
        if gate is None:  # Kommo's pauses are the account's, and `kommo.budget` keeps them in all processes.
            gate = self._gates[key] = Gate(self._clock, pauses=event.push != KOMMO)
        return gate

    async def push(self, push: Push, began: Callable[[], None]) -> Result:
        """Push once, or clear up the push's doubt; `began` is called once Kommo may know of the push."""
        gate = self.gate(push.event)
        if push.doubt is not None:
            return await self._clear_up(gate, push, push.doubt)
        with metrics.PUSH_SECONDS.labels(push.event.push).time():
            async with gate.passing(live=not is_imported(push.event)) as probe:
                result = await self._call(push, began)
                self._press(gate, push, result, probe)
        return result

    async def _call(self, push: Push, began: Callable[[], None]) -> Outcome | Superseded:
        event = push.event
        if isinstance(event, e.TypingStarted) and is_stale(event, self._clock.now_ms()):
            return Superseded(TOO_LATE)
        if push.names is None:
            return await self._kommo.push(_who(push), push.connection.scope.scope_id, event, began)
        return await self._messengers[push.channel.kind].push(push.channel, push.connection, push.names)

    def _press(self, gate: Gate, push: Push, result: Outcome | Superseded, probe: bool) -> None:
        """Pause or open the gate by what was answered."""
        if isinstance(result, Done) and push.names is None:
            self._reconnector.works(push.connection)
        match result:
            case Retry(pause=True) if gate.pauses:
                gate.pause(max(result.after_seconds, PAUSE_SECONDS_MIN))
            case Forbidden():
                log.error("Kommo refuses us (403): look at secret, clock and address: %s", result.text)
                gate.pause(self._probe_seconds)
                self._forbidden.add(gate)
            case Done() | Refused() | Gone() if probe:
                gate.open()
                self._forbidden.discard(gate)
        metrics.PAUSED.set(len(self._forbidden))

    async def _clear_up(self, gate: Gate, push: Push, doubt: Doubt) -> Result:
        if doubt.look == "history":
            return await self._search(push, doubt)
        result = await self._reconnector.reconnect(push.connection, doubt.tried_at)
        if isinstance(result, Reconnected) and result.connection and gate in self._forbidden:
            gate.hasten()
        return result

    async def _search(self, push: Push, doubt: Doubt) -> Outcome:
        """What a refusal means after an attempt without an answer: Kommo may have the message since then."""
        assert isinstance(push.event, Created)
        scope_id = push.connection.scope.scope_id
        try:
            found = await self._kommo.find(_who(push), scope_id, push.event, push.chat_id)
        except Unreached as error:
            return Retry(f"looking it up: {error.reason}")
        return doubt.answer if found is None else Done(remote_id=found, recovered=True)


def is_stale(event: e.TypingStarted, now_ms: int) -> bool:
    """Whether an indicator of typing says nothing any more."""
    return event.expires_at < text(now_ms)


def _who(push: Push) -> Credentials:
    return Credentials(push.channel.channel_id, push.channel.secrets.kommo)
