"""Sending by API: a chat before its first message, messages to the customer, and what became of them."""

from litestar import Response, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, JSONBody
from msgspec import Struct

from app.http.api.parameters import ledger_position
from app.http.guard import REACHED, SEND, check_account
from app.http.openapi.responses import answers
from app.http.request import Call, services_of
from app.ledger.writer import Recorded
from app.operations import conversations, sending
from app.operations.conversations import NewConversation, UnknownConversation
from app.operations.sending import NewMessage, StatusNow, UnknownMessage
from app.views.conversations import Conversation


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
    opt=SEND | REACHED,
    responses=answers(404, 502, also={200: Conversation}),
)
async def create(request: Call, data: JSONBody[NewConversation]) -> Response[Conversation]:
    """201 with the conversation, 200 if it was there; 502 with Kommo's answer if it refuses."""
    check_account(request, data.account_id)
    found, recorded = await conversations.create(services_of(request), data)
    status = 200 if recorded.duplicate else 201
    return Response(found, status_code=status, headers=ledger_position(recorded))


@post(
    "/conversations/{conversation:str}/messages",
    status_code=202,
    summary="Send a message to the customer",
    tags=["sending"],
    opt=SEND,
    responses=answers(409, said={404: UnknownConversation.MESSAGE}, also={200: Accepted}),
)
async def send(request: Call, conversation: FromPath[str], data: JSONBody[NewMessage]) -> Response[Accepted]:
    """202 when it is durable, 200 for a repeat; the messenger gets it, and Kommo shows it without a sound."""
    message, recorded = await sending.send(services_of(request), conversation, data)
    return _accepted(message, recorded, 202)


@post(
    "/messages/{message:str}/status",
    status_code=200,
    summary="Tell how far a message has come",
    tags=["sending"],
    opt=SEND,
    responses=answers(said={404: UnknownMessage.MESSAGE}),
)
async def confirm(request: Call, message: FromPath[str], data: JSONBody[StatusNow]) -> Response[Accepted]:
    """For messengers without webhooks: as their action `message.delivered`, `read` or `failed`."""
    message, recorded = await sending.confirm(services_of(request), message, data)
    return _accepted(message, recorded, 200)


def _accepted(message: str, recorded: Recorded, status: int) -> Response[Accepted]:
    accepted = Accepted(message, recorded.position or 0, recorded.duplicate)
    status = 200 if recorded.duplicate else status
    return Response(accepted, status_code=status, headers=ledger_position(recorded))


routes: list[HTTPRouteHandler] = [create, send, confirm]
