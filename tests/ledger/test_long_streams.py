"""A message with thousands of facts costs no more than another, and two processes agree about it."""

import asyncio
import time
from collections.abc import AsyncIterator

import psycopg
import pytest
from msgspec.structs import replace

from app import clock
from app.ledger.reader import StreamReader
from app.ledger.streams import LONG_EVENTS_MAX, LONG_EVENTS_MIN, LongStreams
from app.ledger.writer import Ledger, Recorded
from app.service.service import migrate
from domain import commands as c
from domain import events as e
from domain.ids import MESSENGER, message_id
from domain.state import Edited, Message
from ops.benches import samples
from tests.support.ledgers.decisions import Now, text

FACTS = 20_000
BUSY, CALM = (message_id(samples.LINK, MESSENGER, name) for name in ("busy", "calm"))


@pytest.fixture
async def url(database_url: str) -> str:
    await migrate(database_url)
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:
        await samples.write(connection, samples.busy("busy", FACTS, clock.now_ms()))
        await samples.write(connection, samples.busy("calm", 5, clock.now_ms()))
    return database_url


@pytest.fixture
async def ledgers(url: str) -> AsyncIterator[tuple[Ledger, Ledger]]:
    """Two processes, as far as the ledger is concerned."""
    one, two = Ledger(url, lambda _: None), Ledger(url, lambda _: None)
    await one.open()
    await two.open()
    yield one, two
    await one.close()
    await two.close()


def edit(n: int, stream: str) -> c.Edit:
    command = c.Edit(**Now(n).stamp("messenger"), streams=(stream,), content=text(f"edit {n}"))
    return replace(command, scope=samples.LINK)


async def seconds(ledger: Ledger, stream: str, first: int) -> float:
    """The median of 15 edits, one after the other."""
    times = []
    for n in range(first, first + 15):
        start = time.perf_counter()
        await ledger.submit(edit(n, stream))
        times.append(time.perf_counter() - start)
    return sorted(times)[7]


async def test_an_action_on_a_busy_message_costs_no_more(ledgers: tuple[Ledger, Ledger]) -> None:
    ledger, _ = ledgers
    await ledger.submit(edit(1, BUSY))
    calm, busy = await seconds(ledger, CALM, 100), await seconds(ledger, BUSY, 200)
    assert busy < 5 * calm  # it was a thousand times; `./ops/bench busy` measures 1.5


async def test_the_first_action_on_a_busy_message_lets_the_loop_go_on(
    ledgers: tuple[Ledger, Ledger],
) -> None:
    ledger, _ = ledgers
    turns, recorded = 0, asyncio.ensure_future(ledger.submit(edit(1, BUSY)))
    while not recorded.done():
        turns += 1
        await asyncio.sleep(0)
    assert turns > FACTS / 1000


async def test_two_processes_that_remember_a_busy_message_agree(ledgers: tuple[Ledger, Ledger]) -> None:
    positions = []
    for n in range(1, 31):
        outcome = await ledgers[n % 2].submit(edit(n, BUSY))
        assert not outcome.duplicate
        positions.append(outcome.position)
    assert positions == list(range(positions[0] or 0, (positions[0] or 0) + 30))
    both = (ledgers[n % 2].submit(edit(n, BUSY)) for n in range(31, 71))
    outcomes = await asyncio.gather(*both)
    assert len({one.position for one in outcomes}) == 40
    for ledger in ledgers:  # each knows what the other has recorded, and where
        for n, position in enumerate(positions, 1):
            stamped = replace(edit(n, BUSY), id=clock.new_id(clock.now_ms()))
            again = await ledger.submit(stamped)
            assert (again.duplicate, again.position) == (True, position)


async def test_a_repeat_of_an_old_fact_reports_its_position(ledgers: tuple[Ledger, Ledger]) -> None:
    ledger, other = ledgers
    first = await ledger.submit(edit(1, BUSY))
    await ledger.submit(edit(2, BUSY))
    for one in ledgers:
        outcome = await one.submit(replace(edit(1, BUSY), id=clock.new_id(clock.now_ms())))
        assert outcome == Recorded(first.position, True, False, BUSY, None)
    unknown_outcome = await other.submit(edit(1, BUSY))  # the same command again is no duplicate
    assert (unknown_outcome.duplicate, unknown_outcome.position) == (False, first.position)


async def test_delivery_reads_the_state_of_a_busy_message_once(
    url: str, ledgers: tuple[Ledger, Ledger]
) -> None:
    reader = StreamReader(url)
    before = (await reader.states([BUSY, CALM]))[BUSY]
    await ledgers[0].submit(edit(1, BUSY))
    states = await reader.states([BUSY, CALM])
    assert states[BUSY].version == before.version + 1
    assert isinstance(states[BUSY], Message)
    fresh = StreamReader(url)
    assert await fresh.states([BUSY, CALM]) == states
    assert [type(one) for one in await reader.sends(BUSY)] == [e.MessageSent]
    await reader.close()
    await fresh.close()


def test_the_memory_of_long_streams_is_bounded() -> None:
    memory = LongStreams()
    memory.keep("short", Message(LONG_EVENTS_MIN - 1))
    assert memory.get("short") is None
    for n in range(30):
        memory.keep(f"stream {n}", Message(LONG_EVENTS_MAX // 10))
    assert [n for n in range(30) if memory.get(f"stream {n}")] == list(range(20, 30))
    memory.keep("stream 29", Message(LONG_EVENTS_MIN))  # older than what is known
    assert memory.get("stream 29") == Message(LONG_EVENTS_MAX // 10)
    large = e.MessageEdited(
        id="1", stream="s", version=1, channel="acme", at="", recorded_at="", by="messenger", schema=1,
        content=text("x" * 60_000),
    )  # fmt: skip
    waiting = Message(LONG_EVENTS_MIN)
    waiting = replace(waiting, waiting=waiting.waiting.put(1, large).put(2, large))
    memory.keep("small", waiting)
    assert memory.get("small") is not None
    for n in range(3, 40):
        waiting = replace(waiting, version=LONG_EVENTS_MIN + n, waiting=waiting.waiting.put(n, large))
    memory.keep("small", waiting)
    assert memory.get("small") is None
    memory = LongStreams()
    edited = Edited("", 1, text("x" * 300_000))
    for n in range(300):
        memory.keep(f"edited {n}", replace(Message(LONG_EVENTS_MIN), edited=edited))
    assert 100 < sum(memory.get(f"edited {n}") is not None for n in range(300)) < 170  # some 50 MB of texts


LOSE = """ALTER TABLE ledger.stored_events DISABLE TRIGGER append_only;
DELETE FROM ledger.stored_events WHERE notification_id > {};
ALTER TABLE ledger.stored_events ENABLE TRIGGER append_only;
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
  WHERE datname = current_database() AND pid <> pg_backend_pid()"""
VERSIONS = "SELECT count(*), max(originator_version) FROM ledger.stored_events WHERE originator_id = %s"


async def test_what_a_database_that_takes_over_lacks_is_not_remembered(
    url: str, ledgers: tuple[Ledger, Ledger]
) -> None:
    """As after a failover to a standby that was behind: the next fact left a gap in the message's stream."""
    ledger, _ = ledgers
    reader = StreamReader(url)
    first = await ledger.submit(edit(1, BUSY))
    for n in range(2, 6):
        await ledger.submit(edit(n, BUSY))
    kept = (await reader.states([BUSY]))[BUSY].version - 4
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        await connection.execute(LOSE.format(first.position).encode())
        again = await ledger.submit(edit(6, BUSY))
        assert again.position == (first.position or 0) + 1
        row = await (await connection.execute(VERSIONS, (BUSY,))).fetchone()
        assert row == (kept + 1, kept + 1)
    with pytest.raises(psycopg.OperationalError):
        await reader.states([BUSY])
    assert (await reader.states([BUSY]))[BUSY].version == kept + 1
    await reader.close()
