"""The admin key is replaced while every process runs: the new one, and the end of the old one, are rows.

What the settings or the data folder name is the admin key unless a row says that it is over, so a process
that was started with the old one refuses it when the overlap ends, and needs no restart. The rows stay, also
when they are deleted by their id: an old key that a setting still names is never good again. A key that an
operator sets by hand needs no row.
"""

import hmac
import logging
import uuid

import psycopg
from msgspec import Struct

from app.access import api_keys
from app.access.api_keys import ApiKey
from app.access.callers import ADMIN, Caller
from app.config.key_text import make_secret
from app.config.rotation import keep_admin_key
from app.config.settings import Keys, Settings
from app.database.pool import Pool

ROW = "".join(
    (
        "SELECT ",
        api_keys.COLUMNS,
        ", coalesce(ledger.keys.expires_at <= now(), false) AS over FROM ledger.keys WHERE hash = %(hash)s",
    )
)
IS_ADMIN = "SELECT admin AS yes FROM ledger.keys WHERE id = %(id)s::uuid"
# Whoever replaces the same key waits here for who came first, and then ends what that one made.
END_CONFIGURED = """INSERT INTO ledger.keys AS k (id, name, hash, scopes, admin, expires_at)
 VALUES (%(old_id)s, %(name)s, %(old)s, '{admin}', true, now() + make_interval(secs => %(seconds)s))
 ON CONFLICT (hash) DO UPDATE SET expires_at = least(k.expires_at, excluded.expires_at)"""
END_OTHERS = """UPDATE ledger.keys
 SET expires_at = least(expires_at, now() + make_interval(secs => %(seconds)s))
 WHERE admin AND hash <> %(old)s"""
MAKE = """INSERT INTO ledger.keys (id, name, hash, scopes, admin)
 VALUES (%(id)s, %(name)s, %(new)s, '{admin}', true)"""
OTHERS = "".join((api_keys.SELECT, "WHERE admin AND hash <> %(hash)s AND ", api_keys.GOOD))
log = logging.getLogger("chatledger.keys")


class _Row(ApiKey, frozen=True):
    over: bool


class _Found(Struct):
    yes: bool


async def configured(pool: Pool, keys: Keys) -> Caller | None:
    """Returns who asks with the admin key that this process was started with; None if it is over.

    Raises psycopg.OperationalError.
    """
    rows = await pool.fetch(_Row, ROW, {"hash": api_keys.hash_of(keys.admin)})
    if not rows:
        return ADMIN
    return None if rows[0].over else api_keys.caller_of(rows[0])


def is_configured(keys: Keys, text: str) -> bool:
    """Whether a text is the admin key that this process was started with, compared in constant time."""
    return hmac.compare_digest(text.encode(), keys.admin.encode())


async def is_admin_key(pool: Pool, key_id: str) -> bool:
    """Whether a key, by its id, is one that replaced the admin key, or was replaced."""
    return any(one.yes for one in await pool.fetch(_Found, IS_ADMIN, {"id": key_id}))


async def replace(pool: Pool, keys: Keys, settings: Settings, seconds: int) -> tuple[str, str]:
    """Make a new admin key; returns its id and itself. Every other one is over in so many seconds.

    It is kept in the data folder if the old one was. Raises psycopg.Error.
    """
    new, new_id = make_secret(), str(uuid.uuid4())
    values: dict[str, object] = {
        "name": ADMIN.name,
        "old": api_keys.hash_of(keys.admin),
        "new": api_keys.hash_of(new),
    }
    values |= {"id": new_id, "old_id": str(uuid.uuid4()), "seconds": seconds}
    async with pool.connection() as db, db.transaction():
        for statement in (END_CONFIGURED, END_OTHERS, MAKE):
            await db.execute(statement, values)
    if settings.admin_key is None:
        try:
            keep_admin_key(settings.data, new)
        except OSError as error:  # It is good already, and who asked for it is given it.
            log.error("the new admin key is not kept in the data folder: %s", error)
    return new_id, new


async def warn(pool: Pool, keys: Keys) -> None:
    """Write into the log which admin keys are good beside the one that this process was started with."""
    try:
        rows = await pool.fetch(ApiKey, OTHERS, {"hash": api_keys.hash_of(keys.admin)})
    except psycopg.OperationalError:
        return
    for one in rows:
        log.warning(
            "the admin key %s of %s is good, though neither the settings nor the data folder name it: set"
            " CHATLEDGER_ADMIN_KEY to it, or delete it (chatledger keys delete %s)",
            one.id,
            one.created_at,
            one.id,
        )
