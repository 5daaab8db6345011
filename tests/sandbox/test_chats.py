"""The fake Kommo keeps to its documentation: over real HTTP, with signatures over raw bytes."""

import hmac
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
import pytest_asyncio

from ops.sandbox.chats.signatures import content_md5, refusal, request_signature
from tests.support.ids import ACCOUNT, BOT, CHANNEL, CHANNEL_SECRET, MARIA, SCOPE_ID
from tests.support.sandbox_client import JSON, ORIGIN, Integration, fresh, integrating, message


@pytest_asyncio.fixture(scope="module")
async def shared() -> AsyncIterator[Integration]:
    async with integrating() as one:
        yield one


@pytest_asyncio.fixture
async def integration(shared: Integration) -> Integration:
    return await fresh(shared)


VECTORS = [
    (
        "POST",
        f"{ORIGIN}{CHANNEL}/connect",
        "Wed, 15 Dec 2021 23:12:55 +0000",
        f'{{"account_id":"{ACCOUNT}","title":"ChatsIntegration","hook_api_version":"v2"}}',
        "2fbcb3c652b61e24e004daddfc73d0ce",
        "81211856ce0c5095f3e1a90c0a38dc9d736cfd55",
    ),
    (
        "POST",
        f"{ORIGIN}{SCOPE_ID}/079e44fb-fc22-476b-9e8a-421b688ec53b/delivery_status",
        "Thu, 16 Dec 2021 12:58:40 +0000",
        '{"msgid":"079e44fb-fc22-476b-9e8a-421b688ec53b","delivery_status":2,"error_code":905,'
        '"error":"Error text"}',
        "a0bbbac729c6341f0a521e2db7a8a236",
        "ca51f810785031385a801f41103244713c1a2352",
    ),
    (
        "DELETE",
        f"{ORIGIN}{CHANNEL}/disconnect",
        "Wed, 15 Dec 2021 23:59:28 +0000",
        f'{{"account_id":"{ACCOUNT}"}}',
        "271fa2e4fb0ff84a3ef9689027bd1f38",
        "e1678e3b6aa674b5127f4feb448e6200ce0bfc72",
    ),
]


@pytest.mark.parametrize(("method", "path", "date", "body", "md5", "signature"), VECTORS)
def test_the_published_vectors_are_believed_for_15_minutes(
    method: str, path: str, date: str, body: str, md5: str, signature: str
) -> None:
    assert content_md5(body.encode()) == md5
    assert request_signature(CHANNEL_SECRET, method, md5, JSON, date, path) == signature
    headers = {"date": date, "content-type": JSON, "content-md5": md5, "x-signature": signature}
    sent = datetime.strptime(date, "%a, %d %b %Y %H:%M:%S %z")
    for minutes, reason in ((0, ""), (14, ""), (-14, ""), (16, "Date: more than 15 minutes from now")):
        now = sent + timedelta(minutes=minutes)
        assert refusal(CHANNEL_SECRET, method, path, headers, body.encode(), now) == reason


SPOILED = {
    "another secret": {"secret": "0" * 40},
    "a late Date": {"date": format_datetime(datetime.now(UTC) - timedelta(minutes=16))},
    "no Date": {"headers": {"Date": "yesterday"}},
    "another MD5": {"headers": {"Content-MD5": "0" * 32}},
    "a charset": {"headers": {"Content-Type": "application/json; charset=utf-8"}},
    "the legacy scheme": {
        "headers": {"X-Signature": hmac.new(CHANNEL_SECRET.encode(), b"{}", "sha1").hexdigest()}
    },
}


@pytest.mark.parametrize("spoiled", SPOILED.values(), ids=SPOILED)
async def test_what_is_not_signed_right_is_403(integration: Integration, spoiled: dict[str, Any]) -> None:
    status, told = await integration.call("POST", ORIGIN + SCOPE_ID, b"{}", **spoiled)
    assert status == 403
    assert told["error_code"] == 403
    assert not (await integration.kommo())["messages"]


async def test_an_offset_or_gmt_in_the_date_is_believed(integration: Integration) -> None:
    here = datetime.now(UTC)
    for date in (here.strftime("%a, %d %b %Y %H:%M:%S GMT"), here.strftime("%a, %d %b %Y %H:%M:%S -0000")):
        status, _ = await integration.call(
            "POST", ORIGIN + SCOPE_ID, {"event_type": "new_message", "payload": message()}, date=date
        )
        assert status == 200


async def test_a_connection_is_echoed_with_its_scope_and_may_be_repeated(integration: Integration) -> None:
    expected = {
        "account_id": ACCOUNT,
        "scope_id": SCOPE_ID,
        "title": "Acme",
        "hook_api_version": "v2",
        "is_time_window_disabled": False,
    }
    assert await integration.connect() == (200, expected)


async def test_a_private_channel_is_closed_to_other_accounts(integration: Integration) -> None:
    assert (await integration.connect("another"))[0] == 403


async def test_only_version_2_of_the_hooks_can_be_had(integration: Integration) -> None:
    status, _ = await integration.call("POST", f"{ORIGIN}{CHANNEL}/connect", {"account_id": ACCOUNT})
    assert status == 400


async def test_an_unknown_channel_is_404(integration: Integration) -> None:
    assert (await integration.call("POST", f"{ORIGIN}nothing/connect", b"{}"))[0] == 404


async def test_after_a_disconnect_the_scope_is_404_and_hooks_stop(integration: Integration) -> None:
    await integration.send()
    path = f"{ORIGIN}{CHANNEL}/disconnect"
    assert await integration.call("DELETE", path, {"account_id": ACCOUNT}) == (200, None)
    assert (await integration.send(msgid="m-2"))[0] == 404
    assert (await integration.manager(conversation_id="conv-1"))[0] == 409
    assert (await integration.call("DELETE", path, {"account_id": ACCOUNT}))[0] == 404
    assert integration.hooks == []


async def test_a_message_is_taken_and_its_repeat_is_answered_with_the_first_ids(
    integration: Integration,
) -> None:
    status, first = await integration.send()
    assert status == 200
    told = first["new_message"]
    assert (told["conversation_id"], told["sender_id"], told["receiver_id"]) == ("conv-1", "u-1", None)
    assert told["ref_id"] == "m-1"
    assert await integration.send() == (200, first)
    [kept] = (await integration.kommo())["messages"]
    assert (kept["id"], kept["client_id"], kept["repeats"]) == (told["msgid"], "m-1", 1)


async def test_a_repeat_can_be_refused_instead() -> None:
    async with integrating(duplicates="refuse") as integration:
        await integration.connect()
        assert [(await integration.send())[0] for _ in range(2)] == [200, 400]
        assert len((await integration.kommo())["messages"]) == 1


CONTENTS = [
    {"type": "picture", "media": "https://files.example.com/x.jpg", "file_name": "x.jpg", "file_size": 27107},
    {"type": "video", "media": "https://files.example.com/x.mp4", "media_duration": 3, "text": "look"},
    {"type": "file", "media": "https://files.example.com/x.pdf"},
    {"type": "voice", "media": "https://files.example.com/x.ogg"},
    {"type": "audio", "media": "https://files.example.com/x.mp3"},
    {"type": "sticker", "sticker_id": "s-1"},
    {"type": "location", "location": {"lon": 1, "lat": -2.5}},
    {"type": "contact", "contact": {"name": "Bob", "phone": "+15550101"}},
    {"type": "text", "text": "pay", "callback_data": "row-1", "shared_post": {"url": "https://example.com"}},
]


@pytest.mark.parametrize("content", CONTENTS, ids=lambda one: one["type"])
async def test_every_type_of_message_is_kept_whole(integration: Integration, content: dict[str, Any]) -> None:
    assert (await integration.send(message=content))[0] == 200
    [kept] = (await integration.kommo())["messages"]
    assert kept["message"].items() >= {k: v for k, v in content.items() if k != "shared_post"}.items()


BAD = {
    "a number for a string": {"msgid": 5},
    "a string for a number": {"timestamp": "1700000000"},
    "a float for a number": {"msec_timestamp": 1.5},
    "null": {"conversation_id": 0, "sender": {"id": "u-1", "name": None}},
    "no name": {"sender": {"id": "u-1"}},
    "an unknown type": {"message": {"type": "poll", "text": "?"}},
    "no text": {"message": {"type": "text"}},
    "no media": {"message": {"type": "picture"}},
    "media that is no link": {"message": {"type": "picture", "media": "x.jpg"}},
    "no location": {"message": {"type": "location"}},
    "a long source": {"source": {"external_id": "x" * 41}},
    "an empty source": {"source": {}},
    "a half quote": {"reply_to": {"message": {"type": "text", "text": "?"}}},
    "two forwards": {"forwards": {"messages": [{"id": "1"}, {"id": "2"}]}},
    "a string for a flag": {"silent": "yes"},
    "an unknown chat to bind": {"conversation_ref_id": "nothing"},
}


@pytest.mark.parametrize("wrong", BAD.values(), ids=BAD)
async def test_a_message_of_another_shape_is_400_and_not_kept(
    integration: Integration, wrong: dict[str, Any]
) -> None:
    status, told = await integration.send(**wrong)
    assert (status, told["error_code"]) == (400, 400)
    assert told["error_description"]
    assert not (await integration.kommo())["messages"]


@pytest.mark.parametrize("ref_id", [None, "somebody"])
async def test_an_outgoing_message_needs_a_known_manager_or_the_bot(
    integration: Integration, ref_id: str | None
) -> None:
    sender = {"id": "m-9", "name": "Bob"} | ({"ref_id": ref_id} if ref_id else {})
    status, told = await integration.send(sender=sender, receiver={"id": "u-1", "name": "Ann"})
    assert (status, told["error_description"]) == (400, "sender: user not found")


@pytest.mark.parametrize("ref_id", [MARIA, BOT])
async def test_an_outgoing_message_makes_no_hook(integration: Integration, ref_id: str) -> None:
    sender = {"id": "m-9", "name": "Bob", "ref_id": ref_id}
    status, told = await integration.send(sender=sender, receiver={"id": "u-1", "name": "Ann"})
    assert (status, told["new_message"]["receiver_id"]) == (200, "u-1")
    assert (await integration.order("GET", "/hooks"))[1]["hooks"] == []


async def test_an_edit_changes_what_is_said_and_nothing_else(integration: Integration) -> None:
    _, first = await integration.send()
    edit = message(message={"type": "text", "text": "fixed"}, sender={"ignored": 1}, receiver=7)
    status, told = await integration.post("", {"event_type": "edit_message", "payload": edit})
    assert (status, told) == (200, first)
    [kept] = (await integration.kommo())["messages"]
    assert (kept["message"]["text"], len(kept["edits"])) == ("fixed", 1)


@pytest.mark.parametrize("wrong", [{"msgid": "nothing"}, {"conversation_id": "conv-2"}, {"msgid": None}])
async def test_an_edit_of_nothing_is_400(integration: Integration, wrong: dict[str, Any]) -> None:
    await integration.send()
    edit = {"event_type": "edit_message", "payload": message(**wrong)}
    assert (await integration.post("", edit))[0] == 400


async def test_a_chat_can_be_made_before_its_first_message(integration: Integration) -> None:
    order = {"conversation_id": "conv-7", "user": {"id": "u-7", "name": "Eve", "profile": {"phone": "+1555"}}}
    status, made = await integration.post("/chats", order)
    assert (status, set(made["user"])) == (200, {"id", "client_id", "name", "avatar", "phone"})
    assert await integration.post("/chats", order) == (200, made)
    await integration.send(conversation_id="conv-7", sender={"id": "u-7", "name": "Eve"})
    assert [chat["id"] for chat in (await integration.kommo())["chats"]] == [made["id"]]


async def written(integration: Integration) -> str:
    await integration.send()
    found: str = (await integration.manager(conversation_id="conv-1"))[1]["id"]
    return found


GOOD_STATUSES: dict[str, Callable[[str], dict[str, Any]]] = {
    "A": lambda one: {"msgid": one, "delivery_status": 1},
    "B": lambda one: {"status_code": 2},
    "both": lambda one: {"msgid": one, "delivery_status": 2, "status_code": 2},
    "error": lambda one: {"msgid": one, "delivery_status": -1, "error_code": 905, "error": "too long"},
    "904": lambda one: {"status_code": -1, "error_code": 904},
}


@pytest.mark.parametrize("status", GOOD_STATUSES.values(), ids=GOOD_STATUSES)
async def test_a_delivery_status_is_kept_in_both_variants(
    integration: Integration, status: Callable[[str], dict[str, Any]]
) -> None:
    one = await written(integration)
    assert await integration.post(f"/{one}/delivery_status", status(one)) == (200, None)
    assert [call["message_id"] for call in (await integration.kommo())["statuses"]] == [one]


BAD_STATUSES: dict[str, Callable[[str], dict[str, Any]]] = {
    "another msgid": lambda one: {"msgid": "x", "delivery_status": 1},
    "no msgid": lambda one: {"delivery_status": 1},
    "0": lambda one: {"status_code": 0},
    "a string": lambda one: {"msgid": one, "delivery_status": "1"},
    "two minds": lambda one: {"msgid": one, "delivery_status": 1, "status_code": 2},
    "no code": lambda one: {"status_code": -1},
    "an unknown code": lambda one: {"status_code": -1, "error_code": 906, "error": "?"},
    "905 without text": lambda one: {"status_code": -1, "error_code": 905},
    "nothing": lambda one: {},
}


@pytest.mark.parametrize("status", BAD_STATUSES.values(), ids=BAD_STATUSES)
async def test_a_delivery_status_of_another_shape_is_400(
    integration: Integration, status: Callable[[str], dict[str, Any]]
) -> None:
    one = await written(integration)
    assert (await integration.post(f"/{one}/delivery_status", status(one)))[0] == 400
    assert (await integration.kommo())["statuses"] == []


async def test_the_status_of_an_unknown_message_is_404(integration: Integration) -> None:
    assert (await integration.post("/nothing/delivery_status", {"status_code": 1}))[0] == 404


async def test_typing_is_204_and_404_where_there_is_no_chat(integration: Integration) -> None:
    await integration.send()
    typing = {"conversation_id": "conv-1", "sender": {"id": "u-1"}, "duration_ms": 3000}
    assert await integration.post("/typing", typing) == (204, None)
    assert (await integration.post("/typing", typing | {"conversation_id": "conv-2"}))[0] == 404
    assert (await integration.post("/typing", typing | {"duration_ms": "5"}))[0] == 400
    assert [one["duration_ms"] for one in (await integration.kommo())["typings"]] == [3000]


async def test_a_reaction_names_the_message_by_either_id(integration: Integration) -> None:
    one = await written(integration)
    react = {"conversation_id": "conv-1", "user": {"id": "u-1"}, "type": "react", "emoji": "👍"}
    assert await integration.post("/react", react | {"id": one}) == (200, None)
    assert await integration.post("/react", react | {"msgid": "m-1"}) == (200, None)
    assert await integration.post("/react", react | {"id": one, "type": "unreact"}) == (200, None)
    assert (await integration.post("/react", react | {"id": "nothing"}))[0] == 404
    assert (await integration.post("/react", react))[0] == 400
    assert (await integration.post("/react", {k: v for k, v in react.items() if k != "emoji"}))[0] == 400
    reactions = [kept["reactions"] for kept in (await integration.kommo())["messages"]]
    assert [[reaction["emoji"] for reaction in one] for one in reactions] == [["👍"], []]


async def test_history_is_newest_first_and_204_where_there_is_none(integration: Integration) -> None:
    for n in range(3):
        await integration.send(msgid=f"m-{n}", msec_timestamp=1700000000000 + n)
    chat = (await integration.kommo())["chats"][0]["id"]
    path = f"{ORIGIN}{SCOPE_ID}/chats/{chat}/history"
    status, told = await integration.call("GET", path + "?offset=1&limit=2")
    assert (status, [one["message"]["client_id"] for one in told["messages"]]) == (200, ["m-1", "m-0"])
    assert "receiver" not in told["messages"][0]
    assert (await integration.call("GET", path + "?limit=51"))[0] == 400
    assert await integration.call("GET", f"{ORIGIN}{SCOPE_ID}/chats/nothing/history") == (204, None)
    assert await integration.call("GET", path + "?offset=3") == (204, None)
