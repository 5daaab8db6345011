"""A manager's action in Kommo becomes a message in its chat and one hook to the integration."""

import time

from msgspec import Struct

from ops.sandbox.chats.hooks import Hooks, Sent
from ops.sandbox.chats.rules import react
from ops.sandbox.config import Config
from ops.sandbox.crm.rules import CrmRules
from ops.sandbox.errors import Impossible
from ops.sandbox.feed import Feed
from ops.sandbox.state.chats import Chat, Connection, Crm, Message, Person, new_id, now_ms

TYPING_SECONDS = 5.0
KINDS = ("text", "file", "video", "picture", "voice", "audio", "sticker", "location", "contact")


class Receiver(Struct, forbid_unknown_fields=True):
    """The client of a chat that begins with a manager's message."""

    client_id: str = ""
    name: str = ""
    phone: str = ""
    email: str = ""


class Address(Struct, frozen=True, kw_only=True):
    """The chat that a manager addresses, by either id, or a phone number to write to first."""

    scope_id: str = ""
    chat_id: str = ""
    conversation_id: str = ""
    phone: str = ""
    receiver: Receiver | None = None
    source: str = ""


class Managers:
    """What managers do in the fake Kommo."""

    def __init__(self, config: Config, crm: Crm, hooks: Hooks, feed: Feed, rules: CrmRules) -> None:
        self.config, self.crm, self.hooks, self.feed, self.crm_rules = config, crm, hooks, feed, rules
        self._typed: dict[str, float] = {}

    def connection(self, scope_id: str) -> Connection:
        """The named connection, or the only one; raises Impossible (409) if there is none."""
        active = [one for one in self.crm.connections.values() if one.active]
        if scope_id:
            active = [one for one in active if one.scope_id == scope_id]
        if not active:
            raise Impossible(409, "not connected yet: the integration has to call …/connect first")
        if len(active) > 1:
            raise Impossible(400, "scope_id: several scopes are connected, name one")
        return active[0]

    def chat(self, address: Address) -> tuple[Connection, Chat]:
        """The addressed chat. A phone number or conversation that is new to Kommo starts a chat."""
        if address.chat_id:
            known = self.crm.chats.get(address.chat_id)
            if known is None or (address.scope_id and known.scope_id != address.scope_id):
                raise Impossible(404, "chat_id: no such chat")
            return self.connection(known.scope_id), known
        connection = self.connection(address.scope_id)
        if address.conversation_id:
            known = self.crm.chat(connection.scope_id, address.conversation_id)
            return connection, known or self._start(connection, address)
        if address.phone:
            return connection, self._by_phone(connection, address) or self._start(connection, address)
        raise Impossible(400, "name chat_id, conversation_id or phone")

    def write(
        self, address: Address, content: dict[str, object], sender_id: str = ""
    ) -> tuple[Message, Sent]:
        """A manager's message; its hook is sent in the background. Raises Impossible, lanes.Full."""
        if content.get("type", "text") not in KINDS:
            raise Impossible(400, f"message.type: one of {', '.join(KINDS)}")
        if "post" in content and content.get("type", "text") != "text":
            raise Impossible(400, "message.type: a comment is answered with a text")
        connection, chat = self.chat(address)
        manager = sender_id or (self.config.managers[0].id if self.config.managers else new_id())
        names = {one.id: one.name for one in self.config.managers}
        now = now_ms()
        message = Message(
            n=next(self.crm.numbers),
            id=str(content.get("id") or new_id()),
            scope_id=connection.scope_id,
            chat_id=chat.id,
            direction="out",
            sender=manager,
            sender_name=names.get(manager, ""),
            receiver=chat.client,
            timestamp=now // 1000,
            msec_timestamp=now,
            message={"type": "text", **content},
            source=chat.source,
            arrived_ns=time.monotonic_ns(),
        )
        sent = self.hooks.message(connection, chat, message)
        if message.id not in self.crm.messages:
            self.crm.append(message)
        chat.unread = 0
        self.crm_rules.answered(chat, message)
        self.feed.publish("manager", "message", chat=chat.id, message=message.id)
        return message, sent

    def type(self, address: Address, sender_id: str = "", variant: str = "sample") -> Sent:
        """A manager is typing: one hook per call."""
        connection, chat = self.chat(address)
        return self.hooks.typing(connection, chat, sender_id or self.config.managers[0].id, variant=variant)

    def type_sometimes(self, chat_id: str, sender_id: str) -> bool:
        """A manager is typing on the page: at most one hook in 5 s."""
        now = time.monotonic()
        if now - self._typed.get(chat_id, -TYPING_SECONDS) < TYPING_SECONDS:
            return False
        self._typed[chat_id] = now
        self.type(Address(chat_id=chat_id), sender_id)
        return True

    def react(self, message: Message, emoji: str, sender_id: str = "", variant: str = "table") -> Sent:
        """A manager reacts to a message, or takes the reaction away with an empty emoji."""
        connection, chat = self.connection(message.scope_id), self.crm.chats[message.chat_id]
        manager = sender_id or self.config.managers[0].id
        type = "react" if emoji else "unreact"
        sent = self.hooks.reaction(connection, chat, message, manager, type, emoji, variant=variant)
        react(message, manager, type, emoji)
        self.crm.save_message(message)
        self.feed.publish("manager", "message", chat=chat.id, message=message.id)
        return sent

    def from_template(self, template_id: int, params: dict[str, str]) -> dict[str, object]:
        """A template's text with its markers replaced (`{"contact.name": "Ann"}`)."""
        template = self.crm_rules.crm_state.templates.get(template_id)
        if template is None:
            raise Impossible(404, "template_id: no such template; POST /api/v4/chats/templates makes one")
        text = content = str(template.told["content"])
        markers = {f"{{{{{name}}}}}": value for name, value in params.items()}
        for marker, value in markers.items():
            text = text.replace(marker, value)
        used = [{"key": key, "value": value} for key, value in markers.items() if key in content]
        told: dict[str, object] = {"id": template.id, "content": content, "params": used}
        if external_id := template.told.get("external_id"):
            told["external_id"] = external_id
        message: dict[str, object] = {"type": "text", "text": text, "template": told}
        if buttons := template.told.get("buttons"):
            message["markup"] = {"mode": "inline", "buttons": [[_button(one)] for one in _dicts(buttons)]}
        return message

    def _by_phone(self, connection: Connection, address: Address) -> Chat | None:
        for chat in self.crm.chats.values():
            if chat.scope_id != connection.scope_id or address.source not in ("", chat.source):
                continue
            if self.crm.client(chat).phone == address.phone:
                return chat
        return None

    def _start(self, connection: Connection, address: Address) -> Chat:
        told = address.receiver or Receiver()
        if address.source and not self.crm_rules.knows(connection.account_id, address.source):
            raise Impossible(404, "source: no such source; POST /api/v4/sources makes one")
        client = Person(
            id=new_id(),
            scope_id=connection.scope_id,
            client_id=told.client_id,
            name=told.name,
            phone=told.phone or address.phone,
            email=told.email,
        )
        if told.client_id:
            client = self.crm.person(connection.scope_id, told.client_id) or client
        self.crm.save_person(client)
        chat = Chat(
            id=new_id(),
            scope_id=connection.scope_id,
            client=client.id,
            client_id=address.conversation_id,
            source=address.source,
        )
        return self.crm.save_chat(chat)


def _dicts(value: object) -> list[dict[str, object]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _button(told: dict[str, object]) -> dict[str, object]:
    return {name: told[name] for name in ("text", "url") if name in told}
