"""`POST /kommo/{scope_id}`: a signed hook is durable before it is answered, for Kommo sends it only once."""

from collections.abc import Coroutine, Mapping
from typing import Any

import psycopg

from app.channels.directory import REFRESH_SECONDS, Channels
from app.deadline import ANSWER_SECONDS, within
from app.http.webhooks.body import BUSY, OK, RETRY_AFTER_SECONDS, Answer, WrongSignature
from app.kommo import refused
from app.kommo.chats import hooks
from app.kommo.chats.hooks import HookRefused, Why
from app.kommo.chats.signature import signed
from app.ledger.writer import EventTooLarge, LedgerFull, LedgerUnavailable
from app.operations.services import Services
from app.problems import ProblemError
from app.views.events import is_stream
from domain import commands as c
from domain.facts import TooManyFacts
from domain.ids import Scope

UNOPENED = "the ledger's secrets do not open with this process's master key: look at GET /readyz and its log"
KINDS = {
    Why.UNREADABLE: "a signed hook",
    Why.V1: "a v1 hook (connect the account again: that asks Kommo for v2)",
    Why.OTHER_ACCOUNT: "a signed hook of another account",
    Why.LATE: "a late hook",
    Why.LARGE: "a signed hook that is too large",
    Why.TOO_MANY: "a signed hook about a message that is full",
}


def signature_of(headers: Mapping[bytes, bytes]) -> str:
    """The header X-Signature, empty if there is none."""
    return headers.get(b"x-signature", b"").decode("latin-1")


async def take(services: Services, scope_id: str, signature: str, body: bytes) -> Answer:
    """Record a hook; the answer is 200 once it is durable, or kept because it is old.

    Raises ProblemError (400, 403, 404, 503).
    """
    if services.channels.fresh_ahead():
        return await _take(services, scope_id, signature, body)
    return await in_time(_take_after_refresh(services, scope_id, signature, body))


async def in_time(answer: Coroutine[Any, Any, Answer]) -> Answer:
    """The answer, or ProblemError (503) once it is due: so much have all steps together."""
    try:
        return await within(ANSWER_SECONDS, answer)
    except TimeoutError:
        raise ProblemError(503, BUSY, retry_after=RETRY_AFTER_SECONDS) from None


async def _take_after_refresh(services: Services, scope_id: str, signature: str, body: bytes) -> Answer:
    await refresh(services.channels)
    return await _take(services, scope_id, signature, body)


async def _take(services: Services, scope_id: str, signature: str, body: bytes) -> Answer:
    channels = services.channels
    active = channels.known_scope(scope_id)
    if active is None:
        refuse_unopened(channels)
        raise ProblemError(404, "no channel is connected under this scope id")
    if not signed(active, signature, body):
        raise WrongSignature(403)
    scope = active.connection.scope
    try:
        age = services.settings.hook_age_seconds_max
        command = hooks.command(scope, body, age_seconds_max=age)
        await services.ledger.submit(command, len(body))
    except HookRefused as error:
        return await _keep(services, scope, body, str(error), error.why)
    except EventTooLarge:
        return await _keep(services, scope, body, "larger than an event may be", Why.LARGE)
    except TooManyFacts as error:
        return await _keep(services, scope, body, str(error), Why.TOO_MANY)
    except (LedgerFull, LedgerUnavailable):
        raise ProblemError(503, BUSY, retry_after=RETRY_AFTER_SECONDS) from None
    return OK


async def refresh(channels: Channels) -> None:
    """Bring the directory of channels up to date; raises ProblemError (503) without the database."""
    try:
        await channels.refresh()
    except psycopg.OperationalError:
        raise ProblemError(503, BUSY, retry_after=RETRY_AFTER_SECONDS) from None


def refuse_unopened(channels: Channels) -> None:
    """Raises ProblemError (503) if a channel's secrets do not open: what is unknown may be that one's."""
    if channels.unopened:
        raise ProblemError(503, UNOPENED, retry_after=RETRY_AFTER_SECONDS)


async def _keep(services: Services, scope: Scope, body: bytes, reason: str, why: Why) -> Answer:
    """Keep a signed hook that is not taken: Kommo will not send it again.

    One that is only old is answered 200, because sending it again would change nothing; and it is not kept if
    its message is recorded. Raises ProblemError.
    """
    try:
        if why == Why.LATE and await _is_recorded(services, scope, body):
            return OK
        keeping = refused.keep(services.pool, scope.scope_id, reason, body, why=why, what=KINDS[why])
        kept = await within(REFRESH_SECONDS, keeping)
    except (psycopg.OperationalError, TimeoutError):
        raise ProblemError(503, BUSY, retry_after=RETRY_AFTER_SECONDS) from None
    if why == Why.LATE:
        return OK
    if why == Why.OTHER_ACCOUNT:
        raise ProblemError(403, f"the hook is for another account, and is kept as {kept} (GET /v1/refused)")
    raise ProblemError(400, f"the hook cannot be read, and is kept as {kept} (GET /v1/refused): {reason}")


async def _is_recorded(services: Services, scope: Scope, body: bytes) -> bool:
    """Whether a hook's message is in the ledger: whoever captured hooks could fill our store with them."""
    try:
        command = hooks.command(scope, body)
    except HookRefused:  # Its age is not all that is wrong with it.
        return False
    return isinstance(command, c.Send) and await is_stream(services.pool, command.stream)
