"""Orders to the CRM side: consent without a browser, and everything that its people would do there.

`account_id` is an account's amojo id or its CRM id, `client_id` an integration; either may be left out where
there is only one.
"""

import hmac
from typing import TypeVar

import aiohttp
import msgspec
from litestar import Response, Router, get, post
from msgspec import Struct

from ops.sandbox.config import CrmAccount, OAuthClient
from ops.sandbox.consent import Consent
from ops.sandbox.desk import Impossible
from ops.sandbox.oauth import granted, redirect_of, with_query
from ops.sandbox.web import Call, json, same_origin, sandbox_of

CALL_SECONDS = 10.0
T = TypeVar("T")


class ConsentOrder(Struct, forbid_unknown_fields=True, kw_only=True):
    """Whose consent; `deliver` leads to the redirect_uri as a browser would, `url` is told of a disabling."""

    account_id: str | int = ""
    client_id: str = ""
    redirect_uri: str = ""
    state: str = ""
    deliver: bool = False
    url: str = ""


@post("/control/crm/authorize", status_code=201)
async def authorize(request: Call) -> Response[bytes]:
    """The admin agrees: a code, and where a browser would go; `deliver` or `?wait=1` goes there."""
    order = await ordered(request, ConsentOrder)
    _, account, client = whose(request, order)
    where = redirect_of(client, order.redirect_uri)
    given = granted(request, client, account, where, order.state)
    url = with_query(where, given)
    told: dict[str, object] = {**given, "redirect_uri": where, "url": url, "account_id": account.amojo_id}
    if order.deliver or request.query_params.get("wait", "0") not in ("", "0"):
        told |= await _visit(request, url)
    return json(201, told)


@post("/control/crm/expire", status_code=200)
async def expire(request: Call) -> Response[bytes]:
    """The access tokens expire now; refresh tokens still work."""
    consent, account, client = whose(request, await ordered(request, ConsentOrder))
    return json(200, {"expired": consent.expire(account, client)})


@post("/control/crm/revoke", status_code=200)
async def revoke(request: Call) -> Response[bytes]:
    """The consent is withdrawn: nothing works until somebody agrees again."""
    consent, account, client = whose(request, await ordered(request, ConsentOrder))
    return json(200, {"revoked": consent.revoke(account, client)})


@post("/control/crm/disable", status_code=200)
async def disable(request: Call) -> Response[bytes]:
    """The integration is switched off in the account: its channels disconnect, its address is told."""
    order = await ordered(request, ConsentOrder)
    sandbox = sandbox_of(request)
    consent, account, client = whose(request, order)
    consent.disable(account, client)
    channels = {one.id for one in sandbox.config.channels if one.client in ("", client.id)}
    stopped = sandbox.kommo.switch_off(account.amojo_id, channels)
    told: dict[str, object] = {"disconnected": stopped}
    if where := order.url or sandbox.config.disabled_url:
        text = f"{client.id}|{account.id}"
        signature = hmac.digest(client.secret.encode(), text.encode(), "sha256").hex()
        given = {"account_id": str(account.id), "client_uuid": client.id, "signature": signature}
        url = with_query(where, given)
        told |= {"url": url} | await _visit(request, url)
    return json(200, told)


@get("/control/crm")
async def read_crm(request: Call) -> Response[bytes]:
    """What the CRM has, of all accounts; tokens are named by their last characters only."""
    sandbox = sandbox_of(request)
    books = sandbox.books
    tokens = [
        {"kind": one.kind, "account": one.account, "client": one.client, "expires": one.expires}
        for one in books.tokens
    ]
    return json(
        200,
        {
            "accounts": [
                msgspec.to_builtins(one) | {"rate": sandbox.crm_rate.state(one.amojo_id)}
                for one in sandbox.consent.accounts()
            ],
            "tokens": tokens,
            "disabled": [one.id for one in books.disabled],
            "contacts": list(books.contacts),
            "links": list(books.links),
            "sources": list(books.sources),
            "templates": list(books.templates),
            "talks": list(books.talks),
            "incoming": list(books.incoming),
            "leads": list(books.leads),
            "subscriptions": list(books.subscriptions),
        },
    )


ROUTER = Router(
    path="/",
    before_request=same_origin,
    route_handlers=[authorize, expire, revoke, disable, read_crm],
)


async def ordered(request: Call, shape: type[T]) -> T:
    """The order in its shape; an empty body orders nothing in particular. Impossible 400 otherwise."""
    try:
        return msgspec.json.decode(await request.body() or b"{}", type=shape)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Impossible(400, str(error)) from error


def whose(request: Call, order: ConsentOrder) -> tuple[Consent, CrmAccount, OAuthClient]:
    """The account and the integration that are meant."""
    consent = sandbox_of(request).consent
    return consent, consent.account(str(order.account_id)), consent.client(order.client_id)


async def _visit(request: Call, url: str) -> dict[str, object]:
    """What the integration's address answered: `status`, or `error`."""
    timeout = aiohttp.ClientTimeout(total=CALL_SECONDS)
    session = sandbox_of(request).session
    try:
        async with session.get(url, timeout=timeout, allow_redirects=False) as answered:
            await answered.read()
            return {"status": answered.status}
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        return {"status": None, "error": type(error).__name__}
