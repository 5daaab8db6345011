"""What one process at a time does: leases with a term by the database's clock, and a token for each holder.

Theory of operation. A lease is a row: its name, its holder, its end, and a token that each taking raises. A
process renews all that it holds with one statement every RENEW_SECONDS. Whoever finds a lease that has
ended takes it. So a holder that dies, is suspended or loses its way to the database is followed by another
within TERM_SECONDS and the pause in which others look, whatever becomes of its connections. Where the
database is one process's own, that process need not wait for a predecessor that was killed: both have one
name.

The former holder may not know. So it counts by itself: from before each renewal was sent it holds a lease for
HELD_SECONDS, less than the term, by a clock that goes on while process or machine is suspended; after that,
and from the moment in which its connection breaks, `holds` says no. What it records carries the token of its
lease, and the database takes it only while no other token was given out (`database/append`).

An older version of this program holds the same jobs by locks of a session (`names`). Whoever holds a lease
holds the job's lock in shared mode, too, by the same connection that renews it: both versions keep each
other out. The session ends with its host, because the server gives up on it within seconds (SESSION).
"""

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import NamedTuple, NoReturn, cast

import psycopg

from app.database.connection import Db, connect
from app.database.names import APPEND_LOCK

# Chosen: work is taken over within 15 s: this term, and the pause in which others look for it.
TERM_SECONDS = 9.0
# Chosen: several renewals may fail, each after 2 s, before a lease is lost.
RENEW_SECONDS = 2.0
ANSWER_SECONDS = 2.0
# Chosen: the difference is for the way to the database and for clocks of different speed.
HELD_SECONDS = 7.0
RECONNECT_SECONDS = 0.5
# Chosen: how soon a connection is noticed.
CONNECTED_SECONDS = 0.01
# Members of a group that ended so long ago are forgotten.
FORGET_SECONDS = 3600
# The holder that has the database to itself; a process's own name is a UUID.
ALONE = "alone"
log = logging.getLogger("chatledger.leases")

# Of the session that holds the shared locks. Times in seconds, but for tcp_user_timeout in milliseconds. The
# server gives up waiting for a lock before we give up the connection for want of an answer.
SESSION = """
SET tcp_keepalives_idle = 3; SET tcp_keepalives_interval = 2; SET tcp_keepalives_count = 3;
SET tcp_user_timeout = 9000; SET idle_session_timeout = '9s'; SET lock_timeout = '1500ms';
"""
TABLES = """
CREATE TABLE IF NOT EXISTS ledger.leases (
  name text PRIMARY KEY, holder text NOT NULL, token bigint NOT NULL, until timestamptz NOT NULL)
  WITH (fillfactor = 50);
"""
# `ledger.append` under leases: nothing is stored unless each of these tokens is the current one; `stale` has
# the numbers of the others. A token is given out under the same lock (SERIAL), so none changes meanwhile.
APPEND = """
CREATE OR REPLACE FUNCTION ledger.append_leased(
  unit int[], stream uuid[], version bigint[], topic text[], state bytea[],
  clock_unit int[], chat uuid[], before bigint[], after bigint[], lease text[], token bigint[],
  OUT bad int[], OUT head bigint, OUT stale int[])
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM pg_advisory_xact_lock({lock});
  SELECT array_agg(i.n::int) INTO stale
    FROM unnest(lease, token) WITH ORDINALITY AS i(l, t, n) LEFT JOIN ledger.leases k ON k.name = i.l
    WHERE k.token IS DISTINCT FROM i.t;
  IF stale IS NULL THEN
    SELECT a.bad, a.head INTO bad, head FROM ledger.append(
      unit, stream, version, topic, state, clock_unit, chat, before, after) AS a;
  END IF;
END $$
"""
GRANT = """
GRANT SELECT, INSERT, UPDATE, DELETE ON ledger.leases TO {role};
REVOKE EXECUTE ON FUNCTION ledger.append_leased FROM PUBLIC;
GRANT EXECUTE ON FUNCTION ledger.append_leased TO {role};
"""
# Before a token is given out, every append that carries the one before it is done, or will find it stale.
SERIAL = "SELECT pg_advisory_xact_lock(%s)"
FREE = """
SELECT w.name FROM unnest(%(names)s::text[]) AS w(name) WHERE NOT EXISTS (SELECT FROM ledger.leases AS l
  WHERE l.name = w.name AND l.until > clock_timestamp() AND l.holder <> %(holder)s)
"""
TAKE = """
INSERT INTO ledger.leases AS l (name, holder, token, until)
SELECT name, %(holder)s, 1, clock_timestamp() + make_interval(secs => %(term)s)
FROM unnest(%(names)s::text[]) AS name
ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, token = l.token + 1, until = excluded.until
WHERE l.until < clock_timestamp() OR l.holder = excluded.holder
RETURNING name, token
"""
RENEW = """
UPDATE ledger.leases SET until = clock_timestamp() + make_interval(secs => %(term)s)
WHERE holder = %(holder)s AND name = ANY (%(names)s::text[]) AND until > clock_timestamp() RETURNING name
"""
RELEASE = """
UPDATE ledger.leases SET until = '-infinity' WHERE holder = %(holder)s AND name = ANY (%(names)s::text[])
"""
LOOK = """
SELECT name, holder FROM ledger.leases WHERE starts_with(name, %(prefix)s) AND until > clock_timestamp()
"""
FORGET = """
DELETE FROM ledger.leases WHERE starts_with(name, %(prefix)s)
 AND until < clock_timestamp() - make_interval(secs => %(seconds)s)
"""
LOCK_SHARED = "SELECT pg_try_advisory_lock_shared(%s)"
UNLOCK_SHARED = "SELECT pg_advisory_unlock_shared(%s)"


class Fence(NamedTuple):
    """The lease under which something is recorded, and the token that its holder was given."""

    lease: str
    token: int


class LeaseLost(Exception):
    """The lease is another process's by now, or may be: nothing is sent or recorded under it any more."""


class _Held(NamedTuple):
    token: int
    until: float  # by `now`
    lock: int | None


def now() -> float:
    """Seconds of a clock that goes on while the process or the machine is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Leases:
    """The leases of this process; renewed while `run` is running.

    `alone`: the database is this process's own, so the leases that it finds are those of a predecessor that
    was killed, and it takes them at once.
    """

    def __init__(self, database_url: str, *, alone: bool = False) -> None:
        self.holder = ALONE if alone else str(uuid.uuid4())
        self._url = database_url
        self._db: Db | None = None
        self._held: dict[str, _Held] = {}
        self._locked: set[int] = set()
        self._turn = asyncio.Lock()  # of the connection
        self._closed = False

    def holds(self, name: str) -> bool:
        """Whether this process may still act under a lease; True for certain only at this moment."""
        held = self._held.get(name)
        return held is not None and now() < held.until

    def fence(self, name: str) -> Fence:
        """Returns what to record under. Raises LeaseLost."""
        if not self.holds(name):
            raise LeaseLost(f"the lease {name} is not ours any more")
        return Fence(name, self._held[name].token)

    async def run(self) -> NoReturn:
        """Keep a connection and renew, until cancelled."""
        while True:
            try:
                async with await connect(self._url, patience_seconds=ANSWER_SECONDS) as db:
                    await db.execute(SESSION)
                    self._db = db
                    await self._keep()
            except psycopg.Error as error:
                if self._held:
                    log.warning("leases: given up, because the database is away: %s", _said(error))
            finally:
                self._db = None
                self._held.clear()
                self._locked.clear()
            await asyncio.sleep(RECONNECT_SECONDS)

    async def _keep(self) -> NoReturn:
        while True:
            await self._renew()
            await asyncio.sleep(RENEW_SECONDS)

    async def _renew(self) -> None:
        async with self._turn:
            before, held = now(), dict(self._held)
            rows = await self._ask(RENEW, {"names": list(held)})
            kept = {cast("str", name) for (name,) in rows}
            for name, one in held.items():
                if name in kept:
                    self._held[name] = one._replace(until=before + HELD_SECONDS)
                else:
                    log.warning("leases: %s has ended", name)
                    del self._held[name]
            await self._unlock()

    async def take(self, wanted: Mapping[str, int | None]) -> list[str]:
        """Take those leases that are free, each under the lock with its number; returns which are ours now.

        One of which older versions of this program know nothing needs no lock. None are ours while the
        database is away.
        """
        if self._db is None or self._closed or not wanted:
            return []
        try:
            return await self._take(wanted)
        except psycopg.Error as error:
            log.warning("leases: nothing can be taken: %s", _said(error))
            return []

    async def _take(self, wanted: Mapping[str, int | None]) -> list[str]:
        async with self._turn:
            before = now()
            free = {cast("str", name) for (name,) in await self._ask(FREE, {"names": list(wanted)})}
            if not free:  # So that whoever only waits costs no append its turn.
                return []
            alone = await self._lock({lock for name in free if (lock := wanted[name]) is not None})
            names = [name for name in free if wanted[name] is None or wanted[name] in alone]
            rows = await self._ask(TAKE, {"names": names}, serial=True) if names else []
            for name, token in cast("list[tuple[str, int]]", rows):
                self._held[name] = _Held(token, before + HELD_SECONDS, wanted[name])
            await self._unlock()
            taken = {name for name, _ in rows}
            return [name for name in wanted if name in taken]

    async def release(self, names: Iterable[str]) -> None:
        """Let others take leases at once; one that cannot be given back ends by itself."""
        async with self._turn:
            ours = [name for name in names if self._held.pop(name, None)]
            if self._db is None or not ours:
                return
            with contextlib.suppress(psycopg.Error):
                await self._ask(RELEASE, {"names": ours})
                await self._unlock()

    async def look(self, prefix: str) -> dict[str, str]:
        """Returns the holders of the leases in force whose names begin so, by name. Raises psycopg.Error."""
        async with self._turn:
            rows = cast("list[tuple[str, str]]", await self._ask(LOOK, {"prefix": prefix}))
            return dict(rows)

    async def forget(self, prefix: str) -> None:
        """Forget leases with such names that ended long ago. Raises psycopg.Error."""
        async with self._turn:
            await self._ask(FORGET, {"prefix": prefix, "seconds": FORGET_SECONDS})

    async def connected(self, seconds: float) -> None:
        """Wait until there is a connection, but not for longer than so many seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not self.ready:  # noqa: ASYNC110  # It comes and goes.
                    await asyncio.sleep(CONNECTED_SECONDS)

    @property
    def ready(self) -> bool:
        """Whether there is a connection to take leases with."""
        return self._db is not None

    async def close(self) -> None:
        """Release everything; nothing is taken any more."""
        self._closed = True
        await self.release(list(self._held))

    async def _lock(self, numbers: set[int]) -> set[int]:
        """Keep older versions of this program out of these jobs; returns those in which none is at work."""
        for number in numbers - self._locked:
            ((free,),) = await self._ask(LOCK_SHARED, (number,))
            if free is True:
                self._locked.add(number)
        return numbers & self._locked

    async def _unlock(self) -> None:
        """Let go of the locks of which no lease is held."""
        for number in self._locked - {held.lock for held in self._held.values()}:
            await self._ask(UNLOCK_SHARED, (number,))
            self._locked.discard(number)

    async def _ask(
        self, statement: str, values: Mapping[str, object] | tuple[object, ...], *, serial: bool = False
    ) -> list[tuple[object, ...]]:
        if self._db is None:
            raise psycopg.OperationalError("the leases have no connection")
        if isinstance(values, Mapping):
            values = {"holder": self.holder, "term": TERM_SECONDS, **values}
        if not serial:
            cursor = await self._db.execute(statement.encode(), values)
            return await cursor.fetchall() if cursor.description else []
        async with self._db.transaction():
            await self._db.execute(SERIAL, (APPEND_LOCK,))
            cursor = await self._db.execute(statement.encode(), values)
            return await cursor.fetchall()


@contextlib.asynccontextmanager
async def leasing(leases: Leases) -> AsyncIterator["asyncio.Task[NoReturn]"]:
    """Renew while the block runs, in the task that this yields, and release everything at its end."""
    running = asyncio.create_task(leases.run(), name="leases")
    try:
        yield running
    finally:
        await leases.close()
        running.cancel()
        await asyncio.wait([running])


def _said(error: BaseException) -> str:
    return str(error).strip() or "no answer"
