"""DOC"""

import asyncio
import logging
import random
from collections import defaultdict

from app import clock, metrics
from app.delivery.job import (
    DISCONNECTED,
    Disconnected,
    Job,
    Missing,
    Pushed,
    Settled,
    Superseded,
    classify,
)
from app.delivery.prepare import Pusher
from app.http_client import Unreached
from app.kommo.chats.payloads import Created
from app.ledger.writer import Ledger, LedgerFull, LedgerUnavailable, Recorded
from app.outcome import Done, Forbidden, Gone, Refused, Retry
from domain import commands as c
from domain import events as e
from domain import ids

log = logging.getLogger("chatledger.deliver")
RETRY_FIRST_SECONDS = 0.25
RETRY_SECONDS_MAX = 60.0
RETRY_SECONDS_LATER = 300.0
LATER_SECONDS = 3600.0
RECORD_SECONDS = 0.5
COPY_SECONDS = 12.0  # Longer than a call may take.
COPY_POLL_SECONDS = 0.02


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
        scope = await self._pusher.scope(event)
        alias = ids.message_id(scope, side, done.remote_id) if done.remote_id else None
        end = None
        if side == ids.MESSENGER and done.conversation_id:
            named = ids.conversation_id(scope, side, done.conversation_id)
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
        scope = await self._pusher.scope(event)
        return clock.stamp(scope, event.conversation or event.stream, by, now=clock.now_ms())

    async def _record(self, command: c.AnyCommand) -> int:
        """The outcome must be in the ledger before anything else happens: wait for it as long as it takes."""
        while True:
            try:
                recorded: Recorded = await self._ledger.submit(command)
            except (LedgerFull, LedgerUnavailable) as error:
                log.warning("an outcome waits for the ledger: %s", error)
                await asyncio.sleep(RECORD_SECONDS)
            else:
                return max(recorded.last or 0, recorded.position or 0)


def _is_copy(event: Pushed) -> bool:
    """Whether it makes a message to the customer in Kommo, of which Kommo may send us a hook."""
    if isinstance(event, e.MessageMirrored):
        return True
    return isinstance(event, e.MessageSent) and event.push == ids.KOMMO and event.receiver is not None
