"""The pages of an installation: the button for an integrator's own site, and where Kommo leads back to.

A person who is no user of ours reads them, so they say what has been done and what is still open. The state
that the button carries is good in the browser that was given it only.
"""

import secrets
from typing import Annotated

from litestar import Response, get
from litestar.datastructures import Cookie
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromQuery, QueryParameter

from app.http.console.pages import page
from app.http.openapi.responses import answers
from app.http.request import Call, is_https, services_of
from app.kommo.crm.oauth import STATE_SECONDS
from app.operations import accounts, consent
from app.operations.consent import AGAIN, NoIntegration

COOKIE = "chatledger_install"
COOKIE_BYTES = 16
EXAMPLE = '<!doctype html><html lang="en"><title>Installed</title>…</html>'
STEPS = {"authorize": "Access to your account", "source": "Lead source", "webhooks": "News from your account"}


@get("/install", include_in_schema=False)
async def install(request: Call) -> Response[str]:
    """A page for an administrator of any account; its button leads to Kommo's page of consent."""
    browser = secrets.token_urlsafe(COOKIE_BYTES)
    url = consent.install_url(services_of(request), browser)
    setup = services_of(request).setup.install
    title = setup.title if setup else ""
    return page(request, "install.html", {"url": url, "title": title}, cookies=[_cookie(request, browser)])


@get(
    "/oauth/callback",
    summary="Where Kommo leads an administrator back to",
    tags=["accounts"],
    responses=answers(
        502,
        503,
        said={
            400: f"the state is not ours, was used, is another browser's or older than 20 minutes: {AGAIN}",
            403: f"the consent is for another account, or one that is not allowed, nothing is kept: {AGAIN}",
            409: NoIntegration.MESSAGE,
        },
        texts={200: {"text/html": EXAMPLE}},
    ),
)
async def callback(
    request: Call,
    code: FromQuery[str | None] = None,
    state_: Annotated[str | None, QueryParameter(name="state")] = None,
    referer: FromQuery[str | None] = None,
    client_id: FromQuery[str | None] = None,
    error: FromQuery[str | None] = None,
    from_widget: FromQuery[str | None] = None,
) -> Response[str]:
    """Exchange the code for tokens, make sure whose they are, and install what is configured.

    Kommo leads here with a `state` of ours, or from its marketplace with `from_widget`. The page says what is
    done; what is not is tried again in the background. The same address again changes nothing.
    """
    browser, services = request.cookies.get(COOKIE), services_of(request)
    answer = consent.Return(code, state_, referer, client_id, error, from_widget == "1", browser)
    account = await accounts.installed(services, await consent.complete(services, answer))
    steps = [(_words(step.step), step) for step in account.steps]
    return page(request, "installed.html", {"account": account, "steps": steps})


def _words(step: str) -> str:
    """A step for people."""
    kind, _, name = step.partition(" ")
    return STEPS.get(kind) or f"Channel {name}"


def _cookie(request: Call, browser: str) -> Cookie:
    """A cookie that comes along when Kommo leads back to us, from another site."""
    return Cookie(
        key=COOKIE,
        value=browser,
        max_age=STATE_SECONDS,
        path="/oauth/callback",
        httponly=True,
        samesite="lax",
        secure=is_https(request),
    )


routes: list[HTTPRouteHandler] = [install, callback]
