"""Kommo has every message once, whatever it answers; what it refuses, cannot find or forbids is seen to."""

import asyncio
import json
from typing import Any

import pytest
from msgspec.structs import replace
from prometheus_client import REGISTRY

from app.delivery.job import Job
from app.delivery.lane import Lane
from app.delivery.ledger_tail import PAGE
from app.http_client import Answer, Client
from app.kommo.chats.client import Kommo, outcome
from app.kommo.chats.signature import Credentials
from app.outcome import Done, Forbidden, Gone, Refused, Retry
from app.servers.servers import Servers
from domain import events as e
from tests.support.deliveries import PROBE_SECONDS, Lease, delivering, line_of
from tests.support.ids import CHANNEL, CHANNEL_SECRET, SCOPE
from tests.support.system import Story, chat, story_on, until

pytestmark = pytest.mark.story(duplicates="refuse")

COMMON = (
    *("id", "stream", "version", "channel", "account", "conversation", "message"),
    *("at", "recorded_at", "by", "schema", "content"),
)


@pytest.mark.parametrize("status", ["408", "425", "429", "500", "503", "html", "drop"])
async def test_what_may_pass_is_tried_again(story: Story, status: str) -> None:
    name = chat()
    await story.fault("kommo.new_message", status, times=2, conversation_id=name)
    ours = await story.customer(name)
    await story.customer(name, "next")
    assert [one.message["text"] for one in await story.arrived(name, 2)] == ["Hello", "next"]
    await story.until_recorded(ours, "message.accepted")
    assert (await story.timeline(ours)).count("delivery.deferred") == 1


@pytest.mark.parametrize("status", ["400", "413", "422"])
async def test_a_refusal_is_final_and_the_conversation_goes_on(story: Story, status: str) -> None:
    name = chat()
    await story.fault("kommo.new_message", status, conversation_id=name)
    ours = await story.customer(name)
    await story.customer(name, "next")
    [message] = await story.arrived(name)
    [failed] = await story.until_recorded(ours, "message.failed")
    assert (message.message["text"], failed["code"]) == ("next", 905)


async def test_a_message_whose_answer_was_lost_is_found_in_the_history(story: Story) -> None:
    name = chat()
    await story.customer(name)
    await story.arrived(name)
    await story.fault("kommo.new_message", "drop_after", conversation_id=name)
    ours = await story.customer(name, "lost?")
    [accepted] = await story.until_recorded(ours, "message.accepted")
    message = story.kommo(name)[1]
    assert (accepted["by"], (await story.shown(ours))["remote"]["kommo"]) == ("recovery", message.id)
    assert (len(story.kommo(name)), message.repeats) == (2, 1)


@pytest.mark.parametrize("status", [502, 504])
async def test_a_message_that_a_gateway_passed_on_is_found_in_the_history(story: Story, status: int) -> None:
    name = chat()
    await story.fault("kommo.new_message", "html_after", status=status, conversation_id=name)
    ours = await story.customer(name)
    [accepted] = await story.until_recorded(ours, "message.accepted")
    [message] = story.kommo(name)
    assert (accepted["by"], message.repeats) == ("recovery", 1)
    assert "message.failed" not in await story.timeline(ours)


async def test_the_history_is_asked_until_it_answers(story: Story) -> None:
    name = chat()
    await story.fault("kommo.new_message", "drop_after", conversation_id=name)
    for action in ("500", "html", "429"):
        await story.fault("kommo.history", action)
    ours = await story.customer(name)
    [accepted] = await story.until_recorded(ours, "message.accepted")
    assert accepted["by"] == "recovery"
    assert "message.failed" not in await story.timeline(ours)


async def test_what_the_history_does_not_show_is_refused(story: Story) -> None:
    name = chat()
    await story.customer(name)
    await story.arrived(name)
    await story.fault("kommo.new_message", "500", conversation_id=name)
    await story.fault("kommo.new_message", "400", conversation_id=name)
    ours = await story.customer(name)
    await story.until_recorded(ours, "message.failed")
    assert len(story.kommo(name)) == 1


async def test_it_is_found_however_much_was_written_since(story: Story) -> None:
    name, at, count = chat(), 1_700_000_000_000, 330
    await story.customer(name)
    [first] = await story.arrived(name)
    sends = await story.events(type="message.sent")
    [raw] = [one for one in sends if one["message"] == first.client_id]
    sent = e.decode(json.dumps(raw).encode())
    assert isinstance(sent, e.MessageSent)
    # The last sixty, which are more than a page, have one time.
    times = [at + min(number, count - 60) * 10 for number in range(count)]
    events = [replace(sent, message=f"{name}-{number}", msec=msec) for number, msec in enumerate(times)]
    who = Credentials(CHANNEL, CHANNEL_SECRET)
    client = Client()
    assert story.run
    kommo = Kommo(client, story.sandbox.url, story.run.services.budget)
    try:
        for event in events:
            assert isinstance(await kommo.push(who, SCOPE.scope_id, event), Done)
        names = {one.client_id: one.id for one in story.kommo(name)}
        for number in (0, 1, 49, 50, 99, 100, 101, 200, 269, 270, 271, 300, 328, 329):
            found = await kommo.find(who, SCOPE.scope_id, events[number], first.chat_id)
            assert found == names[f"{name}-{number}"], number
        for msec in (at - 5, at + 1005, times[-1], times[-1] + 1):
            stranger = replace(sent, message="never sent", msec=msec)
            assert await kommo.find(who, SCOPE.scope_id, stranger, first.chat_id) is None
    finally:
        await client.close()


async def test_a_repeat_that_is_accepted_keeps_the_first_id(servers: Servers) -> None:
    async with story_on(servers) as story:
        name = chat()
        await story.fault("kommo.new_message", "drop_after", conversation_id=name)
        ours = await story.customer(name)
        [accepted] = await story.until_recorded(ours, "message.accepted")
        [message] = story.kommo(name)
        assert (accepted["by"], message.repeats) == ("kommo", 1)


@pytest.mark.parametrize("own", ["a:b", "a b", "a%2Fb", "ä?x=1#y", "~(!)*'"])
async def test_a_status_reaches_a_message_of_whatever_name(story: Story, own: str) -> None:
    name = chat()
    told = await story.manager(name, message={"id": f"{name}{own}", "type": "text", "text": "Hi"})
    await story.pushed(name)
    await story.tell({"type": "message.read", "conversation_id": name, "id": told["ours"]})
    await until(lambda: story.statuses(told["id"]) == [2])


async def test_a_status_that_kommo_refuses_is_parked_and_the_next_is_told(story: Story) -> None:
    name = chat()
    told = await story.manager(name)
    await story.pushed(name)
    await story.fault("kommo.delivery_status", "400")
    for kind in ("delivered", "read"):
        await story.tell({"type": f"message.{kind}", "conversation_id": name, "id": told["ours"]})
    await until(lambda: story.statuses(told["id"]) == [2])
    assert "delivery.parked" in await story.timeline(told["ours"])


async def test_who_is_forbidden_waits_and_is_probed_by_one(servers: Servers) -> None:
    names = [chat() for _ in range(10)]
    async with story_on(servers, roles="web,relay,project") as story:
        await story.fault("kommo.new_message", "403", times=None)
        for name in names:
            await story.customer(name)
        async with delivering(story):
            [fault] = story.sandbox.faults.faults
            await until(lambda: fault.hits)
            await asyncio.sleep(PROBE_SECONDS / 2)
            before = fault.hits
            await asyncio.sleep(PROBE_SECONDS * 3)
            assert 1 <= fault.hits - before <= 4
            assert REGISTRY.get_sample_value("chatledger_paused_scopes") == 1
            await story.order("DELETE", "/faults")
            for name in names:
                await story.arrived(name)
            await story.settled()
            assert REGISTRY.get_sample_value("chatledger_paused_scopes") == 0
        assert await story.events(type="message.failed") == []


async def test_an_error_of_our_own_parks_one_push_and_no_other(servers: Servers) -> None:
    name = chat()
    async with story_on(servers, roles="web,relay,project") as story:
        assert story.run
        await story.customer(name)
        [sent] = [e.decode(json.dumps(one).encode()) for one in await story.events(type="message.sent")]
        assert isinstance(sent, e.MessageSent)
        broken = e.MessageEdited(**{field: getattr(sent, field) for field in COMMON}, push="messenger")
        async with line_of(story.run.services) as line:
            lease = Lease()
            lane = Lane(line.settle, lease)
            lane.put(Job(1, broken))  # Nobody tells the messenger of edits.
            lane.put(Job(2, sent))
            await story.arrived(name)
            await until(lambda: lease.done.keys() == {1, 2})
            await lane.stop()
        [parked] = await story.events(type="delivery.parked")
    assert (lease.failures, parked["cause"]) == ([], sent.id)


async def test_a_conversation_keeps_its_order_behind_thousands_of_others(servers: Servers) -> None:
    """More than a page is open at the start, and the oldest of one conversation is beyond it."""
    last = chat()
    others = [f"{last}-{n}" for n in range(100)]
    async with story_on(servers, roles="web,relay,project") as story:
        for begin in range(0, PAGE + 1, 500):
            await _write(story, [others[n % len(others)] for n in range(begin, begin + 500)])
        await _write(story, [last])
        async with delivering(story):
            await until(lambda: any(story.kommo(name) for name in others))
            await _write(story, [last])
            found = await story.arrived(last, 2)
    assert found[0].msec_timestamp < found[1].msec_timestamp


async def _write(story: Story, names: list[str]) -> None:
    actions = [
        {
            "type": "message.sent",
            "conversation_id": name,
            "message_id": f"{next(_numbers)}",
            "at": "2026-01-02T03:04:05.000Z",
            "sender": {"id": f"u-{name}", "name": "Ann"},
            "message": {"type": "text", "text": "Hello"},
        }
        for name in names
    ]
    told = await story.order("POST", "/customer/actions", actions)
    assert told["status"] == 200, told


_numbers = iter(range(10**9))


JSON, HTML = "application/json", "text/html; charset=UTF-8"
ANSWERS: list[tuple[int, str, bytes, type[Any]]] = [
    (200, JSON, b'{"new_message":{"msgid":"x"}}', Done),
    (200, HTML, b"", Done),
    (200, HTML, b'{"new_message":{"msgid":"x"}}', Done),
    (200, HTML, b" <!doctype html><h1>Are you human?</h1>", Retry),
    (200, JSON, b"not json", Done),
    (301, "", b"", Retry),
    (403, HTML, b"<html>blocked</html>", Retry),
    (401, JSON, b"{}", Forbidden),
    (402, JSON, b"{}", Forbidden),
    (403, JSON, b"{}", Forbidden),
    (423, JSON, b"{}", Forbidden),
    (404, JSON, b"{}", Gone),
    (400, JSON, b"{}", Refused),
    (451, "", b"", Refused),
    (599, "", b"", Retry),
]


@pytest.mark.parametrize(("status", "kind", "body", "expected"), ANSWERS)
def test_an_answer_means_what_its_status_says_unless_it_is_a_page(
    status: int, kind: str, body: bytes, expected: type[Any]
) -> None:
    assert type(outcome(Answer(status, kind, 0.0, body))) is expected


@pytest.mark.parametrize(("status", "unknown"), [(200, False), (403, False), (502, True), (504, True)])
def test_only_a_gateways_page_leaves_open_whether_the_call_was_taken(status: int, unknown: bool) -> None:
    told = outcome(Answer(status, HTML, 0.0, b"<html>Bad Gateway</html>"))
    assert isinstance(told, Retry)
    assert told.unknown is unknown


def test_the_names_of_a_scope_are_those_of_kommo() -> None:
    assert SCOPE.scope_id == "344a5002-f8ca-454d-af3d-396180102ac7_52e591f7-c98f-4255-8495-827210138c81"
