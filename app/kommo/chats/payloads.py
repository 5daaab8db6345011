"""Events as the payloads of Kommo's Chats API: each that is pushed to Kommo has one path and one payload.

Source: https://www.amocrm.ru/developers/content/chats/chat-api and
https://developers.kommo.com/reference/chats-api-overview.
"""

from datetime import datetime
from typing import TypeAlias
from urllib.parse import quote

import msgspec

from app.limits import STATUS_CODES
from domain import events as e
from domain.content import Way, part_fields, plain_fields
from domain.events import Json

Created: TypeAlias = e.MessageSent | e.MessageMirrored
TYPING_MS = 5000  # Kommo's own default.


def request(scope_id: str, event: e.AnyEvent) -> tuple[str, Json]:
    """The path (after `/v2/origin/custom/`) and the payload of the call that an event asks for."""
    match event:
        case e.MessageSent() | e.MessageMirrored():
            return scope_id, {"event_type": "new_message", "payload": _new_message(event)}
        case e.MessageEdited():
            return scope_id, {"event_type": "edit_message", "payload": _edit(event)}
        case e.MessageDelivered() | e.MessageRead() | e.MessageFailed():
            return f"{scope_id}/{quote(event.remote_id or '', safe='')}/delivery_status", _status(event)
        case e.TypingStarted():
            return f"{scope_id}/typing", _typing(event)
        case e.ReactionAdded() | e.ReactionRemoved():
            return f"{scope_id}/react", _reaction(event)
        case _:
            raise AssertionError(f"{e.tag(event)} is not pushed to Kommo")


def _new_message(event: Created) -> Json:
    """A message to the customer has a receiver, and the `ref_id` of its sender is Kommo's id of who wrote."""
    content = event.content
    payload: Json = {
        "timestamp": event.msec // 1000,
        "msec_timestamp": event.msec,
        "msgid": event.message,
        "conversation_id": content.conversation_id,
        "silent": event.silent if isinstance(event, e.MessageSent) else True,
        "sender": participant(event.sender),
        "message": _message(content),
    }
    if event.receiver:
        payload["receiver"] = participant(event.receiver)
    if content.chat_id:
        payload["conversation_ref_id"] = content.chat_id
    if event.source:
        payload["source"] = {"external_id": event.source}
    if reply := _reply(content.reply_to):
        payload["reply_to"] = {"message": reply}
    if forwards := _forwards(content):
        payload["forwards"] = forwards
    return payload


def _message(content: e.Content) -> Json:
    message = plain_fields(content, Way.TO_KOMMO)
    message.setdefault("text", "")
    return message | part_fields(content, Way.TO_KOMMO)


def participant(party: e.Party) -> Json:
    """A sender, a receiver or a chat's user; Kommo requires a name, so the id stands in for a missing one."""
    profile = {name: value for name in ("phone", "email") if (value := getattr(party, name))}
    participant: Json = {"id": party.id, "name": party.name or party.id}
    for name in ("ref_id", "avatar", "profile_link"):
        if value := getattr(party, name):
            participant[name] = value
    if profile:
        participant["profile"] = profile
    return participant


def _reply(reply: e.Reply | None) -> Json | None:
    """A message as Kommo knows it: by our id if we brought it there, else by Kommo's; or quoted in full."""
    if reply is None or reply.message is None:
        return reply.quoted if reply else None
    return {"id": reply.own_id} if reply.sent_by == "kommo" else {"msgid": reply.message}


def _forwards(content: e.Content) -> Json | None:
    """The forwarded message, which Kommo knows or which is quoted in full; None if it is neither."""
    forwards = content.forwards or {}
    messages = forwards.get("messages")
    quoted = messages[0] if isinstance(messages, list) and messages and "type" in messages[0] else None
    message = _reply(content.forwarded) or quoted
    if message is None:
        return None
    named: Json = {"messages": [message]}
    named |= {name: forwards[name] for name in ("conversation_id", "conversation_ref_id") if name in forwards}
    return named


def _edit(event: e.MessageEdited) -> Json:
    moment = int(datetime.fromisoformat(event.at).timestamp() * 1000 + 0.5)
    message = _message(event.content)
    if event.delivery_status:
        message["delivery_status"] = msgspec.to_builtins(event.delivery_status)
    named: Json = {"id": event.remote_id} if event.remote_id else {}
    return {
        **named,
        "timestamp": moment // 1000,
        "msec_timestamp": moment,
        "msgid": event.message,
        "conversation_id": event.content.conversation_id,
        "message": message,
    }


def _status(event: e.MessageDelivered | e.MessageRead | e.MessageFailed) -> Json:
    status = STATUS_CODES[e.tag(event).removeprefix("message.")]
    payload: Json = {"msgid": event.remote_id, "delivery_status": status}
    if isinstance(event, e.MessageFailed):
        payload |= {"error_code": event.code, "error": event.text or "not delivered"}
    return payload


def _typing(event: e.TypingStarted) -> Json:
    return {
        "conversation_id": event.content.conversation_id,
        "sender": {"id": event.sender.id},
        "duration_ms": event.duration_ms or TYPING_MS,
    }


def _reaction(event: e.ReactionAdded | e.ReactionRemoved) -> Json:
    removed = isinstance(event, e.ReactionRemoved)
    sender = event.sender
    user = {"ref_id": sender.ref_id} if sender.ref_id else {"id": sender.id}  # ref_id: on a manager's behalf
    payload: Json = {"user": user, "type": "unreact" if removed else "react"}
    if event.content.conversation_id:
        payload["conversation_id"] = event.content.conversation_id
    else:
        payload["conversation_ref_id"] = event.content.chat_id
    if event.sent_by == "kommo":
        payload["id"] = event.own_id
    else:
        payload["msgid"] = event.message
    if not removed:
        payload["emoji"] = event.emoji
    return payload
