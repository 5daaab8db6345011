"""A pooler between us and PostgreSQL, like PgBouncer, must leave us our sessions, or it is refused.

In its transaction or statement mode a pooler lends a connection for so long only. Then LISTEN hears nothing,
the lock that one process holds stays with a connection that another one gets next, and settings and prepared
statements are those of somebody else. All that is the heart of chatledger, so it does not try to do without.
In session mode a client has a connection of its own, and everything works.

A pooler is recognised by the number of the server process: it tells its clients another one than PostgreSQL.
Its mode shows in who works for whom: in session mode no process works for two clients that are both there.
"""

import psycopg

from app.database.connection import Db, reach
from app.deadline import within

# Chosen: without other clients the first round shows the mode; with others, chance may hide it in one.
ROUNDS = 8
# Chosen: a pool that has another connection gives it at once; PgBouncer lets others wait for two minutes.
ANSWER_SECONDS = 5.0
PROCESS = "SELECT pg_backend_pid()"
STATEMENT_MODE = "statement pooling"


class Pooled(Exception):
    """A pooler shares our connections with others; the message says what to do."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"CHATLEDGER_DATABASE_URL leads to a pooler like PgBouncer, which {what}: lead the URL to"
            " PostgreSQL itself, or set pool_mode = session for this database, with a pool_size of 30 for"
            " each process"
        )


async def check_sessions(url: str) -> None:
    """Raises Pooled if sessions are not ours alone, psycopg.OperationalError."""
    async with await reach(url) as first:
        if first.info.backend_pid == await _process(first):
            return
        async with await reach(url) as second:
            try:
                shared = await within(ANSWER_SECONDS, _share(first, second))
            except TimeoutError:
                raise Pooled("gives us only one connection") from None
    if shared:
        raise Pooled("lends a connection for one transaction at a time")


async def _share(first: Db, second: Db) -> bool:
    """Whether one process of the server works for both, or several work for the first."""
    for _ in range(ROUNDS):
        before = await _process(first)
        try:
            async with second.transaction():  # The pooler cannot lend this connection to the first meanwhile.
                if before == await _process(second) or before != await _process(first):
                    return True
        except psycopg.Error as error:
            if STATEMENT_MODE in str(error):
                return True
            raise
    return False


async def _process(db: Db) -> object:
    row = await (await db.execute(PROCESS, prepare=False)).fetchone()
    return row[0] if row else None
