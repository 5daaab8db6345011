"""What customers write while their account is not connected is kept, shown, and delivered in order."""

import asyncio
import json
from typing import Any

import aiohttp
import pytest

from app import clock
from app.messengers.webhook import signed
from tests.support.ids import ACCOUNT, CHANNEL, MESSENGER_SECRET, OTHER_ACCOUNT
from tests.support.system import Story, chat, until

REASON = "waiting for a connection: the channel is not connected to the account"
OF_ACCOUNT = f"/v1/channels/acme/connections/{ACCOUNT}"


async def write(story: Story, name: str, text: str, **more: Any) -> dict[str, Any]:
    """The customer writes, through the messenger; the answer's only result."""
    action = {
        "type": "message.sent",
        "conversation_id": name,
        "message_id": f"{name}-{text}",
        "sender": {"id": f"u-{name}", "name": "Ann"},
        "message": {"type": "text", "text": text},
    }
    action["at"] = clock.text(clock.now_ms())
    body = json.dumps(action | more).encode()
    headers = signed(MESSENGER_SECRET, f"{name}-{text}", body)
    async with story.client.post(f"{story.url}/messengers/acme", data=body, headers=headers) as answer:
        told = await answer.json()
        assert answer.status == 200, told
    return dict(told["results"][0])


async def waiting(story: Story, many: int) -> list[dict[str, Any]]:
    """The deliveries that wait for a connection, once there are so many."""
    async with asyncio.timeout(15):
        while True:
            told = await story.api("GET", f"/v1/deliveries?state=parked&at_least={await story.head()}")
            if len(told["items"]) >= many:
                return list(told["items"])
            await asyncio.sleep(0.05)


def arrived(story: Story, account: str, name: str) -> list[str]:
    """The texts that an account's Kommo has of a customer, in the order of their arrival."""
    chats = story.sandbox.chat_state
    found = chats.chat(f"{CHANNEL}_{account}", name)
    return [one.message["text"] for one in chats.timelines[found.id]] if found else []


async def page(story: Story, conversation: str) -> str:
    """The chat's page in the console."""
    assert story.run is not None
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as browser:
        link = story.run.services.login_links.make(story.url)
        assert (await browser.get(link)).status == 200
        async with browser.get(f"{story.url}/conversations/{conversation}") as answer:
            assert answer.status == 200
            return await answer.text()


@pytest.mark.parametrize("ended", [False, True], ids=["never connected", "disconnected"])
async def test_a_message_before_the_connection_is_kept_shown_and_delivered_in_order(
    own_story: Story, *, ended: bool
) -> None:
    account = ACCOUNT if ended else OTHER_ACCOUNT
    if ended:
        await own_story.api("DELETE", OF_ACCOUNT)
    names, words = (chat(), chat()), [f"{n}" for n in range(6)]
    for word in words:
        for name in names:
            kept = await write(own_story, name, word, account_id=account)
            assert kept["position"] > 0
    again = await write(own_story, names[0], "0", account_id=account)
    assert again["duplicate"]
    found = await waiting(own_story, 12)
    assert {(one["reason"], one["account_id"]) for one in found} == {(REASON, account)}
    (shown,) = (await own_story.api("GET", "/v1/status"))["unconnected"]
    assert (shown["channel"], shown["account_id"], shown["deliveries"]) == ("acme", account, 12)
    assert "Waiting for a connection" in await page(own_story, found[0]["conversation"])
    assert arrived(own_story, account, names[0]) == []
    order = {"account_id": account, "title": "Acme"}
    connecting = asyncio.create_task(own_story.api("POST", "/v1/channels/acme/connections", order))
    while not connecting.done() or len(words) < 12:  # What is later never overtakes what waited.
        words.append(f"{len(words)}")
        for name in names:
            await write(own_story, name, words[-1], account_id=account)
    await connecting
    for name in names:
        await until(lambda: len(arrived(own_story, account, name)) >= len(words))  # noqa: B023
        assert arrived(own_story, account, name) == words
    await own_story.settled()
    assert (await own_story.api("GET", "/v1/status"))["unconnected"] == []
