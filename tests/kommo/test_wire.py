"""What comes in by a webhook is stored and comes out again, whichever way it is routed."""

import json
from typing import Any

import pytest

from tests.support.ids import ACCOUNT
from tests.support.service import Served, about, sent, signature, wrote


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
    given: list[dict[str, Any]] = [
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
