"""Acknowledged means durable: commands in, committed events out, in one order without gaps.

Commands that arrive while the previous batch is committing form the next one: one select for all streams the
batch needs, decisions in order, one append, one fsync, one result per command. What must be tried again goes
ahead of what came later. When the link breaks, what became of the batch is unknown: it is simply decided
again, for a command that was stored meets its own events there.
"""

import asyncio
import itertools
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import cast

import psycopg

from app import schema
from app.batch import TRIES_MAX, Batch, Job, Memory, Recorded, TooLarge, Unavailable
from app.binary import take_columns
from domain.commands import AnyCommand
from projections.columns import uuids

__all__ = ["Full", "Ledger", "Recorded", "TooLarge", "Unavailable"]
BATCH_MAX = 500
SECOND_LANE_AT = 250
QUEUE_MAX = 20_000
QUEUE_BYTES_MAX = 64 * 1024 * 1024
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


class Full(Exception):
    """The ledger's queue is full: try again in a moment."""


class Ledger:
    """Takes commands and gives each its outcome once it is on disk.

    Two lanes, each with a connection and a batch, overlap Python with PostgreSQL. The second is used only
    while the first has a batch of its own to do: with few commands, two would make batches half as large that
    wait for each other's fsync. Commands with the same `lane` stay together while any of them is under way,
    so a conversation keeps its order. `commits` holds how long the latest appends took, in seconds.
    """

    def __init__(self, url: str, on_commit: Callable[[int], None], *, lanes: int = 2) -> None:
        self.on_commit = on_commit
        self.commits: deque[float] = deque(maxlen=COMMITS_KEPT)
        self._under_way: dict[str, list[int]] = {}  # lane of a command: which of ours, how many
        memory = Memory()
        self._lanes = [_Lane(url, self, memory) for _ in range(lanes)]
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
        under_way = self._under_way.get(command.lane)
        if under_way is None:
            under_way = [self._choose(), 0]
        future = self._lanes[under_way[0]].submit(command, size)
        under_way[1] += 1
        self._under_way[command.lane] = under_way
        return future

    def _choose(self) -> int:
        depths = [lane.depth for lane in self._lanes]
        return 0 if depths[0] < SECOND_LANE_AT else depths.index(min(depths))

    def done(self, jobs: list[Job]) -> None:
        """Lanes say which commands are no longer under way."""
        for job in jobs:
            under_way = self._under_way[job.command.lane]
            under_way[1] -= 1
            if not under_way[1]:
                del self._under_way[job.command.lane]

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
    def __init__(self, url: str, ledger: Ledger, memory: Memory) -> None:
        self.url = url
        self.ledger = ledger
        self.memory = memory
        self.queue: deque[Job] = deque()
        self.bytes = 0
        self.current: list[Job] = []
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
                job.fail(Unavailable("the database did not answer in time"))

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
        self.queue.append(Job(command, future, size, self.loop.time()))
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
            kept = {id(job) for job in retry}
            self.ledger.done([job for job in jobs if id(job) not in kept])
            self.queue.extendleft(reversed(retry))
            self.bytes += sum(job.size for job in retry)

    def _take(self) -> list[Job]:
        queue = self.queue
        jobs: list[Job] = []
        while queue and len(jobs) < BATCH_MAX and not (jobs and (queue[0].alone or jobs[-1].alone)):
            job = queue.popleft()
            self.bytes -= job.size
            jobs.append(job)
        return jobs

    async def _commit(self, jobs: list[Job]) -> list[Job]:
        batch = Batch(jobs, self.memory)
        await self._load(batch)
        batch.decide()
        if not batch.rows:
            batch.answer(set(), 0)
            return batch.retry
        start = time.perf_counter()
        row = await self._one(APPEND, batch.parameters())
        self.ledger.commits.append(time.perf_counter() - start)
        bad, head = cast("tuple[list[int] | None, int]", row)
        last = batch.answer(set(bad or ()), head)
        if last > head:
            self.ledger.on_commit(last)
        return batch.retry

    async def _load(self, batch: "Batch") -> None:
        wanted, clocks = batch.first()
        for _ in range(ROUNDS_MAX):
            if not wanted:
                return
            batch.asked.update(wanted)
            rows = await self._all(LOAD, [uuids(list(wanted)), uuids(clocks)])
            batch.take(cast("list[tuple[int, bytes | None, str | None]]", rows))
            wanted, clocks = batch.more()

    async def _all(self, statement: str, parameters: list[object]) -> list[tuple[object, ...]]:
        assert self.connection is not None
        cursor = self.connection.cursor(binary=True)
        await cursor.execute(statement.encode(), parameters, prepare=True)
        return await cursor.fetchall()

    async def _one(self, statement: str, parameters: list[object]) -> tuple[object, ...]:
        (row,) = await self._all(statement, parameters)
        return row

    async def _after(self, jobs: list[Job], error: psycopg.OperationalError) -> list[Job]:
        """The link broke, or the server is in trouble: connect again, and decide the batch again."""
        assert self.connection is not None
        log.warning("ledger: %d commands with unknown outcome: %s", len(jobs), str(error).strip())
        self.memory.forget()
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

    def _isolate(self, jobs: list[Job], error: psycopg.Error) -> list[Job]:
        """The database refused the batch: commands are tried one by one, so that only the culprit fails."""
        if len(jobs) == 1:
            log.error("ledger: command refused by the database: %s", str(error).strip())
            jobs[0].fail(Unavailable(str(error).strip()))
            return []
        for job in jobs:
            job.alone = True
        return jobs

    def _again(self, jobs: list[Job], error: psycopg.Error) -> list[Job]:
        retry = []
        for job in jobs:
            job.tries += 1
            if job.tries > TRIES_MAX or self.closed:
                job.fail(Unavailable(str(error).strip()))
            elif not job.future.done():
                retry.append(job)
        return retry
