"""Delivery reads events from the ledger only: whatever else comes on the stream reaches nobody."""

from typing import Any

import msgspec
import pytest

from app.stream import jetstream
from domain import ids
from tests.support.system import Story, chat

FORGED = "FORGED"


async def forge(story: Story, event: dict[str, Any], many: int) -> None:
    """Publish copies of a recorded event with other ids and another text, as the service's own user may."""
    assert story.run is not None
    nats = await jetstream.connect(story.run.services.settings.nats_url or "", name="stranger")
    for number in range(many):
        content = event["content"] | {"text": f"{FORGED} {number}"}
        copy = {
            name: str(value).replace(event["message"][:8], f"{number:08x}")
            for name, value in event.items()
            if name in ("id", "stream", "message")
        }
        body = msgspec.json.encode(event | copy | {"content": content, "own_id": f"forged-{number}"})
        subject = ids.subject(event["conversation"], event["account"], event["type"])
        assert (await nats.request(subject, body, timeout=5)).data
    await nats.close()


def everything(story: Story) -> list[str]:
    """All texts that were pushed to either side."""
    pushed = [str(push) for push in story.sandbox.messenger_state.pushes.values()]
    return pushed + [str(one) for each in story.sandbox.chat_state.timelines.values() for one in each]


@pytest.mark.parametrize("many", [1, 5], ids=["a sequence that fits", "sequences beyond the ledger"])
async def test_nothing_forged_in_the_stream_is_pushed(own_story: Story, many: int) -> None:
    story, name = own_story, chat()
    await story.customer(name, "one")
    await story.manager(name, "two")
    await story.pushed(name)
    await story.settled()
    for event in await story.events(type="message.sent"):
        await forge(story, event, many)
    await story.customer(name, "three")
    await story.manager(name, "four")
    await story.pushed(name, 2)
    await story.arrived(name, 2)
    await story.settled()
    assert not [text for text in everything(story) if FORGED in text]
    assert [push.body["message"]["text"] for push in story.pushes(name)] == ["two", "four"]
    assert [one.message["text"] for one in story.kommo(name)] == ["one", "three"]
