"""What a messenger says, checked against the contract, becomes commands; nothing else gets past here."""

from datetime import UTC
from typing import NamedTuple

import msgspec

from app import clock
from app.limits import STATUS_CODES
from app.messengers.checks import ActionRefused
from app.messengers.contract import (
    STATUSES,
    Action,
    Deleted,
    Delivered,
    Edited,
    Failed,
    Forward,
    Forwards,
    Message,
    Reaction,
    ReactionAdded,
    ReactionRemoved,
    Read,
    ReplyTo,
    Sender,
    Sent,
    Status,
    StatusTold,
    Typing,
)
from domain import commands as c
from domain import events as e
from domain import ids
from domain.ids import MESSENGER, Scope

NO_BOT = "name the manager who wrote (user_id), or give the channel its bot: PUT /v1/channels, kommo.bot_id"
QUOTED_FIELDS = ("file_name", "file_size", "media_duration")


def command(
    scope: Scope, action: Action, *, bot_id: str | None = None, imported: bool = False
) -> c.AnyCommand:
    """The command that an action asks for, on a link; raises ActionRefused.

    `bot_id` is the channel's: in its name Kommo takes what the business wrote on its phone, unless the action
    names a manager. `imported`: the message was written before the channel was connected.
    """
    now = clock.now_ms()
    at = clock.milliseconds(action.at.astimezone(UTC))
    stream = ids.conversation_id(scope, MESSENGER, action.conversation_id)
    given = clock.stamp(scope, stream, MESSENGER, now=now, at=at)
    end = c.End("messenger", stream, e.Ends(conversation_id=action.conversation_id))
    match action:
        case Sent():
            return _send(scope, action, given, end, Imported(at, bot_id, imported))
        case Edited():
            return c.Edit(
                **given,
                stream=_own(scope, action.message_id),
                content=content_of(action.message, conversation_id=action.conversation_id),
                delivery_status=_told(action.delivery_status),
            )
        case Deleted():
            return c.Delete(**given, stream=_own(scope, action.message_id))
        case Delivered() | Read():
            return c.Confirm(**given, stream=_named(scope, action), status=STATUSES[type(action)])
        case Failed():
            named = _named(scope, action)
            return c.Confirm(**given, stream=named, status="failed", code=action.code, text=action.text)
        case ReactionAdded() | ReactionRemoved():
            return c.React(
                **given,
                streams=(_named(scope, action),),
                side="messenger",
                sender=e.Party(id=action.sender.id, name=action.sender.name, ref_id=action.sender.user_id),
                emoji=action.emoji,
                removed=isinstance(action, ReactionRemoved),
            )
        case Typing():
            return c.Type(
                **given,
                stream=ids.typing_id(scope, stream, action.sender.id, at),
                side="messenger",
                at_ms=at,
                ends=(end,),
                sender=e.Party(id=action.sender.id, name=action.sender.name),
                expires_at=clock.text(at + (action.duration_ms or ids.TYPING_WINDOW_MS)),
                duration_ms=action.duration_ms,
            )


class Imported(NamedTuple):
    """When a message was written (unix milliseconds), and what else its action does not say."""

    at: int
    bot_id: str | None
    imported: bool


def _send(scope: Scope, action: Sent, given: c.Stamp, end: c.End, more: Imported) -> c.Send:
    reply, forwards = action.reply_to, action.forwards
    forwarded = forwards.messages[0].message_id if forwards else None
    outgoing = action.direction == "out"
    sender = party(action.sender)
    if outgoing:
        sender = msgspec.structs.replace(sender, ref_id=action.sender.user_id or more.bot_id)
        if sender.ref_id is None:
            raise ActionRefused("$.sender.user_id", NO_BOT)
    content = content_of(
        action.message,
        conversation_id=action.conversation_id,
        reply=e.Reply(reply.message_id, quoted=_quoted(reply)) if reply else None,
        forwards=_forwards(forwards) if forwards else None,
        forwarded=e.Reply(forwarded) if forwarded else None,
    )
    return c.Send(
        **given,
        stream=_own(scope, action.message_id),
        side="messenger",
        own_id=action.message_id,
        msec=more.at,
        ends=(end,),
        sender=sender,
        receiver=party(action.receiver) if action.receiver and outgoing else None,
        content=content,
        reply_stream=_own(scope, reply.message_id) if reply else None,
        forward_stream=_own(scope, forwarded) if forwarded else None,
        source=action.source.external_id if action.source else None,
        silent=action.silent,
        direction=action.direction,
        imported=more.imported,
    )


def party(who: Sender) -> e.Party:
    """Somebody as events name them; whom a manager stands behind is told apart."""
    return e.Party(who.id, who.name, who.phone, who.email, who.avatar, who.profile_link)


def _told(told: StatusTold | None) -> e.DeliveryStatus | None:
    """How far an edited message has come, with Kommo's codes."""
    if told is None:
        return None
    if told.status != "failed":
        return e.DeliveryStatus(STATUS_CODES[told.status])
    return e.DeliveryStatus(STATUS_CODES[told.status], told.code, told.text or "not delivered")


def _quoted(quote: ReplyTo | Forward) -> e.Json | None:
    """A quoted message told whole, as Kommo embeds one."""
    message, sender, at = quote.message, quote.sender, quote.at
    if message is None or sender is None or at is None:
        return None
    moment = clock.milliseconds(at)
    told: e.Json = {"type": message.type, "text": message.text or ""}
    told |= {"timestamp": moment // 1000, "msec_timestamp": moment}
    names = {"id": sender.id, "ref_id": sender.user_id, "name": sender.name}
    told["sender"] = {name: value for name, value in names.items() if value is not None}
    told |= {name: value for name in QUOTED_FIELDS if (value := getattr(message, name)) is not None}
    if message.location:
        told["location"] = msgspec.to_builtins(message.location)
    if message.contact:
        told["contact"] = msgspec.to_builtins(message.contact)
    return told


def _forwards(forwards: Forwards) -> e.Json:
    (forward,) = forwards.messages
    told: e.Json = {"messages": [_quoted(forward) or {"message_id": forward.message_id}]}
    return told | ({"conversation_id": forwards.conversation_id} if forwards.conversation_id else {})


def content_of(
    message: Message,
    *,
    conversation_id: str | None,
    reply: e.Reply | None = None,
    forwards: e.Json | None = None,
    forwarded: e.Reply | None = None,
) -> e.Content:
    """A message's content as events hold it."""
    place, contact = message.location, message.contact
    return e.Content(
        type=message.type,
        text=message.text,
        media=message.media,
        file_name=message.file_name,
        file_size=message.file_size,
        media_duration=message.media_duration,
        sticker_id=message.sticker_id,
        location=e.Location(place.lon, place.lat) if place else None,
        contact=e.Contact(contact.name, contact.phone) if contact else None,
        callback_data=message.callback_data,
        shared_post=message.shared_post,
        post=msgspec.to_builtins(message.post) if message.post else None,
        reply_to=reply,
        forwards=forwards,
        conversation_id=conversation_id,
        forwarded=forwarded,
    )


def _own(scope: Scope, message_id: str) -> str:
    return ids.message_id(scope, MESSENGER, message_id)


def _named(scope: Scope, action: Status | Reaction) -> str:
    return action.id if action.id else _own(scope, action.message_id or "")
