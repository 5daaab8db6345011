"""What an event asks to push is pushed once and in its conversation's order, or is visibly parked.

Theory of operation. The ledger drives delivery: every event that is pushed is read from PostgreSQL. The view
`deliveries` holds what is open, the ledger's tail brings what is new, and NATS only wakes the tail with a
position, so that nothing that a stranger publishes is pushed or moves anything. The conversations are divided
into partitions, of which each process has its share, by leases (`shares`).

A partition that is ours begins once the view has reached what was the ledger's head then. What is open up to
there comes from the view, what is later from the tail, in order: `_upto` only grows, and everything of our
partitions up to it is in a lane, is done, or is open in the view. A partition that has joined lately may be
behind the others: then `_behind` is its position, and the tail reads again from there. What nothing wakes the
tail for is found by a sweep of the view. Waiting, retries and order belong to the lane.

A partition that is to be given up takes nothing more, and its lanes end what is in flight; then its lease is
released. One that is lost is dropped as it is: its jobs carry the lease under which they were taken, so that
they send nothing and record nothing any more.

However much is imported, the lanes hold a bounded number of jobs; the view holds the rest.
"""

import asyncio
import contextlib
import logging
from collections.abc import Collection, Iterable, Sequence
from functools import partial
from typing import NoReturn, cast

import psycopg
from nats.aio.msg import Msg

from app.database.connection import Db, connect
from app.database.leases import Leases
from app.database.packed import unpack
from app.delivery.job import Job, Progress, Pushed, is_imported, lane_key
from app.delivery.lane import Lane, Lanes
from app.delivery.ledger_tail import BACKOFF_SECONDS, PAGE, Arrival, LedgerTail, fetch_all
from app.delivery.settle import Settle
from app.delivery.shares import LOOK_SECONDS, Shares
from app.delivery.tries import Tries
from app.stream import jetstream
from app.stream.jetstream import HEAD_SUBJECT
from domain import events as e
from domain import ids

# Chosen: what nothing has woken the ledger's tail for is found after two sweeps.
SWEEP_SECONDS = 5.0
# Chosen: a database that answers no sooner than this is away, and then the lease may be gone.
LOOK_SECONDS_MAX = 10.0
# Chosen: how soon what the views are waited for is noticed.
VIEWS_SECONDS = 0.05
# Chosen: the lanes of an import hold enough to be busy for this long.
IMPORTED_SECONDS = 0.2
# Chosen: a call ends after 10 s; one that is cut off is repeated under the same id by the next owner.
GIVE_UP_SECONDS = 5.0
POSITION_DIGITS_MAX = 19
log = logging.getLogger("chatledger.deliver")

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
    """The share cannot go on, mostly for want of the database: it starts over from the view."""


class Deliverer:
    """Delivers for every partition that is this process's share."""

    def __init__(
        self,
        database_url: str,
        nats: jetstream.NatsClient,
        leases: Leases,
        settle: Settle,
        tries: Tries,
    ) -> None:
        """`tries` is what `settle` counts with."""
        self._nats = nats
        self._settle = settle
        self._tries = tries
        self._tail = LedgerTail(database_url)
        self._share = _Share(database_url, nats, settle, self._tail, Shares(leases))

    def wake(self) -> None:
        """Read what this process has committed."""
        self._tail.wake.set()

    async def run(self) -> None:
        """Deliver until cancelled; what is in flight then is cut off, unless `end` gave it time."""
        listening = await self._nats.subscribe(HEAD_SUBJECT, cb=self._told)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._tail.run(), name="deliver reads")
                group.create_task(self._tries.run(), name="deliver counts")
                group.create_task(self._share.run(), name="deliver share")
        finally:
            if not self._nats.is_closed:
                await listening.unsubscribe()

    async def _told(self, message: Msg) -> None:
        """The relay tells how far the stream has come; what is no position wakes nobody."""
        if message.data.isdigit() and len(message.data) < POSITION_DIGITS_MAX:
            self._tail.reached(int(message.data))

    def end(self, seconds: float) -> None:
        """Begin nothing more; what is in flight has so long to end."""
        self._settle.end(seconds)

    @property
    def partitions(self) -> int:
        """How many partitions are this process's."""
        return len(self._share.shares.mine)

    @property
    def depth(self) -> int:
        """How many deliveries this process holds in its lanes."""
        return self._share.lanes.depth


class _Share:
    """The partitions of this process: everything up to `_upto` is in a lane, done, or open in the view."""

    def __init__(
        self, database_url: str, nats: jetstream.NatsClient, settle: Settle, tail: LedgerTail, shares: Shares
    ) -> None:
        self.shares = shares
        self.done: dict[int, int] = {}
        self.lanes = Lanes(settle, self)
        self._url = database_url
        self._nats = nats
        self._tail = tail
        self._waiting: dict[int, int] = {}  # Partitions that have not begun, and the head that they wait for.
        self._since: dict[int, int] = {}  # Those that have, and the position from which on they are ours.
        self._behind: dict[int, int] = {}
        self._upto = 0
        self._swept = 0
        self._resumed: dict[str, int] = {}
        self._unreadable: set[int] = set()
        self._wake = asyncio.Event()
        self._failure: BaseException | None = None
        self._givings: set[asyncio.Task[None]] = set()

    def failed(self, error: BaseException) -> None:
        """A lane cannot go on, so the share starts over."""
        self._failure = error
        self._wake.set()

    def has_room(self) -> None:
        """A lane that was cut off can be filled again."""
        self._wake.set()

    async def run(self) -> NoReturn:
        try:
            while True:
                try:
                    async with await connect(self._url) as connection:
                        await self._keep(connection)
                except (psycopg.Error, TimeoutError, LaneFailed) as error:
                    log.warning("deliver: %s; starting over", str(error).strip() or "no answer")
                finally:
                    await self._drop()
                await asyncio.sleep(BACKOFF_SECONDS)
        finally:
            await self.shares.leave()

    async def _keep(self, connection: Db) -> NoReturn:
        """Keep the share even and the lanes filled; find what neither view nor tail has brought."""
        loop = asyncio.get_running_loop()
        sweep_at, look_at, before = loop.time() + SWEEP_SECONDS, loop.time(), self._upto
        self._waiting = dict.fromkeys(self.shares.mine, await self._head(connection))
        while True:
            if loop.time() >= look_at:
                look_at = loop.time() + LOOK_SECONDS
                await self._balance(connection)
            if self._failure:
                raise LaneFailed(repr(self._failure)) from self._failure
            seen = await self._seen(connection)
            await self._begin(connection, seen)
            self.done = {job: closed for job, closed in self.done.items() if closed > seen}
            await self._refill(connection, seen)
            await self._take_resumed(connection, seen)
            if loop.time() >= sweep_at or not self._nats.is_connected:
                await self._sweep(connection, before)
                sweep_at, before = loop.time() + SWEEP_SECONDS, seen
            await self._pause()

    async def _pause(self) -> None:
        if self.lanes.importing:
            await asyncio.sleep(IMPORTED_SECONDS)  # Such a lane has room for more all the time.
        else:
            waits = self._waiting or self._resumed or any(lane.wants for _, lane in self.lanes)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), VIEWS_SECONDS if waits else LOOK_SECONDS)
        self._wake.clear()

    # The share: partitions come, begin, and go.

    async def _balance(self, connection: Db) -> None:
        """Have the share that is due."""
        moved = await self.shares.look()
        if moved.lost:
            log.warning("deliver: %d partitions are not ours any more", len(moved.lost))
            self._forget(moved.lost)
            await self.lanes.stop(set(moved.lost), 0.0)
        if moved.surplus:
            self._forget(moved.surplus)
            giving = asyncio.create_task(self._give_up(moved.surplus), name="deliver gives up")
            self._givings.add(giving)
            giving.add_done_callback(self._givings.discard)
        if moved.gained:
            self._waiting |= dict.fromkeys(moved.gained, await self._head(connection))
        if moved.gained or moved.surplus or moved.lost:
            log.info("deliver: %d partitions are ours", len(self.shares.mine))

    def _forget(self, partitions: Iterable[int]) -> None:
        """Take nothing more of partitions."""
        for one in partitions:
            for kept in (self._waiting, self._since, self._behind):
                kept.pop(one, None)

    async def _give_up(self, partitions: list[int]) -> None:
        await self.lanes.stop(set(partitions), GIVE_UP_SECONDS)
        await self.shares.give_up(partitions)

    async def _begin(self, connection: Db, seen: int) -> None:
        """Begin with partitions for which the view has come far enough.

        Everything that is open is taken, because a conversation may wait behind thousands of others.
        """
        ready = [one for one, head in self._waiting.items() if head <= seen]
        if not ready:
            return
        rows = await self._open(connection, 0, seen, ready)
        while rows:
            self._put_back(rows, begins_at=seen)
            rows = await self._open(connection, rows[-1][0], seen, ready)
        await self._find_imported(connection, seen, ready)
        if not self._since:
            self._upto = seen
        for one in ready:
            if self._waiting.pop(one, None) is not None:
                self._since[one] = self._behind[one] = seen
        self._tail.join(self, seen)

    # What is new.

    def read(self, news: Sequence[Arrival], upto: int) -> None:
        """Take the events of our partitions that are later than all that these have had."""
        for arrival in news:
            partition = ids.partition(arrival.head.conversation)
            if partition in self._since and arrival.position > self._reached(partition):
                self._take(arrival, partition)
        self._upto = max(self._upto, upto)
        for one, base in list(self._behind.items()):
            if upto >= max(base, self._upto):
                del self._behind[one]
            else:
                self._behind[one] = max(base, upto)

    def _reached(self, partition: int) -> int:
        """The position up to which a partition has had everything."""
        return self._behind.get(partition, self._upto)

    def _take(self, arrival: Arrival, partition: int) -> None:
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
        elif isinstance(event, Pushed) and event.push and (fence := self.shares.fence(partition)):
            job = Job(position, event, fence=fence, check=partial(self.shares.check, fence))
            self.lanes.of(lane_key(event)).put(job)

    def _hold_up(self, conversation: str | None, position: int) -> None:
        """Let nothing later of a conversation overtake what is resumed: the view has all of it, in order."""
        if conversation is not None:
            for side in (ids.KOMMO, ids.MESSENGER):
                self.lanes.of((conversation, side, None)).cuts(position, always=True)

    # What the view has as open.

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

    async def _find_imported(self, connection: Db, upto: int, partitions: Collection[int]) -> None:
        """Let the lanes of what is imported ask for what the view has as open up to a position."""
        rows = await self._ask(connection, IMPORTED, partitions=list(partitions))
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
        self._tail.wake.set()
        rows = await self._open(connection, self._swept, self._upto, self._since)
        self._swept = rows[-1][0] if len(rows) == PAGE else 0
        self._put_back(rows)
        await self._find_imported(connection, before, self._since)
        if before > self._upto and not self._behind:
            rows = await self._open(connection, self._upto, before, self._since)
            self._upto = max(self._upto, rows[-1][0] if len(rows) == PAGE else before)
            self._put_back(rows)

    def _put_back(self, rows: list[Row], *, begins_at: int = 0) -> None:
        for job in self._jobs(rows, begins_at):
            self.lanes.of(lane_key(job.event)).put_back(job)

    def _jobs(self, rows: list[Row], begins_at: int = 0) -> list[Job]:
        """Those of the view's open rows that are not known to be done; any process may have tried them.

        An exception is what an import has sent since the partition is ours: nobody else can have tried that,
        so it needs no look into the ledger, thousands of times. `begins_at`: where the partitions begin that
        are about to, 0 for those that have begun.
        """
        jobs = []
        for position, raw, attempts, reason, since in rows:
            if position in self.done or (event := self._decode(position, raw)) is None:
                continue
            partition = ids.partition(event.conversation)
            fence = self.shares.fence(partition)
            if fence is None or position > (begins_at or self._reached(partition)):
                continue
            ours_from = self._since.get(partition, begins_at)
            fresh = is_imported(event) and position > ours_from and not attempts
            progress = Progress(again=not fresh, unknown=not fresh, attempts=attempts, reason=reason or "")
            check = partial(self.shares.check, fence)
            jobs.append(Job(position, event, progress, waits_from=since or "", fence=fence, check=check))
        return jobs

    def _decode(self, position: int, raw: bytes) -> Pushed | None:
        """The event, or None if it was damaged after the view took it: then its delivery stays open."""
        try:
            event = e.decode(unpack(raw))
        except (ValueError, RecursionError) as error:
            if position not in self._unreadable:
                self._unreadable.add(position)
                log.error("deliver: event %d cannot be read and is not pushed: %s", position, error)
            return None
        assert isinstance(event, Pushed)
        return event

    async def _drop(self) -> None:
        """Let go of every lane: what is still ours begins again from the view."""
        self._tail.leave(self)
        for giving in list(self._givings):
            giving.cancel()
        if self._givings:
            await asyncio.wait(self._givings)
        self._forget(range(ids.PARTITIONS))
        self.done = {}
        await self.lanes.stop()
        await self.shares.finish()
        self._swept, self._resumed, self._failure = 0, {}, None
        self._unreadable.clear()

    async def _head(self, connection: Db) -> int:
        ((head,),) = await self._ask(connection, HEAD)
        return cast("int", head)

    async def _seen(self, connection: Db) -> int:
        """The position of the view, -1 while there is none."""
        if not self._since and await self._ask(connection, VIEWS) != [(True,)]:
            return -1
        ((position,),) = await self._ask(connection, POSITION)
        return cast("int", position)

    async def _open(self, connection: Db, after: int, upto: int, partitions: Collection[int]) -> list[Row]:
        return await self._rows(
            connection, OPEN, after=after, upto=upto, limit=PAGE, partitions=list(partitions)
        )

    async def _rows(self, connection: Db, statement: str, **values: object) -> list[Row]:
        return cast("list[Row]", await self._ask(connection, statement, **values))

    async def _ask(self, connection: Db, statement: str, **values: object) -> list[tuple[object, ...]]:
        """All rows of a statement; what is resumed may need thousands, so each has its own time to answer."""
        values = {"partitions": list(self._since), **values}
        async with asyncio.timeout(LOOK_SECONDS_MAX):
            return await fetch_all(connection, statement, values)
