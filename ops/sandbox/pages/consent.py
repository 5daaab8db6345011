"""OAuth 2.0 as Kommo implements it: a consent page, then tokens for a code or for a refresh token."""

from typing import Annotated, Literal
from urllib.parse import urlencode, urlsplit

import msgspec
from litestar import Response, Router, get, post
from litestar.handlers import HTTPRouteHandler
from msgspec import Meta, Struct

from ops.sandbox.api.crm import PROBLEM_TITLES, faulty, problem
from ops.sandbox.config import CrmAccount, OAuthClient
from ops.sandbox.crm.consent import Denied, TokenOrder
from ops.sandbox.crm.profiles import elsewhere, profile_of
from ops.sandbox.errors import Impossible
from ops.sandbox.pages.forms import HEADERS, POLICY, TEMPLATES, form
from ops.sandbox.responses import Call, behave, same_origin, sandbox_of

DOCUMENT = "https://developers.kommo.com/v3/errors/OAuthProblemJson"
Short = Annotated[str, Meta(max_length=2000)]


class Decided(Struct):
    """The consent page's form."""

    client_id: Short
    account_id: Short
    decision: Literal["allow", "refuse"]
    state: Short = ""
    redirect_uri: Short = ""


@get("/oauth")
async def ask(request: Call) -> Response[str]:
    """The page on which an account's admin agrees that the integration uses the account."""
    sandbox, given = sandbox_of(request), request.query_params
    client = sandbox.consent.client(given.get("client_id", ""))
    where = redirect_of(client, given.get("redirect_uri", ""))
    accounts = sandbox.consent.accounts()
    if not accounts:
        raise Impossible(409, "no account: start the sandbox with --account or --crm-account")
    text = TEMPLATES.get_template("oauth.html").render(
        side="home", client=client, accounts=accounts, state=given.get("state", ""), redirect_uri=where
    )
    target = urlsplit(where)
    policy = POLICY.replace("form-action 'self'", f"form-action 'self' {target.scheme}://{target.netloc}")
    # The form must come with its origin, which a browser keeps to itself under `no-referrer`.
    headers = HEADERS | {"Content-Security-Policy": policy, "Referrer-Policy": "same-origin"}
    return Response(text, media_type="text/html", headers=headers)


@post("/oauth", status_code=302)
async def decide(request: Call) -> Response[None]:
    """Redirect to the integration with a code, or with error=access_denied."""
    sandbox, order = sandbox_of(request), await form(request, Decided)
    client = sandbox.consent.client(order.client_id)
    where = redirect_of(client, order.redirect_uri)
    if order.decision == "refuse":
        told = {"error": "access_denied", "state": order.state, "client_id": client.id}
    else:
        account = sandbox.consent.account(order.account_id)
        told = granted(request, client, account, where, order.state)
    return Response(None, status_code=302, headers={"Location": with_query(where, told)})


@post("/oauth2/access_token", status_code=200)
async def access_token(request: Call) -> Response[bytes]:
    """Tokens for a code or for a refresh token; JSON or a form."""
    sandbox, body = sandbox_of(request), await request.body()

    def work() -> Response[bytes]:
        try:
            order = _order(body, request.headers.get("content-type", ""), dict(fields))
            spent = sandbox.crm_state.tokens.get(order.code or order.refresh_token)
            if spent and (away := elsewhere(request, spent.account)):
                return away
            told = sandbox.consent.exchange(order)
        except Denied as denied:
            return _denied(denied)
        return Response(msgspec.json.encode(told), status_code=200, media_type="application/json")

    fields = await request.form() if "form" in request.headers.get("content-type", "") else {}
    fault = sandbox.faults.take("crm.token")
    return faulty(fault) or await behave(request, fault, work)


def granted(
    request: Call, client: OAuthClient, account: CrmAccount, redirect_uri: str, state: str
) -> dict[str, str]:
    """The parameters of the redirect after consent; `referer` is the account's address."""
    return {
        "code": sandbox_of(request).consent.code(client, account, redirect_uri),
        "state": state,
        "referer": profile_of(request, account.amojo_id).host or request.headers.get("host", ""),
        "client_id": client.id,
    }


def redirect_of(client: OAuthClient, told: str) -> str:
    """The redirect address; raises Impossible (400) if it is not the integration's."""
    where = client.redirect_uri or told
    if told and told != where:
        raise Impossible(400, "redirect_uri: is not the integration's")
    if not where.startswith(("http://", "https://")):
        raise Impossible(400, "redirect_uri: give it here, or to --oauth CLIENT_ID:SECRET:REDIRECT_URI")
    return where


def with_query(url: str, told: dict[str, str]) -> str:
    """The address with these parameters."""
    return url + ("&" if "?" in url else "?") + urlencode(told)


ROUTER = Router(path="/", route_handlers=[ask, decide], before_request=same_origin)
ROUTES: list[Router | HTTPRouteHandler] = [ROUTER, access_token]


def _order(body: bytes, content_type: str, fields: dict[str, object]) -> TokenOrder:
    try:
        if "form" in content_type:
            return msgspec.convert(fields, TokenOrder)
        return msgspec.json.decode(body, type=TokenOrder)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Denied(400, f"The body cannot be read: {error}") from error


def _denied(denied: Denied) -> Response[bytes]:
    return problem(
        denied.status,
        {
            "hint": denied.hint,
            "title": PROBLEM_TITLES[denied.status],
            "type": DOCUMENT,
            "status": denied.status,
            "detail": "A parameter is missing or does not fit"
            if denied.status == 400
            else "Client authentication failed",
        },
    )
