"""Whether the process lives and can take requests, and its metrics for Prometheus."""

from typing import Literal

from litestar import Response, get
from msgspec import Struct
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from app import metrics
from app.http.guard import guard
from app.http.openapi import document, examples
from app.http.openapi.responses import answers
from app.http.request import Call, services_of
from app.kommo.refused import count_refused
from app.problems import ProblemError
from app.views.status import view_status


class Alive(Struct, frozen=True):
    """That the process lives, or can take requests."""

    status: Literal["ok", "ready"]


@get("/healthz", summary="Whether the process lives", tags=["operation"])
async def healthz() -> Alive:
    """Always, if it answers at all."""
    return Alive("ok")


@get("/readyz", summary="Whether it can take requests", tags=["operation"], responses=answers(503))
async def readyz(request: Call) -> Alive:
    """503 while the database or views are out of reach, the master key is wrong, or the process stops."""
    services = services_of(request)
    if services.stopping.is_set():
        raise ProblemError(503, "the process is stopping", retry_after=5)
    await view_status(services.pool)
    if problem := await services.keyring.check():
        raise ProblemError(503, problem, retry_after=5)
    return Alive("ready")


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
    metrics.KEPT.set(await count_refused(services.pool))
    standing = await view_status(services.pool)
    metrics.HEAD.set(standing.head)
    for view in standing.views:
        metrics.VIEW_PARKED.labels(view.view).set(view.parked)
        metrics.VIEW_STANDS.labels(view.view).set(view.stands)
    metrics.REBUILD_REFUSED.set(any(one.cause == "rebuild" for one in standing.projection.parked))
    if services.relay:
        metrics.RELAY_POSITION.set(services.relay.position)
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)


routes = [healthz, readyz, measures]
