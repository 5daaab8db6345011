"""What belongs together finds together: statuses, reactions, echoes and chats, whatever comes first."""

import asyncio
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest

from app import clock
from domain import ids
from ops.sandbox.state.chats import Chat
from ops.sandbox.state.chats import Message as KommoMessage
from ops.sandbox.state.messenger import Push
from tests.support.ids import SCOPE
from tests.support.system import Story, chat, until

QUIET_SECONDS = 0.3


async def sent(story: Story, name: str) -> tuple[dict[str, Any], Push]:
    """A manager's message that the messenger has taken, and the push that brought it."""
    told = await story.manager(name)
    [push] = await story.pushed(name)
    await story.until_recorded(told["ours"], "message.accepted")
    return told, push


async def status(story: Story, name: str, kind: str, **more: Any) -> tuple[int, Any]:
    return await story.tell({"type": f"message.{kind}", "conversation_id": name, **more})


# How far a message has come.


async def test_delivered_and_read_reach_kommo_in_their_order(story: Story) -> None:
    name = chat()
    told, push = await sent(story, name)
    for kind in ("delivered", "read"):
        assert (await status(story, name, kind, message_id=push.answer["message_id"]))[0] == 200
    await until(lambda: story.statuses(told["id"]) == [1, 2])
    assert (await story.shown(told["ours"]))["status"] == "read"


async def test_a_status_may_name_the_message_by_our_id(story: Story) -> None:
    name = chat()
    told, _ = await sent(story, name)
    await status(story, name, "read", id=told["ours"])
    await until(lambda: story.statuses(told["id"]) == [2])


async def test_a_failure_reaches_kommo_with_its_code_and_text(story: Story) -> None:
    name = chat()
    told, push = await sent(story, name)
    await status(story, name, "failed", message_id=push.answer["message_id"], code=904, text="not a user")
    await until(lambda: story.statuses(told["id"]) == [-1])
    call = story.sandbox.chat_state.messages[told["id"]].statuses[0]
    assert (call.error_code, call.error) == (904, "not a user")


async def test_a_failure_without_a_text_has_one_for_kommo(story: Story) -> None:
    name = chat()
    told, push = await sent(story, name)
    await status(story, name, "failed", message_id=push.answer["message_id"])
    await until(lambda: story.statuses(told["id"]) == [-1])


async def test_a_late_delivered_is_recorded_and_not_told(story: Story) -> None:
    name = chat()
    told, push = await sent(story, name)
    for kind in ("read", "delivered", "failed"):
        assert (await status(story, name, kind, message_id=push.answer["message_id"]))[0] == 200
    await until(lambda: story.statuses(told["id"]))
    await story.settled()
    assert story.statuses(told["id"]) == [2]
    assert {"message.read", "message.delivered"} <= set(await story.timeline(told["ours"]))
    assert (await story.shown(told["ours"]))["status"] == "read"


async def test_a_delivered_that_waits_is_not_told_after_the_read(story: Story) -> None:
    name = chat()
    told, push = await sent(story, name)
    await story.fault("kommo.delivery_status", "503", times=2)
    for kind in ("delivered", "read"):
        await status(story, name, kind, message_id=push.answer["message_id"])
    await until(lambda: story.statuses(told["id"]))
    await story.settled()
    assert story.statuses(told["id"]) in ([2], [1, 2])


async def test_a_status_may_come_before_the_answer_that_names_its_message(story: Story) -> None:
    name = chat()
    await story.fault("messenger.hook.message", "slow", seconds=1, conversation_id=name)
    told = await story.manager(name)
    [push] = await story.pushed(name)
    assert (await status(story, name, "delivered", message_id=push.answer["message_id"]))[0] == 200
    assert "message.accepted" not in await story.timeline(told["ours"])
    await until(lambda: story.statuses(told["id"]) == [1])
    assert (await story.shown(told["ours"]))["status"] == "delivered"


async def test_a_status_by_our_id_may_come_before_the_answer(story: Story) -> None:
    name = chat()
    await story.fault("messenger.hook.message", "slow", seconds=1, conversation_id=name)
    told = await story.manager(name)
    await story.pushed(name)
    await status(story, name, "read", id=told["ours"])
    await until(lambda: story.statuses(told["id"]) == [2])
    await story.until_recorded(told["ours"], "message.accepted")
    assert (await story.shown(told["ours"]))["status"] == "read"


async def test_a_status_of_a_customers_own_message_is_refused(story: Story) -> None:
    name = chat()
    await story.customer(name, message_id=name)
    assert (await status(story, name, "delivered", message_id=name))[0] == 400


async def test_what_kommo_was_told_is_recorded(story: Story) -> None:
    name = chat()
    told, push = await sent(story, name)
    await status(story, name, "delivered", message_id=push.answer["message_id"])
    [completed] = await story.until_recorded(told["ours"], "delivery.completed")
    [delivered] = await story.until_recorded(told["ours"], "message.delivered")
    events = {event["id"]: event for event in await story.events(type="message.delivered")}
    causes = [one for one in await story.events(type="delivery.completed") if one["cause"] in events]
    assert completed["position"] > delivered["position"]
    assert told["ours"] in {one["message"] for one in causes}


# Reactions and typing.


def emojis_are(message: KommoMessage, emojis: list[str]) -> bool:
    return [one.emoji for one in message.reactions] == emojis


async def test_a_customers_reaction_reaches_kommo_and_can_be_taken_back(story: Story) -> None:
    name = chat()
    told, push = await sent(story, name)
    await story.customer(name, message_id=name)
    [own] = await story.arrived(name)
    for message_id, kommo_id in ((push.answer["message_id"], told["id"]), (name, own.id)):
        order = {"message_id": message_id, "sender": {"id": f"u-{name}", "name": "Ann"}}
        await story.order("POST", "/customer/reactions?wait=1", order | {"emoji": "👍"})
        message = story.sandbox.chat_state.messages[kommo_id]
        await until(partial(emojis_are, message, ["👍"]))
        await story.order("POST", "/customer/reactions?wait=1", order)
        await until(partial(emojis_are, message, []))


@pytest.mark.parametrize("variant", ["table", "sample"])
async def test_a_managers_reaction_reaches_the_messenger_by_its_own_names(story: Story, variant: str) -> None:
    name = chat()
    told, push = await sent(story, name)
    ours = await story.customer(name, message_id=name)
    [own] = await story.arrived(name)
    await story.until_recorded(ours, "message.accepted")
    for kommo_id in (told["id"], own.id):
        for emoji in ("👍", ""):
            order = {"id": kommo_id, "emoji": emoji, "variant": variant}
            await story.order("POST", "/manager/reactions?wait=1", order)
    added = await story.pushed(name, 2, "reaction.added")
    removed = await story.pushed(name, 2, "reaction.removed")
    assert [one.body["message_id"] for one in added] == [push.answer["message_id"], name]
    assert [one.body["message_id"] for one in removed] == [push.answer["message_id"], name]
    assert {one.body["emoji"] for one in added} == {"👍"}


async def test_a_customers_typing_reaches_kommo(story: Story) -> None:
    name = chat()
    await story.customer(name)
    await story.arrived(name)
    await story.order("POST", "/customer/typing?wait=1", {"conversation_id": name, "sender": {"id": "u-1"}})
    typings = story.sandbox.chat_state.typings
    [typing] = await until(lambda: [one for one in typings if one.conversation_id == name])
    assert (typing.sender_id, typing.duration_ms) == ("u-1", 5000)


@pytest.mark.parametrize("variant", ["table", "sample"])
async def test_a_managers_typing_reaches_the_messenger(story: Story, variant: str) -> None:
    name = chat()
    await sent(story, name)
    await story.order("POST", "/manager/typing", {"conversation_id": name, "variant": variant})
    [push] = await story.pushed(name, kind="typing")
    left = datetime.fromisoformat(push.body["expires_at"]) - datetime.now(UTC)
    assert timedelta(seconds=2) < left <= timedelta(seconds=5)


async def test_stale_typing_is_dropped(story: Story) -> None:
    name = chat()
    await story.customer(name)
    await story.arrived(name)
    at = clock.text(clock.now_ms() - 5_500)
    typing = {"type": "typing", "conversation_id": name, "sender": {"id": "u-1", "name": "Ann"}, "at": at}
    _, told = await story.tell(typing)
    assert told["results"][0]["position"] is None


async def test_typing_that_waited_too_long_is_dropped(story: Story) -> None:
    name = chat()
    await story.customer(name)
    await story.arrived(name)
    await story.fault("kommo.new_message", "503", retry_after=2, conversation_id=name)
    await story.customer(name)
    at = clock.text(clock.now_ms() - 4_000)
    typing = {"type": "typing", "conversation_id": name, "sender": {"id": "u-1", "name": "Ann"}, "at": at}
    _, told = await story.tell(typing)
    await story.customer(name)
    await story.arrived(name, 3)
    await story.settled()
    assert told["results"][0]["position"]
    assert not [one for one in story.sandbox.chat_state.typings if one.conversation_id == name]


async def test_typing_before_the_messenger_knows_the_chat_is_not_told(story: Story) -> None:
    phone = "+15550170"
    await story.fault("messenger.hook.message", "503", times=2)
    told = await story.order("POST", "/manager/messages", {"phone": phone, "message": {"text": "Hi"}})
    await story.order("POST", "/manager/typing", {"chat_id": told["chat_id"]})
    await until(
        lambda: [push for push in story.sandbox.messenger_state.pushes.values() if phone in str(push.body)]
    )
    await story.settled()
    assert not [
        one
        for one in story.sandbox.messenger_state.pushes.values()
        if one.type == "typing" and not one.conversation_id
    ]


# What comes back, and what comes twice.


def echo(story: Story, name: str, kommo_id: str, text: str = "Hello") -> dict[str, Any]:
    """The hook of a message that Kommo already has."""
    known = story.sandbox.chat_state.chat(SCOPE.scope_id, name)
    now = clock.now_ms()
    message = {
        "receiver": {"id": known.client if known else "p-1", "client_id": f"u-{name}"},
        "sender": {"id": story.sandbox.config.managers[0].id},
        "conversation": {"id": known.id if known else f"chat-{name}", "client_id": name},
        "timestamp": now // 1000,
        "msec_timestamp": now,
        "message": {"id": kommo_id, "type": "text", "text": text},
    }
    return {"account_id": SCOPE.account, "time": now // 1000, "message": message}


async def test_an_echo_of_ours_is_no_news(story: Story) -> None:
    name = chat()
    ours = await story.customer(name)
    [message] = await story.arrived(name)
    await story.until_recorded(ours, "message.accepted")
    head = await story.head()
    assert await story.hook(echo(story, name, message.id)) == 200
    await story.settled()
    assert (await story.head(), story.pushes(name)) == (head, [])


async def test_a_messengers_echo_of_ours_is_no_news(story: Story) -> None:
    name = chat()
    told, push = await sent(story, name)
    sender = {"id": f"u-{name}", "name": "Ann"}
    action = {"type": "message.sent", "conversation_id": name, "message_id": push.answer["message_id"]}
    _, answer = await story.tell(action | {"sender": sender, "message": {"type": "text", "text": "Hi"}})
    [result] = answer["results"]
    assert (result["id"], result["duplicate"]) == (told["ours"], True)
    await story.settled()
    assert story.kommo(name) == []


async def test_an_echo_before_the_answer_is_healed(story: Story) -> None:
    name = chat()
    await story.fault("kommo.new_message", "slow", seconds=1, conversation_id=name)
    await story.fault("messenger.hook.message", "503", times=None, conversation_id=name)
    ours = await story.customer(name)
    [message] = await story.arrived(name)
    assert await story.hook(echo(story, name, message.id)) == 200
    await story.until_recorded(ours, "message.accepted")
    await story.order("DELETE", "/faults")
    await story.settled()
    await asyncio.sleep(QUIET_SECONDS)
    assert story.pushes(name) == []
    assert (await story.shown(ours))["remote"]["kommo"] == message.id


async def test_a_hook_sent_twice_is_pushed_once(story: Story) -> None:
    name = chat()
    await story.fault("hook.message", "twice", conversation_id=name)
    told = await story.manager(name)
    await story.pushed(name)
    await story.settled()
    assert len(story.pushes(name)) == 1
    assert (await story.timeline(told["ours"])).count("message.sent") == 1


async def test_an_action_sent_twice_is_pushed_once(story: Story) -> None:
    name = chat()
    for _ in range(2):
        await story.customer(name, message_id=name)
    await story.arrived(name)
    await story.settled()
    assert [one.repeats for one in story.kommo(name)] == [0]


# Chats that begin on either side.


async def first(story: Story, phone: str, text: str = "Hi") -> tuple[dict[str, Any], Push]:
    """A manager writes first, to a phone number; what he was told and the push that came of it."""
    receiver = {"name": "Ann", "phone": phone}
    order = {"phone": phone, "receiver": receiver, "message": {"type": "text", "text": text}}
    told = await story.order("POST", "/manager/messages?wait=1", order)
    told["ours"] = ids.message_id(SCOPE, "kommo", told["id"])
    pushes = story.sandbox.messenger_state.pushes
    [push] = await until(lambda: [one for one in pushes.values() if one.id == told["ours"]])
    return told, push


def at_kommo(story: Story, told: dict[str, Any]) -> Chat:
    found: Chat = story.sandbox.chat_state.chats[told["chat_id"]]
    return found


async def test_who_is_written_to_first_is_named_by_phone(story: Story) -> None:
    _, push = await first(story, "+15550101")
    assert (push.body["conversation_id"], push.body["receiver"]) == (None, {"phone": "+15550101"})


async def test_the_answer_to_the_first_message_names_the_chat_from_then_on(story: Story) -> None:
    told, push = await first(story, "+15550102")
    await story.until_recorded(told["ours"], "message.accepted")
    again = {"chat_id": told["chat_id"], "message": {"type": "text", "text": "There?"}}
    await story.order("POST", "/manager/messages?wait=1", again)
    [second] = [one for one in await story.pushed(push.conversation_id, 2) if one.id != told["ours"]]
    assert second.body["conversation_id"] == push.answer["conversation_id"]


async def test_two_first_messages_at_once_name_one_chat(story: Story) -> None:
    order = {"phone": "+15550103", "message": {"type": "text", "text": "Hi"}}
    told = await story.order("POST", "/manager/messages", order)
    await story.order(
        "POST", "/manager/messages", {"chat_id": told["chat_id"], "message": {"text": "There?"}}
    )
    pushes = story.sandbox.messenger_state.pushes
    found = await until(lambda: [p for p in pushes.values() if "+15550103" in str(p.body)])
    await story.pushed(found[0].conversation_id, 2)


async def test_the_reply_to_a_first_message_is_bound_to_its_chat(story: Story) -> None:
    told, push = await first(story, "+15550104")
    await story.until_recorded(told["ours"], "message.accepted")
    name = push.conversation_id
    await story.customer(name, sender={"id": str(push.answer["receiver_id"]), "name": "Ann"})
    await until(lambda: at_kommo(story, told).client_id == name)
    [reply] = await story.arrived(name)
    assert reply.chat_id == told["chat_id"]


async def test_chats_that_began_apart_become_one(story: Story) -> None:
    name, phone = chat(), "+15550105"
    story.sandbox.messenger_state.conversation(
        name, story.sandbox.messenger_state.customer("u-apart", "Ann", phone).id, ""
    )
    await story.fault("messenger.hook.message", "slow", seconds=1)
    told = await story.order("POST", "/manager/messages", {"phone": phone, "message": {"text": "Hi"}})
    ours = ids.message_id(SCOPE, "kommo", told["id"])
    pushes = story.sandbox.messenger_state.pushes
    [push] = await until(lambda: [one for one in pushes.values() if one.id == ours])
    await story.customer(push.conversation_id)
    await story.until_recorded(ours, "message.accepted")
    [merged] = await story.events(type="conversation.merged")
    shown = await story.api("GET", f"/v1/conversations/{merged['into']}/messages")
    assert len(shown["items"]) == 2


async def test_messages_still_arrive_after_chats_became_one(story: Story) -> None:
    phone = "+15550106"
    await story.fault("messenger.hook.message", "slow", seconds=1)
    told = await story.order("POST", "/manager/messages", {"phone": phone, "message": {"text": "Hi"}})
    ours = ids.message_id(SCOPE, "kommo", told["id"])
    pushes = story.sandbox.messenger_state.pushes
    [push] = await until(lambda: [one for one in pushes.values() if one.id == ours])
    name = push.conversation_id
    await story.customer(name, "before")
    await story.arrived(name)
    await story.until_recorded(ours, "message.accepted")
    later = await story.customer(name, "after")
    await story.until_recorded(later, "message.accepted")
    assert [one.message["text"] for one in story.kommo(name)] == ["before", "after"]
