"""Sending by API: a chat before its first message, messages to the customer, and what became of them."""

from typing import Annotated, Literal

import msgspec
from litestar import Response, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, JSONBody
from msgspec import Meta, Struct

from app import clock
from app.channels.directory import Connection
from app.config.file import Uuid
from app.http.openapi.responses import answers
from app.ledger.writer import EventTooLarge, Recorded
from app.messengers import checks
from app.messengers.checks import ActionRefused
from app.messengers.contract import Moment, Name, Source, Url, Words
from app.operations import channels
from app.operations.sending import NewMessage, _command, _sender, begin, customer_of
from app.operations.services import Call, Services, record, services_of
from app.problems import Fault, ProblemError
from app.views import conversations, messages
from app.views.conversations import get_conversation, list_conversations
from app.views.events import ledger_head
from app.views.messages import get_message
from domain import commands as c
from domain import events as e
from domain import ids
from domain.decide import OwnMessage
from domain.ids import OPERATOR

NOT_CONNECTED = "the channel is not connected to this account: POST /v1/channels/{name}/connections"
OWN = "this is a message of the messenger's own: only messages that we sent have a status"
UNKNOWN_CHAT = "no conversation has this id"
UNKNOWN_MESSAGE = "no message has this id"


class Customer(Struct, frozen=True):
    """A customer, as the messenger calls him; addresses must be downloadable by Kommo."""

    id: Name
    name: Words
    phone: Words | None = None
    email: Words | None = None
    avatar: Url | None = None
    profile_link: Url | None = None


class NewConversation(Struct, frozen=True):
    """A chat to create in Kommo before anybody writes, for example to link it to a contact."""

    channel: Name
    account_id: Uuid
    conversation_id: Name
    user: Customer
    source: Source | None = None


class StatusNow(Struct, frozen=True):
    """How far a message has come; `code` (901..905) and `text` are of a failure."""

    status: Literal["delivered", "read", "failed"]
    code: Annotated[int, Meta(ge=901, le=905)] = 905
    text: Words = ""
    at: Moment | None = None


class Accepted(Struct, frozen=True):
    """What became of it: our id of the message, and the position of the event."""

    id: str
    position: int
    duplicate: bool


@post(
    "/conversations",
    status_code=201,
    summary="Create a chat before any message",
    tags=["sending"],
    responses=answers(404, 502, also={200: conversations.Conversation}),
)
async def create(request: Call, data: JSONBody[NewConversation]) -> Response[conversations.Conversation]:
    """201 with the conversation, 200 if it was there; 502 with Kommo's answer if it refuses."""
    services = services_of(request)
    _check(data)
    channel = await channels.named(services, data.channel)
    connection = channels.connected(channel, data.account_id.lower())
    user = msgspec.convert(data.user, e.Party, from_attributes=True)
    source = data.source.external_id if data.source else None
    chat_id, recorded = await begin(services, channel, connection, data.conversation_id, user, source)
    await services.views_reach(max(recorded.position or 0, recorded.last or 0))
    found = await _shown(services, channel.name, connection, data.conversation_id, chat_id)
    return Response(found, status_code=200 if recorded.duplicate else 201, headers=_position(recorded))


@post(
    "/conversations/{conversation:str}/messages",
    status_code=202,
    summary="Send a message to the customer",
    tags=["sending"],
    responses=answers(409, said={404: UNKNOWN_CHAT}, also={200: Accepted}),
)
async def send(request: Call, conversation: FromPath[str], data: JSONBody[NewMessage]) -> Response[Accepted]:
    """202 when it is durable, 200 for a repeat; the messenger gets it, and Kommo shows it without a sound."""
    services = services_of(request)
    _check(data)
    chat = await get_conversation(services.pool, conversation)
    if chat is None:
        raise ProblemError(404, UNKNOWN_CHAT)
    channel = await channels.named(services, chat.channel)
    connection = channel.connections.get(chat.account_id or "")
    if connection is None or not connection.connected:
        raise ProblemError(409, NOT_CONNECTED)
    sender = _sender(channel, data.sender)
    receiver = await customer_of(services, chat.id, data.receiver)
    command = _command(connection, chat, data, sender, receiver)
    try:
        recorded = await record(services, command)
    except EventTooLarge:
        raise ProblemError(400, "the event would be over 384 KB: send less") from None
    if recorded.conflict:
        position = recorded.position
        detail = f"this message_id is recorded with other content at position {position}, which stands"
        raise ProblemError(409, detail, position=position)
    return _taken(command.stream, recorded, 202)


@post(
    "/messages/{message:str}/status",
    status_code=200,
    summary="Tell how far a message has come",
    tags=["sending"],
    responses=answers(said={404: UNKNOWN_MESSAGE}),
)
async def confirm(request: Call, message: FromPath[str], data: JSONBody[StatusNow]) -> Response[Accepted]:
    """For messengers without webhooks: as their action `message.delivered`, `read` or `failed`."""
    services = services_of(request)
    _check(data)
    found = await _message(services, message)
    where = await _where(services, found)
    now = clock.now_ms()
    at = clock.milliseconds(data.at) if data.at else now
    failed = data.status == "failed"
    command = c.Confirm(
        **clock.stamp(where, found.conversation, OPERATOR, now=now, at=at),
        stream=found.id,
        status=data.status,
        code=data.code if failed else 0,
        text=data.text if failed else "",
    )
    try:
        recorded = await record(services, command)
    except OwnMessage:
        raise ProblemError(400, OWN) from None
    return _taken(found.id, recorded, 200)


def _check(data: NewConversation | NewMessage | StatusNow) -> None:
    """What types alone cannot say; raises ProblemError (400)."""
    try:
        checks.refuse_nul(msgspec.to_builtins(data), "$")
        if isinstance(data, NewConversation):
            checks.check_printable(data.conversation_id, "$.conversation_id")
            checks.check_printable(data.user.id, "$.user.id")
            return
        if data.at:
            checks.check_moment(data.at)
        if isinstance(data, NewMessage):
            checks.check_printable(data.message_id, "$.message_id")
            checks.check_message(data.message)
    except ActionRefused as error:
        fault = Fault(error.path, error.message)
        raise ProblemError(400, f"{error.path}: {error.message}", errors=[fault]) from None


async def _shown(
    services: Services, channel: str, connection: Connection, conversation_id: str, chat_id: str
) -> conversations.Conversation:
    """The conversation by either name: one that was merged goes by the first that each side gave."""
    account = connection.scope.account
    for names in ({"conversation_id": conversation_id}, {"chat_id": chat_id}):
        page = await list_conversations(services.pool, channel=channel, account_id=account, limit=1, **names)
        if page.items:
            return page.items[0]
    raise ProblemError(503, "the views do not show the conversation yet: ask again", retry_after=1)


async def _message(services: Services, message: str) -> messages.History:
    """The message, once the views have it; raises ProblemError (404)."""
    found = await get_message(services.pool, message)
    if found is None:
        await services.views_reach(await ledger_head(services.pool))
        found = await get_message(services.pool, message)
    if found is None:
        raise ProblemError(404, UNKNOWN_MESSAGE)
    return found


async def _where(services: Services, found: messages.History) -> ids.Scope:
    channel = await channels.named(services, found.channel)
    return ids.scope_of(found.channel, channel.channel_id, found.account_id or "")


def _taken(message: str, recorded: Recorded, status: int) -> Response[Accepted]:
    taken = Accepted(message, recorded.position or 0, recorded.duplicate)
    return Response(taken, status_code=200 if recorded.duplicate else status, headers=_position(recorded))


def _position(recorded: Recorded) -> dict[str, str]:
    return {"Ledger-Position": str(max(recorded.position or 0, recorded.last or 0))}


routes: list[HTTPRouteHandler] = [create, send, confirm]
