"""An outcome whose stream is damaged is tried ever less often, and told; nothing of it is lost."""

import asyncio
import logging
import random

import pytest

from app.database.leases import Fence
from app.delivery.settle import Settle
from app.ledger.writer import LedgerUnavailable, Recorded, Unrecordable
from app.metrics import UNRECORDED
from domain import commands as c
from tests.support.ledgers.decisions import Now, customer


class Fast:
    """A clock whose waits take no time, and which remembers them."""

    def __init__(self) -> None:
        self.waits: list[float] = []

    def time(self) -> float:
        return 1.0 + sum(self.waits)

    def now_ms(self) -> int:
        return 1_795_000_000_000

    async def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        await asyncio.sleep(0)


class Damaged:
    """A ledger that refuses a command so many times, each in the same way."""

    def __init__(self, error: Exception, times: int) -> None:
        self.error, self.times, self.unrecorded = error, times, 0.0

    async def submit(self, command: c.AnyCommand, *, fence: Fence | None = None) -> Recorded:
        self.unrecorded = max(self.unrecorded, UNRECORDED._value.get())
        self.times -= 1
        if self.times >= 0:
            raise self.error
        return Recorded(7, False, False, None, 7)


async def recorded(error: Exception, times: int) -> tuple[Fast, Damaged]:
    clock, ledger = Fast(), Damaged(error, times)
    settle = Settle(ledger, None, None, clock, random.random)  # type: ignore[arg-type]  # Neither is asked.
    accept = c.Accept(**Now(1).stamp("kommo"), stream=customer(1).stream, side="kommo", remote_id="k-1")
    assert await settle._record(accept) == 7
    return clock, ledger


async def test_a_damaged_stream_is_tried_ever_less_often_and_told_once_a_minute(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It was tried, and logged, twice a second for ever."""
    with caplog.at_level(logging.WARNING):
        clock, ledger = await recorded(Unrecordable("the ledger cannot read its past"), 60)
    assert clock.waits[:3] == [0.5, 1.0, 2.0]
    assert clock.waits[-1] == 60
    minutes = sum(clock.waits) / 60
    assert minutes - 2 <= len(caplog.records) <= minutes + 2
    assert customer(1).stream in caplog.text
    assert (ledger.unrecorded, UNRECORDED._value.get()) == (1, 0)


async def test_a_database_that_is_away_is_asked_again_as_soon_as_ever() -> None:
    clock, _ = await recorded(LedgerUnavailable("no database"), 20)
    assert set(clock.waits) == {0.5}
