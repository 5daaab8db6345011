"""Whom an account's administrator lets in: the way to Kommo's consent and back, and the call that ends it.

The two open routes trust nothing but a signature: ours on the state, Kommo's on the call that ends it.
"""

import hmac
from html import escape
from typing import Annotated

from litestar import Response, get, post
from litestar.params import FromPath, FromQuery, QueryParameter
from msgspec import Struct

from app import clock
from app.http.api.kommo_answers import known_account
from app.http.openapi.responses import answers
from app.http.security import HEADERS
from app.http_client import Unreached
from app.kommo.crm.oauth import (
    STATE_SECONDS,
    BadState,
    OAuth,
    Pair,
    State,
    TokenRefused,
    WrongApp,
    crm_url_of,
    disabled_signature,
)
from app.ledger.writer import LedgerFull, LedgerUnavailable
from app.operations import channels, startup
from app.operations.services import Call, Services, services_of
from app.problems import ProblemError
from domain.ids import KOMMO

NO_APP = "the configuration has no table [oauth]: give client_id, client_secret and redirect_url there"
AGAIN = "begin again with POST /v1/accounts/{account_id}/authorize"
CORRECT = "correct the table [oauth] of the configuration"
DISABLED = "the integration was disabled in Kommo"
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>chatledger</title>
<h1>Connected</h1><p>chatledger may use the account {account}. You can close this window.</p></html>
"""
BAD_SIGNATURE = "the signature is missing or wrong: it is HMAC-SHA256 of client_uuid|account_id, in hex"


class Authorize(Struct, frozen=True):
    """Where an administrator of the account consents, once, until `expires_at`."""

    url: str
    expires_at: str


@post(
    "/accounts/{account_id:str}/authorize",
    status_code=200,
    summary="Ask for an account's consent",
    tags=["accounts"],
    opt={"writes": False},
    responses=answers(said={400: "account_id: give the account's amojo id, a UUID", 409: NO_APP}),
)
async def authorize(request: Call, account_id: FromPath[str]) -> Authorize:
    """An address to be opened by an administrator of the account; it leads back to `/oauth/callback`."""
    services, now = services_of(request), clock.now_ms()
    state = services.states.make(known_account(account_id), now / 1000)
    return Authorize(_app(services).authorize_url(state), clock.text(now + STATE_SECONDS * 1000))


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
            409: NO_APP,
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
    services = services_of(request)
    app = _app(services)
    if error:
        raise ProblemError(403, f"Kommo says that consent was refused; {AGAIN}")
    if not code or not state_:
        raise ProblemError(400, f"code and state are missing: {AGAIN}")
    if client_id and client_id.lower() != app.app.client_id.lower():
        raise ProblemError(400, f"client_id is not our integration's: {CORRECT}")
    asked = _state(services, state_)
    crm_url = crm_url_of(referer, _configured(services, asked.account))
    if crm_url is None:
        raise ProblemError(400, "referer is not the account's address: give its crm_url in the configuration")
    if not await services.tokens.use(asked):
        raise ProblemError(400, f"the state was used already: {AGAIN}")
    crm_id, pair = await _exchanged(app, crm_url, code, asked.account)
    try:
        await services.tokens.keep(asked.account, crm_id, crm_url, pair)
    except (LedgerFull, LedgerUnavailable):
        raise ProblemError(503, f"the ledger cannot take it now: {AGAIN}", retry_after=1) from None
    await startup.bring_back(services, asked.account)
    page = PAGE.format(account=escape(asked.account))
    return Response(page, media_type="text/html", headers=HEADERS)


@get(
    "/oauth/disabled",
    summary="Kommo tells that the integration was disabled",
    tags=["accounts"],
    responses=answers(
        503,
        said={403: BAD_SIGNATURE, 404: "no account with this number ever consented", 409: NO_APP},
    ),
)
async def disabled(
    request: Call,
    account_id: FromQuery[str] = "",
    client_uuid: FromQuery[str] = "",
    signature: FromQuery[str] = "",
) -> Response[None]:
    """All connections of the account end and its tokens are withdrawn; 200 also for a repeat."""
    services = services_of(request)
    app = _app(services).app
    right = disabled_signature(app.client_secret, client_uuid, account_id)
    signed = hmac.compare_digest(right.encode(), signature.lower().encode())
    if not signed or client_uuid.lower() != app.client_id.lower():
        raise ProblemError(403, BAD_SIGNATURE)
    number = account_id.isascii() and account_id.isdigit() and len(account_id) < 19
    account = await services.tokens.account_of(int(account_id)) if number else None
    if account is None:
        raise ProblemError(404, "no account with this number ever consented")
    for channel in list((await services.channels.all()).values()):
        connection = channel.connections.get(account)
        if connection and connection.connected:
            try:
                await channels.dropped(services, connection, by=KOMMO)
            except ProblemError as wrong:
                if wrong.status != 404:  # Somebody else was first.
                    raise
    try:
        await services.tokens.withdraw(account, DISABLED)
    except (LedgerFull, LedgerUnavailable):
        raise ProblemError(503, "the ledger cannot take it now: call again", retry_after=1) from None
    return Response(None)


def _app(services: Services) -> OAuth:
    if services.oauth is None:
        raise ProblemError(409, NO_APP)
    return services.oauth


def _state(services: Services, text: str) -> State:
    try:
        return services.states.read(text, clock.now_ms() / 1000)
    except BadState:
        raise ProblemError(400, f"the state is not ours, or is older than 20 minutes: {AGAIN}") from None


def _configured(services: Services, account: str) -> str | None:
    accounts = services.setup.accounts
    return next((each.crm_url for each in accounts if each.account_id.lower() == account), None)


async def _exchanged(app: OAuth, crm_url: str, code: str, account: str) -> tuple[int, Pair]:
    """The account's number in the CRM, and its tokens."""
    try:
        pair = await app.exchange(crm_url, code)
        who = await app.who_am_i(crm_url, pair)
    except TokenRefused as error:
        raise ProblemError(400, f"Kommo does not take the code ({error.reason}): {AGAIN}") from None
    except WrongApp as error:
        raise ProblemError(502, f"Kommo does not know our integration ({error.reason}): {CORRECT}") from None
    except Unreached as error:
        raise ProblemError(
            502, f"Kommo could not be reached ({error.reason}), nothing is kept: {AGAIN}"
        ) from None
    if who.amojo_id.lower() != account:
        raise ProblemError(
            403, f"the consent is for account {who.amojo_id}, not for {account}; nothing is kept: {AGAIN}"
        )
    return who.id, pair


routes = [authorize]
open_routes = [callback, disabled]
