"""Connects a channel again that Kommo has dropped: the only place, for all jobs of the connection together.

Reinstalling the integration silently drops the connections of an account; Kommo then answers 404 or 403 to
every push. Four rules keep connecting again harmless: one job of a connection does it while the others wait
and count it as theirs; it happens at most once a minute, and ever more seldom while it is no use; an account
that has uninstalled the integration is left alone; and an operator who disconnects the channel is never
overruled. For the last, whoever connects or disconnects a channel takes a turn with the others, in all
processes, and looks into the ledger once the turn is there; and the ledger does not record a connection that
was made again if an operator has ended it since.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from msgspec.structs import replace

from app.channels.directory import Channel, Connection
from app.clock import Clock
from app.delivery.job import DISCONNECTED, Disconnected, Lost, Reconnected
from app.http_client import RETRIED, Answer, Unreached
from app.kommo.chats.scope import named
from app.kommo.chats.signature import Credentials
from app.outcome import Retry
from domain.ids import Scope

# Chosen: longer than it takes from Kommo's answer until every process knows of a disconnection. An operator's
# disconnection reaches Kommo first and the ledger after, so a 404 may only mean that one is under way.
OPERATOR_SECONDS = 1.0
# Chosen: a reinstallation takes an administrator some minutes, so once a minute is soon enough to notice it.
RECONNECT_SECONDS = 60.0
# Chosen: Kommo may forget a connection again, but one that is refused every time needs a human.
RECONNECT_SECONDS_MAX = 3600.0
log = logging.getLogger("chatledger.push")


class Directory(Protocol):
    """The channels in force."""

    async def channel(self, name: str) -> Channel | None:
        """A registered channel, with its connections."""


class Connector(Protocol):
    """The one call of Kommo that is needed here."""

    async def connect(
        self, who: Credentials, account: str, title: str, *, is_time_window_disabled: bool = False
    ) -> Answer:
        """Connect the channel to an account. Raises Unreached."""


class Attempts(Protocol):
    """Where an operator sees how the last attempt to connect ended."""

    async def record(
        self, channel: str, account: str = "", problem: str | None = None, answer: str = ""
    ) -> None:
        """Keep how an attempt ended; no problem: it succeeded."""

    def turn(self, channel: str, account: str) -> AbstractAsyncContextManager[None]:
        """Hold the turn to connect a channel to an account, or to disconnect it; waits for it."""

    async def is_connected(self, scope: Scope) -> bool:
        """Whether the channel is connected as the ledger has it now."""


class _Latest:
    """The latest attempt for one connection."""

    def __init__(self) -> None:
        self.turn = asyncio.Lock()
        self.at = float("-inf")
        self.pause = 0.0
        self.refused = ""
        self.answer: str | None = None

    def ended(self, at: float, refused: str, answer: str) -> None:
        """Kommo has answered; the next attempt has to wait twice as long as this one."""
        self.answer = answer if refused else None
        self.at = at
        self.pause = min(max(self.pause * 2, RECONNECT_SECONDS), RECONNECT_SECONDS_MAX)
        self.refused = refused


class Reconnector:
    """Connects again on behalf of the jobs that met 404 or 403.

    `has_ended` says of an account whether it has ended the integration, for good: then it is left so.
    """

    def __init__(
        self,
        kommo: Connector,
        directory: Directory,
        attempts: Attempts,
        clock: Clock,
        has_ended: Callable[[str], Awaitable[bool]] | None = None,
    ) -> None:
        self._kommo = kommo
        self._has_ended = has_ended
        self._directory = directory
        self._attempts = attempts
        self._clock = clock
        self._latest: dict[tuple[str, str], _Latest] = {}

    def works(self, connection: Connection) -> None:
        """Kommo has accepted a push: the next time, connecting again need not wait longer than a minute."""
        if latest := self._latest.get(_key(connection)):
            latest.pause = 0.0

    async def reconnect(
        self, connection: Connection, tried_at: float
    ) -> Reconnected | Retry | Lost | Disconnected:
        """Connect again, unless that was done since `tried_at` (seconds of the clock) or lately in vain."""
        latest = self._latest.setdefault(_key(connection), _Latest())
        async with latest.turn:
            if latest.at > tried_at and not latest.refused:
                return Reconnected(None)
            if self._clock.time() - latest.at < max(latest.pause, RECONNECT_SECONDS):
                reason = "Kommo does not know it (404), also after connecting again"
                return Lost(latest.refused or reason, latest.answer)
            scope = connection.scope
            if self._has_ended and await self._has_ended(scope.account):
                return Disconnected(DISCONNECTED)
            found = await still_connected(self._directory, self._clock, scope.channel, scope.account)
            if found is None:
                return Disconnected(DISCONNECTED)
            async with self._attempts.turn(scope.channel, scope.account):
                if not await self._attempts.is_connected(scope):
                    return Disconnected(DISCONNECTED)
                return await self._connect(*found, latest)

    async def _connect(
        self, channel: Channel, connection: Connection, latest: _Latest
    ) -> Reconnected | Retry | Lost:
        try:
            answer = await self._kommo.connect(
                Credentials(channel.channel_id, channel.secrets.kommo),
                connection.scope.account,
                connection.title,
                is_time_window_disabled=connection.is_time_window_disabled,
            )
        except Unreached as error:
            return Retry(f"connecting again failed: {error.reason}")
        if answer.html or answer.status in RETRIED or answer.status >= 500:
            return Retry(f"connecting again failed: HTTP {answer.status}", answer.retry_after)
        refused = "" if answer.status == 200 else f"connecting again failed: HTTP {answer.status}"
        latest.ended(self._clock.time(), refused, answer.text)
        text = answer.text if refused else ""
        await self._attempts.record(channel.name, connection.scope.account, refused or None, text)
        if refused:
            return Lost(refused, answer.text)
        log.warning("channel %s was not connected to the account any more: connected again", channel.name)
        return Reconnected(replace(connection, scope=named(answer, connection.scope)))


async def still_connected(
    directory: Directory, clock: Clock, name: str, account: str
) -> tuple[Channel, Connection] | None:
    """Give an operator who is disconnecting the time to finish; None if the channel is disconnected then."""
    await clock.sleep(OPERATOR_SECONDS)
    channel = await directory.channel(name)
    connection = channel.connections.get(account) if channel else None
    if channel is None or connection is None or not connection.connected:
        return None
    return channel, connection


def _key(connection: Connection) -> tuple[str, str]:
    return connection.scope.channel, connection.scope.account
