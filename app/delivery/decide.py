"""A result and a job decide what is recorded and what the job does next; nothing is done here."""

import re
from typing import NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from app.channels.directory import Connection
from app.delivery.decoration import without_each
from app.delivery.job import (
    Disconnected,
    Doubt,
    Expired,
    Job,
    Lost,
    Missing,
    Progress,
    Pushed,
    Reconnected,
    Result,
    Settled,
    Superseded,
    is_imported,
)
from app.kommo.chats.payloads import Created
from app.limits import OTHER_FAILURE
from app.outcome import Done, Forbidden, Gone, Refused, Retry
from domain import commands as c
from domain import events as e
from domain import ids
from domain.ids import KOMMO

SERVER_ERROR = re.compile(r"HTTP 5\d\d\b")
# Chosen: what passes in a moment (a restart, a lost packet) costs no more than a moment.
RETRY_FIRST_SECONDS = 0.25
# Chosen: nobody waits longer than a minute after the other side has recovered ...
RETRY_SECONDS_MAX = 60.0
# ... and five minutes after it has been away for an hour, when thousands of conversations may be waiting.
RETRY_SECONDS_LATER = 300.0
LATER_SECONDS = 3600.0
# Chosen: each pause is a random share of its longest, at least a tenth, so that jobs that failed together do
# not come back together.
SHARE_MIN = 0.1
# Chosen: 2**20 times the first pause is far beyond every limit, and a larger power is no number any more.
DOUBLINGS_MAX = 20

# Chosen: what changes its reason more often tells nothing new, and each time costs an event.
TOLD_MAX = 20

# Kommo answers an edit of a message that it does not have with 400, everything else with 404.
UNKNOWN_EDIT = 400
# Of the statuses by which Kommo refuses us, the one that a dropped connection may have too.
DROPPED = 403


class Moment(NamedTuple):
    """What a decision needs from outside, as values.

    `began` is when the attempt began and `time` the present, in seconds of the clock; `chance` is a random
    number from 0 up to 1. `stamp` is that of the job's conversation, by "system". `bot_id` is the channel's.
    """

    stamp: c.Stamp
    began: float
    time: float
    chance: float
    bot_id: str | None = None


class Decision(Struct, frozen=True):
    """`command` is recorded first (None: nothing is); then the job waits and is tried again.

    `after_seconds` is how long it waits; 0 is not at all, and None is that the job is settled.
    """

    progress: Progress
    command: c.AnyCommand | None = None
    after_seconds: float | None = None


def decide(result: Result, job: Job, now: Moment) -> Decision:
    """What follows from what the job's pass through `prepare` and its destination ended in.

    The pass has cleared up the doubt that the job had, if any, so the progress that follows has it no more.
    """
    event, doubt = job.event, job.progress.doubt
    tried = replace(job.progress, again=True, doubt=None)
    if isinstance(event, e.TypingStarted):
        return Decision(tried)  # Tried once, while it is fresh; the next moment it means nothing.
    if doubt and isinstance(doubt.answer, Forbidden) and isinstance(result, Retry | Lost):
        return _rest(event, tried, now, doubt.answer)
    match result:
        case Done():
            return Decision(tried, _accept(event, result, now, tried.left_out))
        case Settled():
            return Decision(tried)
        case Superseded():
            return Decision(tried, _complete(event, now, result.reason))
        case Disconnected() | Missing():
            return _park(event, tried, now, result.reason)
        case Lost():
            return _park(event, tried, now, result.reason, result.answer)
        case Expired():
            return _expire(event, tried, now, result)
        case Reconnected():
            command = _connect(result.connection, now) if result.connection else None
            return Decision(replace(tried, reconnected=True), command, 0.0)
        case Retry():
            return _retry(event, tried, now, result, cleared=doubt is not None)
        case Refused():
            return _refused(event, tried, now, result, doubt)
        case Gone():
            return _gone(event, tried, now, result, doubt)
        case Forbidden():
            dropped = event.push == KOMMO and result.http == DROPPED and not tried.reconnected
            if dropped:
                return _doubt(tried, Doubt(result, "connection", now.began))
            return _rest(event, tried, now, result)


def attempt_outcome(result: Result, job: Job, decision: Decision) -> str:
    """The word by which an attempt is counted; empty if the pass was none or its answer is in doubt."""
    doubt, raised = job.progress.doubt, decision.progress.doubt
    if job.broken or (doubt and doubt.look != "ledger") or (raised and raised.look == "ledger"):
        return ""
    match result:
        case Done():
            return "done"
        case Refused():
            return "refused"
        case Retry() | Forbidden():
            return "deferred"
        case Gone() | Disconnected() | Missing() | Lost() | Expired():
            return "gone"
        case Superseded() | Settled() | Reconnected():
            return "superseded"


def _retry(event: Pushed, tried: Progress, now: Moment, retry: Retry, *, cleared: bool) -> Decision:
    """Again, later; but what an import sent holds up what follows in its lane for no longer than an hour."""
    if not cleared:
        tried = replace(tried, unknown=tried.unknown or retry.unknown)
        failing = tried.since is not None and now.time - tried.since > LATER_SECONDS
        if failing and not retry.pause and is_imported(event):
            return _park(event, tried, now, f"given up after an hour: {retry.reason}")
    return _later(event, tried, now, retry.reason, retry.after_seconds)


def _refused(event: Pushed, tried: Progress, now: Moment, refused: Refused, doubt: Doubt | None) -> Decision:
    """Final, unless Kommo does not know the message yet, or has it from an attempt without an answer."""
    if not isinstance(event, Created):
        if doubt is None and event.push == KOMMO and refused.http == UNKNOWN_EDIT:
            return _doubt(tried, Doubt(refused, "ledger"))
        return _park(event, tried, now, f"refused for good: {_http(event, refused)}", refused.text)
    if doubt is None and event.push == KOMMO and tried.unknown:
        return _doubt(tried, Doubt(refused, "history"))
    untried = tried.untried
    if untried is None and not refused.sure:
        untried = without_each(event, refused.text, now.bot_id)
    if untried:  # If an attempt had no answer, it was looked up before this.
        fewer = replace(tried, left_out=untried[0], untried=untried[1:], unknown=False)
        return Decision(fewer, after_seconds=0.0)
    if isinstance(event, e.MessageMirrored):
        return _park(event, tried, now, f"Kommo refused the copy: {_http(event, refused)}", refused.text)
    stamp, reason = _by(now, event.push or "system"), f"refused for good: {_http(event, refused)}"
    return Decision(tried, _reject(stamp, event, refused.code, refused.text, reason))


def _reject(stamp: c.Stamp, event: Pushed, code: int, text: str, reason: str) -> c.Reject:
    return c.Reject(**stamp, stream=event.stream, code=code, text=text, cause=event.id, reason=reason)


def _expire(event: Pushed, tried: Progress, now: Moment, expired: Expired) -> Decision:
    """A message fails, so that its manager learns of it; anything else waits for someone to look."""
    if not isinstance(event, e.MessageSent):
        return _park(event, tried, now, expired.reason, expired.answer)
    return Decision(tried, _reject(now.stamp, event, OTHER_FAILURE, expired.reason, expired.reason))


def _rest(event: Pushed, tried: Progress, now: Moment, forbidden: Forbidden) -> Decision:
    """Nothing is the matter with the event: it waits until the account or the messenger takes it."""
    subject = "account" if event.push == KOMMO else "channel"
    reason = f"the {subject} rests: {_http(event, forbidden)}"
    waits = _later(event, tried, now, reason, answer=forbidden.text)
    return replace(waits, after_seconds=RETRY_FIRST_SECONDS)  # Then at its gate, which may open at any time.


def _http(event: Pushed, refusal: Refused | Forbidden) -> str:
    return f"HTTP {refusal.http} from {'Kommo' if event.push == KOMMO else 'the messenger'}"


def _gone(event: Pushed, tried: Progress, now: Moment, gone: Gone, doubt: Doubt | None) -> Decision:
    """Kommo does not know the message yet, or no longer the channel: connecting again helps once."""
    if doubt is None and event.push == KOMMO and not isinstance(event, Created):
        return _doubt(tried, Doubt(gone, "ledger", now.began))
    if tried.reconnected:
        return _park(event, tried, now, "not found (404), also after connecting again", gone.text)
    return _doubt(tried, Doubt(gone, "connection", doubt.tried_at if doubt else now.began))


def _doubt(tried: Progress, doubt: Doubt) -> Decision:
    return Decision(replace(tried, doubt=doubt), after_seconds=0.0)


def _later(
    event: Pushed,
    tried: Progress,
    now: Moment,
    reason: str,
    after_seconds: float = 0.0,
    answer: str | None = None,
) -> Decision:
    """Wait longer each time; record the first failure, and when its kind changes."""
    since = now.time if tried.since is None else tried.since
    most = RETRY_SECONDS_LATER if now.time - since > LATER_SECONDS else RETRY_SECONDS_MAX
    longest = min(most, RETRY_FIRST_SECONDS * 2 ** min(tried.attempts, DOUBLINGS_MAX))
    pause = longest * (SHARE_MIN + (1 - SHARE_MIN) * now.chance)
    command = None
    told = _kind(reason) != _kind(tried.reason) and tried.told < TOLD_MAX
    if told:
        command = c.Defer(
            **now.stamp, stream=event.stream, cause=event.id, reason=reason, answer=answer or None
        )
        tried = replace(tried, reason=reason, told=tried.told + 1)
    progress = replace(tried, since=since, attempts=tried.attempts + 1)
    return Decision(progress, command, max(pause, after_seconds))


def _kind(reason: str) -> str:
    """A reason without what changes from one attempt to the next: all statuses of 5xx are one kind."""
    return SERVER_ERROR.sub("HTTP 5xx", reason)


def _park(event: Pushed, tried: Progress, now: Moment, reason: str, answer: str | None = None) -> Decision:
    command = c.Park(**now.stamp, stream=event.stream, cause=event.id, reason=reason, answer=answer or None)
    return Decision(tried, command)


def _complete(event: Pushed, now: Moment, superseded: str | None = None) -> c.Complete:
    return c.Complete(**now.stamp, stream=event.stream, cause=event.id, superseded=superseded)


def _accept(event: Pushed, done: Done, now: Moment, left_out: tuple[str, ...]) -> c.Accept | c.Complete:
    """A message is accepted under the names that the other side has for it; anything else is complete."""
    if not isinstance(event, Created):
        return _complete(event, now)
    side: e.Side = event.push or "kommo"
    scope, end, within = now.stamp["scope"], None, None
    if side == ids.MESSENGER and done.conversation_id:
        stream = ids.conversation_id(scope, side, done.conversation_id)
        end = c.End(side, stream, e.Ends(conversation_id=done.conversation_id))
    alias = ids.message_id(scope, side, done.remote_id) if done.remote_id else None
    conversation_id = event.content.conversation_id or done.conversation_id
    if side == ids.MESSENGER and done.remote_id and conversation_id:
        within = ids.message_id_within(scope, conversation_id, side, done.remote_id)
    return c.Accept(
        **_by(now, "recovery" if done.recovered else side),
        stream=event.stream,
        side=side,
        remote_id=done.remote_id,
        alias=None if done.per_conversation else alias,
        alias_within=within,
        end=end,
        cause=event.id,
        copy=isinstance(event, e.MessageMirrored),
        left_out=left_out,
    )


def _connect(connection: Connection, now: Moment) -> c.Connect:
    stream = ids.connection_stream(connection.scope)
    return c.Connect(
        **(now.stamp | {"scope": connection.scope, "lane": stream}),
        stream=stream,
        title=connection.title,
        again=True,
        renewed=True,
        is_time_window_disabled=connection.is_time_window_disabled,
    )


def _by(now: Moment, by: str) -> c.Stamp:
    return {**now.stamp, "by": by}
