"""DOC"""

import msgspec
from msgspec import Struct

from app import clock
from app.channels.directory import Channel, Connection
from app.config.file import Uuid
from app.http_client import Unreached
from app.kommo.chats.signature import Credentials
from app.ledger.writer import Recorded
from app.messengers import commands
from app.messengers.contract import Message, Moment, Name, Source, Words
from app.operations.services import Services, record
from app.problems import ProblemError
from app.views import conversations
from app.views.events import Filter, list_events
from domain import commands as c
from domain import events as e
from domain import ids
from domain.ids import KOMMO, MESSENGER, OPERATOR

NO_BOT = (
    "the channel has no bot to send as: name a manager (sender.user_id, his amojo id), or give the channel "
    "its bot with PUT /v1/channels/{name}, kommo.bot_id"
)
NO_CUSTOMER = (
    "the messenger's name of the customer is not known, for he has not written yet: give it as receiver, "
    "with id and name, or create the conversation with POST /v1/conversations"
)
# The customer as the messenger calls him: who wrote last, else whom somebody wrote to.
CUSTOMER = """
SELECT m.outgoing, m.sent_by, m.sender, m.receiver FROM (
  SELECT outgoing, sent_by, sender, receiver, position FROM messages WHERE conversation = %(id)s::uuid
  ORDER BY position DESC LIMIT 50) AS m ORDER BY m.outgoing, m.sent_by = 'kommo', m.position DESC LIMIT 1
"""
_party = msgspec.json.Decoder(e.Party).decode


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


async def begin(
    services: Services,
    channel: Channel,
    connection: Connection,
    conversation_id: str,
    user: e.Party,
    source: str | None = None,
) -> tuple[str, Recorded]:
    """Kommo's id of a conversation's chat, which it makes if there is none, and the record of both names.

    `user` is the customer as the messenger calls him. Raises ProblemError (502, 503).
    """
    scope = connection.scope
    who = Credentials(channel.channel_id, channel.secrets.kommo)
    chat_id, user_id = await _chat_of(services, who, scope.scope_id, conversation_id, user, source)
    own = ids.conversation_id(scope, MESSENGER, conversation_id)
    theirs = ids.conversation_id(scope, KOMMO, chat_id)
    command = c.Begin(
        **clock.stamp(scope, own, OPERATOR, now=clock.now_ms()),
        ends=(
            c.End("messenger", own, e.Ends(conversation_id=conversation_id)),
            c.End("kommo", theirs, e.Ends(chat_id=chat_id)),
        ),
        receiver=msgspec.structs.replace(user, ref_id=user_id),
    )
    return chat_id, await record(services, command)


async def _chat_of(
    services: Services,
    who: Credentials,
    scope_id: str,
    conversation_id: str,
    user: e.Party,
    source: str | None,
) -> tuple[str, str | None]:
    """Kommo's ids of the chat and of the customer; raises ProblemError (502)."""
    try:
        answer = await services.kommo.new_chat(who, scope_id, conversation_id, user, source)
    except Unreached as error:
        raise ProblemError(502, f"Kommo could not be reached ({error.reason}); nothing is recorded") from None
    told = answer.json()
    chat_id, person = told.get("id"), told.get("user")
    if answer.html or answer.status != 200 or not isinstance(chat_id, str) or not chat_id:
        said = answer.text or "no reason given"
        raise ProblemError(502, f"Kommo answered HTTP {answer.status}: {said}; nothing is recorded")
    user_id = person.get("id") if isinstance(person, dict) else None
    return chat_id, user_id if isinstance(user_id, str) else None


def _sender(channel: Channel, told: AuthorTold | None) -> e.Party:
    """Who sends, as Kommo knows them: the manager, else the channel's bot."""
    if told is not None:
        return e.Party(id=told.user_id, name=told.name, ref_id=told.user_id)
    if channel.bot_id is None:
        raise ProblemError(409, NO_BOT)
    return e.Party(id=channel.bot_id, name="Bot", ref_id=channel.bot_id)


class _Row(Struct):
    outgoing: bool
    sent_by: str
    sender: bytes
    receiver: bytes | None


async def customer_of(services: Services, conversation: str, told: Receiver | None = None) -> e.Party:
    """The customer as the messenger calls him, `told` or known; raises ProblemError (409)."""
    if told is not None:
        return e.Party(id=told.id, name=told.name, phone=told.phone)
    rows = await services.pool.fetch(_Row, CUSTOMER, {"id": conversation})
    for row in rows:
        raw = row.receiver if row.outgoing else row.sender
        known = _party(raw) if raw else e.Party()
        if named := _by_messenger(known, kommo=row.sent_by == "kommo"):
            return named
    only = Filter(type="conversation.started", conversation=conversation)
    for stored in (await list_events(services.pool, only=only)).items:
        event = e.decode(bytes(stored.event))
        if isinstance(event, e.ConversationStarted) and event.receiver:
            named = _by_messenger(event.receiver, kommo=event.side == "kommo")
            if named:
                return named
    raise ProblemError(409, NO_CUSTOMER)


def _by_messenger(party: e.Party, *, kommo: bool) -> e.Party | None:
    """The same with the messenger's id alone: Kommo gives its own beside that."""
    name = party.client_id if kommo else party.id
    return e.Party(id=name, name=party.name, phone=party.phone) if name else None


def _command(
    connection: Connection,
    chat: conversations.Conversation,
    data: NewMessage,
    sender: e.Party,
    receiver: e.Party,
) -> c.Send:
    scope, now = connection.scope, clock.now_ms()
    at = clock.milliseconds(data.at) if data.at else now
    reply = data.reply_to.id.lower() if data.reply_to else None
    return c.Send(
        **clock.stamp(scope, chat.id, OPERATOR, now=now, at=at),
        stream=ids.message_id(scope, OPERATOR, data.message_id),
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
