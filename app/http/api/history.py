"""The REST API under `/v1`: history, events and status, each as the ledger or its views have it."""

import base64
import re
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Annotated, Literal
from urllib.parse import urlencode

from litestar import Response, get, post
from litestar.params import FromPath, FromQuery, QueryParameter
from litestar.response import Redirect, Stream
from litestar.status_codes import HTTP_307_TEMPORARY_REDIRECT
from msgspec import Meta, Struct

from app import clock, shapes
from app.channels import attempts
from app.http.openapi import examples
from app.http.openapi.responses import answers
from app.operations import channels
from app.operations.services import Call, Services, services_of
from app.problems import Wrong
from app.views.cursor import Filter
from domain import ids

SSE_POLL_SECONDS = 1.0
SSE_QUIET_POLLS = 15
POSITION_MAX = 2**53
UNKNOWN = answers(said={404: "no conversation has this id"})

Limit = Annotated[int, QueryParameter(ge=1, le=1000, description="how many at most")]
LimitOrNone = Annotated[int | None, QueryParameter(ge=1, le=1000, description="how many at most")]
AtLeast = Annotated[
    int | None,
    QueryParameter(ge=0, le=POSITION_MAX, description="wait until the views have seen this position"),
]
After = Annotated[int, QueryParameter(ge=0, le=POSITION_MAX, description="the position after which to begin")]
Moment = Annotated[datetime, Meta(tz=True)]


STREAMS = {"application/x-ndjson": examples.LINE, "text/event-stream": examples.FOLLOWED}
STREAMED = answers(also={200: shapes.Events}, texts={200: STREAMS})


class Relayed(Struct, frozen=True):
    """How far the stream is; `active` is whether this process relays."""

    active: bool
    position: int
    lag: int


class Status(Struct, frozen=True):
    """Where everything stands. `queue` is the number of commands that wait for the ledger.

    `connections` are the channels that could not be registered or connected at the last attempt, and why.
    """

    ledger: str
    head: int
    queue: int
    views: list[shapes.ViewStatus]
    relay: Relayed | None
    deliveries: shapes.DeliveryCounts
    connections: list[attempts.Problem] = []


class Refused(Struct, frozen=True):
    """A signed hook of Kommo's that could not be read; `body` is base64 of its exact bytes."""

    id: str
    scope_id: str
    received_at: str
    reason: str
    body: str


class RefusedPage(Struct, frozen=True):
    """The latest first."""

    items: list[Refused]


class Resumed(Struct, frozen=True):
    """How many parked deliveries were taken up again."""

    resumed: int


@get("/conversations", summary="Conversations, the latest active first", tags=["history"])
async def conversations(
    request: Call,
    channel: FromQuery[str | None] = None,
    account_id: FromQuery[str | None] = None,
    conversation_id: FromQuery[str | None] = None,
    chat_id: FromQuery[str | None] = None,
    limit: Limit = 50,
    cursor: FromQuery[str | None] = None,
    at_least: AtLeast = None,
) -> Response[shapes.Conversations]:
    """A page of conversations; `next` is the cursor of the next page, or null."""
    services = services_of(request)
    await services.views_reach(at_least)
    page = await services.reads.list_conversations(
        channel=channel,
        account_id=account_id,
        conversation_id=conversation_id,
        chat_id=chat_id,
        limit=limit,
        cursor=cursor,
    )
    return Response(page, headers=_link(request, "cursor", page.next))


@get("/conversations/{conversation:str}", summary="One conversation", tags=["history"], responses=UNKNOWN)
async def conversation(
    request: Call, conversation: FromPath[str], at_least: AtLeast = None
) -> shapes.Conversation | Redirect:
    """The conversation; one that was merged into another redirects there."""
    found = await _conversation(request, conversation, at_least)
    return found if found.id == conversation else _redirect(request, conversation, found.id)


@get(
    "/conversations/{conversation:str}/messages",
    summary="A chat's history",
    tags=["history"],
    responses=UNKNOWN,
)
async def messages(
    request: Call,
    conversation: FromPath[str],
    limit: Limit = 50,
    cursor: FromQuery[str | None] = None,
    order: FromQuery[Literal["asc", "desc"]] = "asc",
    at_least: AtLeast = None,
) -> Response[shapes.Messages] | Redirect:
    """Messages by position, the oldest first, or the newest with `order=desc`."""
    found = await _conversation(request, conversation, at_least)
    if found.id != conversation:
        return _redirect(request, conversation, found.id)
    services = services_of(request)
    page = await services.reads.list_messages(conversation, limit=limit, cursor=cursor, order=order)
    page = shapes.Messages(await services.users.named(page.items), page.next)
    return Response(page, headers=_link(request, "cursor", page.next))


@get(
    "/messages/{message:str}",
    summary="A message and its timeline",
    tags=["history"],
    responses=answers(said={404: "no message has this id"}),
)
async def message(request: Call, message: FromPath[str], at_least: AtLeast = None) -> shapes.History:
    """The message as it stands, and every transition with its evidence."""
    services = services_of(request)
    await services.views_reach(at_least)
    found = await services.reads.get_message(message)
    if found is None:
        raise Wrong(404, "no message has this id")
    return (await services.users.named([found]))[0]


@get("/events", summary="The ledger", tags=["events"], responses=STREAMED)
async def events(
    request: Call,
    after: After = 0,
    limit: LimitOrNone = None,
    type_: Annotated[str | None, QueryParameter(name="type")] = None,
    conversation: FromQuery[str | None] = None,
    channel: FromQuery[str | None] = None,
    account_id: FromQuery[str | None] = None,
    since: FromQuery[Moment | None] = None,
    until: FromQuery[Moment | None] = None,
    at_least: AtLeast = None,
) -> Response[shapes.Events] | Stream:
    """Events exactly as stored.

    JSON pages; with `Accept: application/x-ndjson` all of them as lines; with `text/event-stream` they go on
    as they happen, and resume after `Last-Event-ID`.
    """
    services = services_of(request)
    await services.views_reach(at_least)
    only = Filter(
        type=type_,
        conversation=conversation,
        channel=channel,
        account_id=account_id,
        since=_text(since),
        until=_text(until),
    )
    accept = request.headers.get("accept", "")
    if "text/event-stream" in accept:
        last = request.headers.get("last-event-id", "")
        start = int(last) if re.fullmatch("[0-9]{1,18}", last) else after
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return Stream(_follow(services, start, only), media_type="text/event-stream", headers=headers)
    if "application/x-ndjson" in accept:
        return Stream(_lines(services, after, only, limit), media_type="application/x-ndjson")
    page = await services.reads.list_events(after=after, limit=limit or 50, only=only)
    return Response(page, headers=_link(request, "after", page.next))


async def _lines(services: Services, after: int, only: Filter, limit: int | None) -> AsyncIterator[bytes]:
    left = limit if limit is not None else 1 << 62
    async for page in services.reads.stream_events(after=after, only=only):
        yield b"".join(b'{"position":%d,"event":%b}\n' % row for row in page[:left])
        left -= len(page)
        if left <= 0:
            return


async def _follow(services: Services, after: int, only: Filter) -> AsyncIterator[bytes]:
    """Events as they come into the views, a comment when it is quiet, until the process stops."""
    yield b": following\n\n"
    quiet = 0
    while not services.stopping.is_set():
        seen = services.projector.position
        async for page in services.reads.stream_events(after=after, only=only):
            yield b"".join(b"id: %d\ndata: %b\n\n" % row for row in page)
            after, quiet = page[-1][0], 0
        if not await services.projector.wait_for(seen + 1, SSE_POLL_SECONDS):
            quiet += 1
            if quiet % SSE_QUIET_POLLS == 0:
                yield b": quiet\n\n"


@get("/status", summary="Where everything stands", tags=["operation"])
async def status(request: Call) -> Status:
    """The ledger's head, each view's position and lag, the relay's, and the deliveries."""
    return await standing(services_of(request))


async def standing(services: Services) -> Status:
    """Where everything stands, as this process knows it."""
    now = await services.reads.status()
    relay = services.relay
    relayed = Relayed(relay.active, relay.position, max(0, now.head - relay.position)) if relay else None
    return Status(
        services.ledger_id,
        now.head,
        services.ledger.depth,
        now.views,
        relayed,
        now.deliveries,
        await services.pool.fetch(attempts.Problem, attempts.PROBLEMS, {}),
    )


@get("/deliveries", summary="What is not delivered", tags=["operation"])
async def deliveries(
    request: Call,
    state_: Annotated[Literal["open", "deferred", "parked"] | None, QueryParameter(name="state")] = None,
    destination: FromQuery[Literal["kommo", "messenger"] | None] = None,
    channel: FromQuery[str | None] = None,
    account_id: FromQuery[str | None] = None,
    conversation: FromQuery[str | None] = None,
    limit: Limit = 50,
    cursor: FromQuery[str | None] = None,
    at_least: AtLeast = None,
) -> Response[shapes.Deliveries]:
    """The oldest first, with the reason; what is parked waits for `POST /v1/deliveries/resume`."""
    services = services_of(request)
    await services.views_reach(at_least)
    page = await services.reads.list_deliveries(
        state=state_,
        destination=destination,
        channel=channel,
        account_id=account_id,
        conversation=conversation,
        limit=limit,
        cursor=cursor,
    )
    return Response(page, headers=_link(request, "cursor", page.next))


@post("/deliveries/resume", status_code=200, summary="Take up parked deliveries", tags=["operation"])
async def resume(
    request: Call,
    channel: FromQuery[str | None] = None,
    account_id: FromQuery[str | None] = None,
    conversation: FromQuery[str | None] = None,
) -> Response[Resumed]:
    """Every parked delivery that fits is tried again, in its conversation's order."""
    count, last = await resume_parked(
        services_of(request), channel=channel, account_id=account_id, conversation=conversation
    )
    return Response(Resumed(count), headers={"Ledger-Position": str(last)})


async def resume_parked(
    services: Services,
    *,
    channel: str | None = None,
    account_id: str | None = None,
    conversation: str | None = None,
) -> tuple[int, int]:
    """Take up what is parked; returns how many, and the last position."""
    count, last, cursor = 0, 0, None
    while True:
        page = await services.reads.list_deliveries(
            state="parked",
            channel=channel,
            account_id=account_id,
            conversation=conversation,
            limit=1000,
            cursor=cursor,
        )
        for delivery in page.items:
            known = await services.channels.channel(delivery.channel)
            where = ids.link(delivery.channel, known.channel_id if known else "", delivery.account_id or "")
            recorded = await channels.resume_one(services, where, delivery)
            count, last = count + 1, max(last, recorded.position or 0)
        if (cursor := page.next) is None:
            return count, last


@get("/refused", summary="Hooks that could not be read", tags=["operation"])
async def refused(request: Call, limit: Limit = 50) -> RefusedPage:
    """Signed hooks, kept whole, for Kommo does not send again; the latest first."""
    rows = await services_of(request).reads.refused(limit)
    return RefusedPage(
        [
            Refused(row.id, row.scope_id, row.received_at, row.reason, base64.b64encode(row.body).decode())
            for row in rows
        ]
    )


async def _conversation(request: Call, conversation: str, at_least: int | None) -> shapes.Conversation:
    services = services_of(request)
    await services.views_reach(at_least)
    found = await services.reads.get_conversation(conversation)
    if found is None:
        raise Wrong(404, "no conversation has this id")
    return found


def _redirect(request: Call, old: str, new: str) -> Redirect:
    where = str(request.url).replace(old, new, 1)
    return Redirect(where, status_code=HTTP_307_TEMPORARY_REDIRECT)


def _link(request: Call, name: str, following: str | int | None) -> dict[str, str]:
    """RFC 8288: where the next page is."""
    if following is None:
        return {}
    kept = [(key, value) for key, value in request.query_params.multi_items() if key != name]
    url = f"{request.url.path}?{urlencode([*kept, (name, str(following))])}"
    return {"Link": f'<{url}>; rel="next"'}


def _text(moment: datetime | None) -> str | None:
    if moment and moment.tzinfo is None:
        raise Wrong(400, "since and until are times with a zone, such as 2026-11-22T08:00:00Z")
    return clock.text(clock.milliseconds(moment)) if moment else None


routes = [
    conversations,
    conversation,
    messages,
    message,
    events,
    status,
    deliveries,
    resume,
    refused,
]
