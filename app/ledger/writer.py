"""Acknowledged means durable: commands in, committed events out, in one order without gaps.

Commands that arrive while the previous batch is committing form the next one: one select for all streams the
batch needs, decisions in order, one append, one fsync, one result per command. What must be tried again goes
ahead of what came later. When the link breaks, what became of the batch is unknown: it is simply decided
again, for a command that was stored meets its own events there.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import cast

import psycopg

from app.database import connection
from app.database.binary import Prepared, int_array, take_columns
from app.ledger.batch import TRIES_MAX, Batch, EventTooLarge, Job, LedgerUnavailable, Memory, Recorded
from domain.commands import AnyCommand
from projections.columns import uuids

__all__ = ["EventTooLarge", "Ledger", "LedgerFull", "LedgerUnavailable", "Recorded"]
BATCH_MAX = 500
OWN_LANE_AT = 125
GATHER_MAX = 2
QUEUE_MAX = 20_000
QUEUE_BYTES_MAX = 64 * 1024 * 1024
ROUNDS_MAX = 8
RECONNECT_SECONDS_MAX = 2.0
WAIT_SECONDS_MAX = 4.5  # Kommo hangs up after 5
WATCH_SECONDS = 0.25
COMMITS_KEPT = 4096
log = logging.getLogger("chatledger.ledger")

# Look-ups are by key: a plan made while the table was small would read all of it, and is kept while it grows.
PLANS = "SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off; SET jit = off"
LOAD = """SELECT notification_id, state, NULL FROM ledger.stored_events WHERE originator_id = ANY(%b::uuid[])
 UNION ALL SELECT msec, NULL, conversation::text FROM ledger.clocks WHERE conversation = ANY(%b::uuid[])"""
APPEND = """PREPARE append (int[], uuid[], bigint[], text[], bytea[], int[], uuid[], bigint[], bigint[]) AS
 SELECT bad, head FROM ledger.append($1, $2, $3, $4, $5, $6, $7, $8, $9)"""


class LedgerFull(Exception):
    """The ledger's queue is full: try again in a moment."""


class Ledger:
    """Takes commands and gives each its outcome once it is on disk.

    Two lanes, each with a connection and a batch, overlap Python with PostgreSQL. A command's `lane` decides
    which of their queues it waits in, so a conversation keeps its order. While the second queue is short the
    first lane empties both: two lanes would make batches half as large that wait for each other's fsync.
    `commits` holds how long the latest appends took, in seconds.
    """

    def __init__(self, url: str, on_commit: Callable[[int], None], *, lanes: int = 2) -> None:
        self.on_commit = on_commit
        self.commits: deque[float] = deque(maxlen=COMMITS_KEPT)
        self.closed = False
        self.queues = [_Queue() for _ in range(lanes)]
        memory = Memory()
        self._lanes = [_Lane(url, self, number, memory) for number in range(lanes)]
        self._loop = asyncio.get_running_loop()
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
        self.closed = True
        self.wake()
        await asyncio.gather(*(lane.close(timeout_seconds) for lane in self._lanes))
        for queue in self.queues:
            for job in queue.jobs:
                job.future.cancel()

    def submit(self, command: AnyCommand, size: int = 1024) -> "asyncio.Future[Recorded]":
        """Queue a command of about `size` bytes; the future has its outcome once that is durable.

        Raises LedgerFull. The future raises OwnMessage, Unknown, NotConnected, EventTooLarge and
        LedgerUnavailable.
        """
        if not self.has_room(1, size):
            raise LedgerFull
        future: asyncio.Future[Recorded] = self._loop.create_future()
        queue = self.queue_of(command)
        queue.jobs.append(Job(command, future, size, self._loop.time()))
        queue.bytes += size
        self._lanes[0].wake.set()
        if len(queue.jobs) == OWN_LANE_AT:
            self.wake()
        return future

    def queue_of(self, command: AnyCommand) -> "_Queue":
        """Where a command waits: always in the same queue for the same lane."""
        return self.queues[hash(command.lane) % len(self.queues)]

    def wake(self) -> None:
        """Have every lane look at the queues."""
        for lane in self._lanes:
            lane.wake.set()

    def has_room(self, commands: int, size: int) -> bool:
        """Whether so many commands, of so many bytes together, would all be taken."""
        waiting, taken = 0, 0
        for queue in self.queues:
            waiting += len(queue.jobs)
            taken += queue.bytes
        return not self.closed and waiting + commands <= QUEUE_MAX and taken + size <= QUEUE_BYTES_MAX

    @property
    def depth(self) -> int:
        """How many commands wait or are being committed."""
        return sum(len(each.jobs) for each in self.queues) + sum(len(lane.current) for lane in self._lanes)

    async def _keep_watch(self) -> None:
        """Nobody waits longer than Kommo does, whatever keeps the database."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            oldest = self._loop.time() - WAIT_SECONDS_MAX
            for jobs in (*(lane.current for lane in self._lanes), *(queue.jobs for queue in self.queues)):
                for job in jobs:
                    if job.since < oldest:
                        job.fail(LedgerUnavailable("the database did not answer in time"))


class _Queue:
    """Commands in the order they came; while a lane has some of them in its batch, no other takes more."""

    def __init__(self) -> None:
        self.jobs: deque[Job] = deque()
        self.bytes = 0
        self.taken = False

    def move_to(self, batch: list[Job]) -> None:
        """Move commands to a batch until that is full; one that must be alone goes alone."""
        while (
            self.jobs and len(batch) < BATCH_MAX and not (batch and (self.jobs[0].alone or batch[-1].alone))
        ):
            job = self.jobs.popleft()
            self.bytes -= job.size
            batch.append(job)
            self.taken = True

    def put_back(self, job: Job) -> None:
        """A command that must be tried again goes ahead of all others."""
        self.jobs.appendleft(job)
        self.bytes += job.size


class _Lane:
    def __init__(self, url: str, ledger: Ledger, number: int, memory: Memory) -> None:
        self.url = url
        self.ledger = ledger
        self.number = number
        self.memory = memory
        self.current: list[Job] = []
        self.wake = asyncio.Event()
        self.connection: psycopg.AsyncConnection[tuple[object, ...]] | None = None
        self.append: Prepared | None = None
        self.task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        await self.connect()
        self.task = asyncio.create_task(self._run(), name=f"ledger lane {self.number}")

    async def connect(self) -> None:
        self.connection = await connection.connect(self.url)
        await self.connection.execute(PLANS)
        await self.connection.execute(APPEND)
        self.append = Prepared(self.connection, "append")
        take_columns(self.connection)

    async def close(self, timeout_seconds: float) -> None:
        if self.task is not None:
            await asyncio.wait([self.task], timeout=timeout_seconds)
            self.task.cancel()
            await asyncio.wait([self.task])
        if self.connection is not None:
            await self.connection.close()

    async def _run(self) -> None:
        ledger = self.ledger
        while True:
            await self._gather()
            self.wake.clear()
            queues = self._take()
            if not self.current:
                if ledger.closed and not any(queue.jobs or queue.taken for queue in ledger.queues):
                    return
                await self.wake.wait()
                continue
            try:
                retry = await self._commit(self.current)
            except psycopg.OperationalError as error:
                retry = await self._after(self.current, error)
            except psycopg.Error as error:
                retry = self._isolate(self.current, error)
            self.current = []
            for job in reversed(retry):
                ledger.queue_of(job.command).put_back(job)
            for queue in queues:
                queue.taken = False
            ledger.wake()

    async def _gather(self) -> None:
        """Let what has arrived at the process be read, as long as that makes the batch larger."""
        before = -1
        for _ in range(GATHER_MAX):
            waiting = sum(len(queue.jobs) for queue in self.ledger.queues)
            if waiting == before or waiting >= OWN_LANE_AT:
                return
            before = waiting
            await asyncio.sleep(0)

    def _take(self) -> "list[_Queue]":
        """Fill the batch from the queues that are this lane's now; returns those."""
        queues: list[_Queue] = []
        for number, queue in enumerate(self.ledger.queues):
            own = number == self.number and (number == 0 or len(queue.jobs) >= OWN_LANE_AT)
            other = self.number == 0 and (len(queue.jobs) < OWN_LANE_AT or self.ledger.closed)
            if (own or other) and not queue.taken:
                queue.move_to(self.current)
                if queue.taken:
                    queues.append(queue)
        return queues

    async def _commit(self, jobs: list[Job]) -> list[Job]:
        batch = Batch(jobs, self.memory)
        await self._load(batch)
        batch.decide()
        if not batch.rows:
            batch.answer(set(), 0)
            return batch.retry
        start = time.perf_counter()
        assert self.append is not None
        bad, raw = await self.append.row(batch.parameters())
        self.ledger.commits.append(time.perf_counter() - start)
        head = int.from_bytes(raw or b"")
        last = batch.answer(set(int_array(bad)), head)
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
            jobs[0].fail(LedgerUnavailable(str(error).strip()))
            return []
        for job in jobs:
            job.alone = True
        return jobs

    def _again(self, jobs: list[Job], error: psycopg.Error) -> list[Job]:
        retry = []
        for job in jobs:
            job.tries += 1
            if job.tries > TRIES_MAX or self.ledger.closed:
                job.fail(LedgerUnavailable(str(error).strip()))
            elif not job.future.done():
                retry.append(job)
        return retry
