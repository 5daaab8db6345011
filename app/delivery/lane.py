"""A conversation's pushes to one side are made one after the other, in the order of their positions.

Theory of operation. A `Lane` holds the jobs of one conversation and destination, and a task that settles the
first of them. The task runs while there are jobs, and a range forgets a lane that has none. What an import
sends has lanes of its own (`job.lane_key`), so that a live message never waits behind it.

Jobs come from two sources. `put` takes what the ledger or the stream brings, which is later than all that is
here. `put_back` and `fill` take what the view `deliveries` has as open, which may be here already or belong
in between. A lane holds at most `most` jobs. A full lane cuts off what comes and remembers the last position
that it did not take (`cut_at`). From then on it takes nothing, because that would overtake what was cut off,
until it is half empty: then its range fills it from the view (`fill`) and says what is still cut off.

The first job is the running one, and nothing is put before it. It leaves the lane when `settle` returns. The
range keeps its position in `done` until the view knows that it is settled, so that rows of the view that are
older do not bring it back.

Invariants. Each job is in the lane once; all but the running one are in the order of their positions, and
later than all that was settled. Nothing later than `cut_at` is in a lane that has cut off something. A job
begins when the one before it is settled, never earlier.

Errors. An error that no rule expects breaks the job: it is parked and the conversation goes on. An error of
the database, or a second error of the same job, ends the range: whoever gets the lease next, mostly the same
process, reads everything that is open from the view again.
"""

import asyncio
import logging
from bisect import insort
from collections.abc import Collection, Iterator
from typing import Protocol

import psycopg

from app.database.leases import LeaseLost
from app.delivery.job import Job, LaneKey, subject
from app.delivery.settle import Settle
from domain import events as e
from domain import ids

# Chosen: a stop notices this soon that a push in flight has begun to wait for its next attempt.
STOP_POLL_SECONDS = 0.05
# Chosen: bounds what a conversation that cannot be delivered takes of the memory, and lets one query bring
# fifty jobs, which is what a lane has room for when it asks.
LANE_MAX = 100
# Chosen: what all imports may take of the memory is that of 128 full lanes. Of many accounts each
# lane holds the fewer, but still enough that one query brings several jobs.
IMPORTED_MAX, IMPORTED_LANE_MIN = 128 * LANE_MAX, 10
# The database is away, or about to be: no fault of the job.
ABSENT = (psycopg.OperationalError, psycopg.InternalError, psycopg.ProgrammingError, psycopg.InterfaceError)
log = logging.getLogger("chatledger.deliver")


class Owner(Protocol):
    """Who holds the lease of a lane's range; `done` maps a settled job's position to that of its outcome."""

    done: dict[int, int]

    def failed(self, error: BaseException) -> None:
        """A lane cannot go on: mostly the database is away."""

    def has_room(self) -> None:
        """A lane that was cut off has room again."""


class Lane:
    """Jobs of one conversation and destination."""

    def __init__(self, settle: Settle, owner: Owner, most: int = LANE_MAX) -> None:
        """`most`: how many jobs it holds."""
        self.most = most
        self.jobs: list[Job] = []
        self.cut_at = 0
        self._settle = settle
        self._owner = owner
        self._task: asyncio.Task[None] | None = None
        self._stopped = False

    @property
    def busy(self) -> bool:
        """Whether anything is left to do."""
        return bool(self.jobs) or (self._task is not None and not self._task.done())

    @property
    def wants(self) -> bool:
        """Whether something was cut off that there is room for now."""
        return bool(self.cut_at) and len(self.jobs) <= self.most // 2

    def put(self, job: Job) -> None:
        """Take a job that is later than all that are here."""
        if not self.cuts(job.position):
            self.jobs.append(job)
            self._supersede(job)
            self._start()

    def cuts(self, position: int, *, always: bool = False) -> bool:
        """Whether the lane cuts off what comes at a position, because it is full or has cut off before.

        `always`: it cuts that off in any case, because something earlier is about to come back.
        """
        full = always or bool(self.cut_at) or len(self.jobs) >= self.most
        if full:
            self.cut_at = max(self.cut_at, position)
        return full

    def put_back(self, job: Job) -> None:
        """Take a job that the view has as open where its position belongs, unless it is here."""
        if self.cut_at or (len(self.jobs) >= self.most and not self._has(job)):
            self.cut_at = max(self.cut_at, job.position)
        else:
            self._insert(job)

    def fill(self, jobs: list[Job], *, cut_at: int) -> None:
        """Take the first of what the view has as open; `cut_at` is what is still cut off after that."""
        self.cut_at = cut_at
        for job in jobs:
            self._insert(job)

    def _has(self, job: Job) -> bool:
        return any(other.position == job.position for other in self.jobs)

    def _insert(self, job: Job) -> None:
        if not self._has(job):
            running = 1 if self.jobs else 0
            rest = self.jobs[running:]
            insort(rest, job, key=lambda each: each.position)
            self.jobs[running:] = rest
            self._supersede(job)
            self._start()

    def _supersede(self, job: Job) -> None:
        """Note which jobs are needless now: of those with the subject of a new one, all but the last."""
        about = subject(job.event)
        if about is None:
            return
        same = [other for other in self.jobs if subject(other.event) == about]
        takes_back = isinstance(same[-1].event, e.ReactionRemoved)
        for earlier in same[:-1]:  # What takes a reaction back may be refused without it.
            if takes_back and isinstance(earlier.event, e.ReactionAdded):
                earlier.taken_back = True
            else:
                earlier.superseded = True

    def _start(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="lane")
            self._task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        if task.cancelled() or not (error := task.exception()) or self._stopped:
            return
        if isinstance(error, LeaseLost):
            return  # Another process has its jobs, and the share is about to drop it.
        if isinstance(error, ABSENT) or not self.jobs or self.jobs[0].broken:
            self._owner.failed(error)
            return
        log.error("a push met what no rule expects: position %d", self.jobs[0].position, exc_info=error)
        self.jobs[0].broken = True
        self._start()

    async def _run(self) -> None:
        while self.jobs and not self._settle.ending:
            job = self.jobs[0]
            self._owner.done[job.position] = await self._settle.settle(job)
            self.jobs.pop(0)
            if self.wants:
                self._owner.has_room()

    async def stop(self, seconds: float | None = None) -> None:
        """Stop once what is in flight has ended or its time is over: then its outcome is unknown, and it is
        repeated later under the same id. `seconds`: how long that is; None: as long as the process ends.
        """
        self._stopped = True
        del self.jobs[1:]
        if (task := self._task) is None:
            return
        loop = asyncio.get_running_loop()
        until = loop.time() + (self._settle.seconds_left if seconds is None else seconds)
        while (
            not task.done() and self.jobs and not self.jobs[0].resting and (left := until - loop.time()) > 0
        ):
            await asyncio.wait([task], timeout=min(left, STOP_POLL_SECONDS))
        task.cancel()
        await asyncio.wait([task])


class Lanes:
    """The lanes of a range, each made when it is first asked for."""

    def __init__(self, settle: Settle, owner: Owner) -> None:
        self._settle = settle
        self._owner = owner
        self._lanes: dict[LaneKey, Lane] = {}

    def __iter__(self) -> Iterator[tuple[LaneKey, Lane]]:
        """The lanes there are now, with their keys; lanes may come and go meanwhile."""
        return iter(list(self._lanes.items()))

    @property
    def depth(self) -> int:
        """How many jobs all lanes hold."""
        return sum(len(lane.jobs) for lane in self._lanes.values())

    @property
    def importing(self) -> int:
        """How many of the lanes are for what is imported."""
        return sum(1 for _, _, imports in self._lanes if imports)

    def of(self, key: LaneKey) -> Lane:
        """The lane of a key."""
        lane = self._lanes.get(key)
        if lane is None:
            imports = key[2]
            lane = Lane(self._settle, self._owner, self._imported_most() if imports else LANE_MAX)
            self._lanes[key] = lane
        return lane

    def _imported_most(self) -> int:
        """How many jobs one more lane of what is imported may hold."""
        return min(LANE_MAX, max(IMPORTED_LANE_MIN, IMPORTED_MAX // (1 + self.importing)))

    def forget_idle(self) -> None:
        """Forget the lanes that have nothing to do and have cut off nothing."""
        self._lanes = {key: lane for key, lane in self._lanes.items() if lane.busy or lane.cut_at}

    async def stop(self, partitions: Collection[int] | None = None, seconds: float | None = None) -> None:
        """Stop and forget the lanes of partitions, or all of them; `seconds` as of `Lane.stop`."""
        stopped = {
            key: lane
            for key, lane in self._lanes.items()
            if partitions is None or partition_of(key) in partitions
        }
        self._lanes = {key: lane for key, lane in self._lanes.items() if key not in stopped}
        await asyncio.gather(*(lane.stop(seconds) for lane in stopped.values()))


def partition_of(key: LaneKey) -> int:
    """The partition of a lane."""
    conversation, _, imports = key
    return imports[0] if imports else ids.partition(conversation)
