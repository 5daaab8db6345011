"""The way to an account's consent, and the call that ends it; `console/install` is the way back from it."""

from litestar import Response, get, post
from litestar.params import FromPath, FromQuery
from msgspec import Struct

from app.http.api.parameters import NOT_TO_LEDGER
from app.http.openapi.responses import answers
from app.http.request import Call, services_of
from app.operations import consent
from app.operations.consent import NeverConsented, NoIntegration, SignatureMissing, StillAuthorized


class Authorize(Struct, frozen=True):
    """Where an administrator of the account consents, once, until `expires_at`."""

    url: str
    expires_at: str


@post(
    "/accounts/{account_id:str}/authorize",
    status_code=200,
    summary="Ask for an account's consent",
    tags=["accounts"],
    opt=NOT_TO_LEDGER,
    responses=answers(
        said={400: "account_id: give the account's amojo id, a UUID", 409: NoIntegration.MESSAGE}
    ),
)
async def authorize(request: Call, account_id: FromPath[str]) -> Authorize:
    """An address to be opened by an administrator of the account; it leads back to `/oauth/callback`."""
    return Authorize(*consent.authorize_url(services_of(request), account_id))


@get(
    "/oauth/disabled",
    summary="Kommo tells that the integration was disabled",
    tags=["accounts"],
    responses=answers(
        502,
        503,
        said={403: SignatureMissing.MESSAGE, 404: NeverConsented.MESSAGE, 409: StillAuthorized.MESSAGE},
    ),
)
async def disabled(
    request: Call,
    account_id: FromQuery[str] = "",
    client_uuid: FromQuery[str] = "",
    signature: FromQuery[str] = "",
) -> Response[None]:
    """All connections of the account end and its tokens are withdrawn; 200 also for a repeat.

    Kommo is asked before: nothing is ended while it takes our token for the account (409).
    """
    await consent.end(services_of(request), account_id, client_uuid, signature)
    return Response(None)


routes = [authorize]
open_routes = [disabled]
