"""The signatures that are published hold here and at the stranger's, whose answers are as documented."""

import hmac
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import pytest
import pytest_asyncio

from app.channels.directory import ActiveScope, Channel, Connection, Secrets
from app.kommo.chats.signature import sign, signed
from app.kommo.crm.oauth import disabled_signature
from domain.ids import scope_of
from ops.sandbox.chats import signatures
from tests.kommo.test_wire import HEX, REQUESTS, VECTOR
from tests.support.sandbox_client import (
    ACCOUNT,
    BOT,
    CHANNEL,
    ORIGIN,
    SCOPE,
    SECRET,
    Integration,
    fresh,
    integrating,
    message,
)

# Of section 2.3: method, path and date; the body; MD5 and signature. X-Signature is lower-case hex.
X_SIGNATURES = [
    "81211856ce0c5095f3e1a90c0a38dc9d736cfd55",
    "ca51f810785031385a801f41103244713c1a2352",
    "e1678e3b6aa674b5127f4feb448e6200ce0bfc72",
]
NEWLINE_HEX = "79deb393bd10206584c6114203ec85f04ea0647e"
NO_BODY_MD5 = "d41d8cd98f00b204e9800998ecf8427e"
requests = pytest.mark.parametrize(
    ("call", "content", "expected"), REQUESTS, ids=["connect", "status", "DELETE disconnect"]
)


def test_the_vectors_are_those_of_the_reference() -> None:
    assert [signature for _, _, (_, signature) in REQUESTS] == X_SIGNATURES
    assert (len(VECTOR), HEX) == (330, "bda33566f82774cebd45bcea1a37eeedddcf924c")


@requests
def test_our_requests_are_signed_as_published(
    call: tuple[str, str, str], content: object, expected: tuple[str, str]
) -> None:
    method, path, date = call
    body = json.dumps(content, separators=(",", ":")).encode()
    assert sign(SECRET, method, path, body, date) == {
        "Date": date,
        "Content-Type": "application/json",
        "Content-MD5": expected[0],
        "X-Signature": expected[1],
    }
    assert expected[1] in X_SIGNATURES


@requests
def test_the_sandbox_signs_requests_as_published(
    call: tuple[str, str, str], content: object, expected: tuple[str, str]
) -> None:
    method, path, date = call
    body = json.dumps(content, separators=(",", ":")).encode()
    md5 = signatures.content_md5(body)
    kind = "application/json"
    assert (md5, signatures.request_signature(SECRET, method, md5, kind, date, path)) == expected
    assert expected[1] in X_SIGNATURES
    headers = {"content-md5": md5, "content-type": kind, "date": date, "x-signature": expected[1]}
    assert not signatures.refusal(SECRET, method, path, headers, body, parsedate_to_datetime(date))


def test_a_hook_is_believed_as_published() -> None:
    channel = Channel("acme", CHANNEL, "webhook", "http://localhost/", None, Secrets(SECRET, ""))
    connection = Connection(scope_of("acme", CHANNEL, ACCOUNT), "Acme", True, "")
    scope = ActiveScope(channel, connection, SECRET.encode())
    assert signed(scope, HEX, VECTOR)
    assert signed(scope, HEX, VECTOR + b"\n")
    assert signed(scope, NEWLINE_HEX, VECTOR + b"\n")
    assert not signed(scope, NEWLINE_HEX, VECTOR)


def test_the_sandbox_signs_hooks_as_published() -> None:
    assert signatures.hook_signature(SECRET, VECTOR) == HEX
    assert signatures.hook_signature(SECRET, VECTOR + b"\n") == NEWLINE_HEX


def test_the_integration_disabled_call_is_signed_as_published() -> None:
    client_uuid = "11111111-2222-3333-4444-555555555555"
    signature = "7043be2568d31fa59599a47411fbd3e427288254b5e75d8f75a04850fe3db624"
    assert disabled_signature("client-secret", client_uuid, "12345678") == signature
    text = f"{client_uuid}|12345678".encode()
    assert hmac.new(b"client-secret", text, "sha256").hexdigest() == signature


# The sandbox over HTTP.


@pytest_asyncio.fixture(scope="module")
async def sandbox() -> AsyncIterator[Integration]:
    async with integrating() as one:
        yield await fresh(one)


async def test_the_query_is_not_signed(sandbox: Integration) -> None:
    path = f"{ORIGIN}{SCOPE}/chats/{CHANNEL}/history"
    headers = sign(SECRET, "GET", path, b"", datetime.now(UTC).strftime("%a, %d %b %Y %H:%M:%S +0000"))
    assert headers["Content-MD5"] == NO_BODY_MD5
    async with sandbox.client.get(f"{sandbox.url}{path}?limit=50&offset=0", headers=headers) as answer:
        assert answer.status == 204


# Of each answer: the fields it always has, and those that it may have.
PARTY = ({"id", "name"}, {"client_id", "avatar", "phone", "email"})
SHAPES: dict[str, tuple[set[str], set[str]]] = {
    "connect": ({"account_id", "scope_id", "title", "hook_api_version"}, {"is_time_window_disabled"}),
    "chat": ({"id", "user"}, set()),
    "chat.user": PARTY,
    "sent": ({"new_message"}, set()),
    "sent.new_message": ({"msgid", "ref_id"}, {"conversation_id", "sender_id", "receiver_id"}),
    "history": ({"messages"}, set()),
    "history.messages": ({"timestamp", "msec_timestamp", "sender", "message"}, {"receiver"}),
    "history.messages.sender": PARTY,
    "history.messages.receiver": PARTY,
    "history.messages.message": (
        {"id", "type"},
        {
            *("client_id", "text", "media", "thumbnail", "file_name", "file_size"),
            *("media_group_id", "location", "contact", "sticker_id", "media_duration"),
        },
    ),
    "error": ({"error_code", "error_type", "error_description"}, set()),
}


def fits(name: str, told: Any) -> None:
    """Whether an answer, and all of it that has a name in SHAPES, has its fields and no others."""
    required, optional = SHAPES[name]
    assert required <= told.keys() <= required | optional, (name, told)
    for field, inner in told.items():
        if f"{name}.{field}" in SHAPES:
            for each in inner if isinstance(inner, list) else [inner]:
                fits(f"{name}.{field}", each)


async def test_the_sandbox_answers_as_documented(sandbox: Integration) -> None:
    status, connected = await sandbox.connect()
    assert status == 200
    fits("connect", connected)
    profile = {"phone": "+15550100", "email": "a@b.c"}
    user = {"id": "u-1", "name": "Ann", "avatar": "https://example.com/a.jpg", "profile": profile}
    source = {"external_id": "15550999"}
    status, made = await sandbox.post("/chats", {"conversation_id": "conv-1", "user": user, "source": source})
    assert (status, made["user"]["client_id"]) == (200, "u-1")
    fits("chat", made)
    picture = {"type": "picture", "text": "", "media": "https://example.com/x.jpg"}
    for given in (
        {"msgid": "m-1"},
        {"msgid": "m-2", "message": picture | {"file_name": "x.jpg", "file_size": 1}},
        {"msgid": "m-3", "sender": {"id": "b", "name": "Acme", "ref_id": BOT}, "receiver": user},
    ):
        status, sent = await sandbox.send(**given)
        assert (status, sent["new_message"]["ref_id"]) == (200, given["msgid"])
        fits("sent", sent)
    status, history = await sandbox.call("GET", f"{ORIGIN}{SCOPE}/chats/{made['id']}/history?limit=50")
    assert (status, len(history["messages"])) == (200, 3)
    fits("history", history)
    assert await sandbox.call(
        "POST", f"{ORIGIN}{SCOPE}/typing", {"conversation_id": "conv-1", "sender": {"id": "u-1"}}
    ) == (204, None)


@pytest.mark.parametrize(
    ("status", "more"),
    [(400, {"timestamp": "now"}), (400, {"conversation_id": None}), (400, {"message": {"type": "text"}})],
)
async def test_the_sandbox_refuses_as_documented(
    sandbox: Integration, status: int, more: dict[str, Any]
) -> None:
    body = {"event_type": "new_message", "payload": message(msgid="bad", **more)}
    answered, told = await sandbox.post("", body)
    assert answered == status
    fits("error", told)  # error_code, error_type, error_description
    answered, told = await sandbox.call("POST", f"{ORIGIN}{SCOPE}", body, secret="another")
    assert answered == 403
    fits("error", told)
