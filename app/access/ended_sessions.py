"""A session that was signed out is over on every web process, also one whose cookie somebody has copied.

The database keeps the ended sessions as long as their cookies would be good. Every page asks it, which is
what "at once, on every process" costs; only a person's pages do.
"""

from msgspec import Struct

from app.access.sessions import SESSION_SECONDS, Session
from app.database.pool import Pool

# Chosen: a person signs out a few times a day. Beyond it the sessions that ended first are forgotten.
ENDED_MAX = 10_000
END = """INSERT INTO ledger.ended_sessions (id, ended_at) VALUES (%s, now()) ON CONFLICT (id) DO NOTHING"""
FORGET = """DELETE FROM ledger.ended_sessions WHERE ended_at < now() - make_interval(secs => %s)
 OR id IN (SELECT id FROM ledger.ended_sessions ORDER BY ended_at DESC OFFSET %s)"""
IS_ENDED = "SELECT EXISTS (SELECT FROM ledger.ended_sessions WHERE id = %(id)s) AS yes"


class _Found(Struct):
    yes: bool


async def end(pool: Pool, session: Session) -> None:
    """End a session everywhere, at once. Raises psycopg.OperationalError."""
    async with pool.connection() as db:
        await db.execute(END, (session.id,))
        await db.execute(FORGET, (SESSION_SECONDS, ENDED_MAX))


async def is_ended(pool: Pool, session: Session) -> bool:
    """Whether a session was signed out. Raises psycopg.OperationalError."""
    (found,) = await pool.fetch(_Found, IS_ENDED, {"id": session.id})
    return found.yes
