"""The session of a writer of the ledger: how it looks things up, appends, and is given up."""

from collections.abc import Sequence
from typing import NamedTuple

import psycopg

from app.database import connection
from app.database.binary import Prepared, int_array, take_columns
from app.database.connection import Db, OnlyStandby
from app.database.leases import Fence
from projections.columns import Column, longs, texts

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
APPEND_LEASED = """PREPARE append_leased
 (int[], uuid[], bigint[], text[], bytea[], int[], uuid[], bigint[], bigint[], text[], bigint[]) AS
 SELECT bad, head, stale FROM ledger.append_leased($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)"""


class Failure(NamedTuple):
    """When a batch could not be stored, in monotonic seconds, and why."""

    at: float
    reason: str


def reason_of(error: psycopg.Error) -> str:
    """Why nothing is stored, in words for everyone: without addresses, which the log has."""
    if isinstance(error, OnlyStandby):
        return str(error)
    said = error.diag.message_primary
    return f"the database stores nothing: {said}" if said else "the database does not answer"


PACKED = "SELECT packed FROM ledger.meta"


class Append:
    """Both statements, prepared in a session that nothing else uses meanwhile.

    `packed`: how events are stored in this ledger, as it was when the session began.
    """

    def __init__(self, connection: Db, *, packed: bool) -> None:
        self.packed = packed
        self._append = Prepared(connection, "append")
        self._append_leased = Prepared(connection, "append_leased")

    async def append(
        self, parameters: list[Column], fences: Sequence[Fence]
    ) -> tuple[set[int], int, set[Fence]]:
        """Store a batch; returns the units that were rejected, the ledger's head before, and stale leases.

        If there is a stale lease, nothing is stored. Raises psycopg.Error.
        """
        if not fences:
            bad, head = await self._append.row(parameters)
            return set(int_array(bad)), int.from_bytes(head or b""), set()
        names, tokens = texts([one.lease for one in fences]), longs([one.token for one in fences])
        bad, head, stale = await self._append_leased.row([*parameters, names, tokens])
        lost = {fences[number - 1] for number in int_array(stale)}
        return set(int_array(bad)), int.from_bytes(head or b""), lost


async def open_writer(url: str) -> tuple[Db, Append]:
    """Open a session; returns it, and its append. Raises psycopg.OperationalError."""
    db = await connection.connect(url, patience_seconds=PATIENCE_SECONDS)
    for statement in (PLANS, APPEND, APPEND_LEASED):
        await db.execute(statement.encode())
    row = await (await db.execute(PACKED)).fetchone()
    take_columns(db)
    return db, Append(db, packed=row == (True,))
