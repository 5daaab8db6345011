"""All processes together call Kommo no more often than it takes; live calls first; a refusal holds for all."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from time import monotonic
from typing import Any

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app import budget, permits
from app.budget import Api, Budget, Crowded
from app.client import Answer, Unreached
from app.serve import migrate
from app.setup import Budgets

ACCOUNT = "52e591f7-c98f-4255-8495-827210138c81"
OTHER = "52e591f7-c98f-4255-8495-827210138c82"
OK = Answer(200, "application/json", 0.0, b"{}")
PAGE = Answer(200, "text/html", 0.0, b"<html>blocked</html>")
CRM_PER_SECOND, CHATS_PER_SECOND = 7.0, 400.0
RATES = Budgets(crm_per_second=CRM_PER_SECOND, chats_per_second=CHATS_PER_SECOND)
ROW = "SELECT rate, level, closed, refusals FROM ledger.budgets WHERE account = %s AND api = %s"


def refusal(retry_after: float = 0.0) -> Answer:
    return Answer(429, "application/json", retry_after, b"")


@pytest.fixture
async def url(database_url: str) -> str:
    await migrate(database_url)
    return database_url


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
            await each.told(ACCOUNT, api, OK)

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


@pytest.mark.parametrize("many", [1, 4])
async def test_no_second_sees_more_calls_than_the_budget(url: str, many: int) -> None:
    async with processes(url, many) as budgets:
        moments = await calling(budgets, 5.0)
    burst = CHATS_PER_SECOND * permits.BURST_SECONDS
    assert most_within(moments, 1.0) <= CHATS_PER_SECOND * 1.2 + burst
    assert CHATS_PER_SECOND * 0.7 <= len(moments) / 5.0 <= CHATS_PER_SECOND * 1.1


async def test_the_crm_is_called_seven_times_a_second_by_all_processes_together(url: str) -> None:
    async with processes(url, 3) as budgets:
        moments = await calling(budgets, 4.0, api="crm", callers=3)
    assert most_within(moments, 0.99) <= CRM_PER_SECOND + 1
    assert CRM_PER_SECOND * 0.8 <= (len(moments) - 1) / 4.0 <= CRM_PER_SECOND * 1.05
