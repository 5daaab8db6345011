"""Facts about messages that are not known yet."""

from litestar import Response, get
from litestar.params import FromQuery

from app.http.api.parameters import AtLeast, Limit, next_link
from app.http.request import Call, services_of
from app.operations.services import views_reach
from app.views.waiting import Waiting, list_waiting


@get("/waiting", summary="Facts about unknown names", tags=["operation"])
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
        services.pool, channel=channel, account_id=account_id, message=message, limit=limit, cursor=cursor
    )
    return Response(page, headers=next_link(request, "cursor", page.next))


routes = [waiting]
