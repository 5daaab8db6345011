"""Calls in flight are bounded and shared by destination; needless edits and reactions are not pushed."""

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest

from app.delivery import deliverer
from app.delivery.job import Job, Pushed
from app.delivery.lane import Lane
from app.http_client import Answer, Unreached, is_borne
from app.places import KEPT_MAX, PLACES, SHARE_KEPT_FREE, WINDOW, WINDOW_MAX, WINDOW_MIN, Places
from domain import events as e
from tests.support.deliveries import Lease, delivering, line_of
from tests.support.ledgers.decisions import customer, own, reject
from tests.support.system import Story, chat, until

pytestmark = pytest.mark.story(roles="web,relay,project")

GOOD = Answer(200, "application/json", 0.0, b"{}")
BUSY = Answer(429, "application/json", 1.0, b"{}")
BROKEN = Answer(503, "application/json", 0.0, b"{}")


class Hand:
    """Destinations whose calls a test answers, at the time of its own clock."""

    def __init__(self, places: int = PLACES) -> None:
        self.now = 1_000.0
        self.places = Places(places, lambda: self.now)
        self.open: dict[str, list[asyncio.Future[Answer]]] = {}
        self.tasks: list[asyncio.Task[Answer]] = []

    async def calls(self, host: str, account: str, count: int) -> None:
        """Begin so many calls."""
        for _ in range(count):
            call = self.places.call(host, account, self._call(host, account), is_borne)
            self.tasks.append(asyncio.create_task(call))
        await _settled()

    def _call(self, host: str, account: str) -> Callable[[], Awaitable[Answer]]:
        def call() -> Awaitable[Answer]:
            future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
            self.open.setdefault(f"{host}/{account}", []).append(future)
            return future

        return call

    def in_flight(self, name: str) -> int:
        return len(self.open.get(name, ()))

    async def answer(self, name: str, answer: Answer | Exception, seconds: float = 0.2) -> None:
        """Answer all calls of a destination that are in flight, after so long."""
        self.now += seconds
        open_, self.open[name] = self.open.get(name, []), []
        for future in open_:
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)
        await _settled()

    async def end(self) -> None:
        """Cut off what is left."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


async def _settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_destination_that_answers_well_gets_as_many_as_the_bound_allows_and_no_more() -> None:
    hand = Hand()
    await hand.calls("kommo", "far", 20_000)
    seen = []
    for _ in range(12):
        seen.append(hand.in_flight("kommo/far"))
        await hand.answer("kommo/far", GOOD)
    assert seen[0] == WINDOW
    assert seen[1] == 2 * WINDOW
    assert max(seen) == WINDOW_MAX
    await hand.end()
    assert hand.places.held == 0


@pytest.mark.parametrize("bad", [BUSY, BROKEN, Unreached("no answer within 10 s", unknown=True)])
async def test_the_window_is_halved_once_for_calls_that_fail_together_and_grows_back(
    bad: Answer | Unreached,
) -> None:
    hand = Hand()
    await hand.calls("kommo", "weak", 20_000)
    for _ in range(3):
        await hand.answer("kommo/weak", GOOD)
    before = hand.in_flight("kommo/weak")
    await hand.answer("kommo/weak", bad)
    assert hand.in_flight("kommo/weak") == before // 2
    for _ in range(20):
        await hand.answer("kommo/weak", bad)
    assert hand.in_flight("kommo/weak") == WINDOW_MIN
    for _ in range(20):
        await hand.answer("kommo/weak", GOOD)
    assert WINDOW_MIN < hand.in_flight("kommo/weak") <= WINDOW_MIN + 20
    await hand.end()


async def test_answers_that_become_slow_shrink_the_window_but_not_below_where_it_began() -> None:
    hand = Hand()
    await hand.calls("kommo", "slow", 50_000)
    for _ in range(6):
        await hand.answer("kommo/slow", GOOD)
    most = hand.in_flight("kommo/slow")
    await hand.answer("kommo/slow", GOOD, 2.0)
    assert WINDOW < hand.in_flight("kommo/slow") < most
    for _ in range(30):
        await hand.answer("kommo/slow", GOOD, 2.0)
        if hand.now > 1_025:
            break
    assert hand.in_flight("kommo/slow") >= WINDOW
    await hand.end()


async def test_slow_destinations_leave_places_for_whoever_comes() -> None:
    hand = Hand(800)
    for number in range(40):
        await hand.calls("messenger/slow", f"{number}", 100)
    assert hand.places.held == 800 - 800 // SHARE_KEPT_FREE
    await hand.calls("kommo", "other", 50)
    await hand.calls("messenger/other", "one", 10)
    fair = 800 // 42  # One destination more than there are.
    assert (hand.in_flight("kommo/other"), hand.in_flight("messenger/other/one")) == (fair, 10)
    await hand.end()
    assert hand.places.held == 0


async def test_destinations_that_wait_take_turns() -> None:
    hand = Hand(1)
    order = []
    await hand.calls("kommo", "busy", 50)
    await hand.calls("kommo", "other", 3)
    for _ in range(53):
        (name,) = (name for name, open_ in hand.open.items() if open_)
        order.append(name)
        await hand.answer(name, GOOD)
    assert Counter(order) == {"kommo/busy": 50, "kommo/other": 3}
    assert max(number for number, name in enumerate(order) if name == "kommo/other") <= 8


async def test_a_call_that_is_cancelled_while_it_waits_takes_no_place() -> None:
    hand = Hand(1)
    for account in ("one", "two", "two", "three"):
        await hand.calls("kommo", account, 1)
    hand.tasks[1].cancel()
    hand.tasks[3].cancel()
    await hand.answer("kommo/one", GOOD)
    hand.tasks[2].cancel()
    await _settled()
    await hand.calls("kommo", "four", 1)
    assert hand.in_flight("kommo/four") == 1
    await hand.end()
    assert hand.places.held == 0


async def test_what_is_known_of_idle_destinations_is_bounded() -> None:
    places = Places()

    async def call() -> Answer:
        return GOOD

    for number in range(KEPT_MAX + 10):
        await places.call("kommo", f"{number}", call, is_borne)
    assert len(places._destinations) <= KEPT_MAX


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
    ledger, many, look = own_story.run.services.ledger, 4_000, deliverer.LOOK_SECONDS_MAX
    for make in (lambda n: customer(n, f"m-{n}", f"conv-{n}"), lambda n: reject(many + n, own(f"m-{n}"))):
        await asyncio.gather(*(ledger.submit(make(n)) for n in range(many)))
    await own_story.fault("kommo.new_message", "402", times=None)  # So that nothing else keeps it busy.
    deliverer.LOOK_SECONDS_MAX = 1.5
    try:
        async with delivering(own_story):
            await asyncio.sleep(0.5)  # Until it has its leases.
            assert (await own_story.api("POST", "/v1/deliveries/resume", {"states": ["failed"]}))[
                "resumed"
            ] == many
            await asyncio.sleep(3)
    finally:
        deliverer.LOOK_SECONDS_MAX = look
    assert "starting over" not in caplog.text
