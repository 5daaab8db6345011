"""The REST API under `/v1`: history, events and status, each as the ledger or its views have it."""

from typing import Literal

from litestar import Response, get
from litestar.params import FromPath, FromQuery
from litestar.response import Redirect
from litestar.status_codes import HTTP_307_TEMPORARY_REDIRECT

from app.http.api.parameters import AtLeast, Limit, next_link
from app.http.guard import REACHED, READ, caller_of
from app.http.openapi.responses import answers
from app.http.request import Call, services_of
from app.operations.services import views_reach
from app.problems import ProblemError
from app.views.conversations import Conversation, Conversations, get_conversation, list_conversations
from app.views.messages import History, Messages, get_message, list_messages

UNKNOWN = answers(said={404: "no conversation has this id"})


@get(
    "/conversations",
    summary="Conversations, the latest active first",
    tags=["history"],
    opt=READ | REACHED,
)
async def conversations(
    request: Call,
    channel: FromQuery[str | None] = None,
    account_id: FromQuery[str | None] = None,
    conversation_id: FromQuery[str | None] = None,
    chat_id: FromQuery[str | None] = None,
    limit: Limit = 50,
    cursor: FromQuery[str | None] = None,
    at_least: AtLeast = None,
) -> Response[Conversations]:
    """A page of conversations; `next` is the cursor of the next page, or null."""
    services = services_of(request)
    await views_reach(services, at_least, view="conversations")
    page = await list_conversations(
        services.pool,
        channel=channel,
        account_id=account_id,
        conversation_id=conversation_id,
        chat_id=chat_id,
        accounts=caller_of(request).limited_to,
        limit=limit,
        cursor=cursor,
    )
    return Response(page, headers=next_link(request, "cursor", page.next))


@get(
    "/conversations/{conversation:str}",
    summary="One conversation",
    tags=["history"],
    opt=READ,
    responses=UNKNOWN,
)
async def conversation(
    request: Call, conversation: FromPath[str], at_least: AtLeast = None
) -> Conversation | Redirect:
    """The conversation; one that was merged into another redirects there."""
    found = await _conversation(request, conversation, at_least)
    return found if found.id == conversation else _redirect(request, conversation, found.id)


@get(
    "/conversations/{conversation:str}/messages",
    summary="A chat's history",
    tags=["history"],
    opt=READ,
    responses=UNKNOWN,
)
async def messages(
    request: Call,
    conversation: FromPath[str],
    limit: Limit = 50,
    cursor: FromQuery[str | None] = None,
    order: FromQuery[Literal["asc", "desc"]] = "asc",
    at_least: AtLeast = None,
) -> Response[Messages] | Redirect:
    """Messages by position, the oldest first, or the newest with `order=desc`."""
    found = await _conversation(request, conversation, at_least)
    if found.id != conversation:
        return _redirect(request, conversation, found.id)
    services = services_of(request)
    await views_reach(services, at_least, view="messages")
    page = await list_messages(services.pool, conversation, limit=limit, cursor=cursor, order=order)
    page = Messages(await services.users.with_names(page.items), page.next)
    return Response(page, headers=next_link(request, "cursor", page.next))


@get(
    "/messages/{message:str}",
    summary="A message and its timeline",
    tags=["history"],
    opt=READ,
    responses=answers(said={404: "no message has this id"}),
)
async def message(request: Call, message: FromPath[str], at_least: AtLeast = None) -> History:
    """The message as it stands, and every transition with its evidence."""
    services = services_of(request)
    await views_reach(services, at_least, view="messages")
    found = await get_message(services.pool, message)
    if found is None:
        raise ProblemError(404, "no message has this id")
    return (await services.users.with_names([found]))[0]


async def _conversation(request: Call, conversation: str, at_least: int | None) -> Conversation:
    services = services_of(request)
    await views_reach(services, at_least, view="conversations")
    found = await get_conversation(services.pool, conversation)
    if found is None:
        raise ProblemError(404, "no conversation has this id")
    return found


def _redirect(request: Call, old: str, new: str) -> Redirect:
    """To the same path of another conversation: relative, because only the client knows scheme and host."""
    query = request.scope["query_string"].decode("latin-1")
    where = request.url.path.replace(old, new, 1) + (f"?{query}" if query else "")
    return Redirect(where, status_code=HTTP_307_TEMPORARY_REDIRECT)


routes = [
    conversations,
    conversation,
    messages,
    message,
]
