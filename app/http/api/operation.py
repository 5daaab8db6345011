"""DOC"""

from typing import Annotated, Literal

from litestar import Response, get, post
from litestar.params import FromQuery, QueryParameter
from msgspec import Struct

from app.http.api.parameters import AtLeast, Limit, next_link
from app.http.request import Call, services_of
from app.operations.deliveries import resume_parked
from app.operations.services import views_reach
from app.operations.status import Status, read_status
from app.views.deliveries import Deliveries, list_deliveries


class Resumed(Struct, frozen=True):
    """How many parked deliveries were taken up again."""

    resumed: int


@get("/status", summary="Where everything stands", tags=["operation"])
async def status(request: Call, at_least: AtLeast = None) -> Status:
    """The ledger's head, each view's position, lag and faults, the relay's position, and the deliveries."""
    services = services_of(request)
    await views_reach(services, at_least)
    return await read_status(services)


@get("/deliveries", summary="What is not delivered", tags=["operation"])
async def deliveries(
    request: Call,
    state_: Annotated[Literal["open", "deferred", "parked"] | None, QueryParameter(name="state")] = None,
    destination: FromQuery[Literal["kommo", "messenger"] | None] = None,
    channel: FromQuery[str | None] = None,
    account_id: FromQuery[str | None] = None,
    conversation: FromQuery[str | None] = None,
    limit: Limit = 50,
    cursor: FromQuery[str | None] = None,
    at_least: AtLeast = None,
) -> Response[Deliveries]:
    """The oldest first, with the reason; what is parked waits for `POST /v1/deliveries/resume`."""
    services = services_of(request)
    await views_reach(services, at_least, view="deliveries")
    page = await list_deliveries(
        services.pool,
        state=state_,
        destination=destination,
        channel=channel,
        account_id=account_id,
        conversation=conversation,
        limit=limit,
        cursor=cursor,
    )
    return Response(page, headers=next_link(request, "cursor", page.next))


@post("/deliveries/resume", status_code=200, summary="Take up parked deliveries", tags=["operation"])
async def resume(
    request: Call,
    channel: FromQuery[str | None] = None,
    account_id: FromQuery[str | None] = None,
    conversation: FromQuery[str | None] = None,
) -> Response[Resumed]:
    """Every parked delivery that fits is tried again, in its conversation's order."""
    count, last = await resume_parked(
        services_of(request), channel=channel, account_id=account_id, conversation=conversation
    )
    return Response(Resumed(count), headers={"Ledger-Position": str(last)})


routes = [status, deliveries, resume]
