"""One ASGI application: the webhooks in front, then the API, the console and what an operator's tools ask.

Every error is an RFC 9457 problem that says what to do; whose fault it is decides the status: theirs 4xx,
ours 5xx, not yet 503.
"""

import logging
from collections.abc import Mapping
from typing import Any, cast

import psycopg
from litestar import Litestar, Response, Router
from litestar.datastructures import State
from litestar.exceptions import HTTPException, ValidationException
from litestar.handlers import HTTPRouteHandler
from litestar.openapi import OpenAPIConfig
from litestar.openapi.spec import Components

from app import problems
from app.database.pool import BadFilter, ViewsMissing
from app.http.api import (
    accounts,
    channels,
    consent,
    crm_webhooks,
    events,
    history,
    imports,
    operation,
    sending,
    sources,
    templates,
)
from app.http.api.health import healthz, measures, readyz
from app.http.console import pages
from app.http.guard import guard
from app.http.openapi import document
from app.http.webhooks import crm
from app.http.webhooks.body import refuse
from app.http.webhooks.front import App, Front
from app.http.webhooks.routes import kommo, messenger
from app.operations.services import Call, Services
from app.problems import Fault, ProblemError
from app.views.cursor import BadCursor

Failure = Response[bytes] | Response[str]
log = logging.getLogger("chatledger.web")
DESCRIPTION = """Every chat action between a messenger and Kommo, as immutable events.

Read with `Authorization: Bearer KEY`. Writes answer with `Ledger-Position: n`; a read with `?at_least=n`
waits until its view has seen n. Errors are problem details (RFC 9457)."""


def _wrong(request: Call, wrong: ProblemError, more: Mapping[str, str] = {}) -> Failure:
    if shown := pages.failure(request, wrong):
        return shown
    answer = refuse(wrong)
    asked = {"WWW-Authenticate": "Bearer"} if wrong.status == 401 else {}
    return Response(answer.body, status_code=answer.status, headers={**answer.headers, **asked, **more})


def _http(request: Call, error: HTTPException) -> Failure:
    """Litestar's own refusals: unknown paths, wrong methods, bodies and parameters that do not fit."""
    if not isinstance(error, ValidationException):
        detail = error.detail
        if error.status_code == 404:
            detail = "there is nothing at this path: /schema lists what there is"
        elif error.status_code == 500:
            log.error("500 at %s: %s", request.url.path, error.detail)
            detail = problems.OURS
        allowed = (error.headers or {}).get("allow")
        return _wrong(request, ProblemError(error.status_code, detail), {"Allow": allowed} if allowed else {})
    extra = error.extra if isinstance(error.extra, list) else []
    faults = [Fault(_place(each), str(each.get("message", ""))) for each in extra if isinstance(each, dict)]
    said = "; ".join(f"{fault.path}: {fault.message}" for fault in faults) or error.detail
    return _wrong(request, ProblemError(400, said, errors=faults))


def _place(extra: dict[str, Any]) -> str:
    key = str(extra.get("key", ""))
    if str(extra.get("source", "")).endswith("body"):
        return f"$.{key}".rstrip(".")
    return key or "$"


def _asked_wrong(request: Call, error: ValueError) -> Failure:
    detail = str(error)
    if "uuid" in detail:  # PostgreSQL's words, of which the first line is about the value.
        detail = f"{detail.splitlines()[0]}: give an id as a list shows it, a UUID in lower case"
    return _wrong(request, ProblemError(400, detail))


def _no_page(response: Response[Any]) -> Response[Any]:
    """Litestar's own page for what is not under /schema is HTML: ours is a problem, as everywhere."""
    if response.status_code == 404:
        raise HTTPException(status_code=404)
    return response


def _too_deep(request: Call, _: RecursionError) -> Failure:
    return _wrong(request, ProblemError(400, "the body is nested too deep: send less"))


def _not_now(request: Call, error: Exception) -> Failure:
    log.warning("not now: %s", str(error).strip())
    return _wrong(
        request, ProblemError(503, "the database or the views are not there yet: ask again", retry_after=1)
    )


def _ours(request: Call, error: Exception) -> Failure:
    log.exception("500 at %s", request.url.path, exc_info=error)
    return _wrong(request, ProblemError(500, problems.OURS))


def application(services: Services, *more: Any) -> Front:
    """The application; `more` are further route handlers, such as the console's."""
    secured: list[dict[str, list[str]]] = [{document.KEY: []}]
    keyed: list[HTTPRouteHandler] = [
        *channels.routes,
        *history.routes,
        *events.routes,
        *operation.routes,
        *sending.routes,
        *consent.routes,
        *accounts.routes,
        *sources.routes,
        *templates.routes,
        *crm_webhooks.routes,
        *imports.routes,
    ]
    v1 = Router("/v1", route_handlers=keyed, guards=[guard], security=secured)
    app = Litestar(
        route_handlers=[
            kommo,
            messenger,
            *crm.routes,
            healthz,
            readyz,
            measures,
            *consent.open_routes,
            v1,
            *more,
        ],
        state=State({"services": services}),
        exception_handlers={
            ProblemError: _wrong,
            HTTPException: _http,
            BadCursor: _asked_wrong,
            BadFilter: _asked_wrong,
            ViewsMissing: _not_now,
            psycopg.OperationalError: _not_now,
            RecursionError: _too_deep,
            Exception: _ours,
        },
        openapi_config=OpenAPIConfig(
            title="chatledger",
            version="1",
            description=DESCRIPTION,
            openapi_router=Router(
                "/schema", route_handlers=[], include_in_schema=False, after_request=_no_page
            ),
            render_plugins=[document.Described("/")],
            components=Components(security_schemes=document.SECURITY),
        ),
        logging_config=None,
        request_max_body_size=problems.BODY_BYTES_MAX,
    )
    return Front(cast("App", app), services)
