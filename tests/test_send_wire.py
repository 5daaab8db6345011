"""What goes to Kommo field by field, and the hooks that are none of the documented ones."""

import logging
from collections.abc import AsyncIterator

import pytest
from decided import START_MS, WHERE, Book, customer, edit, own, react
from msgspec.structs import replace

from app import hooks, kommo
from app.hooks import BadHook
from app.servers import Servers
from domain import events as e
from tests.storied import Story, story_on

OLD = b'{"receiver":"u-1","conversation_id":"c-1","msec_timestamp":1700000000980,"type":"text","text":"Hi"}'
ANN = e.Party(
    "u-1", "Ann", "+15550100", "ann@example.com", "https://e.example/a.png", "https://e.example/u-1"
)


@pytest.fixture(scope="module")
async def story(servers: Servers) -> AsyncIterator[Story]:
    async with story_on(servers) as story:
        yield story


def payload(book: Book) -> object:
    """What Kommo is told of the last event."""
    return kommo.request(WHERE.scope_id, book.events[-1])[1]["payload"]


def test_a_customer_is_told_whole():
    sent = Book().told(customer(1, sender=ANN, source="shop 1", silent=True))
    assert payload(sent) == {
        "timestamp": (START_MS + 1000) // 1000,
        "msec_timestamp": START_MS + 1000,
        "msgid": own("m-1"),
        "conversation_id": "conv-1",
        "silent": True,
        "source": {"external_id": "shop 1"},
        "sender": {
            "id": "u-1",
            "name": "Ann",
            "avatar": "https://e.example/a.png",
            "profile_link": "https://e.example/u-1",
            "profile": {"phone": "+15550100", "email": "ann@example.com"},
        },
        "message": {"type": "text", "text": "Hello"},
    }


def test_an_edit_names_the_message_by_our_id():
    assert payload(Book().told(customer(1), edit(2, own("m-1")))) == {
        "timestamp": (START_MS + 2000) // 1000,
        "msec_timestamp": START_MS + 2000,
        "msgid": own("m-1"),
        "conversation_id": "conv-1",
        "message": {"type": "text", "text": "Hello!"},
    }


def test_a_reaction_in_a_managers_name_goes_by_his_amojo_id_alone():
    hers = react(2, own("m-1"))
    his = replace(hers, sender=e.Party(id="phone", ref_id="maria"))
    for command, user in ((hers, {"id": "u-1"}), (his, {"ref_id": "maria"})):
        reaction = Book().told(customer(1), command).events[-1]
        path, told = kommo.request(WHERE.scope_id, reaction)
        assert (path, told["user"], told["conversation_id"]) == (f"{WHERE.scope_id}/react", user, "conv-1")


def test_a_v1_hook_is_known_for_what_it_is():
    with pytest.raises(BadHook, match="v1") as raised:
        hooks.command(WHERE, OLD)
    assert raised.value.old
    with pytest.raises(BadHook, match="neither") as raised:
        hooks.command(WHERE, b'{"account_id":"a"}')
    assert not raised.value.old


async def test_a_v1_hook_is_refused_with_one_line_in_the_log(
    story: Story, caplog: pytest.LogCaptureFixture
) -> None:
    old = {"receiver": "u-1", "conversation_id": "c-1", "type": "text", "text": "Private"}
    with caplog.at_level(logging.INFO, "chatledger"):
        assert await story.hook(old) == 400
    [line] = [one.getMessage() for one in caplog.records if "hook" in one.getMessage()]
    assert "v1" in line
    assert "connect the account again" in line
    assert "Private" not in line
    [kept] = (await story.api("GET", "/v1/refused"))["items"]
    assert "v1" in kept["reason"]
