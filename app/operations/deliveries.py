"""DOC"""

from app import clock
from app.delivery.job import DISCONNECTED
from app.ledger.writer import Recorded
from app.operations.services import Services, record
from app.views import deliveries
from app.views.deliveries import list_deliveries
from domain import commands as c
from domain import ids
from domain.ids import OPERATOR, Scope

DELIVERIES_PAGE = 1000
PARKED_AT_ONCE = 100
# Why a delivery is parked that a new connection can help, as the reasons begin.
LOST = ("Kommo does not know it (404)", "not found (404)", "connecting again failed")


async def resume_one(
    services: Services, scope: Scope, delivery: deliveries.Delivery, *, by: str = OPERATOR
) -> Recorded:
    """Take up a parked delivery again."""
    given = _stamp(scope, delivery, by)
    stream = delivery.message or delivery.id
    return await record(services, c.Resume(**given, stream=stream, cause=delivery.id))


async def _open(services: Services, scope: Scope, states: tuple[str, ...]) -> list[deliveries.Delivery]:
    found: list[deliveries.Delivery] = []
    for state in states:
        cursor = None
        while True:
            page = await list_deliveries(
                services.pool,
                state=state,
                channel=scope.channel,
                account_id=scope.account,
                limit=DELIVERIES_PAGE,
                cursor=cursor,
            )
            found += page.items
            if (cursor := page.next) is None:
                break
    return found


async def _park(services: Services, scope: Scope, by: str) -> None:
    for number, delivery in enumerate(await _open(services, scope, ("open", "deferred"))):
        if number % PARKED_AT_ONCE == 0 and await services.channels.scope(scope.scope_id):
            return  # Connected again meanwhile.
        given = _stamp(scope, delivery, by)
        stream = delivery.message or delivery.id
        await record(services, c.Park(**given, stream=stream, cause=delivery.id, reason=DISCONNECTED))


async def _resume(services: Services, scope: Scope, reasons: tuple[str, ...], by: str) -> None:
    for delivery in await _open(services, scope, ("parked",)):
        if (delivery.reason or "").startswith(reasons):
            await resume_one(services, scope, delivery, by=by)


def _stamp(scope: Scope, delivery: deliveries.Delivery, by: str) -> c.Stamp:
    lane = delivery.conversation or delivery.id
    return clock.stamp(scope, lane, by, now=clock.now_ms())


async def resume_parked(
    services: Services,
    *,
    channel: str | None = None,
    account_id: str | None = None,
    conversation: str | None = None,
) -> tuple[int, int]:
    """Take up what is parked; returns how many, and the last position."""
    count, last, cursor = 0, 0, None
    while True:
        page = await list_deliveries(
            services.pool,
            state="parked",
            channel=channel,
            account_id=account_id,
            conversation=conversation,
            limit=1000,
            cursor=cursor,
        )
        for delivery in page.items:
            known = await services.channels.channel(delivery.channel)
            where = ids.scope_of(
                delivery.channel, known.channel_id if known else "", delivery.account_id or ""
            )
            recorded = await resume_one(services, where, delivery)
            count, last = count + 1, max(last, recorded.position or 0)
        if (cursor := page.next) is None:
            return count, last
