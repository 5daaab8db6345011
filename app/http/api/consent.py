"""An administrator's way to Kommo's consent and back, and Kommo's call that ends it."""

from html import escape
from typing import Annotated

from litestar import Response, get, post
from litestar.params import FromPath, FromQuery, QueryParameter
from msgspec import Struct

from app.http.api.parameters import NOT_TO_LEDGER
from app.http.openapi.responses import answers
from app.http.request import Call, services_of
from app.http.security import HEADERS
from app.operations import consent
from app.operations.consent import AGAIN, NeverConsented, NoIntegration, SignatureMissing, StillAuthorized

PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>chatledger</title>
<h1>Connected</h1><p>chatledger may use the account {account}. You can close this window.</p></html>
"""


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
    "/oauth/callback",
    summary="Where Kommo leads an administrator back to",
    tags=["accounts"],
    responses=answers(
        502,
        503,
        said={
            400: f"the state is not ours, was used, or is older than 20 minutes: {AGAIN}",
            403: f"the consent is for another account, nothing is kept: {AGAIN}",
            409: NoIntegration.MESSAGE,
        },
        texts={200: {"text/html": PAGE.format(account="52e591f7-c98f-4255-8495-827210138c81")}},
    ),
)
async def callback(
    request: Call,
    code: FromQuery[str | None] = None,
    state_: Annotated[str | None, QueryParameter(name="state")] = None,
    referer: FromQuery[str | None] = None,
    client_id: FromQuery[str | None] = None,
    error: FromQuery[str | None] = None,
) -> Response[str]:
    """Exchange the code for tokens, make sure whose they are, and keep them; a page for people."""
    answer = consent.Return(code, state_, referer, client_id, error)
    account = await consent.complete(services_of(request), answer)
    return Response(PAGE.format(account=escape(account)), media_type="text/html", headers=HEADERS)


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
open_routes = [callback, disabled]
