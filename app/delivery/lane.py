"""A conversation's pushes to one side, one after the other: the next begins when the last is settled.

A push whose handling ends in an error that no rule expects is parked, and its conversation goes on; an error
of the database is for whoever holds the lease.
"""

import asyncio
import logging
from bisect import insort
from typing import Protocol

import psycopg

from app.delivery.job import Job
from app.delivery.settle import Settle

STOP_POLL_SECONDS = 0.05
LANE_MAX = 100
ABSENT = (psycopg.OperationalError, psycopg.InternalError, psycopg.ProgrammingError, psycopg.InterfaceError)
log = logging.getLogger("chatledger.deliver")


class Owner(Protocol):
    """Who holds the lease of a lane's range; `done` maps a settled job's position to that of its outcome."""

    done: dict[int, int]

    def failed(self, error: BaseException) -> None:
        """A lane cannot go on: the database is away."""

    def has_room(self) -> None:
        """A lane that was cut off has room again."""


class Lane:
    """Jobs of one conversation and destination, by position; runs while it has any.

    A full lane cuts off what comes (`cut_at` is the last position it did not take): that stays in the view,
    and is fetched from there when there is room.
    """

    def __init__(self, settle: "Settle", owner: Owner, most: int = LANE_MAX) -> None:
        """`most`: how many it holds."""
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
        """Take what the stream brings: always later than what is here."""
        if not self.cuts(job.position):
            self.jobs.append(job)
            self._start()

    def cuts(self, position: int) -> bool:
        """Whether it cuts off what comes at a position, for it is full or has cut off before."""
        full = bool(self.cut_at) or len(self.jobs) >= self.most
        if full:
            self.cut_at = max(self.cut_at, position)
        return full

    def put_back(self, job: Job) -> None:
        """Take what the view has as open, unless it is here; it goes where its position belongs."""
        if self.cut_at or (len(self.jobs) >= self.most and not self._has(job)):
            self.cut_at = max(self.cut_at, job.position)
        else:
            self._insert(job)

    def fill(self, jobs: list[Job], *, cut_at: int) -> None:
        """Take the first of what the view has as open; `cut_at` says what is still cut off after that."""
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
            self._start()

    def _start(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="lane")
            self._task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        if task.cancelled() or not (error := task.exception()) or self._stopped:
            return
        if isinstance(error, ABSENT) or not self.jobs or self.jobs[0].broken:
            self._owner.failed(error)
            return
        log.error("a push met what no rule expects: position %d", self.jobs[0].position, exc_info=error)
        self.jobs[0].broken = True
        self._start()

    async def _run(self) -> None:
        while self.jobs and not self._settle.ending:
            job = self.jobs[0]
            settled = self._settle.give_up(job) if job.broken else self._settle.settle(job)
            self._owner.done[job.position] = await settled
            self.jobs.pop(0)
            if self.wants:
                self._owner.has_room()

    async def stop(self) -> None:
        """Stop, once what is in flight has ended or the time for that is over: then its outcome is unknown,
        and it is repeated later with the same id."""
        self._stopped = True
        del self.jobs[1:]
        if (task := self._task) is None:
            return
        while not task.done() and self.jobs and not self.jobs[0].resting and self._settle.seconds_left > 0:
            await asyncio.wait([task], timeout=min(self._settle.seconds_left, STOP_POLL_SECONDS))
        task.cancel()
        await asyncio.wait([task])
