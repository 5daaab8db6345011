"""The Chats API as documented: it answers, and refuses, with the documented codes."""

import time
from typing import Any

import msgspec
from msgspec import UNSET, Struct, UnsetType

from ops.sandbox.chats import schemas
from ops.sandbox.chats.checks import Refused, quoted_problem, read, required, status_problem
from ops.sandbox.chats.hooks import Hooks
from ops.sandbox.config import Channel, Config
from ops.sandbox.crm.rules import CrmRules
from ops.sandbox.feed import Feed
from ops.sandbox.state.chats import (
    Chat,
    Connection,
    Crm,
    Message,
    Person,
    ReactCall,
    Reaction,
    StatusCall,
    Typing,
    new_id,
    now_ms,
)

HISTORY_MAX = 50


class Kommo:
    """The calls of an integration; each takes the raw body and returns the body of the answer."""

    def __init__(self, config: Config, crm: Crm, hooks: Hooks, feed: Feed, rules: CrmRules) -> None:
        self.config, self.crm, self.hooks, self.feed, self.crm_rules = config, crm, hooks, feed, rules
        self.channels = {channel.id: channel for channel in config.channels}
        self.managers = {manager.id: manager.name for manager in config.managers}
        self.bots = {channel.bot_id for channel in config.channels}

    def channel(self, channel_id: str) -> Channel:
        """The channel, or 404."""
        channel = self.channels.get(channel_id)
        if channel is None:
            raise Refused(404, "channel does not exist")
        return channel

    def connect(self, channel_id: str, body: bytes) -> dict[str, object]:
        """§3.1. Repeating it changes nothing; an account that is not on the whitelist gets 403."""
        order = read(schemas.CONNECT, body)
        if order.hook_api_version != "v2":
            raise Refused(400, "hook_api_version: only v2 is supported")
        if self.config.accounts and order.account_id not in self.config.accounts:
            told = (
                "this private channel is not open to the account; Kommo's support keeps the list (--account)"
            )
            raise Refused(403, f"account_id: {told}")
        scope_id = self.config.scope_id(channel_id, order.account_id)
        known = self.crm.connections.get(scope_id)
        connection = Connection(
            scope_id=scope_id,
            channel_id=channel_id,
            account_id=order.account_id,
            title=order.title if isinstance(order.title, str) else "chatledger",
            is_time_window_disabled=order.is_time_window_disabled,
            connected_at=known.connected_at if known and known.active else now_ms() / 1000,
        )
        self.crm.save_connection(connection)
        self.feed.publish("manager", "connections")
        return {
            "account_id": order.account_id,
            "scope_id": scope_id,
            "title": connection.title,
            "hook_api_version": "v2",
            "is_time_window_disabled": order.is_time_window_disabled,
        }

    def disconnect(self, channel_id: str, body: bytes) -> dict[str, object]:
        """§3.2. Hooks stop; chats stay."""
        order = read(schemas.DISCONNECT, body)
        connection = self.connected(self.config.scope_id(channel_id, order.account_id))
        connection.active = False
        self.crm.save_connection(connection)
        self.feed.publish("manager", "connections")
        return {}

    def switch_off(self, account_id: str, channels: set[str]) -> list[str]:
        """Disconnects the channels of a disabled integration; returns their scope ids."""
        stopped = []
        for connection in self.crm.connections.values():
            if (
                connection.active
                and connection.account_id == account_id
                and connection.channel_id in channels
            ):
                connection.active = False
                self.crm.save_connection(connection)
                stopped.append(connection.scope_id)
        self.feed.publish("manager", "connections")
        return stopped

    def connected(self, scope_id: str) -> Connection:
        """The connection of the scope, or 404."""
        connection = self.crm.connections.get(scope_id)
        if connection is None or not connection.active:
            raise Refused(404, "scope is not connected")
        return connection

    def new_chat(self, scope_id: str, body: bytes) -> dict[str, object]:
        """§3.3. A known conversation is answered with its id, a known user with itself."""
        order = read(schemas.NEW_CHAT, body)
        chat = self.crm.chat(scope_id, order.conversation_id)
        person = self._client(scope_id, order.user)
        if chat is None:
            chat = Chat(id=new_id(), scope_id=scope_id, client=person.id, client_id=order.conversation_id)
            self.crm_rules.bind(
                chat, order.source.external_id if isinstance(order.source, schemas.Source) else ""
            )
            self.crm.save_chat(chat)
        user = {"id": person.id, "client_id": person.client_id, "name": person.name, "avatar": person.avatar}
        told = {name: value for name in ("phone", "email") if (value := getattr(person, name))}
        return {"id": chat.id, "user": user | told}

    def message(self, scope_id: str, body: bytes) -> dict[str, object]:
        """§3.4. A new or an edited message, from the client or, with a receiver, to him."""
        envelope = read(schemas.ENVELOPE, body)
        if envelope.event_type == "edit_message":
            return self._edit(scope_id, read(schemas.EDIT_MESSAGE, bytes(envelope.payload)))
        order = read(schemas.NEW_MESSAGE, bytes(envelope.payload))
        known = self.crm.message(scope_id, client_id=order.msgid)
        if known is None:
            return self._new(scope_id, order)
        known.repeats += 1
        if self.config.duplicates == "refuse":
            raise Refused(400, "msgid: a message with this msgid exists")
        return self._accepted(known)

    def _new(self, scope_id: str, order: schemas.NewMessage) -> dict[str, object]:
        if problem := order.message.problem() or quoted_problem(order) or self._elsewhere(scope_id, order):
            raise Refused(400, problem)
        outgoing = isinstance(order.receiver, schemas.Person)
        channel = self.channels[scope_id.partition("_")[0]]
        if outgoing and order.sender.ref_id not in (*self.managers, channel.bot_id):
            raise Refused(400, "sender: user not found")
        person = self._client(
            scope_id, order.receiver if isinstance(order.receiver, schemas.Person) else order.sender
        )
        chat = self._conversation(scope_id, order, person)
        sender = str(order.sender.ref_id) if outgoing else person.id
        message = Message(
            n=next(self.crm.numbers),
            id=new_id(),
            client_id=order.msgid,
            scope_id=scope_id,
            chat_id=chat.id,
            direction="out" if outgoing else "in",
            sender=sender,
            sender_name=order.sender.name,
            receiver=person.id if outgoing else "",
            timestamp=order.timestamp,
            msec_timestamp=order.msec_timestamp,
            message=msgspec.to_builtins(order.message),
            reply_to=_builtin(order.reply_to),
            forwards=_builtin(order.forwards),
            source=order.source.external_id if isinstance(order.source, schemas.Source) else "",
            silent=order.silent,
            arrived_ns=monotonic_ns(),
        )
        self.crm_rules.bind(chat, message.source)
        self.crm.append(message)
        if outgoing:
            self.crm_rules.answered(chat, message)
        else:
            self.crm_rules.heard(chat, message)
        self.feed.publish("manager", "message", chat=chat.id, message=message.id)
        if outgoing and self.config.echo and sender in self.managers:
            self.hooks.message(self.connected(scope_id), chat, message)
        return self._accepted(message)

    def _elsewhere(self, scope_id: str, order: schemas.NewMessage) -> str:
        """A quoted message, if it is known, must be in the same chat."""
        if not isinstance(order.reply_to, schemas.ReplyTo):
            return ""
        quoted, chat = order.reply_to.quoted, self.crm.chat(scope_id, order.conversation_id)
        known = self.crm.message(scope_id, id=str(quoted.id or ""), client_id=str(quoted.msgid or ""))
        chats = (chat.id if chat else "", order.conversation_ref_id)
        return "" if known is None or known.chat_id in chats else "reply_to.message: is in another chat"

    def _edit(self, scope_id: str, order: schemas.EditMessage) -> dict[str, object]:
        if problem := order.message.problem(edit=True):
            raise Refused(400, problem)
        if order.id is UNSET and order.msgid is UNSET:
            raise Refused(400, "msgid: required without id")
        known = self.crm.message(scope_id, id=str(order.id or ""), client_id=str(order.msgid or ""))
        if known is None:
            raise Refused(400, "message: not found")
        if self.crm.chats[known.chat_id].client_id != order.conversation_id:
            raise Refused(400, "conversation_id: the message is in another conversation")
        content = msgspec.to_builtins(order.message)
        if status := content.pop("delivery_status", None):
            self._status_on_edit(known, status)
        known.edits.append({"at": order.msec_timestamp, "message": content, "arrived_ns": monotonic_ns()})
        known.message = known.message | content if content["type"] == known.message["type"] else content
        if isinstance(order.id, str) and isinstance(order.msgid, str):
            known.client_id = order.msgid
        self.crm.save_message(known)
        self.feed.publish("manager", "message", chat=known.chat_id, message=known.id)
        return self._accepted(known)

    def _status_on_edit(self, message: Message, told: dict[str, Any]) -> None:
        order = schemas.DeliveryStatus(
            status_code=told["status_code"],
            error_code=told.get("error_code", UNSET),
            error=told.get("error", UNSET),
        )
        if problem := self._told_status(message, order):
            raise Refused(400, f"message.delivery_status.{problem}")

    def _accepted(self, message: Message) -> dict[str, object]:
        receiver = self.crm.people.get(message.receiver)
        sender = self.crm.people.get(message.sender)
        return {
            "new_message": {
                "conversation_id": self.crm.chats[message.chat_id].client_id,
                "sender_id": sender.client_id if sender else message.sender,
                "receiver_id": receiver.client_id if receiver else None,
                "msgid": message.id,
                "ref_id": message.client_id,
            }
        }

    def _client(self, scope_id: str, told: schemas.Person) -> Person:
        """The client of a request: found by our id, bound by Kommo's, else new; its fields are updated."""
        person = self.crm.person(scope_id, told.id)
        if person is None and isinstance(told.ref_id, str):
            person = self.crm.people.get(told.ref_id)
            if person is None or person.scope_id != scope_id or person.client_id not in ("", told.id):
                raise Refused(400, "sender: user not found")
        if person is None:
            person = Person(id=new_id(), scope_id=scope_id)
        before = (person.client_id, person.name, person.avatar, person.phone, person.email)
        person.client_id, person.name = told.id, told.name or person.name
        person.avatar = told.avatar if isinstance(told.avatar, str) else person.avatar
        if isinstance(told.profile, schemas.Profile):
            person.phone = told.profile.phone if isinstance(told.profile.phone, str) else person.phone
            person.email = told.profile.email if isinstance(told.profile.email, str) else person.email
        if before != (person.client_id, person.name, person.avatar, person.phone, person.email):
            self.crm.save_person(person)
        return person

    def _conversation(self, scope_id: str, order: schemas.NewMessage, person: Person) -> Chat:
        """The chat of a request: found by our id, bound by Kommo's (write first), else new."""
        chat = self.crm.chat(scope_id, order.conversation_id)
        ref = order.conversation_ref_id
        if ref is UNSET:
            return chat or self._new_chat(scope_id, order.conversation_id, person)
        bound = self.crm.chats.get(str(ref))
        if bound is None or bound.scope_id != scope_id:
            raise Refused(400, "conversation_ref_id: not found")
        if (chat is not None and chat is not bound) or bound.client_id not in ("", order.conversation_id):
            raise Refused(400, "conversation_ref_id: bound to another conversation_id")
        bound.client_id = order.conversation_id
        return self.crm.save_chat(bound)

    def _new_chat(self, scope_id: str, conversation_id: str, person: Person) -> Chat:
        chat = Chat(id=new_id(), scope_id=scope_id, client=person.id, client_id=conversation_id)
        return self.crm.save_chat(chat)

    def delivery_status(self, scope_id: str, message_id: str, body: bytes) -> dict[str, object]:
        """§3.5, variants A and B."""
        order = read(schemas.DELIVERY_STATUS, body)
        if isinstance(order.msgid, str) and order.msgid != message_id:
            raise Refused(400, "msgid: is not the one in the path")
        status = order.delivery_status if order.delivery_status is not UNSET else order.status_code
        if isinstance(order.delivery_status, int) and order.msgid is UNSET:
            raise Refused(400, "msgid: required with delivery_status")
        if order.status_code not in (UNSET, status):
            raise Refused(400, "status_code: differs from delivery_status")
        message = self.crm.message(scope_id, id=message_id)
        order.status_code = status
        if message is None:
            if problem := status_problem(order):
                raise Refused(400, problem)
            raise Refused(404, "message does not exist")
        if problem := self._told_status(message, order):
            raise Refused(400, problem)
        self.crm.save_message(message)
        self.feed.publish("manager", "message", chat=message.chat_id, message=message.id)
        return {}

    def _told_status(self, message: Message, order: schemas.DeliveryStatus) -> str:
        """Keep a delivery status of a message to the client, or refuse it with a reason."""
        if problem := status_problem(order):
            return problem
        if message.direction != "out":
            return "message: was written by the client"
        call = StatusCall(
            message_id=message.id,
            status=int(order.status_code) if isinstance(order.status_code, int) else 0,
            error_code=order.error_code if isinstance(order.error_code, int) else None,
            error=order.error if isinstance(order.error, str) else "",
            arrived_ns=monotonic_ns(),
        )
        message.statuses.append(call)
        self.crm.statuses.append(call)
        return ""

    def history(self, scope_id: str, chat_id: str, offset: int, limit: int) -> list[dict[str, object]]:
        """§3.6. Newest first; empty when there is no such chat or nothing in it (204)."""
        if not (0 < limit <= HISTORY_MAX and offset >= 0):
            raise Refused(400, f"limit: 1..{HISTORY_MAX}, offset: from 0")
        chat = self.crm.chats.get(chat_id)
        if chat is None or chat.scope_id != scope_id:
            return []
        newest = sorted(self.crm.timelines[chat_id], key=lambda one: (-one.msec_timestamp, -one.n))
        return [self._told(message) for message in newest[offset : offset + limit]]

    def _told(self, message: Message) -> dict[str, object]:
        told: dict[str, object] = {
            "timestamp": message.timestamp,
            "msec_timestamp": message.msec_timestamp,
            "sender": self.participant(message.sender),
            "message": {"id": message.id, **message.message},
        }
        if message.client_id:
            told["message"] = {"id": message.id, "client_id": message.client_id, **message.message}
        if message.receiver:
            told["receiver"] = self.participant(message.receiver)
        return told

    def participant(self, person_id: str) -> dict[str, str]:
        """A client or a manager as history and hooks show them; empty values are left out."""
        person = self.crm.people.get(person_id)
        if person is None:
            return {"id": person_id, "name": self.managers.get(person_id, "Bot")}
        shown = ("id", "client_id", "name", "avatar", "phone", "email")
        return {name: value for name in shown if (value := getattr(person, name))}

    def typing(self, scope_id: str, body: bytes) -> dict[str, object]:
        """§3.7. An unknown conversation is 404."""
        order = read(schemas.TYPING, body)
        chat = self.crm.chat(scope_id, order.conversation_id)
        if chat is None:
            raise Refused(404, "conversation does not exist")
        until_ms = now_ms() + order.duration_ms
        self.crm.typings.append(
            Typing(
                conversation_id=order.conversation_id,
                sender_id=order.sender.id,
                duration_ms=order.duration_ms,
                arrived_ns=monotonic_ns(),
                until_ms=until_ms,
            )
        )
        self.feed.publish("manager", "typing", chat=chat.id, milliseconds=order.duration_ms)
        return {}

    def react(self, scope_id: str, body: bytes) -> dict[str, object]:
        """§3.8. One reaction a person and message; the last one stands."""
        order = read(schemas.REACT, body)
        if order.type == "react" and order.emoji is UNSET:
            raise Refused(400, "emoji: required to react")
        by = self._reactor(scope_id, order.user)
        chat = self.crm.chats.get(str(order.conversation_ref_id or ""))
        if order.conversation_ref_id is UNSET:
            chat = self.crm.chat(scope_id, required(order.conversation_id, "conversation_id"))
        if order.id is UNSET:
            required(order.msgid, "msgid")
        message = self.crm.message(scope_id, id=str(order.id or ""), client_id=str(order.msgid or ""))
        if chat is None or message is None or message.chat_id != chat.id:
            raise Refused(404, "message does not exist")
        emoji = order.emoji if isinstance(order.emoji, str) else ""
        react(message, by, order.type, emoji)
        self.crm.reactions.append(
            ReactCall(message_id=message.id, by=by, type=order.type, emoji=emoji, arrived_ns=monotonic_ns())
        )
        self.crm.save_message(message)
        self.feed.publish("manager", "message", chat=chat.id, message=message.id)
        return {}

    def _reactor(self, scope_id: str, user: schemas.Reactor) -> str:
        ref = user.ref_id
        if isinstance(ref, str) and (ref in self.managers or ref in self.bots or ref in self.crm.people):
            return ref
        person = self.crm.person(scope_id, str(user.id or ""))
        if person is None or ref is not UNSET:
            raise Refused(400, "user: user not found")
        return person.id


def react(message: Message, by: str, type: str, emoji: str) -> None:
    """Set or take away the one reaction of a person."""
    message.reactions = [one for one in message.reactions if one.by != by]
    if type == "react":
        message.reactions.append(Reaction(by=by, emoji=emoji))


def monotonic_ns() -> int:
    """The time of an arrival, comparable across the processes of one machine."""
    return time.monotonic_ns()


def _builtin(value: Struct | UnsetType) -> Any:
    return None if value is UNSET else msgspec.to_builtins(value)
