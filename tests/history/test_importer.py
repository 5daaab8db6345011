"""History comes in once, in its order, and quietly; what is wrong with a line is told by its number."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import datetime
from itertools import pairwise

import pytest

from app import clock
from app.delivery.lane import LANE_MAX
from app.delivery.prepare import NOT_YET
from app.history.importer import PROBLEMS_MAX
from app.history.lines import LINE_BYTES_MAX
from app.servers.servers import Servers
from domain import ids
from ops.sandbox.state.chats import Message as KommoMessage
from tests.support.ids import BOT, CHANNEL, MARIA, SCOPE
from tests.support.import_files import (
    BEGIN_MS,
    Line,
    feed,
    imported,
    line,
    mixed,
    ndjson,
    outgoing,
    report,
    texts,
)
from tests.support.system import Story, chat, story_on, until

COUNTS = ("lines", "imported", "duplicates", "conflicts", "skipped")


def counts(told: dict[str, object]) -> list[object]:
    return [told[name] for name in COUNTS]


async def whole_feed(story: Story, name: str, many: int) -> list[KommoMessage]:
    """A chat as Kommo shows it, once it has so many messages."""
    return await until(lambda: here if len(here := feed(story, name)) == many else [])


# Into the ledger, and to Kommo.


async def test_history_is_in_kommo_in_its_order_and_with_its_own_times(story: Story) -> None:
    names = [chat(), chat(), chat()]
    told = await report(story, mixed(names, 40))
    assert told["state"] == "done"
    assert counts(told) == [120, 120, 0, 0, 0]
    for name in names:
        found = await whole_feed(story, name, 40)
        assert texts(found) == [f"{name} {number}" for number in range(40)]
        assert [one.msec_timestamp for one in found] == [BEGIN_MS + n * 1000 for n in range(40)]
        arrived = sorted(found, key=lambda one: one.arrived_ns)
        assert texts(arrived) == texts(found)


async def test_only_the_newest_of_a_chat_makes_a_sound(story: Story) -> None:
    name, quiet, turned = chat(), chat(), chat()
    lines = [line(one, number) for number in range(3) for one in (name, quiet)]
    lines += [line(quiet, 3, silent=True), line(turned, 9), line(turned, 2)]
    told = await report(story, lines)
    assert told["backwards"] == 1
    await until(lambda: len(feed(story, name)) + len(feed(story, quiet)) + len(feed(story, turned)) == 9)
    assert [one.silent for one in feed(story, name)] == [True, True, False]
    assert all(one.silent for one in feed(story, quiet))
    assert [(one.message["text"], one.silent) for one in feed(story, turned)] == [
        (f"{turned} 2", True),
        (f"{turned} 9", False),
    ]


async def test_what_the_business_wrote_is_shown_as_its_managers_or_its_bots(story: Story) -> None:
    name = chat()
    maria = {"id": "m", "name": "Maria", "user_id": MARIA}
    await report(story, [line(name, 0), outgoing(name, 1, sender=maria), outgoing(name, 2)])
    found = await until(lambda: here if len(here := feed(story, name)) == 3 else [])
    assert [one.direction for one in found] == ["in", "out", "out"]
    assert [one.sender for one in found[1:]] == [MARIA, BOT]
    assert {one.receiver for one in found[1:]} == {found[0].sender}
    assert story.pushes(name) == []


async def test_equal_times_keep_the_order_of_the_file(story: Story) -> None:
    name, at = chat(), clock.text(BEGIN_MS)
    await report(story, [line(name, number, at=at) for number in range(20)])
    found = await until(lambda: here if len(here := feed(story, name)) == 20 else [])
    assert texts(found) == [f"{name} {number}" for number in range(20)]
    assert [one.msec_timestamp for one in found] == [BEGIN_MS + n for n in range(20)]


async def test_an_import_does_not_move_what_is_live(story: Story) -> None:
    name, soon = chat(), clock.text(clock.now_ms() + 3_600_000)
    live = await story.customer(name, "live")
    await report(story, [line(name, 0), line(name, 1), line(name, 2, at=soon)])
    later = await story.customer(name, "later")
    found = await until(lambda: here if len(here := feed(story, name)) == 5 else [])
    assert texts(found) == [f"{name} 0", f"{name} 1", "live", "later", f"{name} 2"]
    sent = {one["message"]: one for one in await story.events(type="message.sent", conversation=_id(name))}
    assert sent[later]["msec"] == clock.milliseconds(datetime.fromisoformat(sent[later]["at"]))
    assert sent[live]["msec"] < sent[later]["msec"]


async def test_the_newest_makes_no_sound_where_something_newer_is_live(story: Story) -> None:
    name = chat()
    await story.customer(name, "live")
    await report(story, [line(name, 0), line(name, 1)])
    found = await until(lambda: here if len(here := feed(story, name)) == 3 else [])
    assert [one.silent for one in found] == [True, True, False]


async def test_the_ledger_says_who_imported(story: Story) -> None:
    name = chat()
    await report(story, [line(name, 0)])
    [sent] = await story.events(type="message.sent", conversation=_id(name))
    assert (sent["by"], sent["imported"], sent["at"]) == ("import", True, clock.text(BEGIN_MS))


async def test_the_report_says_where_in_the_ledger_it_is(story: Story) -> None:
    name, lines = chat(), []
    head = await story.head()
    for number in range(3):
        lines.append(line(name, number))
        told = await report(story, lines)
        shown = await story.api(
            "GET", f"/v1/conversations?conversation_id={name}&at_least={told['position']}"
        )
        last = shown["items"][0]["last"]
        assert (last["text"], told["position"] > head) == (f"{name} {number}", True)
        head = told["position"]
    again = await report(story, [*lines, "not JSON"])
    assert (again["duplicates"], again["position"]) == (3, head)
    assert (await report(story, ["nothing"]))["position"] == 0
    [route] = (await story.api("GET", "/schema"))["paths"]["/v1/import"].values()
    assert "Ledger-Position" not in route["responses"]["200"].get("headers", {})


# Again.


async def test_the_same_file_twice_is_a_no_op(story: Story) -> None:
    lines: list[Line] = [*mixed([chat(), chat()], 10), "{}"]
    first = await report(story, lines)
    await story.settled()
    head = await story.head()
    assert await report(story, lines) == first | {"already": True}
    assert await story.head() == head


async def test_again_looks_at_every_line_and_records_nothing(story: Story) -> None:
    lines = mixed([chat(), chat()], 10)
    await report(story, lines)
    await story.settled()
    head = await story.head()
    told = await report(story, lines, again="true")
    assert counts(told) == [20, 0, 20, 0, 0]
    assert await story.head() == head


async def test_what_kommo_refused_is_sent_again_by_the_same_file(story: Story) -> None:
    name = chat()
    lines = [line(name, number) for number in range(8)]
    await story.fault("kommo.new_message", "400", times=5, conversation_id=name)
    first = await report(story, lines)
    assert counts(first) == [8, 8, 0, 0, 0]
    await story.settled()
    assert len(feed(story, name)) == 3
    second = await report(story, lines)
    assert (counts(second), second["resumed"]) == ([8, 0, 3, 0, 0], 5)
    found = await until(lambda: here if len(here := feed(story, name)) == 8 else [])
    assert texts(found) == [f"{name} {number}" for number in range(8)]
    await story.settled()
    assert await report(story, lines) == second | {"already": True}
    assert (await story.api("GET", "/v1/deliveries?state=failed"))["items"] == []


async def test_another_file_brings_only_what_is_new(story: Story) -> None:
    name = chat()
    await report(story, [line(name, number) for number in range(5)])
    told = await report(story, [line(name, number) for number in range(3, 8)])
    assert counts(told) == [5, 3, 2, 0, 0]


async def test_what_came_live_is_there_already(story: Story) -> None:
    name = chat()
    action = line(name, 1, at=None, direction=None)
    assert (await story.tell(action))[0] == 200
    told = await report(story, [line(name, 0), line(name, 1)])
    assert counts(told) == [2, 1, 1, 0, 0]


async def test_an_id_with_other_content_is_a_conflict_and_told(story: Story) -> None:
    name = chat()
    await report(story, [line(name, 0)])
    other = {"type": "text", "text": "other"}
    told = await report(story, [line(name, 0, message=other), line(name, 1)])
    assert counts(told) == [2, 1, 0, 1, 0]
    [problem] = told["problems"]
    assert problem["line"] == 1
    assert "other content at position" in problem["problem"]
    assert len(await story.events(type="conflict.noticed", conversation=_id(name))) == 1


# What is wrong.


async def test_bad_lines_are_told_by_number_and_the_others_come_in(story: Story) -> None:
    name = chat()
    lines: list[Line] = [
        line(name, 0),
        "",
        "no JSON",
        line(name, 1, type="typing"),
        line(name, 2, at="2026-01-01T00:00:00"),
        line(name, 3, at=None),
        line(name, 4, account_id="52e591f7-c98f-4255-8495-827210138c99"),
        outgoing(name, 5, receiver=None),
        line(name, 6, message={"type": "text", "text": "x" * LINE_BYTES_MAX}),
        "[" + "x" * 3 * LINE_BYTES_MAX,
        json.dumps([line(name, 7)]),
        line(name, 8),
    ]
    told = await report(story, lines)
    assert counts(told) == [12, 2, 0, 0, 9]
    assert [one["line"] for one in told["problems"]] == [3, 4, 5, 6, 7, 8, 9, 10, 11]
    begins = ["$: this is not JSON", "$.type", "$.at", "$", "$.account_id", "$.receiver"]
    begins += ["a line holds at most 256 KB"] * 2
    for problem, begin in zip(told["problems"], begins, strict=False):
        assert problem["problem"].startswith(begin), problem


async def test_of_many_problems_the_first_are_told_and_the_rest_counted(story: Story) -> None:
    told = await report(story, [f'"{number}"' for number in range(PROBLEMS_MAX + 7)])
    assert (len(told["problems"]), told["left_off"], told["skipped"]) == (PROBLEMS_MAX, 7, PROBLEMS_MAX + 7)


async def test_a_file_may_be_empty_and_may_end_without_a_newline(story: Story) -> None:
    assert counts(await report(story, [])) == [0, 0, 0, 0, 0]
    answer = await imported(story, ndjson([line(chat(), 0)]).rstrip(b"\n"))
    assert counts(answer.report) == [1, 1, 0, 0, 0]


@pytest.mark.parametrize(
    ("query", "headers", "status"),
    [
        ({"channel": "nobody"}, {}, 404),
        ({"account_id": "52e591f7-c98f-4255-8495-827210138c99"}, {}, 409),
        ({}, {"Content-Encoding": "br"}, 415),
        ({}, {"Authorization": "Bearer other"}, 401),
        ({"again": "perhaps"}, {}, 400),
    ],
    ids=lambda value: str(value)[:30],
)
async def test_what_cannot_be_imported_is_refused_at_once(
    story: Story, query: dict[str, str], headers: dict[str, str], status: int
) -> None:
    answer = await imported(story, ndjson([line(chat(), 0)]), headers=headers, **query)
    assert (answer.status, answer.report["status"]) == (status, status)
    assert len(answer.report["detail"]) > 10


async def test_one_import_at_a_time(story: Story) -> None:
    waiting = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield ndjson([line(chat(), 0)])
        await waiting.wait()

    first = asyncio.create_task(imported(story, slow()))
    await asyncio.sleep(0.2)
    answer = await imported(story, ndjson([line(chat(), 0)]))
    waiting.set()
    assert (answer.status, (await first).report["imported"]) == (409, 1)


# What is live goes first.


async def test_a_live_message_does_not_wait_behind_an_import(story: Story) -> None:
    names = [chat() for _ in range(4)]
    await story.fault("kommo.new_message", "slow", seconds=0.05, times=None)
    try:
        told = await report(story, mixed(names, 500))
        assert told["imported"] == 2000
        for name in names:
            await story.customer(name, "live")
        await until(lambda: all("live" in texts(feed(story, name)) for name in names), 5)
        assert sum(len(feed(story, name)) for name in names) < 1500
        assert story.run
        assert story.run.services.deliverer
        assert story.run.services.deliverer.depth <= 4 * LANE_MAX
    finally:
        await story.order("DELETE", "/faults")
    await story.settled(90)
    for name in names:
        found = feed(story, name)
        assert texts(found) == [*(f"{name} {number}" for number in range(500)), "live"]
        mine = sorted(found[:-1], key=lambda one: one.arrived_ns)
        assert all(one.msec_timestamp < two.msec_timestamp for one, two in pairwise(mine))


async def test_one_account_that_cannot_import_holds_up_no_other(servers: Servers) -> None:
    other = "52e591f7-c98f-4255-8495-827210138c90"
    there = ids.scope_of("acme", CHANNEL, other)
    stuck = chat()
    free = _beside(stuck, there)
    async with story_on(servers) as story:
        await story.api("POST", "/v1/channels/acme/connections", {"account_id": other, "title": "Other"})
        await story.fault("kommo.new_message", "503", times=None, conversation_id=stuck)
        await report(story, [line(stuck, n) for n in range(2 * LANE_MAX)], account_id=SCOPE.account)
        await report(story, [line(free, n) for n in range(3)], account_id=other)
        crm = story.sandbox.chat_state
        found = await until(lambda: crm.chat(there.scope_id, free), 5)
        await until(lambda: len(crm.timelines[found.id]) == 3, 5)
        assert feed(story, stuck) == []
        await story.order("DELETE", "/faults")
        await story.settled(90)
        assert texts(feed(story, stuck)) == [f"{stuck} {n}" for n in range(2 * LANE_MAX)]


async def test_an_edit_waits_for_the_message_that_is_still_to_be_imported(story: Story) -> None:
    name = chat()
    ours = ids.message_id(SCOPE, "messenger", f"{name}-1")
    connected = len(await story.events(type="channel.connected"))
    await story.fault("kommo.new_message", "503", times=None, conversation_id=name)
    try:
        await report(story, [line(name, 0), line(name, 1)])
        edit = {"type": "message.edited", "conversation_id": name, "message_id": f"{name}-1"}
        assert (await story.tell(edit | {"message": {"type": "text", "text": "Edited"}}))[0] == 200
        deferred = await story.until_recorded(ours, "delivery.deferred")
    finally:
        await story.order("DELETE", "/faults")
    await until(lambda: texts(feed(story, name)) == [f"{name} 0", "Edited"])
    assert deferred[0]["reason"] == NOT_YET
    assert "delivery.parked" not in await story.timeline(ours)
    assert len(await story.events(type="channel.connected")) == connected


def _beside(name: str, scope: ids.Scope) -> str:
    """A chat of another account whose partition is that of a chat of ours."""
    wanted = ids.partition(_id(name))
    while ids.partition(ids.conversation_id(scope, "messenger", other := chat())) != wanted:
        pass
    return other


def _id(name: str) -> str:
    return ids.conversation_id(SCOPE, "messenger", name)
