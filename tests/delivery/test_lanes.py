"""A push waits for what Kommo still has to learn, and for nothing else; each is settled here by hand."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from app.delivery.decide import LATER_SECONDS
from app.delivery.job import Job, Progress, Pushed
from app.delivery.prepare import NOT_THERE
from app.delivery.settle import Settle
from app.http_client import Answer
from domain import events as e
from domain import ids
from tests.support.deliveries import Line, line_of
from tests.support.ids import MARIA, SCOPE
from tests.support.import_files import line, report
from tests.support.system import Story, chat

pytestmark = pytest.mark.story(echo=True, roles="web,relay,project")

SOON_SECONDS, PAUSE_SECONDS = 5.0, 6.0


@asynccontextmanager
async def settling(story: Story) -> AsyncIterator[Line]:
    """The line of the story's deliveries in the hands of the test."""
    assert story.run
    async with line_of(story.run.services) as line:
        yield line


async def jobs(story: Story, name: str) -> list[Job]:
    """What is recorded of a conversation and is to be pushed, in its order; none tried yet."""
    conversation = ids.conversation_id(SCOPE, "messenger", name)
    path = f"/v1/events?limit=1000&conversation={conversation}&at_least={await story.head()}"
    told = await story.api("GET", path)
    found = [(one["position"], e.decode(json.dumps(one["event"]).encode())) for one in told["items"]]
    return [Job(position, event) for position, event in found if isinstance(event, Pushed) and event.push]


async def operated(story: Story, settle: Settle, **more: Any) -> tuple[str, Job, Job]:
    """An operator's message in a chat that Kommo knows: the chat's name, the send and its copy."""
    name = chat()
    await story.customer(name)
    [hers] = await jobs(story, name)
    await settle.settle(hers)
    conversation = ids.conversation_id(SCOPE, "messenger", name)
    await story.operator(conversation, name, sender={"user_id": MARIA}, **more)
    _, sent, copy = await jobs(story, name)
    assert isinstance(copy.event, e.MessageMirrored)
    return name, sent, copy


async def hooked(story: Story, name: str) -> Job:
    """What Kommo's hook of a copy is recorded as, before we know Kommo's name of it."""
    async with asyncio.timeout(SOON_SECONDS):
        while not (found := (await jobs(story, name))[3:]):  # noqa: ASYNC110 - another task records it
            await asyncio.sleep(0.02)
    return found[0]


async def test_an_echo_that_is_looked_at_after_its_copy_is_settled_is_not_sent(story: Story) -> None:
    async with settling(story) as (settle, _, _):
        name, _, copy = await operated(story, settle)
        await story.fault("kommo.new_message", "slow", seconds=1, conversation_id=name)
        copying = asyncio.create_task(settle.settle(copy))
        echo = await hooked(story, name)
        assert echo.position < await copying
        await settle.settle(echo)
    assert story.pushes(name) == []


async def test_only_what_kommo_wrote_waits_for_a_copy(story: Story) -> None:
    async with settling(story) as (settle, _, _):
        name, sent, copy = await operated(story, settle)
        await story.fault("kommo.new_message", "slow", seconds=SOON_SECONDS, conversation_id=name)
        copying = asyncio.create_task(settle.settle(copy))
        await hooked(story, name)
        await settle.settle(sent)
        assert (len(story.pushes(name)), copying.done()) == (1, False)
        await copying


@pytest.mark.parametrize("held_by", ["gate", "budget"])
async def test_a_copy_that_is_not_on_its_way_is_not_waited_for(story: Story, held_by: str) -> None:
    assert story.run
    async with settling(story) as (settle, destinations, _):
        name, _, copy = await operated(story, settle)
        if held_by == "gate":
            destinations.gate(copy.event).pause(PAUSE_SECONDS)
        else:
            asks = Answer(503, "application/json", PAUSE_SECONDS, b"")
            await story.run.services.budget.observe(SCOPE.account, "chats", asks)
        copying = asyncio.create_task(settle.settle(copy))
        await story.manager(name)
        await asyncio.wait_for(settle.settle(await hooked(story, name)), SOON_SECONDS)
        assert (len(story.pushes(name)), copying.done()) == (1, False)
        await copying


async def test_an_import_is_not_held_up_for_ever(story: Story) -> None:
    name = chat()
    await report(story, [line(name, 0), line(name, 1)])
    await story.fault("kommo.new_message", "503", times=None, conversation_id=name)
    async with settling(story) as (settle, _, _):
        job, _ = await jobs(story, name)
        since = asyncio.get_running_loop().time() - LATER_SECONDS - 1
        job.progress = Progress(since=since)
        await asyncio.wait_for(settle.settle(job), SOON_SECONDS)
    [parked] = await story.until_recorded(job.event.stream, "delivery.parked")
    assert parked["reason"] == "given up after an hour: HTTP 503 from Kommo"


async def test_an_edit_of_what_is_parked_is_parked_with_it(story: Story) -> None:
    name = chat()
    ours = await story.customer(name, message_id=name)
    edit = {"type": "message.edited", "conversation_id": name, "message_id": name}
    await story.tell(edit | {"message": {"type": "text", "text": "Edited"}})
    async with settling(story) as (settle, _, _):
        sent, edited = await jobs(story, name)
        sent.broken = True
        await settle.settle(sent)
        await settle.settle(edited)
    parked = await story.until_recorded(ours, "delivery.parked", 2)
    assert parked[1]["reason"] == NOT_THERE
    assert len(await story.events(type="channel.connected")) == 1
