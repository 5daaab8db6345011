"""Chats, messages and people as the pages show them."""

from datetime import UTC, datetime
from urllib.parse import urlencode

from msgspec import Struct

from ops.sandbox.state.chats import Chat, Crm, Message
from ops.sandbox.state.messenger import Conversation, Customer, MessengerMessage, MessengerState, instant

LIST_MAX = 100  # chats in a list
SHOWN_MAX = 200  # messages of an open chat
KINDS = {
    "picture": "Picture",
    "file": "File",
    "video": "Video",
    "voice": "Voice message",
    "audio": "Audio",
    "sticker": "Sticker",
    "location": "Location",
    "contact": "Contact",
}


def initial(name: str) -> str:
    """The letter or digit of an avatar."""
    return name.strip("+ ")[:1].upper() or "?"


class Line(Struct, kw_only=True):
    """A chat in the list."""

    id: str
    href: str
    name: str
    preview: str
    at: str
    unread: int = 0
    open: bool = False


class Content(Struct, kw_only=True):
    """A message's content; `kind_name` is empty for plain text."""

    kind: str
    kind_name: str
    text: str
    media: str
    file_name: str


class Bubble(Struct, kw_only=True):
    """A message in the pane; `own` is one of the viewer's side."""

    id: str
    own: bool
    content: Content
    name: str
    at: str
    status: str = ""
    status_words: str = ""
    problem: str = ""
    edited: bool = False
    deleted: bool = False
    quote: str = ""
    reactions: list[str]
    can_change: bool = False
    can_repeat: bool = False


class Face(Struct, kw_only=True):
    """The other side of the open chat."""

    name: str
    detail: str = ""


def manager_lines(crm: Crm, open_id: str) -> list[Line]:
    """The chats with messages, most recently active first."""
    chats = sorted(
        (one for one in crm.chats.values() if crm.timelines[one.id]), key=lambda one: -one.touched_ms
    )
    return [
        Line(
            id=chat.id,
            href="/manager?" + urlencode({"chat": chat.id}),
            name=client_name(crm, chat),
            preview=_preview(crm.timelines[chat.id][-1].message),
            at=_instant(chat.touched_ms),
            unread=chat.unread,
            open=chat.id == open_id,
        )
        for chat in chats[:LIST_MAX]
    ]


def client_name(crm: Crm, chat: Chat) -> str:
    """The client's name, else the phone number, else the id."""
    client = crm.client(chat)
    return client.name or client.phone or chat.client_id or "Unknown client"


def manager_face(crm: Crm, chat: Chat) -> Face:
    """The client of an open chat."""
    client = crm.client(chat)
    name = client_name(crm, chat)
    phone = client.phone if client.phone != name else ""
    details = [phone, client.email, "" if chat.client_id else "waiting for the first reply"]
    return Face(name=name, detail=" · ".join(one for one in details if one))


def manager_bubbles(crm: Crm, chat: Chat) -> list[Bubble]:
    """The newest messages of a chat, oldest first."""
    return [manager_bubble(crm, message) for message in crm.timelines[chat.id][-SHOWN_MAX:]]


def manager_bubble(crm: Crm, message: Message) -> Bubble:
    """A message as the manager sees it."""
    own = message.direction == "out"
    problem = ""
    if own and message.hook not in ("", "ok", "waiting"):
        problem = _hook_problem(message.hook)
    if own and message.status == "failed":
        last = message.statuses[-1]
        problem = f"Not delivered: {last.error or 'no reason given'} ({last.error_code})"
    return Bubble(
        id=message.id,
        own=own,
        name=message.sender_name if own else client_name(crm, crm.chats[message.chat_id]),
        at=_instant(message.msec_timestamp),
        status=message.status if own else "",
        status_words=message.status.capitalize() if own else "",
        problem=problem,
        edited=bool(message.edits),
        quote=_kommo_quote(crm, message),
        reactions=[one.emoji for one in message.reactions],
        content=_content(message.message),
    )


def customers(phone: MessengerState, who: str) -> list[Customer]:
    """The customers to choose from: the chosen one and the newest."""
    newest = list(phone.customers.values())[-LIST_MAX:]
    return sorted(newest, key=lambda one: one.id != who)


def customer_lines(phone: MessengerState, who: str, open_id: str) -> list[Line]:
    """The chats of one customer, most recently active first."""
    own = [one for one in phone.conversations.values() if one.customer_id == who]
    return [
        Line(
            id=chat.id,
            href=customer_href(chat),
            name="Acme support",
            preview=_preview(phone.timelines[chat.id][-1].message)
            if phone.timelines[chat.id]
            else "New chat",
            at=_instant(chat.touched_ms) if chat.touched_ms else "",
            unread=chat.unread,
            open=chat.id == open_id,
        )
        for chat in sorted(own, key=lambda one: -one.touched_ms)[:LIST_MAX]
    ]


def customer_href(chat: Conversation) -> str:
    """The page of a chat."""
    return "/customer?" + urlencode({"who": chat.customer_id, "chat": chat.id})


def customer_bubbles(phone: MessengerState, chat: Conversation) -> list[Bubble]:
    """The newest messages of a chat, oldest first."""
    return [customer_bubble(phone, letter) for letter in phone.timelines[chat.id][-SHOWN_MAX:]]


def customer_bubble(phone: MessengerState, letter: MessengerMessage) -> Bubble:
    """A message as the customer sees it."""
    words = {"sending": "Sending", "sent": "Sent", "failed": "Not sent"}
    quoted = phone.letters.get(letter.reply_to)
    return Bubble(
        id=letter.id,
        own=letter.mine,
        name=letter.sender_name or "Acme support",
        at=letter.at,
        status=letter.status,
        status_words=words.get(letter.status, "") if letter.mine else "",
        problem=letter.problem[:1].upper() + letter.problem[1:],
        edited=letter.edited,
        deleted=letter.deleted,
        quote=_preview(quoted.message) if quoted else "",
        reactions=[one.emoji for one in letter.reactions],
        can_change=letter.mine and letter.status == "sent" and not letter.deleted,
        can_repeat=letter.mine and letter.status == "failed",
        content=_content(letter.message),
    )


def _hook_problem(outcome: str) -> str:
    if outcome.isdigit():
        return f"The hook was refused: {outcome}. Kommo does not send it again."
    return f"The hook did not arrive: {outcome}. Kommo does not send it again."


def _content(message: dict[str, object]) -> Content:
    kind, media = str(message.get("type") or "text"), str(message.get("media") or "")
    text = str(message.get("text") or "")
    if kind == "location" and isinstance(place := message.get("location"), dict):
        text = text or f"{place.get('lat')}, {place.get('lon')}"
    if kind == "contact" and isinstance(contact := message.get("contact"), dict):
        text = text or f"{contact.get('name')} {contact.get('phone')}"
    return Content(
        kind=kind,
        kind_name=KINDS.get(kind, ""),
        text=text,
        media=media if media.startswith(("https://", "http://")) else "",
        file_name=str(message.get("file_name") or ""),
    )


def _preview(message: dict[str, object]) -> str:
    content = _content(message)
    return (content.text or content.kind_name)[:120]


def _kommo_quote(crm: Crm, message: Message) -> str:
    """The quoted message in one line, if it is known or given in full."""
    told = message.reply_to or message.message.get("reply_to")
    quoted = told.get("message") if isinstance(told, dict) else None
    if not isinstance(quoted, dict):
        return ""
    known = crm.message(
        message.scope_id, id=str(quoted.get("id") or ""), client_id=str(quoted.get("msgid") or "")
    )
    return _preview(known.message if known else quoted)


def _instant(ms: int) -> str:
    return instant(datetime.fromtimestamp(ms / 1000, UTC))
