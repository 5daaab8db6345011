"""What an event asks to push is pushed once and in its conversation's order, or stands visibly parked.

Driven from the ledger: the view `deliveries` is what is open, and NATS only brings what is new. Everything up
to the position that the view had at the start comes from the view, everything after it from the stream. A
message of NATS is acknowledged once its lane has it; waiting, retry and order are the lane's. A range of
partitions belongs to one process at a time, by a lock of the database that ends with its connection.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import NoReturn, cast

import psycopg

from app import jetstream, schema
from app.consume import Consumer, partition_subjects
from app.jetstream import JetStreamError
from app.lanes import Job, Lane, Settle
from app.ledger import Ledger
from app.push import Pushed, Pusher
from domain import events as e
from domain import ids

RANGES = 4
LEASE_SECONDS = 1.0
SWEEP_SECONDS = 5.0
SWEEP_MAX = 2_000
LANE_MAX = 100
VIEWS_SECONDS = 0.05
STREAM_SECONDS = 0.1
BACKOFF_SECONDS = 1.0
log = logging.getLogger("chatledger.deliver")

TRY_LEASE = "SELECT pg_try_advisory_lock(%s)"
HEAD = "SELECT coalesce(max(notification_id), 0) FROM ledger.stored_events"
VIEWS = "SELECT to_regclass('views.positions') IS NOT NULL"
POSITION = "SELECT coalesce(min(position), 0) FROM views.positions"
OPEN = """SELECT d.position, s.state, d.attempts, d.reason FROM views.deliveries d
 JOIN ledger.stored_events s ON s.notification_id = d.position
 WHERE d.partition = ANY (%s) AND d.state <> 'parked' ORDER BY d.position LIMIT %s"""
OPEN_OF = """SELECT d.position, s.state, d.attempts, d.reason FROM views.deliveries d
 JOIN ledger.stored_events s ON s.notification_id = d.position
 WHERE d.conversation IS NOT DISTINCT FROM %s::uuid AND d.destination = %s AND d.partition = ANY (%s)
 AND d.state <> 'parked' ORDER BY d.position LIMIT %s"""


class LaneFailed(Exception):
    """A lane met an error that no rule expects: the range starts over from the view."""


class Deliverer:
    """Delivers for every range of partitions whose lease this process can get."""

    def __init__(self, database_url: str, nats: jetstream.Connection, ledger: Ledger, pusher: Pusher) -> None:
        self._ranges = [
            _Range(number, database_url, nats, Settle(ledger, pusher)) for number in range(RANGES)
        ]

    async def run(self) -> None:
        """Deliver until cancelled."""
        async with asyncio.TaskGroup() as group:
            for each in self._ranges:
                group.create_task(each.run(), name=f"deliver range {each.number}")

    @property
    def depth(self) -> int:
        """How many deliveries this process holds in its lanes."""
        return sum(each.depth for each in self._ranges)


class _Range:
    def __init__(self, number: int, database_url: str, nats: jetstream.Connection, settle: Settle) -> None:
        size = ids.PARTITIONS // RANGES
        self.number = number
        self.partitions = list(range(number * size, (number + 1) * size))
        self._url = database_url
        self._nats = nats
        self._settle = settle
        self._lanes: dict[tuple[str | None, str], Lane] = {}
        self._done: dict[int, int] = {}
        self._upto = 0
        self._sweep = asyncio.Event()
        self._failure: BaseException | None = None

    @property
    def depth(self) -> int:
        return sum(len(lane.jobs) for lane in self._lanes.values())

    async def run(self) -> NoReturn:
        while True:
            try:
                async with await schema.connect(self._url) as connection:
                    await self._lease(connection)
                    await self._work(connection)
            except (psycopg.OperationalError, JetStreamError, TimeoutError, LaneFailed) as error:
                log.warning("deliver %d: %s; starting over", self.number, str(error).strip())
            finally:
                await self._drop()
            await asyncio.sleep(BACKOFF_SECONDS)

    async def _lease(self, connection: schema.Database) -> None:
        while True:
            ((mine,),) = await _all(connection, TRY_LEASE, (schema.PARTITION_LOCK + self.number,))
            if mine:
                return
            await asyncio.sleep(LEASE_SECONDS)

    async def _work(self, connection: schema.Database) -> NoReturn:
        """Take what the view has as open, then what the stream brings; keep the lease, find what was lost."""
        ((head,),) = await _all(connection, HEAD)
        await self._views_reach(connection, cast("int", head))
        ((position,),) = await _all(connection, POSITION)
        self._upto = cast("int", position)
        await self._take_open(connection)
        name = f"deliver-{self.number}"
        while await jetstream.stream_info(self._nats) is None:  # noqa: ASYNC110  # a server is asked
            await asyncio.sleep(STREAM_SECONDS)  # The relay makes it.
        await jetstream.delete_consumer(self._nats, name)
        filters = partition_subjects(self.partitions)
        consumer = Consumer(self._nats, name, filters, self._upto + 1, self._received)
        await consumer.start()
        try:
            while True:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._sweep.wait(), SWEEP_SECONDS)
                self._sweep.clear()
                if self._failure:
                    raise LaneFailed(f"a lane failed: {self._failure!r}") from self._failure
                await asyncio.wait_for(self._look(connection), SWEEP_SECONDS * 2)
        finally:
            await asyncio.shield(consumer.stop())

    async def _views_reach(self, connection: schema.Database, head: int) -> None:
        while True:
            ((there,),) = await _all(connection, VIEWS)
            if there:
                ((position,),) = await _all(connection, POSITION)
                if cast("int", position) >= head:
                    return
            await asyncio.sleep(VIEWS_SECONDS)

    def _received(self, sequence: int, data: bytes, ack: Callable[[], None]) -> None:
        if sequence > self._upto:
            self._upto = sequence
            event = e.decode(data)
            if isinstance(event, e.DeliveryResumed):
                self._sweep.set()
            elif isinstance(event, Pushed) and event.push:
                self._lane(event).put(Job(sequence, event), LANE_MAX)
        ack()

    async def _look(self, connection: schema.Database) -> None:
        """Find what no lane has, though the view has it as open; forget what the view knows to be done."""
        ((position,),) = await _all(connection, POSITION)
        seen = cast("int", position)
        self._done = {job: closed for job, closed in self._done.items() if closed > seen}
        self._lanes = {key: lane for key, lane in self._lanes.items() if lane.busy or lane.cut_at}
        for (conversation, side), lane in list(self._lanes.items()):
            if lane.cut_at and lane.cut_at <= seen and len(lane.jobs) < LANE_MAX // 2:
                parameters = (conversation, side, self.partitions, LANE_MAX)
                rows = await _all(connection, OPEN_OF, parameters)
                lane.cut_at = 0 if len(rows) < LANE_MAX else lane.cut_at
                self._put_open(rows)
        await self._take_open(connection)

    async def _take_open(self, connection: schema.Database) -> None:
        self._put_open(await _all(connection, OPEN, (self.partitions, SWEEP_MAX)))

    def _put_open(self, rows: list[tuple[object, ...]]) -> None:
        for position, raw, attempts, reason in cast("list[tuple[int, bytes, int, str | None]]", rows):
            if position > self._upto or position in self._done:
                continue
            event = e.decode(raw)
            assert isinstance(event, Pushed)
            lane = self._lane(event)
            job = Job(position, event, again=True, unknown=True, attempts=attempts, reason=reason or "")
            lane.put_back(job, LANE_MAX)

    def _lane(self, event: Pushed) -> Lane:
        key = (event.conversation, event.push or "")
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = Lane(self._settle, self._done, self._fail)
        return lane

    def _fail(self, error: BaseException) -> None:
        self._failure = error
        self._sweep.set()

    async def _drop(self) -> None:
        """Let go of every lane: whoever has the lease next takes them up from the view."""
        self._failure = None
        lanes, self._lanes, self._done = self._lanes, {}, {}
        await asyncio.gather(*(lane.stop() for lane in lanes.values()))


async def _all(
    connection: schema.Database, statement: str, parameters: tuple[object, ...] = ()
) -> list[tuple[object, ...]]:
    cursor = connection.cursor(binary=True)
    await cursor.execute(statement.encode(), parameters)
    return await cursor.fetchall()
