"""A scope that posts at full speed delays the commands of another by a turn, not by all that waits."""

import asyncio
import random
import time
from collections import defaultdict, deque

from msgspec.structs import replace

from app.ledger import writer as module
from app.ledger.batch import Pending, Recorded
from app.ledger.queue import COMMAND_BYTES, CROWD, TURN_BYTES, Queue
from app.ledger.writer import Ledger, LedgerFull
from app.service.service import migrate
from domain import commands as c
from domain import ids
from tests.support.ids import CHANNEL, OTHER_ACCOUNT, SCOPE
from tests.support.ledgers.decisions import Now, customer

OTHER = ids.scope_of("acme", CHANNEL, OTHER_ACCOUNT)


def sent(n: int, scope: ids.Scope = SCOPE) -> c.Send:
    """A message of a scope, in one of ten lanes."""
    lane = f"{scope.account}-{n % 10}"
    end = c.End("messenger", ids.conversation_id(scope, "messenger", lane), customer(1).ends[0].ends)
    stream = ids.message_id(scope, "messenger", f"m-{n}")
    stamp = Now(n).stamp("messenger")
    return replace(customer(n), id=stamp["id"], scope=scope, lane=lane, stream=stream, ends=(end,))


async def pending(n: int, scope: ids.Scope = SCOPE, size: int = 1000) -> Pending:
    return Pending(sent(n, scope), asyncio.get_running_loop().create_future(), size, float(n))


def taken(queue: Queue, most: int) -> list[Pending]:
    batch: list[Pending] = []
    queue.move_to(batch, most)
    return batch


async def test_one_command_of_a_neighbour_is_in_the_next_batch() -> None:
    queue = Queue()
    for n in range(5_000):
        queue.put(await pending(n))
    queue.put(await pending(1, OTHER))
    batch = taken(queue, 64)
    assert len(batch) == 64
    own = [each.command.id for each in batch if each.command.scope == SCOPE]
    assert own == [sent(n).id for n in range(63)]


async def test_what_delivery_records_does_not_wait_behind_what_its_scope_posts() -> None:
    queue = Queue()
    for n in range(1_000):
        queue.put(await pending(n))
    accept = c.Accept(**Now(1).stamp("kommo"), stream=sent(1).stream, side="kommo", remote_id="k-1")
    queue.put(Pending(accept, asyncio.get_running_loop().create_future(), 1000, 0.0))
    assert accept in [each.command for each in taken(queue, 64)]


def of_account(n: int) -> ids.Scope:
    """A scope of the flooding channel, whose messenger makes up accounts."""
    return ids.scope_of("acme", CHANNEL, f"account-{n}")


async def test_a_channel_that_names_500_accounts_gets_the_turns_of_one() -> None:
    queue, neighbour = Queue(), ids.scope_of("other", CHANNEL, OTHER_ACCOUNT)
    for n in range(5_000):
        queue.put(await pending(n, of_account(n % 500)))
    for n in range(64):
        queue.put(await pending(n, neighbour))
    first, second = taken(queue, 64), taken(queue, 64)
    for batch in (first, second):
        mine = [each for each in batch if each.command.scope == neighbour]
        assert 24 <= len(mine) <= 40  # it was 1
    served = [each.command.scope.account for each in (*first, *second) if each.command.scope != neighbour]
    assert len(set(served)) >= len(served) // 9  # its accounts take turns, too


async def test_accounts_that_are_named_once_with_much_do_not_escape_what_they_cost() -> None:
    queue, neighbour = Queue(), ids.scope_of("other", CHANNEL, OTHER_ACCOUNT)
    for n in range(200):
        queue.put(await pending(n, of_account(n), size=200_000))
        queue.put(await pending(n, neighbour))
    moved: dict[str, int] = defaultdict(int)
    for _ in range(4):
        for each in taken(queue, 32):
            moved[each.command.scope.channel] += each.size + COMMAND_BYTES
    assert abs(moved["acme"] - moved["other"]) <= 200_000 + COMMAND_BYTES + 2 * TURN_BYTES


async def test_large_commands_are_paid_for_in_later_turns() -> None:
    queue = Queue()
    for n in range(1_000):
        queue.put(await pending(n, size=200_000))
        queue.put(await pending(n, OTHER))
    moved: dict[str, int] = defaultdict(int)
    for _ in range(8):
        for each in taken(queue, 64):
            moved[each.command.scope.account] += each.size + COMMAND_BYTES
    large, small = moved[SCOPE.account], moved[OTHER.account]
    assert abs(large - small) <= 200_000 + COMMAND_BYTES + 2 * TURN_BYTES


async def test_what_goes_alone_is_not_joined_by_commands_of_another_queue() -> None:
    queue, other = Queue(), Queue()
    marked = await pending(1)
    marked.alone = True
    queue.put_back(marked)
    other.put(await pending(2))
    batch = taken(queue, 64)
    other.move_to(batch, 64)
    assert (batch, len(other), other.taken) == ([marked], 1, False)


async def test_order_count_bytes_and_crowds_hold_over_random_histories() -> None:
    for seed in range(30):
        chance, queue = random.Random(seed), Queue()
        scopes = [ids.scope_of("acme", CHANNEL, f"account-{n}") for n in range(4)]
        model: dict[str, deque[Pending]] = defaultdict(deque)
        for n in range(800):
            if chance.random() < 0.9:
                one = await pending(n, scopes[int(4 * chance.random() ** 3)], chance.randrange(1, 40_000))
                queue.put(one)
                model[one.command.scope.scope_id].append(one)
                continue
            batch = taken(queue, chance.randrange(1, 200))
            for one in batch:
                assert one is model[one.command.scope.scope_id].popleft()
            for one in reversed(batch[: chance.randrange(3)]):
                queue.put_back(one)
                model[one.command.scope.scope_id].appendleft(one)
            left = [each for each in model.values() if each]
            assert len(queue) == sum(map(len, left))
            assert queue.bytes == sum(one.size for each in left for one in each)
            assert queue.crowds == sum(len(each) > CROWD for each in left)
        assert sorted(map(id, queue)) == sorted(id(one) for each in model.values() for one in each)


async def test_a_neighbour_does_not_wait_for_a_scope_at_full_speed(database_url: str) -> None:
    await migrate(database_url)
    ledger = Ledger(database_url, lambda _: None)
    await ledger.open()
    posted = [asyncio.ensure_future(ledger.submit(sent(n))) for n in range(6_000)]
    assert not ledger.is_shared  # whoever is alone has it all
    for n in range(5):
        outcome = await ledger.submit(sent(n, OTHER))
        assert isinstance(outcome, Recorded)
    assert sum(each.done() for each in posted) < 2_500  # it was all of them
    positions = [(await each).position for each in posted]
    assert len(set(positions)) == 6_000
    await ledger.close()


async def test_a_scope_that_fills_the_queue_leaves_room_for_another(database_url: str) -> None:
    await migrate(database_url)
    ledger = Ledger(database_url, lambda _: None)
    waiting = [ledger.submit(sent(n)) for n in range(module.QUEUE_MAX)]
    for scope, full in ((SCOPE, True), (OTHER, False)):
        try:
            waiting.append(ledger.submit(sent(module.QUEUE_MAX, scope)))
        except LedgerFull:
            assert full
        else:
            assert not full
    assert not ledger.has_room(1, 0)
    await ledger.close(0.1)
    assert all(each.cancelled() for each in waiting)


async def test_a_channel_that_names_many_accounts_leaves_room_for_another(database_url: str) -> None:
    await migrate(database_url)
    ledger = Ledger(database_url, lambda _: None)
    waiting, full = [], 0
    for n in range(int(module.QUEUE_MAX * module.OVER)):
        try:
            waiting.append(ledger.submit(sent(n, of_account(n % 500))))
        except LedgerFull:
            full += 1
    assert full == module.QUEUE_MAX * (module.OVER - module.CHANNEL_OVER) - 1
    waiting.append(ledger.submit(sent(1, ids.scope_of("other", CHANNEL, OTHER_ACCOUNT))))
    await ledger.close(0.1)
    assert all(each.cancelled() for each in waiting)


async def test_what_became_the_second_writers_while_the_first_rested_is_stored(database_url: str) -> None:
    await migrate(database_url)
    ledger = Ledger(database_url, lambda _: None)
    await ledger.open()
    lanes = (replace(sent(1), lane=f"lane {n}") for n in range(1_000))
    lane = next(one.lane for one in lanes if ledger.queue_of(one) is ledger.queues[1])
    ledger._writers[0].rests_until = time.perf_counter() + 1.0
    for n in range(300):  # One conversation, so only the second queue has a crowd.
        last = ledger.submit(replace(sent(n), lane=lane))
    neighbour = ledger.submit(sent(1, OTHER))
    ledger._shared_until = ledger._loop.time() + 0.1  # So long the first writer makes all batches.
    async with asyncio.timeout(module.WAIT_SECONDS_MAX - 1):
        await neighbour
        await last
    await ledger.close()
