"""Pages from templates: escaped, under the strict policy, and an error is a page where a browser asks."""

from collections.abc import Mapping
from functools import cache
from hashlib import sha256
from importlib.resources import files
from importlib.resources.abc import Traversable

from jinja2 import Environment, PackageLoader, StrictUndefined
from litestar import Response
from litestar.datastructures import Cookie

from app.access import ended_sessions
from app.access.api_keys import RIGHTS
from app.access.callers import Caller
from app.access.sessions import SESSION_SECONDS, Session
from app.http.console import formatting
from app.http.guard import CALLER, caller_of_key
from app.http.request import Call, is_https, services_of
from app.http.security import HEADERS
from app.operations.services import Services
from app.problems import ProblemError

ASSETS: dict[str, tuple[str, Traversable]] = {
    "console.css": ("text/css", files("app.http.console") / "static/console.css"),
    "console.js": ("text/javascript", files("app.http.console") / "static/console.js"),
    "page.js": ("text/javascript", files("app.http.console") / "static/page.js"),
    "icon.svg": ("image/svg+xml", files("app.http.console") / "static/icon.svg"),
    "htmx.min.js": ("text/javascript", files("js_lib_htmx") / "static/htmx/htmx.min.js"),
}
ENDED = "session_is_ended"
NOT_PAGES = ("/v1/", "/kommo/", "/messengers/", "/schema", "/metrics", "/healthz", "/readyz")
TEMPLATES = Environment(
    loader=PackageLoader("app.http.console"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


@cache
def asset(name: str) -> tuple[str, bytes, str]:
    """A static file: its media type, its content and its version."""
    media_type, source = ASSETS[name]
    content = source.read_bytes()
    return media_type, content, sha256(content).hexdigest()[:12]


def asset_url(name: str) -> str:
    """The address of a static file, which changes whenever the file does."""
    return f"/static/{name}?v={asset(name)[2]}"


TEMPLATES.filters.update(formatting.FILTERS)
TEMPLATES.globals.update(formatting.GLOBALS)
TEMPLATES.globals["asset"] = asset_url


def cookie_name(request: Call) -> str:
    """The name of the session cookie; it holds the ledger's id, because cookies do not tell ports apart."""
    return f"chatledger_{services_of(request).ledger_id.replace('-', '')[:8]}"


def session_of(request: Call) -> Session | None:
    """The session of a request, if its cookie is still good and `live_session` has not found it ended."""
    if request.state.get(ENDED):
        return None
    cookie = request.cookies.get(cookie_name(request), "")
    return services_of(request).sessions.read(cookie) if cookie else None


async def live_session(request: Call) -> Session | None:
    """The session of a request, unless it was signed out, here or on another process, or its key is over.

    From then on `caller_of` knows who asks.
    """
    session = session_of(request)
    if session is None:
        return None
    caller = await caller_in(services_of(request), session)
    if caller is None:
        request.state[ENDED] = True
        return None
    request.state[CALLER] = caller
    return session


async def caller_in(services: Services, session: Session) -> Caller | None:
    """Who is signed in; None if the session was signed out, on any process, or its key is over."""
    if await ended_sessions.is_ended(services.pool, session):
        return None
    return await caller_of_key(services, session.key)


def cookie(request: Call, name: str, value: str, seconds: int = SESSION_SECONDS) -> Cookie:
    """A cookie that neither scripts nor other sites can use; only over https if browsers reach us so."""
    return Cookie(
        key=name,
        value=value,
        max_age=seconds,
        path="/",
        httponly=True,
        samesite="strict",
        secure=is_https(request),
    )


def page(
    request: Call,
    template: str,
    values: Mapping[str, object],
    *,
    status: int = 200,
    headers: dict[str, str] | None = None,
    cookies: list[Cookie] | None = None,
) -> Response[str]:
    """A page, or a fragment of one."""
    services = services_of(request)
    session = session_of(request)
    text = TEMPLATES.get_template(template).render(
        signed_in=session is not None,
        may=_may(request),
        form_token=services.sessions.form_token(session.id) if session else "",
        demo_links=services.demo_links,
        path=request.url.path,
        **values,
    )
    return Response(
        text,
        status_code=status,
        media_type="text/html",
        headers=HEADERS | (headers or {}),
        cookies=cookies or [],
    )


def _may(request: Call) -> frozenset[str]:
    """The rights of who is signed in, for what a page offers; `all` if these are not limited to accounts."""
    caller: Caller | None = request.state.get(CALLER)
    if caller is None:
        return frozenset()
    return frozenset(each for each in RIGHTS if caller.may(each)) | (
        {"all"} if caller.accounts is None else set()
    )


def is_page(request: Call) -> bool:
    """Whether a browser navigates here, and not a script or a program."""
    return "text/html" in request.headers.get("accept", "") and "hx-request" not in request.headers


def failure(request: Call, error: ProblemError) -> Response[str] | None:
    """The page of an error, if a browser shows it; None for programs, which read problem details."""
    if not is_page(request) or f"{request.url.path}/".startswith(NOT_PAGES):
        return None
    detail = "There is nothing at this address." if error.status == 404 else formatting.sentence(str(error))
    title = formatting.PROBLEMS.get(error.status, error.problem.title)
    return page(
        request,
        "error.html",
        {"code": error.status, "title": title, "detail": detail},
        status=error.status,
        headers=error.headers,
    )
