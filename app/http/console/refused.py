"""The console's page of refused hooks, each with a button that has it taken up."""

from litestar import Response, get, post
from litestar.params import FromPath, FromQuery
from litestar.response import Redirect

from app.http.console.login import checked_form
from app.http.console.pages import page
from app.http.request import Call, services_of
from app.kommo.refused import count_refused, list_refused
from app.operations import hooks
from app.operations.errors import OperationError

ROWS = 50  # Chosen: a page or two.


@get("/refused")
async def refused(request: Call, cursor: FromQuery[str | None] = None) -> Response[str]:
    """Hooks that were not taken, the latest first."""
    pool = services_of(request).pool
    listed = await list_refused(pool, limit=ROWS, cursor=cursor or None)
    count = await count_refused(pool)
    values = {"here": "deliveries", "listed": listed, "count": count, "problem": ""}
    return page(request, "refused.html", values)


@post("/refused/{refused_id:str}/retry")
async def retry(request: Call, refused_id: FromPath[str]) -> Response[str] | Redirect:
    """Take up a hook; the reason is shown if it is still not taken."""
    await checked_form(request)
    services = services_of(request)
    try:
        await hooks.retry(services, refused_id)
    except OperationError as error:
        listed = await list_refused(services.pool, limit=ROWS)
        count = await count_refused(services.pool)
        values = {"here": "deliveries", "listed": listed, "count": count, "problem": str(error)}
        return page(request, "refused.html", values, status=409)
    return Redirect("/refused", status_code=303)


routes = [refused, retry]
