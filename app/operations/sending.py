"""Messages sent to a customer by API, and their status where the messenger has no webhooks to report it.

A message's id is made of the caller's own `message_id`, so the same request again sends nothing.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from app import clock
from app.channels.directory import Channel, Connection
from app.config.file import Uuid
from app.ledger.writer import Recorded
from app.messengers import checks, commands
from app.messengers.checks import ActionRefused
from app.messengers.contract import Message, Moment, Name, Source, Words
from app.operations import channels, conversations
from app.operations.channels import ConnectionNeeded
from app.operations.errors import InvalidInput, NotFound, StateConflict
from app.operations.services import Services, record, views_reach
from app.views.conversations import Conversation
from app.views.events import ledger_head
from app.views.messages import History, get_message
from domain import commands as c
from domain import events as e
from domain import ids
from domain.ids import OPERATOR

NO_BOT = (
    "the channel has no bot to send as: name a manager (sender.user_id, his amojo id), or give the channel "
    "its bot with PUT /v1/channels/{name}, kommo.bot_id"
)


class UnknownMessage(NotFound):
    """No message has this id."""

    MESSAGE = "no message has this id"


class ContentDiffers(StateConflict):
    """The `message_id` is recorded with other content, at `position`."""

    def __init__(self, position: int | None) -> None:
        message = f"this message_id is recorded with other content at position {position}, which stands"
        super().__init__(message, position=position)


class Manager(Struct, frozen=True):
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
    sender: Manager | None = None
    receiver: Receiver | None = None
    reply_to: Answered | None = None
    source: Source | None = None


class StatusNow(Struct, frozen=True):
    """How far a message has come; `code` (901..905) and `text` are of a failure."""

    status: Literal["delivered", "read", "failed"]
    code: Annotated[int, Meta(ge=901, le=905)] = 905
    text: Words = ""
    at: Moment | None = None


async def send(services: Services, conversation: str, message: NewMessage) -> tuple[str, Recorded]:
    """Record a message to a conversation's customer; returns our id of the message.

    Raises InvalidInput, UnknownConversation, ConnectionNeeded, ContentDiffers, EventTooLarge, LedgerBusy, and
    StateConflict where nobody is known to send as or to.
    """
    _check(message)
    chat = await conversations.known(services, conversation)
    channel = await channels.named(services, chat.channel)
    connection = channel.connections.get(chat.account_id or "")
    if connection is None or not connection.connected:
        raise ConnectionNeeded
    sender = _sender(channel, message.sender)
    receiver = await _receiver(services, chat, message.receiver)
    command = _command(connection, chat, message, sender, receiver)
    recorded = await record(services, command)
    if recorded.conflict:
        raise ContentDiffers(recorded.position)
    return command.stream, recorded


async def confirm(services: Services, message: str, status: StatusNow) -> tuple[str, Recorded]:
    """Record how far a message that we sent has come; returns our id of the message.

    Raises InvalidInput, UnknownMessage, LedgerBusy, and decide.OwnMessage for a message that we did not send.
    """
    _check(status)
    found = await _message(services, message)
    channel = await channels.named(services, found.channel)
    scope = ids.scope_of(found.channel, channel.channel_id, found.account_id or "")
    now = clock.now_ms()
    at = clock.milliseconds(status.at) if status.at else now
    failed = status.status == "failed"
    command = c.Confirm(
        **clock.stamp(scope, found.conversation, OPERATOR, now=now, at=at),
        streams=(found.id,),
        status=status.status,
        code=status.code if failed else 0,
        text=status.text if failed else "",
    )
    return found.id, await record(services, command)


def _check(body: NewMessage | StatusNow) -> None:
    """Check what types cannot express; raises InvalidInput."""
    try:
        checks.refuse_nul(msgspec.to_builtins(body), "$")
        if body.at:
            checks.check_moment(body.at)
        if isinstance(body, NewMessage):
            checks.check_name(body.message_id, "$.message_id")
            checks.check_message(body.message)
    except ActionRefused as error:
        raise InvalidInput.at(error.path, error.message) from None


def _sender(channel: Channel, author: Manager | None) -> e.Party:
    """Who sends, as Kommo knows them: the manager, else the channel's bot."""
    if author is not None:
        return e.Party(id=author.user_id, name=author.name, ref_id=author.user_id)
    if channel.bot_id is None:
        raise StateConflict(NO_BOT)
    return e.Party(id=channel.bot_id, name="Bot", ref_id=channel.bot_id)


async def _receiver(services: Services, chat: Conversation, receiver: Receiver | None) -> e.Party:
    if receiver is None:
        return await conversations.customer_of(services, chat.id)
    return e.Party(id=receiver.id, name=receiver.name, phone=receiver.phone)


def _command(
    connection: Connection, chat: Conversation, message: NewMessage, sender: e.Party, receiver: e.Party
) -> c.Send:
    scope, now = connection.scope, clock.now_ms()
    at = clock.milliseconds(message.at) if message.at else now
    reply = message.reply_to.id.lower() if message.reply_to else None
    return c.Send(
        **clock.stamp(scope, chat.id, OPERATOR, now=now, at=at),
        stream=ids.message_id(scope, OPERATOR, message.message_id),
        side="operator",
        own_id=message.message_id,
        msec=at,
        ends=(c.End("messenger", chat.id, e.Ends(conversation_id=chat.conversation_id)),),
        sender=sender,
        receiver=receiver,
        content=commands.content_of(
            message.message,
            conversation_id=chat.conversation_id,
            reply_to=e.Reply(reply) if reply else None,
        ),
        reply_stream=reply,
        source=message.source.external_id if message.source else None,
    )


async def _message(services: Services, message: str) -> History:
    """The message, once the views have it; raises UnknownMessage."""
    found = await get_message(services.pool, message)
    if found is None:
        await views_reach(services, await ledger_head(services.pool))
        found = await get_message(services.pool, message)
    if found is None:
        raise UnknownMessage
    return found
