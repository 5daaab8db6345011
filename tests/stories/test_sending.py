"""What an operator sends by API reaches the customer and shows in Kommo; each side has a name of its own."""

import asyncio
from typing import Any

import pytest

from app import clock
from app.delivery.prepare import NOT_THERE
from domain import ids
from ops.sandbox.state.chats import Message as KommoMessage
from tests.support.ids import AS_ADMIN, BOT, MARIA, SCOPE
from tests.support.system import Story, chat, until

pytestmark = pytest.mark.story(echo=True)

HEADERS = AS_ADMIN
MARIA_NAME = "Maria Keller"


async def ask(story: Story, path: str, body: object) -> tuple[int, Any]:
    return await story.call("POST", story.url + path, body, headers=HEADERS)


async def known(story: Story, name: str) -> str:
    """A conversation in which the customer has written; its id."""
    ours = await story.customer(name)
    await story.arrived(name)
    return str((await story.shown(ours))["conversation"])


def copies(story: Story, name: str) -> list[KommoMessage]:
    """The messages to the customer that Kommo has."""
    crm = story.sandbox.chat_state
    found = crm.chat(SCOPE.scope_id, name)
    return [one for one in crm.timelines[found.id] if one.direction == "out"] if found else []


async def copied(story: Story, name: str, many: int = 1) -> list[KommoMessage]:
    return await until(lambda: found if len(found := copies(story, name)) >= many else [])


# A chat before any message.


def order(name: str, **more: Any) -> dict[str, Any]:
    user = {"id": f"u-{name}", "name": "Ann", "phone": "+15550100"}
    return {"channel": "acme", "account_id": SCOPE.account, "conversation_id": name, "user": user} | more


async def test_a_chat_is_created_before_any_message(story: Story) -> None:
    name = chat()
    user = order(name)["user"] | {"email": "ann@example.com", "profile_link": "https://example.com/ann"}
    body = order(name, user=user, source={"external_id": "shop 1"})
    status, told = await ask(story, "/v1/conversations", body)
    found = story.sandbox.chat_state.chat(SCOPE.scope_id, name)
    assert found
    assert (status, told["chat_id"], told["conversation_id"]) == (201, found.id, name)
    assert (told["messages"], found.source) == (0, "shop 1")
    person = story.sandbox.chat_state.people[found.client]
    assert (person.client_id, person.phone, person.email) == (f"u-{name}", "+15550100", "ann@example.com")
    events = await story.events(conversation=told["id"])
    assert [one["type"] for one in events if one["stream"] == told["id"]] == [
        "conversation.started",
        "conversation.bound",
    ]
    assert events[0]["receiver"]["ref_id"] == found.client
    assert (await ask(story, "/v1/conversations", body)) == (200, told)


async def test_a_chat_that_the_customer_began_is_found(story: Story) -> None:
    name = chat()
    conversation = await known(story, name)
    status, told = await ask(story, "/v1/conversations", order(name))
    assert (status, told["id"], told["messages"]) == (201, conversation, 1)
    assert (await ask(story, "/v1/conversations", order(name)))[0] == 200


async def test_a_chat_that_kommo_refuses_is_not_recorded(story: Story) -> None:
    name = chat()
    await story.fault("kommo.chats", "503")
    status, told = await ask(story, "/v1/conversations", order(name))
    assert (status, "503" in told["detail"]) == (502, True)
    page = await story.api("GET", f"/v1/conversations?conversation_id={name}")
    assert page["items"] == []


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"channel": "nobody"}, 404),
        ({"account_id": "11111111-1111-4111-8111-111111111111"}, 404),
        ({"conversation_id": "a\u0007b"}, 400),
        ({"source": {"external_id": "ä"}}, 400),
        ({"user": {"id": "u", "name": "a\u0000"}}, 400),
    ],
)
async def test_a_chat_that_cannot_be_says_why(story: Story, change: dict[str, Any], status: int) -> None:
    found, told = await ask(story, "/v1/conversations", order(chat()) | change)
    assert (found, bool(told["detail"])) == (status, True)


async def test_the_first_message_of_a_created_chat_can_be_ours(story: Story) -> None:
    name = chat()
    _, told = await ask(story, "/v1/conversations", order(name))
    await story.operator(told["id"], name)
    [push] = await story.pushed(name)
    [copy] = await copied(story, name)
    assert push.body["receiver"] == {"id": f"u-{name}", "phone": "+15550100"}
    assert copy.receiver == story.sandbox.chat_state.chat(SCOPE.scope_id, name).client


# A message.


async def test_a_message_in_the_bots_name_reaches_both(story: Story) -> None:
    name = chat()
    conversation = await known(story, name)
    told = await story.operator(conversation, name, "Hello, Ann", source={"external_id": "shop 1"})
    [push] = await story.pushed(name)
    [copy] = await copied(story, name)
    assert told["id"] == ids.message_id(SCOPE, "operator", name)
    assert (push.body["id"], push.body["message"]["text"]) == (told["id"], "Hello, Ann")
    assert push.body["receiver"] == {"id": f"u-{name}"}
    assert (copy.client_id, copy.sender, copy.silent, copy.source) == (told["id"], BOT, True, "shop 1")
    await story.until_recorded(told["id"], "message.accepted", 2)
    shown = await story.shown(told["id"])
    assert shown["remote"] == {"kommo": copy.id, "messenger": push.answer["message_id"]}
    assert (shown["direction"], shown["sent_by"], shown["status"]) == ("out", "operator", "accepted")


async def test_a_message_in_a_managers_name_comes_back_and_is_no_news(story: Story) -> None:
    name = chat()
    conversation = await known(story, name)
    sender = {"user_id": MARIA, "name": MARIA_NAME}
    told = await story.operator(conversation, name, sender=sender)
    [copy] = await copied(story, name)
    await until(lambda: copy.hook == "ok")
    await story.until_recorded(told["id"], "message.accepted", 2)
    await story.settled()
    assert (copy.sender, copy.sender_name) == (MARIA, MARIA_NAME)
    assert len(story.pushes(name)) == 1
    page = await story.api("GET", f"/v1/conversations/{conversation}/messages?at_least={await story.head()}")
    assert [one["id"] for one in page["items"]][1:] == [told["id"]]
    assert page["items"][1]["sender"]["name"] == MARIA_NAME


async def test_an_echo_that_overtakes_the_answer_is_not_sent_to_the_customer(story: Story) -> None:
    name = chat()
    conversation = await known(story, name)
    await story.fault("kommo.new_message", "slow", seconds=1, conversation_id=name)
    told = await story.operator(conversation, name, sender={"user_id": MARIA})
    await story.until_recorded(told["id"], "message.accepted", 2)
    await story.settled()
    await asyncio.sleep(0.3)
    assert len(story.pushes(name)) == 1
    shown = await story.api("GET", f"/v1/conversations/{conversation}?at_least={await story.head()}")
    assert shown["messages"] == 2


async def test_an_echo_of_what_a_messenger_wrote_itself_is_not_sent_to_the_customer(story: Story) -> None:
    name = chat()
    await known(story, name)
    await story.fault("kommo.new_message", "slow", seconds=1, conversation_id=name)
    action = {
        "type": "message.sent",
        "direction": "out",
        "conversation_id": name,
        "message_id": name,
        "sender": {"id": "phone", "name": "Maria", "user_id": MARIA},
        "receiver": {"id": f"u-{name}", "name": "Ann"},
        "message": {"type": "text", "text": "From the phone"},
    }
    assert (await story.tell(action))[0] == 200
    [copy] = await copied(story, name)
    await until(lambda: copy.hook == "ok")
    await story.settled()
    assert story.pushes(name) == []


async def test_the_same_message_again_is_sent_once(story: Story) -> None:
    name = chat()
    conversation = await known(story, name)
    first = await story.operator(conversation, name)
    body = {"message_id": name, "message": {"type": "text", "text": "Hi"}}
    again = await ask(story, f"/v1/conversations/{conversation}/messages", body)
    assert again == (200, first | {"duplicate": True})
    other = body | {"message": {"type": "text", "text": "Something else"}}
    status, told = await ask(story, f"/v1/conversations/{conversation}/messages", other)
    assert (status, told["position"]) == (409, first["position"])
    await story.settled()
    assert (len(story.pushes(name)), len(copies(story, name))) == (1, 1)


async def test_a_message_answers_another_by_the_names_of_each_side(story: Story) -> None:
    name = chat()
    conversation = await known(story, name)
    hers = ids.message_id(SCOPE, "messenger", name)
    await story.customer(name, message_id=name)
    theirs = await story.manager(name)
    await story.pushed(name)
    first = await story.operator(conversation, f"{name}-1", reply_to={"id": hers})
    await story.operator(conversation, f"{name}-2", reply_to={"id": theirs["ours"]})
    await story.operator(conversation, f"{name}-3", reply_to={"id": first["id"]})
    pushes = await story.pushed(name, 4)
    kommo = [one.reply_to["message"] for one in (await copied(story, name, 4)) if one.reply_to]
    assert [one.body.get("reply_to", {}).get("message_id") for one in pushes] == [
        None,
        name,
        pushes[0].answer["message_id"],
        pushes[1].answer["message_id"],
    ]
    assert kommo == [{"msgid": hers}, {"id": theirs["id"]}, {"msgid": first["id"]}]


async def test_a_customer_may_answer_and_react_to_it(story: Story) -> None:
    name = chat()
    told = await story.operator(await known(story, name), name)
    [push] = await story.pushed(name)
    [copy] = await copied(story, name)
    await story.until_recorded(told["id"], "message.accepted", 2)
    theirs = push.answer["message_id"]
    await story.customer(name, "Thanks", reply_to=theirs)
    answer = (await story.arrived(name, 2))[1]
    assert answer.reply_to == {"message": {"msgid": told["id"]}}
    reaction = {"message_id": theirs, "sender": {"id": f"u-{name}", "name": "Ann"}, "emoji": "👍"}
    await story.order("POST", "/customer/reactions?wait=1", reaction)
    await until(lambda: [one.emoji for one in copy.reactions] == ["👍"])


async def test_a_manager_may_react_to_it(story: Story) -> None:
    name = chat()
    told = await story.operator(await known(story, name), name)
    [push] = await story.pushed(name)
    [copy] = await copied(story, name)
    await story.until_recorded(told["id"], "message.accepted", 2)
    await story.order("POST", "/manager/reactions?wait=1", {"id": copy.id, "emoji": "👍"})
    [reaction] = await story.pushed(name, kind="reaction.added")
    assert reaction.body["message_id"] == push.answer["message_id"]


async def test_a_forward_whose_id_is_none_reaches_the_customer_as_it_is(story: Story) -> None:
    name = chat()
    theirs = await story.manager(name)
    await story.pushed(name)
    now, quoted = clock.now_ms() // 1000, {"id": {"odd": 1}, "type": "text", "text": "x"}
    body = {
        "receiver": {"id": "r-1", "client_id": f"u-{name}"},
        "sender": {"id": MARIA},
        "conversation": {"id": theirs["chat_id"], "client_id": name},
        "timestamp": now,
        "message": {"id": f"k-{name}", "type": "text", "text": "See", "forwards": {"messages": [quoted]}},
    }
    assert await story.hook({"account_id": SCOPE.account, "time": now, "message": body}) == 200
    push = (await story.pushed(name, 2))[1]
    assert push.body["message"]["forwards"]["messages"] == [quoted]


# How far it has come.


async def test_what_became_of_it_is_shown_in_kommo(story: Story) -> None:
    name = chat()
    told = await story.operator(await known(story, name), name)
    [push] = await story.pushed(name)
    [copy] = await copied(story, name)
    for kind in ("delivered", "read"):
        action = {"type": f"message.{kind}", "conversation_id": name, "message_id": push.answer["message_id"]}
        assert (await story.tell(action))[0] == 200
    await until(lambda: story.statuses(copy.id) == [1, 2])
    assert (await story.shown(told["id"]))["status"] == "read"


async def test_a_status_waits_for_kommos_name_of_the_copy(story: Story) -> None:
    name = chat()
    conversation = await known(story, name)
    await story.fault("kommo.new_message", "503", times=3, conversation_id=name)
    told = await story.operator(conversation, name)
    await story.pushed(name)
    status, _ = await ask(story, f"/v1/messages/{told['id']}/status", {"status": "read"})
    [copy] = await copied(story, name)
    await until(lambda: story.statuses(copy.id) == [2])
    assert status == 200


async def test_a_copy_of_a_manager_whom_kommo_does_not_know_comes_from_the_bot(story: Story) -> None:
    name = chat()
    conversation = await known(story, name)
    told = await story.operator(conversation, name, sender={"user_id": "nobody", "name": "Nobody"})
    await story.pushed(name)
    [copy] = await copied(story, name)
    assert (copy.sender, copy.message["text"]) == (BOT, "Hi")
    accepted = await story.until_recorded(told["id"], "message.accepted", 2)
    assert [one.get("left_out") for one in accepted if one.get("copy")] == [["sender.user_id"]]
    await story.settled()
    assert (await story.api("GET", f"/v1/deliveries?conversation={conversation}"))["items"] == []


async def test_a_status_of_a_parked_copy_is_parked_and_told_when_both_are_resumed(story: Story) -> None:
    name = chat()
    conversation = await known(story, name)
    await story.fault("kommo.new_message", "422", conversation_id=name)
    told = await story.operator(conversation, name)
    [push] = await story.pushed(name)
    await story.until_recorded(told["id"], "delivery.parked")
    action = {"type": "message.read", "conversation_id": name, "message_id": push.answer["message_id"]}
    await story.tell(action)
    parked = await story.until_recorded(told["id"], "delivery.parked", 2)
    assert parked[1]["reason"] == NOT_THERE
    assert (await story.shown(told["id"]))["status"] == "read"
    answer = await story.api("POST", f"/v1/deliveries/resume?conversation={conversation}")
    [copy] = await copied(story, name)
    await until(lambda: story.statuses(copy.id) == [2])
    assert answer["resumed"] == 2


async def test_a_messenger_that_refuses_it_is_shown_in_kommo(story: Story) -> None:
    name = chat()
    conversation = await known(story, name)
    await story.fault("messenger.hook.message", "422", conversation_id=name)
    told = await story.operator(conversation, name)
    [copy] = await copied(story, name)
    await until(lambda: story.statuses(copy.id) == [-1])
    shown = await story.shown(told["id"])
    assert (shown["status"], shown["failure"]["code"]) == ("failed", 905)


@pytest.mark.parametrize("code", [901, 902, 903, 904, 905])
async def test_a_failure_told_by_api_reaches_kommo_with_its_code(story: Story, code: int) -> None:
    name = chat()
    told = await story.operator(await known(story, name), name)
    [copy] = await copied(story, name)
    body = {"status": "failed", "code": code, "text": "gone", "at": "2026-11-22T08:00:00.000Z"}
    status, answer = await ask(story, f"/v1/messages/{told['id']}/status", body)
    assert (status, answer["id"], answer["duplicate"]) == (200, told["id"], False)
    await until(lambda: story.statuses(copy.id) == [-1])
    call = story.sandbox.chat_state.messages[copy.id].statuses[0]
    assert (call.error_code, call.error) == (code, "gone")
    assert (await ask(story, f"/v1/messages/{told['id']}/status", body))[1]["duplicate"] is True


async def test_the_status_of_a_managers_message_may_be_told_by_api(story: Story) -> None:
    name = chat()
    theirs = await story.manager(name)
    await story.pushed(name)
    await ask(story, f"/v1/messages/{theirs['ours']}/status", {"status": "delivered"})
    await until(lambda: story.statuses(theirs["id"]) == [1])


async def test_a_status_that_cannot_be_says_why(story: Story) -> None:
    name = chat()
    hers = await story.customer(name)
    nobody = "00000000-0000-4000-8000-000000000000"
    for message, body, status in (
        (hers, {"status": "read"}, 400),
        (nobody, {"status": "read"}, 404),
        (hers, {"status": "accepted"}, 400),
        (hers, {"status": "failed", "code": 42}, 400),
    ):
        found, told = await ask(story, f"/v1/messages/{message}/status", body)
        assert (found, bool(told["detail"])) == (status, True)


async def test_a_message_that_cannot_be_sent_says_why(story: Story) -> None:
    conversation = await known(story, chat())
    path = f"/v1/conversations/{conversation}/messages"
    good: dict[str, Any] = {"message_id": "m", "message": {"type": "text", "text": "Hi"}}
    for body in (
        good | {"message": {"type": "text"}},
        good | {"message": {"type": "text", "text": "a\u0000b"}},
        good | {"message_id": ""},
        good | {"message_id": "a\nb"},
        good | {"at": "1999-01-01T00:00:00Z"},
        good | {"reply_to": {"id": "nothing"}},
    ):
        status, told = await ask(story, path, body)
        assert (status, bool(told["detail"])) == (400, True), body
    assert (await ask(story, "/v1/conversations/none/messages", good))[0] == 404


async def test_a_customer_whom_nobody_named_must_be_named(story: Story) -> None:
    order = {"phone": "+15550190", "message": {"type": "text", "text": "Hi"}}
    await story.fault("messenger.hook.message", "503", times=None)
    told = await story.order("POST", "/manager/messages?wait=1", order)
    ours = ids.message_id(SCOPE, "kommo", told["id"])
    conversation = (await story.shown(ours))["conversation"]
    path = f"/v1/conversations/{conversation}/messages"
    body = {"message_id": "first", "message": {"type": "text", "text": "Hi"}}
    status, answer = await ask(story, path, body)
    assert (status, "receiver" in answer["detail"]) == (409, True)
    assert (await ask(story, path, body | {"receiver": {"id": "u-190", "name": "Bo"}}))[0] == 202
    await story.order("DELETE", "/faults")
    mine = ids.message_id(SCOPE, "operator", "first")
    await story.until_recorded(mine, "message.accepted", 2)
    [copy] = [one for one in story.sandbox.chat_state.messages.values() if one.client_id == mine]
    assert copy.chat_id == told["chat_id"]
