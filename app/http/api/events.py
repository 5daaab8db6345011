"""`GET /v1/events`: the ledger as JSON pages, as an NDJSON stream, and as server-sent events that follow."""

import re
from collections.abc import AsyncIterator
from typing import Annotated

from litestar import Response, get
from litestar.params import FromQuery, QueryParameter
from litestar.response import Stream
from msgspec import Raw

from app.access.callers import Caller
from app.http.api.parameters import POSITION_MAX, AtLeast, Moment, moment_text, next_link
from app.http.guard import REACHED, READ, caller_of, still_good
from app.http.openapi import examples
from app.http.openapi.responses import answers
from app.http.query import nearest
from app.http.request import Call, services_of
from app.operations.services import Services, views_reach
from app.printable import printable
from app.problems import ProblemError
from app.views.events import Events, Filter, Stored, list_events, stream_events
from app.views.hidden import without_deleted
from projections.events import TAGS

SSE_POLL_SECONDS = 1.0
SSE_QUIET_POLLS = 15
LimitOrNone = Annotated[int | None, QueryParameter(ge=1, le=1000, description="how many at most")]
After = Annotated[int, QueryParameter(ge=0, le=POSITION_MAX, description="the position after which to begin")]
Type = Annotated[str | None, QueryParameter(name="type", schema_extra={"enum": [*TAGS, None]})]
ALL_TYPES = f"give one of {', '.join(TAGS)}"
STREAMS = {"application/x-ndjson": examples.LINE, "text/event-stream": examples.FOLLOWED}
STREAMED = answers(also={200: Events}, texts={200: STREAMS})


class KeyOver(Exception):
    """The key with which a stream is read was deleted, or is over: the stream is cut, as if we had ended."""


@get("/events", summary="The ledger", tags=["events"], opt=READ | REACHED, responses=STREAMED)
async def events(
    request: Call,
    after: After = 0,
    limit: LimitOrNone = None,
    type_: Type = None,
    conversation: FromQuery[str | None] = None,
    channel: FromQuery[str | None] = None,
    account_id: FromQuery[str | None] = None,
    since: FromQuery[Moment | None] = None,
    until: FromQuery[Moment | None] = None,
    at_least: AtLeast = None,
) -> Response[Events] | Stream:
    """Events exactly as stored.

    JSON pages; with `Accept: application/x-ndjson` all of them as lines; with `text/event-stream` they go on
    as they happen, and resume after `Last-Event-ID`.
    """
    services, caller = services_of(request), caller_of(request)
    await views_reach(services, at_least, view="events")
    if type_ is not None and type_ not in TAGS:
        raise ProblemError(
            400, f"{printable(type_)} is no type of event: {nearest(type_, TAGS) or ALL_TYPES}"
        )
    only = Filter(
        type=type_,
        conversation=conversation,
        channel=channel,
        account_id=account_id,
        accounts=caller.limited_to,
        since=moment_text(since),
        until=moment_text(until),
    )
    accept = request.headers.get("accept", "")
    if "text/event-stream" in accept:
        last = request.headers.get("last-event-id", "")
        start = int(last) if re.fullmatch("[0-9]{1,18}", last) else after
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return Stream(_follow(services, start, only, caller), media_type="text/event-stream", headers=headers)
    if "application/x-ndjson" in accept:
        return Stream(_lines(services, after, only, limit, caller), media_type="application/x-ndjson")
    page = await list_events(services.pool, after=after, limit=limit or 50, only=only)
    if not caller.may("audit"):
        page = Events(await without_deleted(services.pool, page.items), page.next)
    return Response(page, headers=next_link(request, "after", page.next))


async def _lines(
    services: Services, after: int, only: Filter, limit: int | None, caller: Caller
) -> AsyncIterator[bytes]:
    left = limit if limit is not None else 1 << 62
    async for page in _pages(services, after, only, caller):
        yield b"".join(b'{"position":%d,"event":%b}\n' % row for row in page[:left])
        left -= len(page)
        if left <= 0:
            return


async def _follow(services: Services, after: int, only: Filter, caller: Caller) -> AsyncIterator[bytes]:
    """Events as they come into the views, a comment when it is quiet, until the process or the key ends."""
    yield b": following\n\n"
    quiet = 0
    while not services.stopping.is_set() and await still_good(services, caller):
        seen = services.projector.position
        try:
            async for page in _pages(services, after, only, caller):
                yield b"".join(b"id: %d\ndata: %b\n\n" % row for row in page)
                after, quiet = page[-1][0], 0
        except KeyOver:
            return
        if not await services.projector.wait_for(seen + 1, SSE_POLL_SECONDS):
            quiet += 1
            if quiet % SSE_QUIET_POLLS == 0:
                yield b": quiet\n\n"


async def _pages(
    services: Services, after: int, only: Filter, caller: Caller
) -> AsyncIterator[list[tuple[int, bytes]]]:
    """Pages of events, while the key is good; unless it may see all, what was deleted since is hidden.

    Raises KeyOver.
    """
    async for page in stream_events(services.pool, after=after, only=only):
        if not await still_good(services, caller):
            raise KeyOver("the key of a stream is over, so the stream ends early")
        if caller.may("audit"):
            yield page
        else:
            shown = await without_deleted(services.pool, [Stored(at, Raw(event)) for at, event in page])
            yield [(one.position, bytes(one.event)) for one in shown]


routes = [events]
