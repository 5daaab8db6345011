"""Hooks that were not taken: listed, and taken up after a fix."""

import base64
from typing import Annotated, Literal

from litestar import Response, get, post
from litestar.params import FromPath, FromQuery, QueryParameter
from msgspec import Struct

from app.http.api.parameters import Limit, next_link
from app.http.openapi.responses import answers
from app.http.request import Call, services_of
from app.kommo.refused import list_refused
from app.operations import hooks
from app.operations.hooks import ScopeNotConnected, TakenUp, UnknownHook


class Refused(Struct, frozen=True, kw_only=True):
    """A hook of Kommo's that was not taken; `body` is base64 of its exact bytes.

    `why` is `unreadable`, `v1`, `account` (of another one), `late` or `large`; `times` is how often it came.
    `scope_id` is `crm:` and the account for a webhook of the CRM.
    """

    id: str
    scope_id: str
    received_at: str
    first_received_at: str
    times: int
    why: str
    reason: str
    body: str


class RefusedPage(Struct, frozen=True):
    """A page of refused hooks, and the cursor of the next page."""

    items: list[Refused]
    next: str | None


@get("/refused", summary="Hooks that were not taken", tags=["operation"])
async def refused(
    request: Call,
    limit: Limit = 50,
    cursor: FromQuery[str | None] = None,
    order: Annotated[
        Literal["asc", "desc"], QueryParameter(description="asc: in the order in which they first came")
    ] = "desc",
) -> Response[RefusedPage]:
    """Hooks of Kommo's, kept whole, for Kommo does not send again; the latest first.

    Of each scope and `why` 1000 and 32 MB are kept, for 30 days.
    """
    page = await list_refused(services_of(request).pool, order=order, limit=limit, cursor=cursor)
    items = [
        Refused(
            id=hook.id,
            scope_id=hook.scope_id,
            received_at=hook.received_at,
            first_received_at=hook.first_received_at,
            times=hook.times,
            why=hook.why,
            reason=hook.reason,
            body=base64.b64encode(hook.body).decode(),
        )
        for hook in page.items
    ]
    return Response(RefusedPage(items, page.next), headers=next_link(request, "cursor", page.next))


@post(
    "/refused/{refused_id:str}/retry",
    status_code=200,
    summary="Take up a refused hook",
    tags=["operation"],
    responses=answers(
        503,
        said={
            404: UnknownHook.MESSAGE,
            409: ScopeNotConnected.MESSAGE,
            422: "message.message.id must be 1 to 255 characters",
        },
    ),
)
async def retry(request: Call, refused_id: FromPath[str]) -> Response[TakenUp]:
    """Read a hook again, record it and forget it; also one that is old. 422 if it still cannot be read."""
    done = await hooks.retry(services_of(request), refused_id)
    headers = {} if done.position is None else {"Ledger-Position": str(done.position)}
    return Response(done, headers=headers)


routes = [refused, retry]
