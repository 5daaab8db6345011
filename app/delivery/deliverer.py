"""What an event asks to push is pushed once and in its conversation's order, or is visibly parked.

Theory of operation. The ledger drives delivery: every event that is pushed is read from PostgreSQL. The view
`deliveries` holds what is open, the ledger's tail brings what is new, and the stream only wakes the tail with
a position, so that nothing that a stranger puts into the stream is pushed or moves anything. The
conversations are divided into partitions, and the partitions into ranges. A range belongs to one process at a
time, by a lock of the database that ends with its connection.

A range starts from a position that the view has reached. What is open up to there comes from the view, what
is later from the tail, in order: `_upto` only grows, and everything up to it is in a lane, is done, or is
open in the view. What nothing wakes the tail for is found by a sweep of the view. Waiting, retries and order
belong to the lane.

However much is imported, the lanes hold a bounded number of jobs; the view holds the rest.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import NoReturn, cast

import psycopg

from app.database import names
from app.database.connection import Db, connect
from app.delivery.job import Job, Progress, Pushed, is_imported, lane_key
from app.delivery.lane import Lane, Lanes
from app.delivery.ledger_tail import BACKOFF_SECONDS, PAGE, Arrival, LedgerTail, fetch_all
from app.delivery.settle import Settle
from app.delivery.tries import Tries
from app.stream import jetstream
from app.stream.consumer import Consumer, partition_subjects
from app.stream.jetstream import STREAM_GONE, JetStreamError, StreamRefused
from domain import events as e
from domain import ids

# Chosen: several processes can share the work; each range costs a connection and a consumer.
RANGES = 4
# Chosen: the work of a process that dies is taken over within about a second.
LEASE_SECONDS = 1.0
# Chosen: what nothing has woken the ledger's tail for is found after two sweeps.
SWEEP_SECONDS = 5.0
# Chosen: a database that answers no sooner than this is away, and then the lease may be gone.
LOOK_SECONDS = 10.0
# Chosen: how soon what the views are waited for is noticed.
VIEWS_SECONDS = 0.05
# Chosen: the lanes of an import hold enough to be busy for this long.
IMPORTED_SECONDS = 0.2
# Chosen: how soon a stream that was away is used again.
LISTEN_SECONDS = 0.25
# Chosen: a first start makes the stream within a second; one that is missing for longer is worth a warning.
STREAM_SECONDS = 10.0
log = logging.getLogger("chatledger.deliver")

TRY_LEASE = "SELECT pg_try_advisory_lock(%s)"
HEAD = "SELECT coalesce(max(notification_id), 0) FROM ledger.stored_events"
VIEWS = "SELECT to_regclass('views.positions') IS NOT NULL"
POSITION = "SELECT coalesce(min(position), 0) FROM views.positions WHERE view = 'deliveries'"
# `to_jsonb` of the row, because views of an older version, which are in force while new ones are built, lack
# the column.
_OPEN = """SELECT d.position, s.state, coalesce(t.attempts, d.attempts), d.reason, to_jsonb(d) ->> 'since'
 FROM views.deliveries d JOIN ledger.stored_events s ON s.notification_id = d.position
 LEFT JOIN ledger.tries t ON t.delivery = d.id WHERE d.state IN ('open', 'deferred') AND """
OPEN = "".join(
    (
        _OPEN,
        "d.partition = ANY (%(partitions)s) AND d.position > %(after)s AND d.position <= %(upto)s",
        " AND NOT d.imported ORDER BY d.position LIMIT %(limit)s",
    )
)
OPEN_OF = "".join(
    (
        _OPEN,
        "d.partition = ANY (%(partitions)s) AND d.destination = %(side)s AND NOT d.imported",
        " AND d.conversation IS NOT DISTINCT FROM %(conversation)s::uuid ORDER BY d.position LIMIT %(limit)s",
    )
)
IMPORTED = """SELECT DISTINCT partition, destination, channel, account_id FROM views.deliveries
 WHERE imported AND partition = ANY (%(partitions)s) AND state IN ('open', 'deferred')"""
IMPORTED_OF = "".join(
    (
        _OPEN,
        "d.imported AND d.partition = %(partition)s AND d.destination = %(side)s AND d.channel = %(channel)s",
        " AND d.account_id IS NOT DISTINCT FROM %(account)s ORDER BY d.position LIMIT %(limit)s",
    )
)
NAMED = "".join(
    (
        _OPEN,
        "d.partition = ANY (%(partitions)s) AND d.id = ANY (%(ids)s::uuid[]) ORDER BY d.position",
    )
)

Row = tuple[int, bytes, int, str | None, str | None]


class LaneFailed(Exception):
    """A range cannot go on, mostly for want of the database: it starts over from the view."""


class Deliverer:
    """Delivers for every range of partitions whose lease this process can get."""

    def __init__(self, database_url: str, nats: jetstream.NatsClient, settle: Settle, tries: Tries) -> None:
        """`tries` is what `settle` counts with."""
        self._settle = settle
        self._tries = tries
        self._tail = LedgerTail(database_url)
        self._ranges = [_Range(number, database_url, nats, settle, self._tail) for number in range(RANGES)]

    def wake(self) -> None:
        """Read what this process has committed."""
        self._tail.wake.set()

    async def run(self) -> None:
        """Deliver until cancelled; what is in flight then is cut off, unless `end` gave it time."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._tail.run(), name="deliver reads")
            group.create_task(self._tries.run(), name="deliver counts")
            for each in self._ranges:
                group.create_task(each.run(), name=f"deliver range {each.number}")

    def end(self, seconds: float) -> None:
        """Begin nothing more; what is in flight has so long to end."""
        self._settle.end(seconds)

    @property
    def depth(self) -> int:
        """How many deliveries this process holds in its lanes."""
        return sum(each.lanes.depth for each in self._ranges)


class _Range:
    """A range of partitions: everything up to `_upto` is in a lane, done, or open in the view."""

    def __init__(
        self, number: int, database_url: str, nats: jetstream.NatsClient, settle: Settle, tail: LedgerTail
    ) -> None:
        size = ids.PARTITIONS // RANGES
        self.number = number
        self.partitions = list(range(number * size, (number + 1) * size))
        self.done: dict[int, int] = {}
        self.lanes = Lanes(settle, self)
        self._mine = frozenset(self.partitions)
        self._url = database_url
        self._nats = nats
        self._tail = tail
        self._upto = 0
        self._since = 0
        self._swept = 0
        self._resumed: dict[str, int] = {}
        self._unreadable: set[int] = set()
        self._wake = asyncio.Event()
        self._failure: BaseException | None = None

    def failed(self, error: BaseException) -> None:
        """A lane cannot go on, so the range starts over."""
        self._failure = error
        self._wake.set()

    def has_room(self) -> None:
        """A lane that was cut off can be filled again."""
        self._wake.set()

    async def run(self) -> NoReturn:
        while True:
            try:
                async with await connect(self._url) as connection:
                    await self._lease(connection)
                    await self._work(connection)
            except (psycopg.Error, TimeoutError, LaneFailed) as error:
                log.warning("deliver %d: %s; starting over", self.number, str(error).strip() or "no answer")
            finally:
                await self._drop()
            await asyncio.sleep(BACKOFF_SECONDS)

    async def _lease(self, connection: Db) -> None:
        while True:
            ((mine,),) = await fetch_all(connection, TRY_LEASE, (names.PARTITION_LOCK + self.number,))
            if mine:
                return
            await asyncio.sleep(LEASE_SECONDS)

    async def _work(self, connection: Db) -> NoReturn:
        """Take what the view has as open, then what is new; keep the lease, find what neither way brings."""
        ((head,),) = await fetch_all(connection, HEAD)
        self._upto = self._since = await self._views_reach(connection, cast("int", head))
        await self._begin(connection)
        self._tail.join(self, self._upto)
        listening = asyncio.create_task(self._listen(), name=f"deliver range {self.number} listens")
        listening.add_done_callback(self._deaf)
        try:
            await self._keep(connection)
        finally:
            self._tail.leave(self)
            listening.cancel()
            await asyncio.wait([listening])

    async def _views_reach(self, connection: Db, head: int) -> int:
        while True:
            ((there,),) = await fetch_all(connection, VIEWS)
            if there and (position := await self._seen(connection)) >= head:
                return position
            await asyncio.sleep(VIEWS_SECONDS)

    async def _begin(self, connection: Db) -> None:
        """Take everything that is open, because a conversation may wait behind thousands of others."""
        rows = await self._open(connection, 0, self._upto)
        while rows:
            self._put_back(rows)
            rows = await self._open(connection, rows[-1][0], self._upto)
        await self._find_imported(connection, self._upto)

    async def _listen(self) -> NoReturn:
        """Have the stream wake the tail; while it cannot, the sweep finds in the view what is new."""
        name, filters, reason = f"deliver-{self.number}", partition_subjects(self.partitions), ""
        loop = asyncio.get_running_loop()
        began = loop.time()
        while True:
            start = self._upto + 1
            consumer = Consumer(self._nats, name, filters, start, self._reached, headers_only=True)
            try:
                await jetstream.delete_consumer(self._nats, name)
                await consumer.start()
                await asyncio.Event().wait()  # Until cancelled.
            except JetStreamError as error:
                new = isinstance(error, StreamRefused) and error.code == STREAM_GONE  # The relay makes it.
                if str(error) != reason and not (new and loop.time() - began < STREAM_SECONDS):
                    reason = str(error)
                    log.warning("deliver %d does without the stream: %s", self.number, reason)
            finally:
                await asyncio.shield(consumer.stop())
            await asyncio.sleep(LISTEN_SECONDS)

    def _deaf(self, listening: "asyncio.Task[NoReturn]") -> None:
        if not listening.cancelled() and (error := listening.exception()):
            self.failed(error)

    async def _keep(self, connection: Db) -> NoReturn:
        """Keep the lanes filled; each query also shows that the connection, so the lease, is still ours."""
        loop = asyncio.get_running_loop()
        sweep_at, before = loop.time() + SWEEP_SECONDS, self._upto
        while True:
            if self.lanes.importing:
                await asyncio.sleep(IMPORTED_SECONDS)  # Such a lane has room for more all the time.
            else:
                with contextlib.suppress(TimeoutError):
                    waits = self._resumed or any(lane.wants for _, lane in self.lanes)
                    pause = VIEWS_SECONDS if waits else LEASE_SECONDS
                    await asyncio.wait_for(self._wake.wait(), pause)
            self._wake.clear()
            if self._failure:
                raise LaneFailed(repr(self._failure)) from self._failure
            seen = await self._seen(connection)
            self.done = {job: closed for job, closed in self.done.items() if closed > seen}
            await self._refill(connection, seen)
            await self._take_resumed(connection, seen)
            if loop.time() >= sweep_at or not self._nats.is_connected:
                await self._sweep(connection, before)
                sweep_at, before = loop.time() + SWEEP_SECONDS, seen

    async def _refill(self, connection: Db, seen: int) -> None:
        """Give the lanes that were cut off what they can hold now."""
        self.lanes.forget_idle()
        for (conversation, side, imports), lane in self.lanes:
            if not lane.wants:
                continue
            if imports:  # More is cut off all the time: the lane goes on with what the view has.
                of = dict(zip(("partition", "channel", "account"), imports, strict=True))
                await self._fill(connection, lane, seen, IMPORTED_OF, side=side, **of)
            elif lane.cut_at <= seen:
                await self._fill(connection, lane, seen, OPEN_OF, conversation=conversation, side=side)

    async def _fill(self, connection: Db, lane: Lane, seen: int, statement: str, **of: object) -> None:
        cut_at = lane.cut_at
        rows = await self._rows(connection, statement, limit=lane.most, **of)
        more = len(rows) >= lane.most or lane.cut_at > min(cut_at, seen)  # More was cut off meanwhile.
        lane.fill(self._jobs(rows), cut_at=lane.cut_at if more else 0)

    async def _find_imported(self, connection: Db, upto: int) -> None:
        """Let the lanes of what is imported ask for what the view has as open up to a position."""
        rows = await self._ask(connection, IMPORTED)
        for partition, side, channel, account in cast("list[tuple[int, str, str, str | None]]", rows):
            lane = self.lanes.of((None, side, (partition, channel, account)))
            lane.cut_at = max(lane.cut_at, upto)

    async def _take_resumed(self, connection: Db, seen: int) -> None:
        causes = [cause for cause, position in self._resumed.items() if position <= seen]
        if causes:
            self._put_back(await self._rows(connection, NAMED, ids=causes))
            self._resumed = {cause: at for cause, at in self._resumed.items() if cause not in causes}

    async def _sweep(self, connection: Db, before: int) -> None:
        """Take what the view has as open and no lane has, a page at a time.

        Also take what the view had at the last sweep (`before`) and the tail has not brought since.
        """
        rows = await self._open(connection, self._swept, self._upto)
        self._swept = rows[-1][0] if len(rows) == PAGE else 0
        self._put_back(rows)
        await self._find_imported(connection, before)
        if before > self._upto:
            rows = await self._open(connection, self._upto, before)
            self._upto = max(self._upto, rows[-1][0] if len(rows) == PAGE else before)
            self._put_back(rows)

    def _reached(self, sequence: int, _: bytes, ack: Callable[[], None]) -> None:
        """Have the tail read up to a position of the stream; nothing else of a message counts."""
        self._tail.reached(sequence)
        ack()

    def read(self, news: Sequence[Arrival], upto: int) -> None:
        """Take the events of this range that are later than all that it has had."""
        for arrival in news:
            if arrival.position > self._upto and ids.partition(arrival.head.conversation) in self._mine:
                self._take(arrival)
        self._upto = max(self._upto, upto)

    def _take(self, arrival: Arrival) -> None:
        position, head, raw = arrival
        if head.imported and self.lanes.of(lane_key(head)).cuts(position):
            return  # Most of a large import is cut off, and need not be decoded for that.
        try:
            event = e.decode(raw)
        except (ValueError, RecursionError) as error:
            log.error("deliver: event %d cannot be read and is not pushed: %s", position, error)
            return
        if isinstance(event, e.DeliveryResumed):
            self._resumed[event.cause or ""] = position
            self._hold_up(event.conversation, position)
            self._wake.set()
        elif isinstance(event, Pushed) and event.push:
            self.lanes.of(lane_key(event)).put(Job(position, event))

    def _hold_up(self, conversation: str | None, position: int) -> None:
        """Let nothing later of a conversation overtake what is resumed: the view has all of it, in order."""
        if conversation is not None:
            for side in (ids.KOMMO, ids.MESSENGER):
                self.lanes.of((conversation, side, None)).cuts(position, always=True)

    def _put_back(self, rows: list[Row]) -> None:
        for job in self._jobs(rows):
            self.lanes.of(lane_key(job.event)).put_back(job)

    def _jobs(self, rows: list[Row]) -> list[Job]:
        """Those of the view's open rows that are not known to be done; any process may have tried them.

        An exception is what an import has sent since the lease is ours: nobody else can have tried that, so
        it needs no look into the ledger, thousands of times.
        """
        jobs = []
        for position, raw, attempts, reason, since in rows:
            if position <= self._upto and position not in self.done:
                event = self._decode(position, raw)
                if event is None:
                    continue
                fresh = is_imported(event) and position > self._since and not attempts
                progress = Progress(
                    again=not fresh, unknown=not fresh, attempts=attempts, reason=reason or ""
                )
                jobs.append(Job(position, event, progress, waits_from=since or ""))
        return jobs

    def _decode(self, position: int, raw: bytes) -> Pushed | None:
        """The event, or None if it was damaged after the view took it: then its delivery stays open."""
        try:
            event = e.decode(raw)
        except (ValueError, RecursionError) as error:
            if position not in self._unreadable:
                self._unreadable.add(position)
                log.error("deliver: event %d cannot be read and is not pushed: %s", position, error)
            return None
        assert isinstance(event, Pushed)
        return event

    async def _drop(self) -> None:
        """Let go of every lane: whoever has the lease next takes their jobs up from the view."""
        self.done = {}
        await self.lanes.stop()
        self._swept, self._resumed, self._failure = 0, {}, None
        self._unreadable.clear()

    async def _seen(self, connection: Db) -> int:
        ((position,),) = await self._ask(connection, POSITION)
        return cast("int", position)

    async def _open(self, connection: Db, after: int, upto: int) -> list[Row]:
        return await self._rows(connection, OPEN, after=after, upto=upto, limit=PAGE)

    async def _rows(self, connection: Db, statement: str, **values: object) -> list[Row]:
        return cast("list[Row]", await self._ask(connection, statement, **values))

    async def _ask(self, connection: Db, statement: str, **values: object) -> list[tuple[object, ...]]:
        """All rows of a statement; what is resumed may need thousands, so each has its own time to answer."""
        async with asyncio.timeout(LOOK_SECONDS):
            return await fetch_all(connection, statement, {"partitions": self.partitions, **values})
