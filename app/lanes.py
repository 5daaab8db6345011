"""A conversation's pushes to one side, one after the other: the next begins when the last is settled."""

import asyncio
import logging
import random
from bisect import insort
from collections.abc import Callable

from msgspec import Struct

from app import clock, metrics
from app.client import Unreached
from app.ledger import Full, Ledger, Recorded, Unavailable
from app.outcome import Done, Forbidden, Gone, Refused, Retry
from app.push import Disconnected, Pushed, Pusher, Superseded, classify
from domain import commands as c
from domain import events as e
from domain import ids

RETRY_FIRST_SECONDS = 0.25
RETRY_SECONDS_MAX = 60.0
RETRY_SECONDS_LATER = 300.0
LATER_SECONDS = 3600.0
RECORD_SECONDS = 0.5
DISCONNECTED = "disconnected: the channel is not connected to the account"
log = logging.getLogger("chatledger.deliver")


class Job(Struct):
    """An event to push, at its position.

    `again`: it may have been tried before, by us or by a process that is gone; `unknown`: an attempt may have
    been taken without our learning of it. `since` is when the first attempt failed, in seconds of the loop.
    """

    position: int
    event: Pushed
    again: bool = False
    unknown: bool = False
    attempts: int = 0
    reason: str = ""
    since: float = 0.0
    reconnected: bool = False


class Lane:
    """Jobs of one conversation and destination, by position; runs while it has any.

    A full lane cuts off what comes (`cut_at` is the last position it did not take): that stays in the view,
    and is fetched from there when there is room.
    """

    def __init__(
        self, settle: "Settle", done: dict[int, int], failed: Callable[[BaseException], None]
    ) -> None:
        """`done` is told what settled a job; `failed` of an error that no rule expects."""
        self.jobs: list[Job] = []
        self.cut_at = 0
        self._settle = settle
        self._done = done
        self._failed = failed
        self._task: asyncio.Task[None] | None = None

    @property
    def busy(self) -> bool:
        """Whether anything is left to do."""
        return bool(self.jobs) or (self._task is not None and not self._task.done())

    def put(self, job: Job, limit: int) -> None:
        """Take what the stream brings: always later than what is here."""
        if self.cut_at or len(self.jobs) >= limit:
            self.cut_at = max(self.cut_at, job.position)
            return
        self.jobs.append(job)
        self._start()

    def put_back(self, job: Job, limit: int) -> None:
        """Take what the view has as open, unless it is here; it goes where its position belongs."""
        if any(other.position == job.position for other in self.jobs):
            return
        if len(self.jobs) >= limit:
            self.cut_at = max(self.cut_at, job.position)
            return
        running = 1 if self.busy and self.jobs else 0
        rest = self.jobs[running:]
        insort(rest, job, key=lambda each: each.position)
        self.jobs[running:] = rest
        self._start()

    def _start(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="lane")
            self._task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and (error := task.exception()):
            self._failed(error)

    async def _run(self) -> None:
        while self.jobs:
            job = self.jobs[0]
            closed = await self._settle.settle(job)
            self._done[job.position] = closed
            self.jobs.pop(0)

    async def stop(self) -> None:
        """Cut off what is in flight: its outcome is unknown, and it is repeated later with the same id."""
        self.jobs.clear()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])


class Settle:
    """Tries a job until its outcome is in the ledger."""

    def __init__(self, ledger: Ledger, pusher: Pusher) -> None:
        self._ledger = ledger
        self._pusher = pusher

    async def settle(self, job: Job) -> int:
        """Push the event, again and again if it must be; returns the position of what settles it."""
        event = job.event
        if isinstance(event, e.TypingStarted):
            return await self._typing(job.position, event)
        while True:
            result = await self._pusher.attempt(event, again=job.again)
            metrics.DELIVERIES.labels(event.push, classify(result)).inc()
            job.again = True
            match result:
                case Done():
                    return await self._done(job, result)
                case Superseded():
                    return await self._complete(job, result.reason)
                case Disconnected():
                    return await self._park(job, DISCONNECTED)
                case Refused():
                    settled = await self._refused(job, result)
                case Gone():
                    settled = await self._gone(job, result)
                case Forbidden():
                    await self._later(job, f"refused (403): {result.text}", 0.0)
                    settled = None
                case Retry():
                    job.unknown = job.unknown or result.unknown
                    await self._later(job, result.reason, result.after_seconds)
                    settled = None
            if settled is not None:
                return settled

    async def _typing(self, position: int, event: e.TypingStarted) -> int:
        """Tried once while it is fresh: in a moment it means nothing."""
        if event.expires_at >= clock.text(clock.now_ms()):
            result = await self._pusher.attempt(event, again=False)
            metrics.DELIVERIES.labels(event.push, classify(result)).inc()
        return position

    async def _done(self, job: Job, done: Done) -> int:
        event = job.event
        side = event.push or ""
        if not isinstance(event, e.MessageSent):
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
        if not isinstance(event, e.MessageSent):
            return await self._park(job, f"refused for good: {refused.text}")
        if job.unknown and event.push == ids.KOMMO:
            try:
                found = await self._pusher.recover(event)
            except Unreached as error:
                await self._later(job, f"looking it up: {error.reason}", 0.0)
                return None
            if found is not None:
                return await self._done(job, Done(remote_id=found, recovered=True))
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
        job.reconnected = True
        command = await self._pusher.reconnect(job.event)
        if isinstance(command, str):
            return await self._park(job, command)
        await self._record(command)
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
        await asyncio.sleep(max(random.uniform(longest / 10, longest), after_seconds))

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
