"""Which channels and connections are in force, in every web process within the lease; their secrets, sealed.

A process asks the database at most every LEASE_SECONDS whether anything has changed, and never trusts an
older answer. Whoever changes something waits that long before answering. So a change that was answered is in
force everywhere. Secrets are sealed by the vault and never appear in an event, a log or an answer. So are the
credentials that a connection has at its messenger; those that do not open are in the log, and are not there.

A channel whose secrets do not open is in `unopened` and not in force; the others are. It is tried again each
second, because the master key may be about to be rotated. Until then nobody may say that it does not exist.
"""

import asyncio
import contextlib
import logging
from collections.abc import Collection, Mapping
from time import monotonic
from typing import Literal, TypeAlias, cast

import msgspec
import psycopg
from msgspec import Struct, field
from msgspec.structs import replace

from app import clock
from app.database.connection import NO_ANSWER, Db, connect
from app.vault import Vault, WrongMasterKey
from domain.ids import Scope, scope_of
from domain.parts import ChannelOptions

# Chosen: with the wait for the ledger after it, an answer still comes within Kommo's 5 s.
REFRESH_SECONDS = 2.0
LEASE_SECONDS = 0.1  # chosen: ten small reads a second for each process, and a change takes as long
OLD_SECRET_MS = 24 * 3_600_000  # chosen: a day, in which Kommo or the messenger is given the new secret
RETRY_SECONDS = 1.0  # chosen: a channel whose secrets do not open is tried again this often
CONNECTIONS_A_TURN = 500  # chosen: some 3 ms of Python
SETTLE_FACTOR = 1.2  # chosen: a margin over the lease for an answer that is on its way

CHANGED = """SELECT coalesce((SELECT max(position) FROM views.channels), 0),
 coalesce((SELECT max(position) FROM views.connections), 0),
 coalesce((SELECT number FROM ledger.credential_changes), 0)"""
# `to_jsonb` of the whole row, because views of an older version, which are in force while new ones are built,
# lack the column.
CHANNELS = """SELECT c.name, c.channel_id, c.kind, c.url, c.bot_id, s.sealed,
 coalesce(to_jsonb(c) ->> 'options', '{}')
 FROM views.channels c JOIN ledger.secrets s ON s.channel = c.name"""
CONNECTIONS = """SELECT channel, account_id, scope_id, title, connected, connected_at, position,
 coalesce((to_jsonb(c) ->> 'is_time_window_disabled')::boolean, false) FROM views.connections AS c
 WHERE position > %s ORDER BY position"""
SEALED = "SELECT channel_id, sealed FROM ledger.secrets WHERE channel = %s"
ADD = """INSERT INTO ledger.secrets (channel, channel_id, sealed) VALUES (%s, %s, %s)
 ON CONFLICT (channel) DO NOTHING RETURNING channel"""
# The connection broke while it was idle, or the views were switched between a statement's planning and its
# run.
TRY_AGAIN = (psycopg.OperationalError, psycopg.InternalError, psycopg.errors.UndefinedTable)
CREDENTIALS = "SELECT connection, sealed FROM ledger.credentials WHERE number > %s"
# The one row of changes is locked until the commit, so a later number is never seen before an earlier one.
SET_CREDENTIALS = """WITH changed AS (INSERT INTO ledger.credential_changes AS c (number) VALUES (1)
 ON CONFLICT (one) DO UPDATE SET number = c.number + 1 RETURNING number)
INSERT INTO ledger.credentials (connection, sealed, number) SELECT %s, %s, number FROM changed
 ON CONFLICT (connection) DO UPDATE SET sealed = excluded.sealed, number = excluded.number
 RETURNING connection"""
REPLACE = "UPDATE ledger.secrets SET sealed = %s WHERE channel = %s RETURNING channel"
log = logging.getLogger("chatledger.channels")


Side: TypeAlias = Literal["kommo", "messenger"]


class ChannelIdTaken(Exception):
    """The channel id belongs to a channel of another name."""


class Secrets(Struct, frozen=True):
    """A channel's secrets, and of each side the older one, valid until the time beside it (unix ms).

    `previous` is the messenger's older one.
    """

    kommo: str
    messenger: str
    previous: str | None = None
    previous_until: int = 0
    previous_kommo: str | None = None
    previous_kommo_until: int = 0

    def with_kommo(self, secret: str | None, now_ms: int) -> "Secrets":
        """Returns these with another secret of Kommo's, if any; the old one is accepted a day more."""
        if secret is None or secret == self.kommo:
            return self
        until = now_ms + OLD_SECRET_MS
        return replace(self, kommo=secret, previous_kommo=self.kommo, previous_kommo_until=until)

    def with_messenger(self, secret: str | None, now_ms: int) -> "Secrets":
        """Returns these with another secret of the messenger's, likewise."""
        if secret is None or secret == self.messenger:
            return self
        until = now_ms + OLD_SECRET_MS
        return replace(self, messenger=secret, previous=self.messenger, previous_until=until)

    def without_old(self, sides: Collection[Side]) -> "Secrets":
        """Returns these with only the present secret of these sides."""
        new = self
        if "kommo" in sides:
            new = replace(new, previous_kommo=None, previous_kommo_until=0)
        if "messenger" in sides:
            new = replace(new, previous=None, previous_until=0)
        return new

    def changed_sides(self, other: "Secrets") -> tuple[Side, ...]:
        """Returns the sides whose accepted secrets differ."""
        kommo = (self.kommo, self.previous_kommo) != (other.kommo, other.previous_kommo)
        messenger = (self.messenger, self.previous) != (other.messenger, other.previous)
        sides: list[tuple[Side, bool]] = [("kommo", kommo), ("messenger", messenger)]
        return tuple(side for side, changed in sides if changed)

    def old_messenger(self, now_ms: int) -> str | None:
        """Returns the messenger's older secret while it is accepted."""
        return self.previous if self.previous_until > now_ms else None

    def old_kommo(self, now_ms: int) -> str | None:
        """Returns Kommo's older secret while it is accepted."""
        return self.previous_kommo if self.previous_kommo_until > now_ms else None

    def __repr__(self) -> str:
        """Shows nothing: a secret belongs in no log."""
        return "Secrets(…)"


class Credentials(Struct, frozen=True):
    """An account's credentials at the messenger, by the names that the messenger's kind declares."""

    fields: dict[str, str]

    def __repr__(self) -> str:
        """Shows nothing: a secret belongs in no log."""
        return "Credentials(…)"


NO_CREDENTIALS = Credentials({})


class Connection(Struct, frozen=True):
    """A channel's connection to an account, in force if `connected`; `position` is that of its last event.

    `messenger` are its credentials there.
    """

    scope: Scope
    title: str
    connected: bool
    connected_at: str
    is_time_window_disabled: bool = False
    position: int = 0
    messenger: Credentials = NO_CREDENTIALS


class Channel(Struct, frozen=True):
    """A registered channel with its connections, past ones too, by account."""

    name: str
    channel_id: str
    kind: str
    url: str
    bot_id: str | None
    secrets: Secrets
    connections: dict[str, Connection] = field(default_factory=dict)
    options: ChannelOptions = ChannelOptions()

    @property
    def accounts(self) -> list[Connection]:
        """Returns the connections in force."""
        return [connection for connection in self.connections.values() if connection.connected]


class ActiveScope(Struct, frozen=True):
    """A scope in force: its channel, its connection, and the key of Kommo's signatures."""

    channel: Channel
    connection: Connection
    key: bytes

    def old_key(self) -> bytes | None:
        """Returns the key before this one while it is accepted; nearly always None."""
        old = self.channel.secrets.old_kommo(clock.now_ms())
        return old.encode() if old else None


def owner_of(channel: str, account: str) -> str:
    """Returns what credentials of a connection are sealed and stored under."""
    return f"{channel}/{account}"


class Channels:
    """The channels in force, and their secrets in the database."""

    def __init__(self, url: str, vault: Vault) -> None:
        self._url = url
        self._vault = vault
        self.unopened: dict[str, str] = {}  # Channels whose secrets do not open, and why.
        self._connection: Db | None = None
        self._asking: asyncio.Task[None] | None = None
        self._checked = -LEASE_SECONDS
        self._loaded = -LEASE_SECONDS
        self._positions = (-1, -1)  # of the last change of a channel, and of a connection
        self._credentials: dict[str, Credentials] = {}
        self._credentials_number = 0  # of the last change of credentials
        self._channels: dict[str, Channel] = {}
        self._scopes: dict[str, ActiveScope] = {}

    async def close(self) -> None:
        """Close the connection to the database."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait([self._asking])
        if self._connection is not None:
            await self._connection.close()

    def known_scope(self, scope_id: str) -> ActiveScope | None:
        """Returns the scope without asking the database; valid only while `fresh_ahead` is true."""
        return self._scopes.get(scope_id)

    async def scope(self, scope_id: str) -> ActiveScope | None:
        """Returns the scope with this id, None if it is unknown or disconnected."""
        await self.refresh()
        return self._scopes.get(scope_id)

    async def channel(self, name: str) -> Channel | None:
        """Returns a registered channel, None if there is none with this name. Raises WrongMasterKey."""
        await self.refresh()
        if reason := self.unopened.get(name):
            raise WrongMasterKey(reason)
        return self._channels.get(name)

    async def all(self) -> Mapping[str, Channel]:
        """Returns the registered channels by name, without those in `unopened`.

        Raises WrongMasterKey if none opens.
        """
        await self.refresh()
        if self.unopened and not self._channels:
            raise WrongMasterKey(next(iter(self.unopened.values())))
        return self._channels

    async def refresh(self) -> None:
        """Ask the database whether anything has changed, unless it was asked within the lease.

        All callers share one question. If each asked its own, they would wait for ever longer where an answer
        takes as long as the lease.
        """
        now = monotonic()
        while self._checked <= now - LEASE_SECONDS:
            question, left = self._question(), now + REFRESH_SECONDS - monotonic()
            if not (await asyncio.wait({question}, timeout=max(left, 0.0)))[0]:
                raise psycopg.OperationalError(NO_ANSWER)
            question.result()

    def fresh_ahead(self) -> bool:
        """Whether the last answer is within the lease; asks ahead after half of it, so that nobody waits."""
        age = monotonic() - self._checked
        if age > LEASE_SECONDS / 2:
            self._question()
        return age < LEASE_SECONDS

    def _question(self) -> "asyncio.Task[None]":
        """Returns the task of the question under way, or of a new one; awaiting it raises its error."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask(), name="channels ask")
            # Retrieve the error even if nobody waits, or asyncio would log it as never retrieved.
            self._asking.add_done_callback(lambda asked: asked.cancelled() or asked.exception())
        return self._asking

    async def _ask(self) -> None:
        asked = monotonic()
        ((of_channel, of_connection, number),) = cast("list[tuple[int, int, int]]", await self._all(CHANGED))
        before_channel, before_connection = self._positions
        retry = self.unopened and asked - self._loaded > RETRY_SECONDS
        if number != self._credentials_number or retry:
            is_older = number < self._credentials_number  # The database was restored.
            await self._load_credentials(0 if retry or is_older else self._credentials_number)
            self._credentials_number = number
        if of_channel != before_channel or of_connection < before_connection or retry:
            await self._load()
            self._loaded = asked
        elif of_connection > before_connection:
            await self._load_connections(self._channels, self._scopes, after=before_connection)
        self._positions = (of_channel, of_connection)
        self._checked = asked

    async def settle(self) -> None:
        """Wait until every process has asked again, so that an earlier change is in force everywhere."""
        await asyncio.sleep(LEASE_SECONDS * SETTLE_FACTOR)
        self._checked = -LEASE_SECONDS
        await self.refresh()

    async def _load(self) -> None:
        channels, unopened = {}, {}
        for name, channel_id, kind, url, bot_id, sealed, raw in cast(
            "list[tuple[str, str, str, str, str | None, bytes, str]]", await self._all(CHANNELS)
        ):
            options = msgspec.json.decode(raw, type=ChannelOptions)
            try:
                secrets = self._open(name, sealed)
            except WrongMasterKey as error:
                unopened[name] = str(error)
            else:
                channels[name] = Channel(name, channel_id, kind, url, bot_id, secrets, options=options)
        scopes: dict[str, ActiveScope] = {}
        await self._load_connections(channels, scopes)
        for name in unopened.keys() - self.unopened.keys() if channels else ():
            log.error("channel %s is not in force: %s", name, unopened[name])
        self._channels, self._scopes, self.unopened = channels, scopes, unopened

    async def _load_connections(
        self, channels: dict[str, Channel], scopes: dict[str, ActiveScope], *, after: int = -1
    ) -> None:
        """Bring connections and scopes up to date with what changed after a position.

        One change among ten thousand connections costs as much as one among ten.
        """
        rows = cast(
            "list[tuple[str, str, str, str, bool, object, int, bool]]", await self._all(CONNECTIONS, (after,))
        )
        for number, (name, account, scope_id, title, connected, at, position, disabled) in enumerate(rows, 1):
            if number % CONNECTIONS_A_TURN == 0:
                await asyncio.sleep(0)
            if (channel := channels.get(name)) is None:
                continue
            scope = replace(scope_of(name, channel.channel_id, account), scope_id=scope_id)
            since = clock.text(clock.milliseconds(at))  # type: ignore[arg-type]  # a timestamptz column
            before = channel.connections.get(account)
            if before and (active := scopes.get(before.scope.scope_id)) and active.connection is before:
                del scopes[before.scope.scope_id]
            given = self._credentials.get(owner_of(name, account), NO_CREDENTIALS)
            connection = Connection(scope, title, connected, since, disabled, position, given)
            channel.connections[account] = connection
            if connected:
                scopes[scope_id] = ActiveScope(channel, connection, channel.secrets.kommo.encode())

    async def _load_credentials(self, after: int) -> None:
        """Take the credentials that changed after a change, by its number.

        Those that do not open are in the log; they are tried again at the next start, or once they are given.
        """
        for owner, sealed in cast("list[tuple[str, bytes]]", await self._all(CREDENTIALS, (after,))):
            subject = f"the messenger's credentials of {owner}"
            try:
                found = self._vault.open(f"credentials:{owner}", sealed, Credentials, subject=subject)
            except WrongMasterKey as error:
                log.error("%s", error)
                found = NO_CREDENTIALS
            self._credentials[owner] = found
            self._put_credentials(owner, found)

    def _put_credentials(self, owner: str, found: Credentials) -> None:
        """Put credentials into the connection that they are for, if it is known already."""
        name, _, account = owner.partition("/")
        channel = self._channels.get(name)
        before = channel.connections.get(account) if channel else None
        if channel is None or before is None:
            return
        channel.connections[account] = now = replace(before, messenger=found)
        active = self._scopes.get(before.scope.scope_id)
        if active and active.connection is before:
            self._scopes[before.scope.scope_id] = replace(active, connection=now)

    async def set_credentials(self, name: str, account: str, credentials: Credentials) -> None:
        """Seal and store a connection's credentials at its messenger."""
        owner = owner_of(name, account)
        await self._all(SET_CREDENTIALS, (owner, self._vault.seal(f"credentials:{owner}", credentials)))

    async def add(self, name: str, channel_id: str, secrets: Secrets) -> None:
        """Seal and store the secrets of a new channel; repeating it is no error. Raises ChannelIdTaken."""
        sealed = self._vault.seal(name, secrets)
        try:
            rows = await self._all(ADD, (name, channel_id, sealed))
        except psycopg.errors.UniqueViolation:
            raise ChannelIdTaken from None
        if not rows:  # An earlier registration stored secrets, and may not have reached the ledger.
            ((kept, before),) = cast("list[tuple[str, bytes]]", await self._all(SEALED, (name,)))
            if kept != channel_id or self._open(name, before) != secrets:
                raise ChannelIdTaken

    async def replace(self, name: str, secrets: Secrets) -> None:
        """Seal and store other secrets for a channel."""
        await self._all(REPLACE, (self._vault.seal(name, secrets), name))

    def _open(self, name: str, sealed: bytes) -> Secrets:
        return self._vault.open(name, sealed, Secrets, subject=f"the secrets of channel {name}")

    async def _all(self, statement: str, parameters: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
        if (connection := self._connection) is not None and not connection.closed:
            with contextlib.suppress(*TRY_AGAIN):
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
