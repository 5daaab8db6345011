"""What refuses us, and not the message, rests: nothing fails for it, and all arrives afterwards."""

import asyncio
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any

import pytest

from app import clock
from app.delivery.destinations import PROBE_SECONDS, PROBE_SECONDS_LATER
from app.http_client import Answer
from app.messengers import webhook
from app.outcome import Done, Forbidden, Refused, Retry
from domain import events as e
from domain import ids
from tests.support.ids import ACCOUNT, AS_ADMIN, SCOPE
from tests.support.ledgers.decisions import customer, manager, react
from tests.support.messenger import Answering, answering, refusing
from tests.support.system import Story, chat, until
from tests.support.virtual import loop
from tests.support.virtual.simulation import Simulation

HOUR = 3600.0
UNPAID = Forbidden("pay first", 402)
NO_PAGE = Forbidden("no such page", 404)


@pytest.mark.parametrize("http", [401, 402, 423])
def test_an_account_that_refuses_us_for_hours_loses_nothing(http: int) -> None:
    """Live and imported messages wait; a few calls show that it still refuses, ever more seldom."""

    async def main() -> None:
        sim = Simulation()
        sim.kommo.script = lambda event: (
            sim.kommo.take(event) if sim.clock.passed > 3 * HOUR else Forbidden("pay first", http)  # type: ignore[arg-type]
        )
        for n in range(40):
            sim.ledger.give(customer(n + 1, f"m-{n}", f"conv-{n % 8}", imported=n % 2 == 0))
        await sim.idle()
        assert (len(sim.events(e.MessageAccepted)), sim.events(e.MessageFailed, e.DeliveryParked)) == (40, [])
        probes = [call.at for call in sim.kommo.calls if isinstance(call.outcome, Forbidden) and call.at > 1]
        gaps = [later - at for at, later in pairwise(probes)]
        assert all(later >= gap * 0.99 for gap, later in pairwise(gaps))
        assert max(gap for at, gap in zip(probes, gaps, strict=False) if at < HOUR) < PROBE_SECONDS + 1
        assert PROBE_SECONDS < max(gaps) < PROBE_SECONDS_LATER + 1
        assert sim.kommo.connects == []

    loop.run(main)


@pytest.mark.parametrize("http", [401, 403, 404, 405, 410])
def test_a_messenger_that_is_corrected_in_time_gets_all(http: int) -> None:
    async def main() -> None:
        sim = Simulation()
        sim.messenger.script = lambda push: (
            Done(f"x-{push.event.id}") if sim.clock.passed > 840 else Forbidden("no such page", http)
        )
        for n in range(30):
            sim.ledger.give(manager(n + 1, f"k-{n}", f"chat-{n % 5}", f"conv-{n % 5}"))
        await sim.idle()
        assert (len(sim.events(e.MessageAccepted)), sim.events(e.MessageFailed)) == (30, [])
        refused = [call.at for call in sim.messenger.calls if isinstance(call.outcome, Forbidden)]
        assert 840 / PROBE_SECONDS <= len(refused) <= 840 / PROBE_SECONDS + 12
        assert sim.clock.passed < 840 + 2 * PROBE_SECONDS

    loop.run(main)


def test_a_manager_learns_after_a_quarter_of_an_hour_that_the_messenger_takes_nothing() -> None:
    async def main() -> None:
        sim = Simulation()
        sim.messenger.script = lambda push: NO_PAGE
        sim.ledger.give(manager(1, "k-1"))
        await sim.clock.sleep(600)
        sim.ledger.give(manager(601, "k-2"))
        await sim.idle()
        failed = [one for one in sim.events(e.MessageFailed) if isinstance(one, e.MessageFailed)]
        words = "the messenger did not take it within 15m: HTTP 404"
        assert [(one.code, one.text, one.push) for one in failed] == [(905, words, "kommo")] * 2
        times = [call.at for call in sim.kommo.calls]
        assert 900 <= times[0] < 902
        assert 1500 <= times[1] < 1502

    loop.run(main)


def test_a_reaction_that_no_messenger_took_is_parked() -> None:
    async def main() -> None:
        sim = Simulation()
        sim.messenger.script = lambda push: (
            NO_PAGE if isinstance(push.event, e.ReactionAdded) else Done("x-1")
        )
        sim.ledger.give(manager(1, "k-1"))
        await sim.idle()
        sim.ledger.give(react(2, ids.message_id(SCOPE, "kommo", "k-1"), side="kommo"))
        await sim.idle()
        [parked] = sim.events(e.DeliveryParked)
        assert isinstance(parked, e.DeliveryParked)
        assert (parked.reason[:34], parked.answer) == ("the messenger did not take it with", "no such page")

    loop.run(main)


ANSWERS: list[tuple[int, bytes, type[Any]]] = [
    *((status, b"", Forbidden) for status in (401, 403, 404, 405, 410)),
    *((status, b"<h1>nginx</h1>", Forbidden) for status in (401, 403, 404, 405, 410)),
    *((status, b'{"code":904,"text":"not a user"}', Refused) for status in (401, 403, 404, 405, 410)),
    *((status, b"", Refused) for status in (400, 402, 406, 409, 413, 415, 422, 451)),
    *((status, b"", Retry) for status in (302, 408, 425, 429, 500, 503)),
    *((status, b"[" * 5000, kind) for status, kind in ((200, Done), (401, Forbidden), (400, Refused))),
]


@pytest.mark.parametrize(("status", "body", "expected"), ANSWERS)
def test_a_messengers_answer_shows_whose_fault_it_is(status: int, body: bytes, expected: type[Any]) -> None:
    assert type(webhook.outcome(Answer(status, "", 0.0, body))) is expected


@pytest.mark.parametrize("name", ["a\\u0000b", "\\u001b[2J", "a\\nb"])
def test_a_name_that_the_messenger_could_not_use_is_none(name: str) -> None:
    answer = Answer(200, "", 0.0, f'{{"message_id":"{name}"}}'.encode())
    assert webhook.outcome(answer) == Done()


# With the real service.


@pytest.fixture
async def messenger(own_story: Story) -> AsyncIterator[Answering]:
    """The messenger behind the channel."""
    async with answering() as messenger:
        await own_story.api("PUT", "/v1/channels/acme", {"messenger": {"url": messenger.url}})
        yield messenger


async def resting(story: Story, many: int = 1) -> list[dict[str, Any]]:
    """What rests, once it is so much."""
    async with asyncio.timeout(15):
        while len(found := (await story.api("GET", "/v1/status"))["resting"]) != many:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    return list(found)


@pytest.mark.parametrize("status", ["402"])
async def test_messages_wait_while_the_account_rests_and_arrive_after_it(
    own_story: Story, status: str
) -> None:
    names = [chat() for _ in range(3)]
    await own_story.fault("kommo.new_message", status, times=None)
    for name in names:
        await own_story.customer(name)
        await own_story.customer(name, "next")
    [rest] = await resting(own_story)
    assert (rest["channel"], rest["account_id"], rest["destination"]) == ("acme", ACCOUNT, "kommo")
    assert (rest["reason"], rest["next_try_at"] >= rest["since"]) == (f"HTTP {status}", True)
    await own_story.order("DELETE", "/faults")
    for name in names:
        assert [one.message["text"] for one in await own_story.arrived(name, 2)] == ["Hello", "next"]
    await own_story.settled()
    assert await own_story.events(type="message.failed") == []
    await resting(own_story, 0)


async def test_a_rest_that_a_dead_process_left_ends_with_the_first_message(own_story: Story) -> None:
    assert own_story.run is not None
    now = clock.now_ms()
    rests = own_story.run.services.rests
    await rests.begin(("acme", ACCOUNT, "kommo"), now, now + 60_000, "HTTP 402", "pay first")
    await resting(own_story)
    await own_story.customer(chat())
    await resting(own_story, 0)


async def test_a_rest_ends_at_once_when_the_connection_is_made_again(own_story: Story) -> None:
    name = chat()
    await own_story.fault("kommo.new_message", "402", times=None)
    await own_story.customer(name)
    [fault] = own_story.sandbox.faults.faults
    await until(lambda: fault.hits >= 4)  # The next one comes in eight seconds.
    await own_story.order("DELETE", "/faults")
    connection = {"account_id": ACCOUNT, "title": "Acme again"}
    await own_story.api("POST", "/v1/channels/acme/connections", connection)
    began = asyncio.get_running_loop().time()
    await own_story.arrived(name)
    assert asyncio.get_running_loop().time() - began < 4


@pytest.mark.parametrize("status", [404])
async def test_managers_messages_wait_while_the_messenger_refuses_us(
    own_story: Story, messenger: Answering, status: int
) -> None:
    name, other = chat(), chat()
    messenger.answers[name] = [refusing(status, {"detail": "wrong path"}) for _ in range(2)]
    first = await own_story.manager(name)
    await own_story.manager(name, "next")
    await own_story.manager(other)
    [rest] = await resting(own_story)
    assert (rest["destination"], rest["reason"]) == ("messenger", f"HTTP {status}")
    assert "wrong path" in str(rest["answer"])
    await messenger.called(name, 4)
    await messenger.called(other, 1)
    assert messenger.texts(name) == ["Hi", "Hi", "Hi", "next"]
    [deferred] = await own_story.until_recorded(first["ours"], "delivery.deferred")
    assert deferred["reason"] == f"the channel rests: HTTP {status} from the messenger"
    assert "wrong path" in deferred["answer"]
    await own_story.settled()
    assert await own_story.events(type="message.failed") == []


async def test_a_channel_says_how_long_messages_wait_for_its_messenger(
    own_story: Story, messenger: Answering
) -> None:
    [channel] = (await own_story.api("GET", "/v1/channels"))["items"]
    assert channel["wait_for_messenger"] == "15m"
    changed = await own_story.api("PUT", "/v1/channels/acme", {"wait_for_messenger": "2s"})
    assert changed["wait_for_messenger"] == "2s"
    name = chat()
    messenger.answers[name] = [refusing(404) for _ in range(9)]
    told = await own_story.manager(name)
    [failed] = await own_story.until_recorded(told["ours"], "message.failed")
    words = "the messenger did not take it within 2s: HTTP 404"
    assert (failed["code"], failed["text"], failed["by"]) == (905, words, "system")
    await until(lambda: own_story.statuses(told["id"]) == [-1])
    await own_story.api("PUT", "/v1/channels/acme", {"messenger": {"url": f"{messenger.url}?other"}})
    [channel] = (await own_story.api("GET", "/v1/channels"))["items"]
    assert channel["wait_for_messenger"] == "2s"


@pytest.mark.parametrize("wait", ["", "15", "m", "1.5h", "-1m", "015m", "15 m", "15m\n", "123456s", 15, True])
async def test_a_wait_that_is_no_span_is_refused(story: Story, wait: object) -> None:
    status, problem = await story.call(
        "PUT", f"{story.url}/v1/channels/acme", {"wait_for_messenger": wait}, headers=AS_ADMIN
    )
    assert (status, problem["errors"][0]["path"]) == (400, "$.wait_for_messenger")
