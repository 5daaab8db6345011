"""The commands of one commit, from the streams they read to the outcomes they get; no I/O happens here.

Theory of operation. One `Writer` drives a `Batch` through four phases, each once:

1. Read. `first_streams` names the streams that the commands read. The writer loads their events, `fold` turns
   these into states, and `next_streams` names the streams they point to (aliases, merged conversations),
   until there are none.
2. Decide. `decide` applies the rules of `domain` in the order of arrival; each command sees the states that
   the commands before it produced, stored or not.
3. Append. `parameters` is the input of `ledger.append`, one statement that stores units or rejects them.
4. Resolve. `resolve` gives every command its outcome, after the commit and never before it.

Units. Two commands that share a stream or a lane belong to the same unit, because the later one was decided
on what the earlier one wrote. Units are the sets of a union-find over these keys. The database stores a unit
whole or rejects it whole: when another process has taken one of its versions or moved one of its clocks, the
unit's commands go back to the front of the queue and are decided again, and the other units are stored.

Cache. `ConversationCache` spares the read for a new message in a conversation seen lately. Its states may be
stale, because other processes write too. That is harmless: the append gets, for each cached stream, the next
version, which must still be free, and for each conversation the clock that the decision was based on. A
command that is tried again never reads the cache.

Long streams. What is known of a long stream (`streams`) is a state that is complete up to its version; only
what is new is read. A decision that reports an older fact of it names a version whose position was not read:
`unread_facts` are those, to be read before `resolve`.

Invariant. Every outcome describes facts on disk. When the connection breaks, the fate of a batch is unknown,
so its commands are decided again; a command that was stored finds its own events, recognises them by the base
of their ids, and is not reported as a duplicate.
"""

import asyncio
import logging
from collections.abc import Iterable

from msgspec import Struct

from app.database.leases import Fence
from app.database.packed import pack, unpack
from app.ledger.streams import LONG_EVENTS_MIN, LongStreams, Row, fold
from domain.commands import AnyCommand, Send
from domain.decide import NotConnected, OwnMessage, TooManyFacts, Unknown, decide, follow, names
from domain.draft import Decision, Snapshot
from domain.events import EVENT_BYTES_MAX, TAGS, AnyEvent, decode, encode
from domain.state import Chat, State
from projections.columns import Column, blobs, ints, longs, texts_repeated, uuids

# Chosen: a unit is rejected only if another process wrote to the same conversation within the few
# milliseconds of a commit, so ten times in a row means that something else is wrong.
TRIES_MAX = 10
# Chosen: a conversation's state takes about a kilobyte, so the cache stays below some 20 MB.
CONVERSATIONS_CACHED_MAX = 20_000
log = logging.getLogger("chatledger.ledger")


class LedgerUnavailable(Exception):
    """The ledger did not store the command, or did not confirm it in time: submit the command again."""


class Unrecordable(LedgerUnavailable):
    """The ledger cannot take this command, though it takes others: what it needs of the past is damaged."""


class EventTooLarge(Exception):
    """The event is larger than EVENT_BYTES_MAX."""


class Recorded(Struct, frozen=True, gc=False):
    """The outcome of a command: the `position` of its fact, which is new or (`duplicate`) was already there.

    `conflict`: the same id was recorded with other content. `message` is the id of the message concerned.
    `last` is the position of the last event that the command added, None if it added none.
    """

    position: int | None
    duplicate: bool
    conflict: bool
    message: str | None
    last: int | None


class Pending(Struct, gc=False):
    """A command and the future of its outcome; `size` is in bytes, `since` in seconds of the loop's clock.

    `fence`: the lease under which alone it may be stored. `alone`: the command goes into a batch of its own,
    because the database refused a batch with it.
    """

    command: AnyCommand
    future: "asyncio.Future[Recorded]"
    size: int
    since: float
    fence: Fence | None = None
    tries: int = 0
    alone: bool = False

    def fail(self, error: Exception) -> None:
        """Set the error, unless the future is already done."""
        if not self.future.done():
            self.future.set_exception(error)


def _row(event: AnyEvent) -> tuple[str, int, str, bytes, str]:
    """The event as columns of the ledger, followed by its id. Raises EventTooLarge."""
    state = encode(event)
    if len(state) > EVENT_BYTES_MAX:
        raise EventTooLarge
    return event.stream, event.version, TAGS[type(event)], state, event.id


class ConversationCache:
    """States and clocks of the conversations seen lately; entries may be stale, see the theory above."""

    def __init__(self) -> None:
        self.states: dict[str, Chat] = {}
        self.clocks: dict[str, int] = {}
        self.long = LongStreams()

    def clear(self) -> None:
        """Drop every entry, but not the long streams."""
        self.states.clear()
        self.clocks.clear()

    def forget(self) -> None:
        """Drop everything: a database that has taken over may lack the last events."""
        self.clear()
        self.long = LongStreams()

    def limit(self) -> None:
        """Clear the cache once it has grown too large: cheaper than an order of use for each message."""
        if len(self.states) > CONVERSATIONS_CACHED_MAX:
            self.clear()


class Batch:
    """The commands of one commit. The module's theory gives the order in which the methods are called."""

    def __init__(self, pending: list[Pending], cache: ConversationCache) -> None:
        self.cache = cache
        self.pending = [one for one in pending if not one.future.done()]
        self.states: dict[str, State] = {}
        self.clocks: dict[str, int] = {}
        self.clocks_before: dict[str, int] = {}  # of the conversations whose clocks the batch moves
        self.clock_units: dict[str, int] = {}
        self.named: list[list[str]] = []  # the streams that each command names
        self.loaded: set[str] = set()  # the streams asked of the database
        self.conversations: set[str] = set()  # the streams to cache afterwards
        self.cached_versions: dict[str, int] = {}  # of the states taken from the cache
        self.readers: dict[str, dict[int, AnyCommand]] = {}  # for each stream the commands that read it
        self.history: dict[str, list[tuple[int, str]]] = {}  # position and event id, by version
        self.known: dict[str, int] = {}  # of the long streams, the version from which on they were read
        self.old_facts: dict[tuple[str, int], tuple[int, str]] = {}  # position and id of earlier versions
        self.rows: list[tuple[str, int, str, bytes, str]] = []
        self.row_units: list[int] = []
        self.decisions: list[tuple[Pending, int, Decision | Exception, int]] = []
        self.retry: list[Pending] = []
        self._units: dict[str, int] = {}
        self._parents: list[int] = []

    @property
    def fences(self) -> list[Fence]:
        """The leases under which alone some of the commands may be stored."""
        return list({one.fence for one in self.pending if one.fence})

    def first_streams(self) -> tuple[set[str], list[str]]:
        """Returns the streams that the commands name, and the conversations whose clocks they read."""
        wanted: set[str] = set()
        for pending in self.pending:
            command = pending.command
            named = names(command)
            self.named.append(named)
            if type(command) is Send:
                if not pending.tries and self._read_cache(command):
                    continue
                for end in command.ends:
                    self.conversations.add(end.stream)
            for stream in named:
                self.readers.setdefault(stream, {})[id(command)] = command
            wanted.update(named)
        return wanted, list(self.conversations)

    def _read_cache(self, command: Send) -> bool:
        """Take a new message's conversation and its clock from the cache; False if something is missing.

        The message's own stream is assumed to be empty. If it is not, the message is a repeat, and the append
        rejects it.
        """
        if command.reply_stream or command.forward_stream:
            return False
        cached, clocks = self.cache.states, self.cache.clocks
        found = []
        for end in command.ends:
            stream: str | None = end.stream
            while stream:
                chat = cached.get(stream)
                if chat is None or not (chat.into or stream in clocks):
                    return False
                found.append((stream, chat))
                stream = chat.into
        for stream, chat in found:
            if stream not in self.states:
                if chat.into is None:  # A pointer never changes, so its version needs no check.
                    self.cached_versions[stream] = chat.version
                self.states[stream] = chat
                self.clocks[stream] = clocks.get(stream, 0)
        return True

    def begin(self, wanted: Iterable[str]) -> dict[str, int]:
        """Begin to load streams: returns the versions of those of which only what is newer is needed."""
        known: dict[str, int] = {}
        for stream in wanted:
            self.loaded.add(stream)
            state = self.cache.long.get(stream)
            if state is not None and stream not in self.history:
                self.states[stream], self.history[stream] = state, []
                known[stream] = state.version
        self.known |= known
        return known

    def fold(self, rows: list[Row]) -> None:
        """Fold rows of `streams.read` into states and clocks."""
        states, history = self.states, self.history
        for number, raw, conversation in rows:
            if raw is None:
                self.clocks[conversation or ""] = number
                continue
            event = decode(unpack(raw))
            stream = event.stream
            if stream in history:
                before = states.get(stream)
            else:  # The stream's first event: the loaded state replaces a cached one.
                before = None
                self.cached_versions.pop(stream, None)
            states[stream] = fold(before, number, event)
            history.setdefault(stream, []).append((number, event.id))

    def next_streams(self) -> tuple[set[str], list[str]]:
        """Returns the streams that loaded ones point to, and the conversations whose clocks are needed."""
        wanted: set[str] = set()
        todo = [(stream, one) for stream, readers in self.readers.items() for one in readers.values()]
        for stream, reader in todo:  # The list grows while it is read.
            state = self.states.get(stream)
            for pointed in follow(reader, state) if state else ():
                readers = self.readers.setdefault(pointed, {})
                if id(reader) not in readers:
                    readers[id(reader)] = reader
                    todo.append((pointed, reader))
                from_cache = pointed in self.states and stream not in self.loaded
                if pointed not in self.loaded and not from_cache:
                    wanted.add(pointed)
        return wanted, list(wanted) if self.conversations else []

    def decide(self) -> None:
        """Decide every command in order; each sees the states that the ones before it produced."""
        snapshot = Snapshot(self.states, self.clocks)
        for pending, named in zip(self.pending, self.named, strict=True):
            lane = pending.command.lane
            unit = self._unit(named if lane in named else (lane, *named))
            try:
                decision = decide(pending.command, snapshot)
                rows = [_row(event) for event in decision.events]
            except (OwnMessage, TooManyFacts, Unknown, NotConnected, EventTooLarge) as error:
                self.decisions.append((pending, unit, error, 0))
                continue
            except Exception as error:  # A rule met a case that nobody foresaw: only this command fails.
                log.exception("a command cannot be decided")
                self.decisions.append((pending, unit, LedgerUnavailable(repr(error)), 0))
                continue
            unit = self._apply(unit, decision)
            self.rows.extend(rows)
            self.row_units.extend([unit] * len(rows))
            self.decisions.append((pending, unit, decision, len(rows)))

    def _apply(self, unit: int, decision: Decision) -> int:
        """Make the decision visible to later commands; returns the unit, joined with those it wrote into."""
        written, units = [], self._units
        for stream, state in decision.states.items():
            self.states[stream] = state
            if type(state) is Chat:
                self.conversations.add(stream)
            if units.get(stream) != unit:
                written.append(stream)
        conversation, msec = decision.clock or ("", 0)
        if conversation and units.get(conversation) != unit:
            written.append(conversation)
        if written:
            unit = self._unit(written, unit)
        if conversation:
            if conversation not in self.clocks_before:
                self.clocks_before[conversation] = self.clocks.get(conversation, 0)
            self.clocks[conversation] = msec
            self.clock_units[conversation] = unit
        return unit

    def _unit(self, keys: Iterable[str], mine: int = -1) -> int:
        """Join `mine` (-1: no unit yet) with every unit that has one of the keys; returns the joined unit."""
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

    def parameters(self, *, packed: bool = False) -> list[Column]:
        """Returns the arrays of `ledger.append`, with events as JSON or `packed`.

        The rows without a topic come last: versions of cached streams that must still be free.
        """
        root = self._root
        streams, versions, topics, states, _ = map(list, zip(*self.rows, strict=True))
        units = [*map(root, self.row_units)]
        for stream, version in self.cached_versions.items():
            if (unit := self._units.get(stream)) is not None:
                units.append(root(unit))
                streams.append(stream)
                versions.append(version + 1)
        nothing = [None] * (len(streams) - len(topics))
        clocks = list(self.clocks_before)
        return [
            ints(units),
            uuids(streams),
            longs(versions),
            texts_repeated(topics + nothing),
            blobs([*(map(pack, states) if packed else states), *nothing]),
            ints([root(self.clock_units[conversation]) for conversation in clocks]),
            uuids(clocks),
            longs(list(self.clocks_before.values())),
            longs([self.clocks[conversation] for conversation in clocks]),
        ]

    def resolve(self, bad: set[int], head: int) -> int:
        """Resolve the futures, now that all units but the `bad` ones are on disk; returns the ledger's new
        head.

        `head` is the ledger's last position before the append.
        """
        position, index = head, 0
        stored: list[tuple[int, int, int]] = []
        others: list[tuple[Pending, Decision, int | None]] = []
        for pending, unit, decision, count in self.decisions:
            first, end = index, index + count
            index = end
            if bad and self._root(unit) in bad:
                self._put_back(pending)
                continue
            stored.append((first, end, position))
            position += count
            if pending.future.done():
                continue
            if isinstance(decision, Exception):
                pending.future.set_exception(decision)
            elif count and self._ends_with_fact(decision, self.rows[end - 1]):
                outcome = Recorded(
                    position, decision.duplicate, decision.conflict, decision.message, position
                )
                pending.future.set_result(outcome)
            else:
                others.append((pending, decision, position if count else None))
        if others:
            self._extend_history(stored)
        for pending, decision, last in others:
            pending.future.set_result(self._outcome(pending, decision, last))
        self._update_cache(bad)
        return position

    @staticmethod
    def _ends_with_fact(decision: Decision, row: tuple[str, int, str, bytes, str]) -> bool:
        """Whether the decision's last event is the fact that it reports, as it nearly always is."""
        return row[0] == decision.stream and row[1] == decision.version

    def unread_facts(self) -> list[tuple[str, int]]:
        """Returns stream and version of the decided facts that were recorded before what was read."""
        if not self.known:
            return []
        decisions = (decision for _, _, decision, _ in self.decisions if isinstance(decision, Decision))
        return [
            (one.stream, one.version) for one in decisions if 0 < one.version <= self.known.get(one.stream, 0)
        ]

    def take_facts(self, rows: list[tuple[str, int, int, bytes]]) -> None:
        """Take what `streams.read_facts` has found of the `unread_facts`."""
        for stream, version, position, raw in rows:
            self.old_facts[stream, version] = position, decode(unpack(raw)).id

    def _extend_history(self, stored: list[tuple[int, int, int]]) -> None:
        """Add the batch's own rows to the streams' histories, for decisions that report another's fact."""
        for first, end, before in stored:
            for number, row in enumerate(self.rows[first:end], before + 1):
                self.history.setdefault(row[0], []).append((number, row[4]))

    def _update_cache(self, bad: set[int]) -> None:
        cache = self.cache
        for stream in self.conversations:
            if bad and self._is_bad(stream, bad):
                cache.states.pop(stream, None)
            elif isinstance(state := self.states.get(stream), Chat):
                cache.states[stream] = state
                if state.into and isinstance(chat := self.states.get(state.into), Chat):
                    cache.states[state.into] = chat
        for stream, kept in self.states.items():
            if kept.version >= LONG_EVENTS_MIN and not (bad and self._is_bad(stream, bad)):
                cache.long.keep(stream, kept)
        for conversation, unit in self.clock_units.items():
            if bad and self._root(unit) in bad:
                cache.clocks.pop(conversation, None)
            else:
                cache.clocks[conversation] = self.clocks[conversation]
        for pending in self.retry:
            for stream in names(pending.command):
                cache.states.pop(stream, None)
        cache.limit()

    def _is_bad(self, stream: str, bad: set[int]) -> bool:
        unit = self._units.get(stream)
        return unit is not None and self._root(unit) in bad

    def _outcome(self, pending: Pending, decision: Decision, last: int | None) -> Recorded:
        if decision.version == 0:
            return Recorded(None, False, False, None, last)
        stream, version = decision.stream, decision.version
        found = self.old_facts.get((stream, version))
        position, event_id = found or self.history[stream][version - 1 - self.known.get(stream, 0)]
        ours = event_id[:-2] == pending.command.id[:-2]
        duplicate = decision.duplicate and not ours
        return Recorded(position, duplicate, decision.conflict, decision.message, last)

    def _put_back(self, pending: Pending) -> None:
        pending.tries += 1
        if pending.tries > TRIES_MAX:
            pending.fail(LedgerUnavailable("other writers kept changing the same conversation"))
        else:
            self.retry.append(pending)
