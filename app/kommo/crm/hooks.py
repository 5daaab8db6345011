"""DOC"""

import base64
import hmac
import logging
import re
from collections.abc import Iterator, Mapping
from typing import Literal, TypeAlias

from app import clock
from app.channels.directory import Channel
from app.kommo.crm.php_form import Tree
from app.limits import is_uuid
from domain import commands as c
from domain import events as e
from domain import ids
from domain.ids import KOMMO, Scope

log = logging.getLogger("chatledger.crmhooks")
TOLD_MAX = 100
DIGITS_MAX = 15
TEXT_CHARACTERS_MAX = 255
Became: TypeAlias = Literal["received", "accepted", "declined", "linked"]
Told: TypeAlias = c.Talk | c.Lead | c.Review
BECAME: dict[str, Became] = {"accept": "accepted", "decline": "declined", "link": "linked"}
ACTIONS = ("add", "update", "delete")
REVIEWS_MAX = 100
REASON_CHARACTERS_MAX = 500
OUR_OWN = {"account", "message"}  # Who tells it; and what a signed hook or the messenger has told already.
_NAME = re.compile(r"[a-z_]{1,40}")


class Unreadable(Exception):
    """A talk, lead or template that does not say which it is; the message says what is missing."""


def hook_path(master: bytes, account_id: str) -> str:
    """The path at which an account's CRM is to tell us what happens, `/crm/…`; only we can make it."""
    key = hmac.digest(master, b"crm-hook:" + account_id.encode(), "sha256")
    return f"/crm/{account_id}/{base64.urlsafe_b64encode(key).decode().rstrip('=')}"


def commands(account: str, tree: Tree, channels: Mapping[str, Channel]) -> tuple[list[Told], list[str]]:
    """What a hook tells of talks, leads and templates, in its order, and why some of it cannot be read."""
    ours = [each.connections[account].scope for each in channels.values() if account in each.connections]
    told: list[Told] = []
    unread: list[str] = []
    for kind, action, fields in _entries(account, tree):
        if len(told) >= TOLD_MAX:
            unread.append(f"more than {TOLD_MAX} talks, leads and templates")
            break
        try:
            if kind == "template":
                told.append(_review(account, fields))
            else:
                make = _talk if kind == "talk" else _lead
                told.append(make(account, action, fields, ours))
        except Unreadable as error:
            unread.append(f"{kind}[{action}]: {error}")
    return told, unread


def _entries(account: str, tree: Tree) -> Iterator[tuple[str, str, Tree]]:
    """The talks, leads and templates of a hook, with what was done to them; what else it tells is logged.

    A template has no name of its kind around it: it comes as `add[0]…`.
    """
    for kind, actions in tree.items():
        if kind in ("talk", "unsorted") and isinstance(actions, dict):
            for action in ACTIONS:
                for fields in _objects(actions.get(action)):
                    yield kind, action, fields
        elif kind in ACTIONS and isinstance(actions, dict):
            for fields in _objects(actions):
                yield "template", kind, fields
        elif kind not in OUR_OWN:
            name = kind if _NAME.fullmatch(kind) else "something else"
            log.info("account %s: a CRM webhook about %s is not recorded", account, name)


def _talk(account: str, action: str, fields: Tree, ours: list[Scope]) -> c.Talk:
    talk_id = _number(fields.get("talk_id"))
    if talk_id is None:
        raise Unreadable("talk_id must be a number")
    chat_id = _text(fields.get("chat_id"))
    stream, chats = ids.talk_stream(account, talk_id), _chats(ours, chat_id)
    return c.Talk(
        **_stamp(account, stream, chats),
        stream=stream,
        added=action == "add",
        fields={
            "talk_id": talk_id,
            "changed": _number(fields.get("updated_at")) or _number(fields.get("created_at")) or 0,
            "chat_id": chat_id,
            "contact_id": _number(fields.get("contact_id")),
            "entity_id": _number(fields.get("entity_id")),
            "entity_type": _text(fields.get("entity_type")),
            "is_in_work": _flag(fields.get("is_in_work")),
            "is_read": _flag(fields.get("is_read")),
            "rate": _number(fields.get("rate")),
            "origin": _text(fields.get("origin")),
        },
        chats=chats,
    )


def _lead(account: str, action: str, fields: Tree, ours: list[Scope]) -> c.Lead:
    uid = _text(fields.get("uid"))
    if uid is None:
        raise Unreadable("uid is missing")
    became = _became(action, fields)
    result = next((told for name in BECAME if (told := _object(fields.get(f"{name}_result")))), {})
    chat_id = _chat_id(fields)
    stream, chats = ids.lead_stream(account, uid), _chats(ours, chat_id)
    return c.Lead(
        **_stamp(account, stream, chats),
        stream=stream,
        became=became,
        fields={
            "uid": uid,
            "chat_id": chat_id,
            "contact_id": _first_id(result, fields, "contacts"),
            "lead_id": _first_id(result, fields, "leads") or _number(fields.get("lead_id")),
            "user_id": _number(fields.get("modified_user_id")) or _number(fields.get("user_id")),
        },
        chats=chats,
    )


def _review(account: str, fields: Tree) -> c.Review:
    template_id = _number(fields.get("id"))
    if template_id is None:
        raise Unreadable("id must be a number")
    reviews = [
        e.Review(
            number,
            _number(one.get("source_id")),
            _text(one.get("status")),
            _start(one.get("reject_reason"), REASON_CHARACTERS_MAX),
        )
        for one in _objects(fields.get("reviews"))[:REVIEWS_MAX]
        if (number := _number(one.get("id")))
    ]
    stream = ids.template_stream(account, template_id)
    return c.Review(
        **_stamp(account, stream, ()),
        stream=stream,
        fields={
            "template_id": template_id,
            "kind": _text(fields.get("type")),
            "name": _start(fields.get("name"), TEXT_CHARACTERS_MAX),
            "changed": _number(fields.get("updated_at")) or _number(fields.get("created_at")) or 0,
            "reviews": reviews,
        },
    )


def _became(action: str, fields: Tree) -> Became:
    """What became of an incoming lead: by its action, else by the result that is told."""
    said = _text(fields.get("action")) or ""
    if said in BECAME:
        return BECAME[said]
    for name, became in BECAME.items():
        if f"{name}_result" in fields:
            return became
    if action == "delete":
        raise Unreadable("action must be accept, decline or link")
    return "received"


def _chat_id(fields: Tree) -> str | None:
    """The chat of an incoming lead stands in what is told of its first message."""
    for where in (_object(fields.get("metadata")), _object(fields.get("source_data")), fields):
        origin = _object(where.get("origin"))
        if found := _text(origin.get("chat_id")) or _text(where.get("chat_id")):
            return found
    source = _text(fields.get("source_uid"))
    return source if source and is_uuid(source) else None


def _first_id(result: Tree, fields: Tree, name: str) -> int | None:
    """The first contact or lead of a result, or of what else is told: a number, or an object with an `id`."""
    for where in (result, _object(fields.get("_embedded")), _object(fields.get("data"))):
        for one in _object(where.get(name)).values():
            if found := _number(one.get("id") if isinstance(one, dict) else one):
                return found
    return None


def _chats(ours: list[Scope], chat_id: str | None) -> tuple[tuple[Scope, str], ...]:
    """The streams that a chat of Kommo's may have: one for every channel that the account has or had."""
    if chat_id is None:
        return ()
    return tuple((link, ids.conversation_id(link, KOMMO, chat_id)) for link in ours)


def _stamp(account: str, stream: str, chats: tuple[tuple[Scope, str], ...]) -> c.Stamp:
    lane = chats[0][1] if chats else stream
    return clock.stamp(Scope("", account, "", b""), lane, KOMMO, now=clock.now_ms())


def _objects(value: Tree | str | None) -> list[Tree]:
    return [each for each in _object(value).values() if isinstance(each, dict)]


def _object(value: Tree | str | None) -> Tree:
    return value if isinstance(value, dict) else {}


def _text(value: Tree | str | None) -> str | None:
    return value if isinstance(value, str) and 0 < len(value) <= TEXT_CHARACTERS_MAX else None


def _start(value: Tree | str | None, characters: int) -> str | None:
    """A text, no longer than that."""
    return value[:characters] or None if isinstance(value, str) else None


def _number(value: Tree | str | None) -> int | None:
    """Digits as a number; None for 0, for an empty text and for anything else."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= DIGITS_MAX:
        return int(value) or None
    return None


def _flag(value: Tree | str | None) -> bool:
    return isinstance(value, str) and value.lower() in ("1", "true")
