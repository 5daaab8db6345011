"""A chat of which Kommo's CRM tells before we know it is linked to its contact once we do.

We learn Kommo's name of a chat that a customer began from the first hook about it, and its talk is told when
the customer writes. What was told waits in a table until the view of conversations has that name.
"""

import asyncio
import logging
from typing import NoReturn, Protocol

import psycopg
from msgspec import Struct

from app import clock
from app.channels.directory import Channels
from app.database.pool import Pool, ViewsMissing
from app.ledger.writer import Ledger, LedgerFull, LedgerUnavailable
from app.vault import WrongMasterKey
from domain import commands as c
from domain.decide import Unknown
from domain.ids import KOMMO

LOOK_SECONDS = 2.0
AT_ONCE = 200
log = logging.getLogger("chatledger.links")

KEEP = """INSERT INTO ledger.links AS l (account_id, chat_id, contact_id, lead_id, changed, told_at)
 SELECT %(account)s::text, %(chat_id)s::text, %(contact_id)s::bigint, %(lead_id)s::bigint,
 %(changed)s::bigint, now() WHERE NOT EXISTS
 (SELECT FROM conversations AS c WHERE c.account_id = %(account)s AND c.chat_id = %(chat_id)s)
 ON CONFLICT (account_id, chat_id) DO UPDATE SET contact_id = excluded.contact_id,
 lead_id = excluded.lead_id, changed = excluded.changed, told_at = excluded.told_at
 WHERE excluded.changed >= l.changed RETURNING chat_id"""
FOUND = """SELECT l.account_id, l.chat_id, l.contact_id, l.lead_id, l.changed, c.channel,
 c.id::text AS conversation FROM ledger.links AS l JOIN conversations AS c USING (account_id, chat_id)
 ORDER BY l.told_at LIMIT %(limit)s"""
# Chats of other integrations' channels are told as well, and never become known.
FORGET = """DELETE FROM ledger.links WHERE told_at < now() - interval '7 days'
 OR (account_id, chat_id, changed) IN (SELECT * FROM unnest(%s::text[], %s::text[], %s::bigint[]))"""


class Kept(Struct, frozen=True):
    """A chat that waits."""

    chat_id: str


class Found(Struct, frozen=True):
    """A chat that waited, and the conversation that it turned out to be."""

    account_id: str
    chat_id: str
    contact_id: int
    lead_id: int | None
    changed: int
    channel: str
    conversation: str


class Parts(Protocol):
    """What linking needs of a process."""

    pool: Pool
    ledger: Ledger
    channels: Channels


async def keep(pool: Pool, account: str, chat_id: str, contact_id: int, lead_id: int | None, at: int) -> None:
    """Let a chat wait that no conversation has; the latest told (`at`, unix seconds) counts.

    Raises ViewsMissing and psycopg.OperationalError.
    """
    values = {"account": account, "chat_id": chat_id, "contact_id": contact_id, "lead_id": lead_id}
    await pool.fetch(Kept, KEEP, values | {"changed": at})


async def run(parts: Parts) -> NoReturn:
    """Scope what has become known, again and again; any number of processes may."""
    while True:
        try:
            await link(parts)
        except (psycopg.Error, ViewsMissing, LedgerFull, LedgerUnavailable, WrongMasterKey) as error:
            log.warning("chats wait to be linked: %s", str(error).strip() or type(error).__name__)
        await asyncio.sleep(LOOK_SECONDS)


async def link(parts: Parts) -> None:
    """Scope the waiting chats whose conversations are known by now."""
    found = await parts.pool.fetch(Found, FOUND, {"limit": AT_ONCE})
    known = await parts.channels.all() if found else {}
    for one in found:
        channel = known.get(one.channel)
        connection = channel.connections.get(one.account_id) if channel else None
        if connection is None:
            continue
        stamp = clock.stamp(connection.scope, one.conversation, KOMMO, now=clock.now_ms())
        order = c.LinkContact(
            **stamp, stream=one.conversation, contact_id=one.contact_id, lead_id=one.lead_id
        )
        try:
            await parts.ledger.submit(order)
        except Unknown:
            log.warning("conversation %s is shown but not in the ledger", one.conversation)
    columns = [
        [one.account_id for one in found],
        [one.chat_id for one in found],
        [one.changed for one in found],
    ]
    async with parts.pool.connection() as database:
        await database.execute(FORGET, columns)
