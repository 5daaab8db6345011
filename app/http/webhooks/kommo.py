"""The two webhooks, as plain functions: bytes in, an answer out once everything is durable."""

import asyncio
import logging
import uuid
from collections.abc import Mapping

import psycopg

from app.channels.directory import Channels
from app.database.connection import connect
from app.http.webhooks.body import BUSY, OK, RETRY_AFTER_SECONDS, UNSIGNED, Answer
from app.http.webhooks.messenger import _bad, _commands, _connection, _path, _results, _secrets
from app.http.webhooks.refused import KEEP, OLD_HOOK, SIGNED_HOOK
from app.kommo.chats import hooks
from app.kommo.chats.hooks import BadHook
from app.kommo.chats.signature import signed
from app.ledger.writer import Full, Ledger, TooLarge, Unavailable
from app.messengers import checks, webhook
from app.messengers.checks import BadAction
from app.problems import Wrong

log = logging.getLogger("chatledger.webhooks")


class Webhooks:
    """What Kommo and the messengers may tell us."""

    def __init__(self, url: str, ledger: Ledger, channels: Channels) -> None:
        self._url = url
        self._ledger = ledger
        self._channels = channels

    async def kommo(self, scope_id: str, signature: str, body: bytes) -> Answer:
        """`POST /kommo/{scope_id}`: 200 once the hook is durable; raises Wrong."""
        channels = self._channels
        if not channels.fresh_ahead():
            await self._refresh()
        scope = channels.known_scope(scope_id)
        if scope is None:
            raise Wrong(404, "no channel is connected under this scope id")
        if not signed(scope, signature, body):
            raise Wrong(403, UNSIGNED)
        try:
            command = hooks.command(scope.connection.link, body)
        except BadHook as error:
            what = OLD_HOOK if error.old else SIGNED_HOOK
            raise await self._keep(scope_id, body, str(error), what) from None
        try:
            await self._ledger.submit(command, len(body))
        except (Full, Unavailable):
            raise Wrong(503, BUSY, retry_after=RETRY_AFTER_SECONDS) from None
        except TooLarge:
            raise await self._keep(scope_id, body, "larger than an event may be") from None
        return OK

    async def _refresh(self) -> None:
        try:
            await self._channels.refresh()
        except psycopg.OperationalError:
            raise Wrong(503, BUSY, retry_after=RETRY_AFTER_SECONDS) from None

    async def _keep(self, scope_id: str, body: bytes, reason: str, what: str = SIGNED_HOOK) -> Wrong:
        """Keep a signed hook that we cannot read: Kommo will not send it again."""
        refused = uuid.uuid4()
        try:
            async with await connect(self._url) as connection:
                await connection.execute(KEEP, (refused, scope_id, reason.replace("\0", "\ufffd"), body))
        except psycopg.OperationalError:
            return Wrong(503, BUSY, retry_after=RETRY_AFTER_SECONDS)
        log.error("%s was refused and kept: id %s, %d bytes", what, refused, len(body))
        return Wrong(400, f"the hook cannot be read, and is kept as {refused} (GET /v1/refused): {reason}")

    async def messenger(self, name: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """`POST /messengers/{channel}`: 200 with a result an action once all are durable; raises Wrong."""
        await self._refresh()
        channel = await self._channels.channel(name)
        if channel is None:
            raise Wrong(404, "no channel has this name: register it with POST /v1/channels")
        if not webhook.verified(_secrets(channel), headers, body):
            raise Wrong(401, UNSIGNED)
        if not channel.accounts:
            raise Wrong(409, "the channel is not connected yet: POST /v1/channels/{name}/connections")
        try:
            parsed = checks.parse(body)
        except BadAction as error:
            raise _bad(error.path, error.message) from None
        where = [_connection(channel, action, _path(parsed, n)) for n, action in enumerate(parsed.actions)]
        commands = _commands(channel, parsed, where)
        if not self._ledger.has_room(len(commands), len(body)):
            raise Wrong(503, BUSY, retry_after=RETRY_AFTER_SECONDS)
        size = len(body) // len(commands)
        futures = [self._ledger.submit(command, size) for command in commands]
        done = await asyncio.gather(*futures, return_exceptions=True)
        return _results(parsed, done)
