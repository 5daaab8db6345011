"""The ASGI application: every route, and the one table from errors to problems (RFC 9457).

Whose fault an error is decides the status: theirs 4xx, Kommo's 502, ours 5xx, not yet 503. Each problem says
what to do, in the error's own words or, for errors that know nothing of callers, in those of the table.
"""

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import psycopg
from litestar import Litestar, Response, Router
from litestar.datastructures import State
from litestar.exceptions import HTTPException, ValidationException
from litestar.openapi import OpenAPIConfig
from litestar.openapi.spec import Components

from app import problems
from app.database.pool import BadFilter, ViewsMissing
from app.http import docs
from app.http.access import note_access
from app.http.api import (
    accounts,
    channels,
    consent,
    crm_webhooks,
    events,
    health,
    history,
    imports,
    keys,
    operation,
    refused,
    sending,
    sources,
    templates,
)
from app.http.console import install, pages
from app.http.console import routes as console
from app.http.guard import guard
from app.http.openapi import document
from app.http.query import query_names, refuse_unknown
from app.http.request import Call
from app.http.settings import routes as settings
from app.http.webhooks import crm as crm_webhook
from app.http.webhooks import routes as webhooks
from app.http.webhooks.body import refuse
from app.http.webhooks.front import App, Front
from app.http.webhooks.kommo import UNOPENED
from app.ledger.writer import EventTooLarge
from app.operations import errors
from app.operations.errors import OperationError
from app.operations.services import Services
from app.problems import Fault, ProblemError
from app.vault import WrongMasterKey
from app.views.cursor import BadCursor
from domain.decide import OwnMessage, TooManyFacts

Failure = Response[bytes] | Response[str]
log = logging.getLogger("chatledger.web")
DESCRIPTION = """Every chat action between a messenger and Kommo, as immutable events.

Read with `Authorization: Bearer KEY`. Writes answer with `Ledger-Position: n`; a read with `?at_least=n`
waits until its view has seen n. Errors are problem details (RFC 9457)."""

HUNG_UP = "client disconnected"  # Litestar's words: a fault of the client's, which hears no answer.
KEYED = [
    *channels.routes,
    *history.routes,
    *events.routes,
    *operation.routes,
    *refused.routes,
    *sending.routes,
    *consent.routes,
    *accounts.routes,
    *sources.routes,
    *templates.routes,
    *crm_webhooks.routes,
    *imports.routes,
    *keys.routes,
]
OPEN = [*webhooks.routes, *crm_webhook.routes, *consent.open_routes, *install.routes, *docs.routes]


class Rule(NamedTuple):
    """An error's status, `advice` in place of its own message, and seconds after which to ask again."""

    status: int
    advice: str = ""
    retry_after: int | None = None


NOT_NOW = Rule(503, "the database or the views are not there yet: ask again", retry_after=1)
PROBLEMS: dict[type[Exception], Rule] = {
    errors.InvalidInput: Rule(400),
    errors.AccessDenied: Rule(403),
    errors.NotFound: Rule(404),
    errors.StateConflict: Rule(409),
    errors.NotPossible: Rule(422),
    errors.KommoFailed: Rule(502),
    errors.NotYet: Rule(503),
    errors.NoRoom: Rule(507),
    BadCursor: Rule(400),
    BadFilter: Rule(400),
    OwnMessage: Rule(
        400, "this is a message of the messenger's own: only messages that we sent have a status"
    ),
    TooManyFacts: Rule(429, retry_after=3600),
    EventTooLarge: Rule(400, "the event would be over 384 KB: send less"),
    RecursionError: Rule(400, "the body is nested too deep: send less"),
    ViewsMissing: NOT_NOW,
    WrongMasterKey: Rule(503, UNOPENED, retry_after=1),
    psycopg.errors.DiskFull: Rule(
        503, "the disk of PostgreSQL is full: free some space on it, then ask again", retry_after=10
    ),
    psycopg.OperationalError: NOT_NOW,
    Exception: Rule(500, problems.OURS),
}


def application(services: Services) -> Front:
    """Every route over these services, behind the fast path of the two webhooks."""
    return Front(cast("App", routed({"services": services})), services)


def routed(state: Mapping[str, object]) -> Litestar:
    """Every route; what `/schema` says depends on the routes alone, so that the state may be empty for it."""
    key: list[dict[str, list[str]]] = [{document.KEY: []}]
    app = Litestar(
        route_handlers=[
            *OPEN,
            Router("/", route_handlers=health.routes, before_request=refuse_unknown),
            Router("/v1", route_handlers=KEYED, guards=[guard], security=key, before_request=refuse_unknown),
            *console.routes,
            *settings.routes,
        ],
        state=State(dict(state)),
        exception_handlers={
            **dict.fromkeys(PROBLEMS, _by_table),
            ProblemError: _respond,
            HTTPException: _by_litestar,
        },
        before_send=[note_access],
        openapi_config=_openapi(),
        logging_config=None,
        request_max_body_size=problems.BODY_BYTES_MAX,
    )
    app.state.query_names = query_names(app.routes)
    return app


def _openapi() -> OpenAPIConfig:
    router = Router("/schema", route_handlers=[], include_in_schema=False, after_request=_no_page)
    return OpenAPIConfig(
        title="chatledger",
        version="1",
        description=DESCRIPTION,
        openapi_router=router,
        render_plugins=[document.DocumentPlugin("/")],
        components=Components(security_schemes=document.SECURITY),
    )


def _no_page(response: Response[Any]) -> Response[Any]:
    """Litestar answers what is not under /schema with a page: ours is a problem, as everywhere."""
    if response.status_code == 404:
        raise HTTPException(status_code=404)
    return response


def _by_table(request: Call, error: Exception) -> Failure:
    rule = next(PROBLEMS[kind] for kind in type(error).__mro__ if kind in PROBLEMS)
    if rule.status == 500:
        log.exception("500 at %s", request.url.path, exc_info=error)
    elif isinstance(error, psycopg.OperationalError):
        log.warning("not now: %s", str(error).strip())
    message, retry_after = rule.advice or str(error), rule.retry_after
    if (
        isinstance(error, BadFilter) and "uuid" in message
    ):  # The first line of PostgreSQL's is about the value.
        message = f"{message.splitlines()[0]}: give an id as a list shows it, a UUID in lower case"
    if isinstance(error, errors.NotYet):
        retry_after = error.retry_after
    faults, position = [], None
    if isinstance(error, OperationError):
        message = error.detail
        faults, position = [Fault(*fault) for fault in error.faults], error.position
    problem = ProblemError(rule.status, message, errors=faults, position=position, retry_after=retry_after)
    return _respond(request, problem)


def _by_litestar(request: Call, error: HTTPException) -> Failure:
    """Litestar's own refusals: unknown paths, wrong methods, bodies and parameters that do not fit."""
    if isinstance(error, ValidationException):
        return _respond(request, _validation(error))
    detail = error.detail
    if error.status_code == 404:
        detail = "there is nothing at this path: /schema lists what there is"
    elif error.detail.startswith(HUNG_UP):
        return _respond(request, ProblemError(400, "the body ended early: send it again"))
    elif error.status_code == 500:
        log.error("500 at %s: %s", request.url.path, error.detail)
        detail = problems.OURS
    allowed = (error.headers or {}).get("allow")
    headers = {"Allow": allowed} if allowed else {}
    return _respond(request, ProblemError(error.status_code, detail), headers)


def _validation(error: ValidationException) -> ProblemError:
    extra = error.extra if isinstance(error.extra, list) else []
    faults = [Fault(_place(each), str(each.get("message", ""))) for each in extra if isinstance(each, dict)]
    detail = "; ".join(f"{fault.path}: {fault.message}" for fault in faults) or error.detail
    return ProblemError(400, detail, errors=faults)


def _place(extra: dict[str, Any]) -> str:
    key = str(extra.get("key", ""))
    if str(extra.get("source", "")).endswith("body"):
        return f"$.{key}".rstrip(".")
    return key or "$"


def _respond(request: Call, error: ProblemError, headers: Mapping[str, str] = {}) -> Failure:
    """The problem as a page for a browser, else as JSON."""
    if page := pages.failure(request, error):
        return page
    answer = refuse(error)
    challenge = {"WWW-Authenticate": "Bearer"} if error.status == 401 else {}
    return Response(
        answer.body, status_code=answer.status, headers={**answer.headers, **challenge, **headers}
    )
