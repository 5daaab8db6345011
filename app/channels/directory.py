"""Which channels and connections are in force, on every web process within the lease; their secrets, sealed.

A process asks the database at most every `LEASE_SECONDS` whether anything changed, and never trusts what it
knows for longer; whoever changes something waits that long before answering. So an answered change is in
force everywhere. Secrets are sealed with AES-256-GCM (the channel's name is authenticated with them) and are
never in an event, a log or an answer.
"""

import asyncio
import contextlib
from collections.abc import Mapping
from time import monotonic
from typing import cast

import psycopg
from msgspec import Struct, field

from app import clock
from app.database.connection import Db, connect
from app.vault import Vault
from domain.ids import Scope, scope_of

LEASE_SECONDS = 0.1
PREVIOUS_SECRET_MS = 24 * 3_600_000

CHANGED = """SELECT coalesce(greatest((SELECT max(position) FROM views.channels),
 (SELECT max(position) FROM views.connections)), 0)"""
CHANNELS = """SELECT c.name, c.channel_id, c.kind, c.url, c.bot_id, s.sealed
 FROM views.channels c JOIN ledger.secrets s ON s.channel = c.name"""
# Of the whole row, for views of an older version, which are in force while new ones are made, lack a column.
CONNECTIONS = """SELECT channel, account_id, title, connected, connected_at,
 coalesce((to_jsonb(c) ->> 'is_time_window_disabled')::boolean, false) FROM views.connections AS c"""
SEALED = "SELECT channel_id, sealed FROM ledger.secrets WHERE channel = %s"
ADD = """INSERT INTO ledger.secrets (channel, channel_id, sealed) VALUES (%s, %s, %s)
 ON CONFLICT (channel) DO NOTHING RETURNING channel"""
# The link broke while it lay idle, or the views were switched between a statement's planning and its run.
AGAIN = (psycopg.OperationalError, psycopg.InternalError, psycopg.errors.UndefinedTable)
REPLACE = "UPDATE ledger.secrets SET sealed = %s WHERE channel = %s RETURNING channel"


class ChannelIdTaken(Exception):
    """The channel id belongs to a channel of another name."""


class Secrets(Struct, frozen=True):
    """A channel's secrets. `previous` is the messenger's older one, accepted until `previous_until` (ms)."""

    kommo: str
    messenger: str
    previous: str | None = None
    previous_until: int = 0

    def __repr__(self) -> str:
        """Nothing: a secret belongs in no log."""
        return "Secrets(…)"


class Connection(Struct, frozen=True):
    """A channel's connection to an account; `connected` says whether it is in force."""

    scope: Scope
    title: str
    connected: bool
    connected_at: str
    is_time_window_disabled: bool = False


class Channel(Struct, frozen=True):
    """A registered channel, with the connections it has or had, by account."""

    name: str
    channel_id: str
    kind: str
    url: str
    bot_id: str | None
    secrets: Secrets
    connections: dict[str, Connection] = field(default_factory=dict)

    @property
    def accounts(self) -> list[Connection]:
        """The connections in force."""
        return [connection for connection in self.connections.values() if connection.connected]


class ActiveScope(Struct, frozen=True):
    """What a scope id stands for."""

    channel: Channel
    connection: Connection
    key: bytes


class Channels:
    """The channels in force; `scope` and `channel` are what the webhooks ask."""

    def __init__(self, url: str, master: bytes) -> None:
        self._url = url
        self._vault = Vault(master)
        self._connection: Db | None = None
        self._asking: asyncio.Task[None] | None = None
        self._checked = -LEASE_SECONDS
        self._position = -1
        self._channels: dict[str, Channel] = {}
        self._scopes: dict[str, ActiveScope] = {}

    async def close(self) -> None:
        """Let go of the database."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait([self._asking])
        if self._connection is not None:
            await self._connection.close()

    def known_scope(self, scope_id: str) -> ActiveScope | None:
        """The scope as known; to be trusted only if `fresh_ahead` says so."""
        return self._scopes.get(scope_id)

    async def scope(self, scope_id: str) -> ActiveScope | None:
        """The channel and connection of a scope id, None if it is unknown or disconnected."""
        await self.refresh()
        return self._scopes.get(scope_id)

    async def channel(self, name: str) -> Channel | None:
        """A registered channel by name."""
        await self.refresh()
        return self._channels.get(name)

    async def all(self) -> Mapping[str, Channel]:
        """Every registered channel by name."""
        await self.refresh()
        return self._channels

    async def refresh(self) -> None:
        """Ask the database whether anything changed, unless it was asked within the lease.

        All who wait share one question: one after the other they would wait for ever longer where an answer
        takes as long as the lease.
        """
        needed = monotonic() - LEASE_SECONDS
        while self._checked <= needed:
            await asyncio.shield(self._question())

    def fresh_ahead(self) -> bool:
        """Whether what is known may still be trusted; half of the lease over, it asks: so nobody waits."""
        age = monotonic() - self._checked
        if age > LEASE_SECONDS / 2:
            self._question()
        return age < LEASE_SECONDS

    def _question(self) -> "asyncio.Task[None]":
        """The question that is under way, or a new one; whoever waits for it learns of its error."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask(), name="channels ask")
            self._asking.add_done_callback(lambda asked: asked.cancelled() or asked.exception())
        return self._asking

    async def _ask(self) -> None:
        asked = monotonic()
        ((position,),) = await self._all(CHANGED)
        if position != self._position:
            await self._load()
            self._position = cast("int", position)
        self._checked = asked

    async def settle(self) -> None:
        """Wait until every process has asked again: what changed before is in force when this returns."""
        await asyncio.sleep(LEASE_SECONDS * 1.2)
        self._checked = -LEASE_SECONDS
        self._position = -1
        await self.refresh()

    async def _load(self) -> None:
        channels = {}
        for name, channel_id, kind, url, bot_id, sealed in cast(
            "list[tuple[str, str, str, str, str | None, bytes]]", await self._all(CHANNELS)
        ):
            secrets = self._open(name, sealed)
            channels[name] = Channel(name, channel_id, kind, url, bot_id, secrets)
        scopes = {}
        for name, account, title, connected, at, disabled in cast(
            "list[tuple[str, str, str, bool, object, bool]]", await self._all(CONNECTIONS)
        ):
            if (channel := channels.get(name)) is None:
                continue
            where = scope_of(name, channel.channel_id, account)
            since = clock.text(clock.milliseconds(at))  # type: ignore[arg-type]  # a timestamptz column
            connection = Connection(where, title, connected, since, disabled)
            channel.connections[account] = connection
            if connected:
                scopes[where.scope_id] = ActiveScope(channel, connection, channel.secrets.kommo.encode())
        self._channels, self._scopes = channels, scopes

    async def add(self, name: str, channel_id: str, secrets: Secrets) -> None:
        """Seal and keep the secrets of a new channel; the same again is no error. Raises ChannelIdTaken."""
        sealed = self._vault.seal(name, secrets)
        try:
            rows = await self._all(ADD, (name, channel_id, sealed))
        except psycopg.errors.UniqueViolation:
            raise ChannelIdTaken from None
        if not rows:  # Kept before: by a registration that did not get as far as the ledger, or another one.
            ((kept, before),) = cast("list[tuple[str, bytes]]", await self._all(SEALED, (name,)))
            if kept != channel_id or self._open(name, before) != secrets:
                raise ChannelIdTaken

    async def replace(self, name: str, secrets: Secrets) -> None:
        """Seal and keep other secrets for a channel."""
        await self._all(REPLACE, (self._vault.seal(name, secrets), name))

    def _open(self, name: str, sealed: bytes) -> Secrets:
        return self._vault.open(name, sealed, Secrets, subject=f"the secrets of channel {name}")

    async def _all(self, statement: str, parameters: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
        if (connection := self._connection) is not None and not connection.closed:
            with contextlib.suppress(*AGAIN):
                return await self._fetch(connection, statement, parameters)
            await connection.close()
        self._connection = await connect(self._url)
        return await self._fetch(self._connection, statement, parameters)

    @staticmethod
    async def _fetch(
        connection: Db, statement: str, parameters: tuple[object, ...]
    ) -> list[tuple[object, ...]]:
        cursor = await connection.execute(statement.encode(), parameters)
        return await cursor.fetchall()
