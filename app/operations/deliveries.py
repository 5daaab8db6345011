"""Deliveries of a connection are parked when it ends, and resumed when it is made again or someone asks.

Whatever failed or is parked can be resumed: in the order of the positions, so in each conversation's order,
and once. A second request finds nothing left, although the view may still show what the first has resumed,
because the ledger knows better.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple, TypeAlias

from app import clock
from app.delivery.job import DISCONNECTED
from app.ledger.writer import Recorded
from app.operations.errors import LedgerBusy
from app.operations.services import Services, record, views_reach
from app.views.deliveries import Delivery, list_deliveries
from app.views.events import ledger_head
from domain import commands as c
from domain import ids
from domain.ids import OPERATOR, Scope

Stopped: TypeAlias = Literal["parked", "failed"]
PAGE = 1000  # The largest page that the view gives.
PARKED_AT_ONCE = 100  # Chosen: the directory is asked this seldom whether the scope is connected again.
# Chosen: a batch of the ledger is as large, and an account may have thousands.
RESUMED_AT_ONCE = 500
# Chosen: the second pass finds what was parked meanwhile; if a third finds more, something else is wrong.
PASSES_MAX = 5
# Chosen: as long as the ledger takes to have room again.
BUSY_SECONDS = 0.5
# How the reasons begin of deliveries that were parked because Kommo did not know the connection.
LOST = ("Kommo does not know it (404)", "not found (404)", "connecting again failed")


class Only(NamedTuple):
    """Which deliveries: as the parameters of `list_deliveries`."""

    reason: str | None = None
    channel: str | None = None
    account_id: str | None = None
    conversation: str | None = None
    since: str | None = None
    until: str | None = None


async def park_open(services: Services, scope: Scope, by: str) -> None:
    """Park what is not delivered yet over a connection that has ended, unless it is made again meanwhile."""
    deliveries = [one async for one in _of_scope(services, scope, "open", "deferred")]
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


async def resume(
    services: Services,
    states: Sequence[Stopped] = ("parked",),
    *,
    reason: str | None = None,
    channel: str | None = None,
    account_id: str | None = None,
    conversation: str | None = None,
    since: str | None = None,
    until: str | None = None,
) -> tuple[int, int]:
    """Resume every delivery that fits; returns how many, and the last position written.

    What waits for an account or a messenger that rests is tried at once too. Raises LedgerBusy, ViewsBehind.
    """
    await views_reach(services, await ledger_head(services.pool))
    count, last = 0, 0
    only = Only(reason, channel, account_id, conversation, since, until)
    some: list[Delivery] = []
    async for delivery in _pages(services, states, only):
        some.append(delivery)
        if len(some) == RESUMED_AT_ONCE:
            count, last = await _resume_some(services, some, count, last)
            some = []
    count, last = await _resume_some(services, some, count, last)
    await services.rests.nudge(channel, account_id)
    return count, last


async def resume_messages(
    services: Services, messages: Sequence[str], goes_on: Callable[[], bool] = lambda: False
) -> int:
    """Send those of some messages again that have failed; returns how many.

    While the ledger is busy, it waits as long as it `goes_on`. Raises LedgerBusy.
    """
    page = await list_deliveries(services.pool, states=["failed"], messages=messages, limit=len(messages))
    count, _ = await _resume_some(services, page.items, 0, 0, goes_on)
    return count


async def patiently(ask: Callable[[], Awaitable[Recorded]], goes_on: Callable[[], bool]) -> Recorded:
    """Ask until the ledger is not busy, as long as it `goes_on`. Raises LedgerBusy, and what `ask` raises."""
    while True:
        try:
            return await ask()
        except LedgerBusy:
            if not goes_on():
                raise
        await asyncio.sleep(BUSY_SECONDS)


async def _resume_some(
    services: Services,
    some: list[Delivery],
    count: int,
    last: int,
    goes_on: Callable[[], bool] = lambda: False,
) -> tuple[int, int]:
    """Resume some deliveries in their order; returns the sums."""
    channels = await services.channels.all()
    scopes = []
    for one in some:
        known = channels.get(one.channel)
        scopes.append(ids.scope_of(one.channel, known.channel_id if known else "", one.account_id or ""))
    pairs = zip(scopes, some, strict=True)
    asks = [partial(_resume, services, scope, one, OPERATOR) for scope, one in pairs]
    found = await asyncio.gather(*(patiently(ask, goes_on) for ask in asks))
    news = [one for one in found if not one.duplicate]
    return count + len(news), max([last, *(one.position or 0 for one in news)])


def _of_scope(services: Services, scope: Scope, *states: str) -> AsyncIterator[Delivery]:
    return _pages(services, states, Only(channel=scope.channel, account_id=scope.account))


async def _pages(services: Services, states: Sequence[str], only: Only) -> AsyncIterator[Delivery]:
    """Every delivery that fits, page after page."""
    cursor, filters = None, only._asdict()
    while True:
        page = await list_deliveries(services.pool, states=states, **filters, limit=PAGE, cursor=cursor)
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
