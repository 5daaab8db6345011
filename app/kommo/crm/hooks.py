"""Turns the CRM's webhooks about an account into commands, and makes their secret address.

A webhook is a form of talks, incoming leads and templates, each under what was done to it. An entry becomes
one command, in the webhook's order; `domain.decide` drops what is recorded already, so a repeated webhook
changes nothing. An entry that does not name its talk, lead or template is left out with a reason, and does
not stop the others: if we refused the webhook, Kommo would send the same again, and end the subscription
after a hundred refusals.

Talks and leads may name a chat of Kommo. Its conversation may belong to any channel that the account has or
had, so a command carries the stream of each. Kommo signs nothing: the address has a key that only
the ledger's own key makes (`app/access/keyring.py`).
Source: Kommo's developer documentation, "Webhooks"; fields as they were captured in tests/golden/crm.
"""

import base64
import hmac
import logging
import re
from collections.abc import Iterator, Mapping
from typing import Literal, TypeAlias

from app import clock
from app.channels.directory import Channel
from app.kommo.crm.php_form import Tree
from app.limits import AHEAD_MS_BELIEVED, is_uuid
from domain import commands as c
from domain import events as e
from domain import ids
from domain.ids import KOMMO, Scope

log = logging.getLogger("chatledger.crmhooks")
COMMANDS_MAX = (
    100  # Chosen: a webhook has one entry; this bounds what one body may put in the ledger's queue.
)
DIGITS_MAX = 15  # Chosen: any such number fits a bigint and a JavaScript number.
TEXT_CHARACTERS_MAX = 255  # Chosen: as the ids of the contract; a longer one is not one of Kommo's.
LeadState: TypeAlias = Literal["received", "accepted", "declined", "linked"]
HookCommand: TypeAlias = c.Talk | c.Lead | c.Review
LEAD_STATES: dict[str, LeadState] = {"accept": "accepted", "decline": "declined", "link": "linked"}
ACTIONS = ("add", "update", "delete")
REVIEWS_MAX = 100  # Chosen: a template has one review a source, and an event stays far below its 384 KB.
REASON_CHARACTERS_MAX = 500  # Chosen: enough for a sentence or two; people read the rest in Kommo.
IGNORED = {
    "account",
    "message",
}  # The sender; and messages, which come by signed hooks or from the messenger.
_NAME = re.compile(r"[a-z_]{1,40}")


class EntryRefused(Exception):
    """A talk, lead or template without its id; the message says what is missing."""


def hook_path(address_key: bytes, account_id: str, nonce: bytes = b"") -> str:
    """Returns the path of an account's CRM webhooks, `/crm/…`; only the ledger's key makes it.

    `nonce` is empty until the address is renewed.
    """
    key = hmac.digest(address_key, b"crm-hook:" + account_id.encode() + nonce, "sha256")
    return f"/crm/{account_id}/{base64.urlsafe_b64encode(key).decode().rstrip('=')}"


def commands(
    account: str, tree: Tree, channels: Mapping[str, Channel]
) -> tuple[list[HookCommand], list[str]]:
    """Returns the commands of a webhook in its order, and the reasons for what is left out."""
    scopes = [each.connections[account].scope for each in channels.values() if account in each.connections]
    found: list[HookCommand] = []
    left_out: list[str] = []
    for kind, action, fields in _entries(account, tree):
        if len(found) >= COMMANDS_MAX:
            left_out.append(f"more than {COMMANDS_MAX} talks, leads and templates")
            break
        try:
            if kind == "template":
                found.append(_review(account, fields))
            else:
                make = _talk if kind == "talk" else _lead
                found.append(make(account, action, fields, scopes))
        except EntryRefused as error:
            left_out.append(f"{kind}[{action}]: {error}")
    return found, left_out


def _entries(account: str, tree: Tree) -> Iterator[tuple[str, str, Tree]]:
    """Yields kind, action and fields of each talk, lead and template; other kinds are logged.

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
        elif kind not in IGNORED:
            name = kind if _NAME.fullmatch(kind) else "something else"
            log.info("account %s: a CRM webhook about %s is not recorded", account, name)


def _talk(account: str, action: str, fields: Tree, scopes: list[Scope]) -> c.Talk:
    talk_id = _number(fields.get("talk_id"))
    if talk_id is None:
        raise EntryRefused("talk_id must be a number")
    chat_id = _text(fields.get("chat_id"))
    stream, chats = ids.talk_stream(account, talk_id), _chats(scopes, chat_id)
    return c.Talk(
        **_stamp(account, stream, chats),
        stream=stream,
        added=action == "add",
        fields={
            "talk_id": talk_id,
            "changed": _changed(fields),
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


def _lead(account: str, action: str, fields: Tree, scopes: list[Scope]) -> c.Lead:
    uid = _text(fields.get("uid"))
    if uid is None:
        raise EntryRefused("uid is missing")
    state = _lead_state(action, fields)
    result = next((one for name in LEAD_STATES if (one := _object(fields.get(f"{name}_result")))), {})
    chat_id = _chat_id(fields)
    stream, chats = ids.lead_stream(account, uid), _chats(scopes, chat_id)
    return c.Lead(
        **_stamp(account, stream, chats),
        stream=stream,
        became=state,
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
        raise EntryRefused("id must be a number")
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
            "changed": _changed(fields),
            "reviews": reviews,
        },
    )


def _changed(fields: Tree) -> int:
    """When a talk or template changed, in unix seconds; a time far ahead is now, so that later ones count."""
    changed = _number(fields.get("updated_at")) or _number(fields.get("created_at")) or 0
    now_ms = clock.now_ms()
    return changed if changed * 1000 <= now_ms + AHEAD_MS_BELIEVED else now_ms // 1000


def _lead_state(action: str, fields: Tree) -> LeadState:
    """The state of an incoming lead after a webhook: by its own action, else by the result it has."""
    own_action = _text(fields.get("action")) or ""
    if own_action in LEAD_STATES:
        return LEAD_STATES[own_action]
    for name, state in LEAD_STATES.items():
        if f"{name}_result" in fields:
            return state
    if action == "delete":
        raise EntryRefused("action must be accept, decline or link")
    return "received"


def _chat_id(fields: Tree) -> str | None:
    """The chat of an incoming lead, which stands beside its first message."""
    for place in (_object(fields.get("metadata")), _object(fields.get("source_data")), fields):
        origin = _object(place.get("origin"))
        if chat_id := _text(origin.get("chat_id")) or _text(place.get("chat_id")):
            return chat_id
    source = _text(fields.get("source_uid"))
    return source if source and is_uuid(source) else None


def _first_id(result: Tree, fields: Tree, name: str) -> int | None:
    """The first contact or lead of a result, or of the lead itself: a number, or an object with an `id`."""
    for place in (result, _object(fields.get("_embedded")), _object(fields.get("data"))):
        for one in _object(place.get(name)).values():
            if number := _number(one.get("id") if isinstance(one, dict) else one):
                return number
    return None


def _chats(scopes: list[Scope], chat_id: str | None) -> tuple[tuple[Scope, str], ...]:
    """The streams that Kommo's chat may have: one for every channel that the account has or had."""
    if chat_id is None:
        return ()
    return tuple((scope, ids.conversation_id(scope, KOMMO, chat_id)) for scope in scopes)


def _stamp(account: str, stream: str, chats: tuple[tuple[Scope, str], ...]) -> c.Stamp:
    clock_stream = chats[0][1] if chats else stream
    return clock.stamp(Scope("", account, "", b""), clock_stream, KOMMO, now=clock.now_ms())


def _objects(value: Tree | str | None) -> list[Tree]:
    return [each for each in _object(value).values() if isinstance(each, dict)]


def _object(value: Tree | str | None) -> Tree:
    return value if isinstance(value, dict) else {}


def _text(value: Tree | str | None) -> str | None:
    return value if isinstance(value, str) and 0 < len(value) <= TEXT_CHARACTERS_MAX else None


def _start(value: Tree | str | None, characters: int) -> str | None:
    """The first `characters` of a text; None for an empty one and for anything else."""
    return value[:characters] or None if isinstance(value, str) else None


def _number(value: Tree | str | None) -> int | None:
    """Digits as a number; None for 0, for an empty text and for anything else."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= DIGITS_MAX:
        return int(value) or None
    return None


def _flag(value: Tree | str | None) -> bool:
    return isinstance(value, str) and value.lower() in ("1", "true")
