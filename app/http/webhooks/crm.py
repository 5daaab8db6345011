"""What Kommo's CRM says of an account: talks, incoming leads and templates' reviews become events; what we
know already does not.

Source: Kommo's CRM webhooks, a form with bracket keys whose values are all texts. They are not signed: the
path has a key that nobody can guess. Kommo waits 2 s, sends again up to four times what was not answered with
a success, and stops for good after a hundred failures in two hours. So a hook that we cannot read is kept
and taken: sent again it would be the same, and in the end it would cost us those we can read.
"""

import asyncio
import base64
import hmac
import logging
import re
import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Any, Literal, TypeAlias, cast

import psycopg
from litestar import Response, post
from litestar.params import FromPath

from app import clock, metrics
from app.channels.directory import Channel
from app.database.pool import ViewsMissing
from app.http.openapi.responses import answers, takes
from app.http.webhooks.front import HangUp, Receive
from app.http.webhooks.front import read as read_body
from app.http.webhooks.kommo import BUSY, KEEP, RETRY_AFTER_SECONDS
from app.kommo.crm import contact_links
from app.kommo.crm.php_form import BadForm, Tree, read
from app.ledger.writer import Full, Unavailable
from app.messengers.commands import is_uuid
from app.operations.services import Call, Services, services_of
from app.problems import Wrong
from domain import commands as c
from domain import events as e
from domain import ids
from domain.ids import KOMMO, Link

ANSWER_SECONDS = 1.5
TOLD_MAX = 100
DIGITS_MAX = 15
TEXT_CHARACTERS_MAX = 255
UNKNOWN = "there is no webhook at this path: subscribe with POST /v1/accounts/{account_id}/webhooks"
log = logging.getLogger("chatledger.crmhooks")

Became: TypeAlias = Literal["received", "accepted", "declined", "linked"]
Told: TypeAlias = c.Talk | c.Lead | c.Review
BECAME: dict[str, Became] = {"accept": "accepted", "decline": "declined", "link": "linked"}
ACTIONS = ("add", "update", "delete")
REVIEWS_MAX = 100
REASON_CHARACTERS_MAX = 500
OUR_OWN = {"account", "message"}  # Who tells it; and what a signed hook or the messenger has told already.
EXAMPLES = {
    "talk": {
        "account[id]": "29081",
        "talk[update][0][talk_id]": "1170",
        "talk[update][0][updated_at]": "1795334401",
        "talk[update][0][contact_id]": "4215",
        "talk[update][0][chat_id]": "c-1",
        "talk[update][0][entity_id]": "77",
        "talk[update][0][entity_type]": "lead",
        "talk[update][0][is_in_work]": "1",
    },
    "lead": {
        "unsorted[delete][0][uid]": "u-1",
        "unsorted[delete][0][action]": "accept",
        "unsorted[delete][0][accept_result][leads][0]": "77",
    },
    "review": {
        "add[0][id]": "5",
        "add[0][type]": "waba",
        "add[0][reviews][0][id]": "9",
        "add[0][reviews][0][source_id]": "11",
        "add[0][reviews][0][status]": "review",
    },
}
_NAME = re.compile(r"[a-z_]{1,40}")


class Unreadable(Exception):
    """A talk, lead or template that does not say which it is; the message says what is missing."""


def hook_path(master: bytes, account_id: str) -> str:
    """The path at which an account's CRM is to tell us what happens, `/crm/…`; only we can make it."""
    key = hmac.digest(master, b"crm-hook:" + account_id.encode(), "sha256")
    return f"/crm/{account_id}/{base64.urlsafe_b64encode(key).decode().rstrip('=')}"


@post(
    "/crm/{account_id:str}/{key:str}",
    status_code=200,
    summary="A webhook of Kommo's CRM",
    tags=["webhooks"],
    responses=answers(415, 503, said={404: UNKNOWN}),
    opt=takes(dict[str, str], "application/x-www-form-urlencoded", **EXAMPLES) | {"writes": False},
)
async def crm_hook(request: Call, account_id: FromPath[str], key: FromPath[str]) -> Response[bytes]:
    """A form about talks, incoming leads, templates or messages: 200 once it is durable, repeats too."""
    begin, status = time.perf_counter(), 500
    try:
        await _answered(request, account_id, key)
        status = 200
    except Wrong as wrong:
        status = wrong.status
        raise
    finally:
        metrics.WEBHOOKS.answered("crm", status, time.perf_counter() - begin)
    return Response(b"", status_code=200)


async def _answered(request: Call, account_id: str, key: str) -> None:
    services = services_of(request)
    right = hook_path(services.keys.master, account_id)
    if not hmac.compare_digest(f"/crm/{account_id}/{key}".encode(), right.encode()):
        raise Wrong(404, UNKNOWN)
    try:
        body = await read_body(dict(request.scope["headers"]), cast("Receive", request.receive))
        async with asyncio.timeout(ANSWER_SECONDS):
            await take(services, account_id, body)
    except HangUp:
        raise Wrong(400, "the body is not complete: send it again") from None
    except (TimeoutError, psycopg.OperationalError, ViewsMissing, Full, Unavailable):
        raise Wrong(503, BUSY, retry_after=RETRY_AFTER_SECONDS) from None


async def take(services: Services, account: str, body: bytes) -> None:
    """Record what a hook tells, or keep it; durable then. Raises Full, Unavailable and more."""
    try:
        tree = read(body)
    except BadForm as error:
        await _keep(services, account, body, str(error))
        return
    told, unread = commands(account, tree, await services.channels.all())
    if not services.ledger.has_room(len(told), len(body)):
        raise Full
    futures = [services.ledger.submit(command, len(body) // len(told)) for command in told]
    if futures:
        await asyncio.wait(futures)  # Not `gather`: what is given up here may be committed all the same.
    for future in futures:
        future.result()
    for command in told:
        await _let_wait(services, account, command)
    if unread:
        await _keep(services, account, body, "; ".join(unread[:10]))


async def _let_wait(services: Services, account: str, told: Told) -> None:
    """What a talk or lead says of a chat that we do not know yet counts once we do."""
    if isinstance(told, c.Review):
        return
    fields = told.fields
    chat_id, contact_id = fields["chat_id"], fields["contact_id"]
    match told:
        case c.Lead(became="declined"):
            return
        case c.Lead():
            lead_id, at = fields["lead_id"], told.now_ms // 1000
        case c.Talk():
            lead_id = fields["entity_id"] if fields["entity_type"] == "lead" else None
            at = cast("int", fields["changed"])
    if not told.chats or not isinstance(contact_id, int):
        return
    await contact_links.keep(
        services.pool, account, cast("str", chat_id), contact_id, cast("int | None", lead_id), at
    )


def commands(account: str, tree: Tree, channels: Mapping[str, Channel]) -> tuple[list[Told], list[str]]:
    """What a hook tells of talks, leads and templates, in its order, and why some of it cannot be read."""
    ours = [each.connections[account].link for each in channels.values() if account in each.connections]
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


def _talk(account: str, action: str, fields: Tree, ours: list[Link]) -> c.Talk:
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


def _lead(account: str, action: str, fields: Tree, ours: list[Link]) -> c.Lead:
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


def _chats(ours: list[Link], chat_id: str | None) -> tuple[tuple[Link, str], ...]:
    """The streams that a chat of Kommo's may have: one for every channel that the account has or had."""
    if chat_id is None:
        return ()
    return tuple((link, ids.conversation_id(link, KOMMO, chat_id)) for link in ours)


def _stamp(account: str, stream: str, chats: tuple[tuple[Link, str], ...]) -> c.Stamp:
    lane = chats[0][1] if chats else stream
    return clock.stamp(Link("", account, "", b""), lane, KOMMO, now=clock.now_ms())


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


async def _keep(services: Services, account: str, body: bytes, reason: str) -> None:
    """Keep a hook that we cannot read, for people to look at: `GET /v1/refused`."""
    refused = uuid.uuid4()
    async with services.pool.link() as link:
        await link.execute(KEEP, (refused, f"crm:{account}", reason, body))
    log.error("a CRM webhook cannot be read and was kept: id %s, %d bytes", refused, len(body))


routes: list[Any] = [crm_hook]
