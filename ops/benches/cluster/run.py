"""One fault after the other, each under traffic, and its figures.

Traffic flows, something breaks and stays broken for some seconds. Where somebody takes over, it also stays
broken until all that was accepted until then has arrived, or for LASTS_SECONDS_MAX. Then it is mended,
traffic goes on for a while and ends, and what was accepted has time to arrive.
"""

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from ops.benches.cluster.cluster import Cluster, running
from ops.benches.cluster.faults import TAKEN_OVER_SECONDS, Fault, catalogue
from ops.benches.cluster.laws import Verdict, judge, longest_gap
from ops.benches.cluster.strangers import Arrival
from ops.benches.cluster.traffic import Traffic
from ops.benches.measure import Figure, say

CHATS, RATE = 30, 30.0
EXAMPLES = 5
# Where the logs of all programs are afterwards, for whoever looks for a cause.
LOGS = Path(tempfile.gettempdir()) / "chatledger-cluster-logs"
BEFORE_SECONDS, AFTER_SECONDS = 2.0, 2.0
# More than is promised, so that a figure says by how much it is missed.
LASTS_SECONDS_MAX = 25.0
# A stranger that was away is tried again a minute later at the latest.
SETTLE_SECONDS_MAX = 90.0
BACK_SECONDS_MAX = 20.0  # chosen: what keeps a service from working for longer needs a person
POLL_SECONDS = 0.1
SILENCE_SECONDS_MAX = 5.0  # Kommo waits no longer for an answer.


class Cost(Figure, frozen=True):
    """What a fault cost. `value` is the longest wait from acceptance to arrival, in seconds.

    `back` is how long both services took to accept again once all was mended, in seconds,
    `without_acceptance` is the longest time in which nothing was accepted, by either service, and
    `slowest_answer` that of the requests to services that were not broken themselves.
    """

    accepted: int
    unanswered: int
    refused: int
    back: float
    without_acceptance: float
    slowest_answer: float
    repeats: int
    late_repeats: int
    lost: int
    doubled: int
    misordered: int
    examples: list[str]


async def cluster() -> list[Figure]:
    """The bench: every fault on one cluster."""
    return [figure async for figure in costs(catalogue())]


async def costs(faults: Sequence[Fault]) -> AsyncIterator[Cost]:
    """The cost of each fault, one after the other, on one cluster."""
    async with running(keep_logs=LOGS) as whole:
        for fault in faults:
            say(fault.name)
            yield await cost(whole, fault)


async def cost(cluster: Cluster, fault: Fault) -> Cost:
    """Run one fault and hold the laws against what came of it."""
    seen = len(await cluster.arrived(0))
    traffic = Traffic(cluster.services, chats=CHATS, rate=RATE, name=fault.name.replace(" ", "_"))
    running = asyncio.create_task(traffic.run())
    try:
        began = time.monotonic()
        await asyncio.sleep(BEFORE_SECONDS)
        await fault.begin(cluster)
        await asyncio.sleep(fault.seconds)
        if fault.delivers:
            await _arrive(cluster, traffic.texts, seen, LASTS_SECONDS_MAX)
        await fault.mend(cluster)
        back = await _back(cluster, traffic)
        await asyncio.sleep(AFTER_SECONDS)
        traffic.end()
        await running
    finally:
        running.cancel()
    times = began, time.monotonic(), back
    arrivals = await _arrive(cluster, traffic.texts, seen, SETTLE_SECONDS_MAX)
    missing = traffic.texts - {one.text for one in arrivals}
    verdict = judge(traffic.accepted, arrivals, await cluster.parked() if missing else set())
    figure = _figures(fault, traffic, verdict, times)
    if back > BACK_SECONDS_MAX:
        await cluster.restart()  # So that the next figure is that of its own fault.
    return figure


async def _back(cluster: Cluster, traffic: Traffic) -> float:
    """Wait until both services accept again, but not for ever; returns after how many seconds they did."""
    since = time.monotonic()
    while (waited := time.monotonic() - since) <= BACK_SECONDS_MAX:
        seconds = [traffic.back(each, since) for each in cluster.services]
        if None not in seconds:
            return max(each or 0.0 for each in seconds)
        await asyncio.sleep(POLL_SECONDS)
    return waited


async def _arrive(cluster: Cluster, texts: set[str], seen: int, seconds: float) -> list[Arrival]:
    """Wait until all the texts have arrived, or for so long; returns what has."""
    end = time.monotonic() + seconds
    while True:
        arrivals = await cluster.arrived(seen)
        if texts <= {one.text for one in arrivals} or time.monotonic() > end:
            return arrivals
        await asyncio.sleep(POLL_SECONDS)


def _figures(fault: Fault, traffic: Traffic, verdict: Verdict, times: tuple[float, float, float]) -> Cost:
    began, ended, back = times
    moments = [one.at for each in traffic.accepted.values() for one in each]
    slowest = max((one.seconds for one in traffic.requests if not one.hit), default=0.0)
    statuses = traffic.refused
    in_time = verdict.slowest <= TAKEN_OVER_SECONDS or not fault.delivers
    return Cost(
        name=f"cluster: {fault.name}",
        value=round(verdict.slowest, 1),
        unit="s",
        baseline=None,
        ratio=None,
        target="15" if fault.delivers else "as long as it lasts",
        holds=verdict.holds and in_time and slowest <= SILENCE_SECONDS_MAX and back <= BACK_SECONDS_MAX,
        accepted=len(moments),
        unanswered=statuses.pop(0, 0),
        refused=statuses.total(),
        back=round(back, 1),
        without_acceptance=round(longest_gap(moments, began, ended), 1),
        slowest_answer=round(slowest, 1),
        repeats=verdict.repeats,
        late_repeats=verdict.late,
        lost=len(verdict.lost),
        doubled=len(verdict.doubled),
        misordered=len(verdict.misordered),
        examples=[*verdict.lost, *verdict.doubled, *verdict.misordered][:EXAMPLES],
    )
