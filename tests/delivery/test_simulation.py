"""Hours of delivery on a virtual clock: real lanes, gates and decisions between sides that are functions."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Coroutine
from itertools import pairwise
from typing import Any

import pytest

from app.channels.directory import Channel
from app.delivery.destinations import PROBE_SECONDS
from app.delivery.job import DISCONNECTED, Job, Progress, Pushed, lane_key
from app.delivery.reconnect import RECONNECT_SECONDS
from app.delivery.settle import CONNECT_SECONDS
from app.http_client import Answer, Unreached
from app.outcome import Done, Forbidden, Gone, Outcome, Refused, Retry
from domain import events as e
from domain.state import Message
from tests.support.ledgers.decisions import confirm, customer, edit, kommo, manager, own, react
from tests.support.virtual import loop
from tests.support.virtual.simulation import CALL_SECONDS, Simulation

BUSY = Retry("HTTP 503 from Kommo")
HOUR = 3600.0
REFUSED = Refused(400, 905, "no")


def simulated(test: Callable[[Simulation], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """A test on a virtual clock, of a simulation of its own."""

    async def main() -> None:
        await test(Simulation())

    def run() -> None:
        loop.run(main)

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


def parked(sim: Simulation) -> list[str]:
    return [event.reason for event in sim.events(e.DeliveryParked) if isinstance(event, e.DeliveryParked)]


@simulated
async def test_retries_come_within_a_minute_and_after_an_hour_within_five(sim: Simulation) -> None:
    sim.kommo.script = lambda event: BUSY if sim.clock.passed < 3 * HOUR else Done("k-1")
    sim.ledger.give(customer(1))
    await sim.idle()
    times = [call.at for call in sim.kommo.calls]
    gaps = [later - at for at, later in pairwise(times)]
    assert all(gap < 0.25 * 2**n + 1 for n, gap in enumerate(gaps[:8]))
    assert max(gap for at, gap in zip(times, gaps, strict=False) if at < HOUR) < 62
    assert 62 < max(gaps) < 302
    assert len(sim.events(e.DeliveryDeferred)) == 1


@simulated
async def test_a_pause_holds_the_whole_messenger_and_ends_with_one_probe(sim: Simulation) -> None:
    answers = iter([Retry("HTTP 429", 30.0, pause=True)])
    sim.messenger.script = lambda push: next(answers, Done(f"m-{push.event.id}"))
    sim.ledger.give(manager(1, "k-0", "chat-0", "conv-0"))
    await sim.clock.sleep(1)
    for n in range(1, 10):
        sim.ledger.give(manager(n + 1, f"k-{n}", f"chat-{n}", f"conv-{n}"))
    await sim.idle()
    first, probe, *others = [call.at for call in sim.messenger.calls]
    assert probe - first >= 30
    assert all(at - probe > CALL_SECONDS * 0.99 for at in others)
    assert len(others) == 9


@pytest.mark.parametrize("answer", [Gone("unknown"), Forbidden("no")], ids=["404", "403"])
def test_a_dropped_connection_is_connected_once_for_all(answer: Gone | Forbidden) -> None:
    async def main() -> None:
        sim = Simulation()
        sim.kommo.script = lambda event: Done("k-1") if sim.kommo.connects else answer
        for n in range(20):
            sim.ledger.give(customer(n + 1, f"m-{n}", f"conv-{n}"))
        await sim.idle()
        assert len(sim.kommo.connects) == 1
        assert len(sim.events(e.MessageAccepted)) == 20
        assert len(sim.events(e.ChannelConnected)) == 1
        assert (sim.problems, sim.clock.passed < 5) == ([None], True)

    loop.run(main)


@simulated
async def test_what_stays_unknown_is_parked_and_rarely_connected_for(sim: Simulation) -> None:
    sim.kommo.script = lambda event: Gone("unknown")
    for n in range(200):
        sim.ledger.give(customer(n + 1, f"m-{n}", f"conv-{n}"))
        await sim.clock.sleep(60)
    await sim.idle()
    assert len(parked(sim)) == 200
    gaps = [later - at for at, later in pairwise(sim.kommo.connects)]
    assert len(gaps) > 6
    assert all(gap >= min(RECONNECT_SECONDS * 2**n, HOUR) for n, gap in enumerate(gaps))


@simulated
async def test_a_connection_that_kommo_refuses_says_why_it_is_parked(sim: Simulation) -> None:
    sim.kommo.script = lambda event: Gone("unknown")
    sim.kommo.connecting = lambda: Answer(400, "application/json", 0.0, b"who?")
    sim.ledger.give(customer(1))
    sim.ledger.give(customer(2, "m-2"))
    await sim.idle()
    assert parked(sim) == ["connecting again failed: HTTP 400"] * 2
    answers = [event.answer for event in sim.events(e.DeliveryParked) if isinstance(event, e.DeliveryParked)]
    assert answers == ["who?"] * 2
    assert len(sim.kommo.connects) == 1


@simulated
async def test_an_operator_who_disconnects_is_not_overruled(sim: Simulation) -> None:
    sim.kommo.script = lambda event: Gone("unknown")
    sim.ledger.give(customer(1))
    await sim.clock.sleep(0.5)
    sim.connected = False
    await sim.idle()
    assert (sim.kommo.connects, parked(sim)) == ([], [DISCONNECTED])


@simulated
async def test_a_job_that_is_parked_while_the_connection_is_made_is_resumed(sim: Simulation) -> None:
    def connect(position: int, event: e.AnyEvent) -> None:
        sim.connected = sim.connected or isinstance(event, e.DeliveryParked)

    sim.connected = False
    sim.ledger.listeners.append(connect)
    sim.ledger.give(customer(1))
    await sim.idle()
    assert parked(sim) == [DISCONNECTED]
    assert len(sim.events(e.DeliveryResumed)) == 1


@simulated
async def test_what_follows_a_job_that_is_resumed_at_once_does_not_overtake_it(sim: Simulation) -> None:
    def connect(position: int, event: e.AnyEvent) -> None:
        sim.connected = sim.connected or isinstance(event, e.DeliveryParked)

    sim.connected = False
    sim.ledger.listeners.append(connect)
    for n in range(1, 4):
        sim.ledger.give(customer(n, f"m-{n}"))
    await sim.idle()
    pushed = [call.event.own_id for call in sim.kommo.calls if isinstance(call.event, e.MessageSent)]
    assert (pushed, len(sim.events(e.MessageAccepted))) == (["m-1", "m-2", "m-3"], 3)


@simulated
async def test_a_reaction_that_is_resumed_does_not_replace_a_later_one(sim: Simulation) -> None:
    def answer(event: Pushed) -> Outcome:
        refused = isinstance(event, e.ReactionAdded) and event.emoji == "👍" and sim.clock.passed < 60
        return REFUSED if refused else Done("k-1")

    sim.kommo.script = answer
    sim.ledger.give(customer(1))
    sim.ledger.give(react(2, own("m-1"), emoji="👍"))
    await sim.idle()
    sim.ledger.give(react(3, own("m-1"), emoji="👎"))
    await sim.idle()
    await sim.clock.sleep(60)
    [old] = [
        one for one in sim.events(e.ReactionAdded) if isinstance(one, e.ReactionAdded) and one.emoji == "👍"
    ]
    sim.lanes.of(lane_key(old)).put_back(Job(2, old, Progress(again=True)))
    await sim.idle()
    pushed = [call.event.emoji for call in sim.kommo.calls if isinstance(call.event, e.ReactionAdded)]
    assert pushed == ["👍", "👎"]


@simulated
async def test_a_reaction_is_pushed_before_what_takes_it_back_also_after_a_restart(sim: Simulation) -> None:
    sim.kommo.script = lambda event: BUSY if sim.clock.passed < 60 else Done("k-1")
    sim.ledger.give(customer(1))
    sim.ledger.give(react(2, own("m-1")))
    sim.ledger.give(react(3, own("m-1"), removed=True))
    await sim.clock.sleep(60)
    lane = sim.lanes.of(lane_key(sim.events(e.MessageSent)[0]))  # type: ignore[arg-type]  # it is pushed
    for job in lane.jobs:
        job.progress = Progress(again=True)
    await sim.idle()
    done = [type(call.event) for call in sim.kommo.calls if isinstance(call.outcome, Done)]
    assert done == [e.MessageSent, e.ReactionAdded, e.ReactionRemoved]


@simulated
async def test_what_rests_is_tried_at_once_when_something_has_changed(sim: Simulation) -> None:
    paid: list[float] = []
    sim.kommo.script = lambda event: Done("k") if paid else Forbidden("pay first", 402)
    sim.ledger.give(customer(1))
    while not sim.kommo.calls or sim.kommo.calls[-1].at < 2 * HOUR:
        await sim.clock.sleep(1)
    paid.append(sim.clock.passed)  # Just after a call that was refused, and five minutes before the next.
    sim.destinations.gate(sim.events(e.MessageSent)[0]).hasten()  # type: ignore[arg-type]  # it is pushed
    await sim.idle()
    assert sim.kommo.calls[-1].at - paid[0] < 2


@simulated
async def test_a_resumed_job_looks_ever_less_often_for_a_connection_never_made(
    sim: Simulation,
) -> None:
    """Thousands of conversations may wait so, and all of them look."""
    asked: list[float] = []
    channel = sim.channel

    async def counted(name: str) -> Channel:
        asked.append(sim.clock.passed)
        return await channel(name)

    sim.connected = False
    sim.channel = counted  # type: ignore[method-assign]
    sim.ledger.give(customer(1))
    await sim.idle()
    (event,) = sim.events(e.MessageSent)
    assert isinstance(event, e.MessageSent)
    asked.clear()
    sim.lanes.of(lane_key(event)).put(Job(1, event, Progress(again=True)))
    await sim.idle()
    assert sim.clock.passed > CONNECT_SECONDS
    assert len(asked) < CONNECT_SECONDS


@simulated
async def test_403_is_probed_once_a_minute_until_it_ends(sim: Simulation) -> None:
    sim.kommo.script = lambda event: Done("k") if sim.clock.passed > 600 else Forbidden("bad signature")
    for n in range(50):
        sim.ledger.give(customer(n + 1, f"m-{n}", f"conv-{n}"))
    await sim.idle()
    refused = [call.at for call in sim.kommo.calls if isinstance(call.outcome, Forbidden)]
    assert len([at for at in refused if at > 10]) <= 600 / PROBE_SECONDS + len(sim.kommo.connects)
    assert len(sim.events(e.MessageAccepted)) == 50
    assert sim.clock.passed < 600 + 2 * PROBE_SECONDS


@simulated
async def test_a_refusal_is_final_and_the_conversation_goes_on(sim: Simulation) -> None:
    answers = iter([REFUSED])
    sim.kommo.script = lambda event: next(answers, Done("k-2"))
    sim.ledger.give(customer(1, "m-1"))
    sim.ledger.give(customer(2, "m-2"))
    await sim.idle()
    assert [event.message for event in sim.events(e.MessageFailed)] == [own("m-1")]
    assert [event.message for event in sim.events(e.MessageAccepted)] == [own("m-2")]


@pytest.mark.parametrize("taken", [True, False])
def test_a_refusal_after_an_attempt_without_an_answer_is_looked_up(taken: bool) -> None:
    """The look-up itself fails twice, and each time the push is tried again first."""

    async def main() -> None:
        sim = Simulation()
        sim.kommo.finds = [Unreached("HTTP 500", unknown=False)] * 2

        def script(event: Any) -> Any:
            if len(sim.kommo.calls) == 0:
                if taken:
                    sim.kommo.take(event)
                return Retry("no answer within 10 s", unknown=True)
            return REFUSED

        sim.kommo.script = script
        sim.ledger.give(customer(1))
        await sim.idle()
        assert len(sim.kommo.calls) == 4
        accepted, failed = sim.events(e.MessageAccepted), sim.events(e.MessageFailed)
        assert ([event.by for event in accepted], len(failed)) == ((["recovery"], 0) if taken else ([], 1))
        assert len(sim.events(e.DeliveryDeferred)) == 2

    loop.run(main)


@simulated
async def test_an_edit_is_parked_behind_a_message_that_never_arrived(sim: Simulation) -> None:
    sim.kommo.script = lambda event: Gone("unknown")
    sim.ledger.give(customer(1, "m-1"))
    sim.ledger.give(edit(2, own("m-1")))
    await sim.idle()
    assert parked(sim)[1] == "its message is not with Kommo: resume that one, then this"
    assert len(sim.kommo.connects) == 1


@simulated
async def test_an_error_of_our_own_parks_its_job_and_no_other(sim: Simulation) -> None:
    def script(event: Any) -> Any:
        if event.message == own("m-1"):
            raise ValueError("a fault in the program")
        return Done("k-2")

    sim.kommo.script = script
    sim.ledger.give(customer(1, "m-1"))
    sim.ledger.give(customer(2, "m-2"))
    await sim.idle()
    assert parked(sim) == ["an error of our own: look at the log, then resume it"]
    assert [event.message for event in sim.events(e.MessageAccepted)] == [own("m-2")]


# Hours of everything at once.


class Weather:
    """What both sides do: a dropped connection twice, 403 for a quarter of an hour, and faults at random."""

    FORBIDDEN = (2_000.0, 2_900.0)
    DROPPED = (600.0, 5_000.0)

    def __init__(self, sim: Simulation) -> None:
        self.sim = sim
        sim.ledger.failing = 0.02
        sim.kommo.script = self.kommo
        sim.messenger.script = self.messenger
        self.had: dict[str, Done] = {}

    def dropped(self) -> bool:
        sim = self.sim
        since = max((at for at in self.DROPPED if at <= sim.clock.passed), default=None)
        return since is not None and not any(at > since for at in sim.kommo.connects)

    def kommo(self, event: Any) -> Any:
        sim, roll = self.sim, self.sim.dice.random()
        if self.FORBIDDEN[0] <= sim.clock.passed < self.FORBIDDEN[1]:
            return Forbidden("bad signature")
        if self.dropped():
            return Gone("unknown scope")
        if roll < 0.15:
            return BUSY
        if not isinstance(event, e.MessageSent):
            return Done() if roll < 0.95 else REFUSED
        if roll < 0.2:
            return Retry("no answer within 10 s", unknown=True)
        if event.message in sim.kommo.history:
            return REFUSED
        if roll < 0.25:
            sim.kommo.take(event)
            return Retry("the connection broke", unknown=True)
        return sim.kommo.take(event) if roll < 0.97 else REFUSED

    def messenger(self, push: Any) -> Any:
        roll, message = self.sim.dice.random(), push.event.message
        if roll < 0.1:
            return Retry("HTTP 503 from the messenger")
        if roll < 0.13:
            return Retry("HTTP 429 from the messenger", 20.0, pause=True)
        if roll < 0.16 and message not in self.had:
            return Refused(422, 905, "no")
        self.had.setdefault(message, Done(f"x-{message}"))
        return self.had[message] if roll < 0.9 else Retry("the connection broke", unknown=True)


async def people(sim: Simulation, conversation: int, actions: int) -> None:
    """A customer and a manager write, edit and read, on and off for two hours."""
    conv, chat, customers, managers = f"conv-{conversation}", f"chat-{conversation}", 0, 0
    for step in range(actions):
        await sim.clock.sleep(sim.dice.uniform(0, 2 * 2 * HOUR / actions))
        n, roll = 1 + conversation * 1_000 + step, sim.dice.random()
        if roll < 0.5 or not customers:
            customers += 1
            sim.ledger.give(customer(n, f"m-{conversation}-{customers}", conv))
        elif roll < 0.7 or not managers:
            managers += 1
            sim.ledger.give(manager(n, f"k-{conversation}-{managers}", chat, conv))
        elif roll < 0.85:
            sim.ledger.give(edit(n, own(f"m-{conversation}-{customers}"), f"words {n}"))
        else:
            sim.ledger.give(confirm(n, kommo(f"k-{conversation}-{managers}"), "read"))


async def hours(seed: int) -> tuple[Simulation, float]:
    """Two hours and what it takes to settle all; returns how many seconds that were, too."""
    sim = Simulation(seed)
    Weather(sim)
    async with asyncio.TaskGroup() as group:
        for conversation in range(12):
            group.create_task(people(sim, conversation, 20))
    await sim.idle()
    return sim, sim.clock.passed


def trace(sim: Simulation) -> list[tuple[str, str]]:
    return [(e.tag(event), event.recorded_at) for event in sim.ledger.book.events]


@pytest.mark.parametrize("seed", [*range(9), 10])  # In the hours of each, something is parked.
def test_whatever_happens_all_is_settled_once_and_in_order(seed: int) -> None:
    print(f"seed {seed}")
    sim, passed = loop.run(lambda: hours(seed))
    events = sim.ledger.book.events
    positions = {event.id: position for position, event in enumerate(events)}
    lanes = defaultdict(list)
    for side, calls in (("kommo", sim.kommo.calls), ("messenger", sim.messenger.calls)):
        for call in calls:
            lanes[call.event.conversation, side].append(positions[call.event.id])
    assert all(order == sorted(order) for order in lanes.values()), "something was overtaken"
    for event in events:
        if not isinstance(event, e.MessageSent | e.MessageEdited | e.Status) or not event.push:
            continue
        message = sim.ledger.book.states[event.stream]
        assert isinstance(message, Message)
        ended = message.deliveries.get(event.id, "").startswith(("completed", "parked"))
        assert ended or message.seen.keys() & {"message.accepted", "message.failed"}
    failed = {event.message for event in sim.events(e.MessageFailed)}
    assert not failed & sim.kommo.history.keys(), "Kommo has what is recorded as failed"
    assert all(later - at >= RECONNECT_SECONDS for at, later in pairwise(sim.kommo.connects))
    delivered = sim.events(e.MessageAccepted, e.DeliveryCompleted)
    assert len(delivered) > 10 * len(parked(sim)) > 0
    assert passed > HOUR


def test_the_same_seed_gives_the_same_hours_in_less_than_a_second() -> None:
    began = time.process_time()
    (first, passed), (second, _) = (loop.run(lambda: hours(7)) for _ in range(2))
    assert trace(first) == trace(second)
    assert passed > HOUR
    assert time.process_time() - began < 1
