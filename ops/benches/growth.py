"""growth: what an append costs on a large ledger, just after a checkpoint and later, beside a small one."""

import itertools
import os

import psycopg

from app import clock
from app.ledger.writer import Ledger
from app.servers.servers import Servers
from domain import events as e
from domain.commands import Send
from ops.benches import samples
from ops.benches.append import CHATS, ours
from ops.benches.measure import Figure, compared, cpu_seconds, new_database, private_servers, say

SMALL, LARGE = 100_000, 3_000_000
LARGEST_SETTING = "BENCH_EVENTS"  # for `growth_limit`
LARGEST = 10_000_000
ROUNDS = 5
COMMANDS = 5_000  # ten group commits of BATCH_MAX
WARM_UP = 2_000  # touches every page of the small ledger's indexes once
COST_ROUNDS = 5
COST_COMMANDS = 10_000
RATIO_MIN, COST_MAX = 0.6, 1.2

# Five events of two streams each message, as `samples.history` has them on average. Names are as random as
# UUIDv5. The keys are sorted in afterwards, but the pages are left as full as random inserts leave them.
FILL = """
INSERT INTO ledger.stored_events (originator_id, originator_version, topic, state, notification_id)
SELECT md5((n / 5)::text || CASE n %% 5 WHEN 4 THEN 'alias' ELSE '' END)::uuid,
  CASE n %% 5 WHEN 4 THEN 1 ELSE n %% 5 + 1 END, %(topic)s::text, %(state)s::bytea, n + 1
FROM generate_series(0, %(events)s::bigint - 1) AS n
"""
BEFORE = """
ALTER TABLE ledger.stored_events DROP CONSTRAINT stored_events_pkey;
DROP INDEX ledger.stored_events_notification_id_idx;
"""
AFTER = """
SET maintenance_work_mem = '512MB';
CREATE UNIQUE INDEX stored_events_pkey ON ledger.stored_events (originator_id, originator_version)
  WITH (fillfactor = 70);
ALTER INDEX ledger.stored_events_pkey RESET (fillfactor);
ALTER TABLE ledger.stored_events ADD PRIMARY KEY USING INDEX stored_events_pkey;
CREATE UNIQUE INDEX stored_events_notification_id_idx ON ledger.stored_events (notification_id);
"""


async def growth() -> list[Figure]:
    """Appends just after a checkpoint of a large ledger, against those on a small one that is warm."""
    async with private_servers() as (where, _):
        large = await _open(where, LARGE)
        small = await _open(where, SMALL)
        pairs = []
        for number in range(ROUNDS):
            await _run(where, "CHECKPOINT")
            cold = await ours(large, _commands(COMMANDS))
            await ours(small, _commands(WARM_UP))
            pairs.append((cold, await ours(small, _commands(COMMANDS))))
            say(f"growth round {number + 1}: {pairs[-1][0]:.0f}/s, small and warm {pairs[-1][1]:.0f}/s")
        await large.close()
        await small.close()
    value, baseline, ratio = compared(pairs)
    target = f"ratio >= {RATIO_MIN}"
    return [Figure("growth", value, "commands/s", baseline, ratio, target, ratio >= RATIO_MIN)]


async def growth_limit() -> list[Figure]:
    """What an append costs PostgreSQL and us on ten million events, against a hundred thousand.

    In microseconds of CPU time for a command, because the speed of disks drifts. Takes some 10 GB of disk;
    the environment may set another size.
    """
    events = int(os.environ.get(LARGEST_SETTING, LARGEST))
    async with private_servers() as (where, _):
        large, small = await _open(where, events), await _open(where, SMALL)
        pairs = []
        for number in range(COST_ROUNDS):
            pairs.append((await _cost(where, large), await _cost(where, small)))
            say(f"growth_limit round {number + 1}: {pairs[-1][0]:.0f} µs, small {pairs[-1][1]:.0f} µs")
        await large.close()
        await small.close()
    value, baseline, ratio = compared(pairs)
    target = f"ratio <= {COST_MAX}"
    return [Figure("growth_limit", value, "µs CPU", baseline, ratio, target, ratio <= COST_MAX)]


def _commands(count: int) -> list[Send]:
    now = clock.now_ms()
    return [samples.send(f"conv-{number % CHATS}", now) for number in range(count)]


async def _cost(where: Servers, ledger: Ledger) -> float:
    """Microseconds of CPU time for each command, of this process and of PostgreSQL."""
    before = cpu_seconds()
    await ours(ledger, _commands(COST_COMMANDS))
    return (cpu_seconds() - before) / COST_COMMANDS * 1_000_000


async def _open(where: Servers, events: int) -> Ledger:
    """A ledger with so many events, with what its chats begin with."""
    url = await new_database(where, f"growth_{events}")
    say(f"growth: a ledger of {events:,} events")
    await fill(url, events)
    ledger = Ledger(url, lambda _: None)
    await ledger.open()
    await ours(ledger, _commands(WARM_UP))
    return ledger


async def fill(url: str, events: int) -> None:
    """Write so many events into an empty ledger, in a minute for some millions."""
    (sample,) = itertools.islice((one for one in samples.history(1) if isinstance(one, e.MessageSent)), 1)
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        await connection.execute(BEFORE)
        values = {"topic": e.tag(sample), "state": e.encode(sample), "events": events}
        await connection.execute(FILL, values)
        await connection.execute(AFTER)
        await connection.execute("VACUUM (ANALYZE) ledger.stored_events")


async def _run(where: Servers, statement: str) -> None:
    async with await psycopg.AsyncConnection.connect(where.database_url, autocommit=True) as connection:
        await connection.execute(statement.encode())
