"""The session of a writer of the ledger: how it looks things up, appends, and is given up."""

from app.database import connection
from app.database.binary import Prepared, take_columns
from app.database.connection import Db

# Chosen: who waited has been answered. The append may go on at the server: while the synchronous standby is
# away, its commit keeps the ledger's lock. So later ones wait for that lock for a shorter time than we wait
# for their answer, or each would leave a session behind.
PATIENCE_SECONDS, LOCK_SECONDS = 5.0, 4
# All look-ups are by key. A plan made while the table is small would read the whole table, and PostgreSQL
# would keep that plan while the table grows.
PLANS = f"""SET lock_timeout = '{LOCK_SECONDS}s'; SET enable_seqscan = off;
 SET enable_hashjoin = off; SET enable_mergejoin = off; SET jit = off"""
APPEND = """PREPARE append (int[], uuid[], bigint[], text[], bytea[], int[], uuid[], bigint[], bigint[]) AS
 SELECT bad, head FROM ledger.append($1, $2, $3, $4, $5, $6, $7, $8, $9)"""


async def open_writer(url: str) -> tuple[Db, Prepared]:
    """Open a session; returns it, and its append. Raises psycopg.OperationalError."""
    db = await connection.connect(url, patience_seconds=PATIENCE_SECONDS)
    await db.execute(PLANS)
    await db.execute(APPEND)
    take_columns(db)
    return db, Prepared(db, "append")
