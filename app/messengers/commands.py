"""Checked actions of a messenger as commands: the only way from the contract to the ledger."""

from datetime import UTC
from typing import Any, NamedTuple, TypedDict

import msgspec
from msgspec import Struct

from app import clock
from app.limits import AHEAD_MS_BELIEVED, STATUS_CODES
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
    ReportedStatus,
    Sender,
    Sent,
    Status,
    Typing,
)
from domain import commands as c
from domain import events as e
from domain import ids
from domain.content import FIELDS, Way, names
from domain.ids import MESSENGER, Scope

NO_BOT = "name the manager who wrote (user_id), or give the channel its bot: PUT /v1/channels, kommo.bot_id"
# What Kommo needs of every quote stands before the rest.
_QUOTED = tuple(name for name in names(Way.QUOTED_TO_KOMMO) if name not in ("type", "text"))
_COPIED = {field.name: field.type for field in FIELDS if Way.FROM_MESSENGER in field.ways}


class Circumstances(NamedTuple):
    """What a command depends on besides its action.

    `bot_id` is the channel's: in its name Kommo shows what the business wrote on its phone, unless the action
    names a manager. `imported`: the message was written before the channel was connected. `request` is the
    same if the action is repeated. `per_conversation`: the messenger's ids of messages are unique only within
    a conversation.
    """

    bot_id: str | None = None
    imported: bool = False
    request: str | None = None
    per_conversation: bool = False


ALONE = Circumstances()


def command(scope: Scope, action: Action, given: Circumstances = ALONE) -> c.AnyCommand:
    """The command that an action asks for, in a scope; raises ActionRefused."""
    at, now = clock.milliseconds(action.at.astimezone(UTC)), clock.now_ms()
    claimed_at = None
    if at > now + AHEAD_MS_BELIEVED:
        at, claimed_at = now, clock.text(at)
    stream = ids.conversation_id(scope, MESSENGER, action.conversation_id)
    stamp = clock.stamp(scope, stream, MESSENGER, now=now, at=at)
    if claimed_at:
        stamp["claimed_at"] = claimed_at
    end = _end(action, stream)
    match action:
        case Sent():
            return _send(scope, action, stamp, at, given)
        case Edited():
            return c.Edit(
                **stamp,
                **_about(scope, action, end, given),
                content=content_of(action.message, conversation_id=action.conversation_id),
                delivery_status=_delivery_status(action.delivery_status),
            )
        case Deleted():
            return c.Delete(**stamp, **_about(scope, action, end, given))
        case Delivered() | Read():
            return c.Confirm(**stamp, **_about(scope, action, end, given), status=STATUSES[type(action)])
        case Failed():
            about = _about(scope, action, end, given)
            return c.Confirm(**stamp, **about, status="failed", code=action.code, text=action.text)
        case ReactionAdded() | ReactionRemoved():
            return c.React(
                **stamp,
                **_about(scope, action, end, given),
                side="messenger",
                sender=e.Party(id=action.sender.id, name=action.sender.name, ref_id=action.sender.user_id),
                emoji=action.emoji,
                removed=isinstance(action, ReactionRemoved),
            )
        case Typing():
            return c.Type(
                **stamp,
                stream=ids.typing_id(scope, stream, action.sender.id, at),
                side="messenger",
                at_ms=at,
                ends=(end,),
                sender=e.Party(id=action.sender.id, name=action.sender.name),
                expires_at=clock.text(at + (action.duration_ms or ids.TYPING_WINDOW_MS)),
                duration_ms=action.duration_ms,
            )


class _About(TypedDict):
    streams: tuple[str, ...]
    ours: str | None
    ends: tuple[c.End, ...]
    request: str | None


def _about(
    scope: Scope, action: Edited | Deleted | Status | Reaction, end: c.End, given: Circumstances
) -> _About:
    """The message that an action names: by the messenger's id of it, and perhaps by ours.

    Our id is whatever the messenger writes there. A fact that names nothing else waits in the scope.
    """
    ours = None if isinstance(action, Edited | Deleted) else action.id or None
    streams: tuple[str, ...]
    if own_id := action.message_id:
        within = ids.message_id_within(scope, action.conversation_id, MESSENGER, own_id)
        streams = (within,) if given.per_conversation else (ids.message_id(scope, MESSENGER, own_id), within)
    else:
        streams = (ids.claimed_id(scope, MESSENGER, ours or ""),)
    return {"streams": streams, "ours": ours, "ends": (end,), "request": given.request}


def _end(action: Action, stream: str) -> c.End:
    return c.End("messenger", stream, e.Ends(conversation_id=action.conversation_id))


def _send(scope: Scope, action: Sent, stamp: c.Stamp, at: int, given: Circumstances) -> c.Send:
    reply, forwards = action.reply_to, action.forwards
    forwarded = forwards.messages[0].message_id if forwards else None
    outgoing = action.direction == "out"
    content = content_of(
        action.message,
        conversation_id=action.conversation_id,
        reply_to=e.Reply(reply.message_id, quoted=_quote(reply)) if reply else None,
        forwards=_forwards(forwards) if forwards else None,
        forwarded=e.Reply(forwarded) if forwarded else None,
    )
    within = ids.message_id_within(scope, action.conversation_id, MESSENGER, action.message_id)
    own = ids.message_id(scope, MESSENGER, action.message_id)
    return c.Send(
        **stamp,
        stream=within if given.per_conversation else own,
        stream_within=None if given.per_conversation else within,
        side="messenger",
        own_id=action.message_id,
        msec=at,
        ends=(_end(action, stamp["lane"]),),
        sender=_author(action, given.bot_id) if outgoing else party(action.sender),
        receiver=party(action.receiver) if action.receiver and outgoing else None,
        content=content,
        reply_stream=_stream(scope, action, reply.message_id, given) if reply else None,
        forward_stream=_stream(scope, action, forwarded, given) if forwarded else None,
        source=action.source.external_id if action.source else None,
        silent=action.silent,
        direction=action.direction,
        imported=given.imported,
    )


def _author(action: Sent, bot_id: str | None) -> e.Party:
    """Who wrote on the business's phone, with the manager or the bot in whose name Kommo shows it."""
    ref_id = action.sender.user_id or bot_id
    if ref_id is None:
        raise ActionRefused("$.sender.user_id", NO_BOT)
    return msgspec.structs.replace(party(action.sender), ref_id=ref_id)


def party(sender: Sender) -> e.Party:
    """A sender as events hold one; the manager behind a sender is not part of it."""
    return e.Party(sender.id, sender.name, sender.phone, sender.email, sender.avatar, sender.profile_link)


def _delivery_status(reported: ReportedStatus | None) -> e.DeliveryStatus | None:
    """How far an edited message has come, with Kommo's codes."""
    if reported is None:
        return None
    code = STATUS_CODES[reported.status]
    if reported.status != "failed":
        return e.DeliveryStatus(code)
    return e.DeliveryStatus(code, reported.code, reported.text or "not delivered")


def _quote(quoted: ReplyTo | Forward) -> e.Json | None:
    """A quoted message in full, as Kommo embeds one; None if the action only names it."""
    message, sender, at = quoted.message, quoted.sender, quoted.at
    if message is None or sender is None or at is None:
        return None
    moment = clock.milliseconds(at)
    names = {"id": sender.id, "ref_id": sender.user_id, "name": sender.name}
    return {
        "type": message.type,
        "text": message.text or "",
        "timestamp": moment // 1000,
        "msec_timestamp": moment,
        "sender": {name: value for name, value in names.items() if value is not None},
        **{
            name: msgspec.to_builtins(value)
            for name in _QUOTED
            if (value := getattr(message, name)) is not None
        },
    }


def _forwards(forwards: Forwards) -> e.Json:
    (forward,) = forwards.messages
    named: e.Json = {"messages": [_quote(forward) or {"message_id": forward.message_id}]}
    return named | ({"conversation_id": forwards.conversation_id} if forwards.conversation_id else {})


def content_of(
    message: Message,
    *,
    conversation_id: str | None,
    reply_to: e.Reply | None = None,
    forwards: e.Json | None = None,
    forwarded: e.Reply | None = None,
) -> e.Content:
    """A message's content as events hold it."""
    copied: dict[str, Any] = {
        name: msgspec.convert(msgspec.to_builtins(value), kind) if isinstance(value, Struct) else value
        for name, kind in _COPIED.items()
        if (value := getattr(message, name)) is not None
    }
    return e.Content(
        **copied,
        reply_to=reply_to,
        forwards=forwards,
        conversation_id=conversation_id,
        forwarded=forwarded,
    )


def _stream(scope: Scope, action: Sent, own_id: str, given: Circumstances) -> str:
    """The stream of a message that the messenger names in another one of the same conversation."""
    if given.per_conversation:
        return ids.message_id_within(scope, action.conversation_id, MESSENGER, own_id)
    return ids.message_id(scope, MESSENGER, own_id)
