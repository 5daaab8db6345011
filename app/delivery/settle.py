"""A job is tried until its outcome is in the ledger, and until then nothing else of its lane is begun.

Theory of operation. `settle` takes a job through one line, once per pass:

    prepare -> destination -> decide -> record -> wait

`prepare` reads the ledger and makes a `Push`, or finds the outcome without a call. The destination passes its
gate and makes the call. `decide` says what that means, as data: the command to record, the job's new
progress, and how long to wait before the next pass. Only this file acts on a decision: it submits the command
and waits until the ledger has it, then it waits, then it begins the next pass or returns.

A pass either tries to push or clears up a doubt that the pass before has left in the progress. A job without
trouble makes one pass.

Invariants. An outcome is in the ledger before `settle` returns, so whoever replays the ledger knows what was
done. If the process dies between the call and the record, the job is open in the view, whoever has the lease
next tries it again (`again`) under the same id, and the other side recognises the repeat. A command is
submitted until the ledger takes it, because only the ledger ends a delivery.

Copies. A message to the customer that was not written in Kommo (an operator's, or one that the business sent
from its phone) is pushed to Kommo too. Kommo may then send a hook of this copy, as of any message of its own,
even before its answer names the copy; recorded as a message from Kommo, it would go to the customer a second
time. So a message from Kommo waits while a copy of its conversation may be with Kommo without its name being
in the ledger, and is compared with the ledger after that (`again`). A copy that only waits for its turn holds
up nobody.
"""

import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import Protocol

from msgspec.structs import replace

from app import clock, metrics
from app.clock import Clock
from app.database.leases import Fence
from app.delivery.decide import Decision, Moment, attempt_outcome, decide
from app.delivery.destinations import is_stale
from app.delivery.job import Disconnected, Job, Push, Pushed, Result, Unsent
from app.http_client import BEFORE_SENDING
from app.ledger.writer import LedgerFull, LedgerUnavailable, Recorded, Unrecordable
from app.outcome import Done, Forbidden, Gone, Refused, Retry
from domain import commands as c
from domain import events as e
from domain import ids
from domain.channels import NotConnected
from domain.ids import Scope

# Chosen: as long as the ledger takes to have room again.
RECORD_SECONDS = 0.5
# Chosen: what is damaged is mended by a person, who finds it in the log once a minute.
DAMAGED_SECONDS_MAX, TELL_SECONDS = 60.0, 60.0
# A call ends after 10 s (`http_client.TIMEOUT_SECONDS`), so after this the name of the copy is known or the
# attempt has failed.
COPY_SECONDS = 12.0
# Chosen: from the resumption of what waits to the connection in force it takes half a second,
# and longer where thousands wait.
CONNECT_SECONDS = 30.0
CONNECT_POLL_SECONDS, CONNECT_POLL_SECONDS_MAX = 0.1, 2.0
# Chosen: imperceptible to whoever waits for the message, and cheap.
COPY_POLL_SECONDS = 0.02
log = logging.getLogger("chatledger.deliver")


class Preparer(Protocol):
    """Reads what a push needs."""

    async def prepare(self, job: Job) -> tuple[Scope, Push | Unsent]:
        """The scope of the job's event, and what the job becomes."""

    async def is_connected(self, event: Pushed) -> bool:
        """Whether the channel is connected to the event's account now."""


class Destination(Protocol):
    """Kommo and the messengers."""

    async def push(self, push: Push, began: Callable[[], None]) -> Result:
        """Push once, or clear up the push's doubt; `began` is called once Kommo may know of the push."""


class Ledger(Protocol):
    """The ledger, as far as it is written here."""

    def submit(self, command: c.AnyCommand, *, fence: Fence | None = None) -> Awaitable[Recorded]:
        """Record a command under a lease. Raises LedgerFull; LedgerUnavailable and LeaseLost when awaited."""


class Counts(Protocol):
    """Where attempts that failed are counted for those who look."""

    def failed(self, delivery: str, now_ms: int, next_ms: int | None) -> None:
        """Count an attempt that failed; `next_ms` is when the next one is (None: there is none)."""

    def done(self, delivery: str) -> None:
        """Forget what was counted: it has arrived."""


class Settle:
    """Settles the jobs of all lanes of the process."""

    def __init__(
        self,
        ledger: Ledger,
        preparer: Preparer,
        destination: Destination,
        clock: Clock,
        chance: Callable[[], float],
        counts: Counts | None = None,
    ) -> None:
        """`chance` gives random numbers from 0 up to 1; `counts` None: nobody looks at the attempts."""
        self._ledger = ledger
        self._preparer = preparer
        self._destination = destination
        self._clock = clock
        self._chance = chance
        self._counts = counts
        self._copies: defaultdict[str | None, list[Job]] = defaultdict(list)
        self._copied: defaultdict[int, int] = defaultdict(int)
        self._ends_at: float | None = None

    def end(self, seconds: float) -> None:
        """Begin no more jobs; what is in flight has so long to end."""
        self._ends_at = self._clock.time() + seconds

    @property
    def ending(self) -> bool:
        """Whether no more jobs are begun."""
        return self._ends_at is not None

    @property
    def seconds_left(self) -> float:
        """How long what is in flight may still take."""
        return 0.0 if self._ends_at is None else self._ends_at - self._clock.time()

    async def settle(self, job: Job) -> int:
        """Push until the outcome is in the ledger; returns the position of that outcome."""
        event = job.event
        if isinstance(event, e.TypingStarted) and is_stale(event, self._clock.now_ms()):
            return job.position
        if _is_copy(event):
            return await self._settle_copy(job)
        if isinstance(event, e.MessageSent) and event.push == ids.MESSENGER and e.author(event) == ids.KOMMO:
            await self._outwait_copies(job)
        return await self._settle(job)

    async def _settle(self, job: Job) -> int:
        BEFORE_SENDING.set(job.check)
        while True:
            began = self._clock.time()
            scope, push = await self._preparer.prepare(job)
            result = await self._destination.push(push, job.call) if isinstance(push, Push) else push
            if isinstance(push, Disconnected) and await self._is_being_connected(job):
                continue
            decision = decide(result, job, self._moment(job, scope, began, push))
            _report(job, result, decision)
            self._count(job, push, result, decision)
            job.progress = decision.progress
            position = (
                job.position if decision.command is None else await self._record(decision.command, job.fence)
            )
            if decision.after_seconds is None:
                if not (isinstance(result, Disconnected) and await self._is_resumed(job, decision)):
                    return position
            elif decision.after_seconds > 0:
                await self._rest(job, decision.after_seconds)

    async def _is_being_connected(self, job: Job) -> bool:
        """Whether the connection that a job needs is made within some seconds, if the job was resumed.

        Whoever makes a connection first resumes what waits for it: so that is in its lanes, in order, before
        anything can be delivered.
        """
        until, pause = self._clock.time() + CONNECT_SECONDS, CONNECT_POLL_SECONDS
        while job.progress.again and self._clock.time() < until:
            await self._rest(job, pause)
            pause = min(pause * 1.5, CONNECT_POLL_SECONDS_MAX)  # Thousands of conversations may wait so.
            if await self._preparer.is_connected(job.event):
                return True
        return False

    async def _is_resumed(self, job: Job, decision: Decision) -> bool:
        """Resume a job that was parked for want of a connection, if that was made meanwhile.

        Whoever made the connection may have looked for such jobs before this one was parked. The job keeps
        its place, or what follows it in the lane would overtake it.
        """
        match decision.command:
            case c.Park(stream=stream, cause=cause) if await self._preparer.is_connected(job.event):
                stamp = self._moment(job, decision.command.scope, self._clock.time()).stamp
                await self._record(c.Resume(**stamp, stream=stream, cause=cause), job.fence)
                return True
        return False

    def _count(self, job: Job, push: Push | Unsent, result: Result, decision: Decision) -> None:
        """Count an attempt that failed, or forget those before the one that succeeded."""
        if self._counts is None or not isinstance(push, Push) or push.doubt:
            return
        if isinstance(result, Done):
            if job.progress.attempts:
                self._counts.done(job.event.id)
        elif isinstance(result, Retry | Refused | Gone | Forbidden):
            now, after = self._clock.now_ms(), decision.after_seconds
            self._counts.failed(job.event.id, now, None if after is None else now + int(after * 1000))

    def _moment(self, job: Job, scope: Scope, began: float, push: object = None) -> Moment:
        event = job.event
        stamp = clock.stamp(scope, event.conversation or event.stream, "system", now=self._clock.now_ms())
        bot_id = push.channel.bot_id if isinstance(push, Push) else None
        return Moment(stamp, began, self._clock.time(), self._chance(), bot_id)

    async def _record(self, command: c.AnyCommand, fence: Fence | None = None) -> int:
        """Submit until the ledger has it; returns the position of the outcome."""
        try:
            recorded = await self._ledger.submit(command, fence=fence)
        except NotConnected:  # An operator has disconnected the channel after Kommo connected it again.
            return 0
        except (LedgerFull, LedgerUnavailable) as error:
            with metrics.UNRECORDED.track_inprogress():
                return await self._record_later(command, fence, error)
        return max(recorded.last or 0, recorded.position or 0)

    async def _record_later(
        self, command: c.AnyCommand, fence: Fence | None, error: LedgerFull | LedgerUnavailable
    ) -> int:
        """Submit again and again, ever less often if what the ledger has of the message is damaged."""
        pause, tell_at = RECORD_SECONDS, 0.0
        while True:
            if self._clock.time() >= tell_at:
                stream = getattr(command, "stream", command.lane)
                log.warning("the outcome of message %s waits for the ledger: %s", stream, error)
                tell_at = self._clock.time() + TELL_SECONDS
            await self._clock.sleep(pause)
            try:
                recorded = await self._ledger.submit(command, fence=fence)
            except NotConnected:
                return 0
            except Unrecordable as damage:
                pause, error = min(pause * 2, DAMAGED_SECONDS_MAX), damage
            except (LedgerFull, LedgerUnavailable) as again:
                pause, error = RECORD_SECONDS, again
            else:
                return max(recorded.last or 0, recorded.position or 0)

    async def _rest(self, job: Job, seconds: float) -> None:
        job.resting, job.called = True, False
        await self._clock.sleep(seconds)
        job.resting = False

    async def _settle_copy(self, job: Job) -> int:
        conversation = job.event.conversation
        copies = self._copies[conversation]  # A live one and an imported one may be under way together.
        copies.append(job)
        try:
            position = await self._settle(job)
        finally:
            copies.remove(job)
            if not copies:
                del self._copies[conversation]
        partition = ids.partition(conversation)
        self._copied[partition] = max(self._copied[partition], position)
        return position

    async def _outwait_copies(self, job: Job) -> None:
        """Wait while a copy may be with Kommo without a name, but not for ever; then look, if one was there.

        A message that was recorded before the name of the latest copy of its partition is looked at too: it
        may be the hook of that copy.
        """
        conversation, looks = job.event.conversation, False
        until = self._clock.time() + COPY_SECONDS
        while self._clock.time() < until:
            copies = self._copies.get(conversation, ())
            if not any(copy.called or copy.progress.unknown for copy in copies):
                break
            looks = True
            await self._clock.sleep(COPY_POLL_SECONDS)
        if looks or job.position < self._copied.get(ids.partition(conversation), 0):
            job.progress = replace(job.progress, again=True)


def _report(job: Job, result: Result, decision: Decision) -> None:
    """Count the attempt, and log what an operator may want to look at: one line an outcome."""
    event = job.event
    if outcome := attempt_outcome(result, job, decision):
        metrics.DELIVERIES.labels(event.push, outcome).inc()
    match decision.command:
        case c.Park(reason=reason) if isinstance(result, Disconnected):
            log.info("parked: position %d (%s): %s", job.position, e.tag(event), reason)
        case c.Park(reason=reason):
            log.error("parked: position %d (%s): %s", job.position, e.tag(event), reason)
        case c.Defer(reason=reason):
            log.warning("deferred: position %d (%s): %s", job.position, e.tag(event), reason)
        case c.Reject() if isinstance(result, Refused):
            log.error("refused: position %d: HTTP %d", job.position, result.http)
        case c.Accept(stream=message, remote_id=None):
            metrics.UNNAMED.labels(event.push).inc()
            log.warning("unnamed: message %s is accepted, but the %s gave no message_id", message, event.push)


def _is_copy(event: Pushed) -> bool:
    """Whether it makes a message to the customer in Kommo, of which Kommo may send us a hook."""
    if isinstance(event, e.MessageMirrored):
        return True
    return isinstance(event, e.MessageSent) and event.push == ids.KOMMO and event.receiver is not None
