"""Reads streams a page at a time, and of a long one that was read before only what is new.

A stream of thousands of events is folded once; after that its state stays in a bounded memory, with the
version that it has. An append-only stream never takes back an event, so such a state is never wrong, only
behind: the next read asks for the versions after it, also for those that other processes have added. The
memory ends with the connection, because another database may take over, without the last events. Between
pages the event loop goes on.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from typing import TypeAlias, cast

from app.database.connection import Db
from domain.events import AnyEvent, encode
from domain.state import Case, Message, Misfit, State, encode_any, evolve, skip
from projections.columns import longs, uuids

Row: TypeAlias = tuple[int, bytes | None, str | None]

# Chosen: some 3 ms of Python.
PAGE_ROWS = 500
# Chosen: shorter streams are read again as quickly as they are found here.
LONG_EVENTS_MIN = 64
# Chosen: about 50 MB of states, if each event leaves a key of KEY_BYTES behind.
LONG_EVENTS_MAX = 100_000
KEY_BYTES = 500
# What waits for an unknown name is kept as it came, so a stream of large facts is not remembered.
STATE_BYTES_MAX = 1024 * 1024
log = logging.getLogger("chatledger.ledger")

EVENTS = """SELECT notification_id, state, NULL FROM ledger.stored_events
 WHERE originator_id = ANY(%b::uuid[])
 UNION ALL SELECT msec, NULL, conversation::text FROM ledger.clocks WHERE conversation = ANY(%b::uuid[])"""
NEWS = """ UNION ALL SELECT e.notification_id, e.state, NULL FROM unnest(%b::uuid[], %b::bigint[]) AS i(o, v)
 JOIN ledger.stored_events e ON e.originator_id = i.o AND e.originator_version > i.v"""
SORTED = " ORDER BY 1"
FACTS = """SELECT e.originator_id::text, e.originator_version, e.notification_id, e.state
 FROM unnest(%b::uuid[], %b::bigint[]) AS i(o, v)
 JOIN ledger.stored_events e ON e.originator_id = i.o AND e.originator_version = i.v"""


class LongStreams:
    """States of long streams; those that were used last stay."""

    def __init__(self) -> None:
        self._states: dict[str, State] = {}
        self._weights: dict[str, int] = {}  # in events
        self._events = 0

    def get(self, stream: str) -> State | None:
        """Returns the state of a stream as far as it was read or written here, None if it is not known."""
        state = self._states.pop(stream, None)
        if state is not None:
            self._states[stream] = state  # It is now the last to be forgotten.
        return state

    def keep(self, stream: str, state: State) -> None:
        """Remember a state that holds nothing but what is stored, if the stream is long."""
        if state.version < LONG_EVENTS_MIN or not isinstance(state, Message | Case):
            return
        before = self._states.get(stream)
        if before is not None:
            if before.version >= state.version:
                return
            self._forget(stream)
        size = _bytes(state)
        if size > STATE_BYTES_MAX:
            return
        self._states[stream] = state
        self._weights[stream] = weight = state.version + size // KEY_BYTES
        self._events += weight
        while self._events > LONG_EVENTS_MAX:
            self._forget(next(iter(self._states)))

    def _forget(self, stream: str) -> None:
        del self._states[stream]
        self._events -= self._weights.pop(stream)


def _bytes(state: Message | Case) -> int:
    """How large the texts are that a state holds, beside its keys."""
    if isinstance(state, Case):
        return 0
    own = sum(len(encode_any(one)) for one in (state.sent, state.edited) if one)
    return own + sum(len(encode(fact)) for fact in state.waiting.values())


async def read(
    db: Db, streams: list[str], clocks: list[str], known: Mapping[str, int]
) -> AsyncIterator[list[Row]]:
    """Yields pages of the events of streams, by position, and the clocks of conversations.

    A row is (position, event, None) or (msec, None, conversation). Of a stream in `known` come the events
    after that version.
    """
    cursor, statement = db.cursor(binary=True), EVENTS
    parameters: list[object] = [uuids([one for one in streams if one not in known]), uuids(clocks)]
    if known:
        statement += NEWS
        parameters += [uuids(list(known)), longs(list(known.values()))]
    await cursor.execute((statement + SORTED).encode(), parameters, prepare=True)
    while rows := cast("list[Row]", await cursor.fetchmany(PAGE_ROWS)):
        yield rows
        if len(rows) < PAGE_ROWS:
            return
        await asyncio.sleep(0)


async def read_facts(db: Db, facts: list[tuple[str, int]]) -> list[tuple[str, int, int, bytes]]:
    """Returns stream, version, position and event of single versions of streams."""
    cursor = db.cursor(binary=True)
    parameters = [uuids([stream for stream, _ in facts]), longs([version for _, version in facts])]
    await cursor.execute(FACTS.encode(), parameters, prepare=True)
    return cast("list[tuple[str, int, int, bytes]]", await cursor.fetchall())


def fold(state: State | None, position: int, event: AnyEvent) -> State:
    """Returns the state of a stream after one more of its events; one that does not fit has no effect."""
    try:
        return evolve(state, event)
    except Misfit as error:  # Recorded by a version without this check.
        log.error("position %d is left out: %s", position, error)  # no fault of the code
        return skip(state, event)
