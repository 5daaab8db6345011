"""Whether our master key is the ledger's, and the ledger's own key that secret addresses are made with.

The ledger's key stands sealed in its database since the first start. It opens with the right master key only,
so a wrong one is noticed at once, also before there is any channel. It stays when the master key is rotated:
the addresses that were given to Kommo's CRM stay good.
"""

import base64
import logging
from collections.abc import Sequence
from time import monotonic
from typing import cast

import psycopg
from msgspec import Struct

from app.database import sealed
from app.database.connection import Db, connect
from app.database.sealed import KEYRING, SealedRow
from app.vault import Vault, WrongMasterKey

ADDRESSES = "addresses"
FIND = "SELECT sealed FROM ledger.keyring WHERE name = %s"
ADD = "INSERT INTO ledger.keyring (name, sealed) VALUES (%s, %s) ON CONFLICT (name) DO NOTHING"
RETRY_SECONDS = 1.0  # Chosen: while the key is wrong, the database is asked no more often than this.
log = logging.getLogger("chatledger.keys")


class LedgerKey(Struct, frozen=True):
    """A key of the ledger's own, in base64."""

    key: str

    def __repr__(self) -> str:
        """Shows nothing: a key belongs in no log."""
        return "LedgerKey(…)"


class _Opened(Struct, frozen=True):
    """Any sealed value; that it opens is all that counts."""


class Keyring:
    """Reads the ledger's key, and makes it at the first start.

    `problem` says what is wrong with the master key; it is empty while the key is right.
    """

    def __init__(self, url: str, vault: Vault, masters: Sequence[bytes]) -> None:
        """`masters`: the keys of the vault; the ledger's key begins as the one that is in use."""
        self._url, self._vault, self._masters = url, vault, masters
        self._key: bytes | None = None
        self._tried = -RETRY_SECONDS
        self.problem = ""

    async def address_key(self, *, make: bool = True) -> bytes:
        """Returns the key that secret addresses are made with; if not `make`, none is stored.

        Raises WrongMasterKey, psycopg.Error.
        """
        if self.problem and monotonic() - self._tried < RETRY_SECONDS:
            raise WrongMasterKey(self.problem)
        if self._key is None:
            self._tried = monotonic()
            try:
                async with await connect(self._url) as db:
                    self._key = await self._read(db, make=make)
            except WrongMasterKey as error:
                if not self.problem:
                    log.error("the master key is wrong, so no secret can be used: %s", error)
                self.problem = str(error)
                raise
            if self.problem:
                log.info("the master key is right now")
            self.problem = ""
        return self._key

    async def check(self) -> str:
        """Returns what is wrong with the master key, empty if nothing is; asks again while something is."""
        if self._key is None:
            try:
                await self.address_key()
            except (WrongMasterKey, psycopg.Error) as error:
                return str(error).strip()
        return ""

    async def _read(self, db: Db, *, make: bool) -> bytes:
        if not (found := await _find(db)):
            in_use = await self._in_use(db)
            if not make:
                return in_use
            first = LedgerKey(base64.b64encode(in_use).decode())
            await db.execute(ADD, (ADDRESSES, self._vault.seal(_row(b"").name, first)))
            found = await _find(db)
        row = _row(found)
        return base64.b64decode(self._vault.open(row.name, found, LedgerKey, subject=row.subject).key)

    async def _in_use(self, db: Db) -> bytes:
        """The master key that sealed what an older version's ledger holds: its addresses were made with it.

        The first of ours if nothing is sealed. Raises WrongMasterKey if none of ours opens anything.
        """
        wrong: WrongMasterKey | None = None
        async for row in sealed.rows(db):
            for master in self._masters:
                try:
                    Vault(master).open(row.name, row.sealed, _Opened, subject=row.subject)
                except WrongMasterKey as error:
                    wrong = error
                else:
                    return master
        if wrong:
            raise wrong
        return self._masters[0]


async def _find(db: Db) -> bytes:
    row = await (await db.execute(FIND, (ADDRESSES,))).fetchone()
    return cast("bytes", row[0]) if row else b""


def _row(value: bytes) -> SealedRow:
    return SealedRow(KEYRING, ADDRESSES, value)
