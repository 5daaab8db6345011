"""One way to Kommo and to every messenger: a push passes its destination's gate, then makes its one call.

What Kommo or a messenger answers also says how hard it may be pressed: `_press` pauses and opens the gate.

A destination that refuses us, and not the message, rests: nothing passes its gate but a probe, after ever
longer pauses, and at once when something has changed that may help (`watch`). What is for Kommo waits as long
as it takes. What is for a messenger waits as long as its channel allows, counted from the later of its own
time and the beginning of the rest, so that a manager learns of it; then it is `Expired` without a call.

Clearing up a doubt (a look into Kommo's history, connecting again) passes no gate: the jobs that wait at the
gate may be waiting for just that.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NoReturn, Protocol

from msgspec import Struct
from msgspec.structs import replace

from app import metrics
from app.channels.directory import Channel, Connection
from app.clock import Clock, read, text
from app.delivery.decoration import names_without, without
from app.delivery.gate import Gate
from app.delivery.job import (
    Doubt,
    Expired,
    Push,
    Pushed,
    Reconnected,
    RestKey,
    Result,
    Superseded,
    is_imported,
)
from app.delivery.reconnect import Reconnector
from app.http_client import Unreached
from app.kommo.chats.payloads import Created
from app.kommo.chats.signature import Credentials
from app.messengers import adapter
from app.outcome import Done, Forbidden, Gone, Outcome, Refused, Retry
from app.places import Places
from domain import events as e
from domain.ids import KOMMO, MESSENGER

# Chosen: what passes in a moment (a deployment, a payment) costs no more than a moment ...
REST_SECONDS_FIRST = 1.0
# ... and what someone must correct is noticed within a minute, for a call a minute costs nobody anything ...
PROBE_SECONDS = 60.0
# ... or within five when an account has refused us for an hour; a messenger is tried each minute (contract).
PROBE_SECONDS_LATER = 300.0
LATER_MS = 3_600_000
# Chosen: a change that may end a rest is noticed this soon; one query a second while anything rests.
WATCH_SECONDS = 1.0
# Chosen: a destination that asks to wait without saying how long is left alone at least for this long.
PAUSE_SECONDS_MIN = 1.0
# Chosen: a statement a minute costs nothing, and a rest that a dead process left is not shown for long.
FORGET_SECONDS = 60.0
TOO_LATE = "it has waited too long"
log = logging.getLogger("chatledger.push")


class Board(Protocol):
    """Where rests are kept so that people see them and restarts go on with them."""

    async def begin(self, key: RestKey, now_ms: int, next_ms: int, reason: str, answer: str) -> int:
        """Record a refusal; returns since when the destination rests, in unix milliseconds."""

    async def end(self, key: RestKey) -> None:
        """Forget a rest."""

    async def marks(self, keys: Sequence[RestKey]) -> dict[RestKey, str]:
        """A text for each rest that changes when something has changed that may end it."""


class Rest(Struct):
    """A destination that refuses us: since when (unix ms), the pause at hand (s), and what it answered."""

    gate: Gate
    since_ms: int
    refusal: Forbidden
    seconds: float = 0.0
    mark: str | None = None


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
        board: Board | None = None,
        places: Places | None = None,
        *,
        probe_seconds: float = PROBE_SECONDS,
    ) -> None:
        """`messengers` by kind; `probe_seconds`: the longest pause before one that rests is tried again.

        Without a `board` nobody sees the rests, and a restart forgets them. `places` are shared with Kommo.
        """
        self._kommo = kommo
        self._messengers = messengers
        self._reconnector = reconnector
        self._clock = clock
        self._probe_seconds = probe_seconds
        self._board = board
        self._gates: dict[RestKey, Gate] = {}
        self._places = places or Places()
        self._rests: dict[RestKey, Rest] = {}
        self._forget_at: dict[RestKey, float] = {}

    def gate(self, event: Pushed) -> Gate:
        """The gate of the event's destination."""
        key = _key(event)
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
            async with contextlib.AsyncExitStack() as passing:
                probe = await self._enter(passing, gate, push)
                if isinstance(probe, Expired):
                    return probe
                result = await self._call(push, began)
                await self._press(gate, push, result, probe)
        return result

    async def watch(self) -> NoReturn:
        """Have what rests tried at once when something has changed that may help; until cancelled."""
        while True:
            await self._clock.sleep(WATCH_SECONDS)
            keys = list(self._rests)
            marks = await self._board.marks(keys) if self._board and keys else {}
            for key, mark in marks.items():
                if rest := self._rests.get(key):
                    if rest.mark not in (None, mark):
                        rest.seconds = 0.0
                        rest.gate.hasten()
                    rest.mark = mark

    async def _enter(self, passing: contextlib.AsyncExitStack, gate: Gate, push: Push) -> bool | Expired:
        """Wait for a turn; returns whether it passes as the probe, or that it has waited long enough."""
        turn = gate.passing(live=not is_imported(push.event))
        if push.names is None:
            return await passing.enter_async_context(turn)
        while (left := self._left_ms(push)) > 0:
            try:
                async with asyncio.timeout(left / 1000):
                    return await passing.enter_async_context(turn)
            except TimeoutError:  # A rest may have begun or ended meanwhile.
                turn = gate.passing(live=not is_imported(push.event))
        refusal = self._rests[_key(push.event)].refusal
        wait = push.channel.options.wait_for_messenger
        reason = f"the messenger did not take it within {wait}: HTTP {refusal.http}"
        return Expired(reason, refusal.text or None)

    def _left_ms(self, push: Push) -> int:
        """How long an event may still wait for its messenger, in milliseconds: all the time while it rests
        not."""
        wait_ms = push.channel.options.wait_ms
        rest = self._rests.get(_key(push.event))
        if rest is None:
            return max(wait_ms, 1)
        began = max(rest.since_ms, read(push.waits_from))
        return wait_ms - (self._clock.now_ms() - began)

    async def _call(self, push: Push, began: Callable[[], None]) -> Outcome | Superseded:
        event = push.event
        if isinstance(event, e.TypingStarted) and is_stale(event, self._clock.now_ms()):
            return Superseded(TOO_LATE)
        if push.names is None:
            event = without(event, push.left_out, push.channel.bot_id)
            return await self._kommo.push(_who(push), push.connection.scope.scope_id, event, began)
        names = names_without(push.names, push.left_out)
        messenger = self._messengers[push.channel.kind]

        def send() -> Awaitable[Outcome]:
            return messenger.push(push.channel, push.connection, names)

        host = f"{MESSENGER}/{event.channel}"
        result = await self._places.call(host, event.account or "", send, _is_borne)
        if isinstance(result, Done) and push.channel.options.message_ids == "per conversation":
            return replace(result, per_conversation=True)
        return result

    async def _press(self, gate: Gate, push: Push, result: Outcome | Superseded, probe: bool) -> None:
        """Pause or open the gate by what was answered."""
        key = _key(push.event)
        if isinstance(result, Done) and push.names is None:
            self._reconnector.works(push.connection)
        if isinstance(result, Done) and self._board and key not in self._rests:
            await self._forget(self._board, key)
        match result:
            case Retry(pause=True) if gate.pauses:
                gate.pause(max(result.after_seconds, PAUSE_SECONDS_MIN))
            case Forbidden():
                await self._rest(key, gate, result, probe)
            case Retry() if probe and key in self._rests:
                gate.pause(self._rests[key].seconds)
            case Done() | Refused() | Gone() if probe:
                gate.open()
                await self._wake(key)

    async def _rest(self, key: RestKey, gate: Gate, refusal: Forbidden, probe: bool) -> None:
        """Begin a rest, or let it go on for longer than before."""
        rest, now = self._rests.get(key), self._clock.now_ms()
        if rest is not None and not probe:
            return  # The call was on its way when the rest began, so it is no news.
        channel, account, side = key
        if rest is None:
            rest = self._rests[key] = Rest(gate, now, refusal)
            metrics.PAUSED.set(len(self._rests))
            log.error(
                "channel %s, account %s: the %s refuses us (HTTP %d): what is for it waits; look at GET"
                " /v1/status", channel, account, "messenger" if side != KOMMO else "account", refusal.http,
            )  # fmt: skip
        most = self._probe_seconds
        if side == KOMMO and now - rest.since_ms > LATER_MS:
            most = max(most, PROBE_SECONDS_LATER)
        rest.refusal, rest.seconds = refusal, min(max(2 * rest.seconds, REST_SECONDS_FIRST), most)
        gate.pause(rest.seconds)
        if self._board:
            reason, next_ms = f"HTTP {refusal.http}", now + int(rest.seconds * 1000)
            rest.since_ms = await self._board.begin(key, now, next_ms, reason, refusal.text)

    async def _forget(self, board: Board, key: RestKey) -> None:
        """Forget a rest that is not ours, now and then: a process that is gone has left it."""
        now = self._clock.time()
        if now >= self._forget_at.get(key, now):
            self._forget_at[key] = now + FORGET_SECONDS
            await board.end(key)

    async def _wake(self, key: RestKey) -> None:
        """End a rest."""
        if self._rests.pop(key, None) is None:
            return
        metrics.PAUSED.set(len(self._rests))
        log.warning("channel %s, account %s: the %s takes our calls again", *key)
        if self._board:
            await self._board.end(key)

    async def _clear_up(self, gate: Gate, push: Push, doubt: Doubt) -> Result:
        if doubt.look == "history":
            return await self._search(push, doubt)
        result = await self._reconnector.reconnect(push.connection, doubt.tried_at)
        if isinstance(result, Reconnected) and result.connection and _key(push.event) in self._rests:
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


def _is_borne(outcome: Outcome) -> bool:
    """Whether an outcome shows that the messenger bears our calls."""
    return not isinstance(outcome, Retry)


def _key(event: Pushed) -> RestKey:
    return event.channel, event.account or "", event.push or ""


def _who(push: Push) -> Credentials:
    return Credentials(push.channel.channel_id, push.channel.secrets.kommo)
