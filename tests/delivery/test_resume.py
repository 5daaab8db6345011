"""What failed is listed with its reason, and can be sent again: in order, once, and like the first time."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from domain import commands as c
from domain import events as e
from domain.state import Message
from tests.support.ids import ACCOUNT, AS_ADMIN
from tests.support.ledgers.decisions import (
    Ledger,
    Now,
    accept,
    confirm,
    customer,
    kommo,
    manager,
    own,
    reject,
)
from tests.support.messenger import Answering, answering, refusing
from tests.support.system import Story, chat, until

FAILED = {"states": ["failed"]}


@pytest.fixture(scope="module", autouse=True)
async def messenger(story: Story) -> AsyncIterator[Answering]:
    """The messenger behind the channel."""
    async with answering() as messenger:
        await story.api("PUT", "/v1/channels/acme", {"messenger": {"url": messenger.url}})
        yield messenger


async def listed(story: Story, **filters: object) -> list[dict[str, Any]]:
    """What is not delivered, as the list has it now."""
    query = "&".join(f"{name}={value}" for name, value in filters.items())
    page = await story.api("GET", f"/v1/deliveries?at_least={await story.head()}&{query}")
    return list(page["items"])


async def failed(story: Story, conversation: str, attempts: int) -> list[dict[str, Any]]:
    """What has failed in a conversation, once so many attempts of each are counted."""
    async with asyncio.timeout(15):
        while True:
            rows = await listed(story, state="failed", conversation=conversation)
            if all(row["attempts"] >= attempts for row in rows):
                return rows


async def resume(story: Story, **order: object) -> int:
    return int((await story.api("POST", "/v1/deliveries/resume", order or None))["resumed"])


async def conversation(story: Story, message: str) -> str:
    return str((await story.shown(message))["conversation"])


async def test_what_kommo_refused_is_sent_again_in_order_and_once(story: Story) -> None:
    name, words = chat(), ["one", "two", "three"]
    await story.customer(name, "before")
    await story.arrived(name)
    await story.fault("kommo.new_message", "400", times=3, conversation_id=name)
    ours = [await story.customer(name, word) for word in words]
    for one in ours:
        await story.until_recorded(one, "message.failed")
    where = await conversation(story, ours[0])
    rows = await failed(story, where, 1)
    assert [(row["message"], row["state"], row["attempts"]) for row in rows] == [
        (one, "failed", 1) for one in ours
    ]
    assert {row["reason"] for row in rows} == {"refused for good: HTTP 400 from Kommo"}
    assert all(row["answer"] and row["next_try_at"] is None for row in rows)
    assert [await resume(story, **FAILED, conversation=where) for _ in range(2)] == [3, 0]
    found = await story.arrived(name, 4)
    assert [one.message["text"] for one in found] == ["before", *words]
    for one in ours:
        assert await story.until_recorded(one, "delivery.resumed")
        await story.until_recorded(one, "message.accepted")
        assert (await story.shown(one))["status"] == "accepted"
    await story.settled()
    assert await listed(story, conversation=where) == []
    assert await resume(story, **FAILED, conversation=where) == 0


async def test_a_managers_message_that_failed_is_sent_again_and_may_fail_again(
    story: Story, messenger: Answering
) -> None:
    name = chat()
    messenger.answers[name] = [refusing(422), refusing(422, {"code": 904, "text": "not a user"})]
    told = await story.manager(name)
    await story.until_recorded(told["ours"], "message.failed")
    await until(lambda: story.statuses(told["id"]) == [-1])
    where = await conversation(story, told["ours"])
    assert await resume(story, **FAILED, conversation=where) == 1
    first, second = await story.until_recorded(told["ours"], "message.failed", 2)
    assert (first["code"], second["code"], second["text"]) == (905, 904, "not a user")
    await until(lambda: story.statuses(told["id"]) == [-1, -1])
    [row] = await failed(story, where, 2)
    assert (row["answer"], row["attempts"]) == ("not a user", 2)
    assert await resume(story, **FAILED, conversation=where) == 1
    await story.until_recorded(told["ours"], "message.accepted")
    assert (await story.shown(told["ours"]))["status"] == "accepted"
    assert messenger.texts(name) == ["Hi"] * 3
    [call, *others] = messenger.calls[name]
    assert {one.webhook_id for one in others} == {call.webhook_id}


async def test_only_what_fits_is_resumed(story: Story, messenger: Answering) -> None:
    name = chat()
    messenger.answers[name] = [refusing(422)]
    told = await story.manager(name)
    await story.until_recorded(told["ours"], "message.failed")
    rows = await listed(story, state="failed", channel="acme", account_id=ACCOUNT)
    [at] = [row["recorded_at"] for row in rows]
    for nothing in (
        {"channel": "other"},
        {"account_id": "00000000-0000-0000-0000-000000000000"},
        {"reason": "disconnected"},
        {"since": "2999-01-01T00:00:00Z"},
        {"until": at},
    ):
        assert await listed(story, state="failed", **nothing) == []
        assert await resume(story, **FAILED, **nothing) == 0
    assert await resume(story) == await resume(story, states=["parked"]) == 0
    fitting = {"channel": "acme", "account_id": ACCOUNT, "reason": "refused for good", "since": at}
    assert len(await listed(story, state="failed", **fitting)) == 1
    assert await resume(story, states=["parked", "failed"], **fitting) == 1
    await messenger.called(name, 2)
    await story.settled()


@pytest.mark.parametrize(
    "order",
    [{"states": []}, {"states": ["done"]}, {"states": "failed"}, {"since": "yesterday"}, [], "failed"],
)
async def test_an_order_that_cannot_be_meant_is_refused(story: Story, order: object) -> None:
    url = f"{story.url}/v1/deliveries/resume"
    status, problem = await story.call("POST", url, order, headers=AS_ADMIN)
    assert (status, problem["status"]) == (400, 400)


async def test_every_attempt_counts_and_the_next_one_has_its_time(story: Story, messenger: Answering) -> None:
    name = chat()
    messenger.answers[name] = [refusing(503) for _ in range(6)]
    told = await story.manager(name)
    await messenger.called(name, 4)
    where = await conversation(story, told["ours"])
    rows: list[dict[str, Any]] = []
    calls = 0
    while not rows or rows[0]["attempts"] < 4:
        rows = await listed(story, conversation=where)
        calls = len(messenger.calls[name])
    [row] = rows
    assert (row["state"], row["reason"]) == ("deferred", "HTTP 503 from the messenger")
    assert row["attempts"] <= calls
    assert row["next_try_at"] > row["recorded_at"]
    assert len(await story.until_recorded(told["ours"], "delivery.deferred")) == 1


# What the ledger decides.


def resumed(n: int, stream: str, cause: str) -> c.Resume:
    return c.Resume(**Now(n).stamp("operator"), stream=stream, cause=cause)


def state(ledger: Ledger, stream: str) -> Message:
    found = ledger.states[stream]
    assert isinstance(found, Message)
    return found


def test_a_failed_message_is_resumed_once_for_each_failure() -> None:
    ledger = Ledger().after(manager(1), reject(2, kommo("k-1")))
    cause = next(one.id for one in ledger.events if isinstance(one, e.MessageSent))
    for n in (3, 6):
        decisions = [ledger.record(resumed(n + more, kommo("k-1"), cause)) for more in range(2)]
        assert [len(decision.events) for decision in decisions] == [1, 0]
        assert (state(ledger, kommo("k-1")).rank, "message.failed" in state(ledger, kommo("k-1")).seen) == (
            0,
            False,
        )
        [event] = decisions[0].events
        assert isinstance(event, e.DeliveryResumed)
        assert event.was == "failed"
        [failed] = [
            one
            for one in ledger.record(reject(n + 2, kommo("k-1"))).events
            if isinstance(one, e.MessageFailed)
        ]
        assert failed.push == "kommo"


@pytest.mark.parametrize("status", ["delivered", "read"])
def test_what_has_arrived_all_the_same_is_not_sent_again(status: str) -> None:
    ledger = Ledger().after(manager(1), reject(2, kommo("k-1")), confirm(3, kommo("k-1"), status))
    cause = next(one.id for one in ledger.events if isinstance(one, e.MessageSent))
    assert ledger.record(resumed(4, kommo("k-1"), cause)).duplicate


def test_what_was_accepted_and_reported_as_failed_is_not_sent_again() -> None:
    ledger = Ledger().after(customer(1), accept(2, own("m-1"), "kommo", "x-1"), reject(3, own("m-1")))
    cause = next(one.id for one in ledger.events if isinstance(one, e.MessageSent))
    assert ledger.record(resumed(4, own("m-1"), cause)).duplicate
