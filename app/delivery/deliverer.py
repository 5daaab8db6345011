"""What an event asks to push is pushed once and in its conversation's order, or stands visibly parked.

Driven from the ledger: the view `deliveries` is what is open, and NATS only brings what is new. Everything up
to the position that the view had at the start comes from the view, everything after it from the stream, or
from the view again if the stream is silent about it. What this process commits itself it also reads from the
ledger at once: both ways bring everything in order, so whichever is first counts (the stream's fsyncs cost
17 to 28 ms at 200 messages a second on two cores). A message of NATS is acknowledged once its lane has it;
waiting, retry and order are the lane's. A range of partitions belongs to one process at a time, by a lock of
the database that ends with its connection.

What an import sends goes in lanes of its own, one for each partition of each account: a live message never
waits behind it, it keeps its order, an account that refuses it holds up no other, and however much is
imported, the lanes hold a bounded number; the view holds the rest.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import NoReturn, cast

import psycopg

from app.database import names
from app.database.connection import Db, connect
from app.delivery.job import Job, Pushed
from app.delivery.lane import LANE_MAX, Lane
from app.delivery.ledger_tail import BACKOFF_SECONDS, PAGE, LedgerTail, fetch_all
from app.delivery.prepare import Pusher
from app.delivery.settle import Settle
from app.ledger.writer import Ledger
from app.stream import jetstream
from app.stream.consumer import Consumer, partition_subjects
from app.stream.jetstream import JetStreamError
from domain import events as e
from domain import ids

RANGES = 4
LEASE_SECONDS = 1.0
SWEEP_SECONDS = 5.0
LOOK_SECONDS = 10.0
VIEWS_SECONDS = 0.05
IMPORTED_SECONDS = 0.2
IMPORTED_MAX, IMPORTED_LANE_MIN = 3_200, 10  # In a range; of many accounts each lane holds the fewer.
LISTEN_SECONDS = 0.25
log = logging.getLogger("chatledger.deliver")

PUSH, RESUMED = b'"push":', b'"delivery.resumed"'
CHANNEL, ACCOUNT, CONVERSATION = (
    b'"channel":"',
    b'"account":"',
    b'"conversation":"',
)  # Ours, before others' words.
IMPORTED_ENDS = (  # After all that others write.
    b',"imported":true,"push":"kommo"}',
    b',"imported":true,"push":"kommo","sent_by":"messenger"}',
)
TRY_LEASE = "SELECT pg_try_advisory_lock(%s)"
HEAD = "SELECT coalesce(max(notification_id), 0) FROM ledger.stored_events"
VIEWS = "SELECT to_regclass('views.positions') IS NOT NULL"
POSITION = "SELECT coalesce(min(position), 0) FROM views.positions"
OPEN = """SELECT d.position, s.state, d.attempts, d.reason FROM views.deliveries d
 JOIN ledger.stored_events s ON s.notification_id = d.position
 WHERE d.partition = ANY (%(partitions)s) AND d.state <> 'parked' AND d.position > %(after)s
 AND d.position <= %(upto)s AND NOT d.imported ORDER BY d.position LIMIT %(limit)s"""
OPEN_OF = """SELECT d.position, s.state, d.attempts, d.reason FROM views.deliveries d
 JOIN ledger.stored_events s ON s.notification_id = d.position
 WHERE d.partition = ANY (%(partitions)s) AND d.state <> 'parked' AND d.destination = %(side)s
 AND d.conversation IS NOT DISTINCT FROM %(conversation)s::uuid AND NOT d.imported
 ORDER BY d.position LIMIT %(limit)s"""
IMPORTED = """SELECT DISTINCT partition, destination, channel, account_id FROM views.deliveries
 WHERE imported AND partition = ANY (%(partitions)s) AND state <> 'parked'"""
IMPORTED_OF = """SELECT d.position, s.state, d.attempts, d.reason FROM views.deliveries d
 JOIN ledger.stored_events s ON s.notification_id = d.position
 WHERE d.imported AND d.partition = %(partition)s AND d.state <> 'parked' AND d.destination = %(side)s
 AND d.channel = %(channel)s AND d.account_id IS NOT DISTINCT FROM %(account)s
 ORDER BY d.position LIMIT %(limit)s"""
NAMED = """SELECT d.position, s.state, d.attempts, d.reason FROM views.deliveries d
 JOIN ledger.stored_events s ON s.notification_id = d.position
 WHERE d.partition = ANY (%(partitions)s) AND d.state <> 'parked' AND d.id = ANY (%(ids)s::uuid[])
 ORDER BY d.position"""

Row = tuple[int, bytes, int, str | None]
Imports = tuple[int, str, str | None]  # partition, channel and account
Key = tuple[str | None, str, Imports | None]  # conversation and side; of what is imported, no conversation


class LaneFailed(Exception):
    """A range cannot go on, mostly for want of the database: it starts over from the view."""


class Deliverer:
    """Delivers for every range of partitions whose lease this process can get."""

    def __init__(self, database_url: str, nats: jetstream.NatsClient, ledger: Ledger, pusher: Pusher) -> None:
        self._settles = [Settle(ledger, pusher) for _ in range(RANGES)]
        self._tail = LedgerTail(database_url)
        self._ranges = [
            _Range(number, database_url, nats, settle, self._tail)
            for number, settle in enumerate(self._settles)
        ]

    def wake(self) -> None:
        """This process has committed something."""
        self._tail.wake.set()

    async def run(self) -> None:
        """Deliver until cancelled; what is in flight then is cut off, unless `end` gave it time."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._tail.run(), name="deliver reads")
            for each in self._ranges:
                group.create_task(each.run(), name=f"deliver range {each.number}")

    def end(self, seconds: float) -> None:
        """Begin nothing more; what is in flight has so long to end."""
        for settle in self._settles:
            settle.end(seconds)

    @property
    def depth(self) -> int:
        """How many deliveries this process holds in its lanes."""
        return sum(each.depth for each in self._ranges)


class _Range:
    """Everything up to `_upto` is in a lane, done, or open in the view; what is later the stream brings."""

    def __init__(
        self, number: int, database_url: str, nats: jetstream.NatsClient, settle: Settle, tail: LedgerTail
    ) -> None:
        size = ids.PARTITIONS // RANGES
        self.number = number
        self.partitions = list(range(number * size, (number + 1) * size))
        self._mine = frozenset(self.partitions)
        self.done: dict[int, int] = {}
        self._url = database_url
        self._nats = nats
        self._settle = settle
        self._tail = tail
        self._lanes: dict[Key, Lane] = {}
        self._upto = 0
        self._since = 0
        self._swept = 0
        self._resumed: dict[str, int] = {}
        self._wake = asyncio.Event()
        self._failure: BaseException | None = None

    @property
    def depth(self) -> int:
        return sum(len(lane.jobs) for lane in self._lanes.values())

    def failed(self, error: BaseException) -> None:
        self._failure = error
        self._wake.set()

    def has_room(self) -> None:
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
        """Take what the view has as open, then what the stream brings; keep the lease, find what was lost."""
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
        """Everything that is open: a conversation may have waited behind thousands of others."""
        rows = await self._open(connection, 0, self._upto)
        while rows:
            self._put_back(rows)
            rows = await self._open(connection, rows[-1][0], self._upto)
        await self._find_imported(connection, self._upto)

    async def _listen(self) -> NoReturn:
        """Have the stream bring what is new. While it cannot, the view is swept for that."""
        name, filters, reason = f"deliver-{self.number}", partition_subjects(self.partitions), ""
        while True:
            consumer = Consumer(self._nats, name, filters, self._upto + 1, self._received)
            try:
                await jetstream.delete_consumer(self._nats, name)
                await consumer.start()
                await asyncio.Event().wait()  # Until cancelled.
            except JetStreamError as error:
                if str(error) != reason:
                    reason = str(error)
                    log.warning("deliver %d does without the stream: %s", self.number, reason)
            finally:
                await asyncio.shield(consumer.stop())
            await asyncio.sleep(LISTEN_SECONDS)

    def _deaf(self, listening: "asyncio.Task[NoReturn]") -> None:
        if not listening.cancelled() and (error := listening.exception()):
            self.failed(error)

    async def _keep(self, connection: Db) -> NoReturn:
        """Every question to the database also shows that the lease is still ours."""
        loop = asyncio.get_running_loop()
        sweep_at, before = loop.time() + SWEEP_SECONDS, self._upto
        while True:
            if any(imports for _, _, imports in self._lanes):
                await asyncio.sleep(IMPORTED_SECONDS)  # Those lanes have room for more all the while.
            else:
                with contextlib.suppress(TimeoutError):
                    pause = VIEWS_SECONDS if self._resumed else LEASE_SECONDS
                    await asyncio.wait_for(self._wake.wait(), pause)
            self._wake.clear()
            if self._failure:
                raise LaneFailed(repr(self._failure)) from self._failure
            async with asyncio.timeout(LOOK_SECONDS):
                seen = await self._seen(connection)
                self.done = {job: closed for job, closed in self.done.items() if closed > seen}
                await self._refill(connection, seen)
                await self._take_resumed(connection, seen)
                if loop.time() >= sweep_at or not self._nats.is_connected:
                    await self._sweep(connection, before)
                    sweep_at, before = loop.time() + SWEEP_SECONDS, seen

    async def _refill(self, connection: Db, seen: int) -> None:
        """Give the lanes that were cut off what they can hold now; forget those that have nothing to do."""
        self._lanes = {key: lane for key, lane in self._lanes.items() if lane.busy or lane.cut_at}
        for (conversation, side, imports), lane in list(self._lanes.items()):
            if not lane.wants:
                continue
            if imports:  # More is cut off all the while: it goes on with what the view has.
                of = dict(zip(("partition", "channel", "account"), imports, strict=True))
                await self._fill(connection, lane, seen, IMPORTED_OF, side=side, **of)
            elif lane.cut_at <= seen:
                await self._fill(connection, lane, seen, OPEN_OF, conversation=conversation, side=side)

    async def _fill(self, connection: Db, lane: Lane, seen: int, statement: str, **of: object) -> None:
        cut_at = lane.cut_at
        rows = await self._rows(connection, statement, limit=lane.most, **of)
        more = len(rows) >= lane.most or lane.cut_at > min(cut_at, seen)  # The stream cut off more meanwhile.
        lane.fill(self._jobs(rows), cut_at=lane.cut_at if more else 0)

    async def _find_imported(self, connection: Db, upto: int) -> None:
        """Have the lanes of what is imported look for what the view has as open up to a position."""
        rows = await fetch_all(connection, IMPORTED, {"partitions": self.partitions})
        for partition, side, channel, account in cast("list[tuple[int, str, str, str | None]]", rows):
            lane = self._lane_of((None, side, (partition, channel, account)))
            lane.cut_at = max(lane.cut_at, upto)

    async def _take_resumed(self, connection: Db, seen: int) -> None:
        causes = [cause for cause, position in self._resumed.items() if position <= seen]
        if causes:
            self._put_back(await self._rows(connection, NAMED, ids=causes))
            self._resumed = {cause: at for cause, at in self._resumed.items() if cause not in causes}

    async def _sweep(self, connection: Db, before: int) -> None:
        """Find what no lane has though the view has it as open, a page at a time; and take from the view what
        it had at the last sweep (`before`) already and the stream has not brought since."""
        rows = await self._open(connection, self._swept, self._upto)
        self._swept = rows[-1][0] if len(rows) == PAGE else 0
        self._put_back(rows)
        await self._find_imported(connection, before)
        if before > self._upto:
            rows = await self._open(connection, self._upto, before)
            self._upto = max(self._upto, rows[-1][0] if len(rows) == PAGE else before)
            self._put_back(rows)

    def _received(self, sequence: int, data: bytes, ack: Callable[[], None]) -> None:
        if sequence > self._upto:
            self._upto = sequence
            self._take(sequence, data)
        ack()

    def read(self, rows: list[tuple[int, bytes]]) -> None:
        """The same from the ledger itself: all events after some position, those of other ranges as well."""
        for position, raw in rows:
            if position > self._upto:
                self._take(position, raw)
        self._upto = max(self._upto, rows[-1][0])

    def _take(self, position: int, raw: bytes) -> None:
        if PUSH not in raw and RESUMED not in raw:
            return
        partition = ids.partition(_told(raw, CONVERSATION))
        if partition not in self._mine:
            return
        if raw.endswith(IMPORTED_ENDS):
            imports = (partition, _told(raw, CHANNEL) or "", _told(raw, ACCOUNT))
            if self._lane_of((None, ids.KOMMO, imports)).cuts(position):
                return
        event = e.decode(raw)
        if isinstance(event, e.DeliveryResumed):
            self._resumed[event.cause or ""] = position
            self._wake.set()
        elif isinstance(event, Pushed) and event.push:
            self._lane(event).put(Job(position, event))

    def _put_back(self, rows: list[Row]) -> None:
        for job in self._jobs(rows):
            self._lane(job.event).put_back(job)

    def _jobs(self, rows: list[Row]) -> list[Job]:
        """What of the view's open rows is not known to be done; it may have been tried by anybody.

        But not what an import sent since the lease is ours: for that Kommo need not be doubted, nor the
        ledger asked, thousands of times.
        """
        jobs = []
        for position, raw, attempts, reason in rows:
            if position <= self._upto and position not in self.done:
                event = e.decode(raw)
                assert isinstance(event, Pushed)
                fresh = _imported(event) and position > self._since and not attempts
                again, why = not fresh, reason or ""
                jobs.append(Job(position, event, again=again, unknown=again, attempts=attempts, reason=why))
        return jobs

    def _lane(self, event: Pushed) -> Lane:
        if _imported(event):
            imports = (ids.partition(event.conversation), event.channel, event.account)
            return self._lane_of((None, event.push or "", imports))
        return self._lane_of((event.conversation, event.push or "", None))

    def _lane_of(self, key: Key) -> Lane:
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = Lane(self._settle, self, self._most() if key[2] else LANE_MAX)
        return lane

    def _most(self) -> int:
        """How many one more lane of what is imported may hold."""
        lanes = 1 + sum(1 for _, _, imports in self._lanes if imports)
        return min(LANE_MAX, max(IMPORTED_LANE_MIN, IMPORTED_MAX // lanes))

    async def _drop(self) -> None:
        """Let go of every lane: whoever has the lease next takes them up from the view."""
        lanes, self._lanes, self.done = self._lanes, {}, {}
        await asyncio.gather(*(lane.stop() for lane in lanes.values()))
        self._swept, self._resumed, self._failure = 0, {}, None

    async def _seen(self, connection: Db) -> int:
        ((position,),) = await fetch_all(connection, POSITION)
        return cast("int", position)

    async def _open(self, connection: Db, after: int, upto: int) -> list[Row]:
        return await self._rows(connection, OPEN, after=after, upto=upto, limit=PAGE)

    async def _rows(self, connection: Db, statement: str, **values: object) -> list[Row]:
        rows = await fetch_all(connection, statement, {"partitions": self.partitions, **values})
        return cast("list[Row]", rows)


def _imported(event: Pushed) -> bool:
    return isinstance(event, e.MessageSent) and event.imported


def _told(raw: bytes, name: bytes) -> str | None:
    """A field of an event as it is stored; decoding it all costs five times as much."""
    start = raw.find(name) + len(name)
    return raw[start : raw.index(b'"', start)].decode() if start >= len(name) else None
