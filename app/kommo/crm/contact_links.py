"""A contact that the CRM names for a chat is linked to the conversation, also when it comes before the chat.

Kommo's name of a chat that a customer began reaches us with the first hook about the chat. The CRM reports
the chat's talk as soon as the customer writes, and so may be first. Then the link waits in `ledger.links`: a
row is written by the CRM webhook if no conversation has the chat, and deleted here once its conversation is
in the view and the command is in the ledger. Any number of processes may do this at the same time: a link
that is recorded already records nothing again. A link waits as long as it takes; of each account the latest
100,000 are kept.
"""

import asyncio
import logging
from time import monotonic
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

LOOK_SECONDS = 2.0  # Chosen: a link is shown soon enough, and the query costs nothing while nothing waits.
TRIM_SECONDS = 3600.0  # Chosen: an account's links grow by its new chats, some thousands an hour.
# Chosen, of each account: some 10 MB. The CRM reports the chats of other integrations' channels as well;
# those never get a conversation, and nothing tells them apart.
KEPT_MAX = 100_000
ROWS_MAX = 200  # Chosen: bounds one round, whose links are recorded one after the other; the rest comes next.
log = logging.getLogger("chatledger.links")

SAVE = """INSERT INTO ledger.links AS l (account_id, chat_id, contact_id, lead_id, changed, told_at)
 SELECT %(account)s::text, %(chat_id)s::text, %(contact_id)s::bigint, %(lead_id)s::bigint,
 %(changed)s::bigint, now() WHERE NOT EXISTS
 (SELECT FROM conversations AS c WHERE c.account_id = %(account)s AND c.chat_id = %(chat_id)s)
 ON CONFLICT (account_id, chat_id) DO UPDATE SET contact_id = excluded.contact_id,
 lead_id = excluded.lead_id, changed = excluded.changed, told_at = excluded.told_at
 WHERE excluded.changed >= l.changed RETURNING chat_id"""
READY = """SELECT l.account_id, l.chat_id, l.contact_id, l.lead_id, l.changed, c.channel,
 c.id::text AS conversation FROM ledger.links AS l JOIN conversations AS c USING (account_id, chat_id)
 ORDER BY l.told_at LIMIT %(limit)s"""
DELETE = """DELETE FROM ledger.links
 WHERE (account_id, chat_id, changed) IN (SELECT * FROM unnest(%s::text[], %s::text[], %s::bigint[]))"""
TRIM = """DELETE FROM ledger.links WHERE (account_id, chat_id) IN (SELECT account_id, chat_id FROM (
 SELECT account_id, chat_id, row_number() OVER latest AS number FROM ledger.links
 WINDOW latest AS (PARTITION BY account_id ORDER BY told_at DESC, chat_id)) AS l WHERE number > %s)"""


class SavedLink(Struct, frozen=True):
    """The chat of a row that was written."""

    chat_id: str


class ReadyLink(Struct, frozen=True):
    """A waiting link, and the conversation that has its chat by now."""

    account_id: str
    chat_id: str
    contact_id: int
    lead_id: int | None
    changed: int
    channel: str
    conversation: str


class LinkServices(Protocol):
    """The parts of a process that linking uses."""

    pool: Pool
    ledger: Ledger
    channels: Channels


async def save(pool: Pool, account: str, chat_id: str, contact_id: int, lead_id: int | None, at: int) -> None:
    """Save the link of a chat that no conversation has; the latest one counts, by `at` in unix seconds.

    Raises ViewsMissing and psycopg.OperationalError.
    """
    values = {"account": account, "chat_id": chat_id, "contact_id": contact_id, "lead_id": lead_id}
    await pool.fetch(SavedLink, SAVE, values | {"changed": at})


async def run(services: LinkServices) -> NoReturn:
    """Link the chats that got their conversations, again and again; any number of processes may."""
    trim_at, failing = monotonic(), ""
    while True:
        try:
            await link_ready(services)
            failing = ""
            if monotonic() >= trim_at:
                await trim(services.pool)
                trim_at = monotonic() + TRIM_SECONDS
        except (psycopg.Error, ViewsMissing, LedgerFull, LedgerUnavailable, WrongMasterKey) as error:
            reason = str(error).strip() or type(error).__name__
            if reason != failing:  # Once, however long it lasts.
                log.warning("contact links wait: %s", reason)
            failing = reason
        await asyncio.sleep(LOOK_SECONDS)


async def trim(pool: Pool) -> None:
    """Drop the oldest links of an account that has more than KEPT_MAX. Raises psycopg.OperationalError."""
    async with pool.connection() as conn:
        dropped = (await conn.execute(TRIM, (KEPT_MAX,))).rowcount
    if dropped:
        log.warning("%d contact links are dropped: an account has over %d that wait", dropped, KEPT_MAX)


async def link_ready(services: LinkServices) -> None:
    """Link the waiting chats that have a conversation by now, and delete their rows."""
    links = await services.pool.fetch(ReadyLink, READY, {"limit": ROWS_MAX})
    channels = await services.channels.all() if links else {}
    for link in links:
        channel = channels.get(link.channel)
        connection = channel.connections.get(link.account_id) if channel else None
        if connection is None:
            continue
        stamp = clock.stamp(connection.scope, link.conversation, KOMMO, now=clock.now_ms())
        command = c.LinkContact(
            **stamp, stream=link.conversation, contact_id=link.contact_id, lead_id=link.lead_id
        )
        try:
            await services.ledger.submit(command)
        except Unknown:
            log.warning("conversation %s is in the view but not in the ledger", link.conversation)
    columns = [
        [link.account_id for link in links],
        [link.chat_id for link in links],
        [link.changed for link in links],
    ]
    async with services.pool.connection() as conn:
        await conn.execute(DELETE, columns)
