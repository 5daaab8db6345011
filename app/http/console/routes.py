"""The console's pages show the views; a person can resume what is parked and have refused hooks taken up."""

from functools import partial
from typing import Annotated
from urllib.parse import urlencode

from litestar import Response, Router, get, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, FromQuery, QueryParameter
from litestar.response import Redirect

from app.access.access_log import list_access
from app.access.callers import Caller
from app.http.access import UNLOGGED
from app.http.console import formatting, live, login, refused
from app.http.console.history import bubbles_of, first_since, page_around, page_of
from app.http.console.login import checked_form, signed_in
from app.http.console.pages import ASSETS, asset, page
from app.http.guard import AUDIT, REACHED, READ, caller_of
from app.http.request import Call, services_of
from app.operations.deliveries import Stopped
from app.operations.deliveries import resume as take_up
from app.operations.services import Services, views_reach
from app.operations.status import read_status
from app.problems import ProblemError
from app.views import conversations
from app.views.conversations import customers, get_conversation, list_conversations
from app.views.deliveries import list_deliveries
from app.views.events import Filter, ledger_head, list_events
from app.views.hidden import without_deleted
from app.views.messages import get_deleted, get_message
from app.views.status import CONNECTIONS_SHOWN, list_channels, view_status
from projections.events import TAGS

# Chosen, all of them: what fits a page or two and is drawn within some milliseconds.
CHATS = 30
BUBBLES_MAX = 50
ROWS = 50
Position = Annotated[int | None, QueryParameter(ge=0, le=2**53)]
CACHE = {"Cache-Control": "public, max-age=31536000, immutable", "X-Content-Type-Options": "nosniff"}


@get("/static/{name:str}", include_in_schema=False, sync_to_thread=False)
def static(name: FromPath[str]) -> Response[bytes]:
    """Our style sheet and scripts, and htmx from its wheel; an address always has the same content."""
    if name not in ASSETS:
        raise ProblemError(404, "no such file")
    media_type, content, _ = asset(name)
    return Response(content, media_type=media_type, headers=CACHE)


@get("/", opt=READ | REACHED)
async def home(request: Call) -> Response[str] | Redirect:
    """The list of chats, with none open."""
    position = _position(request)
    listed = await _chats(request)
    return page(
        request,
        "chat.html",
        {"here": "chats", "position": position, "chat": None, "customer": None, **listed},
    )


@get("/conversations/{conversation:str}", opt=READ)
async def chat(
    request: Call,
    conversation: FromPath[str],
    message_: Annotated[str | None, QueryParameter(name="message")] = None,
    day: FromQuery[str | None] = None,
) -> Response[str] | Redirect:
    """A chat's latest messages, or those around a message or from a day on, beside the list of chats."""
    position = _position(request)
    found = await _conversation(request, conversation)
    if found.id != conversation:
        query = urlencode([*request.query_params.multi_items()])
        return Redirect(f"/conversations/{found.id}" + (f"?{query}" if query else ""), status_code=303)
    services = services_of(request)
    start = await _start(services, found.id, message_, day)
    known = await customers(services.pool, [found.id])
    values = {
        **await (page_of(services, found.id) if start is None else page_around(services, found.id, start)),
        **await _chats(request),
        "here": "chats",
        "position": position,
        "chat": found,
        "chat_name": formatting.name(found, known.get(found.id)),
        "customer": known.get(found.id),
        "current": found.id,
    }
    return page(request, "chat.html", values)


@get("/fragments/conversations", opt=READ | REACHED)
async def chats_fragment(request: Call) -> Response[str]:
    """A page of the list of chats."""
    return page(
        request, "_chats.html", {**await _chats(request), "current": request.query_params.get("open")}
    )


@get("/fragments/conversations/{conversation:str}/head", opt=READ)
async def head_fragment(request: Call, conversation: FromPath[str]) -> Response[str]:
    """The head of a chat: the customer and the ids."""
    found = await _conversation(request, conversation)
    known = await customers(services_of(request).pool, [found.id])
    customer = known.get(found.id)
    name = formatting.name(found, customer)
    return page(request, "_head.html", {"chat": found, "chat_name": name, "customer": customer})


@get("/fragments/conversations/{conversation:str}/messages", opt=READ)
async def messages_fragment(
    request: Call,
    conversation: FromPath[str],
    before: Position = None,
    after: Position = None,
) -> Response[str]:
    """The messages before a position, or after one."""
    found = await _conversation(request, conversation)
    drawn = await page_of(services_of(request), found.id, before=before, after=after)
    values = {"chat": found, **drawn}
    return page(request, "_messages.html", values)


@get("/fragments/conversations/{conversation:str}/bubbles", opt=READ)
async def bubbles_fragment(
    request: Call, conversation: FromPath[str], ids: FromQuery[str] = ""
) -> Response[str]:
    """Some messages as they are now; one that is gone, or belongs to another chat, is left out."""
    services = services_of(request)
    wanted = [one for one in ids.split(",") if one][:BUBBLES_MAX]
    found = [message for one in wanted if (message := await get_message(services.pool, one))]
    chat_id = (await _conversation(request, conversation)).id
    found = [one for one in found if one.conversation == chat_id]
    drawn = await bubbles_of(services, chat_id, list(found), alone=True)
    return page(request, "_bubbles.html", {"bubbles": drawn})


@get("/messages/{message:str}", opt=READ)
async def message(request: Call, message: FromPath[str]) -> Response[str] | Redirect:
    """A message, and everything that happened to it."""
    services = services_of(request)
    found = await get_message(services.pool, message)
    if found is None:
        raise ProblemError(404, "no message has this id")
    if found.id != message:
        return Redirect(f"/messages/{found.id}", status_code=303)
    (bubble,) = await bubbles_of(services, found.conversation, [found])
    sees_deleted = caller_of(request).may("audit")
    values = {
        "here": "chats",
        "message": found,
        "bubble": bubble,
        "deleted": await get_deleted(services.pool, found.id) if found.deleted and sees_deleted else None,
        "hops": formatting.hops(found),
        "since": formatting.since_previous(found),
    }
    return page(request, "message.html", values)


@get("/deliveries", opt=READ | REACHED)
async def deliveries(request: Call, cursor: FromQuery[str | None] = None) -> Response[str]:
    """Pending deliveries, and why they are pending."""
    services = services_of(request)
    state = _of(request, "state", ("pending", "deferred", "parked", "failed"))
    states = [state] if state else []
    listed = await list_deliveries(
        services.pool,
        states=states,
        accounts=caller_of(request).limited_to,
        limit=ROWS,
        cursor=cursor or None,
    )
    standing = await view_status(services.pool)
    template = "_deliveries.html" if "hx-request" in request.headers else "deliveries.html"
    resumed = request.query_params.get("resumed", "")
    values = {
        "here": "deliveries",
        "listed": listed,
        "counts": standing.deliveries if caller_of(request).accounts is None else None,
        "state": state,
        "cursor": cursor,
        "resumed": resumed if resumed.isdigit() else "",
    }
    return page(request, template, values)


@post("/deliveries/resume")
async def resume(request: Call) -> Redirect:
    """Resume parked or failed deliveries: one conversation's, or all."""
    fields = await checked_form(request)
    states: list[Stopped] = ["failed"] if fields.get("state") == "failed" else ["parked"]
    conversation = fields.get("conversation") or None
    count, position = await take_up(services_of(request), states, conversation=conversation)
    await views_reach(services_of(request), position)
    return Redirect(f"/deliveries?resumed={count}", status_code=303)


@get("/channels", opt=READ)
async def channels(request: Call) -> Response[str]:
    """The registered channels and their connections."""
    listed = await list_channels(services_of(request).pool)
    shown = {"here": "channels", "channels": listed, "most": CONNECTIONS_SHOWN}
    return page(request, "channels.html", shown)


@get("/access", opt=AUDIT | REACHED)
async def access(request: Call, cursor: FromQuery[str | None] = None) -> Response[str]:
    """Who looked, the latest first."""
    filters = {name: request.query_params.get(name, "").strip() for name in ("key", "account_id")}
    listed = await list_access(
        services_of(request).pool,
        key=filters["key"] or None,
        account_id=filters["account_id"] or None,
        accounts=caller_of(request).limited_to,
        limit=ROWS,
        cursor=cursor or None,
    )
    return page(request, "access.html", {"here": "access", "listed": listed, "filters": filters})


@get("/status", opt=READ | UNLOGGED)
async def status(request: Call) -> Response[str]:
    """Where everything stands."""
    standing = await read_status(services_of(request))
    template = "_status.html" if "hx-request" in request.headers else "status.html"
    return page(request, template, {"here": "status", "standing": standing})


@get("/events", opt=READ | REACHED)
async def events(request: Call) -> Response[str]:
    """The ledger, a page at a time, the latest on top."""
    services = services_of(request)
    kind = _of(request, "type", TAGS)
    conversation = request.query_params.get("conversation") or None
    filtered = kind is not None or conversation is not None
    head = await ledger_head(services.pool)
    after = request.query_params.get("after", "")
    after = after if live.POSITION.fullmatch(after) else ""
    start = int(after) if after else 0 if filtered else max(0, head - ROWS)
    only = Filter(type=kind, conversation=conversation, accounts=caller_of(request).limited_to)
    listed = await list_events(services.pool, after=start, limit=ROWS, only=only)
    values = {
        "here": "events",
        "events": list(reversed(await without_deleted(services.pool, listed.items))),
        "tags": sorted(TAGS),
        "kind": kind,
        "conversation": conversation,
        "head": head,
        "after": after,
        "newer": listed.next,
        "older": max(0, start - ROWS) if start and not filtered else None,
    }
    return page(request, "events.html", values)


def _position(request: Call) -> int:
    """A position that the views have reached: read first, so that the live stream misses nothing."""
    return services_of(request).projector.position


def _of(request: Call, name: str, allowed: tuple[str, ...]) -> str | None:
    value = request.query_params.get(name)
    return value if value in allowed else None


async def _conversation(request: Call, conversation: str) -> conversations.Conversation:
    found = await get_conversation(services_of(request).pool, conversation)
    if found is None:
        raise ProblemError(404, "no conversation has this id")
    return found


async def _start(services: Services, chat_id: str, message: str | None, day: str | None) -> int | None:
    """The position that a page of a chat begins around: a message's, or a day's; None for the latest."""
    if message is not None:
        found = await get_message(services.pool, message)
        if found is None or found.conversation != chat_id:
            raise ProblemError(404, "this chat has no message with this id")
        return found.position
    return await first_since(services, chat_id, day) if day else None


async def _chats(request: Call) -> dict[str, object]:
    """A page of the list of chats, with its filters."""
    services, caller, query = services_of(request), caller_of(request), request.query_params
    filters = {name: query.get(name, "").strip() for name in ("channel", "account", "q")}
    listed = await _listed(services, caller, filters, query.get("cursor") or None)
    known = await customers(services.pool, [one.id for one in listed.items])
    channels = await list_channels(services.pool, caller.limited_to)
    return {
        "lines": [(one, formatting.name(one, known.get(one.id))) for one in listed.items],
        "next": listed.next,
        "filters": filters,
        "carried": urlencode({name: value for name, value in filters.items() if value}),
        "channels": [one for one in channels if one.connections or caller.accounts is None],
        "most": CONNECTIONS_SHOWN,
        "current": None,
    }


async def _listed(
    services: Services, caller: Caller, filters: dict[str, str], cursor: str | None
) -> conversations.Conversations:
    """Chats that fit; an id is looked up as the messenger's, then as Kommo's, then as ours."""
    reads, wanted = services.pool, filters["q"] or None
    list_some = partial(
        list_conversations,
        reads,
        channel=filters["channel"] or None,
        account_id=filters["account"] or None,
        accounts=caller.limited_to,
        limit=CHATS,
    )
    listed = await list_some(conversation_id=wanted, cursor=cursor)
    if wanted is None or listed.items or cursor:
        return listed
    listed = await list_some(chat_id=wanted)
    if listed.items:
        return listed
    found = await get_conversation(reads, wanted)
    return conversations.Conversations([found] if found and caller.reaches(found.account_id) else [], None)


ROUTER = Router(
    "/",
    route_handlers=[
        home,
        chat,
        chats_fragment,
        head_fragment,
        messages_fragment,
        bubbles_fragment,
        message,
        deliveries,
        resume,
        channels,
        *refused.routes,
        access,
        status,
        events,
        live.live,
    ],
    before_request=signed_in,
    include_in_schema=False,
)
routes: list[HTTPRouteHandler | Router] = [static, *login.routes, ROUTER]
