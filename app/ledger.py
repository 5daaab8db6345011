"""Acknowledged means durable: commands in, committed events out, in one order without gaps.

Commands that arrive while the previous batch is committing form the next one: one select for all streams the
batch needs, decisions in order, one append, one fsync, one result per command. Commands that share a stream
or a lane form a *unit*, which is stored whole or tried again whole, ahead of what came later. When the link
breaks, what became of the batch is unknown: it is simply decided again, for a command that was stored meets
its own events there.
"""

import asyncio
import itertools
import logging
import time
from collections import deque
from collections.abc import Callable
from operator import itemgetter
from typing import TypeAlias, cast

import psycopg
from msgspec import Struct

from app import schema
from app.binary import take_columns
from domain.commands import AnyCommand, Send
from domain.decide import NotConnected, OwnMessage, Unknown, decide, follow, names
from domain.draft import Decision, Known
from domain.events import EVENT_BYTES_MAX, TAGS, AnyEvent, decode, encode
from domain.state import State, evolve
from projections.columns import blobs, ints, longs, texts, uuids

BATCH_MAX = 500
QUEUE_MAX = 20_000
QUEUE_BYTES_MAX = 64 * 1024 * 1024
TRIES_MAX = 10
ROUNDS_MAX = 8
RECONNECT_SECONDS_MAX = 2.0
WAIT_SECONDS_MAX = 4.5  # Kommo hangs up after 5
WATCH_SECONDS = 0.25
COMMITS_KEPT = 4096
log = logging.getLogger("chatledger.ledger")

LOAD = """SELECT notification_id, state, NULL FROM ledger.stored_events WHERE originator_id = ANY(%b::uuid[])
 UNION ALL SELECT msec, NULL, conversation::text FROM ledger.clocks WHERE conversation = ANY(%b::uuid[])"""
APPEND = """SELECT bad, head FROM ledger.append(%b::int[], %b::uuid[], %b::bigint[], %b::text[], %b::bytea[],
 %b::int[], %b::uuid[], %b::bigint[], %b::bigint[])"""

Refusal: TypeAlias = OwnMessage | Unknown | NotConnected


class Full(Exception):
    """The ledger's queue is full: try again in a moment."""


class Unavailable(Exception):
    """The ledger did not take the command, or not in time to say so: it may be given again."""


class TooLarge(Exception):
    """The event would be larger than an event may be."""


class Recorded(Struct, frozen=True, gc=False):
    """The outcome of a command: `position` of the fact it is about, new or (`duplicate`) already there."""

    position: int | None
    duplicate: bool
    conflict: bool
    message: str | None
    last: int | None


class _Job(Struct, gc=False):
    command: AnyCommand
    future: "asyncio.Future[Recorded]"
    size: int
    since: float
    tries: int = 0
    alone: bool = False


class Ledger:
    """Takes commands and gives each its outcome once it is on disk.

    Two lanes, each with its own connection and batch, overlap Python with PostgreSQL; a command's `lane`
    decides which one it goes to, so a conversation keeps its order. `commits` holds how long the latest
    appends took, in seconds.
    """

    def __init__(self, url: str, on_commit: Callable[[int], None], *, lanes: int = 2) -> None:
        self.on_commit = on_commit
        self.commits: deque[float] = deque(maxlen=COMMITS_KEPT)
        self._lanes = [_Lane(url, on_commit, self.commits) for _ in range(lanes)]
        self._watch: asyncio.Task[None] | None = None

    @property
    def tasks(self) -> "list[asyncio.Task[None]]":
        """What must not end before `close`: if one does, the process cannot go on."""
        return [lane.task for lane in self._lanes if lane.task]

    async def open(self) -> None:
        """Connect; raises psycopg.OperationalError if the database is not there."""
        for lane in self._lanes:
            await lane.open()
        self._watch = asyncio.create_task(self._keep_watch(), name="ledger watch")

    async def close(self, timeout_seconds: float = 3.0) -> None:
        """Commit what is queued, for at most `timeout_seconds`, then let go of the rest unanswered."""
        if self._watch is not None:
            self._watch.cancel()
        await asyncio.gather(*(lane.close(timeout_seconds) for lane in self._lanes))

    def submit(self, command: AnyCommand, size: int = 1024) -> "asyncio.Future[Recorded]":
        """Queue a command of about `size` bytes; the future has its outcome once that is durable.

        Raises Full. The future raises OwnMessage, Unknown, NotConnected, TooLarge, Unavailable.
        """
        return self._lanes[hash(command.lane) % len(self._lanes)].submit(command, size)

    def has_room(self, commands: int, size: int) -> bool:
        """Whether so many commands, of so many bytes together, would all be taken."""
        return all(lane.has_room(commands, size) for lane in self._lanes)

    @property
    def depth(self) -> int:
        """How many commands wait or are being committed."""
        return sum(lane.depth for lane in self._lanes)

    async def _keep_watch(self) -> None:
        """Nobody waits longer than Kommo does, whatever keeps the database."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            oldest = loop.time() - WAIT_SECONDS_MAX
            for lane in self._lanes:
                lane.give_up(oldest)


class _Lane:
    def __init__(self, url: str, on_commit: Callable[[int], None], commits: deque[float]) -> None:
        self.url = url
        self.on_commit = on_commit
        self.commits = commits
        self.queue: deque[_Job] = deque()
        self.bytes = 0
        self.current: list[_Job] = []
        self.closed = False
        self.loop = asyncio.get_running_loop()
        self.wake = asyncio.Event()
        self.connection: psycopg.AsyncConnection[tuple[object, ...]] | None = None
        self.task: asyncio.Task[None] | None = None

    @property
    def depth(self) -> int:
        return len(self.queue) + len(self.current)

    def has_room(self, commands: int, size: int) -> bool:
        full = self.depth + commands > QUEUE_MAX or self.bytes + size > QUEUE_BYTES_MAX
        return not (self.closed or full)

    def give_up(self, oldest: float) -> None:
        """Answer those who have waited since before `oldest`; what becomes of their commands is open."""
        for job in (*self.current, *itertools.takewhile(lambda job: job.since < oldest, self.queue)):
            if job.since < oldest:
                _fail(job, Unavailable("the database did not answer in time"))

    async def open(self) -> None:
        await self.connect()
        self.task = asyncio.create_task(self._run(), name="ledger lane")

    async def connect(self) -> None:
        self.connection = await schema.connect(self.url)
        take_columns(self.connection)

    async def close(self, timeout_seconds: float) -> None:
        self.closed = True
        self.wake.set()
        if self.task is not None:
            await asyncio.wait([self.task], timeout=timeout_seconds)
            self.task.cancel()
            await asyncio.wait([self.task])
        for job in self.queue:
            job.future.cancel()
        if self.connection is not None:
            await self.connection.close()

    def submit(self, command: AnyCommand, size: int) -> "asyncio.Future[Recorded]":
        if not self.has_room(1, size):
            raise Full
        future: asyncio.Future[Recorded] = self.loop.create_future()
        self.queue.append(_Job(command, future, size, self.loop.time()))
        self.bytes += size
        self.wake.set()
        return future

    async def _run(self) -> None:
        while not (self.closed and not self.queue):
            if not self.queue:
                self.wake.clear()
                await self.wake.wait()
                continue
            jobs = self.current = self._take()
            try:
                retry = await self._commit(jobs)
            except psycopg.OperationalError as error:
                retry = await self._after(jobs, error)
            except psycopg.Error as error:
                retry = self._isolate(jobs, error)
            self.current = []
            self.queue.extendleft(reversed(retry))
            self.bytes += sum(job.size for job in retry)

    def _take(self) -> list[_Job]:
        queue = self.queue
        jobs: list[_Job] = []
        while queue and len(jobs) < BATCH_MAX and not (jobs and (queue[0].alone or jobs[-1].alone)):
            job = queue.popleft()
            self.bytes -= job.size
            jobs.append(job)
        return jobs

    async def _commit(self, jobs: list[_Job]) -> list[_Job]:
        batch = _Batch(jobs)
        await self._load(batch)
        batch.decide()
        if not batch.rows:
            batch.answer(set(), 0)
            return batch.retry
        start = time.perf_counter()
        row = await self._one(APPEND, batch.parameters())
        self.commits.append(time.perf_counter() - start)
        bad, head = cast("tuple[list[int] | None, int]", row)
        last = batch.answer(set(bad or ()), head)
        if last > head:
            self.on_commit(last)
        return batch.retry

    async def _load(self, batch: "_Batch") -> None:
        wanted, clocks = batch.first()
        for _ in range(ROUNDS_MAX):
            batch.asked.update(wanted)
            rows = await self._all(LOAD, [uuids(list(wanted)), uuids(clocks)])
            batch.take(cast("list[tuple[int, bytes | None, str | None]]", rows))
            wanted, clocks = batch.more()
            if not wanted:
                return

    async def _all(self, statement: str, parameters: list[object]) -> list[tuple[object, ...]]:
        assert self.connection is not None
        cursor = self.connection.cursor(binary=True)
        await cursor.execute(statement.encode(), parameters, prepare=True)
        return await cursor.fetchall()

    async def _one(self, statement: str, parameters: list[object]) -> tuple[object, ...]:
        (row,) = await self._all(statement, parameters)
        return row

    async def _after(self, jobs: list[_Job], error: psycopg.OperationalError) -> list[_Job]:
        """The link broke, or the server is in trouble: connect again, and decide the batch again."""
        assert self.connection is not None
        log.warning("ledger: %d commands with unknown outcome: %s", len(jobs), str(error).strip())
        if self.connection.closed or self.connection.broken:
            await self._reconnect()
        else:
            await asyncio.sleep(0.1)
        return self._again(jobs, error)

    async def _reconnect(self) -> None:
        wait = 0.05
        while True:
            try:
                await self.connect()
            except psycopg.OperationalError as error:
                log.warning("ledger: no database, trying again: %s", str(error).strip())
                await asyncio.sleep(wait)
                wait = min(wait * 2, RECONNECT_SECONDS_MAX)
            else:
                return

    def _isolate(self, jobs: list[_Job], error: psycopg.Error) -> list[_Job]:
        """The database refused the batch: commands are tried one by one, so that only the culprit fails."""
        if len(jobs) == 1:
            log.error("ledger: command refused by the database: %s", str(error).strip())
            _fail(jobs[0], Unavailable(str(error).strip()))
            return []
        for job in jobs:
            job.alone = True
        return jobs

    def _again(self, jobs: list[_Job], error: psycopg.Error) -> list[_Job]:
        retry = []
        for job in jobs:
            job.tries += 1
            if job.tries > TRIES_MAX or self.closed:
                _fail(job, Unavailable(str(error).strip()))
            elif not job.future.done():
                retry.append(job)
        return retry


def _fail(job: _Job, error: Exception) -> None:
    if not job.future.done():
        job.future.set_exception(error)


def _row(event: AnyEvent) -> tuple[str, int, str, bytes, str]:
    """An event as the ledger's columns, and its id."""
    state = encode(event)
    if len(state) > EVENT_BYTES_MAX:
        raise TooLarge
    return event.stream, event.version, TAGS[type(event)], state, event.id


class _Batch:
    """The commands of one commit, from what they read to what they are answered."""

    def __init__(self, jobs: list[_Job]) -> None:
        self.jobs = [job for job in jobs if not job.future.done()]
        self.states: dict[str, State] = {}
        self.clocks: dict[str, int] = {}
        self.before: dict[str, int] = {}
        self.named: list[list[str]] = []
        self.asked: set[str] = set()
        self.ends: set[str] = set()
        self.readers: dict[str, AnyCommand] = {}
        self.history: dict[str, list[tuple[int, str]]] = {}
        self.rows: list[tuple[str, int, str, bytes, str]] = []
        self.row_units: list[int] = []
        self.clock_units: dict[str, int] = {}
        self.outcomes: list[tuple[_Job, int, Decision | Exception, int]] = []
        self.retry: list[_Job] = []
        self._units: dict[str, int] = {}
        self._parents: list[int] = []

    def first(self) -> tuple[set[str], list[str]]:
        """The streams that the commands name, and the conversations whose clocks they read."""
        wanted: set[str] = set()
        for job in self.jobs:
            command = job.command
            named = names(command)
            self.named.append(named)
            wanted.update(named)
            if type(command) is Send:
                for end in command.ends:
                    self.ends.add(end.stream)
            else:
                for stream in named:
                    self.readers[stream] = command
        return wanted, list(self.ends)

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
            states[stream] = evolve(states.get(stream), event)
            history.setdefault(stream, []).append((number, event.id))

    def more(self) -> tuple[set[str], list[str]]:
        """The streams that loaded ones point to, and the conversations among them whose clocks are needed."""
        wanted: set[str] = set()
        for stream, state in self.states.items():
            reader = self.readers.get(stream, self.jobs[0].command)
            for pointed in follow(reader, state):
                if pointed not in self.asked:
                    wanted.add(pointed)
                    self.readers[pointed] = reader
        return wanted, list(wanted) if self.ends else []

    def decide(self) -> None:
        """Decide every command in order; each sees what the ones before it decided."""
        known = Known(self.states, self.clocks)
        for job, named in zip(self.jobs, self.named, strict=True):
            unit = self._unit(job.command.lane, named)
            try:
                decision = decide(job.command, known)
                rows = [_row(event) for event in decision.events]
            except (OwnMessage, Unknown, NotConnected, TooLarge) as error:
                self.outcomes.append((job, unit, error, 0))
                continue
            except Exception as error:  # a rule met what nobody thought of: this command fails alone
                log.exception("a command cannot be decided")
                self.outcomes.append((job, unit, Unavailable(repr(error)), 0))
                continue
            self._keep(unit, decision)
            self.rows.extend(rows)
            self.row_units.extend([unit] * len(rows))
            self.outcomes.append((job, unit, decision, len(rows)))

    def _keep(self, unit: int, decision: Decision) -> None:
        self.states.update(decision.states)
        if decision.clock:
            conversation, msec = decision.clock
            self.before.setdefault(conversation, self.clocks.get(conversation, 0))
            self.clocks[conversation] = msec
            self.clock_units[conversation] = unit

    def _unit(self, lane: str, named: list[str]) -> int:
        """The unit of a command: joined with every other that shares its lane or a stream it names."""
        units, mine = self._units, -1
        for key in (lane, *named):
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

    def parameters(self) -> list[object]:
        """The arrays of `ledger.append`."""
        root = self._root
        streams, versions, topics, states, _ = zip(*self.rows, strict=True)
        clocks = list(self.before)
        return [
            ints([root(unit) for unit in self.row_units]),
            uuids(streams),
            longs(versions),
            texts(topics),
            blobs(states),
            ints([root(self.clock_units[conversation]) for conversation in clocks]),
            uuids(clocks),
            longs(list(self.before.values())),
            longs([self.clocks[conversation] for conversation in clocks]),
        ]

    def answer(self, bad: set[int], head: int) -> int:
        """Resolve the futures now that the batch is on disk; returns the ledger's new head."""
        position, index = head, 0
        for job, unit, decision, count in self.outcomes:
            rows = self.rows[index : index + count]
            index += count
            if bad and self._root(unit) in bad:
                self._put_back(job)
                continue
            for stream, _, _, _, event_id in rows:
                position += 1
                self.history.setdefault(stream, []).append((position, event_id))
            if job.future.done():
                continue
            if isinstance(decision, Exception):
                job.future.set_exception(decision)
            else:
                job.future.set_result(self._recorded(job, decision, position if rows else None))
        return position

    def _recorded(self, job: _Job, decision: Decision, last: int | None) -> Recorded:
        if decision.version == 0:
            return Recorded(None, False, False, None, last)
        position, event_id = self.history[decision.stream][decision.version - 1]
        ours = event_id[:-2] == job.command.id[:-2]
        duplicate = decision.duplicate and not ours
        return Recorded(position, duplicate, decision.conflict, decision.message, last)

    def _put_back(self, job: _Job) -> None:
        job.tries += 1
        if job.tries > TRIES_MAX:
            _fail(job, Unavailable("other writers kept changing the same conversation"))
        else:
            self.retry.append(job)
