"""A conversation's pushes to one side, one after the other: the next begins when the last is settled.

A push whose handling ends in an error that no rule expects is parked, and its conversation goes on; an error
of the database is for whoever holds the lease.
"""

import asyncio
import logging
import random
from bisect import insort
from collections import defaultdict
from typing import Protocol

import psycopg
from msgspec import Struct

from app import clock, metrics
from app.delivery.prepare import Disconnected, Missing, Pushed, Pusher, Settled, Superseded, classify
from app.http_client import Unreached
from app.kommo.chats.client import Created
from app.ledger.writer import Full, Ledger, Recorded, Unavailable
from app.outcome import Done, Forbidden, Gone, Refused, Retry
from domain import commands as c
from domain import events as e
from domain import ids

RETRY_FIRST_SECONDS = 0.25
RETRY_SECONDS_MAX = 60.0
RETRY_SECONDS_LATER = 300.0
LATER_SECONDS = 3600.0
RECORD_SECONDS = 0.5
STOP_POLL_SECONDS = 0.05
LANE_MAX = 100
COPY_SECONDS = 12.0  # Longer than a call may take.
COPY_POLL_SECONDS = 0.02
ABSENT = (psycopg.OperationalError, psycopg.InternalError, psycopg.ProgrammingError, psycopg.InterfaceError)
DISCONNECTED = "disconnected: the channel is not connected to the account"
log = logging.getLogger("chatledger.deliver")


class Job(Struct):
    """An event to push, at its position.

    `again`: it may have been tried before, by us or by a process that is gone; `unknown`: an attempt may have
    been taken without our learning of it. `since` is when the first attempt failed and `tried_at` when the
    last one began, in seconds of the loop. `resting`: it waits for its next attempt. `called`: the attempt at
    hand has gone so far that the other side may know of it. `broken`: it met an error that no rule expects.
    """

    position: int
    event: Pushed
    again: bool = False
    unknown: bool = False
    attempts: int = 0
    reason: str = ""
    since: float = 0.0
    tried_at: float = 0.0
    reconnected: bool = False
    resting: bool = False
    called: bool = False
    broken: bool = False


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


class Settle:
    """Tries a job until its outcome is in the ledger."""

    def __init__(self, ledger: Ledger, pusher: Pusher) -> None:
        self._ledger = ledger
        self._pusher = pusher
        self._copies: defaultdict[str | None, list[Job]] = defaultdict(list)
        self._copied = 0
        self._ends_at: float | None = None

    def end(self, seconds: float) -> None:
        """Begin nothing more; what is in flight has so long to end."""
        self._ends_at = asyncio.get_running_loop().time() + seconds

    @property
    def ending(self) -> bool:
        """Whether nothing more is to be begun."""
        return self._ends_at is not None

    @property
    def seconds_left(self) -> float:
        """How long what is in flight may take."""
        return 0.0 if self._ends_at is None else self._ends_at - asyncio.get_running_loop().time()

    async def settle(self, job: Job) -> int:
        """Push the event, again and again if it must be; returns the position of what settles it."""
        event = job.event
        if isinstance(event, e.TypingStarted):
            return await self._typing(job.position, event)
        if _is_copy(event):
            return await self._settle_copy(job)
        if isinstance(event, e.MessageSent) and event.push == ids.MESSENGER and e.author(event) == ids.KOMMO:
            await self._outwait_copies(job)
        return await self._settle(job)

    async def _settle_copy(self, job: Job) -> int:
        conversation = job.event.conversation
        copies = self._copies[conversation]  # A live one and an imported one may be under way together.
        copies.append(job)
        try:
            settled = await self._settle(job)
        finally:
            copies.remove(job)
            if not copies:
                del self._copies[conversation]
        self._copied = max(self._copied, settled)
        return settled

    async def _outwait_copies(self, job: Job) -> None:
        """Kommo may send a hook of a copy that it has just taken: that it is one shows once its name is here.

        Only while a copy of the chat may be with Kommo without our knowing its name, and not for ever. What
        was recorded before the name of some copy was is looked at, for it may have been that one.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + COPY_SECONDS
        while loop.time() < until:
            copies = self._copies.get(job.event.conversation, ())
            if not any(copy.called or copy.unknown for copy in copies):
                break
            job.again = True
            await asyncio.sleep(COPY_POLL_SECONDS)
        job.again = job.again or job.position < self._copied

    async def _settle(self, job: Job) -> int:
        event = job.event

        def began() -> None:
            job.called = True

        while True:
            job.tried_at = asyncio.get_running_loop().time()
            result = await self._pusher.attempt(event, again=job.again, began=began)
            metrics.DELIVERIES.labels(event.push, classify(result)).inc()
            job.again = True
            match result:
                case Done():
                    return await self._done(job, result)
                case Settled():
                    return job.position
                case Superseded():
                    return await self._complete(job, result.reason)
                case Disconnected():
                    return await self._park(job, DISCONNECTED)
                case Missing():
                    return await self._park(job, result.reason)
                case Refused():
                    settled = await self._refused(job, result)
                case Gone():
                    settled = await self._gone(job, result)
                case Forbidden():
                    await self._forbidden(job, result)
                    settled = None
                case Retry():
                    settled = await self._retry(job, result)
            if settled is not None:
                return settled

    async def _typing(self, position: int, event: e.TypingStarted) -> int:
        """Tried once while it is fresh: in a moment it means nothing."""
        if event.expires_at >= clock.text(clock.now_ms()):
            result = await self._pusher.attempt(event, again=False)
            metrics.DELIVERIES.labels(event.push, classify(result)).inc()
        return position

    async def give_up(self, job: Job) -> int:
        """Park a job that nothing else can be done with; returns the position of that."""
        if isinstance(job.event, e.TypingStarted):
            return job.position
        return await self._park(job, "an error of our own: look at the log, then resume it")

    async def _done(self, job: Job, done: Done) -> int:
        event = job.event
        side = event.push or ""
        if not isinstance(event, Created):
            return await self._complete(job)
        where = await self._pusher.link(event)
        alias = ids.message_id(where, side, done.remote_id) if done.remote_id else None
        end = None
        if side == ids.MESSENGER and done.conversation_id:
            named = ids.conversation_id(where, side, done.conversation_id)
            end = c.End("messenger", named, e.Ends(conversation_id=done.conversation_id))
        command = c.Accept(
            **await self._stamp(job, "recovery" if done.recovered else side),
            stream=event.stream,
            side=event.push or "kommo",
            remote_id=done.remote_id,
            alias=alias,
            end=end,
            cause=event.id,
            copy=isinstance(event, e.MessageMirrored),
        )
        return await self._record(command)

    async def _complete(self, job: Job, superseded: str | None = None) -> int:
        event = job.event
        if isinstance(event, e.MessageSent) and superseded is None:
            raise AssertionError("a send is completed by its acceptance")
        stamp = await self._stamp(job, "system")
        return await self._record(
            c.Complete(**stamp, stream=event.stream, cause=event.id, superseded=superseded)
        )

    async def _park(self, job: Job, reason: str) -> int:
        event = job.event
        log.error("parked: position %d (%s): %s", job.position, e.tag(event), reason)
        stamp = await self._stamp(job, "system")
        return await self._record(c.Park(**stamp, stream=event.stream, cause=event.id, reason=reason))

    async def _refused(self, job: Job, refused: Refused) -> int | None:
        """Final, unless an earlier attempt was taken without our learning of it: Kommo's history says."""
        event = job.event
        if not isinstance(event, Created):
            return await self._park(job, f"refused for good: {refused.text}")
        if job.unknown and event.push == ids.KOMMO:
            try:
                found = await self._pusher.recover(event)
            except Unreached as error:
                await self._later(job, f"looking it up: {error.reason}", 0.0)
                return None
            if found is not None:
                return await self._done(job, Done(remote_id=found, recovered=True))
        if isinstance(event, e.MessageMirrored):
            return await self._park(job, f"Kommo refused the copy: {refused.text}")
        log.error("refused: position %d: HTTP %d", job.position, refused.http)
        return await self._record(
            c.Reject(
                **await self._stamp(job, event.push or "system"),
                stream=event.stream,
                code=refused.code,
                text=refused.text,
                cause=event.id,
            )
        )

    async def _gone(self, job: Job, gone: Gone) -> int | None:
        """Not connected any more, perhaps: connect again, once, and try again; else someone must look."""
        if job.reconnected:
            return await self._park(job, f"not found (404), also after connecting again: {gone.text}")
        found = await self._pusher.reconnect(job.event, job.tried_at)
        if isinstance(found, str):
            return await self._park(job, found)
        if isinstance(found, Retry):
            await self._later(job, found.reason, found.after_seconds)
            return None
        job.reconnected = True
        if found is not None:
            await self._record(found)
        return None

    async def _forbidden(self, job: Job, forbidden: Forbidden) -> None:
        """Not connected any more, perhaps: connect again, once; else wait until someone has looked."""
        found = None if job.reconnected else await self._pusher.reconnect(job.event, job.tried_at)
        if isinstance(found, c.Connect):
            await self._record(found)
        if job.reconnected or isinstance(found, str | Retry):
            await self._later(job, f"refused (403): {forbidden.text}", 0.0)
        else:
            job.reconnected = True

    async def _retry(self, job: Job, retry: Retry) -> int | None:
        """Again, later; but what an import sent holds up all that follows it no longer than an hour."""
        job.unknown = job.unknown or retry.unknown
        event = job.event
        failing = job.since and asyncio.get_running_loop().time() - job.since > LATER_SECONDS
        if failing and not retry.pause and isinstance(event, e.MessageSent) and event.imported:
            return await self._park(job, f"given up after an hour: {retry.reason}")
        await self._later(job, retry.reason, retry.after_seconds)
        return None

    async def _later(self, job: Job, reason: str, after_seconds: float) -> None:
        """Record the first failure, and any change of reason, then wait."""
        loop = asyncio.get_running_loop()
        job.since = job.since or loop.time()
        if reason != job.reason:
            job.reason = reason
            event = job.event
            log.warning("deferred: position %d (%s): %s", job.position, e.tag(event), reason)
            stamp = await self._stamp(job, "system")
            await self._record(c.Defer(**stamp, stream=event.stream, cause=event.id, reason=reason))
        later = loop.time() - job.since > LATER_SECONDS
        most = RETRY_SECONDS_LATER if later else RETRY_SECONDS_MAX
        longest = min(most, RETRY_FIRST_SECONDS * 2 ** min(job.attempts, 20))
        job.attempts += 1
        job.resting, job.called = True, False
        await asyncio.sleep(max(random.uniform(longest / 10, longest), after_seconds))
        job.resting = False

    async def _stamp(self, job: Job, by: str) -> c.Stamp:
        event = job.event
        where = await self._pusher.link(event)
        return clock.stamp(where, event.conversation or event.stream, by, now=clock.now_ms())

    async def _record(self, command: c.AnyCommand) -> int:
        """The outcome must be in the ledger before anything else happens: wait for it as long as it takes."""
        while True:
            try:
                recorded: Recorded = await self._ledger.submit(command)
            except (Full, Unavailable) as error:
                log.warning("an outcome waits for the ledger: %s", error)
                await asyncio.sleep(RECORD_SECONDS)
            else:
                return max(recorded.last or 0, recorded.position or 0)


def _is_copy(event: Pushed) -> bool:
    """Whether it makes a message to the customer in Kommo, of which Kommo may send us a hook."""
    if isinstance(event, e.MessageMirrored):
        return True
    return isinstance(event, e.MessageSent) and event.push == ids.KOMMO and event.receiver is not None
