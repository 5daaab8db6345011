"""Only a browser that gave the admin key, or opened a one-time link, sees the console."""

import asyncio
import re
import secrets
from urllib.parse import quote

from litestar import Response, get, post
from litestar.params import FromQuery
from litestar.response import Redirect

from app.access import ended_sessions
from app.access.callers import ADMIN, Caller
from app.access.tries import TRIES_SECONDS
from app.bad_requests import BAD_REQUESTS
from app.http.console.pages import cookie, cookie_name, is_page, live_session, page, session_of
from app.http.guard import CALLER, NEEDS, REACHED, READ, caller_of, caller_with, check_reach, check_right
from app.http.request import Call, address_of, services_of
from app.http.security import HEADERS
from app.problems import ProblemError

WRONG_KEY_SECONDS = 0.5  # Chosen: a person does not notice, a guessing program does.
VISIT_SECONDS = 3600  # Chosen: a login form may lie open for an hour.
NEXT_CHARACTERS_MAX = 2000  # Chosen: every browser takes addresses of this length.
LOCAL = re.compile(r"/(?![/\\])[!-\[\]-~]*")
STALE = "This form is too old, or came from elsewhere. Please try again."
USED = "This link has already been used or is older than ten minutes. Sign in with the key instead."
WRONG = "This key is wrong, or not good any more."


def local(address: str | None) -> str:
    """The address if it is a path of ours, else the first page: a login never leads to another site."""
    fits = address and len(address) <= NEXT_CHARACTERS_MAX and LOCAL.fullmatch(address)
    return address if address and fits else "/"


async def signed_in(request: Call) -> Response[str] | Response[None] | None:
    """Let a signed-in browser pass whose key may do it, lead others to the login; raises ProblemError."""
    if await live_session(request):
        caller, handler = caller_of(request), request.scope["route_handler"]
        check_right(caller, handler.opt.get(NEEDS, "admin"))
        if caller.accounts is not None:
            await check_reach(services_of(request), caller, request, handler)
        return None
    if request.method != "GET" or not is_page(request):
        raise ProblemError(401, "you are not signed in, or no longer: sign in at /login")
    address = local(request.url.path + (f"?{request.url.query}" if request.url.query else ""))
    if request.headers.get("sec-fetch-site") == "cross-site":
        # A link on another site led here, so the browser withheld the strict cookie: come from our own page.
        return page(request, "hop.html", {"to": address})
    return Redirect(f"/login?next={quote(address, safe='')}", status_code=303)


async def checked_form(request: Call) -> dict[str, str]:
    """The fields of a form of this session; raises ProblemError (403) for one from elsewhere."""
    session = session_of(request)
    fields = await _fields(request)
    if session is None or not services_of(request).sessions.is_form_token(fields.get("csrf", ""), session.id):
        raise ProblemError(
            403, "this form is too old, or came from elsewhere: go back, reload the page, try again"
        )
    return fields


async def _fields(request: Call) -> dict[str, str]:
    form = await request.form()
    return {name: value for name, value in form.items() if isinstance(value, str)}


@get("/login", include_in_schema=False)
async def login(request: Call, token: FromQuery[str | None] = None) -> Response[str] | Redirect:
    """The login form; the token of a one-time link signs in at once."""
    services = services_of(request)
    to = local(request.query_params.get("next"))
    if token is not None:
        if services.login_links.use(token):
            return _welcome(request, "/", ADMIN)
        return _form(request, "/", problem=USED, status=403)
    if await live_session(request):
        return Redirect(to, status_code=303)
    return _form(request, to)


@post("/login", include_in_schema=False)
async def enter(request: Call) -> Response[str]:
    """Check the key; a wrong one is answered slowly, and ten a minute lock the address out."""
    services = services_of(request)
    fields = await _fields(request)
    to = local(fields.get("next"))
    visit = request.cookies.get(_visit_name(request), "").encode()
    if not visit or not services.sessions.is_form_token(fields.get("csrf", ""), visit):
        return _form(request, to, problem=STALE, status=403)
    address = address_of(request)
    if seconds := services.tries.wait_seconds("login", address):
        problem = f"Too many wrong keys. Wait {seconds} seconds and try again."
        return _form(request, to, problem=problem, status=429, retry_after=seconds)
    if not (caller := await caller_with(services, fields.get("key", "").strip())):
        BAD_REQUESTS.count("wrong_key", address, "its key is wrong")
        services.tries.failed("login", address)
        await asyncio.sleep(WRONG_KEY_SECONDS)
        return _form(request, to, problem=WRONG, status=401)
    return _welcome(request, to, caller)


@post("/logout", include_in_schema=False, before_request=signed_in, opt=READ | REACHED)
async def logout(request: Call) -> Redirect:
    """End the session on every process, and delete this browser's cookie."""
    await checked_form(request)
    if session := session_of(request):
        await ended_sessions.end(services_of(request).pool, session)
    gone = cookie(request, cookie_name(request), "", 0)
    return Redirect("/login", status_code=303, cookies=[gone], headers=HEADERS)


def _visit_name(request: Call) -> str:
    return f"{cookie_name(request)}_visit"


def _form(
    request: Call, to: str, *, problem: str = "", status: int = 200, retry_after: int | None = None
) -> Response[str]:
    """The login form, bound to this visit by a cookie of its own."""
    services = services_of(request)
    visit = request.cookies.get(_visit_name(request), "") or secrets.token_urlsafe(16)
    return page(
        request,
        "login.html",
        {
            "to": to,
            "problem": problem,
            "visit_token": services.sessions.form_token(visit.encode()),
        },
        status=status,
        headers={} if retry_after is None else {"Retry-After": str(min(retry_after, int(TRIES_SECONDS)))},
        cookies=[cookie(request, _visit_name(request), visit, VISIT_SECONDS)],
    )


def _welcome(request: Call, to: str, caller: Caller) -> Response[str]:
    """Signed in; a page leads on, because after a redirect from another site browsers withhold the cookie."""
    request.state[CALLER] = caller
    session = cookie(request, cookie_name(request), services_of(request).sessions.start(caller.id))
    return page(request, "hop.html", {"to": to}, cookies=[session])


routes = [login, enter, logout]
