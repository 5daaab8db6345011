"""The secret addresses of the CRM's webhooks, which can be renewed for one account.

Kommo's CRM signs nothing, so an account's address has a key that is made of the ledger's own key, the account
and a nonce. Without a row the nonce is empty. A new nonce makes a new address, and the old one leads nowhere
any more: on this process at once, on every other within LEASE_SECONDS.
"""

import asyncio
import os
from time import monotonic

from msgspec import Struct

from app.access.keyring import Keyring
from app.database.pool import Pool
from app.kommo.crm.hooks import hook_path

LEASE_SECONDS = 1.0  # Chosen: one small read a second, whoever knocks, and a renewal takes as long.
SETTLE_FACTOR = 1.2  # Chosen: a margin over the lease for an answer that is on its way.
NONCE_BYTES = 16
NONCES = "SELECT account_id, nonce FROM ledger.crm_addresses"
RENEW = """INSERT INTO ledger.crm_addresses (account_id, nonce, renewed_at) VALUES (%s, %s, now())
 ON CONFLICT (account_id) DO UPDATE SET nonce = excluded.nonce, renewed_at = excluded.renewed_at"""


class Nonce(Struct):
    """The nonce of an account whose address was renewed."""

    account_id: str
    nonce: bytes


class Addresses:
    """The addresses in force."""

    def __init__(self, pool: Pool, keyring: Keyring) -> None:
        self._pool, self._keyring = pool, keyring
        self._nonces: dict[str, bytes] = {}
        self._read_at = -LEASE_SECONDS

    async def path(self, account: str) -> str:
        """Returns the path of an account's webhooks. Raises WrongMasterKey, psycopg.Error, ViewsMissing."""
        if monotonic() - self._read_at > LEASE_SECONDS:
            await self._read()
        return await self.path_of(account, self._nonces.get(account, b""))

    async def path_of(self, account: str, nonce: bytes) -> str:
        """Returns the path that a nonce makes. Raises WrongMasterKey, psycopg.Error."""
        return hook_path(await self._keyring.address_key(), account, nonce)

    async def renew(self, account: str, nonce: bytes) -> None:
        """Put the path of this nonce in force; returns once every process knows it.

        Raises psycopg.Error, ViewsMissing.
        """
        async with self._pool.connection() as db:
            await db.execute(RENEW, (account, nonce))
        await self._read()
        await asyncio.sleep(LEASE_SECONDS * SETTLE_FACTOR)

    async def _read(self) -> None:
        begun = monotonic()
        self._nonces = {row.account_id: row.nonce for row in await self._pool.fetch(Nonce, NONCES, {})}
        self._read_at = begun


def new_nonce() -> bytes:
    """Returns a nonce that nobody can guess."""
    return os.urandom(NONCE_BYTES)
