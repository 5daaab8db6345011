"""The attempts that failed are counted, with the time of the next one, for whoever looks and for restarts.

An attempt that fails like the one before it makes no event, or a messenger that is away for a day would fill
the ledger. So the counts are in a table of their own, which is written behind, at most twice a second. What a
process loses of them when it is killed is half a second's.
"""

import asyncio
import logging
from typing import NoReturn

import psycopg
from msgspec import Struct

from app.clock import text
from app.database.connection import Db, connect

# Chosen: a person sees it at once, and a thousand failing conversations cost two statements a second.
FLUSH_SECONDS = 0.5
# Chosen: rows of what was settled by somebody else are few, and cost nothing but their room.
CLEAN_SECONDS = 600.0
log = logging.getLogger("chatledger.deliver")

COUNT = """INSERT INTO ledger.tries AS t (delivery, attempts, tried_at, next_try_at)
 SELECT * FROM unnest(%(ids)s::uuid[], %(attempts)s::integer[], %(tried)s::timestamptz[],
  %(next)s::timestamptz[])
 ON CONFLICT (delivery) DO UPDATE SET attempts = t.attempts + excluded.attempts,
 tried_at = excluded.tried_at, next_try_at = excluded.next_try_at"""
FORGET = "DELETE FROM ledger.tries WHERE delivery = ANY (%(ids)s::uuid[])"
CLEAN = """DELETE FROM ledger.tries AS t WHERE tried_at < now() - interval '1 hour'
 AND NOT EXISTS (SELECT 1 FROM views.deliveries AS d WHERE d.id = t.delivery)"""


class Tried(Struct):
    """Attempts that are not written yet: how many failed, when the last one did, and when the next one is."""

    attempts: int
    tried_at: str
    next_try_at: str | None


class Tries:
    """The counts of this process that are not written yet, and the table."""

    def __init__(self, database_url: str) -> None:
        self._url = database_url
        self._failed: dict[str, Tried] = {}
        self._done: set[str] = set()
        self._wake = asyncio.Event()

    def failed(self, delivery: str, now_ms: int, next_ms: int | None) -> None:
        """Count an attempt that failed; `next_ms` is when the next one is (None: there is none)."""
        before = self._failed.get(delivery)
        count = 1 + (before.attempts if before else 0)
        self._failed[delivery] = Tried(count, text(now_ms), text(next_ms) if next_ms else None)
        self._wake.set()

    def done(self, delivery: str) -> None:
        """Forget what was counted: it has arrived."""
        self._failed.pop(delivery, None)
        self._done.add(delivery)
        self._wake.set()

    async def run(self) -> NoReturn:
        """Write until cancelled."""
        loop = asyncio.get_running_loop()
        clean_at = loop.time()
        while True:
            try:
                async with await connect(self._url) as db:
                    while True:
                        await self._wake.wait()
                        self._wake.clear()
                        await self._flush(db)
                        if loop.time() >= clean_at:
                            await db.execute(CLEAN)
                            clean_at = loop.time() + CLEAN_SECONDS
                        await asyncio.sleep(FLUSH_SECONDS)
            except psycopg.Error as error:  # Also while the views are made for the first time.
                log.warning("attempts are counted later: %s", str(error).strip())
                self._wake.set()
            await asyncio.sleep(FLUSH_SECONDS)

    async def _flush(self, db: Db) -> None:
        failed, done = dict(self._failed), set(self._done)
        if failed:
            tried = list(failed.values())
            values = {
                "ids": list(failed),
                "attempts": [one.attempts for one in tried],
                "tried": [one.tried_at for one in tried],
                "next": [one.next_try_at for one in tried],
            }
            await db.execute(COUNT, values)
        if done:
            await db.execute(FORGET, {"ids": list(done)})
        self._done -= done
        for delivery, one in failed.items():
            if self._failed.get(delivery) is one:
                del self._failed[delivery]
            elif later := self._failed.get(delivery):
                later.attempts -= one.attempts
