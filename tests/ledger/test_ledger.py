"""On a real PostgreSQL: every command is answered truthfully, once, and the order has no gaps."""

import asyncio
import multiprocessing
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise

import psycopg
import pytest
from msgspec.structs import replace

from app.database import names
from app.database.connection import connect as connect_
from app.ledger import writer as module
from app.ledger.writer import EventTooLarge, Ledger, LedgerFull, LedgerUnavailable, Recorded
from app.service.service import migrate
from domain import commands as c
from domain import events as e
from domain.decide import OwnMessage, Unknown
from tests.support.ledgers.decisions import (
    Now,
    confirm,
    customer,
    end,
    kommo,
    manager,
    operator,
    own,
    text,
    typing,
)

LOCK = f"SELECT pg_advisory_xact_lock({names.APPEND_LOCK})"
KILL = """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
 WHERE datname = current_database() AND pid <> pg_backend_pid() AND query LIKE '%ledger.%'"""


@pytest.fixture
async def url(database_url: str) -> str:
    await migrate(database_url)
    return database_url


@asynccontextmanager
async def opened(url: str, *, writers: int = 2) -> AsyncIterator[Ledger]:
    ledger = Ledger(url, lambda _: None, writers=writers)
    await ledger.open()
    try:
        yield ledger
    finally:
        await ledger.close()


@asynccontextmanager
async def owner(url: str) -> AsyncIterator[psycopg.AsyncConnection[tuple[object, ...]]]:
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        yield connection


async def stored(url: str) -> list[e.AnyEvent]:
    """All events by position, which must be 1, 2, 3 …; every stream's versions too."""
    async with owner(url) as connection:
        rows = await (
            await connection.execute(
                "SELECT notification_id, originator_id::text, originator_version, topic, state"
                " FROM ledger.stored_events ORDER BY notification_id"
            )
        ).fetchall()
    assert [row[0] for row in rows] == list(range(1, len(rows) + 1))
    events = [e.decode(row[4]) for row in rows]  # type: ignore[arg-type]  # a bytea column
    assert [(one.stream, one.version, e.tag(one)) for one in events] == [row[1:4] for row in rows]
    versions: Counter[str] = Counter()
    for one in events:
        versions[one.stream] += 1
        assert one.version == versions[one.stream]
    return events


def sends(count: int, *, first: int = 1, chats: int = 10) -> list[c.Send]:
    """Messages of several chats, each chat its own lane."""
    found = []
    for n in range(first, first + count):
        chat = f"conv-{n % chats}"
        found.append(replace(customer(n, f"m-{n}", chat=chat), lane=chat))
    return found


async def outcomes(ledger: Ledger, commands: Sequence[c.AnyCommand]) -> list[Recorded | BaseException]:
    return await asyncio.gather(*(ledger.submit(one) for one in commands), return_exceptions=True)


def taken(results: Sequence[Recorded | BaseException]) -> list[Recorded]:
    assert all(isinstance(one, Recorded) for one in results), results
    return [one for one in results if isinstance(one, Recorded)]


async def test_every_command_has_one_outcome_and_its_own_position(url: str) -> None:
    async with opened(url) as ledger:
        results = taken(await outcomes(ledger, sends(1500)))
    events = await stored(url)
    for result, command in zip(results, sends(1500), strict=True):
        assert result.position
        event = events[result.position - 1]
        assert isinstance(event, e.MessageSent)
        assert (event.own_id, event.message) == (command.own_id, result.message)


async def test_a_repeat_in_the_same_batch_and_in_a_later_one_gets_the_first_position(url: str) -> None:
    one = customer(1)
    async with opened(url) as ledger:
        first, again = taken(await outcomes(ledger, [one, replace(one, id=customer(2).id)]))
        later = await ledger.submit(replace(one, id=customer(3).id))
    assert (first.duplicate, again.duplicate, later.duplicate) == (False, True, True)
    assert first.position == again.position == later.position


async def test_commands_of_a_conversation_keep_their_order(url: str) -> None:
    async with opened(url) as ledger:
        results = taken(await outcomes(ledger, sends(600, chats=3)))
    for chat in range(3):
        positions = [result.position or 0 for result in results[chat::3]]
        assert positions == sorted(positions)


async def test_what_is_decided_about_a_conversation_finds_it_also_where_it_is_remembered(url: str) -> None:
    async with opened(url, writers=1) as ledger:
        await two_become_one(ledger)
        await ledger.submit(customer(4, "m-2"))
        ends = (end("messenger", "conv-1"), end("kommo", "chat-2"))
        begin = c.Begin(**Now(6).stamp("operator"), ends=ends, receiver=e.Party(id="u-1", name="Ann"))
        contact = c.LinkContact(**Now(7).stamp("operator"), stream=ends[0].stream, contact_id=501)
        told = await outcomes(ledger, [customer(5, "m-3"), begin, contact])
    assert all(isinstance(one, Recorded) for one in told)
    assert isinstance((await stored(url))[-1], e.ConversationLinked)


async def two_become_one(ledger: Ledger) -> None:
    """Kommo began one chat and the customer another, until a message names both."""
    await ledger.submit(manager(1, own_chat=None))
    await ledger.submit(customer(2))
    await ledger.submit(manager(3, "k-2"))


async def test_a_message_after_a_merge_belongs_to_what_is_left(url: str) -> None:
    async with opened(url, writers=1) as ledger:
        await two_become_one(ledger)
        await ledger.submit(customer(4, "m-2"))
    *_, last = await stored(url)
    assert last.conversation == end("kommo", "chat-1").stream


async def test_what_another_process_has_merged_is_not_remembered_apart(url: str) -> None:
    async with opened(url, writers=1) as one, opened(url, writers=1) as two:
        await one.submit(manager(1, own_chat=None))
        await one.submit(customer(2))
        await two.submit(manager(3, "k-2"))
        await one.submit(customer(4, "m-2"))
        await one.submit(customer(5, "m-3"))
    *_, last, latest = await stored(url)
    assert last.conversation == latest.conversation == end("kommo", "chat-1").stream


async def test_a_rule_that_is_broken_is_told_to_its_command_alone(url: str) -> None:
    commands: list[c.AnyCommand] = [customer(1), confirm(2, own("m-1"), "read"), customer(3, "m-2")]
    nothing = c.Reject(**Now(4).stamp("system"), stream=kommo("nothing"), code=905, text="")
    async with opened(url) as ledger:
        first, status, second, unknown = await outcomes(ledger, [*commands, nothing])
    assert isinstance(status, OwnMessage)
    assert isinstance(unknown, Unknown)
    assert [one.position for one in taken([first, second])] == [2, 3]


POISON = {
    "too large": customer(2, "m-poison", words="x" * 400_000),
    "a text that no encoding has": customer(2, "m-poison", words="\ud800"),
    "a content that cannot be written": customer(
        2, "m-poison", content=text("x", shared_post={"a": object()})
    ),
}


@pytest.mark.parametrize("name", POISON)
async def test_a_poison_command_fails_alone(url: str, name: str) -> None:
    poison = replace(POISON[name], lane="poison", ends=(end("messenger", "conv-poison"),))
    async with opened(url, writers=1) as ledger:
        commands = [*sends(50), poison, *sends(50, first=51)]
        results = await outcomes(ledger, commands)
        assert isinstance(results.pop(50), EventTooLarge | LedgerUnavailable)
        taken(results)
        assert (await ledger.submit(customer(200, "m-after"))).position
    assert len([one for one in await stored(url) if isinstance(one, e.MessageSent)]) == 101


async def test_a_full_queue_takes_nothing(url: str) -> None:
    async with owner(url) as blocker, opened(url, writers=1) as ledger, blocker.transaction():
        await blocker.execute(LOCK)
        room = module.QUEUE_MAX - ledger.depth
        assert ledger.has_room(room, 0)
        assert not ledger.has_room(room + 1, 0)
        assert not ledger.has_room(1, module.QUEUE_BYTES_MAX + 1)
        waiting = [ledger.submit(typing(n)) for n in range(room)]
        with pytest.raises(LedgerFull):
            ledger.submit(customer(1))
        assert ledger.depth == room
        for one in waiting:
            one.cancel()
    assert await stored(url) == []


# Several processes.


def write(url: str, process: int, count: int, answers: "multiprocessing.Queue[list[int]]") -> None:
    async def main() -> list[int]:
        async with opened(url) as ledger:
            positions: list[int] = []
            for start in range(0, count, 50):
                mine = [own_message(process, n) for n in range(start, start + 50)]
                positions += [one.position or 0 for one in taken(await outcomes(ledger, mine))]
            return positions

    answers.put(asyncio.run(main()))


def own_message(process: int, n: int) -> c.Send:
    """Every process writes to the same two conversations, and half of the messages are everybody's."""
    name = f"m-{n}" if n % 2 else f"m-{process}-{n}"
    chat = f"conv-{n % 2}"
    return replace(customer(1 + n, name, chat=chat, words=name), lane=chat)


async def test_processes_that_race_leave_no_gap_and_store_everything_once(url: str) -> None:
    context = multiprocessing.get_context("spawn")
    answers: multiprocessing.Queue[list[int]] = context.Queue()
    processes = [context.Process(target=write, args=(url, number, 200, answers)) for number in range(3)]
    for process in processes:
        process.start()
    found = [await asyncio.to_thread(answers.get, timeout=60) for _ in processes]
    for process in processes:
        await asyncio.to_thread(process.join)
    sent = [one for one in await stored(url) if isinstance(one, e.MessageSent)]
    assert len(sent) == len({one.own_id for one in sent}) == 100 + 3 * 100
    assert all(len(positions) == 200 for positions in found)
    for chat in {one.conversation for one in sent}:
        times = [one.msec for one in sent if one.conversation == chat]
        assert all(one < two for one, two in pairwise(times))


async def test_order_holds_also_when_another_writer_is_in_the_way(url: str) -> None:
    async with opened(url) as one, opened(url) as two:
        mine, theirs = sends(300, chats=2), sends(300, first=1000, chats=2)
        results = await asyncio.gather(outcomes(one, mine), outcomes(two, theirs))
    for found in map(taken, results):
        for chat in range(2):
            positions = [result.position or 0 for result in found[chat::2]]
            assert positions == sorted(positions)
    events = [event for event in await stored(url) if isinstance(event, e.MessageSent)]
    for conversation in {event.conversation for event in events}:
        times = [event.msec for event in events if event.conversation == conversation]
        assert all(a < b for a, b in pairwise(times))


async def test_two_names_of_one_conversation_share_its_clock_when_another_writer_moves_it(url: str) -> None:
    """Decided in one batch, over lanes that look apart, and refused together."""
    async with owner(url) as blocker, opened(url, writers=1) as ledger, opened(url, writers=1) as other:
        await ledger.submit(manager(50))
        second = operator(2, ends=(end("kommo", "chat-1"),))
        mine = [customer(1, "m-1"), replace(second, lane="another")]
        async with blocker.transaction():
            await blocker.execute(LOCK)
            theirs = other.submit(customer(3, "m-3"))
            await asyncio.sleep(0.2)
            waiting = asyncio.gather(*(ledger.submit(one) for one in mine))
            await asyncio.sleep(0.2)
        await asyncio.gather(theirs, waiting)
    times = [one.msec for one in await stored(url) if isinstance(one, e.MessageSent)]
    assert all(one < two for one, two in pairwise(times))


# Trouble.


async def test_a_clock_that_was_taken_away_is_made_again(url: str) -> None:
    async with opened(url) as ledger:
        await outcomes(ledger, sends(4, chats=2))
        async with owner(url) as connection:
            await connection.execute("DELETE FROM ledger.clocks")
        told = await outcomes(ledger, sends(4, first=5, chats=2))
    assert all(isinstance(one, Recorded) and not one.duplicate for one in told)
    assert len([one for one in await stored(url) if isinstance(one, e.MessageSent)]) == 8


async def test_one_repeat_does_not_hold_back_a_batch(url: str) -> None:
    (one,) = sends(1)
    async with opened(url, writers=1) as ledger:
        await outcomes(ledger, [one])
        repeat = replace(one, id=customer(99).id)
        told = taken(await outcomes(ledger, [*sends(20, first=2), repeat, *sends(20, first=22)]))
    assert [number for number, each in enumerate(told) if each.duplicate] == [20]
    assert len([each for each in await stored(url) if isinstance(each, e.MessageSent)]) == 41


async def test_nothing_is_lost_or_doubled_when_connections_are_killed(url: str) -> None:
    commands = sends(3000, chats=20)
    async with owner(url) as killer, opened(url) as ledger:
        running = asyncio.gather(*(send_until_told(ledger, command) for command in commands))
        killed = 0
        while not running.done():
            await asyncio.sleep(0.05)
            killed += len(await (await killer.execute(KILL)).fetchall())
            if ledger.depth < 500:
                break
        results = await running
    assert killed
    events = await stored(url)
    sent = {one.own_id: position for position, one in enumerate(events, 1) if isinstance(one, e.MessageSent)}
    assert len([one for one in events if isinstance(one, e.MessageSent)]) == 3000
    assert [sent[command.own_id] for command in commands] == [one.position for one in results]


async def send_until_told(ledger: Ledger, command: c.Send) -> Recorded:
    """As a messenger would: again if it is told that the outcome is open."""
    while True:
        try:
            return await ledger.submit(command)
        except LedgerUnavailable:
            await asyncio.sleep(0.05)


async def test_a_command_stored_before_the_link_broke_is_no_duplicate_of_itself(url: str) -> None:
    async with owner(url) as killer, opened(url, writers=1) as ledger:
        await ledger.submit(customer(1))
        await killer.execute(KILL)
        assert (await ledger.submit(customer(2, "m-2"))).duplicate is False


async def test_whoever_waits_is_told_within_five_seconds_although_the_database_hangs(url: str) -> None:
    loop = asyncio.get_running_loop()
    async with owner(url) as blocker, opened(url, writers=1) as ledger:
        async with blocker.transaction():
            await blocker.execute(LOCK)
            start = loop.time()
            first = ledger.submit(customer(1))
            await asyncio.sleep(0.1)
            queued = ledger.submit(customer(2, "m-2"))
            results = await asyncio.gather(first, queued, return_exceptions=True)
            assert 4 < loop.time() - start < 5
            assert all(isinstance(one, LedgerUnavailable) for one in results)
        again = taken(await outcomes(ledger, [customer(1), customer(2, "m-2")]))
    sent = [one.own_id for one in await stored(url) if isinstance(one, e.MessageSent)]
    assert sorted(sent) == ["m-1", "m-2"]
    assert len({one.position for one in again}) == 2


async def test_closing_commits_what_is_queued(url: str) -> None:
    async with opened(url) as ledger:
        waiting = [ledger.submit(command) for command in sends(700)]
        await ledger.close()
        assert all(isinstance(one.result(), Recorded) for one in waiting)
        with pytest.raises(LedgerFull):
            ledger.submit(customer(9999, "m-late"))
    assert len(await stored(url)) == 710


# What the database itself refuses.


@pytest.mark.parametrize("role", ["owner", names.ROLE])
@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE ledger.stored_events SET topic = 'x'",
        "DELETE FROM ledger.stored_events",
        "TRUNCATE ledger.stored_events",
    ],
)
async def test_the_database_refuses_to_change_the_past(url: str, role: str, statement: str) -> None:
    async with opened(url) as ledger:
        await ledger.submit(customer(1))
    connect = connect_ if role == names.ROLE else psycopg.AsyncConnection.connect
    async with await connect(url) as connection:
        with pytest.raises((psycopg.errors.RestrictViolation, psycopg.errors.InsufficientPrivilege)):
            await connection.execute(statement)
    assert len(await stored(url)) == 2


async def test_the_service_may_not_lift_that(url: str) -> None:
    async with await connect_(url) as connection:
        for what in ("TRIGGER append_only ON ledger.stored_events", "TABLE ledger.stored_events"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                await connection.execute(f"DROP {what}")


async def test_the_service_may_only_write_through_the_append(url: str) -> None:
    async with await connect_(url) as connection:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            await connection.execute(
                "INSERT INTO ledger.stored_events VALUES (gen_random_uuid(), 1, 't', 's', 1)"
            )


async def test_an_append_refuses_an_isolation_in_which_positions_could_repeat(url: str) -> None:
    async with owner(url) as connection, connection.transaction():
        await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        with pytest.raises(psycopg.errors.RaiseException):
            await connection.execute("SELECT ledger.append('{}','{}','{}','{}','{}','{}','{}','{}','{}')")
