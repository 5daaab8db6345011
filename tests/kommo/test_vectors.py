"""Signatures are those that Kommo and Standard Webhooks publish, and the sandbox answers as documented."""

import hmac
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import pytest
import pytest_asyncio
from standardwebhooks import Webhook

from app.channels.directory import ActiveScope, Channel, Connection, Secrets
from app.kommo.chats.signature import sign, signed
from app.kommo.crm.oauth import disabled_signature
from app.messengers import webhook
from domain.ids import scope_of
from ops.sandbox.chats import signatures
from tests.support.ids import ACCOUNT, BOT, CHANNEL, CHANNEL_SECRET, MESSENGER_SECRET, SCOPE_ID
from tests.support.sandbox_client import ORIGIN, Integration, fresh, integrating, message

VECTOR = (
    '{"account_id":"52e591f7-c98f-4255-8495-827210138c81","time":1639572261,"message":{"receiver":{"id":"r1",'
    '"phone":"+15550100","client_id":"u-1"},"sender":{"id":"m1"},"conversation":{"id":"c1","client_id":'
    '"conv-1"},"timestamp":1639572260,"msec_timestamp":1639572260980,"message":{"id":"x1","type":"text",'
    '"text":"Привет 👋"}}}'
).encode()
HEX = "bda33566f82774cebd45bcea1a37eeedddcf924c"
REQUESTS = [
    (
        ("POST", f"/v2/origin/custom/{CHANNEL}/connect", "Wed, 15 Dec 2021 23:12:55 +0000"),
        {"account_id": ACCOUNT, "title": "ChatsIntegration", "hook_api_version": "v2"},
        ("2fbcb3c652b61e24e004daddfc73d0ce", "81211856ce0c5095f3e1a90c0a38dc9d736cfd55"),
    ),
    (
        (
            "POST",
            f"{ORIGIN}{SCOPE_ID}/079e44fb-fc22-476b-9e8a-421b688ec53b/delivery_status",
            "Thu, 16 Dec 2021 12:58:40 +0000",
        ),
        {
            "msgid": "079e44fb-fc22-476b-9e8a-421b688ec53b",
            "delivery_status": 2,
            "error_code": 905,
            "error": "Error text",
        },
        ("a0bbbac729c6341f0a521e2db7a8a236", "ca51f810785031385a801f41103244713c1a2352"),
    ),
    (
        ("DELETE", f"/v2/origin/custom/{CHANNEL}/disconnect", "Wed, 15 Dec 2021 23:59:28 +0000"),
        {"account_id": ACCOUNT},
        ("271fa2e4fb0ff84a3ef9689027bd1f38", "e1678e3b6aa674b5127f4feb448e6200ce0bfc72"),
    ),
]

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
    assert sign(CHANNEL_SECRET, method, path, body, date) == {
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
    assert (md5, signatures.request_signature(CHANNEL_SECRET, method, md5, kind, date, path)) == expected
    assert expected[1] in X_SIGNATURES
    headers = {"content-md5": md5, "content-type": kind, "date": date, "x-signature": expected[1]}
    assert not signatures.refusal(CHANNEL_SECRET, method, path, headers, body, parsedate_to_datetime(date))


def test_a_hook_is_believed_as_published() -> None:
    channel = Channel("acme", CHANNEL, "webhook", "http://localhost/", None, Secrets(CHANNEL_SECRET, ""))
    connection = Connection(scope_of("acme", CHANNEL, ACCOUNT), "Acme", True, "")
    scope = ActiveScope(channel, connection, CHANNEL_SECRET.encode())
    assert signed(scope, HEX, VECTOR)
    assert signed(scope, HEX, VECTOR + b"\n")
    assert signed(scope, NEWLINE_HEX, VECTOR + b"\n")
    assert not signed(scope, NEWLINE_HEX, VECTOR)


def test_the_sandbox_signs_hooks_as_published() -> None:
    assert signatures.hook_signature(CHANNEL_SECRET, VECTOR) == HEX
    assert signatures.hook_signature(CHANNEL_SECRET, VECTOR + b"\n") == NEWLINE_HEX


def test_the_integration_disabled_call_is_signed_as_published() -> None:
    client_uuid = "11111111-2222-3333-4444-555555555555"
    signature = "7043be2568d31fa59599a47411fbd3e427288254b5e75d8f75a04850fe3db624"
    assert disabled_signature("client-secret", client_uuid, "12345678") == signature
    text = f"{client_uuid}|12345678".encode()
    assert hmac.new(b"client-secret", text, "sha256").hexdigest() == signature


@pytest.fixture
def scope() -> ActiveScope:
    where = scope_of("acme", CHANNEL, ACCOUNT)
    channel = Channel(
        "acme", CHANNEL, "webhook", "http://localhost/", None, Secrets(CHANNEL_SECRET, MESSENGER_SECRET)
    )
    return ActiveScope(channel, Connection(where, "Acme", True, ""), CHANNEL_SECRET.encode())


@pytest.mark.parametrize(("call", "content", "expected"), REQUESTS, ids=["connect", "status", "disconnect"])
def test_requests_to_kommo_are_signed_as_published(
    call: tuple[str, str, str], content: object, expected: tuple[str, str]
) -> None:
    method, path, date = call
    body = json.dumps(content, separators=(",", ":")).encode()
    headers = sign(CHANNEL_SECRET, method, path, body, date)
    assert (headers["Content-MD5"], headers["X-Signature"]) == expected


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n", b"\n\n"])
def test_a_newline_that_kommo_appends_is_not_part_of_what_it_signed(scope: ActiveScope, end: bytes) -> None:
    assert signed(scope, HEX, VECTOR + end)


def test_a_newline_that_kommo_signed_is(scope: ActiveScope) -> None:
    assert signed(scope, "79deb393bd10206584c6114203ec85f04ea0647e", VECTOR + b"\n")


def test_the_header_may_be_in_upper_case(scope: ActiveScope) -> None:
    assert signed(scope, HEX.upper(), VECTOR)


@pytest.mark.parametrize("end", [b" ", b"}", b"\0", b"\n "])
def test_any_other_end_breaks_the_signature(scope: ActiveScope, end: bytes) -> None:
    assert not signed(scope, HEX, VECTOR + end)


@pytest.mark.parametrize("given", ["", HEX[:-1], f"{HEX}0", f" {HEX}", f"sha1={HEX}", "ÿ" * 40, "0" * 40])
def test_what_is_not_the_signature_is_refused(scope: ActiveScope, given: str) -> None:
    assert not signed(scope, given, VECTOR)


def test_the_published_vector_of_standard_webhooks_holds() -> None:
    body = b'{"test": 2432232314}'
    headers = {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }
    assert not webhook.verified(
        [MESSENGER_SECRET], headers, body
    )  # Too old, but else right: the next line fits.
    then = datetime.fromtimestamp(1614265330, UTC)
    expected = Webhook(MESSENGER_SECRET).sign(headers["webhook-id"], then, body.decode())
    assert expected == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_what_we_sign_for_the_messenger_it_can_verify() -> None:
    body = '{"text":"Привет 👋"}'.encode()
    assert webhook.verified([MESSENGER_SECRET], webhook.signed(MESSENGER_SECRET, "an-event", body), body)


# The sandbox over HTTP.


@pytest_asyncio.fixture(scope="module")
async def sandbox() -> AsyncIterator[Integration]:
    async with integrating() as one:
        yield await fresh(one)


async def test_the_query_is_not_signed(sandbox: Integration) -> None:
    path = f"{ORIGIN}{SCOPE_ID}/chats/{CHANNEL}/history"
    headers = sign(
        CHANNEL_SECRET, "GET", path, b"", datetime.now(UTC).strftime("%a, %d %b %Y %H:%M:%S +0000")
    )
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
    status, history = await sandbox.call("GET", f"{ORIGIN}{SCOPE_ID}/chats/{made['id']}/history?limit=50")
    assert (status, len(history["messages"])) == (200, 3)
    fits("history", history)
    assert await sandbox.call(
        "POST", f"{ORIGIN}{SCOPE_ID}/typing", {"conversation_id": "conv-1", "sender": {"id": "u-1"}}
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
    answered, told = await sandbox.call("POST", f"{ORIGIN}{SCOPE_ID}", body, secret="another")
    assert answered == 403
    fits("error", told)
