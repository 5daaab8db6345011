"""What an event becomes on its way to Kommo: path and payload exactly as the reference has them."""

import hashlib
import hmac
import json
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from app.kommo.chats import payloads, signature
from app.messengers import checks, commands
from domain import commands as c
from domain import events as e
from domain.ids import scope_of
from ops.sandbox.help_text import GUIDE
from tests.support.ids import ACCOUNT, CHANNEL, MARIA, SCOPE_ID
from tests.support.sandbox_client import ORIGIN, Integration, integrating

OURS = "8d74efe1-75f2-5187-b077-55828d4430b3"
CHAT_ID = "6cbab3d5-c4c1-46ff-b710-ad59ad10805f"
THEIRS = "079e44fb-fc22-476b-9e8a-421b688ec53b"
MEDIA = "https://files.example.com/x.jpg"
AT = "2026-11-22T08:00:00.123Z"
BASE: dict[str, Any] = {
    "id": "019ab0c2-7d7a-7c3e-8c7b-0a5b5e1d2f3c",
    "stream": OURS,
    "version": 1,
    "channel": "acme",
    "account": ACCOUNT,
    "conversation": "ef03399d-1a38-57f9-93f3-fc994fba5ae9",
    "message": OURS,
    "at": AT,
    "recorded_at": AT,
    "by": "messenger",
    "schema": 1,
}
ANN = e.Party(id="u-1", name="Ann")
ENDS = e.Ends(conversation_id="conv-1", chat_id=CHAT_ID)


def told(event: e.AnyEvent) -> tuple[str, Any]:
    """The path after `/v2/origin/custom/`, and the payload as it is read on the other side."""
    path, payload = payloads.request(SCOPE_ID, event)
    return path, json.loads(msgspec.json.encode(payload))


def sent(content: e.Content, **more: Any) -> e.MessageSent:
    given: dict[str, Any] = {"direction": "in", "own_id": "m-1", "msec": 1795334400123, "sender": ANN}
    return e.MessageSent(**BASE, content=content, **(given | more))


def text(**more: Any) -> e.Content:
    return e.Content(type="text", text="Hello", conversation_id="conv-1", **more)


def test_a_customers_message_has_every_field_and_no_receiver() -> None:
    profile = {"phone": "+15550100", "email": "ann@example.com"}
    ann = e.Party(id="u-1", name="Ann", avatar=MEDIA, profile_link="https://example.com/ann", **profile)
    reply = e.Reply("m-0", message=OURS, sent_by="messenger", own_id="m-0")
    path, body = told(sent(text(chat_id=CHAT_ID, reply_to=reply), sender=ann, source="15550999", silent=True))
    assert path == f"{CHANNEL}_{ACCOUNT}"
    assert body == {
        "event_type": "new_message",
        "payload": {
            "timestamp": 1795334400,
            "msec_timestamp": 1795334400123,
            "msgid": OURS,
            "conversation_id": "conv-1",
            "conversation_ref_id": CHAT_ID,
            "silent": True,
            "source": {"external_id": "15550999"},
            "sender": {
                "id": "u-1",
                "name": "Ann",
                "avatar": MEDIA,
                "profile": profile,
                "profile_link": "https://example.com/ann",
            },
            "message": {"type": "text", "text": "Hello"},
            "reply_to": {"message": {"msgid": OURS}},
        },
    }


@pytest.mark.parametrize("ref_id", [MARIA, "b07b07b0-0000-4000-8000-000000000001"], ids=["manager", "bot"])
def test_an_outgoing_message_names_its_writer_by_ref_id_and_the_customer_as_receiver(ref_id: str) -> None:
    writer = e.Party(id="maria", name="Maria", ref_id=ref_id)
    _, body = told(sent(text(), direction="out", sender=writer, receiver=ANN))
    assert body["payload"]["sender"] == {"id": "maria", "name": "Maria", "ref_id": ref_id}
    assert body["payload"]["receiver"] == {"id": "u-1", "name": "Ann"}


FILE: dict[str, Any] = {"media": MEDIA, "file_name": "x.jpg", "file_size": 27107}
CONTENTS: list[dict[str, Any]] = [
    {"type": "text", "text": "Yes", "callback_data": "row-1"},
    {"type": "file", "text": "", **FILE},
    {"type": "picture", "text": "A caption", **FILE},
    {"type": "video", "text": "", "media_duration": 7, **FILE},
    {"type": "voice", "text": "", "media": MEDIA, "media_duration": 3},
    {"type": "audio", "text": "", "media": MEDIA, "media_duration": 200},
    {"type": "sticker", "text": "", "sticker_id": "s-1"},
    {"type": "location", "text": "", "location": {"lon": 13.4, "lat": 52.5}},
    {"type": "contact", "text": "", "contact": {"name": "Bo", "phone": "+15550111"}},
    {"type": "text", "text": "!", "shared_post": {"url": MEDIA, "preview_link": MEDIA, "type": "post"}},
    {
        "type": "text",
        "text": "!",
        "shared_post": {"url": MEDIA, "preview_permalink": MEDIA, "site_name": "x"},
    },
    {"type": "text", "text": "?", "post": {"id": "p", "url": MEDIA, "preview_url": MEDIA, "caption": "New"}},
    {
        "type": "text",
        "text": "?",
        "post": {"id": "p", "url": MEDIA, "preview_permalink": MEDIA, "username": "a"},
    },
]


@pytest.mark.parametrize("content", CONTENTS, ids=lambda content: content["type"])
def test_every_type_of_message_goes_with_all_its_fields(content: dict[str, Any]) -> None:
    given = msgspec.convert(content | {"conversation_id": "conv-1"}, e.Content)
    assert told(sent(given))[1]["payload"]["message"] == content


def test_a_message_of_kommos_is_answered_by_its_id() -> None:
    reply = e.Reply(THEIRS, message=OURS, sent_by="kommo", own_id=THEIRS)
    assert told(sent(text(reply_to=reply)))[1]["payload"]["reply_to"] == {"message": {"id": THEIRS}}


def test_one_message_is_forwarded_with_the_chat_it_comes_from() -> None:
    whole = {
        "type": "text",
        "text": "Old",
        "timestamp": 1795334400,
        "msec_timestamp": 1795334400123,
        "sender": {"name": "Bo"},
    }
    chat = {"conversation_id": "conv-2", "conversation_ref_id": CHAT_ID}
    forwards = {"messages": [whole], **chat}
    assert told(sent(text(forwards=forwards)))[1]["payload"]["forwards"] == forwards


def test_an_edit_names_its_message_and_may_carry_its_status() -> None:
    status = e.DeliveryStatus(status_code=-1, error_code=905, error="Error text")
    edited = e.MessageEdited(**BASE, content=text(), delivery_status=status, remote_id=THEIRS)
    path, body = told(edited)
    assert (path, body["event_type"]) == (SCOPE_ID, "edit_message")
    assert body["payload"] == {
        "id": THEIRS,
        "timestamp": 1795334400,
        "msec_timestamp": 1795334400123,
        "msgid": OURS,
        "conversation_id": "conv-1",
        "message": {
            "type": "text",
            "text": "Hello",
            "delivery_status": {"status_code": -1, "error_code": 905, "error": "Error text"},
        },
    }
    assert "id" not in told(msgspec.structs.replace(edited, remote_id=None))[1]["payload"]


@pytest.mark.parametrize(("kind", "status"), [(e.MessageDelivered, 1), (e.MessageRead, 2)])
def test_a_status_is_told_by_kommos_id(kind: type[Any], status: int) -> None:
    path, body = told(kind(**BASE, remote_id=THEIRS))
    assert path == f"{SCOPE_ID}/{THEIRS}/delivery_status"
    assert body == {"msgid": THEIRS, "delivery_status": status}


@pytest.mark.parametrize("error_code", [901, 902, 903, 904, 905])
def test_a_failure_has_its_code_and_always_a_text(error_code: int) -> None:
    failed = {"msgid": THEIRS, "delivery_status": -1, "error_code": error_code}
    event = e.MessageFailed(**BASE, remote_id=THEIRS, code=error_code, text="Error text")
    assert told(event)[1] == failed | {"error": "Error text"}
    assert told(msgspec.structs.replace(event, text=""))[1] == failed | {"error": "not delivered"}


@pytest.mark.parametrize(("given", "duration_ms"), [(None, 5000), (9000, 9000)])
def test_typing_says_who_where_and_how_long(given: int | None, duration_ms: int) -> None:
    event = e.TypingStarted(**BASE, sender=ANN, content=ENDS, expires_at=AT, duration_ms=given)
    expected = {"conversation_id": "conv-1", "sender": {"id": "u-1"}, "duration_ms": duration_ms}
    assert told(event) == (f"{SCOPE_ID}/typing", expected)


def test_a_reaction_names_message_and_chat_by_what_is_known() -> None:
    added = e.ReactionAdded(**BASE, sender=ANN, content=ENDS, emoji="👍", sent_by="kommo", own_id=THEIRS)
    assert told(added) == (
        f"{SCOPE_ID}/react",
        {"conversation_id": "conv-1", "id": THEIRS, "user": {"id": "u-1"}, "type": "react", "emoji": "👍"},
    )
    maria = e.Party(id="maria", ref_id=MARIA)
    removed = e.ReactionRemoved(**BASE, sender=maria, content=e.Ends(chat_id=CHAT_ID), sent_by="messenger")
    assert told(removed)[1] == {
        "conversation_ref_id": CHAT_ID,
        "msgid": OURS,
        "user": {"ref_id": MARIA},
        "type": "unreact",
    }


@pytest_asyncio.fixture
async def sandbox() -> AsyncIterator[Integration]:
    async with integrating() as one:
        await one.connect()
        yield one


async def test_a_chats_user_may_have_every_documented_field(sandbox: Integration) -> None:
    profile = {"phone": "+15550100", "email": "ann@example.com"}
    user = {"id": "u-1", "name": "Ann", "avatar": MEDIA, "profile": profile, "profile_link": MEDIA}
    status, made = await sandbox.post("/chats", {"conversation_id": "conv-1", "user": user})
    assert (status, made["user"]["name"]) == (200, "Ann")
    known = user | {"ref_id": made["user"]["id"]}
    again = await sandbox.post("/chats", {"conversation_id": "conv-1", "user": known})
    assert (again[0], again[1]["id"], again[1]["user"]["id"]) == (200, made["id"], made["user"]["id"])


async def test_history_shows_what_was_sent_field_by_field(sandbox: Integration) -> None:
    place, card = {"lon": 13.4, "lat": 52.5}, {"name": "Bo", "phone": "+15550111"}
    who = {"id": "u-1", "name": "Ann", "avatar": MEDIA}
    for msgid, content in (
        ("m-1", {"type": "location", "text": "", "location": place}),
        ("m-2", {"type": "contact", "text": "", "contact": card}),
    ):
        assert (await sandbox.send(msgid=msgid, sender=who, message=content))[0] == 200
    group = {"type": "picture", "media": MEDIA, "media_group_id": "g-1"}
    order = {"conversation_id": "conv-1", "message": group}
    status, _ = await sandbox.order("POST", "/manager/messages", order)
    assert status < 300
    chat_id = (await sandbox.post("/chats", {"conversation_id": "conv-1", "user": who}))[1]["id"]
    status, told = await sandbox.call("GET", f"{ORIGIN}{SCOPE_ID}/chats/{chat_id}/history?limit=50")
    assert status == 200
    picture, contact, location = (one["message"] for one in told["messages"])
    assert (picture["media_group_id"], contact["contact"], location["location"]) == ("g-1", card, place)
    assert told["messages"][-1]["sender"]["avatar"] == MEDIA


def test_a_contact_may_be_quoted_whole() -> None:
    card = {"name": "Bo", "phone": "+15550111"}
    message = {"type": "contact", "contact": card}
    quote: dict[str, Any] = {"message_id": "old", "message": message, "sender": {"name": "Bo"}}
    action: dict[str, Any] = {
        "type": "message.sent",
        "conversation_id": "conv-1",
        "message_id": "m-1",
        "at": AT,
    }
    action |= {"sender": {"id": "u-1", "name": "Ann"}, "message": {"type": "text", "text": "!"}}
    raw = msgspec.json.encode(action | {"reply_to": quote | {"at": AT}})
    command = commands.command(scope_of("acme", CHANNEL, ACCOUNT), checks.parse_one(raw))
    assert isinstance(command, c.Send)
    reply = told(sent(command.content))[1]["payload"]["reply_to"]
    assert (reply["message"]["type"], reply["message"]["contact"]) == ("contact", card)


def test_the_guide_of_the_sandbox_says_how_to_sign() -> None:
    """The vectors of test_vectors.py hold for `kommo.sign`; here the same is done by the guide's words."""
    words = " ".join(GUIDE.split())
    for said in (
        "Five lines joined by newlines: the METHOD in capitals, the hex MD5 of the body",
        "the Content-Type (application/json), the Date (RFC 2822",
        "and the path without query",
        "HMAC-SHA1 keyed with the secret's text, in lower-case hex",
        "Hooks: X-Signature is the HMAC-SHA1 of the raw body",
    ):
        assert said in words
    body, date, path = b"{}", "Sun, 22 Nov 2026 08:00:00 +0000", f"/v2/origin/custom/{SCOPE_ID}"
    five = "\n".join(("POST", hashlib.md5(body).hexdigest(), "application/json", date, path))
    by_hand = hmac.digest(b"secret", five.encode(), "sha1").hex()
    assert signature.sign("secret", "POST", path, body, date)["X-Signature"] == by_hand
