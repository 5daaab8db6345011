"""The commands of one commit, from what they read to what they are answered; no I/O happens here.

Commands that share a stream or a lane form a *unit*, which is stored whole or tried again whole.
"""

import asyncio
import logging
from collections.abc import Iterable
from operator import itemgetter

from msgspec import Struct

from domain.commands import AnyCommand, Send
from domain.decide import NotConnected, OwnMessage, Unknown, decide, follow, names
from domain.draft import Decision, Known
from domain.events import EVENT_BYTES_MAX, TAGS, AnyEvent, decode, encode
from domain.ids import OPERATOR
from domain.state import Chat, State, evolve
from projections.columns import Column, blobs, ints, longs, texts_repeated, uuids

TRIES_MAX = 10
CHATS_KEPT = 20_000
log = logging.getLogger("chatledger.ledger")


class LedgerUnavailable(Exception):
    """The ledger did not take the command, or not in time to say so: it may be given again."""


class EventTooLarge(Exception):
    """The event would be larger than an event may be."""


class Recorded(Struct, frozen=True, gc=False):
    """The outcome of a command: `position` of the fact it is about, new or (`duplicate`) already there."""

    position: int | None
    duplicate: bool
    conflict: bool
    message: str | None
    last: int | None


class Job(Struct, gc=False):
    """A command and who waits for it; `since` is in seconds of the loop."""

    command: AnyCommand
    future: "asyncio.Future[Recorded]"
    size: int
    since: float
    tries: int = 0
    alone: bool = False

    def fail(self, error: Exception) -> None:
        """Tell who waits, if somebody still does."""
        if not self.future.done():
            self.future.set_exception(error)


def _row(event: AnyEvent) -> tuple[str, int, str, bytes, str]:
    """An event as the ledger's columns, and its id."""
    state = encode(event)
    if len(state) > EVENT_BYTES_MAX:
        raise EventTooLarge
    return event.stream, event.version, TAGS[type(event)], state, event.id


class Memory:
    """The conversations seen lately, so that a new message in one is decided without asking the database.

    It may be outdated, for other processes write too: the append then refuses the unit, for the conversation
    has another version or clock than it was decided on, and it is decided again on what the database says.
    """

    def __init__(self) -> None:
        self.chats: dict[str, Chat] = {}
        self.clocks: dict[str, int] = {}

    def forget(self) -> None:
        """Know nothing."""
        self.chats.clear()
        self.clocks.clear()

    def bound(self) -> None:
        """Start over rather than grow."""
        if len(self.chats) > CHATS_KEPT:
            self.forget()


class Batch:
    """The commands of one commit, from what they read to what they are answered."""

    def __init__(self, jobs: list[Job], memory: Memory) -> None:
        self.memory = memory
        self.jobs = [job for job in jobs if not job.future.done()]
        self.states: dict[str, State] = {}
        self.clocks: dict[str, int] = {}
        self.before: dict[str, int] = {}
        self.named: list[list[str]] = []
        self.asked: set[str] = set()
        self.ends: set[str] = set()
        self.recalled: dict[str, int] = {}
        self.readers: dict[str, AnyCommand] = {}
        self.history: dict[str, list[tuple[int, str]]] = {}
        self.rows: list[tuple[str, int, str, bytes, str]] = []
        self.row_units: list[int] = []
        self.clock_units: dict[str, int] = {}
        self.outcomes: list[tuple[Job, int, Decision | Exception, int]] = []
        self.retry: list[Job] = []
        self._units: dict[str, int] = {}
        self._parents: list[int] = []

    def first(self) -> tuple[set[str], list[str]]:
        """The streams that the commands name, and the conversations whose clocks they read."""
        wanted: set[str] = set()
        for job in self.jobs:
            command = job.command
            named = names(command)
            self.named.append(named)
            if type(command) is not Send or command.side == OPERATOR:
                for stream in named:
                    self.readers[stream] = command
            if type(command) is Send:
                if not job.tries and self._recall(command):
                    continue
                for end in command.ends:
                    self.ends.add(end.stream)
            wanted.update(named)
        return wanted, list(self.ends)

    def _recall(self, command: Send) -> bool:
        """Whether all that a new message needs is remembered: its conversation, and that one's clock.

        Its own stream is taken to be empty. If it is not, the message is a repeat, and the append says so.
        """
        if command.reply_stream or command.forward_stream:
            return False
        chats, clocks = self.memory.chats, self.memory.clocks
        found = []
        for end in command.ends:
            stream: str | None = end.stream
            while stream:
                chat = chats.get(stream)
                if chat is None or not (chat.into or stream in clocks):
                    return False
                found.append((stream, chat))
                stream = chat.into
        for stream, chat in found:
            if stream not in self.states:
                if chat.into is None:  # A pointer stays as it is.
                    self.recalled[stream] = chat.version
                self.states[stream] = chat
                self.clocks[stream] = clocks.get(stream, 0)
        return True

    def take(self, rows: list[tuple[int, bytes | None, str | None]]) -> None:
        """Fold the events of loaded streams by position, which within a stream is by version; set clocks."""
        states, history = self.states, self.history
        rows.sort(key=itemgetter(0))
        for number, raw, conversation in rows:
            if raw is None:
                self.clocks[conversation or ""] = number
                continue
            event = decode(raw)
            stream = event.stream
            if stream in history:
                before = states.get(stream)
            else:
                before = None  # not what was remembered
                self.recalled.pop(stream, None)
            states[stream] = evolve(before, event)
            history.setdefault(stream, []).append((number, event.id))

    def more(self) -> tuple[set[str], list[str]]:
        """The streams that loaded ones point to, and the conversations among them whose clocks are needed."""
        wanted: set[str] = set()
        for stream, state in self.states.items():
            reader = self.readers.get(stream, self.jobs[0].command)
            for pointed in follow(reader, state):
                enough = pointed in self.states and stream not in self.asked  # for whoever recalled it
                if pointed not in self.asked and not enough:
                    wanted.add(pointed)
                    self.readers[pointed] = reader
        return wanted, list(wanted) if self.ends else []

    def decide(self) -> None:
        """Decide every command in order; each sees what the ones before it decided."""
        known = Known(self.states, self.clocks)
        for job, named in zip(self.jobs, self.named, strict=True):
            lane = job.command.lane
            unit = self._unit(named if lane in named else (lane, *named))
            try:
                decision = decide(job.command, known)
                rows = [_row(event) for event in decision.events]
            except (OwnMessage, Unknown, NotConnected, EventTooLarge) as error:
                self.outcomes.append((job, unit, error, 0))
                continue
            except Exception as error:  # a rule met what nobody thought of: this command fails alone
                log.exception("a command cannot be decided")
                self.outcomes.append((job, unit, LedgerUnavailable(repr(error)), 0))
                continue
            unit = self._keep(unit, decision)
            self.rows.extend(rows)
            self.row_units.extend([unit] * len(rows))
            self.outcomes.append((job, unit, decision, len(rows)))

    def _keep(self, unit: int, decision: Decision) -> int:
        """Show the decision to later commands; its unit is joined with all that wrote to the same streams."""
        written, units = [], self._units
        for stream, state in decision.states.items():
            self.states[stream] = state
            if type(state) is Chat:
                self.ends.add(stream)
            if units.get(stream) != unit:
                written.append(stream)
        conversation, msec = decision.clock or ("", 0)
        if conversation and units.get(conversation) != unit:
            written.append(conversation)
        if written:
            unit = self._unit(written, unit)
        if conversation:
            if conversation not in self.before:
                self.before[conversation] = self.clocks.get(conversation, 0)
            self.clocks[conversation] = msec
            self.clock_units[conversation] = unit
        return unit

    def _unit(self, keys: Iterable[str], mine: int = -1) -> int:
        """The unit of a command: joined with every other that shares a key, a lane or a stream."""
        units = self._units
        for key in keys:
            found = units.get(key)
            if found is None:
                if mine < 0:
                    mine = len(self._parents)
                    self._parents.append(mine)
                units[key] = mine
                continue
            if found == mine:
                continue
            found = self._root(found)
            if mine < 0:
                mine = found
            elif found != mine:
                self._parents[found] = mine
        return mine

    def _root(self, unit: int) -> int:
        parents = self._parents
        while parents[unit] != unit:
            unit = parents[unit]
        return unit

    def parameters(self) -> list[Column]:
        """The arrays of `ledger.append`; last come the versions that what was recalled must not have."""
        root = self._root
        streams, versions, topics, states, _ = map(list, zip(*self.rows, strict=True))
        units = [root(unit) for unit in self.row_units]
        for stream, version in self.recalled.items():
            if (unit := self._units.get(stream)) is not None:
                units.append(root(unit))
                streams.append(stream)
                versions.append(version + 1)
        nothing = [None] * (len(streams) - len(topics))
        clocks = list(self.before)
        return [
            ints(units),
            uuids(streams),
            longs(versions),
            texts_repeated(topics + nothing),
            blobs(states + nothing),
            ints([root(self.clock_units[conversation]) for conversation in clocks]),
            uuids(clocks),
            longs(list(self.before.values())),
            longs([self.clocks[conversation] for conversation in clocks]),
        ]

    def answer(self, bad: set[int], head: int) -> int:
        """Resolve the futures now that the batch is on disk; returns the ledger's new head."""
        position, index = head, 0
        stored: list[tuple[int, int, int]] = []
        others: list[tuple[Job, Decision, int | None]] = []
        for job, unit, decision, count in self.outcomes:
            first, end = index, index + count
            index = end
            if bad and self._root(unit) in bad:
                self._put_back(job)
                continue
            stored.append((first, end, position))
            position += count
            if job.future.done():
                continue
            if isinstance(decision, Exception):
                job.future.set_exception(decision)
            elif count and self._is_about(decision, self.rows[end - 1]):
                told = Recorded(position, decision.duplicate, decision.conflict, decision.message, position)
                job.future.set_result(told)
            else:
                others.append((job, decision, position if count else None))
        if others:
            self._know(stored)
        for job, decision, last in others:
            job.future.set_result(self._recorded(job, decision, last))
        self._remember(bad)
        return position

    @staticmethod
    def _is_about(decision: Decision, row: tuple[str, int, str, bytes, str]) -> bool:
        """Whether a decision's own last event is the fact that it is about, as it nearly always is."""
        return row[0] == decision.stream and row[1] == decision.version

    def _know(self, stored: list[tuple[int, int, int]]) -> None:
        """Add what the batch stored to the streams' histories, for decisions about facts of others."""
        for first, end, before in stored:
            for number, row in enumerate(self.rows[first:end], before + 1):
                self.history.setdefault(row[0], []).append((number, row[4]))

    def _remember(self, bad: set[int]) -> None:
        memory = self.memory
        for stream in self.ends:
            if bad and self._is_bad(stream, bad):
                memory.chats.pop(stream, None)
            elif isinstance(state := self.states.get(stream), Chat):
                memory.chats[stream] = state
                if state.into and isinstance(chat := self.states.get(state.into), Chat):
                    memory.chats[state.into] = chat
        for conversation, unit in self.clock_units.items():
            if bad and self._root(unit) in bad:
                memory.clocks.pop(conversation, None)
            else:
                memory.clocks[conversation] = self.clocks[conversation]
        for job in self.retry:
            for stream in names(job.command):
                memory.chats.pop(stream, None)
        memory.bound()

    def _is_bad(self, stream: str, bad: set[int]) -> bool:
        unit = self._units.get(stream)
        return unit is not None and self._root(unit) in bad

    def _recorded(self, job: Job, decision: Decision, last: int | None) -> Recorded:
        if decision.version == 0:
            return Recorded(None, False, False, None, last)
        position, event_id = self.history[decision.stream][decision.version - 1]
        ours = event_id[:-2] == job.command.id[:-2]
        duplicate = decision.duplicate and not ours
        return Recorded(position, duplicate, decision.conflict, decision.message, last)

    def _put_back(self, job: Job) -> None:
        job.tries += 1
        if job.tries > TRIES_MAX:
            job.fail(LedgerUnavailable("other writers kept changing the same conversation"))
        else:
            self.retry.append(job)
