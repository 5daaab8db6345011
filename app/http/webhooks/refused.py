"""DOC"""

import logging
import uuid

from msgspec import Struct

from app.operations.services import Services

log = logging.getLogger("chatledger.crmhooks")

KEEP = """INSERT INTO ledger.refused (id, scope_id, received_at, reason, body)
 VALUES (%s, %s, now(), %s, %s)"""
SIGNED_HOOK = "a signed hook"
OLD_HOOK = "a v1 hook (connect the account again: that asks Kommo for v2)"

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


async def _keep(services: Services, account: str, body: bytes, reason: str) -> None:
    """Keep a hook that we cannot read, for people to look at: `GET /v1/refused`."""
    refused = uuid.uuid4()
    async with services.pool.link() as link:
        await link.execute(KEEP, (refused, f"crm:{account}", reason, body))
    log.error("a CRM webhook cannot be read and was kept: id %s, %d bytes", refused, len(body))
