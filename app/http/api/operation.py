"""Routes of an operator: where everything stands, what is not delivered or waits, and taking it up again."""

from typing import Annotated, Literal

from litestar import Response, get, post
from litestar.params import FromQuery, JSONBody, QueryParameter
from msgspec import Meta, Struct

from app.http.access import UNLOGGED
from app.http.api.parameters import AtLeast, Limit, Moment, MomentText, moment_text, next_link, read_moment
from app.http.guard import REACHED, READ, caller_of, check_account
from app.http.request import Call, services_of
from app.operations.deliveries import Stopped
from app.operations.deliveries import resume as take_up
from app.operations.services import views_reach
from app.operations.status import Status, read_status
from app.views.deliveries import Deliveries, Filter, list_deliveries
from app.views.waiting import Waiting, list_waiting


class Resumed(Struct, frozen=True):
    """How many deliveries were taken up again."""

    resumed: int


class ResumeOrder(Struct, frozen=True):
    """Which deliveries to take up: all of these states that fit. `reason` is how their reason begins.

    `since` and `until` are when the event was recorded that is to be delivered.
    """

    states: Annotated[tuple[Stopped, ...], Meta(min_length=1)] = ("parked",)
    reason: str | None = None
    channel: str | None = None
    account_id: str | None = None
    conversation: str | None = None
    since: MomentText | None = None
    until: MomentText | None = None


@get("/status", summary="Where everything stands", tags=["operation"], opt=READ | UNLOGGED)
async def status(request: Call, at_least: AtLeast = None) -> Status:
    """The ledger's head, each view's position, lag and faults, the relay's position, and the deliveries."""
    services = services_of(request)
    await views_reach(services, at_least)
    return await read_status(services)


@get("/deliveries", summary="What is not delivered", tags=["operation"], opt=READ | REACHED)
async def deliveries(
    request: Call,
    state_: Annotated[Filter | None, QueryParameter(name="state")] = None,
    reason: FromQuery[str | None] = None,
    destination: FromQuery[Literal["kommo", "messenger"] | None] = None,
    channel: FromQuery[str | None] = None,
    account_id: FromQuery[str | None] = None,
    conversation: FromQuery[str | None] = None,
    since: FromQuery[Moment | None] = None,
    until: FromQuery[Moment | None] = None,
    limit: Limit = 50,
    cursor: FromQuery[str | None] = None,
    at_least: AtLeast = None,
) -> Response[Deliveries]:
    """The oldest first; what is parked or has failed waits for `POST /v1/deliveries/resume`.

    `pending` is under way or waits for its turn, `deferred` is tried again at `next_try_at`. `attempts`
    counts the calls that failed, and `answer` is the other side's text. `reason` filters by how it begins,
    `since` and `until` by when the event was recorded.
    """
    services = services_of(request)
    await views_reach(services, at_least, view="deliveries")
    page = await list_deliveries(
        services.pool,
        states=[state_] if state_ else [],
        reason=reason,
        destination=destination,
        channel=channel,
        account_id=account_id,
        accounts=caller_of(request).limited_to,
        conversation=conversation,
        since=moment_text(since),
        until=moment_text(until),
        limit=limit,
        cursor=cursor,
    )
    return Response(page, headers=next_link(request, "cursor", page.next))


@post("/deliveries/resume", status_code=200, summary="Take up what stopped", tags=["operation"], opt=REACHED)
async def resume(
    request: Call,
    data: JSONBody[ResumeOrder | None] = None,
    channel: FromQuery[str | None] = None,
    account_id: FromQuery[str | None] = None,
    conversation: FromQuery[str | None] = None,
) -> Response[Resumed]:
    """Every delivery that fits is tried again, in its conversation's order; without a body the parked ones.

    A message that had failed is sent again. What waits for an account or a messenger that rests is tried at
    once.
    """
    order = data or ResumeOrder()
    check_account(request, order.account_id or account_id)
    count, last = await take_up(
        services_of(request),
        order.states,
        reason=order.reason,
        channel=order.channel or channel,
        account_id=order.account_id or account_id,
        conversation=order.conversation or conversation,
        since=moment_text(read_moment(order.since)),
        until=moment_text(read_moment(order.until)),
    )
    return Response(Resumed(count), headers={"Ledger-Position": str(last)})


@get("/waiting", summary="Facts about unknown names", tags=["operation"], opt=READ | REACHED)
async def waiting(
    request: Call,
    channel: FromQuery[str | None] = None,
    account_id: FromQuery[str | None] = None,
    message: FromQuery[str | None] = None,
    limit: Limit = 50,
    cursor: FromQuery[str | None] = None,
    at_least: AtLeast = None,
) -> Response[Waiting]:
    """Edits, deletions, reactions and statuses whose message is not known, the oldest first.

    Each is applied when its message comes. At most 100 wait for one name; what is more is answered 429.
    """
    services = services_of(request)
    await views_reach(services, at_least, view="waiting")
    page = await list_waiting(
        services.pool,
        channel=channel,
        account_id=account_id,
        accounts=caller_of(request).limited_to,
        message=message,
        limit=limit,
        cursor=cursor,
    )
    return Response(page, headers=next_link(request, "cursor", page.next))


routes = [status, deliveries, resume, waiting]
