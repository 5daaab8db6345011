"""Every field that a messenger may give arrives in Kommo, also of what the business wrote on its phone."""

from typing import Any

import msgspec
import pytest

from app import clock
from app.messengers import webhook
from app.servers.servers import Servers
from ops.sandbox import Channel
from ops.sandbox.state.chats import Message as KommoMessage
from tests.support.ids import ACCOUNT, AS_ADMIN, BOT, CHANNEL, CHANNEL_SECRET, MARIA, MESSENGER_SECRET, SCOPE
from tests.support.system import PHOTO, Story, chat, story_on, until

OTHER = "11111111-2222-4333-8444-555555555555"
AT = "2026-01-02T03:04:05.678Z"
MOMENT = {"timestamp": 1_767_323_045, "msec_timestamp": 1_767_323_045_678}
POST = {
    "id": "p-1",
    "url": "https://example.com/p",
    "preview_permalink": PHOTO,
    "username": "acme",
    "caption": "New!",
}
SHARED = {"url": "https://example.com/p", "preview_link": PHOTO, "type": "post", "site_name": "example"}


def sent(name: str, own: str = "", text: str = "Hello", **more: Any) -> dict[str, Any]:
    """A customer's message; its own id is the conversation's name unless given."""
    return {
        "type": "message.sent",
        "conversation_id": name,
        "message_id": own or name,
        "sender": {"id": f"u-{name}", "name": "Ann"},
        "message": {"type": "text", "text": text},
    } | more


def phoned(name: str, own: str = "", text: str = "On my way", **more: Any) -> dict[str, Any]:
    """A message that the business wrote on its phone."""
    sender, receiver = {"id": "acme-phone", "name": "Acme"}, {"id": f"u-{name}", "name": "Ann"}
    return sent(name, own, text, direction="out", sender=sender, receiver=receiver) | more


async def told(story: Story, action: dict[str, Any]) -> str:
    status, answer = await story.tell(action)
    assert status == 200, answer
    return str(answer["results"][0]["id"])


def outgoing(story: Story, name: str) -> list[KommoMessage]:
    crm = story.sandbox.chat_state
    found = crm.chat(SCOPE.scope_id, name)
    return [one for one in crm.timelines[found.id] if one.direction == "out"] if found else []


async def at_kommo(story: Story, name: str, many: int = 1) -> list[KommoMessage]:
    return await until(lambda: found if len(found := outgoing(story, name)) >= many else [])


# What a customer's message may hold.


@pytest.mark.parametrize("more", [{"post": POST}, {"shared_post": SHARED}], ids=lambda more: next(iter(more)))
async def test_a_post_arrives_with_what_was_said_of_it(story: Story, more: dict[str, Any]) -> None:
    name = chat()
    await told(story, sent(name, message={"type": "text", "text": "How much?", **more}))
    [message] = await story.arrived(name)
    assert message.message == {"type": "text", "text": "How much?", **more}


async def test_a_message_is_forwarded_by_its_id(story: Story) -> None:
    name, other = chat(), chat()
    first = await told(story, sent(other))
    forwards = {"messages": [{"message_id": other}], "conversation_id": other}
    await told(story, sent(name, text="Look", forwards=forwards))
    [message] = await story.arrived(name)
    assert message.forwards == {"messages": [{"msgid": first}], "conversation_id": other}


async def test_a_managers_message_is_forwarded_by_kommos_id(story: Story) -> None:
    name = chat()
    theirs = await story.manager(name)
    [push] = await story.pushed(name)
    await story.until_recorded(theirs["ours"], "message.accepted")
    forwards = {"messages": [{"message_id": push.answer["message_id"]}]}
    await told(story, sent(name, forwards=forwards))
    [message] = await story.arrived(name)
    assert message.forwards == {"messages": [{"id": theirs["id"]}]}


async def test_what_a_manager_forwards_has_the_messengers_own_ids(story: Story) -> None:
    name = chat()
    theirs = await story.manager(name)
    [push] = await story.pushed(name)
    await story.until_recorded(theirs["ours"], "message.accepted")
    hers = await told(story, sent(name))
    [message] = await story.arrived(name)
    await story.until_recorded(hers, "message.accepted")
    quoted = [{"id": one, "type": "text", "text": "x"} for one in (message.id, theirs["id"], "nothing")]
    now = clock.now_ms()
    body = {
        "receiver": {"id": "r-1", "client_id": f"u-{name}"},
        "sender": {"id": MARIA},
        "conversation": {"id": message.chat_id, "client_id": name},
        "timestamp": now // 1000,
        "message": {"id": f"k-{name}", "type": "text", "text": "See", "forwards": {"messages": quoted}},
    }
    assert await story.hook({"account_id": SCOPE.account, "time": now // 1000, "message": body}) == 200
    forwarding = (await story.pushed(name, 2))[1]
    found = forwarding.body["message"]["forwards"]["messages"]
    assert [one.get("message_id") for one in found] == [name, push.answer["message_id"], None]
    assert [one["id"] for one in found] == [one["id"] for one in quoted]


async def test_a_message_that_kommo_never_had_is_forwarded_whole(story: Story) -> None:
    name = chat()
    place = {"type": "location", "location": {"lon": 13.4, "lat": 52.5}}
    whole = {"message_id": "old", "message": place, "sender": {"name": "Bo"}, "at": AT}
    ours = await told(story, sent(name, forwards={"messages": [whole]}))
    [message] = await story.arrived(name)
    expected = {**place, "text": "", **MOMENT, "sender": {"name": "Bo"}}
    assert message.forwards == {"messages": [expected]}
    assert (await story.shown(ours))["forwarded"] == {"id": "old"}


async def test_a_forward_of_nothing_known_goes_without_it(story: Story) -> None:
    name = chat()
    await told(story, sent(name, forwards={"messages": [{"message_id": "nothing"}]}))
    [message] = await story.arrived(name)
    assert message.forwards is None


async def test_a_quote_that_kommo_never_had_is_told_whole(story: Story) -> None:
    name = chat()
    file = {"type": "file", "media": PHOTO, "file_name": "a.pdf", "file_size": 7, "media_duration": 1}
    sender = {"id": "phone", "name": "Maria"}
    quote = {"message_id": "old", "message": file, "sender": sender | {"user_id": MARIA}, "at": AT}
    await told(story, sent(name, reply_to=quote))
    [message] = await story.arrived(name)
    assert message.reply_to == {
        "message": {
            "type": "file",
            "text": "",
            "file_name": "a.pdf",
            "file_size": 7,
            "media_duration": 1,
            **MOMENT,
            "sender": sender | {"ref_id": MARIA},
        }
    }


async def test_a_quote_that_kommo_has_goes_by_its_id(story: Story) -> None:
    name = chat()
    first = await told(story, sent(name))
    quote = {"message_id": name, "message": {"type": "text", "text": "x"}, "sender": {"name": "Bo"}, "at": AT}
    await told(story, sent(name, f"{name}-2", reply_to=quote))
    assert (await story.arrived(name, 2))[1].reply_to == {"message": {"msgid": first}}


@pytest.mark.parametrize(
    ("status", "call"),
    [
        ({"status": "delivered"}, (1, None, "")),
        ({"status": "read"}, (2, None, "")),
        ({"status": "failed", "code": 904, "text": "gone"}, (-1, 904, "gone")),
    ],
)
async def test_an_edit_may_carry_a_status(story: Story, status: dict[str, Any], call: Any) -> None:
    name = chat()
    await told(story, phoned(name))
    [message] = await at_kommo(story, name)
    edit = {"type": "message.edited", "conversation_id": name, "message_id": name}
    await told(story, edit | {"message": {"type": "text", "text": "Late"}, "delivery_status": status})
    await until(lambda: message.edits)
    assert message.edits[0]["message"] == {"type": "text", "text": "Late"}
    assert [(one.status, one.error_code, one.error) for one in message.statuses] == [call]


async def test_typing_lasts_as_long_as_was_told(story: Story) -> None:
    name = chat()
    await story.customer(name)
    await story.arrived(name)
    sender = {"id": f"u-{name}", "name": "Ann"}
    typing = {"type": "typing", "conversation_id": name, "sender": sender, "duration_ms": 9000}
    status, _ = await story.tell(typing)
    typings = story.sandbox.chat_state.typings
    [typing] = await until(lambda: [one for one in typings if one.conversation_id == name])
    assert (status, typing.duration_ms) == (200, 9000)


async def test_a_reaction_may_be_a_managers(story: Story) -> None:
    name = chat()
    await told(story, sent(name))
    [message] = await story.arrived(name)
    sender = {"id": "acme-phone", "user_id": MARIA}
    reaction = {"type": "reaction.added", "conversation_id": name, "message_id": name, "sender": sender}
    await story.tell(reaction | {"emoji": "👍"})
    await until(lambda: [(one.by, one.emoji) for one in message.reactions] == [(MARIA, "👍")])
    await story.tell(reaction | {"type": "reaction.removed"})
    await until(lambda: message.reactions == [])


# What the business writes on its phone.


async def test_what_was_written_on_the_phone_shows_in_kommo_in_the_bots_name(story: Story) -> None:
    name = chat()
    ours = await told(story, phoned(name, silent=True))
    [message] = await at_kommo(story, name)
    person = story.sandbox.chat_state.people[message.receiver]
    assert (message.sender, message.sender_name, message.client_id) == (BOT, "Acme", ours)
    assert (person.client_id, person.name, message.silent) == (f"u-{name}", "Ann", True)
    await story.until_recorded(ours, "message.accepted")
    await story.settled()
    shown = await story.shown(ours)
    assert (shown["direction"], shown["sent_by"], story.pushes(name)) == ("out", "messenger", [])
    assert shown["remote"] == {"kommo": message.id, "messenger": name}


async def test_what_a_known_manager_wrote_on_the_phone_shows_in_his_name(story: Story) -> None:
    name = chat()
    sender = {"id": "acme-phone", "name": "Maria", "user_id": MARIA}
    await told(story, phoned(name, sender=sender))
    [message] = await at_kommo(story, name)
    assert (message.sender, message.sender_name) == (MARIA, "Maria")


async def test_both_sides_of_a_phone_keep_their_order(story: Story) -> None:
    name = chat()
    for n in range(6):
        await told(story, (phoned if n % 2 else sent)(name, f"{name}-{n}", str(n)))
    await at_kommo(story, name, 3)
    await story.arrived(name, 3)
    found = story.sandbox.chat_state.timelines[story.sandbox.chat_state.chat(SCOPE.scope_id, name).id]
    assert [one.message["text"] for one in found] == list("012345")
    moments = [one.msec_timestamp for one in found]
    assert moments == sorted(set(moments))


async def test_a_message_of_the_phone_may_be_answered_edited_and_reacted_to(story: Story) -> None:
    name = chat()
    ours = await told(story, phoned(name))
    [message] = await at_kommo(story, name)
    await told(story, sent(name, f"{name}-2", reply_to={"message_id": name}))
    edit = {"type": "message.edited", "conversation_id": name, "message_id": name}
    await told(story, edit | {"message": {"type": "text", "text": "Soon"}})
    sender = {"id": f"u-{name}", "name": "Ann"}
    reaction = {"type": "reaction.added", "conversation_id": name, "message_id": name, "sender": sender}
    await told(story, reaction | {"emoji": "👍"})
    await until(lambda: message.reactions)
    [answer] = await story.arrived(name)
    assert answer.reply_to == {"message": {"msgid": ours}}
    assert message.message["text"] == "Soon"


async def test_the_messenger_reports_no_status_of_its_own(story: Story) -> None:
    name = chat()
    ours = await told(story, phoned(name))
    action = {"type": "message.read", "conversation_id": name, "id": ours}
    assert (await story.tell(action))[0] == 400


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"receiver": None}, "$.receiver"),
        ({"direction": "sideways"}, "$.direction"),
        ({"forwards": {"messages": [{}]}}, "$.forwards.messages[0]"),
        ({"forwards": {"messages": []}}, "$.forwards.messages"),
        ({"reply_to": {"message_id": "x", "message": {"type": "text", "text": "y"}}}, "$.reply_to.sender"),
        ({"message": {"type": "text", "text": "x", "post": {"id": "p"}}}, "$.message.post"),
    ],
)
async def test_what_cannot_be_says_where(story: Story, change: dict[str, Any], path: str) -> None:
    status, answer = await story.tell(phoned(chat()) | change)
    assert (status, answer["errors"][0]["path"]) == (400, path)


# How the channel is connected.


async def test_the_time_window_may_be_disabled_and_stays_so(story: Story) -> None:
    path, body = "/v1/channels/acme/connections", {"account_id": ACCOUNT, "title": "Acme"}
    first = await story.api("POST", path, body | {"is_time_window_disabled": True})
    again = await story.api("POST", path, body)
    connection = story.sandbox.chat_state.connections[SCOPE.scope_id]
    assert (first["is_time_window_disabled"], again["is_time_window_disabled"]) == (True, True)
    assert connection.is_time_window_disabled
    [event] = [
        one for one in await story.events(type="channel.connected") if "is_time_window_disabled" in one
    ]
    assert event["is_time_window_disabled"] is True
    last = await story.api("POST", path, body | {"is_time_window_disabled": False})
    assert last["is_time_window_disabled"] is False
    assert not story.sandbox.chat_state.connections[SCOPE.scope_id].is_time_window_disabled


async def test_a_channel_without_a_bot_says_what_to_do(servers: Servers) -> None:
    channels = (Channel(CHANNEL, CHANNEL_SECRET, BOT), Channel(OTHER, CHANNEL_SECRET, BOT))
    async with story_on(servers, channels=channels) as story:
        other = {
            "name": "botless",
            "kommo": {"channel_id": OTHER, "secret": CHANNEL_SECRET},
            "messenger": {
                "kind": "webhook",
                "url": f"{story.sandbox.url}/messenger/hook",
                "secret": MESSENGER_SECRET,
            },
        }
        await story.api("POST", "/v1/channels", other)
        await story.api("POST", "/v1/channels/botless/connections", {"account_id": ACCOUNT, "title": "B"})
        found = [await post(story, [sent("conv-b", "m-1"), phoned("conv-b", "m-2")])]
        sender = {"id": "acme-phone", "name": "Maria", "user_id": MARIA}
        found.append(await post(story, phoned("conv-b", "m-2", sender=sender)))
        assert [status for status, _ in found] == [400, 200]
        assert found[0][1]["errors"][0]["path"] == "$[1].sender.user_id"
        page = await story.api("GET", f"/v1/conversations?channel=botless&at_least={await story.head()}")
        body = {"message_id": "m", "message": {"type": "text", "text": "Hi"}}
        url = f"{story.url}/v1/conversations/{page['items'][0]['id']}/messages"
        status, answer = await story.call("POST", url, body, headers=AS_ADMIN)
        assert (status, "bot" in answer["detail"], "PUT" in answer["detail"]) == (409, True, True)


async def post(story: Story, content: dict[str, Any] | list[dict[str, Any]]) -> tuple[int, Any]:
    """Actions for the other channel, signed."""
    actions = content if isinstance(content, list) else [content]
    body = msgspec.json.encode([{"at": AT} | action for action in actions])
    headers = webhook.signed(MESSENGER_SECRET, "msg_1", body)
    async with story.client.post(f"{story.url}/messengers/botless", data=body, headers=headers) as answer:
        return answer.status, await answer.json(content_type=None)
