"""Names, times and repeats: nothing that one side writes acts outside its scope, conversation and kind."""

import json
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from aiohttp import web

from app import clock
from app.messengers import webhook
from domain import ids
from ops.sandbox.config import Channel
from tests.support.ids import ACCOUNT, BOT, CHANNEL, CHANNEL_SECRET, SCOPE
from tests.support.system import Story, chat, until

HOUR_MS = 3_600_000
SECRET = "whsec_cml2YWwtc2VjcmV0LW9mLTMyLWJ5dGVzLWV4YWN0bHk="
RIVAL = Channel("9c0a8f1e-7a55-4a0e-9f6e-5d1f1c0a7b21", "6f0c6b6f9d0f4f43a6d1a4f9f2f7a0c1d2e3b4a5", BOT)
RIVAL_SCOPE = ids.scope_of("rival", RIVAL.id, ACCOUNT)
pytestmark = pytest.mark.story(channels=(Channel(CHANNEL, CHANNEL_SECRET, BOT), RIVAL))


class Rival:
    """A channel whose messenger answers and posts whatever it wants."""

    def __init__(self, story: Story) -> None:
        self.story = story
        self.answers: list[dict[str, Any]] = []
        self.pushes: list[dict[str, Any]] = []

    async def take(self, request: web.Request) -> web.Response:
        self.pushes.append(await request.json())
        number = len(self.pushes)
        return web.json_response(self.answers.pop(0) if self.answers else {"message_id": f"r-{number}"})

    async def post(self, *actions: dict[str, Any], request: str = "") -> list[dict[str, Any]]:
        """Actions of the messenger in one signed request; the result of each."""
        body = msgspec.json.encode([{"at": clock.text(clock.now_ms())} | one for one in actions])
        headers = webhook.signed(SECRET, request or clock.new_id(clock.now_ms()), body)
        url = f"{self.story.url}/messengers/rival"
        async with self.story.client.post(url, data=body, headers=headers) as answer:
            assert answer.status == 200, await answer.text()
            found: list[dict[str, Any]] = (await answer.json())["results"]
            return found

    async def customer(self, name: str, message_id: str, **more: Any) -> str:
        """A customer writes; our id of the message."""
        sender = {"id": f"u-{name}", "name": "Ann"}
        (result,) = await self.post(
            text("message.sent", name, message_id, "Hello") | {"sender": sender} | more
        )
        return str(result["id"])

    async def manager(self, name: str, **answer: Any) -> dict[str, Any]:
        """A manager writes, and the messenger answers like that; Kommo's `id` and `ours`."""
        self.answers.append(answer)
        message = {"type": "text", "text": "Hi"}
        order = {"conversation_id": name, "scope_id": RIVAL_SCOPE.scope_id, "message": message}
        told: dict[str, Any] = await self.story.order("POST", "/manager/messages?wait=1", order)
        ours = ids.message_id(RIVAL_SCOPE, "kommo", told["id"])
        await self.story.until_recorded(ours, "message.accepted")
        return told | {"ours": ours}

    def texts(self, name: str) -> list[str]:
        """The managers' messages that came to a chat."""
        return [one["message"]["text"] for one in self.pushes if one.get("conversation_id") == name]

    def kommo(self, name: str) -> list[Any]:
        """The customer's messages that Kommo has."""
        state = self.story.sandbox.chat_state
        found = state.chat(RIVAL_SCOPE.scope_id, name)
        return [one for one in state.timelines[found.id] if one.direction == "in"] if found else []


def text(kind: str, name: str, message_id: str, words: str) -> dict[str, Any]:
    """An action with a text, about a message of a chat."""
    about = {"type": kind, "conversation_id": name, "message_id": message_id}
    return about | {"message": {"type": "text", "text": words}}


@pytest.fixture(scope="module")
async def rival(story: Story) -> AsyncIterator[Rival]:
    rival, app = Rival(story), web.Application()
    app.router.add_post("/", rival.take)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
    kommo = {"channel_id": RIVAL.id, "secret": RIVAL.secret, "bot_id": BOT}
    messenger = {"kind": "webhook", "url": url, "secret": SECRET}
    await story.api("POST", "/v1/channels", {"name": "rival", "kommo": kommo, "messenger": messenger})
    await story.api("POST", "/v1/channels/rival/connections", {"account_id": ACCOUNT, "title": "Rival"})
    yield rival
    await runner.cleanup()


async def everything(story: Story, name: str) -> str:
    """All that anybody can read of a channel's chat: its messages with their timelines, and its events."""
    conversation = ids.conversation_id(SCOPE, "messenger", name)
    query = f"conversation={conversation}&at_least={await story.head()}"
    events = await story.api("GET", f"/v1/events?limit=1000&{query}")
    listed = await story.api("GET", f"/v1/conversations/{conversation}/messages")
    shown = [await story.shown(one["id"]) for one in listed["items"]]
    return json.dumps([events, listed, shown])


async def test_a_rival_leaves_every_view_of_another_channel_as_it_is(story: Story, rival: Rival) -> None:
    name = chat()
    customer = await story.customer(name)
    await story.arrived(name)
    manager = await story.manager(name, scope_id=SCOPE.scope_id)
    [push] = await story.pushed(name)
    await story.until_recorded(manager["ours"], "message.accepted")
    await story.settled()
    before, sent = (
        await everything(story, name),
        len(story.sandbox.chat_state.messages[manager["id"]].statuses),
    )
    conversation = ids.conversation_id(SCOPE, "messenger", name)
    about = {"conversation_id": name, "sender": {"id": "u-9", "name": "Eve"}, "emoji": "👍"}
    for ours in (
        manager["ours"],
        customer,
        conversation,
        ids.connection_stream(SCOPE),
        ids.channel_stream("acme"),
    ):
        results = await rival.post(
            {"type": "message.failed", "conversation_id": name, "id": ours, "code": 904, "text": "forged"},
            {"type": "message.read", "conversation_id": name, "id": ours},
            {"type": "reaction.added", "id": ours, **about},
            {"type": "message.read", "conversation_id": name, "message_id": str(push.answer["message_id"])},
            text("message.edited", name, str(push.answer["message_id"]), "forged"),
        )
        assert all("error" not in one for one in results)
    await story.settled()
    assert await everything(story, name) == before
    assert len(story.sandbox.chat_state.messages[manager["id"]].statuses) == sent
    await story.manager(name, "Still here", scope_id=SCOPE.scope_id)
    assert [one.body["message"]["text"] for one in await story.pushed(name, 2)] == ["Hi", "Still here"]
    connections = await story.api("GET", "/v1/channels")
    (acme,) = [one for one in connections["items"] if one["name"] == "acme"]
    assert [one["account_id"] for one in acme["connections"]] == [ACCOUNT]


async def test_an_answer_with_the_id_of_an_existing_message_hides_neither(story: Story, rival: Rival) -> None:
    name = chat()
    customer = await rival.customer(name, f"{name}-x")
    manager = await rival.manager(name, message_id=f"{name}-x")
    assert "conflict.noticed" in await story.timeline(manager["ours"])
    conversation = ids.conversation_id(RIVAL_SCOPE, "messenger", name)
    listed = await story.api("GET", f"/v1/conversations/{conversation}/messages")
    assert [one["id"] for one in listed["items"]] == [customer, manager["ours"]]


async def test_the_same_id_in_two_chats_is_two_messages(story: Story, rival: Rival) -> None:
    one, two = chat(), chat()
    first, second = [await rival.manager(name, message_id="57") for name in (one, two)]
    await rival.post({"type": "message.read", "conversation_id": two, "message_id": "57"})
    await until(lambda: story.statuses(second["id"]) == [2])
    assert story.statuses(first["id"]) == []
    await rival.post({"type": "message.delivered", "conversation_id": one, "message_id": "57"})
    await until(lambda: story.statuses(first["id"]) == [1])
    assert await rival.customer(two, "57") == second["ours"]  # an echo
    assert await rival.customer(chat(), "57") not in (first["ours"], second["ours"])


async def test_an_answer_with_another_customers_chat_merges_nothing(story: Story, rival: Rival) -> None:
    one, two = chat(), chat()
    for name in (one, two):
        await rival.customer(name, f"{name}-1")
    manager = await rival.manager(one, message_id=f"{one}-z", conversation_id=two)
    assert "conflict.noticed" in await story.timeline(manager["ours"])
    for name in (one, two):
        await rival.manager(name, message_id=f"{name}-9")
    assert (len(rival.texts(one)), len(rival.texts(two))) == (2, 1)


async def test_edits_in_one_second_end_with_the_last_on_both_sides(story: Story, rival: Rival) -> None:
    name = chat()
    message = await rival.customer(name, f"{name}-1")
    at = clock.text(clock.now_ms())[:-5] + ".000Z"
    edits = [
        text("message.edited", name, f"{name}-1", words) | {"at": at} for words in ("e1", "e2", "e3", "e1")
    ]
    results = await rival.post(*edits)
    assert [one["duplicate"] for one in results] == [False] * 4
    await story.settled()
    assert (await story.shown(message))["text"] == "e1"
    assert rival.kommo(name)[0].message["text"] == "e1"


async def test_a_reaction_that_comes_back_in_the_same_second_is_there_again(story: Story) -> None:
    name = chat()
    message = await story.customer(name, message_id=f"{name}-1")
    [kommo] = await story.arrived(name)
    seconds = clock.now_ms() // 1000
    for kind in ("react", "unreact", "react", "react"):
        reaction = {
            "conversation": {"id": kommo.chat_id, "client_id": name},
            "message": {"id": kommo.id, "msgid": message},
            "user": {"id": story.sandbox.config.managers[0].id, "name": "Maria"},
            "type": kind,
            "emoji": "👍",
        }
        hook = {"account_id": ACCOUNT, "time": seconds, "action": {"reaction": reaction}}
        assert await story.hook(hook, scope_id=SCOPE.scope_id) == 200
    await until(lambda: len(story.pushes(name, "reaction.added")) == 2)
    assert [one["emoji"] for one in (await story.shown(message))["reactions"]] == ["👍"]
    assert len(story.pushes(name, "reaction.removed")) == 1


async def test_a_clock_that_is_hours_ahead_moves_nothing_after_it(story: Story, rival: Rival) -> None:
    name = chat()
    ahead = clock.text(clock.now_ms() + 20 * HOUR_MS)
    message = await rival.customer(name, f"{name}-1", at=ahead)
    await rival.customer(name, f"{name}-2")
    first, second = await until(lambda: rival.kommo(name)[:2] if len(rival.kommo(name)) > 1 else [])
    assert abs(first.msec_timestamp - clock.now_ms()) < HOUR_MS
    assert second.msec_timestamp - first.msec_timestamp < HOUR_MS
    claimed = [one.get("claimed_at") for one in (await story.shown(message))["timeline"]]
    assert claimed[0] == ahead


async def test_a_status_that_came_before_a_message_from_the_phone_is_applied(
    story: Story, rival: Rival
) -> None:
    name = chat()
    await rival.customer(name, f"{name}-1")
    read = {"type": "message.read", "conversation_id": name, "message_id": f"{name}-p"}
    found = [(await rival.post(read))[0]["duplicate"] for _ in range(2)]
    assert found == [False, True]
    written = text("message.sent", name, f"{name}-p", "From the phone") | {
        "direction": "out",
        "sender": {"id": "acme", "name": "Acme"},
        "receiver": {"id": f"u-{name}", "name": "Ann"},
    }
    (result,) = await rival.post(written)
    assert (await story.timeline(result["id"]))[:3] == ["message.read", "message.sent", "message.read"]
    assert (await story.shown(result["id"]))["status"] == "read"


async def test_the_same_request_again_is_a_repeat_whatever_came_between(story: Story, rival: Rival) -> None:
    name = chat()
    message = await rival.customer(name, f"{name}-1")
    at, found = clock.text(clock.now_ms()), []
    for words, request in (("e1", "one"), ("e2", "two"), ("e1", "one")):
        edit = text("message.edited", name, f"{name}-1", words) | {"at": at}
        (result,) = await rival.post(edit, request=f"{name}-{request}")
        found.append(result["duplicate"])
    assert found == [False, False, True]
    assert (await story.shown(message))["text"] == "e2"


async def test_ids_that_are_unique_only_within_a_chat_are_names_within_it(story: Story, rival: Rival) -> None:
    await story.api("PUT", "/v1/channels/rival", {"message_ids": "per conversation"})
    try:
        one, two = chat(), chat()
        first, second = [await rival.manager(name, message_id="9") for name in (one, two)]
        for name, status in ((two, "read"), (one, "delivered")):
            await rival.post({"type": f"message.{status}", "conversation_id": name, "message_id": "9"})
        await until(lambda: (story.statuses(first["id"]), story.statuses(second["id"])) == ([1], [2]))
        assert "conflict.noticed" not in await story.timeline(second["ours"])
        written = [await rival.customer(name, "10") for name in (one, two)]
        assert len(set(written)) == 2
        await rival.post(text("message.edited", two, "10", "Changed"))
        assert [(await story.shown(message))["text"] for message in written] == ["Hello", "Changed"]
        assert await rival.customer(one, "9") == first["ours"]  # an echo
    finally:
        await story.api("PUT", "/v1/channels/rival", {"message_ids": "per channel"})
