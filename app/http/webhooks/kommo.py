"""`POST /kommo/{scope_id}`: a signed hook is durable before it is answered, for Kommo sends it only once."""

import psycopg

from app.channels.directory import Channels
from app.http.webhooks import refused
from app.http.webhooks.body import BUSY, OK, RETRY_AFTER_SECONDS, UNSIGNED, Answer
from app.kommo.chats import hooks
from app.kommo.chats.hooks import HookRefused
from app.kommo.chats.signature import signed
from app.ledger.writer import EventTooLarge, LedgerFull, LedgerUnavailable
from app.operations.services import Services
from app.problems import ProblemError

SIGNED_HOOK = "a signed hook"
OLD_HOOK = "a v1 hook (connect the account again: that asks Kommo for v2)"


async def take(services: Services, scope_id: str, signature: str, body: bytes) -> Answer:
    """Record a hook; the answer is 200 once it is durable. Raises ProblemError (400, 403, 404, 503)."""
    channels = services.channels
    if not channels.fresh_ahead():
        await refresh(channels)
    scope = channels.known_scope(scope_id)
    if scope is None:
        raise ProblemError(404, "no channel is connected under this scope id")
    if not signed(scope, signature, body):
        raise ProblemError(403, UNSIGNED)
    try:
        command = hooks.command(scope.connection.scope, body)
    except HookRefused as error:
        raise await _kept(
            services, scope_id, body, str(error), OLD_HOOK if error.old else SIGNED_HOOK
        ) from None
    try:
        await services.ledger.submit(command, len(body))
    except (LedgerFull, LedgerUnavailable):
        raise ProblemError(503, BUSY, retry_after=RETRY_AFTER_SECONDS) from None
    except EventTooLarge:
        raise await _kept(services, scope_id, body, "larger than an event may be", SIGNED_HOOK) from None
    return OK


async def refresh(channels: Channels) -> None:
    """Bring the directory of channels up to date; raises ProblemError (503) without the database."""
    try:
        await channels.refresh()
    except psycopg.OperationalError:
        raise ProblemError(503, BUSY, retry_after=RETRY_AFTER_SECONDS) from None


async def _kept(services: Services, scope_id: str, body: bytes, reason: str, what: str) -> ProblemError:
    """Keep a signed hook that we cannot read: Kommo will not send it again."""
    try:
        kept = await refused.keep(services.pool, scope_id, reason, body, what=what)
    except psycopg.OperationalError:
        return ProblemError(503, BUSY, retry_after=RETRY_AFTER_SECONDS)
    return ProblemError(400, f"the hook cannot be read, and is kept as {kept} (GET /v1/refused): {reason}")
