"""Sending by API: a chat before its first message, messages to the customer, and what became of them."""

from typing import Annotated, Literal

import msgspec
from litestar import Response, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, JSONBody
from msgspec import Meta, Struct

from app import clock, shapes
from app.channels.directory import Channel, Connection
from app.config.file import Uuid
from app.http.openapi.responses import answers
from app.http_client import Unreached
from app.kommo.chats.client import Credentials
from app.ledger.writer import Recorded, TooLarge
from app.messengers import commands
from app.messengers.commands import BadAction
from app.messengers.contract import Message, Moment, Name, Source, Url, Words
from app.operations import channels
from app.operations.services import Call, Services, services_of
from app.problems import Fault, Wrong
from app.views.cursor import Filter
from domain import commands as c
from domain import events as e
from domain import ids
from domain.decide import OwnMessage
from domain.ids import KOMMO, MESSENGER, OPERATOR

NO_BOT = (
    "the channel has no bot to send as: name a manager (sender.user_id, his amojo id), or give the channel "
    "its bot with PUT /v1/channels/{name}, kommo.bot_id"
)
NO_CUSTOMER = (
    "the messenger's name of the customer is not known, for he has not written yet: give it as receiver, "
    "with id and name, or create the conversation with POST /v1/conversations"
)
NOT_CONNECTED = "the channel is not connected to this account: POST /v1/channels/{name}/connections"
OWN = "this is a message of the messenger's own: only messages that we sent have a status"
UNKNOWN_CHAT = "no conversation has this id"
UNKNOWN_MESSAGE = "no message has this id"

# The customer as the messenger calls him: who wrote last, else whom somebody wrote to.
CUSTOMER = """
SELECT m.outgoing, m.sent_by, m.sender, m.receiver FROM (
  SELECT outgoing, sent_by, sender, receiver, position FROM messages WHERE conversation = %(id)s::uuid
  ORDER BY position DESC LIMIT 50) AS m ORDER BY m.outgoing, m.sent_by = 'kommo', m.position DESC LIMIT 1
"""
_party = msgspec.json.Decoder(e.Party).decode


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


class AuthorTold(Struct, frozen=True):
    """A manager, by the amojo id that Kommo gives users; the name is shown in Kommo."""

    user_id: Name
    name: Words | None = None


class Receiver(Struct, frozen=True):
    """The customer, where he is not known yet."""

    id: Name
    name: Words | None = None
    phone: Words | None = None


class Answered(Struct, frozen=True):
    """Our id of the message that is answered."""

    id: Uuid


class NewMessage(Struct, frozen=True):
    """A message to the customer; `message_id` is the caller's own, and makes a repeat harmless."""

    message_id: Name
    message: Message
    at: Moment | None = None
    sender: AuthorTold | None = None
    receiver: Receiver | None = None
    reply_to: Answered | None = None
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
    responses=answers(404, 502, also={200: shapes.Conversation}),
)
async def create(request: Call, data: JSONBody[NewConversation]) -> Response[shapes.Conversation]:
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
    chat = await services.reads.get_conversation(conversation)
    if chat is None:
        raise Wrong(404, UNKNOWN_CHAT)
    channel = await channels.named(services, chat.channel)
    connection = channel.connections.get(chat.account_id or "")
    if connection is None or not connection.connected:
        raise Wrong(409, NOT_CONNECTED)
    sender = _sender(channel, data.sender)
    receiver = await customer_of(services, chat.id, data.receiver)
    command = _command(connection, chat, data, sender, receiver)
    try:
        recorded = await channels.record(services, command)
    except TooLarge:
        raise Wrong(400, "the event would be over 384 KB: send less") from None
    if recorded.conflict:
        position = recorded.position
        detail = f"this message_id is recorded with other content at position {position}, which stands"
        raise Wrong(409, detail, position=position)
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
        recorded = await channels.record(services, command)
    except OwnMessage:
        raise Wrong(400, OWN) from None
    return _taken(found.id, recorded, 200)


def _check(data: NewConversation | NewMessage | StatusNow) -> None:
    """What types alone cannot say; raises Wrong (400)."""
    try:
        commands.refuse_nul(msgspec.to_builtins(data), "$")
        if isinstance(data, NewConversation):
            commands.check_printable(data.conversation_id, "$.conversation_id")
            commands.check_printable(data.user.id, "$.user.id")
            return
        if data.at:
            commands.check_moment(data.at)
        if isinstance(data, NewMessage):
            commands.check_printable(data.message_id, "$.message_id")
            commands.check_message(data.message)
    except BadAction as error:
        fault = Fault(error.path, error.message)
        raise Wrong(400, f"{error.path}: {error.message}", errors=[fault]) from None


async def begin(
    services: Services,
    channel: Channel,
    connection: Connection,
    conversation_id: str,
    user: e.Party,
    source: str | None = None,
) -> tuple[str, Recorded]:
    """Kommo's id of a conversation's chat, which it makes if there is none, and the record of both names.

    `user` is the customer as the messenger calls him. Raises Wrong (502, 503).
    """
    where = connection.link
    who = Credentials(channel.channel_id, channel.secrets.kommo)
    chat_id, user_id = await _chat_of(services, who, where.scope_id, conversation_id, user, source)
    own = ids.conversation_id(where, MESSENGER, conversation_id)
    theirs = ids.conversation_id(where, KOMMO, chat_id)
    command = c.Begin(
        **clock.stamp(where, own, OPERATOR, now=clock.now_ms()),
        ends=(
            c.End("messenger", own, e.Ends(conversation_id=conversation_id)),
            c.End("kommo", theirs, e.Ends(chat_id=chat_id)),
        ),
        receiver=msgspec.structs.replace(user, ref_id=user_id),
    )
    return chat_id, await channels.record(services, command)


async def _chat_of(
    services: Services,
    who: Credentials,
    scope_id: str,
    conversation_id: str,
    user: e.Party,
    source: str | None,
) -> tuple[str, str | None]:
    """Kommo's ids of the chat and of the customer; raises Wrong (502)."""
    try:
        answer = await services.kommo.new_chat(who, scope_id, conversation_id, user, source)
    except Unreached as error:
        raise Wrong(502, f"Kommo could not be reached ({error.reason}); nothing is recorded") from None
    told = answer.json()
    chat_id, person = told.get("id"), told.get("user")
    if answer.html or answer.status != 200 or not isinstance(chat_id, str) or not chat_id:
        said = answer.text or "no reason given"
        raise Wrong(502, f"Kommo answered HTTP {answer.status}: {said}; nothing is recorded")
    user_id = person.get("id") if isinstance(person, dict) else None
    return chat_id, user_id if isinstance(user_id, str) else None


async def _shown(
    services: Services, channel: str, connection: Connection, conversation_id: str, chat_id: str
) -> shapes.Conversation:
    """The conversation by either name: one that was merged goes by the first that each side gave."""
    account = connection.link.account
    for names in ({"conversation_id": conversation_id}, {"chat_id": chat_id}):
        page = await services.reads.list_conversations(channel=channel, account_id=account, limit=1, **names)
        if page.items:
            return page.items[0]
    raise Wrong(503, "the views do not show the conversation yet: ask again", retry_after=1)


def _sender(channel: Channel, told: AuthorTold | None) -> e.Party:
    """Who sends, as Kommo knows them: the manager, else the channel's bot."""
    if told is not None:
        return e.Party(id=told.user_id, name=told.name, ref_id=told.user_id)
    if channel.bot_id is None:
        raise Wrong(409, NO_BOT)
    return e.Party(id=channel.bot_id, name="Bot", ref_id=channel.bot_id)


class _Row(Struct):
    outgoing: bool
    sent_by: str
    sender: bytes
    receiver: bytes | None


async def customer_of(services: Services, conversation: str, told: Receiver | None = None) -> e.Party:
    """The customer as the messenger calls him, `told` or known; raises Wrong (409)."""
    if told is not None:
        return e.Party(id=told.id, name=told.name, phone=told.phone)
    rows = await services.pool.fetch(_Row, CUSTOMER, {"id": conversation})
    for row in rows:
        raw = row.receiver if row.outgoing else row.sender
        known = _party(raw) if raw else e.Party()
        if named := _by_messenger(known, kommo=row.sent_by == "kommo"):
            return named
    only = Filter(type="conversation.started", conversation=conversation)
    for stored in (await services.reads.list_events(only=only)).items:
        event = e.decode(bytes(stored.event))
        if isinstance(event, e.ConversationStarted) and event.receiver:
            named = _by_messenger(event.receiver, kommo=event.side == "kommo")
            if named:
                return named
    raise Wrong(409, NO_CUSTOMER)


def _by_messenger(party: e.Party, *, kommo: bool) -> e.Party | None:
    """The same with the messenger's id alone: Kommo gives its own beside that."""
    name = party.client_id if kommo else party.id
    return e.Party(id=name, name=party.name, phone=party.phone) if name else None


def _command(
    connection: Connection,
    chat: shapes.Conversation,
    data: NewMessage,
    sender: e.Party,
    receiver: e.Party,
) -> c.Send:
    where, now = connection.link, clock.now_ms()
    at = clock.milliseconds(data.at) if data.at else now
    reply = data.reply_to.id.lower() if data.reply_to else None
    return c.Send(
        **clock.stamp(where, chat.id, OPERATOR, now=now, at=at),
        stream=ids.message_id(where, OPERATOR, data.message_id),
        side="operator",
        own_id=data.message_id,
        msec=at,
        ends=(c.End("messenger", chat.id, e.Ends(conversation_id=chat.conversation_id)),),
        sender=sender,
        receiver=receiver,
        content=commands.content_of(
            data.message,
            conversation_id=chat.conversation_id,
            reply=e.Reply(reply) if reply else None,
        ),
        reply_stream=reply,
        source=data.source.external_id if data.source else None,
    )


async def _message(services: Services, message: str) -> shapes.History:
    """The message, once the views have it; raises Wrong (404)."""
    found = await services.reads.get_message(message)
    if found is None:
        await services.views_reach(await services.reads.head())
        found = await services.reads.get_message(message)
    if found is None:
        raise Wrong(404, UNKNOWN_MESSAGE)
    return found


async def _where(services: Services, found: shapes.History) -> ids.Link:
    channel = await channels.named(services, found.channel)
    return ids.link(found.channel, channel.channel_id, found.account_id or "")


def _taken(message: str, recorded: Recorded, status: int) -> Response[Accepted]:
    taken = Accepted(message, recorded.position or 0, recorded.duplicate)
    return Response(taken, status_code=200 if recorded.duplicate else status, headers=_position(recorded))


def _position(recorded: Recorded) -> dict[str, str]:
    return {"Ledger-Position": str(max(recorded.position or 0, recorded.last or 0))}


routes: list[HTTPRouteHandler] = [create, send, confirm]
