"""The parts that a message can do without: refused with one of them, it is sent again without.

A reply to a message that the other side does not have, a source that was deleted, or the link of a picture
that is gone must not cost what somebody wrote. Nobody documents how an error names the part at fault, so each
part is left out in turn, those first that the answer's text seems to mean, and at last all of them together.
"""

import re
from typing import NamedTuple, TypeAlias

from msgspec.structs import replace

from app.delivery.job import Pushed
from app.kommo.chats.payloads import Created
from app.messengers import adapter
from domain import events as e
from domain.ids import KOMMO

Parts: TypeAlias = tuple[str, ...]


class Part(NamedTuple):
    """A part, by the word that shows that an answer means it; `to` is the only side that gets it."""

    name: str
    word: str
    to: str | None = None


PARTS = (
    Part("reply_to", "repl"),
    Part("forwards", "forward"),
    Part("source", "source"),
    Part("thumbnail", "thumbnail", "messenger"),
    Part("sender.avatar", "avatar", KOMMO),
    Part("sender.profile_link", "profile_link|link", KOMMO),
    Part("sender.profile", "profile|phone|email", KOMMO),
    Part("sender.user_id", "user|sender|ref_id", KOMMO),
)
# Nearly every message has it and Kommo needs one, so it is in doubt only if the answer says so.
NAME = Part("sender.name", r"\bname\b", KOMMO)


def without_each(event: Pushed, text: str, bot_id: str | None) -> tuple[Parts, ...]:
    """What to leave out of a refused message, one after the other; `text` is the answer's."""
    if not isinstance(event, Created):
        return ()
    text = text.lower()
    present = [one for one in PARTS if one.to in (None, event.push) and _has(event, one.name, bot_id)]
    if event.push == KOMMO and event.sender.name and re.search(NAME.word, text):
        present.append(NAME)
    meant = [one.name for one in present if re.search(one.word, text)]
    names = [*meant, *(one.name for one in present if one.name not in meant)]
    together = [tuple(names)] if len(names) > 1 else []
    return (*((name,) for name in names), *together)


def without(event: Pushed, parts: Parts, bot_id: str | None) -> Pushed:
    """An event without some of its parts; a manager whom Kommo does not know is replaced by the bot."""
    if not parts or not isinstance(event, Created):
        return event
    content, sender = event.content, event.sender
    if "reply_to" in parts:
        content = replace(content, reply_to=None)
    if "forwards" in parts:
        content = replace(content, forwards=None, forwarded=None)
    if "thumbnail" in parts:
        content = replace(content, thumbnail=None)
    for name in ("avatar", "profile_link", "name"):
        if f"sender.{name}" in parts:
            sender = replace(sender, **{name: None})
    if "sender.profile" in parts:
        sender = replace(sender, phone=None, email=None)
    if "sender.user_id" in parts:
        sender = replace(sender, id=bot_id, ref_id=bot_id)
    source = None if "source" in parts else event.source
    return replace(event, content=content, sender=sender, source=source)


def names_without(names: adapter.Push, parts: Parts) -> adapter.Push:
    """The messenger's names of an event that is sent without some of its parts."""
    if not parts:
        return names
    event = without(names.event, parts, None)
    assert isinstance(event, e.MessageSent)
    reply_id = None if "reply_to" in parts else names.reply_id
    forwards = None if "forwards" in parts else names.forwards
    return replace(names, event=event, reply_id=reply_id, forwards=forwards)


def _has(event: Created, part: str, bot_id: str | None) -> bool:
    content, sender = event.content, event.sender
    match part:
        case "reply_to":
            return content.reply_to is not None
        case "forwards":
            return bool(content.forwards or content.forwarded)
        case "source":
            return bool(event.source)
        case "thumbnail":
            return bool(content.thumbnail)
        case "sender.profile":
            return bool(sender.phone or sender.email)
        case "sender.user_id":
            return event.receiver is not None and bot_id is not None and sender.ref_id not in (None, bot_id)
    return bool(getattr(sender, part.removeprefix("sender.")))
