"""A process that is gone, suspended or cut off is replaced within 15 s, and does nothing more afterwards."""

import asyncio
import signal
import time
from collections.abc import Callable, Coroutine, Generator
from contextlib import AsyncExitStack
from itertools import count
from pathlib import Path
from typing import Any, cast

import psycopg

from app.database.leases import Fence, LeaseLost
from app.delivery.job import Job
from app.delivery.shares import lease_of
from app.servers.servers import Servers
from domain import events as e
from domain import ids
from tests.support.databases import database
from tests.support.deliveries import line_of
from tests.support.failover.deliverers import KEYS, all_is_well, deliverer
from tests.support.failover.proxy import Way
from tests.support.processes import started
from tests.support.system import Story, Traffic, broker, chat, story_on, telling

TAKEN_OVER_SECONDS = 15.0
HOLDERS = """SELECT count(*) FROM ledger.leases WHERE until > clock_timestamp() AND name ~ '^deliver [0-9]+$'
 GROUP BY holder ORDER BY 1"""
LAST_SENT = """SELECT notification_id, state FROM ledger.stored_events
 WHERE topic = 'message.sent' ORDER BY 1 DESC LIMIT 1"""
HELD = """INSERT INTO ledger.leases (name, holder, token, until) VALUES (%s, 'first', 1, 'infinity')
 ON CONFLICT (name) DO UPDATE SET token = 1"""
TAKEN = "UPDATE ledger.leases SET holder = 'second', token = 2 WHERE name = %s"


class Steps:
    """Awaits a coroutine; `before` is called with the number of each step, after the await before it."""

    def __init__(self, work: Coroutine[Any, Any, Any], before: Callable[[int], None]) -> None:
        self._work, self._before, self._numbers = work, before, count()

    def __await__(self) -> Generator[Any, Any, Any]:
        return cast("Generator[Any, Any, Any]", self)

    def __iter__(self) -> "Steps":
        return self

    def __next__(self) -> Any:
        return self.send(None)

    def send(self, value: Any) -> Any:
        self._before(next(self._numbers))
        return self._work.send(value)

    def throw(self, error: BaseException) -> Any:
        self._before(next(self._numbers))
        return self._work.throw(error)


async def test_who_is_suspended_anywhere_in_a_push_sends_and_records_nothing_more(servers: Servers) -> None:
    """The lease ends at one await after the other, of a push to the messenger and of one to Kommo."""
    async with story_on(servers, roles="web,relay,project") as story:
        for write in (story.customer, story.manager):
            steps, lost = 0, 0
            while steps >= 0:
                if await suspended(story, write, steps):
                    steps, lost = steps + 1, lost + 1
                else:
                    steps = -1
            assert lost >= 3  # Before the call, while the answer is awaited, before the outcome is recorded.


async def suspended(story: Story, write: Callable[[str], Coroutine[Any, Any, object]], at: int) -> bool:
    """Push a new message, and take its lease away before a step; whether the push had that many."""
    assert story.run
    services, name = story.run.services, chat()
    await write(name)
    before: list[tuple[int, int]] = []
    with psycopg.connect(services.settings.database_url or "", autocommit=True) as other:
        row = other.execute(LAST_SENT).fetchone()
        assert row
        event = e.decode(row[1])
        assert isinstance(event, e.MessageSent)
        fence = Fence(lease_of(ids.partition(event.conversation)), 1)
        other.execute(HELD, (fence.lease,))

        def check() -> None:
            if before:
                raise LeaseLost

        job = Job(row[0], event, fence=fence, check=check)

        def take_away(step: int) -> None:
            if step == at:
                other.execute(TAKEN, (fence.lease,))
                before.append(done(story, name, other))

        async with line_of(services) as line:
            try:
                await Steps(line.settle.settle(job), take_away)
            except LeaseLost:
                assert before
            await asyncio.sleep(0.05)  # What has been sent has arrived.
        if before:
            assert done(story, name, other) == before[0]
    return bool(before)


def done(story: Story, name: str, other: "psycopg.Connection[Any]") -> tuple[int, int]:
    """How many calls either side had, and how many events there are."""
    row = other.execute("SELECT max(notification_id) FROM ledger.stored_events").fetchone()
    assert row
    return len(story.kommo(name)) + len(story.pushes(name)), row[0]


async def test_whoever_is_killed_suspended_or_cut_off_is_replaced(servers: Servers, tmp_path: Path) -> None:
    """Web, relay and views in this process; of four that deliver, three are lost at once, each in its way."""
    async with (
        database(servers) as url,
        broker() as nats,
        telling(nats.folder, url, nats.url, roles="web,relay,project") as story,
        Way(url).listening() as way,
        AsyncExitStack() as stack,
    ):
        given = KEYS | {"CHATLEDGER_DATABASE_URL": url, "CHATLEDGER_NATS_URL": nats.url}
        given |= {"CHATLEDGER_KOMMO_URL": story.sandbox.url}
        killed, stopped, lasting = (deliverer(tmp_path / name, **given) for name in "abc")
        cut = deliverer(tmp_path / "d", **given | {"CHATLEDGER_DATABASE_URL": way.url})
        processes = (killed, stopped, lasting, cut)
        await asyncio.gather(*(stack.enter_async_context(started(one)) for one in processes))
        await shared(url, [16, 16, 16, 16])
        traffic = Traffic(story)
        traffic.begin()
        await asyncio.sleep(1)
        began = time.monotonic()
        way.close()
        assert stopped.child
        stopped.child.send_signal(signal.SIGSTOP)
        await killed.end(signal.SIGKILL)
        await shared(url, [64])
        assert time.monotonic() - began < TAKEN_OVER_SECONDS
        await asyncio.sleep(1)
        stopped.child.send_signal(signal.SIGCONT)
        way.open()
        await shared(url, [21, 21, 22])
        await traffic.end()
        await all_is_well(story, traffic)


async def shared(url: str, sizes: list[int]) -> None:
    """Wait until the partitions are shared so."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as db, asyncio.timeout(30):
        while [count for (count,) in await (await db.execute(HOLDERS)).fetchall()] != sizes:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
