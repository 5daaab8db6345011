"""All processes together call Kommo no more often than it takes; live calls first; refusals hold for all."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from time import monotonic
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.config.file import Budgets
from app.database import call_budgets
from app.http_client import Answer, Unreached
from app.kommo import budget
from app.kommo.budget import Api, Budget, BudgetQueueFull
from app.servers.servers import Servers
from app.service.service import migrate
from tests.support.databases import database
from tests.support.ids import ACCOUNT, OTHER_ACCOUNT
from tests.support.system import chat, story_on

OK = Answer(200, "application/json", 0.0, b"{}")
PAGE = Answer(200, "text/html", 0.0, b"<html>blocked</html>")
CRM_PER_SECOND, CHATS_PER_SECOND = 7.0, 400.0
RATES = Budgets(crm_per_second=CRM_PER_SECOND, chats_per_second=CHATS_PER_SECOND)
ROW = "SELECT rate, level, closed, refusals FROM ledger.budgets WHERE account = %s AND api = %s"


def refusal(retry_after: float = 0.0) -> Answer:
    return Answer(429, "application/json", retry_after, b"")


@pytest.fixture(scope="module")
async def made(servers: Servers) -> AsyncIterator[str]:
    """A database that all these tests share."""
    async with database(servers) as url:
        await migrate(url)
        yield url


@pytest.fixture
async def url(made: str) -> str:
    """The same, without a budget."""
    async with await psycopg.AsyncConnection.connect(made, autocommit=True) as connection:
        await connection.execute("TRUNCATE ledger.budgets")
    return made


@asynccontextmanager
async def processes(url: str, many: int = 1, rates: Budgets = RATES) -> AsyncIterator[list[Budget]]:
    """Budgets that know nothing of each other but through the database."""
    made = [Budget(url, rates) for _ in range(many)]
    try:
        yield made
    finally:
        await asyncio.gather(*(each.close() for each in made))


async def row(url: str, api: Api = "chats") -> tuple[Any, ...]:
    async with await psycopg.AsyncConnection.connect(url) as connection:
        found = await (await connection.execute(ROW, (ACCOUNT, api))).fetchone()
    assert found is not None
    return found


async def calling(budgets: list[Budget], seconds: float, api: Api = "chats", **more: Any) -> list[float]:
    """The moments of the calls of eager callers, so many in each process, over a time."""
    moments: list[float] = []
    callers = more.pop("callers", 16)

    async def call(each: Budget) -> None:
        while True:
            await each.take(ACCOUNT, api, **more)
            moments.append(monotonic())
            await asyncio.sleep(0)
            await each.observe(ACCOUNT, api, OK)

    await during(seconds, *(lambda each=each: call(each) for each in budgets for _ in range(callers)))
    return moments


async def during(seconds: float, *works: Callable[[], Coroutine[Any, Any, Any]]) -> None:
    """Let endless works run for so long; an error in one is an error of the test."""
    tasks = [asyncio.create_task(work()) for work in works]
    await asyncio.sleep(seconds)
    for task in tasks:
        task.cancel()
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(outcome, asyncio.CancelledError), outcome


def most_within(moments: list[float], seconds: float) -> int:
    """The largest number of moments in any window of that length."""
    most = first = 0
    for last, moment in enumerate(moments):
        while moments[first] <= moment - seconds:
            first += 1
        most = max(most, last - first + 1)
    return most


async def taking(each: Budget, api: Api = "chats", **more: Any) -> float:
    """How long one call has to wait, in seconds."""
    begin = monotonic()
    await each.take(ACCOUNT, api, **more)
    return monotonic() - begin


async def calls(each: Budget) -> float:
    """The same for a call that succeeds."""
    waited = await taking(each)
    await each.observe(ACCOUNT, "chats", OK)
    return waited


@pytest.mark.parametrize("many", [1, 4])
async def test_no_second_sees_more_calls_than_the_budget(url: str, many: int) -> None:
    async with processes(url, many) as budgets:
        moments = await calling(budgets, 5.0)
    burst = CHATS_PER_SECOND * call_budgets.BURST_SECONDS
    assert most_within(moments, 1.0) <= CHATS_PER_SECOND * 1.2 + burst
    assert CHATS_PER_SECOND * 0.7 <= len(moments) / 5.0 <= CHATS_PER_SECOND * 1.1


async def test_the_crm_is_called_seven_times_a_second_by_all_processes_together(url: str) -> None:
    async with processes(url, 3) as budgets:
        moments = await calling(budgets, 4.0, api="crm", callers=3)
    assert most_within(moments, 0.99) <= CRM_PER_SECOND + 1
    assert CRM_PER_SECOND * 0.8 <= (len(moments) - 1) / 4.0 <= CRM_PER_SECOND * 1.05


async def test_live_calls_go_first_and_others_are_not_starved(url: str) -> None:
    async with processes(url, 2) as (eager, importing):
        live, other = await asyncio.gather(
            calling([eager], 3.0, live=True), calling([importing], 3.0, live=False)
        )
    assert len(live) >= 3.0 * CHATS_PER_SECOND * 0.7
    assert 3.0 * CHATS_PER_SECOND * 0.03 <= len(other) <= len(live) / 4


async def test_others_get_what_a_few_live_calls_leave_and_those_hardly_wait(url: str) -> None:
    waits: list[float] = []

    async def write(each: Budget) -> None:
        while True:
            waits.append(await taking(each))
            await asyncio.sleep(0.02)

    async with processes(url, 2) as (eager, importing):
        other, _ = await asyncio.gather(
            calling([importing], 3.0, live=False), during(3.0, lambda: write(eager))
        )
    assert len(other) >= 3.0 * CHATS_PER_SECOND * 0.6
    assert sorted(waits)[len(waits) // 2] < 0.02


async def test_at_200_calls_a_second_a_call_waits_for_microseconds(url: str) -> None:
    waits = []
    async with processes(url, rates=Budgets()) as (each,):
        for _ in range(300):
            waits.append(await taking(each))
            await each.observe(ACCOUNT, "chats", OK)
            await asyncio.sleep(0.005)
    assert sorted(waits)[150] < 0.000_1


async def test_the_first_come_are_the_first_served(url: str) -> None:
    served: list[int] = []

    async def call(number: int) -> None:
        await each.take(ACCOUNT, "crm")
        served.append(number)

    async with processes(url) as (each,):
        await asyncio.gather(*map(call, range(8)))
    assert served == list(range(8))


@pytest.mark.parametrize("answer", [refusal(1.5), Answer(200, "text/html", 1.5, PAGE.body)])
async def test_a_refusal_holds_on_every_process_until_its_time_is_over(url: str, answer: Answer) -> None:
    async with processes(url, 3) as (refused, *others):
        await calling([refused, *others], 0.3)
        await refused.observe(ACCOUNT, "chats", answer)
        await asyncio.sleep(budget.LEASE_SECONDS)
        waits = await asyncio.gather(*(calls(each) for each in (refused, *others)))
        assert min(waits) >= 1.5 - budget.LEASE_SECONDS - 0.05
        assert max(waits) < 4.0
        assert await taking(others[1], "crm") < 0.5


async def test_other_accounts_are_not_held(url: str) -> None:
    async with processes(url) as (each,):
        await each.observe(ACCOUNT, "chats", refusal(30))
        async with asyncio.timeout(1):
            await each.take(OTHER_ACCOUNT, "chats")


async def test_after_a_pause_one_call_passes_and_the_others_once_it_has_succeeded(url: str) -> None:
    async with processes(url, 2) as (one, two):
        await one.observe(ACCOUNT, "chats", refusal(0.5))
        waiting = [asyncio.create_task(taking(each)) for each in (one, two) for _ in range(3)]
        await asyncio.sleep(2.0)
        assert sum(task.done() for task in waiting) == 1
        probing = one if any(task.done() for task in waiting[:3]) else two
        await probing.observe(ACCOUNT, "chats", OK)
        await asyncio.wait_for(asyncio.gather(*waiting), 2.0)


async def test_a_pause_without_a_time_grows_with_each_refusal(url: str) -> None:
    async with processes(url) as (each,):
        for _ in range(call_budgets.REFUSALS_AT_ONCE + 1):
            await each.observe(ACCOUNT, "chats", refusal())
            before = await taking(each)
        assert 1.9 <= before < 3.5
        await each.observe(ACCOUNT, "chats", refusal(100_000))
        with pytest.raises(Unreached):
            await each.take(ACCOUNT, "chats", within_seconds=0.1)
        async with await psycopg.AsyncConnection.connect(url) as connection:
            cursor = await connection.execute("SELECT paused_until <= now() + '1 hour' FROM ledger.budgets")
            assert await cursor.fetchone() == (True,)


async def test_the_rate_halves_at_most_once_a_second_and_not_below_one(url: str) -> None:
    async with processes(url, rates=Budgets(chats_per_second=3)) as (each,):
        for _ in range(5):
            await each.observe(ACCOUNT, "chats", refusal(0.1))
        assert (await row(url))[0] == 1.5
        await asyncio.sleep(call_budgets.CUT_SECONDS)
        await each.observe(ACCOUNT, "chats", refusal(0.1))
        assert (await row(url))[0] == 1.0


async def test_the_rate_grows_back_while_calls_are_taken_and_not_above_what_is_configured(url: str) -> None:
    async with processes(url) as (each,):
        await each.observe(ACCOUNT, "chats", refusal(0.1))
        await calling([each], 2.0)
        low = (await row(url))[0]
        assert CHATS_PER_SECOND / 2 < low < CHATS_PER_SECOND * 0.6
        await calling([each], 1.0)
        assert low < (await row(url))[0] < CHATS_PER_SECOND
        async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
            await connection.execute("UPDATE ledger.budgets SET rate = %s", (CHATS_PER_SECOND - 1,))
        await calling([each], 1.5)
        assert (await row(url))[0] == CHATS_PER_SECOND


async def test_who_gives_up_waiting_takes_nothing_with_him(url: str) -> None:
    async with processes(url) as (each,):
        await each.take(ACCOUNT, "crm")
        with pytest.raises(Unreached):
            await each.take(ACCOUNT, "crm", within_seconds=0.01)
        assert await taking(each, "crm") < 1.5 / CRM_PER_SECOND


async def test_more_than_so_many_do_not_wait(url: str) -> None:
    async with processes(url) as (each,):
        await each.observe(ACCOUNT, "chats", refusal(60))
        waiting = [asyncio.create_task(each.take(ACCOUNT, "chats")) for _ in range(budget.WAITING_MAX)]
        await asyncio.sleep(0.1)
        with pytest.raises(BudgetQueueFull):
            await each.take(ACCOUNT, "chats")
        assert not any(task.done() for task in waiting)
        await each.close()
        with pytest.raises(Unreached):
            await waiting[0]
        await asyncio.gather(*waiting, return_exceptions=True)


async def test_calls_wait_while_the_database_is_away_and_go_on_when_it_is_back(url: str) -> None:
    async with processes(url) as (each,), await psycopg.AsyncConnection.connect(url, autocommit=True) as by:
        await each.take(ACCOUNT, "crm")
        await by.execute("ALTER TABLE ledger.budgets RENAME TO gone")
        waiting = asyncio.create_task(each.take(ACCOUNT, "crm"))
        await asyncio.sleep(0.7)
        assert not waiting.done()
        await by.execute("ALTER TABLE ledger.gone RENAME TO budgets")
        await by.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        await asyncio.wait_for(waiting, 3.0)


ASKED = st.tuples(st.integers(0, 30), st.integers(0, 30), st.integers(0, 30), st.floats(0, 0.05))
ASK = """SELECT live_given, other_given, wait_seconds, extract(epoch FROM clock_timestamp())::float8
 FROM ledger.take_permits(%s, 'chats', %s, %s, %s, %s, 0, true)"""


@given(asked=st.lists(ASKED, min_size=1, max_size=15), rate=st.sampled_from([1.0, 7.0, 50.0, 400.0]))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_whatever_is_asked_no_more_is_given_than_the_rate_and_what_the_bucket_holds(
    url: str, asked: list[tuple[int, int, int, float]], rate: float
) -> None:
    account = secrets.token_hex(8)
    total = 0
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        cursor = await connection.execute("SELECT extract(epoch FROM clock_timestamp())::float8")
        ((begin,),) = await cursor.fetchall()
        for live, ahead, other, pause in asked:
            cursor = await connection.execute(ASK, (account, rate, live, ahead, other))
            found = await cursor.fetchone()
            assert found is not None
            live_given, other_given, wait_seconds, now = found
            total += live_given + other_given
            credit = max(1.0, rate * call_budgets.BURST_SECONDS * call_budgets.SHARE)
            burst = max(1.0, rate * call_budgets.BURST_SECONDS)
            assert total <= burst + credit + rate * (now - begin) + 1
            assert 0 <= live_given <= live + ahead
            assert 0 <= other_given <= other
            assert wait_seconds >= 0
            await asyncio.sleep(pause)


async def test_a_refused_message_holds_the_account_and_all_arrive_once(servers: Servers) -> None:
    """Told through the whole service: nothing is sent while Kommo asks to wait."""
    names = [chat() for _ in range(6)]
    async with story_on(servers) as story:
        await story.customer(names[0])
        await story.arrived(names[0])
        await story.fault("kommo.new_message", "429", times=1, retry_after=2)
        refused = await story.customer(names[0], "refused")
        await story.until_recorded(refused, "delivery.deferred")
        begin = monotonic()
        for name in names[1:]:
            await story.customer(name, "later")
        for name in names[1:]:
            await story.arrived(name)
            assert monotonic() - begin > 1.5
        await story.arrived(names[0], 2)
        await story.settled()
        assert [len(story.kommo(name)) for name in names] == [2, 1, 1, 1, 1, 1]
