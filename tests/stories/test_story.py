"""What is said on one side is said on the other: once, whole, in order, and by its right name."""

from typing import Any

import pytest

from tests.support.ids import SCOPE
from tests.support.system import PHOTO, Story, chat, until

WAIT_SHORT = 0.3

CONTENTS: list[dict[str, Any]] = [
    {"type": "text", "text": "Grüße 👋 <b>&</b>\n\ttwice"},
    {"type": "text", "text": "a button", "callback_data": "yes"},
    {"type": "picture", "media": PHOTO, "text": "a cat", "file_name": "cat.jpg", "file_size": 12_345},
    {"type": "file", "media": "https://media.example/a.pdf", "file_name": "ä b.pdf", "file_size": 1},
    {"type": "video", "media": "https://media.example/v.mp4", "media_duration": 61, "file_size": 2**40},
    {"type": "voice", "media": "https://media.example/v.ogg", "media_duration": 3},
    {"type": "audio", "media": "https://media.example/a.mp3", "media_duration": 200, "file_name": "a.mp3"},
    {"type": "sticker", "sticker_id": "s-1"},
    {"type": "sticker", "media": "https://media.example/s.webp"},
    {"type": "location", "location": {"lon": -122.5, "lat": 37.25}},
    {"type": "contact", "contact": {"name": "Bob", "phone": "+15550199"}},
]
REPLIES: list[dict[str, Any]] = [
    *({**one} for one in CONTENTS if one["type"] not in ("location", "contact")),
    {"type": "picture", "media": PHOTO, "thumbnail": PHOTO, "media_group_id": "g-1"},
    {"type": "text", "text": "choose", "markup": {"mode": "inline", "buttons": [[{"text": "yes"}]]}},
    {"type": "text", "text": "Hi", "template": {"id": 7, "content": "Hi {{name}}", "params": []}},
]


# What is said.


@pytest.mark.parametrize("content", CONTENTS, ids=lambda content: content["type"])
async def test_whatever_a_customer_sends_arrives_unchanged(story: Story, content: dict[str, Any]) -> None:
    name = chat()
    await story.customer(name, message=content)
    [message] = await story.arrived(name)
    assert {"text": ""} | content == message.message


async def test_what_else_a_customer_tells_arrives_unchanged(story: Story) -> None:
    name, at = chat(), "2026-01-02T03:04:05.678Z"
    sender = {"id": "u-9", "name": "Ann Ö", "phone": "+15550100"}
    more: dict[str, Any] = {"source": {"external_id": "shop 1"}, "silent": True, "at": at}
    ours = await story.customer(name, sender=sender, message_id=f"m {name}", **more)
    [message] = await story.arrived(name)
    person = story.sandbox.chat_state.people[message.sender]
    assert (person.client_id, person.name, person.phone) == ("u-9", "Ann Ö", "+15550100")
    assert (message.client_id, message.source, message.silent) == (ours, "shop 1", True)
    assert (message.msec_timestamp, message.timestamp) == (1_767_323_045_678, 1_767_323_045)


async def test_a_customers_address_and_picture_arrive(story: Story) -> None:
    name = chat()
    sender = {"id": f"u-{name}", "name": "Ann", "email": "ann@example.com", "avatar": PHOTO}
    action = {"type": "message.sent", "conversation_id": name, "message_id": name, "sender": sender}
    status, _ = await story.tell(action | {"message": {"type": "text", "text": "Hello"}})
    [message] = await story.arrived(name)
    person = story.sandbox.chat_state.people[message.sender]
    assert (status, person.email, person.avatar) == (200, "ann@example.com", PHOTO)


@pytest.mark.parametrize("content", REPLIES, ids=lambda content: content["type"])
async def test_whatever_a_manager_sends_arrives_unchanged(story: Story, content: dict[str, Any]) -> None:
    name = chat()
    told = await story.manager(name, message=content)
    [push] = await story.pushed(name)
    assert push.body["message"] == {key: value for key, value in content.items() if key != "callback_data"}
    assert (push.body["id"], push.body["account_id"]) == (told["ours"], SCOPE.account)
    assert push.body["sender"]["name"] == "Maria Keller"


async def test_a_manager_speaks_to_whom_he_means(story: Story) -> None:
    name = chat()
    receiver = {"client_id": f"u-{name}", "name": "Ann", "phone": "+15550111"}
    await story.manager(name, receiver=receiver)
    [push] = await story.pushed(name)
    assert push.body["receiver"] == {"id": f"u-{name}", "phone": "+15550111"}


async def test_each_side_has_its_own_name_for_a_message(story: Story) -> None:
    name = chat()
    ours, told = await story.customer(name), await story.manager(name)
    [message], [push] = await story.arrived(name), await story.pushed(name)
    await story.until_recorded(ours, "message.accepted")
    await story.until_recorded(told["ours"], "message.accepted")
    assert (await story.shown(ours))["remote"]["kommo"] == message.id
    assert (await story.shown(told["ours"]))["remote"]["messenger"] == push.answer["message_id"]


async def test_a_conversation_arrives_in_its_order(story: Story) -> None:
    name, words = chat(), [f"{n}" for n in range(30)]
    for word in words:
        await story.customer(name, word)
        await story.manager(name, word)
    assert [one.message["text"] for one in await story.arrived(name, 30)] == words
    assert [one.body["message"]["text"] for one in await story.pushed(name, 30)] == words


async def test_moments_rise_in_a_conversation_though_the_clocks_do_not(story: Story) -> None:
    name = chat()
    for at in ("2026-01-02T03:04:05.678Z", "2026-01-02T03:04:05.678Z", "2026-01-02T03:04:04.000Z"):
        await story.customer(name, at=at)
    moments = [one.msec_timestamp for one in await story.arrived(name, 3)]
    assert moments == [moments[0], moments[0] + 1, moments[0] + 2]


# What it answers.


async def test_a_customers_answer_names_his_own_message_by_our_id(story: Story) -> None:
    name = chat()
    ours = await story.customer(name, message_id=f"{name}-1")
    await story.customer(name, reply_to=f"{name}-1")
    [_, answer] = await story.arrived(name, 2)
    assert answer.reply_to == {"message": {"msgid": ours}}


async def test_a_customers_answer_names_a_managers_message_by_kommos_id(story: Story) -> None:
    name = chat()
    told = await story.manager(name)
    [push] = await story.pushed(name)
    await story.until_recorded(told["ours"], "message.accepted")
    await story.customer(name, reply_to=push.answer["message_id"])
    [answer] = await story.arrived(name)
    assert answer.reply_to == {"message": {"id": told["id"]}}


async def test_an_answer_to_nothing_known_goes_without_it(story: Story) -> None:
    name = chat()
    await story.customer(name, reply_to="nobody-knows")
    [message] = await story.arrived(name)
    await story.manager(name, message={"type": "text", "text": "?", "reply_to": {"message": {"id": "none"}}})
    [push] = await story.pushed(name)
    assert (message.reply_to, push.body.get("reply_to")) == (None, None)


async def test_a_managers_answer_names_messages_as_the_messenger_does(story: Story) -> None:
    name = chat()
    ours = await story.customer(name, message_id=f"{name}-1")
    [message] = await story.arrived(name)
    await story.until_recorded(ours, "message.accepted")
    own = await story.manager(name)
    [first] = await story.pushed(name)
    for answered in ({"id": message.id}, {"id": own["id"]}, {"id": message.id, "msgid": ours}):
        await story.manager(name, message={"type": "text", "text": "!", "reply_to": {"message": answered}})
    named = [push.body["reply_to"]["message_id"] for push in (await story.pushed(name, 4))[1:]]
    assert named == [f"{name}-1", first.answer["message_id"], f"{name}-1"]


# What is changed.


async def test_an_edit_reaches_kommo(story: Story) -> None:
    name = chat()
    ours = await story.customer(name, message_id=name)
    await story.order("POST", "/customer/edits", {"message_id": name, "message": {"text": "Better"}})
    [message] = await story.arrived(name)
    await until(lambda: message.edits)
    assert message.message["text"] == "Better"
    await story.until_recorded(ours, "delivery.completed")
    assert (await story.shown(ours))["edited"] is True


async def test_a_deletion_is_recorded_and_not_told(story: Story) -> None:
    name = chat()
    ours = await story.customer(name, message_id=name)
    await story.arrived(name)
    await story.order("POST", "/customer/deletes?wait=1", {"message_id": name})
    assert (await story.shown(ours))["deleted"] is True
    [event] = await story.events(
        type="message.deleted", conversation=(await story.shown(ours))["conversation"]
    )
    assert "push" not in event
    assert story.kommo(name)[0].message["text"] == "Hello"


async def test_an_edit_of_a_message_that_we_sent_is_recorded_and_not_told(story: Story) -> None:
    name = chat()
    told = await story.manager(name)
    [push] = await story.pushed(name)
    await story.until_recorded(told["ours"], "message.accepted")
    edit = {"type": "message.edited", "conversation_id": name, "message_id": push.answer["message_id"]}
    status, _ = await story.tell(edit | {"message": {"type": "text", "text": "Other"}})
    assert (status, (await story.shown(told["ours"]))["edited"]) == (200, True)
    await story.settled()
    assert story.sandbox.chat_state.messages[told["id"]].edits == []
