"""Words and filters of the templates; only http and https addresses become links."""

import contextlib
from collections.abc import Callable, Iterator
from datetime import datetime
from itertools import pairwise
from typing import Any
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct

from app.views import conversations, deliveries, events
from app.views.messages import History, Message, Moment
from domain.events import Json, Party

FOLD_CHARACTERS = 1600  # Chosen: about a screen of text.
SLOW_SECONDS = 5.0  # Chosen: Kommo waits so long for an answer to a hook.
RAW_CHARACTERS_MAX = 100_000  # Chosen: a browser still shows so much text at once.
BUTTONS_MAX = 40  # Chosen: more rows than any messenger shows.
LINK_CHARACTERS_MAX = 4096  # Chosen: longer addresses are not opened by hand.
SIDES = {"kommo": "Kommo", "messenger": "the messenger", "operator": "an operator", "system": "chatledger"}
EXPLANATIONS = ("error_description", "detail", "message", "text", "error")
KINDS = {
    "text": "Text",
    "picture": "Picture",
    "file": "File",
    "video": "Video",
    "voice": "Voice message",
    "audio": "Audio",
    "sticker": "Sticker",
    "location": "Location",
    "contact": "Contact",
}
PARKED_CAUSES = {
    "event": "",
    "rebuild": "New views were refused: ",
    "version": "Stands still: ",
}
PROBLEMS = {404: "Not found", 500: "Something went wrong", 503: "Temporarily unavailable"}
STATUS_WORDS = {
    ("in", "sent"): "Recorded, not yet sent to Kommo",
    ("in", "accepted"): "Accepted by Kommo",
    ("in", "delivered"): "Delivered in Kommo",
    ("in", "read"): "Read in Kommo",
    ("out", "sent"): "Recorded, not yet sent to the messenger",
    ("out", "accepted"): "Accepted by the messenger",
    ("out", "delivered"): "Delivered to the customer",
    ("out", "read"): "Read by the customer",
}
CONFLICTS = {
    "message_id": "The receiving side named it by an id that another message has",
    "conversation_id": "It came with the name of another customer's chat",
}
MOMENTS = {
    "message.sent": "Written",
    "message.mirrored": "Queued to be mirrored in Kommo",
    "message.edited": "Edited",
    "message.deleted": "Deleted",
    "message.named": "Named in the other system",
    "message.delivered": "Delivered",
    "message.read": "Read",
    "message.failed": "Failed",
    "reaction.added": "Reaction added",
    "reaction.removed": "Reaction removed",
    "delivery.completed": "Push completed",
    "delivery.deferred": "Attempt failed, will be retried",
    "delivery.parked": "Parked until someone resumes it",
    "delivery.resumed": "Resumed",
    "conflict.noticed": "Same id received again with different content",
}


class Button(Struct, frozen=True):
    """A button or a row of a list that a message offers; `url` is a web link or empty."""

    text: str
    url: str = ""


class Forward(Struct, frozen=True):
    """A forwarded message, as far as Kommo or the messenger describes it."""

    name: str
    kind: str
    text: str


class Hop(Struct, frozen=True):
    """One step of a message, and how long after the previous step it happened."""

    name: str
    seconds: float
    words: str
    slow: bool


class Bubble(Struct, frozen=True):
    """A message in a chat, with its pending delivery and the message it quotes.

    `follows`: the same person wrote the message before. `day` is set on the first message of a day.
    """

    message: Message
    delivery: deliveries.Delivery | None = None
    quoted: Message | None = None
    follows: bool = False
    day: str = ""


def bubbles(
    messages: list[Message],
    pending: dict[str, deliveries.Delivery],
    quoted: dict[str, Message],
    *,
    alone: bool = False,
) -> Iterator[Bubble]:
    """Messages in order, as bubbles; `alone`: each by itself, as when a page redraws one."""
    before: Message | None = None
    for message in messages:
        day = "" if before and before.sent_at[:10] == message.sent_at[:10] else message.sent_at[:10]
        follows = bool(before) and not day and speaker(before) == speaker(message) if before else False
        answered = message.reply_to.message if message.reply_to else None
        yield Bubble(
            message,
            pending.get(message.id),
            quoted.get(answered or ""),
            follows and not alone,
            "" if alone else day,
        )
        before = message


def speaker(message: Message) -> str:
    """A key that is the same for all messages of one person in a chat."""
    return f"{message.direction} {message.sender.id or message.sender.name or ''}"


def author(message: Message) -> str:
    """The name to show for the person who wrote a message."""
    party = message.sender
    return party.name or party.phone or ("Customer" if message.direction == "in" else "Manager")


def name(conversation: conversations.Conversation, customer: Party | None) -> str:
    """The customer's name, else what the chat is called."""
    known = (customer.name or customer.phone) if customer else None
    return known or conversation.conversation_id or conversation.chat_id or conversation.id[:8]


def initial(text: str) -> str:
    """The letter or digit shown in place of a portrait."""
    return next((letter for letter in text if letter.isalnum()), "?").upper()[:1]


def sentence(text: str) -> str:
    """An error message of ours as a sentence."""
    text = text[:1].upper() + text[1:]
    return text if text.endswith((".", "!", "?")) else f"{text}."


def reason(text: str) -> str:
    """Why a delivery failed, as a sentence; of a JSON answer only its explanation for people."""
    before, brace, rest = text.partition("{")
    if brace:
        with contextlib.suppress(msgspec.MsgspecError):
            body = msgspec.json.decode(brace + rest, type=dict[str, object])
            found = next((body[name] for name in EXPLANATIONS if isinstance(body.get(name), str)), None)
            text = f"{before}{found}" if found else text
    return sentence(text)


def web_link(url: object) -> str:
    """The address if it is http or https, else an empty text."""
    if not isinstance(url, str) or len(url) > LINK_CHARACTERS_MAX or any(ord(one) < 33 for one in url):
        return ""
    try:
        parts = urlsplit(url)
    except ValueError:
        return ""
    return url if parts.scheme.lower() in ("http", "https") and parts.netloc else ""


def host(url: str) -> str:
    """The host and port of a link, without credentials."""
    return urlsplit(url).netloc.rpartition("@")[2]


def size(count: int | None) -> str:
    """A number of bytes as B, KB or MB."""
    if not count or count < 0:
        return ""
    if count < 1000:
        return f"{count} B"
    return f"{count / 1000:.0f} KB" if count < 1_000_000 else f"{count / 1_000_000:.1f} MB"


def minutes(seconds: int | None) -> str:
    """The length of a recording as minutes:seconds."""
    return f"{seconds // 60}:{seconds % 60:02d}" if seconds and seconds > 0 else ""


def lasting(seconds: float) -> str:
    """A duration in the unit that fits it."""
    if abs(seconds) < 1:
        return f"{seconds * 1000:.0f} ms"
    if abs(seconds) < 60:
        return f"{seconds:.1f} s"
    minute, rest = divmod(int(seconds), 60)
    hour, minute = divmod(minute, 60)
    return f"{hour} h {minute} min" if hour else f"{minute} min {rest} s"


def status_words(message: Message) -> str:
    """The status of a message in words."""
    if message.status == "failed":
        failure = message.failure
        return f"Not delivered: {failure.text or 'no reason given'} ({failure.code})" if failure else "Failed"
    towards = "in" if message.sent_by == "messenger" and message.status in ("sent", "accepted") else None
    return STATUS_WORDS.get((towards or message.direction, message.status), message.status.capitalize())


def snippet(last: conversations.Snippet | None) -> str:
    """The latest message of a chat, in one line."""
    if last is None:
        return "No messages yet"
    if last.deleted:
        return "Message deleted"
    text = (last.text or "")[:160]
    if last.type == "text":
        return text
    return f"{KINDS.get(last.type, last.type)}: {text}" if text else KINDS.get(last.type, last.type)


def excerpt(message: Message) -> str:
    """A quoted message, in one line."""
    if message.deleted:
        return "Message deleted"
    return (message.text or KINDS.get(message.type, message.type))[:160]


def buttons(markup: object) -> list[list[Button]]:
    """The rows of buttons, or of a list, that a message from Kommo offers."""
    if not isinstance(markup, dict):
        return []
    rows = [row for row in _list(markup.get("buttons")) if isinstance(row, list)]
    found = [[_button(one) for one in row[:BUTTONS_MAX] if isinstance(one, dict)] for row in rows]
    menu = markup.get("list_message")
    sections = _list(menu.get("sections")) if isinstance(menu, dict) else []
    for section in sections:
        if isinstance(section, dict):
            entries = [one for one in _list(section.get("rows")) if isinstance(one, dict)]
            found += [[Button(str(one.get("title") or ""))] for one in entries]
    return [row for row in found if row][:BUTTONS_MAX]


def _button(one: dict[str, Any]) -> Button:
    return Button(str(one.get("text") or ""), web_link(one.get("url")))


def _list(value: object) -> list[Any]:
    return value[:BUTTONS_MAX] if isinstance(value, list) else []


def forwards(value: object) -> list[Forward]:
    """The messages that were forwarded with a message."""
    messages = _list(value.get("messages")) if isinstance(value, dict) else []
    return [_forward(one) for one in messages if isinstance(one, dict)]


def _forward(one: dict[str, Any]) -> Forward:
    sender = one.get("sender")
    who = str(sender.get("name") or "") if isinstance(sender, dict) else ""
    kind = str(one.get("type") or "text")
    return Forward(who, KINDS.get(kind, kind), str(one.get("text") or ""))


def template_name(template: object) -> str:
    """The name of a message's template."""
    return str(template.get("external_id") or template.get("id") or "") if isinstance(template, dict) else ""


def post_link(post: Json | None) -> tuple[str, str]:
    """The caption and the web link of a post that a message shares or comments on, or two empty texts."""
    if post is None:
        return "", ""
    url = web_link(post.get("url"))
    return str(post.get("caption") or post.get("site_name") or host(url) or "A post"), url


def moment_title(moment: Moment) -> str:
    """The title of a moment in a message's timeline."""
    if moment.type == "message.accepted":
        side = SIDES.get(moment.side or "", "the other side")
        return f"Mirrored in {side}" if moment.copy else f"Accepted by {side}"
    if moment.type == "message.failed":
        return f"Failed: {moment.text or 'no reason given'} ({moment.code})"
    if moment.type == "conflict.noticed" and moment.about in CONFLICTS:
        return f"{CONFLICTS[moment.about]}: {moment.remote_id}"
    return MOMENTS.get(moment.type, moment.type)


def hops(history: History) -> list[Hop]:
    """The steps of a message from writing to reading; they compare the clocks of three systems."""
    reached = [("Written", history.sent_at), ("Recorded here", history.recorded_at)]
    first = {"message.accepted", "message.delivered", "message.read", "message.failed"}
    for moment in history.timeline:
        if moment.type in first and not moment.copy:
            first.remove(moment.type)
            title = "Failed" if moment.type == "message.failed" else moment_title(moment)
            reached.append((title, moment.recorded_at))
    found = []
    for (_, before), (title, after) in pairwise(reached):
        seconds = max(0.0, (_moment(after) - _moment(before)).total_seconds())
        found.append(Hop(title, seconds, lasting(seconds), seconds > SLOW_SECONDS and title != "Read"))
    return found


def since_previous(history: History) -> dict[int, str]:
    """How long after the event before it each event was recorded, by position."""
    found, before = {}, None
    for moment in history.timeline:
        now = _moment(moment.recorded_at)
        found[moment.position] = f"+{lasting((now - before).total_seconds())}" if before else ""
        before = now
    return found


def milliseconds_between(before: str, after: str) -> int:
    """Milliseconds from one moment to another."""
    return int((_moment(after) - _moment(before)).total_seconds() * 1000)


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


class Stored(Struct, frozen=True):
    """The fields of a stored event that its line shows; a damaged one lacks some."""

    type: str = "unreadable"
    by: str = ""
    recorded_at: str = ""


def event_head(stored: events.Stored) -> Stored:
    """The fields of an event that its line shows."""
    try:
        return msgspec.json.decode(stored.event, type=Stored)
    except msgspec.MsgspecError:
        return Stored()


def pretty(raw: msgspec.Raw) -> str:
    """Stored JSON, indented."""
    return msgspec.json.format(bytes(raw), indent=2).decode()[:RAW_CHARACTERS_MAX]


FILTERS: dict[str, Callable[..., Any]] = {
    "author": author,
    "speaker": speaker,
    "initial": initial,
    "web_link": web_link,
    "host": host,
    "size": size,
    "minutes": minutes,
    "status_words": status_words,
    "snippet": snippet,
    "excerpt": excerpt,
    "buttons": buttons,
    "forwards": forwards,
    "template_name": template_name,
    "post_link": post_link,
    "moment_title": moment_title,
    "pretty": pretty,
    "event_head": event_head,
    "reason": reason,
}
GLOBALS = {"PARKED_CAUSES": PARKED_CAUSES, "KINDS": KINDS, "SIDES": SIDES, "FOLD": FOLD_CHARACTERS}
