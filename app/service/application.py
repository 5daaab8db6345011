"""One ASGI application: the webhooks in front, then the API, the console and what an operator's tools ask.

Every error is an RFC 9457 problem that says what to do; whose fault it is decides the status: theirs 4xx,
ours 5xx, not yet 503.
"""

import logging
from collections.abc import Mapping
from typing import Annotated, Any, cast

import psycopg
from litestar import Litestar, Response, Router, get, post
from litestar.connection import ASGIConnection
from litestar.datastructures import State
from litestar.exceptions import HTTPException, ValidationException
from litestar.handlers import BaseRouteHandler, HTTPRouteHandler
from litestar.openapi import OpenAPIConfig
from litestar.openapi.spec import Components
from litestar.params import FromPath
from msgspec import Meta
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from app import metrics, problems, shapes
from app.database.pool import BadFilter, ViewsMissing
from app.http.api import accounts, channels, consent, crm_webhooks, history, imports, sending, templates
from app.http.console import pages
from app.http.openapi import document, examples
from app.http.openapi.responses import answers, takes
from app.http.webhooks import crm
from app.http.webhooks import kommo as webhooks
from app.http.webhooks.front import App, Front, Receive, read, refuse
from app.kommo.chats.hooks import Hook
from app.messengers.commands import ACTIONS_MAX
from app.messengers.contract import Action
from app.operations.services import Call, Services, services_of
from app.problems import Fault, Wrong
from app.views.cursor import BadCursor

Failure = Response[bytes] | Response[str]
Actions = Annotated[list[Action], Meta(min_length=1, max_length=ACTIONS_MAX)]
UNSIGNED = {
    401: webhooks.UNSIGNED,
    409: "the channel is not connected yet: POST /v1/channels/{name}/connections",
}
log = logging.getLogger("chatledger.web")
DESCRIPTION = """Every chat action between a messenger and Kommo, as immutable events.

Read with `Authorization: Bearer KEY`. Writes answer with `Ledger-Position: n`; a read with `?at_least=n`
waits until its view has seen n. Errors are problem details (RFC 9457)."""


def guard(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
    """Only with the admin's bearer key."""
    services: Services = connection.app.state.services
    kind, _space, key = connection.headers.get("authorization", "").partition(" ")
    if kind.lower() != "bearer" or not services.is_admin(key.strip()):
        raise Wrong(
            401, "give the admin key: Authorization: Bearer KEY (it is in the data folder, admin.key)"
        )


@post(
    "/kommo/{scope_id:str}",
    status_code=200,
    summary="A hook of Kommo",
    tags=["webhooks"],
    security=[{document.KOMMO: []}],
    responses=answers(403, 404, 415, 503),
    opt=takes(Hook, **examples.HOOKS) | {"writes": False},
)
async def kommo(request: Call, scope_id: FromPath[str]) -> Response[bytes]:
    """A v2 hook, signed with `X-Signature`: 200 with an empty body once it is durable, also for a repeat."""
    headers, body = await _raw(request)
    signature = headers.get(b"x-signature", b"").decode("latin-1")
    answer = await services_of(request).webhooks.kommo(scope_id, signature, body)
    return Response(answer.body, status_code=answer.status, headers=dict(answer.headers))


@post(
    "/messengers/{channel:str}",
    status_code=200,
    summary="Actions of a messenger",
    tags=["webhooks"],
    security=[{document.MESSENGER: []}],
    responses=answers(404, 409, 415, 503, said=UNSIGNED, also={200: shapes.Outcomes}),
    opt=takes(Action | Actions, **examples.ACTIONS),
)
async def messenger(request: Call, channel: FromPath[str]) -> Response[bytes]:
    """One action or an array of 1 to 500, signed by Standard Webhooks: 200 once all are durable."""
    headers, body = await _raw(request)
    texts = {name.decode("latin-1"): value.decode("latin-1") for name, value in headers.items()}
    answer = await services_of(request).webhooks.messenger(channel, texts, body)
    return Response(answer.body, status_code=answer.status, headers=dict(answer.headers))


async def _raw(request: Call) -> tuple[dict[bytes, bytes], bytes]:
    headers = dict(request.scope["headers"])
    return headers, await read(headers, cast("Receive", request.receive))


@get("/healthz", summary="Whether the process lives", tags=["operation"])
async def healthz() -> shapes.Alive:
    """Always, if it answers at all."""
    return shapes.Alive("ok")


@get("/readyz", summary="Whether it can take requests", tags=["operation"], responses=answers(503))
async def readyz(request: Call) -> shapes.Alive:
    """503 while the database or the views are out of reach, or while the process stops."""
    services = services_of(request)
    if services.stopping.is_set():
        raise Wrong(503, "the process is stopping", retry_after=5)
    await services.reads.status()
    return shapes.Alive("ready")


@get(
    "/metrics",
    summary="Metrics for Prometheus",
    tags=["operation"],
    guards=[guard],
    security=[{document.KEY: []}],
    responses=answers(texts={200: {CONTENT_TYPE_LATEST: examples.METRICS}}),
)
async def measures(request: Call) -> Response[bytes]:
    """Counts and times, without anything personal."""
    services = services_of(request)
    metrics.QUEUE.set(services.ledger.depth)
    metrics.VIEW_POSITION.set(services.projector.position)
    metrics.HEAD.set(await services.reads.head())
    if services.relay:
        metrics.RELAY_POSITION.set(services.relay.position)
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)


def _wrong(request: Call, wrong: Wrong, more: Mapping[str, str] = {}) -> Failure:
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
        return _wrong(request, Wrong(error.status_code, detail), {"Allow": allowed} if allowed else {})
    extra = error.extra if isinstance(error.extra, list) else []
    faults = [Fault(_place(each), str(each.get("message", ""))) for each in extra if isinstance(each, dict)]
    said = "; ".join(f"{fault.path}: {fault.message}" for fault in faults) or error.detail
    return _wrong(request, Wrong(400, said, errors=faults))


def _place(extra: dict[str, Any]) -> str:
    key = str(extra.get("key", ""))
    if str(extra.get("source", "")).endswith("body"):
        return f"$.{key}".rstrip(".")
    return key or "$"


def _asked_wrong(request: Call, error: ValueError) -> Failure:
    detail = str(error)
    if "uuid" in detail:  # PostgreSQL's words, of which the first line is about the value.
        detail = f"{detail.splitlines()[0]}: give an id as a list shows it, a UUID in lower case"
    return _wrong(request, Wrong(400, detail))


def _no_page(response: Response[Any]) -> Response[Any]:
    """Litestar's own page for what is not under /schema is HTML: ours is a problem, as everywhere."""
    if response.status_code == 404:
        raise HTTPException(status_code=404)
    return response


def _too_deep(request: Call, _: RecursionError) -> Failure:
    return _wrong(request, Wrong(400, "the body is nested too deep: send less"))


def _not_now(request: Call, error: Exception) -> Failure:
    log.warning("not now: %s", str(error).strip())
    return _wrong(
        request, Wrong(503, "the database or the views are not there yet: ask again", retry_after=1)
    )


def _ours(request: Call, error: Exception) -> Failure:
    log.exception("500 at %s", request.url.path, exc_info=error)
    return _wrong(request, Wrong(500, problems.OURS))


def application(services: Services, *more: Any) -> Front:
    """The application; `more` are further route handlers, such as the console's."""
    secured: list[dict[str, list[str]]] = [{document.KEY: []}]
    keyed: list[HTTPRouteHandler] = [
        *channels.routes,
        *history.routes,
        *sending.routes,
        *consent.routes,
        *accounts.routes,
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
            Wrong: _wrong,
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
    return Front(cast("App", app), services.webhooks)
