"""rebuild and history: views made from the ledger, and what a page of a chat costs as the ledger grows."""

import contextlib
import random
import time

from app.database.pool import Pool
from app.views.conversations import list_conversations
from app.views.messages import list_messages
from app.views.rebuild import rebuild as rebuild_views
from ops.benches import samples
from ops.benches.measure import Figure, compared, new_database, percentile, private_servers, say

REBUILT = 200_000
REBUILD_TARGET = 40_000
ROUNDS = 3
SMALL, LARGE = 10_000, 1_000_000
PAGES = 1_000
PAGE = 50


async def rebuild() -> list[Figure]:
    """Events a second into all views."""
    rates = []
    async with private_servers() as (where, _):
        url = await new_database(where, "rebuild")
        await samples.fill(url, REBUILT)
        for number in range(ROUNDS):
            start = time.perf_counter()
            await rebuild_views(url)
            rates.append(REBUILT / (time.perf_counter() - start))
            say(f"rebuild round {number + 1}: {rates[-1]:.0f}/s")
    rate = round(sorted(rates)[ROUNDS // 2])
    target = f">= {REBUILD_TARGET}"
    return [Figure("rebuild", rate, "events/s", None, None, target, rate >= REBUILD_TARGET)]


async def history() -> list[Figure]:
    """The p99 of a page of 50, in milliseconds, of a large ledger and of a small one."""
    async with private_servers() as (where, _), contextlib.AsyncExitStack() as stack:
        asked = {}
        for events in (SMALL, LARGE):
            say(f"history: a ledger of {events:,} events")
            url = await new_database(where, f"history_{events}")
            await samples.fill(url, events)
            await rebuild_views(url)
            pool = Pool(url)
            stack.push_async_callback(pool.close)
            reads = pool
            chats = [chat.id for chat in (await list_conversations(reads, limit=1000)).items]
            asked[events] = (reads, chats)
        pairs = []
        for _ in range(5):
            small = await _pages(*asked[SMALL])
            pairs.append((await _pages(*asked[LARGE]), small))
            say(f"history: p99 {pairs[-1][0]:.2f} ms against {small:.2f} ms")
    value, baseline, ratio = compared(pairs)
    return [Figure("history", value, "ms p99", baseline, ratio, "ratio <= 1.5", ratio <= 1.5)]


async def _pages(reads: Pool, chats: list[str]) -> float:
    times = []
    for _ in range(PAGES):
        chat = random.choice(chats)
        start = time.perf_counter()
        page = await list_messages(reads, chat, limit=PAGE, order="desc")
        times.append((time.perf_counter() - start) * 1000)
        if not page.items:
            raise AssertionError("an empty page measures nothing")
    return percentile(times, 0.99)
