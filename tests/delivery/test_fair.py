"""What a newer edit or reaction makes needless is not pushed."""

import asyncio
import json
from collections import Counter

import pytest

from app.delivery import deliverer
from app.delivery.job import Job, Pushed
from app.delivery.lane import Lane
from domain import events as e
from tests.support.deliveries import Lease, delivering, line_of
from tests.support.ledgers.decisions import customer, own, reject
from tests.support.system import Story, chat, until

pytestmark = pytest.mark.story(roles="web,relay,project")


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
