"""What Kommo and messengers write stands in fields of its own: in no reason, no log line and no metric."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest

from app.printable import PrintableFormatter, printable
from tests.support.ids import ACCOUNT, AS_ADMIN
from tests.support.system import Story, chat

WORDS = "words-of-a-stranger"
FLOOD = f"\x1b[2J{WORDS}\r\n2026-11-27 08:00:00 ERROR chatledger: forged \x9b31m\u202e"
NEW_ACCOUNT = ACCOUNT[:-1] + "7"


def refusal(where: str, status: int, **more: Any) -> dict[str, Any]:
    return {
        "where": where,
        "action": str(status),
        "times": 1,
        "body": {"detail": FLOOD, "text": FLOOD},
    } | more


async def recorded(story: Story, *, cause: str = "", kind: str = "") -> dict[str, Any]:
    """The first event of a kind about a stream or a conversation, once it is there."""
    async with asyncio.timeout(15):
        return await anext(story_events(story, cause, kind))


async def story_events(story: Story, cause: str, kind: str) -> AsyncIterator[dict[str, Any]]:
    while True:
        for item in (await story.api("GET", f"/v1/events?type={kind}&limit=1000"))["items"]:
            event: dict[str, Any] = item["event"]
            if cause in (event["stream"], event.get("conversation")):
                yield event
        await asyncio.sleep(0.05)


async def test_texts_of_strangers_stay_where_they_belong(
    own_story: Story, caplog: pytest.LogCaptureFixture
) -> None:
    story = own_story
    caplog.set_level(logging.DEBUG)

    # Kommo refuses a customer's message, an edit, and to connect; its firewall is not asked here.
    name = chat()
    await story.order("POST", "/faults", refusal("kommo.new_message", 400))
    failed = await recorded(story, cause=await story.customer(name), kind="message.failed")
    assert WORDS in failed["text"]
    message = await story.customer(name, "again")
    await story.arrived(name)
    await story.order("POST", "/faults", refusal("kommo.edit_message", 400))
    own = (await story.api("GET", f"/v1/messages/{message}"))["remote"]["messenger"]
    edit = {"type": "message.edited", "conversation_id": name, "message_id": own}
    assert (await story.tell(edit | {"message": {"type": "text", "text": "new"}}))[0] == 200
    parked = await recorded(story, cause=message, kind="delivery.parked")
    assert WORDS in parked["answer"]
    await story.order("POST", "/faults", refusal("kommo.connect", 400))
    order = {"account_id": NEW_ACCOUNT, "title": "New"}
    url = f"{story.url}/v1/channels/acme/connections"
    status, problem = await story.call("POST", url, order, headers=AS_ADMIN)
    assert status == 502
    assert WORDS in problem["detail"]
    assert printable(problem["detail"]) == problem["detail"]
    [shown] = (await story.api("GET", "/v1/status"))["connections"]
    assert (WORDS in shown["answer"], WORDS in shown["problem"]) == (True, False)

    # A messenger refuses a manager's message, and reports a failure.
    await story.order("POST", "/faults", refusal("messenger", 422))
    ours = (await story.manager(name))["ours"]
    await recorded(story, cause=ours, kind="message.failed")
    second = await story.manager(name, "second")
    report = {"type": "message.failed", "conversation_id": name, "id": second["ours"], "code": 904}
    assert (await story.tell(report | {"text": FLOOD.replace("\x1b", " ")}))[0] == 200
    assert WORDS in (await recorded(story, cause=second["ours"], kind="message.failed"))["text"]

    # Kommo refuses everything of the account: it rests.
    await story.order("POST", "/faults", refusal("kommo.new_message", 402))
    deferred = await recorded(story, cause=await story.customer(name, "rests"), kind="delivery.deferred")
    assert WORDS in deferred["answer"]

    await nothing_elsewhere(story, caplog)


async def nothing_elsewhere(story: Story, caplog: pytest.LogCaptureFixture) -> None:
    """No reason, no metric and no log line has a word of it, and no line of the log a control character."""
    for item in (await story.api("GET", "/v1/events?limit=1000"))["items"]:
        event = item["event"]
        for field in ("reason", "superseded", "by", "title"):
            assert WORDS not in str(event.get(field)), event
    for delivery in (await story.api("GET", "/v1/deliveries?limit=1000"))["items"]:
        assert WORDS not in json.dumps(delivery | {"answer": ""}), delivery
    async with story.client.get(f"{story.url}/metrics", headers=AS_ADMIN) as answer:
        assert WORDS not in await answer.text()
    lines = [PrintableFormatter().format(record) for record in caplog.records]
    assert [line for line in lines if WORDS in line or "forged" in line] == []
    assert lines
