"""The master key is rotated: every sealed value is sealed again with the first key, while the service runs.

Each row is replaced only if it is still what was read, so a row that the service changes meanwhile stays as
the service wrote it and comes up again. Killed at any point, a rotation goes on where it stopped: what is
sealed already is not touched again, and both keys open everything until the end.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from msgspec import Raw, Struct

from app.database import sealed
from app.database.connection import Db, connect
from app.database.names import ROTATE_LOCK
from app.vault import Vault, WrongMasterKey, head_of

ROUNDS_MAX = 10  # Chosen: a row changes hourly at most, so one more round finds nothing.
LOCK = "SELECT pg_try_advisory_lock(%s)"


class RotationRuns(Exception):
    """Another process rotates the master key of this ledger now: wait until it has ended."""


class NotRotated(Exception):
    """Some values are still sealed with another key; the message names them."""


class Resealed(Struct, frozen=True):
    """How many values there are, and how many of them this run has sealed again."""

    total: int
    changed: int


@asynccontextmanager
async def rotation(url: str) -> AsyncIterator[Db]:
    """A connection that holds the lock of rotations. Raises RotationRuns, psycopg.Error."""
    async with await connect(url) as db:
        row = await (await db.execute(LOCK, (ROTATE_LOCK,))).fetchone()
        if row != (True,):
            raise RotationRuns(
                "another process rotates the master key of this ledger: wait until it has ended"
            )
        yield db


async def reseal(db: Db, vault: Vault) -> Resealed:
    """Seal everything again that the vault's first key has not sealed. Raises NotRotated."""
    total, changed = len([row async for row in sealed.rows(db)]), 0
    for _ in range(ROUNDS_MAX):
        left = [row async for row in sealed.rows(db, without=head_of(vault.kid))]
        if not left:
            return Resealed(total, changed)
        failed = []
        for row in left:
            try:
                changed += await _again(db, vault, row)
            except WrongMasterKey as error:
                failed.append(str(error))
        if failed:
            raise NotRotated(f"{changed} of {total} values are sealed anew, but {'; '.join(failed)}")
    raise NotRotated("values change faster than they are sealed again: run the command again")


async def _again(db: Db, vault: Vault, row: sealed.SealedRow) -> bool:
    plain = vault.open(row.name, row.sealed, Raw, subject=row.subject)
    return await sealed.replace(db, row, vault.seal(row.name, plain))
