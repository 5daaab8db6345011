"""Whether the process lives and can take requests, and its metrics for Prometheus."""

from typing import Literal

from litestar import Response, get
from msgspec import Struct
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from app import metrics
from app.http.access import UNLOGGED
from app.http.guard import READ, guard
from app.http.openapi import document, examples
from app.http.openapi.responses import answers
from app.http.request import Call, services_of
from app.kommo.refused import count_refused
from app.operations.services import Services
from app.stream.relay import Relay
from app.views.status import view_status

STOPPING = "the process is stopping"
WAIT_SECONDS = 5
NO_STORE = {"Cache-Control": "no-store"}


class Alive(Struct, frozen=True):
    """That the process lives."""

    status: Literal["ok"]


class Part(Struct, frozen=True, omit_defaults=True):
    """One part of the process: `elsewhere` is the state of a role that another process has."""

    part: Literal["ledger", "relay", "project", "deliver"]
    state: Literal["ok", "unavailable", "stopping", "active", "standby", "stuck", "elsewhere"]
    detail: str | None = None


class Ready(Struct, frozen=True):
    """Whether something can be stored now, and how each part stands."""

    ready: bool
    parts: list[Part]


@get("/healthz", summary="Whether the process lives", tags=["operation"])
async def healthz() -> Alive:
    """Always, if it answers at all."""
    return Alive("ok")


@get(
    "/readyz",
    summary="Whether it can take requests",
    tags=["operation"],
    responses=answers(also={503: Ready}),
)
async def readyz(request: Call) -> Response[Ready]:
    """503 while nothing can be stored: no database, one that writes nothing, a wrong master key, the end."""
    services = services_of(request)
    ledger = await _ledger(services)
    ready = Ready(ledger.state == "ok", [ledger, *_roles(services)])
    if ready.ready:
        return Response(ready, headers=NO_STORE)
    return Response(ready, status_code=503, headers={**NO_STORE, "Retry-After": str(WAIT_SECONDS)})


async def _ledger(services: Services) -> Part:
    if services.stopping.is_set():
        return Part("ledger", "stopping", STOPPING)
    problem = await services.probe.check() or await services.keyring.check()
    return Part("ledger", "unavailable", problem) if problem else Part("ledger", "ok")


def _roles(services: Services) -> list[Part]:
    """The other roles: what they are behind does not keep anything from being stored."""
    projector = services.projector
    views = Part("project", "active" if projector.leading else "standby")
    if projector.standing:
        views = Part("project", "stuck", f"standing still: {', '.join(sorted(projector.standing))}")
    return [
        _relay(services.relay),
        views,
        Part("deliver", "active" if services.deliverer else "elsewhere"),
    ]


def _relay(relay: Relay | None) -> Part:
    if relay is None:
        return Part("relay", "elsewhere")
    if standing := relay.standstill.now:
        return Part("relay", "stuck", f"standing still since {standing.since}: {standing.because}")
    return Part("relay", "active" if relay.active else "standby", relay.shortage)


@get(
    "/metrics",
    summary="Metrics for Prometheus",
    tags=["operation"],
    guards=[guard],
    opt=READ | UNLOGGED,
    security=[{document.KEY: []}],
    responses=answers(texts={200: {CONTENT_TYPE_LATEST: examples.METRICS}}),
)
async def measures(request: Call) -> Response[bytes]:
    """Counts and times, without anything personal."""
    services = services_of(request)
    metrics.QUEUE.set(services.ledger.depth)
    metrics.VIEW_POSITION.set(services.projector.position)
    metrics.KEPT.set(await count_refused(services.pool))
    standing = await view_status(services.pool)
    metrics.HEAD.set(standing.head)
    for view in standing.views:
        metrics.VIEW_PARKED.labels(view.view).set(view.parked)
        metrics.VIEW_STANDS.labels(view.view).set(view.stands)
    for state in ("pending", "deferred", "parked"):
        metrics.WAITING.labels(state).set(getattr(standing.deliveries, state))
    for role in _roles(services):
        metrics.ROLE_ACTIVE.labels(role.part).set(role.state == "active")
    metrics.REBUILD_REFUSED.set(any(one.cause == "rebuild" for one in standing.projection.parked))
    if relay := services.relay:
        metrics.RELAY_POSITION.set(relay.position)
        metrics.RELAY_STANDS.set(relay.standstill.seconds)
        metrics.RELAY_REPLICAS.set(relay.replicas)
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)


routes = [healthz, readyz, measures]
