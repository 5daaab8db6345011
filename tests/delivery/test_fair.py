"""Places are shared by account, and what a newer edit or reaction makes needless is not pushed."""

import asyncio
import json
from collections import Counter

import pytest

from app.delivery import deliverer
from app.delivery.job import Job, Pushed
from app.delivery.lane import Lane
from app.places import KEPT_FREE, PLACES, Places
from domain import events as e
from tests.support.deliveries import Lease, delivering, line_of
from tests.support.ledgers.decisions import customer, own, reject
from tests.support.system import Story, chat, until

pytestmark = pytest.mark.story(roles="web,relay,project")


async def test_an_account_with_thousands_of_calls_leaves_places_for_another() -> None:
    places, held, end = Places(), Counter[str](), asyncio.Event()

    async def call(account: str) -> None:
        async with places.hold(account):
            held[account] += 1
            await end.wait()

    calls = [asyncio.create_task(call("busy")) for _ in range(1_000)]
    await asyncio.sleep(0)
    calls.append(asyncio.create_task(call("other")))
    await asyncio.sleep(0)
    assert held == {"busy": PLACES - KEPT_FREE, "other": 1}
    end.set()
    await asyncio.gather(*calls)
    assert held == {"busy": 1_000, "other": 1}


async def test_accounts_that_wait_take_turns() -> None:
    places, order = Places(places=1, kept_free=0), list[str]()

    async def call(account: str) -> None:
        async with places.hold(account):
            order.append(account)
            await asyncio.sleep(0)

    calls = [asyncio.create_task(call("busy")) for _ in range(50)]
    await asyncio.sleep(0)
    calls += [asyncio.create_task(call("other")) for _ in range(3)]
    await asyncio.gather(*calls)
    assert max(number for number, account in enumerate(order) if account == "other") <= 8
    assert len(order) == 53


async def test_a_call_that_is_cancelled_while_it_waits_takes_no_place() -> None:
    places = Places(places=1, kept_free=0)

    async def call(account: str, seconds: float) -> None:
        async with places.hold(account):
            await asyncio.sleep(seconds)

    first = asyncio.create_task(call("one", 0.05))
    await asyncio.sleep(0)
    waiting = [asyncio.create_task(call(account, 0)) for account in ("one", "two", "two", "three")]
    await asyncio.sleep(0)
    waiting[0].cancel()
    waiting[1].cancel()
    await first
    await asyncio.gather(*waiting, return_exceptions=True)
    async with asyncio.timeout(1), places.hold("four"):
        pass


async def test_only_the_last_of_unsent_edits_and_reactions_is_pushed(story: Story) -> None:
    """12,000 reactions of one sender kept delivery and the ledger busy for hours."""
    assert story.run
    name = chat()
    ours = await story.customer(name, message_id=name)
    about = {"conversation_id": name, "message_id": name}
    for number in range(20):
        edit = {"type": "message.edited", "message": {"type": "text", "text": f"edit {number}"}}
        assert (await story.tell(about | edit))[0] == 200
        for sender in (f"u-{name}",):
            who = {"id": sender, "name": "Ann"}
            kind = "reaction.removed" if number % 2 else "reaction.added"
            reaction = {"type": kind, "sender": who, "emoji": "👍"}
            assert (await story.tell(about | reaction))[0] == 200
    path = f"/v1/events?limit=1000&at_least={await story.head()}"
    told = (await story.api("GET", path))["items"]
    events = [(one["position"], e.decode(json.dumps(one["event"]).encode())) for one in told]
    async with line_of(story.run.services) as line:
        lease = Lease()
        lane = Lane(line.settle, lease)
        for position, event in events:
            if isinstance(event, Pushed) and event.push and event.message == ours:
                lane.put(Job(position, event))
        count = len(lane.jobs)
        assert count == 41
        await until(lambda: len(lease.done) == count)
        await lane.stop()
    assert lease.failures == []
    outcomes = await story.events(type="delivery.completed")
    reasons = Counter(one.get("superseded") is not None for one in outcomes)
    assert reasons == {True: 37, False: 3}  # one reaction and what takes it back
    (message,) = await story.arrived(name)
    assert (message.message["text"], message.reactions) == ("edit 19", [])


async def test_an_edit_that_reports_a_status_is_pushed(story: Story) -> None:
    assert story.run
    lane = Lane(None, Lease())  # type: ignore[arg-type]  # nothing is settled here
    common = {"stream": "s", "version": 1, "channel": "acme", "at": "", "recorded_at": "", "by": "messenger"}
    content, status = e.Content(type="text", text="x"), e.DeliveryStatus(2)
    made = [
        e.MessageEdited(id=str(n), **common, schema=1, content=content, push="kommo", delivery_status=one)  # type: ignore[arg-type]
        for n, one in enumerate((None, status, None))
    ]
    lane.jobs = [Job(n, event) for n, event in enumerate(made[:2])]
    lane._supersede(lane.jobs[1])
    last = Job(2, made[2])
    lane.jobs.append(last)
    lane._supersede(last)
    assert [job.superseded for job in lane.jobs] == [True, False, False]


async def test_thousands_that_are_resumed_at_once_do_not_make_delivery_start_over(
    own_story: Story, caplog: pytest.LogCaptureFixture
) -> None:
    """Each resumed conversation costs its range a question or two; only one without an answer ends it."""
    assert own_story.run
    ledger, many, look = own_story.run.services.ledger, 4_000, deliverer.LOOK_SECONDS
    for make in (lambda n: customer(n, f"m-{n}", f"conv-{n}"), lambda n: reject(many + n, own(f"m-{n}"))):
        await asyncio.gather(*(ledger.submit(make(n)) for n in range(many)))
    await own_story.fault("kommo.new_message", "402", times=None)  # So that nothing else keeps it busy.
    deliverer.LOOK_SECONDS = 1.5
    try:
        async with delivering(own_story):
            await asyncio.sleep(0.5)  # Until it has its leases.
            assert (await own_story.api("POST", "/v1/deliveries/resume", {"states": ["failed"]}))[
                "resumed"
            ] == many
            await asyncio.sleep(3)
    finally:
        deliverer.LOOK_SECONDS = look
    assert "starting over" not in caplog.text
