"""Deliveries of a connection are parked when it ends, and resumed when it is made again or someone asks."""

import asyncio
from collections.abc import AsyncIterator

from app import clock
from app.delivery.job import DISCONNECTED
from app.ledger.writer import Recorded
from app.operations.services import Services, record, views_reach
from app.views.deliveries import Delivery, list_deliveries
from app.views.events import ledger_head
from domain import commands as c
from domain import ids
from domain.ids import OPERATOR, Scope

PAGE = 1000  # The largest page that the view gives.
PARKED_AT_ONCE = 100  # Chosen: the directory is asked this seldom whether the scope is connected again.
# Chosen: a batch of the ledger is as large, and an account may have thousands.
RESUMED_AT_ONCE = 500
# Chosen: the second pass finds what was parked meanwhile; if a third finds more, something else is wrong.
PASSES_MAX = 5
# How the reasons begin of deliveries that were parked because Kommo did not know the connection.
LOST = ("Kommo does not know it (404)", "not found (404)", "connecting again failed")


async def park_open(services: Services, scope: Scope, by: str) -> None:
    """Park what is not delivered yet over a connection that has ended, unless it is made again meanwhile."""
    deliveries = [one for state in ("open", "deferred") async for one in _of_scope(services, scope, state)]
    for number, delivery in enumerate(deliveries):
        if number % PARKED_AT_ONCE == 0 and await services.channels.scope(scope.scope_id):
            break
        stream = delivery.message or delivery.id
        stamp = _stamp(scope, delivery, by)
        await record(services, c.Park(**stamp, stream=stream, cause=delivery.id, reason=DISCONNECTED))
    if await services.channels.scope(scope.scope_id):
        await resume_of_scope(services, scope, (DISCONNECTED,), by)


async def resume_of_scope(services: Services, scope: Scope, reasons: tuple[str, ...], by: str) -> None:
    """Resume the parked deliveries of a connection whose reason begins with one of `reasons`.

    What was parked while the connection was made is found in another pass. Raises ViewsBehind.
    """
    for _ in range(PASSES_MAX):
        await views_reach(services, await ledger_head(services.pool), view="deliveries")
        found = [
            one
            async for one in _of_scope(services, scope, "parked")
            if (one.reason or "").startswith(reasons)
        ]
        if not found:
            return
        for first in range(0, len(found), RESUMED_AT_ONCE):
            some = found[first : first + RESUMED_AT_ONCE]
            await asyncio.gather(*(_resume(services, scope, delivery, by) for delivery in some))


async def resume_parked(
    services: Services,
    *,
    channel: str | None = None,
    account_id: str | None = None,
    conversation: str | None = None,
) -> tuple[int, int]:
    """Resume every parked delivery that fits; returns how many, and the last position written."""
    count, last = 0, 0
    only = {"channel": channel, "account_id": account_id, "conversation": conversation}
    async for delivery in _pages(services, state="parked", **only):
        known = await services.channels.channel(delivery.channel)
        scope = ids.scope_of(delivery.channel, known.channel_id if known else "", delivery.account_id or "")
        recorded = await _resume(services, scope, delivery, OPERATOR)
        count, last = count + 1, max(last, recorded.position or 0)
    return count, last


def _of_scope(services: Services, scope: Scope, state: str) -> AsyncIterator[Delivery]:
    return _pages(services, state=state, channel=scope.channel, account_id=scope.account)


async def _pages(services: Services, **only: str | None) -> AsyncIterator[Delivery]:
    """Every delivery that fits, page after page."""
    cursor = None
    while True:
        page = await list_deliveries(services.pool, **only, limit=PAGE, cursor=cursor)
        for delivery in page.items:
            yield delivery
        if (cursor := page.next) is None:
            return


async def _resume(services: Services, scope: Scope, delivery: Delivery, by: str) -> Recorded:
    stream = delivery.message or delivery.id
    return await record(services, c.Resume(**_stamp(scope, delivery, by), stream=stream, cause=delivery.id))


def _stamp(scope: Scope, delivery: Delivery, by: str) -> c.Stamp:
    lane = delivery.conversation or delivery.id
    return clock.stamp(scope, lane, by, now=clock.now_ms())
