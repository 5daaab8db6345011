"""Hooks of the CRM become recorded facts, and a hook that was refused is taken up after a fix.

A refused hook is taken up as it would have been when it came: its age does not count any more, everything
else does. Nobody else can take up the same one meanwhile, and it is deleted once its facts are durable. If
the process dies in between, the ledger knows the facts when it is taken up again.
"""

import asyncio
from typing import cast

from msgspec import Struct

from app.kommo import refused
from app.kommo.chats import hooks
from app.kommo.chats.hooks import HookRefused
from app.kommo.crm import contact_links
from app.kommo.crm.hooks import HookCommand, commands
from app.kommo.crm.php_form import BadForm, read
from app.kommo.refused import Kept
from app.ledger.writer import EventTooLarge, LedgerFull, LedgerUnavailable, Recorded
from app.operations.errors import LedgerBusy, NotFound, NotPossible, StateConflict
from app.operations.services import Services, record
from app.views.cursor import is_uuid
from domain import commands as c
from domain.facts import TooManyFacts

CRM = "crm:"


class UnknownHook(NotFound):
    """No refused hook has this id."""

    MESSAGE = "no refused hook has this id: it was taken up, or dropped for its age"


class ScopeNotConnected(StateConflict):
    """The hook's channel is not connected to its account."""

    MESSAGE = "the hook's channel is not connected to its account: POST /v1/channels/{name}/connections"


class TakenUp(Struct, frozen=True):
    """A hook that was refused and is recorded now: at `position`, unless nothing of it is news."""

    id: str
    position: int | None
    duplicate: bool


async def retry(services: Services, id_: str) -> TakenUp:
    """Take up a refused hook. Raises UnknownHook, ScopeNotConnected, NotPossible, LedgerBusy."""
    if not is_uuid(id_):
        raise UnknownHook
    try:
        async with services.retries, refused.taken_up(services.pool, id_) as hook:
            if hook is None:
                raise UnknownHook
            done = await _take_up(services, hook)
    except NotPossible as error:
        await refused.give_reason(services.pool, id_, str(error))
        raise
    last = max(done, key=lambda one: one.position or 0, default=None)
    return TakenUp(id_, last.position if last else None, all(one.duplicate for one in done))


async def take_crm(services: Services, account: str, body: bytes) -> tuple[list[Recorded], str]:
    """Record the facts of a CRM webhook; returns what is recorded, and why anything is left out.

    It is durable then. Raises LedgerFull, LedgerUnavailable, ViewsMissing and psycopg.OperationalError.
    """
    try:
        tree = read(body)
    except BadForm as error:
        return [], str(error)
    found, unread = commands(account, tree, await services.channels.all())
    if not services.ledger.has_room(len(found), len(body)):
        raise LedgerFull
    futures = [services.ledger.submit(command, len(body) // len(found)) for command in found]
    if futures:
        await asyncio.wait(futures)  # Not `gather`: what is given up here may be committed all the same.
    recorded = [future.result() for future in futures]
    for command in found:
        await _let_wait(services, account, command)
    return recorded, "; ".join(unread[:10])


async def _take_up(services: Services, hook: Kept) -> list[Recorded]:
    if hook.scope_id.startswith(CRM):
        try:
            recorded, unread = await take_crm(services, hook.scope_id.removeprefix(CRM), hook.body)
        except (LedgerFull, LedgerUnavailable):
            raise LedgerBusy from None
        if unread:
            raise NotPossible(unread)
        return recorded
    scope = await services.channels.scope(hook.scope_id)
    if scope is None:
        raise ScopeNotConnected
    try:
        return [await record(services, hooks.command(scope.connection.scope, hook.body))]
    except (HookRefused, TooManyFacts) as error:
        raise NotPossible(str(error)) from None
    except EventTooLarge:
        raise NotPossible("larger than an event may be") from None


async def _let_wait(services: Services, account: str, command: HookCommand) -> None:
    """What a talk or lead says of a chat that we do not know yet counts once we do."""
    if isinstance(command, c.Review):
        return
    fields = command.fields
    chat_id, contact_id = fields["chat_id"], fields["contact_id"]
    match command:
        case c.Lead(became="declined"):
            return
        case c.Lead():
            lead_id, at = fields["lead_id"], command.now_ms // 1000
        case c.Talk():
            lead_id = fields["entity_id"] if fields["entity_type"] == "lead" else None
            at = cast("int", fields["changed"])
    if not command.chats or not isinstance(contact_id, int):
        return
    await contact_links.save(
        services.pool, account, cast("str", chat_id), contact_id, cast("int | None", lead_id), at
    )
