"""Signatures are those that Kommo and Standard Webhooks publish; what goes in comes out again."""

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest
import pytest_asyncio
from standardwebhooks import Webhook

from app.channels.directory import ActiveScope, Channel, Connection, Secrets
from app.kommo.chats.signature import sign
from app.kommo.chats.signature import signed as signed_
from app.messengers import webhook
from app.servers.servers import Servers
from domain.ids import scope_of
from tests.support.service import (
    ACCOUNT,
    CHANNEL_ID,
    SCOPE,
    SECRET,
    WHSEC,
    Served,
    about,
    sent,
    serving,
    signature,
    wrote,
)

VECTOR = (
    '{"account_id":"52e591f7-c98f-4255-8495-827210138c81","time":1639572261,"message":{"receiver":{"id":"r1",'
    '"phone":"+15550100","client_id":"u-1"},"sender":{"id":"m1"},"conversation":{"id":"c1","client_id":'
    '"conv-1"},"timestamp":1639572260,"msec_timestamp":1639572260980,"message":{"id":"x1","type":"text",'
    '"text":"Привет 👋"}}}'
).encode()
HEX = "bda33566f82774cebd45bcea1a37eeedddcf924c"
ORIGIN = f"/v2/origin/custom/{SCOPE}"
REQUESTS = [
    (
        ("POST", f"/v2/origin/custom/{CHANNEL_ID}/connect", "Wed, 15 Dec 2021 23:12:55 +0000"),
        {"account_id": ACCOUNT, "title": "ChatsIntegration", "hook_api_version": "v2"},
        ("2fbcb3c652b61e24e004daddfc73d0ce", "81211856ce0c5095f3e1a90c0a38dc9d736cfd55"),
    ),
    (
        (
            "POST",
            f"{ORIGIN}/079e44fb-fc22-476b-9e8a-421b688ec53b/delivery_status",
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
        ("DELETE", f"/v2/origin/custom/{CHANNEL_ID}/disconnect", "Wed, 15 Dec 2021 23:59:28 +0000"),
        {"account_id": ACCOUNT},
        ("271fa2e4fb0ff84a3ef9689027bd1f38", "e1678e3b6aa674b5127f4feb448e6200ce0bfc72"),
    ),
]


@pytest.fixture
def scope() -> ActiveScope:
    where = scope_of("acme", CHANNEL_ID, ACCOUNT)
    channel = Channel("acme", CHANNEL_ID, "webhook", "http://localhost/", None, Secrets(SECRET, WHSEC))
    return ActiveScope(channel, Connection(where, "Acme", True, ""), SECRET.encode())


@pytest.mark.parametrize(("call", "content", "expected"), REQUESTS, ids=["connect", "status", "disconnect"])
def test_requests_to_kommo_are_signed_as_published(
    call: tuple[str, str, str], content: object, expected: tuple[str, str]
) -> None:
    method, path, date = call
    body = json.dumps(content, separators=(",", ":")).encode()
    headers = sign(SECRET, method, path, body, date)
    assert (headers["Content-MD5"], headers["X-Signature"]) == expected


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n", b"\n\n"])
def test_a_newline_that_kommo_appends_is_not_part_of_what_it_signed(scope: ActiveScope, end: bytes) -> None:
    assert signed_(scope, HEX, VECTOR + end)


def test_a_newline_that_kommo_signed_is(scope: ActiveScope) -> None:
    assert signed_(scope, "79deb393bd10206584c6114203ec85f04ea0647e", VECTOR + b"\n")


def test_the_header_may_be_in_upper_case(scope: ActiveScope) -> None:
    assert signed_(scope, HEX.upper(), VECTOR)


@pytest.mark.parametrize("end", [b" ", b"}", b"\0", b"\n "])
def test_any_other_end_breaks_the_signature(scope: ActiveScope, end: bytes) -> None:
    assert not signed_(scope, HEX, VECTOR + end)


@pytest.mark.parametrize("given", ["", HEX[:-1], f"{HEX}0", f" {HEX}", f"sha1={HEX}", "ÿ" * 40, "0" * 40])
def test_what_is_not_the_signature_is_refused(scope: ActiveScope, given: str) -> None:
    assert not signed_(scope, given, VECTOR)


def test_the_published_vector_of_standard_webhooks_holds() -> None:
    body = b'{"test": 2432232314}'
    headers = {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }
    assert not webhook.verified([WHSEC], headers, body)  # Too old, but else right: the next line fits.
    then = datetime.fromtimestamp(1614265330, UTC)
    signed = Webhook(WHSEC).sign(headers["webhook-id"], then, body.decode())
    assert signed == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_what_we_sign_for_the_messenger_it_can_verify() -> None:
    body = '{"text":"Привет 👋"}'.encode()
    assert webhook.verified([WHSEC], webhook.signed(WHSEC, "an-event", body), body)


# Over HTTP.


@pytest_asyncio.fixture(scope="module")
async def service(servers: Servers) -> AsyncIterator[Served]:
    async with serving(servers) as one:
        assert (await one.register()).status == 201
        assert (await one.connect()).status == 201
        yield one


@pytest.fixture(params=["front", "routes"])
def url(service: Served, request: pytest.FixtureRequest) -> str:
    return service.url if request.param == "front" else service.inner


async def test_a_hook_is_answered_with_nothing_once_it_is_stored(service: Served, url: str) -> None:
    head = await service.head()
    answer = await service.hook(wrote(url), url=url)
    assert (answer.status, answer.raw) == (200, b"")
    assert (await service.since(head))[-1]["content"]["text"] == f"Hi {url}"


async def test_a_repeated_hook_is_answered_the_same_and_no_news(service: Served, url: str) -> None:
    hook = wrote(f"twice {url}")
    assert (await service.hook(hook, url=url)).status == 200
    head = await service.head()
    assert (await service.hook(hook, url=url)).status == 200
    assert await service.head() == head


async def test_a_hook_with_a_newline_and_a_shouted_signature_is_taken(service: Served, url: str) -> None:
    body = json.dumps(wrote(f"newline {url}")).encode()
    headers = {"X-Signature": signature(body).upper()}
    assert (await service.hook(body + b"\n", url=url, headers=headers)).status == 200


async def test_an_action_is_answered_with_its_id_and_position(service: Served, url: str) -> None:
    head = await service.head()
    answer = await service.act(sent(url), url=url)
    (result,) = answer.body["results"]
    event = (await service.since(head))[-1]
    assert result == {"id": event["message"], "position": await service.head(), "duplicate": False}
    assert answer.headers["Ledger-Position"] == str(result["position"])


async def test_a_repeated_action_gives_the_first_position(service: Served, url: str) -> None:
    action = sent(f"twice {url}")
    first = (await service.act(action, url=url)).body["results"][0]
    again = (await service.act(action, url=url)).body["results"][0]
    assert again == first | {"duplicate": True}


async def test_an_array_is_taken_in_order_and_answered_one_by_one(service: Served, url: str) -> None:
    head = await service.head()
    array = [sent(f"{url} {n}", conversation_id=f"conv-{n % 3}") for n in range(500)]
    results = (await service.act(array, url=url)).body["results"]
    positions = [result["position"] for result in results]
    for chat in range(3):
        mine = positions[chat::3]
        assert mine == sorted(mine)
    sent_events = [event for event in await service.since(head) if event["type"] == "message.sent"]
    assert {event["message"] for event in sent_events} == {result["id"] for result in results}


async def test_an_array_that_repeats_itself_stores_each_action_once(service: Served, url: str) -> None:
    action = sent(f"echo {url}")
    first, again = (await service.act([action, action], url=url)).body["results"]
    assert (first["duplicate"], again["duplicate"]) == (False, True)
    assert first["position"] == again["position"]


async def test_stale_typing_is_dropped_and_fresh_typing_stored_once_in_five_seconds(
    service: Served, url: str
) -> None:
    typing = {**about("typing", "-"), "sender": {"id": url}}
    stale = typing | {"at": "2026-01-01T00:00:00Z"}
    dropped = (await service.act(stale, url=url)).body["results"][0]
    assert dropped == {"id": None, "position": None, "duplicate": False}
    first, again = (await service.act([typing, typing], url=url)).body["results"]
    assert (first["position"], again["duplicate"]) == (again["position"], True)


async def test_a_status_that_comes_before_its_message_is_known_is_stored(service: Served, url: str) -> None:
    result = (await service.act(about("message.delivered", f"x {url}"), url=url)).body["results"][0]
    assert (result["id"], result["duplicate"]) == (None, False)
    assert result["position"] == await service.head()


async def test_an_action_may_name_its_account(service: Served, url: str) -> None:
    assert (await service.act(sent(f"named {url}", account_id=ACCOUNT), url=url)).status == 200


async def test_every_kind_of_content_comes_back_as_it_was_given(service: Served, url: str) -> None:
    media = "https://files.example.com/x"
    given = [
        {"type": "text", "text": "a\tb\n😀 " + "x" * 60_000},
        {"type": "picture", "media": media, "text": "A caption", "file_name": "x.jpg", "file_size": 2**53},
        {"type": "video", "media": media, "media_duration": 7},
        {"type": "sticker", "sticker_id": "s-1"},
        {"type": "location", "location": {"lon": -180.0, "lat": 90.0}},
        {"type": "contact", "contact": {"name": "Bo", "phone": "+15550111"}},
        {"type": "text", "text": "Yes", "callback_data": "row-1", "shared_post": {"a": [1, {"b": None}]}},
        *({"type": kind, "media": media} for kind in ("file", "voice", "audio")),
    ]
    head = await service.head()
    for number, message in enumerate(given):
        assert (await service.act(sent(f"kind {url} {number}", message=message), url=url)).status == 200
    stored = [event["content"] for event in await service.since(head) if event["type"] == "message.sent"]
    assert [one | {"conversation_id": None, "chat_id": None} for one in stored] == [
        one | {"conversation_id": None, "chat_id": None} for one in given
    ]
