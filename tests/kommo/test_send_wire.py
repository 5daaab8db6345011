"""What goes to Kommo field by field, and the hooks that are none of the documented ones."""

import logging
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from app import clock
from app.kommo.chats import hooks, payloads
from app.kommo.chats.hooks import HookRefused, Why
from domain import commands as c
from domain import events as e
from tests.support.ids import SCOPE
from tests.support.ledgers.decisions import START_MS, Ledger, accept, customer, edit, own, react
from tests.support.system import Story, chat

OLD = b'{"receiver":"u-1","conversation_id":"c-1","msec_timestamp":1700000000980,"type":"text","text":"Hi"}'
ANN = e.Party(
    "u-1", "Ann", "+15550100", "ann@example.com", "https://e.example/a.png", "https://e.example/u-1"
)


def payload(ledger: Ledger) -> object:
    """What Kommo is told of the last event."""
    return payloads.request(SCOPE.scope_id, ledger.events[-1])[1]["payload"]


def test_a_customer_is_told_whole() -> None:
    sent = Ledger().after(customer(1, sender=ANN, source="shop 1", silent=True))
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


def test_an_edit_names_the_message_by_our_id() -> None:
    assert payload(Ledger().after(customer(1), edit(2, own("m-1")))) == {
        "timestamp": (START_MS + 2000) // 1000,
        "msec_timestamp": START_MS + 2000,
        "msgid": own("m-1"),
        "conversation_id": "conv-1",
        "message": {"type": "text", "text": "Hello!"},
    }


def test_an_edit_names_the_message_by_kommos_id_too_once_that_is_known() -> None:
    taken = accept(2, own("m-1"), "kommo", "theirs")
    told = payload(Ledger().after(customer(1), taken, edit(3, own("m-1"))))
    assert isinstance(told, dict)
    assert (told["id"], told["msgid"]) == ("theirs", own("m-1"))


def test_a_reaction_in_a_managers_name_goes_by_his_amojo_id_alone() -> None:
    hers = react(2, own("m-1"))
    his = replace(hers, sender=e.Party(id="phone", ref_id="maria"))
    for command, user in ((hers, {"id": "u-1"}), (his, {"ref_id": "maria"})):
        reaction = Ledger().after(customer(1), command).events[-1]
        path, told = payloads.request(SCOPE.scope_id, reaction)
        assert (path, told["user"], told["conversation_id"]) == (f"{SCOPE.scope_id}/react", user, "conv-1")


def test_a_v1_hook_is_known_for_what_it_is() -> None:
    with pytest.raises(HookRefused, match="v1") as raised:
        hooks.command(SCOPE, OLD)
    assert raised.value.why == Why.V1
    with pytest.raises(HookRefused, match="neither") as raised:
        hooks.command(SCOPE, b'{"account_id":"a"}')
    assert raised.value.why == Why.UNREADABLE


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


def outgoing(name: str, chat_id: str, reply_to: object) -> dict[str, Any]:
    now = clock.now_ms()
    body = {
        "receiver": {"id": "r-1", "client_id": f"u-{name}"},
        "sender": {"id": "m-1"},
        "conversation": {"id": chat_id, "client_id": name},
        "timestamp": now // 1000,
        "message": {"id": f"k-{now}-{name}", "type": "text", "text": "See", "reply_to": reply_to},
    }
    return {"account_id": SCOPE.account, "time": now // 1000, "message": body}


async def test_a_quote_that_nobody_here_knows_is_passed_on_as_kommo_tells_it(story: Story) -> None:
    name = chat()
    ours = await story.customer(name)
    [message] = await story.arrived(name)
    await story.until_recorded(ours, "message.accepted")
    whole: dict[str, Any] = {
        "id": "old",
        "type": "picture",
        "text": "Menu",
        "media": "https://files.example.com/x.jpg",
    }
    whole |= {"timestamp": 1700000000, "msec_timestamp": 1700000000123, "sender": {"id": "u", "name": "Ann"}}
    whole |= {"thumbnail": "https://files.example.com/s.jpg", "file_name": "x.jpg", "file_size": 27107}
    assert await story.hook(outgoing(name, message.chat_id, {"message": whole | {"contact": ""}})) == 200
    [push] = await story.pushed(name)
    assert push.body["reply_to"] == {"quoted": whole}
    assert await story.hook(outgoing(name, message.chat_id, {"message": whole | {"id": message.id}})) == 200
    known = (await story.pushed(name, 2))[1]
    assert known.body["reply_to"] == {"message_id": (await story.shown(ours))["remote"]["messenger"]}
    bare: dict[str, Any] = {"message": {"id": "old"}}
    assert await story.hook(outgoing(name, message.chat_id, bare)) == 200
    assert "reply_to" not in (await story.pushed(name, 3))[2].body


@pytest.mark.parametrize("odd", [[], {}, {"message": []}, {"id": [7]}, {"id": 0}, {"message": {"id": None}}])
def test_a_quote_without_a_name_is_none(odd: object) -> None:
    command = hooks.command(SCOPE, msgspec.json.encode(outgoing("c", "chat", odd)))
    assert isinstance(command, c.Send)
    assert (command.content.reply_to, command.reply_stream) == (None, None)


def test_a_quote_that_is_too_long_is_cut_to_its_name() -> None:
    numbers = b'{"n":[' + b",".join([b"1e15"] * 40_000) + b"]}"  # Kommo's 200 KB are 700 KB as we write them.
    body = msgspec.json.encode(outgoing("c", "chat", {"id": "old", "type": "location", "location": "N"}))
    command = hooks.command(SCOPE, body.replace(b'"N"', numbers))
    assert isinstance(command, c.Send)
    assert command.content.reply_to == e.Reply("old")


async def test_typing_under_a_post_says_which(story: Story) -> None:
    name = chat()
    await story.customer(name)
    [message] = await story.arrived(name)
    typing: dict[str, Any] = {"conversation": {"id": message.chat_id, "client_id": name}}
    now = clock.now_ms() // 1000
    for user, post_id in (("m-1", "p-1"), ("m-2", None)):
        told = typing | {"user": {"id": user}, "expired_at": now + 5, "post_id": post_id}
        hook = {"account_id": SCOPE.account, "time": now, "action": {"typing": told}}
        assert await story.hook(hook) == 200
    pushes = [push.body for push in await story.pushed(name, 2, "typing")]
    assert [(push["sender"], push.get("post_id")) for push in pushes] == [
        ({"id": "m-1"}, "p-1"),
        ({"id": "m-2"}, None),
    ]
