"""Keys of the API: shown once when they are made, kept as hashes, limited in rights and to accounts.

A key is random (config/key_text.py), so that one round of SHA-256 hides it as well as many would. Nothing is
remembered between requests: each asks the database for its key, and a key that was deleted is refused by
every process from then on. Rows with `admin` are admin keys (admin_key.py), which end and stay.
"""

import uuid
from collections.abc import Sequence
from hashlib import sha256
from typing import get_args

from msgspec import Struct

from app.access.callers import Caller, Right
from app.config.key_text import is_key, make_secret
from app.database.pool import Pool

RIGHTS: tuple[Right, ...] = get_args(Right)
# Chosen: an integrator has a key for each account, and a list of them is read whole.
KEYS_MAX = 10_000

COLUMNS = """id::text, name, scopes, accounts,
 to_char(created_at, 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS created_at,
 to_char(expires_at, 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS expires_at,
 to_char(last_used_at, 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS last_used_at
"""
SELECT = "".join(("SELECT ", COLUMNS, "FROM ledger.keys "))
GOOD = "(expires_at IS NULL OR expires_at > now())"
FIND = "".join((SELECT, "WHERE hash = %(hash)s AND ", GOOD))
OF_ID = "".join((SELECT, "WHERE id = %(id)s::uuid AND ", GOOD))
LIST = "".join((SELECT, "ORDER BY ledger.keys.created_at, id"))
MAKE = "".join(
    (
        "INSERT INTO ledger.keys (id, name, hash, scopes, accounts, expires_at)",
        " SELECT %(id)s::uuid, %(name)s, %(hash)s, %(scopes)s::text[], %(accounts)s::text[],",
        " %(expires_at)s::timestamptz WHERE (SELECT count(*) FROM ledger.keys) < %(most)s::bigint RETURNING ",
        COLUMNS,
    )
)
DELETE = "DELETE FROM ledger.keys WHERE id = %(id)s::uuid AND NOT admin RETURNING id::text"
END = """UPDATE ledger.keys SET expires_at = least(expires_at, now()) WHERE id = %(id)s::uuid AND admin
 RETURNING id::text"""
DELETE_OF = "DELETE FROM ledger.keys WHERE accounts = ARRAY[%(account)s::text] RETURNING id::text"
RETIRE = "".join(
    (
        "UPDATE ledger.keys SET expires_at = least(expires_at, now() + make_interval(secs => %(seconds)s))",
        " WHERE id = %(id)s::uuid AND ",
        GOOD,
        " RETURNING id::text",
    )
)


class ApiKey(Struct, frozen=True):
    """A key without its secret. `accounts` are the only ones that it reaches, null for all of them."""

    id: str
    name: str
    scopes: list[Right]
    accounts: list[str] | None
    created_at: str
    expires_at: str | None
    last_used_at: str | None


class TooManyKeys(Exception):
    """There are KEYS_MAX keys already: delete some."""


class _Id(Struct):
    id: str


def hash_of(key: str) -> bytes:
    """Returns what is kept of a key."""
    return sha256(key.encode()).digest()


def caller_of(key: ApiKey) -> Caller:
    """Returns who asks with a key."""
    accounts = None if key.accounts is None else frozenset(key.accounts)
    return Caller(key.id, key.name, frozenset(key.scopes), accounts)


async def find(pool: Pool, text: str) -> Caller | None:
    """Returns who asks with a key; None if it is unknown or over. Raises psycopg.OperationalError."""
    if not is_key(text):
        return None
    found = await pool.fetch(ApiKey, FIND, {"hash": hash_of(text)})
    return caller_of(found[0]) if found else None


async def get(pool: Pool, key_id: str) -> ApiKey | None:
    """Returns the key of this id; None if it is unknown or over. Raises psycopg.OperationalError."""
    found = await pool.fetch(ApiKey, OF_ID, {"id": key_id})
    return found[0] if found else None


async def make(
    pool: Pool,
    name: str,
    scopes: Sequence[Right],
    accounts: Sequence[str] | None,
    expires_at: str | None,
) -> tuple[ApiKey, str]:
    """Make a key; returns it and its secret, which is shown only now.

    Raises TooManyKeys, psycopg.OperationalError.
    """
    text = make_secret()
    values = {
        "id": str(uuid.uuid4()),
        "name": name,
        "hash": hash_of(text),
        "scopes": list(dict.fromkeys(scopes)),
        "accounts": None if accounts is None else sorted({one.lower() for one in accounts}),
        "expires_at": expires_at,
        "most": KEYS_MAX,
    }
    made = await pool.fetch(ApiKey, MAKE, values, prepare=False)
    if not made:
        raise TooManyKeys(f"there are {KEYS_MAX:,} keys: delete some that are not used any more")
    return made[0], text


async def list_keys(pool: Pool) -> list[ApiKey]:
    """Returns every key, the oldest first, also those that are over. Raises psycopg.OperationalError."""
    return await pool.fetch(ApiKey, LIST, {})


async def delete(pool: Pool, key_id: str) -> bool:
    """Delete a key; returns whether there was one. No process takes it from then on.

    An admin key is over, and its row stays, because a setting may still name it.
    """
    return any([await pool.fetch(_Id, statement, {"id": key_id}) for statement in (DELETE, END)])


async def delete_of(pool: Pool, account: str) -> int:
    """Delete the keys that reach only this account; returns how many there were."""
    return len(await pool.fetch(_Id, DELETE_OF, {"account": account}))


async def retire(pool: Pool, key_id: str, seconds: float) -> None:
    """Let a key be over in so many seconds, if it is not so sooner."""
    await pool.fetch(_Id, RETIRE, {"id": key_id, "seconds": seconds})
