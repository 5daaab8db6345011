"""Who may see the settings page: a session that began with Kommo's one-time token, for one account.

The session is a cookie that a framed page gets too (`SameSite=None; Secure; Partitioned`), or a bearer where
the browser refuses the cookie. Such a cookie comes along whoever asks, so a change needs the page's token
beside it. What a visitor may do and reach is checked by the guard of the API, and written down like there.
"""

from urllib.parse import urlsplit

from litestar import Response, route
from litestar.handlers import BaseRouteHandler, HTTPRouteHandler
from litestar.status_codes import HTTP_204_NO_CONTENT
from msgspec import Struct

from app import clock
from app.access.callers import Caller, Right
from app.access.one_time_tokens import origin_of
from app.access.settings_sessions import SECONDS, Visitor
from app.bad_requests import BAD_REQUESTS
from app.http.guard import ABOUT, CALLER, NEEDS, check_reach, check_right
from app.http.request import Call, Connection, address_of, services_of
from app.operations.services import Services
from app.operations.settings import visitors
from app.operations.settings.visitors import OriginRefused, TokenRefused
from app.problems import ProblemError

SESSION = "/settings/session"
VISITOR = "visitor"  # in a request's state
PREFLIGHT_SECONDS = 600  # Chosen: a browser asks again within the life of a token.
NOT_SIGNED_IN = "you are not signed in, or no longer: open the settings in Kommo again"
ELSEWHERE = "this form is too old, or came from elsewhere: reload the page and try again"
ADMINISTRATORS: frozenset[Right] = frozenset({"admin"})
OTHERS: frozenset[Right] = frozenset({"read"})


class Began(Struct, frozen=True):
    """A session. `csrf` goes with a change as X-CSRF-Token; `bearer` is where the cookie is refused."""

    account_id: str
    is_admin: bool
    csrf: str
    bearer: str
    bearer_expires_at: str


@route(SESSION, http_method=["POST", "OPTIONS"], status_code=200, include_in_schema=False)
async def begin(request: Call) -> Response[Began] | Response[None]:
    """Exchange Kommo's one-time token (X-Auth-Token) for a session of its account alone.

    Litestar answers OPTIONS by itself unless the same handler does.
    """
    if request.method == "OPTIONS":
        return await _preflight(request)
    services = services_of(request)
    origin = request.headers.get("origin")
    own = _own_origins(request)
    try:
        visitor, address = await visitors.sign_in(
            services, request.headers.get("x-auth-token", ""), origin, own
        )
    except (TokenRefused, OriginRefused) as error:
        raise await _refusal(request, error) from None
    request.state[CALLER], request.state[ABOUT] = caller_of(visitor), visitor.account_id
    return _begun(services, visitor, _shared(origin) if origin == address else {})


async def _preflight(request: Call) -> Response[None]:
    """A page at the address of an account that let us in may send its token; no other page may."""
    origin = request.headers.get("origin", "")
    if not await visitors.is_known_address(services_of(request), origin):
        raise ProblemError(403, OriginRefused.MESSAGE)
    headers = _shared(origin) | {
        "Access-Control-Allow-Methods": "POST",
        "Access-Control-Allow-Headers": "x-auth-token, content-type",
        "Access-Control-Max-Age": str(PREFLIGHT_SECONDS),
    }
    return Response(None, status_code=HTTP_204_NO_CONTENT, headers=headers)


async def guard(connection: Connection, handler: BaseRouteHandler) -> None:
    """Let a visitor pass who may do it, in his account. Raises ProblemError (401, 403, 404)."""
    services: Services = connection.app.state.services
    visitor, is_cookie = _visitor(services, connection)
    if visitor is None or not await visitors.is_open(services, visitor):
        raise ProblemError(401, NOT_SIGNED_IN)
    caller = caller_of(visitor)
    connection.state[CALLER], connection.state[VISITOR] = caller, visitor
    await check_reach(services, caller, connection, handler)
    check_right(caller, handler.opt.get(NEEDS, "admin"))
    if connection.scope.get("method") != "GET" and is_cookie:
        token = connection.headers.get("x-csrf-token", "")
        if not services.settings_sessions.is_form_token(token, visitor):
            raise ProblemError(403, ELSEWHERE)


def visitor_of(request: Call) -> Visitor:
    """Who asks; only for routes behind the guard."""
    visitor: Visitor = request.state[VISITOR]
    return visitor


async def only_visitor(request: Call) -> Visitor | None:
    """Who is signed in by a cookie, if the browser has that of one account only."""
    services = services_of(request)
    found = [one for one in _by_cookies(services, request) if await visitors.is_open(services, one)]
    return found[0] if len(found) == 1 else None


def caller_of(visitor: Visitor) -> Caller:
    """A visitor as a caller: an administrator may do all in his account, others may look."""
    rights = ADMINISTRATORS if visitor.is_admin else OTHERS
    name = f"Kommo user {visitor.user_id or '?'}"
    return Caller(None, name, rights, frozenset({visitor.account_id}))


def _visitor(services: Services, connection: Connection) -> tuple[Visitor | None, bool]:
    """Who asks, and whether a cookie says so: a bearer counts first, then the path's account's cookie."""
    kind, _, text = connection.headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer":
        return services.settings_sessions.read("bearer", text.strip()), False
    found = _by_cookies(services, connection)
    account = str(connection.path_params.get("account_id", "")).lower()
    return next((one for one in found if one.account_id == account), next(iter(found), None)), True


def _by_cookies(services: Services, connection: Connection) -> list[Visitor]:
    read = services.settings_sessions.read
    name = _cookie_prefix(services)
    texts = [value for key, value in connection.cookies.items() if key.startswith(name)]
    return [visitor for text in texts if (visitor := read("cookie", text))]


def _cookie_prefix(services: Services) -> str:
    """Cookies do not tell ports apart, and one browser may have the pages of several accounts open."""
    return f"chatledger_{services.ledger_id.replace('-', '')[:8]}_settings_"


def _begun(services: Services, visitor: Visitor, headers: dict[str, str]) -> Response[Began]:
    texts = services.settings_sessions.start(visitor)
    session = services.settings_sessions.read("cookie", texts["cookie"]) or visitor
    expires = clock.text(clock.now_ms() + SECONDS["bearer"] * 1000)
    csrf = services.settings_sessions.form_token(session)
    began = Began(visitor.account_id, visitor.is_admin, csrf, texts["bearer"], expires)
    cookie = (
        f"{_cookie_prefix(services)}{visitor.account_id}={texts['cookie']}; Path=/settings; "
        f"Max-Age={SECONDS['cookie']}; HttpOnly; Secure; SameSite=None; Partitioned"
    )
    return Response(began, headers=headers | {"Set-Cookie": cookie, "Cache-Control": "no-store"})


def _shared(origin: str) -> dict[str, str]:
    return {"Access-Control-Allow-Origin": origin, "Vary": "Origin"}


def _own_origins(request: Call) -> set[str]:
    """Where browsers reach us: the public URL, and the host of this request, which they cannot forge."""
    public = services_of(request).settings.public_url
    host = request.headers.get("host", "")
    own = {origin_of(public)} if public else set()
    origin = request.headers.get("origin", "")
    return own | ({origin} if host and urlsplit(origin).netloc == host else set())


async def _refusal(request: Call, error: TokenRefused | OriginRefused) -> ProblemError:
    """A refused token is counted, and many of one source are slowed down, like wrong keys."""
    address = address_of(request)
    BAD_REQUESTS.count("wrong_key", address, "its one-time token is refused")
    if seconds := await services_of(request).tries.slow_down("key", address):
        detail = f"{error}; there were too many from your address: wait {seconds} seconds"
        return ProblemError(429, detail, retry_after=seconds)
    return ProblemError(401 if isinstance(error, TokenRefused) else 403, str(error))


routes: list[HTTPRouteHandler] = [begin]
