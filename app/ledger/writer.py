"""Acknowledged means durable: commands in, committed events out, in one order without gaps.

Theory of operation. Group commit: the commands that arrive while a batch is committing form the next batch,
with one SELECT for all streams that the batch needs, decisions in order, one append, one fsync, and one
outcome per command. So a batch grows with the load, and a single command waits for nobody.

Queues and writers. A command's `lane` decides which queue it waits in, so that the commands of a conversation
keep their order; within a queue the scopes take turns (`queue`). Each of the two writers has a connection, a
batch and a queue of its own. While the second
queue is short, the first writer empties both: two writers would make batches half as large that wait for each
other's fsync. From `SECOND_WRITER_AT` commands on, the second writer takes its own queue, and one writer
decides in Python while PostgreSQL stores the batch of the other. A queue is `taken` while one of its commands
is in a batch; no other writer takes from it then. Commands that must be tried again go to the front of their
queue before the queue is given back.

Sharing. A command that arrives waits for the batches that are being committed. So while one of several scopes
at work has a crowd waiting, batches stay small (`SHARED_BATCH_MAX`), and the first writer makes them all,
because the append of one writer waits for that of the other. It rests after each batch (`turns.rest_after`),
and takes only commands of the scopes without a crowd when they call: machine and database
then have room for what comes. It rests likewise while only outcomes of deliveries wait. A full queue still
takes commands of the scopes that have few in it.

Errors. If the connection breaks, the outcome of the batch is unknown: the writer connects again and the same
commands are decided again (`batch` says why that is safe). If the database refuses a batch for another
reason, or the past of one of its commands cannot be read, its commands are tried one by one, so that only the
culprit fails. A watch fails every command that has waited for `WAIT_SECONDS_MAX`.
"""

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable
from itertools import chain

import psycopg

from app.database.connection import Db
from app.database.leases import Fence, LeaseLost
from app.ledger.batch import (
    TRIES_MAX,
    Batch,
    ConversationCache,
    EventTooLarge,
    LedgerUnavailable,
    Pending,
    Recorded,
    Unrecordable,
)
from app.ledger.queue import Queue
from app.ledger.session import Append, Failure, open_writer, reason_of
from app.ledger.streams import read, read_facts
from app.turns import rest_after
from domain.commands import AnyCommand
from domain.ids import Scope

__all__ = ["EventTooLarge", "Ledger", "LedgerFull", "LedgerUnavailable", "Recorded", "Unrecordable"]

# Chosen: 500 messages are some 390 KB, what a Unix socket takes whole where `net.core.wmem_max` is Linux's
# default, and about 20 ms of Python, during which the process does nothing else.
BATCH_MAX = 500
# A quarter of BATCH_MAX. Measured: with 64 commands at a time, one writer stores twice as many as two.
SECOND_WRITER_AT = 125
# Measured with `./ops/bench fair`: some 3 ms of Python, and as much of PostgreSQL.
SHARED_BATCH_MAX = 64
# Chosen: as many as come from neighbours in a rest.
REST_BATCH_MAX = 16
# Chosen: who has sent something is at work for so long.
SHARED_SECONDS = 2.0
# Chosen: one turn of the loop lets the sockets be read, another lets the handlers submit what they read.
GATHER_TURNS_MAX = 2
# Chosen: a second of work at the speed of `./ops/bench append`. A disk four times slower still stores all of
# it before Kommo hangs up.
QUEUE_MAX = 20_000
# Chosen: what the queue may add to the memory of the process.
QUEUE_BYTES_MAX = 64 * 1024 * 1024
# Chosen: a full queue takes this many commands of each scope and half as much again in all, so that no scope
# takes it from the others. A channel may have any number of scopes, so half of that is for other channels.
SCOPE_QUEUE_MIN, OVER, CHANNEL_OVER = 1_000, 1.5, 1.25
# As many as `domain.conversations.HOPS_MAX`, because a round follows each pointer by one step.
LOAD_ROUNDS_MAX = 8
# Chosen: PostgreSQL restarts in about a second.
RECONNECT_SECONDS_MIN, RECONNECT_SECONDS_MAX = 0.05, 2.0
PAUSE_SECONDS = 0.1  # Chosen: before a retry when the server is in trouble, but the connection is not broken.
# Kommo documents that it hangs up after 5 s, and it never sends the hook again.
WAIT_SECONDS_MAX = 4.5
IDLE_SECONDS = 2.0  # Chosen: as long as a keepalive waits (`connection.NETWORK`).
# Chosen: half of what is left between WAIT_SECONDS_MAX and Kommo's limit.
WATCH_SECONDS = 0.25
# Chosen: enough for the p99 that `./ops/bench latency` reports.
COMMITS_KEPT = 4096
log = logging.getLogger("chatledger.ledger")


class LedgerFull(Exception):
    """The ledger's queue is full: try again in a moment."""


class StreamUnreadable(Exception):
    """A stream that a command needs has an event that cannot be read or folded."""


class Ledger:
    """Takes commands and gives each its outcome once it is on disk.

    `on_commit` is called with the ledger's new head after each append. `commits` holds how long the latest
    appends took, in seconds. `failure` is the last one, unless something was stored since.
    """

    def __init__(self, url: str, on_commit: Callable[[int], None], *, writers: int = 2) -> None:
        self.on_commit = on_commit
        self.commits: deque[float] = deque(maxlen=COMMITS_KEPT)
        self.closed = False
        self.failure: Failure | None = None
        self.queues = [Queue() for _ in range(writers)]
        cache = ConversationCache()
        self._writers = [_Writer(url, self, number, cache) for number in range(writers)]
        self._loop = asyncio.get_running_loop()
        self._watch: asyncio.Task[None] | None = None
        self._last_scope = ""
        self._shared_until = 0.0

    @property
    def tasks(self) -> "list[asyncio.Task[None]]":
        """The writers' tasks. If one ends before `close`, the process must stop."""
        return [writer.task for writer in self._writers if writer.task]

    async def open(self) -> None:
        """Connect. Raises psycopg.OperationalError if the database does not answer."""
        for writer in self._writers:
            await writer.open()
        self._watch = asyncio.create_task(self._keep_watch(), name="ledger watch")

    async def close(self, timeout_seconds: float = 3.0) -> None:
        """Commit what is queued, for at most `timeout_seconds`; cancel the futures of the rest."""
        if self._watch is not None:
            self._watch.cancel()
        self.closed = True
        self.wake()
        await asyncio.gather(*(writer.close(timeout_seconds) for writer in self._writers))
        for queue in self.queues:
            for pending in queue:
                pending.future.cancel()

    def submit(
        self, command: AnyCommand, size: int = 1024, *, fence: Fence | None = None
    ) -> "asyncio.Future[Recorded]":
        """Queue a command of about `size` bytes; the future gets the outcome once it is durable.

        With a `fence` it is stored only while that lease is the one in force: the future raises LeaseLost.
        Raises LedgerFull. The future raises OwnMessage, TooManyFacts, Unknown, NotConnected,
        EventTooLarge and LedgerUnavailable.
        """
        scope_id, now = command.scope.scope_id, self._loop.time()
        if not self.has_room(1, size, command.scope):
            raise LedgerFull
        if scope_id != self._last_scope:
            if self._last_scope:
                self._shared_until = now + SHARED_SECONDS
            self._last_scope = scope_id
        future: asyncio.Future[Recorded] = self._loop.create_future()
        queue = self.queue_of(command)
        is_calm = queue.put(Pending(command, future, size, now, fence))
        writer = self._writers[0]
        writer.wake.set()
        if is_calm:
            writer.called.set()
            if queue.crowds:  # Another scope's, though it may have submitted it long ago.
                self._shared_until = now + SHARED_SECONDS
        if queue.count == SECOND_WRITER_AT:
            self.wake()
        return future

    @property
    def is_shared(self) -> bool:
        """Whether several scopes have submitted commands within SHARED_SECONDS."""
        return self._loop.time() < self._shared_until

    @property
    def has_time(self) -> bool:
        """Whether, of several scopes at work, one has a crowd waiting, or nobody waits for what is queued."""
        found = self.queues
        return self.is_shared and (any(q.crowds for q in found) or all(q.count == q.outcomes for q in found))

    def waiting(self, scope_id: str) -> int:
        """How many commands of a scope wait for a writer."""
        return sum(queue.waiting(scope_id) for queue in self.queues)

    def queue_of(self, command: AnyCommand) -> Queue:
        """Returns the queue of a command: the same one for all commands of a lane."""
        return self.queues[hash(command.lane) % len(self.queues)]

    def wake(self) -> None:
        """Make every writer look at the queues."""
        for writer in self._writers:
            writer.wake.set()

    def wake_others(self, number: int) -> None:
        """Make the second writer look, for the first one: while that rested, a queue may have become its."""
        if number == 0 and any(self.queues):
            for writer in self._writers[1:]:
                writer.wake.set()

    def has_room(self, commands: int, size: int, scope: Scope | None = None) -> bool:
        """Whether the queue would take this many commands of a scope with this many bytes in total."""
        waiting, waiting_bytes = commands, size
        for queue in self.queues:
            waiting += queue.count
            waiting_bytes += queue.bytes
        if self.closed:
            return False
        if waiting <= QUEUE_MAX and waiting_bytes <= QUEUE_BYTES_MAX:
            return True
        if scope is None or commands + self.waiting(scope.scope_id) > SCOPE_QUEUE_MIN:
            return False
        of_channel = sum(queue.waiting_of(scope.channel) for queue in self.queues)
        few = of_channel <= QUEUE_MAX * CHANNEL_OVER
        return few and waiting <= QUEUE_MAX * OVER and waiting_bytes <= QUEUE_BYTES_MAX * OVER

    @property
    def depth(self) -> int:
        """The number of commands that wait or are being committed."""
        waiting = sum(len(queue) for queue in self.queues)
        return waiting + sum(len(writer.current) for writer in self._writers)

    async def _keep_watch(self) -> None:
        """Fail the commands that have waited for WAIT_SECONDS_MAX, whatever keeps the database."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            oldest = self._loop.time() - WAIT_SECONDS_MAX
            batches = (writer.current for writer in self._writers)
            for pending in (*chain(*batches), *chain(*(queue.older(oldest) for queue in self.queues))):
                if pending.since < oldest:
                    pending.fail(LedgerUnavailable("the database did not answer in time"))


def _without(current: list[Pending], stale: set[Fence]) -> list[Pending]:
    """The commands of a batch of which nothing was stored, but for those whose leases are lost: they fail."""
    for pending in current:
        if pending.fence in stale:
            pending.fail(LeaseLost("another process has the lease"))
    return [pending for pending in current if not pending.future.done()]


class _Writer:
    """Takes commands from the queues, commits them in batches, and puts back those to try again."""

    def __init__(self, url: str, ledger: Ledger, number: int, cache: ConversationCache) -> None:
        self.url = url
        self.ledger = ledger
        self.number = number
        self.cache = cache
        self.current: list[Pending] = []
        self.wake = asyncio.Event()
        self.called = asyncio.Event()  # by a command that is to be stored at once
        self.rests_until = 0.0
        self.connection: Db | None = None
        self.append: Append | None = None
        self.task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        await self.connect()
        self.task = asyncio.create_task(self._run(), name=f"ledger writer {self.number}")

    async def connect(self) -> None:
        self.connection, self.append = await open_writer(self.url)

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
            most = await self._rest()
            await self._gather()
            self.wake.clear()
            queues = self._take(most)
            if not self.current:
                if most == REST_BATCH_MAX:
                    continue
                if ledger.closed and not any(queue or queue.taken for queue in ledger.queues):
                    return
                ledger.wake_others(self.number)
                await self._idle()
                continue
            began = time.perf_counter()
            try:
                retry = await self._commit(self.current)
            except psycopg.OperationalError as error:
                retry = await self._recover(self.current, error)
            except (psycopg.Error, StreamUnreadable) as error:
                retry = self._isolate(self.current, error)
            self.current = []
            if most != REST_BATCH_MAX:
                now = time.perf_counter()
                self.rests_until = now + rest_after(now - began)
            for pending in reversed(retry):
                ledger.queue_of(pending.command).put_back(pending)
            for queue in queues:
                queue.taken = False
            ledger.wake()

    async def _idle(self) -> None:
        """Wait for work; ask something meanwhile, so that no command is the first on a dead connection."""
        try:
            async with asyncio.timeout(IDLE_SECONDS):
                await self.wake.wait()
        except TimeoutError:
            try:
                await self._open_connection.execute("SELECT 1")
            except psycopg.OperationalError:
                await self._reconnect()

    async def _rest(self) -> int:
        """Rest while there is time, until a command calls; returns the most of the next batch."""
        if not self.ledger.has_time:
            return BATCH_MAX
        rest = self.rests_until - time.perf_counter()
        if rest <= 0 or self.ledger.closed:
            return SHARED_BATCH_MAX
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.called.wait(), rest)
            self.called.clear()
            return REST_BATCH_MAX
        return SHARED_BATCH_MAX

    async def _gather(self) -> None:
        """Give other tasks a turn to submit what has arrived, as long as that makes the batch larger."""
        before = -1
        for _ in range(GATHER_TURNS_MAX):
            waiting = sum(len(queue) for queue in self.ledger.queues)
            if waiting == before or waiting >= SECOND_WRITER_AT:
                return
            before = waiting
            await asyncio.sleep(0)

    def _take(self, most: int) -> list[Queue]:
        """Fill the batch from the queues that are this writer's turn now; returns those queues.

        The shorter queue comes first, and leaves room for the other, so that none waits for the other's end.
        """
        queues = sorted((queue for queue in self.ledger.queues if self._may_take(queue)), key=len)
        for number, queue in enumerate(queues, 1):
            calm = most == REST_BATCH_MAX
            queue.move_to(self.current, most * number // len(queues), calm=calm)
        return [queue for queue in queues if queue.taken]

    def _may_take(self, queue: Queue) -> bool:
        """The first writer takes every queue that is too short for the second one, which takes its own."""
        if queue.taken or not queue:
            return False
        ledger = self.ledger
        first = queue is ledger.queues[0]
        second = len(queue) >= SECOND_WRITER_AT and not ledger.has_time
        return (first or not second or ledger.closed) if self.number == 0 else not first and second

    async def _commit(self, current: list[Pending]) -> list[Pending]:
        """Decide and store a batch; returns the commands that must be tried again."""
        batch = Batch(current, self.cache)
        await self._load(batch)
        batch.decide()
        if facts := batch.unread_facts():
            batch.take_facts(await read_facts(self._open_connection, facts))
        if not batch.rows:
            batch.resolve(set(), 0)
            return batch.retry
        start = time.perf_counter()
        assert self.append is not None
        bad, head, stale = await self.append.append(batch.parameters(packed=self.append.packed), batch.fences)
        if stale:
            return _without(batch.pending, stale)
        self.ledger.commits.append(time.perf_counter() - start)
        self.ledger.failure = None
        last = batch.resolve(bad, head)
        if last > head:
            self.ledger.on_commit(last)
        return batch.retry

    async def _load(self, batch: Batch) -> None:
        wanted, clocks = batch.first_streams()
        for _ in range(LOAD_ROUNDS_MAX):
            if not wanted:
                return
            known = batch.begin(wanted)
            try:
                async for rows in read(self._open_connection, list(wanted), clocks, known):
                    batch.fold(rows)
            except psycopg.Error:
                raise
            except Exception as error:  # A damaged event, or one that a rule refuses: no state comes of it.
                log.exception("ledger: the past of a command cannot be read")
                raise StreamUnreadable(f"the ledger cannot read its past: {error}") from error
            wanted, clocks = batch.next_streams()

    @property
    def _open_connection(self) -> Db:
        assert self.connection is not None
        return self.connection

    async def _recover(self, current: list[Pending], error: psycopg.OperationalError) -> list[Pending]:
        """The connection broke, or the server is in trouble: reconnect, and try the batch again."""
        assert self.connection is not None
        log.warning("ledger: %d commands with unknown outcome: %s", len(current), str(error).strip())
        self.ledger.failure = Failure(time.monotonic(), reason_of(error))
        self.cache.forget()
        if self.connection.closed or self.connection.broken:
            await self._reconnect()
        else:
            await asyncio.sleep(PAUSE_SECONDS)
        return self._again(current, error)

    async def _reconnect(self) -> None:
        wait = RECONNECT_SECONDS_MIN
        while True:
            try:
                await self.connect()
            except psycopg.OperationalError as error:
                log.warning("ledger: no database, trying again: %s", str(error).strip())
                await asyncio.sleep(wait)
                wait = min(wait * 2, RECONNECT_SECONDS_MAX)
            else:
                return

    def _isolate(self, current: list[Pending], error: Exception) -> list[Pending]:
        """The batch cannot be stored: try its commands one by one, so that only the culprit fails."""
        if len(current) == 1:
            log.error("ledger: command refused: %s", str(error).strip())
            current[0].fail(Unrecordable(str(error).strip()))
            return []
        for pending in current:
            pending.alone = True
        return current

    def _again(self, current: list[Pending], error: psycopg.Error) -> list[Pending]:
        retry = []
        for pending in current:
            pending.tries += 1
            if pending.tries > TRIES_MAX or self.ledger.closed:
                pending.fail(LedgerUnavailable(str(error).strip()))
            elif not pending.future.done():
                retry.append(pending)
        return retry
