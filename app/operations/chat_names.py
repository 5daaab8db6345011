"""Kommo's id of a chat that a customer began is asked for, once, unless a hook names it first.

Theory of operation. The answer to a new message does not name Kommo's chat; a hook does, when a manager
writes. Until then the CRM's webhooks about the chat, its contact and its lead wait. `POST …/chats` returns
the chat of our conversation id and changes nothing if it is there. It is called after Kommo has accepted the
first message, because a chat that is created empty makes no incoming lead.

A conversation is found in the view by its position, which moves with each message: a cursor follows those
without a chat, and puts those with a message of the last day into `_waiting`. After DELAY_SECONDS each is
looked at again: it has its chat (a hook was first), or Kommo has accepted nothing yet (again later), or it is
asked for. If very many wait, what was looked at in vain gives its place to others, or one account that takes
nothing would keep all others waiting. A row in `ledger.chat_questions` is the claim of one process; it is
deleted with the answer, lets the question be repeated ever later while Kommo does not answer, and stays where
Kommo refuses.

The questions are behind live traffic: they take permits as imports do, and few at once.
"""

import asyncio
import logging
from time import monotonic
from typing import NoReturn

import psycopg
from msgspec import Struct

from app.database.pool import ViewsMissing
from app.operations import conversations
from app.operations.conversations import CustomerUnknown
from app.operations.errors import KommoFailed, OperationError
from app.operations.services import Services
from app.vault import WrongMasterKey
from domain.ids import KOMMO

DELAY_SECONDS = 5.0  # Chosen: a hook often names the chat by then, which saves the question.
LOOK_SECONDS = 2.0  # Chosen: as contact links, which wait for the answer.
LATER_SECONDS = 30.0  # Chosen: how often a chat is looked at whose first message Kommo has not accepted.
PAGE = 1000  # Chosen: some milliseconds of reading at a time.
WAITING_MAX = 10_000  # Chosen: a megabyte; what finds no place is read later.
AT_ONCE = 50  # Chosen: at most 25 questions a second, far below the traffic that they are behind.
PATIENCE_SECONDS = 5.0  # Chosen: an account whose budget is used up stops no other's questions for longer.
FINAL = (400, 409, 413, 422)  # The conversation's own fault; any other answer is the account's, or passes.
log = logging.getLogger("chatledger.chats")

FOUND = """SELECT id::text, position,
 coalesce(conversation_id IS NOT NULL AND last_message_at > now() - interval '1 day', false) AS fresh
 FROM conversations WHERE chat_id IS NULL AND position > %(after)s::bigint
 ORDER BY position LIMIT %(limit)s::bigint"""
NAMELESS = """SELECT c.id::text, c.channel, c.account_id, c.conversation_id,
 coalesce(c.last_message_at > now() - interval '1 day', false) AS fresh,
 EXISTS (SELECT FROM messages AS m WHERE m.conversation = c.id AND m.sent_by = 'messenger'
   AND m.remote_id IS NOT NULL) AS accepted
 FROM conversations AS c WHERE c.id = ANY (%(ids)s::uuid[]) AND c.chat_id IS NULL"""
CLAIM = """INSERT INTO ledger.chat_questions AS q (conversation, tries, again_at)
 VALUES (%s::uuid, 1, now() + interval '1 minute') ON CONFLICT (conversation) DO UPDATE
 SET tries = q.tries + 1, again_at = now() + least(interval '1 minute' * 2 ^ q.tries, interval '6 hours')
 WHERE q.again_at < now()"""
REFUSED = "UPDATE ledger.chat_questions SET again_at = 'infinity' WHERE conversation = %s::uuid"
ANSWERED = "DELETE FROM ledger.chat_questions WHERE conversation = %s::uuid"


class Found(Struct):
    """A conversation without a chat; `fresh`: the messenger has a name for it, and somebody wrote lately."""

    id: str
    position: int
    fresh: bool


class Nameless(Struct):
    """A conversation that still has no chat; `accepted`: Kommo has a message of its customer."""

    id: str
    channel: str
    account_id: str | None
    conversation_id: str
    fresh: bool
    accepted: bool


class ChatNames:
    """Asks for the chats of new conversations; any number of processes may."""

    def __init__(
        self, services: Services, *, delay_seconds: float = DELAY_SECONDS, waiting_max: int = WAITING_MAX
    ) -> None:
        self._services, self._delay, self._waiting_max = services, delay_seconds, waiting_max
        self._after = 0
        self._waiting: dict[str, float] = {}

    async def run(self) -> NoReturn:
        """Ask, again and again, until cancelled."""
        while True:
            try:
                await self.look()
            except (psycopg.Error, ViewsMissing, WrongMasterKey, OperationError) as error:
                log.warning("chats are asked for later: %s", str(error).strip() or type(error).__name__)
            await asyncio.sleep(LOOK_SECONDS)

    async def look(self) -> None:
        """Find what is new, and ask for what is due. Raises psycopg.Error, ViewsMissing, WrongMasterKey."""
        await self._find()
        now = monotonic()
        due = [id_ for id_, at in self._waiting.items() if at <= now][:AT_ONCE]
        if not due:
            return
        rows = await self._services.pool.fetch(Nameless, NAMELESS, {"ids": due})
        for id_ in due:
            self._waiting.pop(id_)
        accounts: dict[tuple[str, str], list[Nameless]] = {}
        for row in rows:
            if row.fresh and row.account_id:
                if len(self._waiting) < self._waiting_max // 2:  # Else it is found again by its next message.
                    self._waiting[row.id] = now + LATER_SECONDS
                if row.accepted:
                    accounts.setdefault((row.channel, row.account_id), []).append(row)
        await asyncio.gather(*(self._ask_all(*key, rows) for key, rows in accounts.items()))

    async def _find(self) -> None:
        while len(self._waiting) < self._waiting_max:
            values = {"after": self._after, "limit": PAGE}
            rows = await self._services.pool.fetch(Found, FOUND, values)
            due = monotonic() + self._delay
            for row in rows:
                if row.fresh:
                    self._waiting.setdefault(row.id, due)
            self._after = rows[-1].position if rows else self._after
            if len(rows) < PAGE:
                return

    async def _ask_all(self, channel: str, account: str, rows: list[Nameless]) -> None:
        """Ask for an account's chats, one after the other, until Kommo does not answer."""
        for row in rows:
            if await self._claimed(row.id) and not await self._ask(channel, account, row):
                return

    async def _ask(self, name: str, account: str, row: Nameless) -> bool:
        """Whether Kommo answered, though it may be a refusal."""
        services = self._services
        channel = await services.channels.channel(name)
        connection = channel.connections.get(account) if channel else None
        if channel is None or connection is None or not connection.connected:
            return False
        try:
            customer = await conversations.customer_of(services, row.id)
            await conversations.begin(
                services,
                channel,
                connection,
                row.conversation_id,
                customer,
                by=KOMMO,
                patience_seconds=PATIENCE_SECONDS,
            )
        except (KommoFailed, CustomerUnknown) as error:
            if isinstance(error, KommoFailed) and not (error.answer and error.answer.status in FINAL):
                return False
            log.warning("conversation %s: its chat is not asked for again: %s", row.id, error)
            await self._execute(REFUSED, row.id)
        else:
            await self._execute(ANSWERED, row.id)
        self._waiting.pop(row.id, None)
        return True

    async def _claimed(self, id_: str) -> bool:
        return await self._execute(CLAIM, id_) == 1

    async def _execute(self, statement: str, id_: str) -> int:
        async with self._services.pool.connection() as db:
            return (await db.execute(statement, (id_,))).rowcount
