"""A channel that is changed or disconnected loses nothing: what cannot be delivered waits, visibly."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from app.servers.servers import Servers
from tests.support.ids import ACCOUNT, MESSENGER_SECRET, SCOPE
from tests.support.system import Story, chat, story_on

CONNECTION = {"account_id": ACCOUNT, "title": "Acme"}


@pytest.fixture
async def story(servers: Servers) -> AsyncIterator[Story]:
    """A service of the test's own: what is done to its channel is done to all of it."""
    async with story_on(servers) as story:
        yield story


async def parked(story: Story) -> list[dict[str, Any]]:
    told = await story.api("GET", f"/v1/deliveries?state=parked&at_least={await story.head()}")
    return list(told["items"])


async def until_parked(story: Story, many: int) -> list[dict[str, Any]]:
    async with asyncio.timeout(15):
        while len(found := await parked(story)) < many:  # noqa: ASYNC110 - another process's state
            await asyncio.sleep(0.05)
    return found


async def test_a_disconnected_channel_keeps_what_is_open_and_a_connected_one_delivers_it(
    story: Story,
) -> None:
    name = chat()
    await story.fault("kommo.new_message", "503", times=None)
    words = [f"{n}" for n in range(5)]
    for word in words:
        await story.customer(name, word)
    await story.api("DELETE", f"/v1/channels/acme/connections/{ACCOUNT}")
    found = await until_parked(story, 5)
    assert {one["reason"] for one in found} == {"disconnected: the channel is not connected to the account"}
    await story.order("DELETE", "/faults")
    assert story.kommo(name) == []
    await story.api("POST", "/v1/channels/acme/connections", CONNECTION)
    assert [one.message["text"] for one in await story.arrived(name, 5)] == words
    await story.settled()
    assert await parked(story) == []


async def test_hooks_of_a_disconnected_channel_get_404_and_actions_409(story: Story) -> None:
    await story.api("DELETE", f"/v1/channels/acme/connections/{ACCOUNT}")
    url = f"{story.url}/kommo/{SCOPE.scope_id}"
    assert (await story.call("POST", url, {"account_id": ACCOUNT}))[0] == 404
    action = {"type": "message.deleted", "conversation_id": "conv-1", "message_id": "m-1"}
    assert (await story.tell(action))[0] == 409


async def test_another_address_of_the_messenger_is_used_at_once(story: Story, servers: Servers) -> None:
    name = chat()
    nowhere = {"messenger": {"kind": "webhook", "url": "http://127.0.0.1:9/", "secret": MESSENGER_SECRET}}
    await story.api("PUT", "/v1/channels/acme", nowhere)
    told = await story.manager(name)
    await story.until_recorded(told["ours"], "delivery.deferred")
    assert story.pushes(name) == []
    there = {"messenger": {"url": f"{story.sandbox.url}/messenger/hook"}}
    await story.api("PUT", "/v1/channels/acme", there)
    await story.pushed(name)


async def test_a_scope_that_kommo_forgot_is_connected_again_once(story: Story) -> None:
    names = [chat() for _ in range(8)]
    story.sandbox.chat_state.connections[SCOPE.scope_id].active = False
    for name in names:
        await story.customer(name)
    for name in names:
        await story.arrived(name)
    await story.settled()
    assert len(await story.events(type="channel.connected")) == 2
    assert await parked(story) == []
    assert await story.events(type="message.failed") == []


async def test_what_kommo_never_knows_is_parked_and_resumed_by_an_operator(story: Story) -> None:
    name = chat()
    await story.fault("kommo.new_message", "404", times=None)
    await story.customer(name)
    [found] = await until_parked(story, 1)
    assert "404" in found["reason"]
    await story.customer(name, "later")
    await until_parked(story, 2)
    assert len(await story.events(type="channel.connected")) == 2
    await story.order("DELETE", "/faults")
    assert (await story.api("POST", "/v1/deliveries/resume"))["resumed"] == 2
    assert [one.message["text"] for one in await story.arrived(name, 2)] == ["Hello", "later"]
    assert len(await story.events(type="delivery.resumed")) == 2


async def test_a_connect_that_fails_for_now_parks_nothing(story: Story) -> None:
    name = chat()
    story.sandbox.chat_state.connections[SCOPE.scope_id].active = False
    await story.fault("kommo.connect", "503", times=2)
    await story.customer(name)
    await story.arrived(name)
    assert await parked(story) == []
