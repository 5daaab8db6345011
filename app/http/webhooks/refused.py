"""Hooks that cannot be read are kept whole and listed, for Kommo does not send them again."""

import logging
import uuid

from msgspec import Struct

from app.database.pool import Pool
from app.printable import printable
from app.views.cursor import LIMIT

log = logging.getLogger("chatledger.webhooks")

KEEP = """INSERT INTO ledger.refused (id, scope_id, received_at, reason, body)
 VALUES (%s, %s, now(), %s, %s)"""

REFUSED = """
SELECT id::text, scope_id, to_char(received_at, 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS received_at, reason, body
FROM ledger.refused ORDER BY received_at DESC, id LIMIT %(limit)s::bigint
"""


class RefusedHook(Struct, frozen=True):
    """A signed hook that could not be read; `body` is its exact bytes."""

    id: str
    scope_id: str
    received_at: str
    reason: str
    body: bytes


async def keep(pool: Pool, scope_id: str, reason: str, body: bytes, *, what: str) -> str:
    """Keep the exact bytes of a hook, and return the id it is listed under.

    `what` names the kind of hook in the log. Raises psycopg.OperationalError.
    """
    refused = str(uuid.uuid4())
    async with pool.connection() as db:
        await db.execute(KEEP, (refused, scope_id, printable(reason), body))
    log.error("%s was refused and kept: id %s, %d bytes", what, refused, len(body))
    return refused


async def list_refused(pool: Pool, limit: int = LIMIT) -> list[RefusedHook]:
    """Signed hooks that could not be read, the latest first."""
    return await pool.fetch(RefusedHook, REFUSED, {"limit": limit})
