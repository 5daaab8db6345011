"""A channel that is changed or disconnected loses nothing: what cannot be delivered waits, visibly."""

import asyncio
from typing import Any

import pytest
from msgspec import structs

from tests.support.ids import ACCOUNT, AS_ADMIN, CHANNEL, MESSENGER_SECRET, OTHER_ACCOUNT, SCOPE
from tests.support.system import Story, chat, until

CONNECTION = {"account_id": ACCOUNT, "title": "Acme"}


async def parked(story: Story) -> list[dict[str, Any]]:
    told = await story.api("GET", f"/v1/deliveries?state=parked&at_least={await story.head()}")
    return list(told["items"])


async def until_parked(story: Story, many: int) -> list[dict[str, Any]]:
    async with asyncio.timeout(15):
        while len(found := await parked(story)) < many:  # noqa: ASYNC110 - another process's state
            await asyncio.sleep(0.05)
    return found


async def test_a_disconnected_channel_keeps_what_is_open_and_a_connected_one_delivers_it(
    own_story: Story,
) -> None:
    name = chat()
    await own_story.fault("kommo.new_message", "503", times=None)
    words = [f"{n}" for n in range(5)]
    for word in words:
        await own_story.customer(name, word)
    await own_story.api("DELETE", f"/v1/channels/acme/connections/{ACCOUNT}")
    found = await until_parked(own_story, 5)
    assert {one["reason"] for one in found} == {"disconnected: the channel is not connected to the account"}
    await own_story.order("DELETE", "/faults")
    assert own_story.kommo(name) == []
    await own_story.api("POST", "/v1/channels/acme/connections", CONNECTION)
    assert [one.message["text"] for one in await own_story.arrived(name, 5)] == words
    await own_story.settled()
    assert await parked(own_story) == []


async def test_hooks_of_a_disconnected_channel_get_404(own_story: Story) -> None:
    await own_story.api("DELETE", f"/v1/channels/acme/connections/{ACCOUNT}")
    url = f"{own_story.url}/kommo/{SCOPE.scope_id}"
    assert (await own_story.call("POST", url, {"account_id": ACCOUNT}))[0] == 404


async def test_another_address_of_the_messenger_is_used_at_once(own_story: Story) -> None:
    name = chat()
    nowhere = {"messenger": {"kind": "webhook", "url": "http://127.0.0.1:9/", "secret": MESSENGER_SECRET}}
    await own_story.api("PUT", "/v1/channels/acme", nowhere)
    told = await own_story.manager(name)
    await own_story.until_recorded(told["ours"], "delivery.deferred")
    assert own_story.pushes(name) == []
    there = {"messenger": {"url": f"{own_story.sandbox.url}/messenger/hook"}}
    await own_story.api("PUT", "/v1/channels/acme", there)
    await own_story.pushed(name)


async def test_a_scope_that_kommo_forgot_is_connected_again_once(own_story: Story) -> None:
    names = [chat() for _ in range(8)]
    own_story.sandbox.chat_state.connections[SCOPE.scope_id].active = False
    for name in names:
        await own_story.customer(name)
    for name in names:
        await own_story.arrived(name)
    await own_story.settled()
    assert len(await own_story.events(type="channel.connected")) == 2
    assert await parked(own_story) == []
    assert await own_story.events(type="message.failed") == []


async def test_what_kommo_never_knows_is_parked_and_resumed_by_an_operator(own_story: Story) -> None:
    name = chat()
    await own_story.fault("kommo.new_message", "404", times=None)
    await own_story.customer(name)
    [found] = await until_parked(own_story, 1)
    assert "404" in found["reason"]
    await own_story.customer(name, "later")
    await until_parked(own_story, 2)
    assert len(await own_story.events(type="channel.connected")) == 2
    await own_story.order("DELETE", "/faults")
    assert (await own_story.api("POST", "/v1/deliveries/resume"))["resumed"] == 2
    assert [one.message["text"] for one in await own_story.arrived(name, 2)] == ["Hello", "later"]
    assert len(await own_story.events(type="delivery.resumed")) == 2


async def test_a_connect_that_fails_for_now_parks_nothing(own_story: Story) -> None:
    name = chat()
    own_story.sandbox.chat_state.connections[SCOPE.scope_id].active = False
    await own_story.fault("kommo.connect", "503", times=2)
    await own_story.customer(name)
    await own_story.arrived(name)
    assert await parked(own_story) == []


async def connections(story: Story) -> list[dict[str, Any]]:
    [channel] = (await story.api("GET", "/v1/channels"))["items"]
    return list(channel["connections"])


@pytest.mark.story(scope_accounts=((ACCOUNT, OTHER_ACCOUNT),))
async def test_the_scope_id_that_kommo_names_is_in_force(own_story: Story) -> None:
    assert [one["scope_id"] for one in await connections(own_story)] == [f"{CHANNEL}_{OTHER_ACCOUNT}"]
    name = chat()
    await own_story.customer(name)
    await until(lambda: own_story.sandbox.chat_state.chat(f"{CHANNEL}_{OTHER_ACCOUNT}", name))
    await own_story.manager(name)
    await own_story.pushed(name)
    url = f"{own_story.url}/kommo/{SCOPE.scope_id}"
    assert (await own_story.call("POST", url, {"account_id": ACCOUNT}))[0] == 404


async def test_another_scope_id_of_a_later_answer_replaces_the_first(own_story: Story) -> None:
    rules = own_story.sandbox.kommo
    rules.config = structs.replace(rules.config, scope_accounts=((ACCOUNT, OTHER_ACCOUNT),))
    await own_story.api("POST", "/v1/channels/acme/connections", CONNECTION)
    assert [one["scope_id"] for one in await connections(own_story)] == [f"{CHANNEL}_{OTHER_ACCOUNT}"]
    name = chat()
    await own_story.customer(name)
    await until(lambda: own_story.sandbox.chat_state.chat(f"{CHANNEL}_{OTHER_ACCOUNT}", name))


async def test_a_scope_id_of_another_connection_is_refused(own_story: Story) -> None:
    rules = own_story.sandbox.kommo
    rules.config = structs.replace(rules.config, scope_accounts=((OTHER_ACCOUNT, ACCOUNT),), accounts=())
    order = CONNECTION | {"account_id": OTHER_ACCOUNT}
    url = f"{own_story.url}/v1/channels/acme/connections"
    status, problem = await own_story.call("POST", url, order, headers=AS_ADMIN)
    assert (status, "scope of channel acme" in problem["detail"]) == (502, True)
    assert [one["account_id"] for one in await connections(own_story)] == [ACCOUNT]


async def test_an_operator_who_disconnects_while_kommo_is_slow_is_not_overruled(own_story: Story) -> None:
    """Kommo forgets the connection at once and answers late; delivery meets 404 in between."""
    name = chat()
    await own_story.fault("kommo.disconnect", "slow", seconds=3)
    ending = asyncio.create_task(own_story.api("DELETE", f"/v1/channels/acme/connections/{ACCOUNT}"))
    await until(lambda: not connected(own_story))
    await own_story.customer(name)
    await ending
    await stays_disconnected(own_story)


async def test_a_connection_made_again_while_an_operator_ends_it_is_ended(own_story: Story) -> None:
    """Kommo has dropped the connection, delivery makes it again, and Kommo answers that late."""
    name = chat()
    own_story.sandbox.chat_state.connections.clear()
    await own_story.fault("kommo.connect", "slow", seconds=3)
    await own_story.customer(name)
    await until(lambda: connected(own_story))
    await own_story.api("DELETE", f"/v1/channels/acme/connections/{ACCOUNT}")
    await stays_disconnected(own_story)


def connected(story: Story) -> bool:
    found = story.sandbox.chat_state.connections.get(SCOPE.scope_id)
    return found is not None and found.active


async def stays_disconnected(story: Story) -> None:
    """Wait until delivery has given up, and see that nobody has connected the channel."""
    assert await until_parked(story, 1)
    assert not connected(story)
    [channel] = (await story.api("GET", "/v1/channels"))["items"]
    assert channel["connections"] == []
    kinds = [one["type"] for one in await story.events() if one["type"].startswith("channel.")]
    assert kinds[-1] == "channel.disconnected"
