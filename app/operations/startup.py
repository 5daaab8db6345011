"""At start the ledger is brought to what the file says, and Kommo to what the ledger says, once.

The file's channels are registered, or changed as PUT does: the file wins over changes made through the API.
Then Kommo is asked to connect every account that is recorded as connected, because reinstalling the
integration silently drops the connections, and every account that the file names, unless an operator
disconnected it: that stays in force until an operator connects it again. Nothing is disconnected for being
absent from the file.

This happens beside the service, which already takes requests, in the first process that delivers. A failure
that may pass (Kommo is down, the ledger is busy) is tried again for about two hours; a refusal by Kommo is
not. Each outcome is one line in the log; failures are also in GET /v1/status.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Container
from functools import partial

import psycopg
from msgspec import Struct

from app.channels.directory import Channel, Connection
from app.clock import LoopClock
from app.config import file
from app.database.pool import ViewsMissing
from app.delivery.reconnect import still_connected
from app.operations import channels, installation
from app.operations.channels import NewChannel, NotConnected
from app.operations.errors import KommoFailed, NotYet, OperationError, StateConflict
from app.operations.services import Services
from app.vault import WrongMasterKey
from app.views.events import EventRow, ledger_head
from app.views.messages import STREAM
from domain import events as e
from domain import ids

SYSTEM = "system"
ROUNDS_MAX = 30  # With the delays below: about two hours.
DELAY_FIRST_SECONDS = 1.0
DELAY_SECONDS_MAX = 300.0
AT_ONCE = 8  # Chosen: hundreds of accounts are connected in seconds, and Kommo is not flooded.
VIEWS_SECONDS = 5.0  # Chosen: after a crash they catch up within it; what they lack comes in the next round.
log = logging.getLogger("chatledger.start")


class Wanted(Struct, frozen=True):
    """A connection that has to be made; `connected` says whether the ledger has it already."""

    channel: str
    account: str
    title: str
    connected: bool
    is_time_window_disabled: bool | None = None


class Start:
    """The work of one start; `run` does it."""

    def __init__(self, services: Services, *, delay_seconds: float = DELAY_FIRST_SECONDS) -> None:
        """`delay_seconds` is the first pause before failures are tried again; each later one is doubled."""
        self._services = services
        self._delay_seconds = delay_seconds
        self._settled: set[tuple[str, str]] = set()
        self._failing: dict[tuple[str, str], str] = {}
        self._since = 0.0

    async def run(self) -> None:
        """Return once everything is settled, or has failed for about two hours."""
        delay = self._delay_seconds
        for _ in range(ROUNDS_MAX):
            try:
                self._since = self._since or await self._services.attempts.now()
                async with self._services.attempts.startup_turn():
                    if await self._round():
                        return
            except (psycopg.Error, ViewsMissing) as error:  # The service runs well without this work.
                log.warning("trying again from time to time: %s", str(error).strip() or type(error).__name__)
            await asyncio.sleep(random.uniform(delay / 2, delay))
            delay = min(delay * 2, DELAY_SECONDS_MAX)
        for key, reason in self._failing.items():
            log.error("%s: given up until the next start: %s", _name(*key), reason)

    async def _round(self) -> bool:
        """Try what is not settled; returns whether nothing is left."""
        services = self._services
        if await services.keyring.check():  # That is in the log, and nothing can be signed.
            return False
        for channel in services.setup.channels:
            await self._try(channel.name, "", partial(register, services, channel))
        head = await ledger_head(services.pool)
        whole = await services.projector.wait_for(head, VIEWS_SECONDS, view="channels")
        wanted = await self._wanted()
        for key in self._failing.keys() - {(want.channel, want.account) for want in wanted}:
            if key[1]:
                del self._failing[key]
        settled = await services.attempts.succeeded(since=self._since)
        places = asyncio.Semaphore(AT_ONCE)

        async def connect(want: Wanted) -> None:
            async with places:
                await self._try(want.channel, want.account, partial(self._connect, want, settled))

        await asyncio.gather(*(connect(want) for want in wanted))
        return whole and not self._failing

    async def _try(self, channel: str, account: str, work: Callable[[], Awaitable[str]]) -> None:
        """Do the work unless it is settled, and log how it ended: once, however often it is tried."""
        key = (channel, account)
        if key in self._settled:
            return
        try:
            outcome = await work()
        except WrongMasterKey as error:  # The directory has it in the log.
            self._failing[key] = str(error)
            return
        except OperationError as error:
            if not account:
                await self._services.attempts.record(channel, problem=str(error), answer=error.text)
            if _may_pass(error):
                if key not in self._failing:
                    log.warning("%s: trying again from time to time: %s", _name(*key), error)
                self._failing[key] = str(error)
                return
            log.error("%s: %s", _name(*key), error)
        else:
            log.info("%s: %s", _name(*key), outcome)
        self._settled.add(key)
        self._failing.pop(key, None)

    async def _wanted(self) -> list[Wanted]:
        """What is recorded as connected, and what the file names unless an operator disconnected it."""
        found: list[Wanted] = []
        in_file = {channel.name: channel for channel in self._services.setup.channels}
        for channel in list((await self._services.channels.all()).values()):
            wishes: dict[str, file.Connected] = {}
            if channel.name in in_file:
                wishes = {wish.account_id: wish for wish in in_file[channel.name].connections}
            elif in_file:
                self._warn_once(channel.name, "", "is not in the file: it stays registered and connected")
            for account in sorted(channel.connections.keys() | wishes.keys()):
                before, wish = channel.connections.get(account), wishes.get(account)
                connected = before is not None and before.connected
                if connected and wish is None and channel.name in in_file:
                    note = "is not in the file: it stays connected until DELETE"
                    self._warn_once(channel.name, account, note)
                if not connected and wish and before and await by_operator(self._services, before):
                    note = "an operator disconnected it: it stays so until POST"
                    self._warn_once(channel.name, account, note)
                elif connected or wish:
                    title = (wish.title if wish else "") or (before.title if before else "")
                    window = wish.is_time_window_disabled if wish else None
                    found.append(Wanted(channel.name, account, title, connected, window))
        return found

    def _warn_once(self, channel: str, account: str, note: str) -> None:
        if (key := (channel, f"{account} ")) not in self._settled:
            self._settled.add(key)
            log.warning("%s: %s", _name(channel, account), note)

    async def _connect(self, want: Wanted, settled: Container[tuple[str, str]]) -> str:
        """Ask Kommo to connect what is not `settled`; returns the outcome in words. Raises OperationError."""
        services = self._services
        if (want.channel, want.account) in settled:
            return "another process has connected it"
        channel = await channels.named(services, want.channel)
        was_lost = not want.connected or await self._is_lost(channel, want)
        dropped = was_lost and want.connected
        if dropped and await installation.has_ended(services, want.account):
            return "Kommo has dropped the connection, because the account has ended the integration"
        if dropped and not await still_connected(services.channels, LoopClock(), want.channel, want.account):
            return "an operator disconnected it meanwhile: it stays so"
        try:
            done = await channels.connect(
                services,
                want.channel,
                want.account,
                want.title,
                by=SYSTEM,
                was_lost=was_lost,
                renewed=want.connected,
                is_time_window_disabled=want.is_time_window_disabled,
            )
        except NotConnected:
            return "an operator disconnected it meanwhile: it stays so"
        if dropped:
            return "Kommo had dropped the connection, as a reinstallation does: connected again"
        return "connected, as it was" if done.again else "connected"

    async def _is_lost(self, channel: Channel, want: Wanted) -> bool:
        """Whether Kommo no longer knows the scope: it answers every call of it with 404."""
        try:
            return await installation.is_lost(self._services, channel, channel.connections[want.account])
        except KommoFailed as error:
            await self._services.attempts.record(want.channel, want.account, str(error))
            raise


async def register(services: Services, wanted: file.Channel) -> str:
    """Bring a channel to what the file says; returns the outcome in words. Raises OperationError."""
    before = await services.channels.channel(wanted.name)
    kommo, messenger = wanted.kommo, wanted.messenger
    if before and before.channel_id != kommo.channel_id:
        raise StateConflict(
            f"it is registered with channel_id {before.channel_id}, and keeps it: name the other one anew"
        )
    if before is None:
        options = (wanted.message_ids, wanted.default_account, wanted.wait_for_messenger)
        new = NewChannel(wanted.name, kommo, messenger, *options)
        await channels.register(services, new, by=SYSTEM)
        outcome = "registered"
    else:
        secrets = (kommo.secret, messenger.secret)
        done = await channels.change(
            services,
            wanted.name,
            secrets=secrets,
            url=messenger.url,
            bot_id=kommo.bot_id,
            options=wanted.options,
            by=SYSTEM,
        )
        outcome = "registered, as it was" if done.recorded is None else "changed to what the file says"
    await services.attempts.record(wanted.name)
    return outcome


async def bring(services: Services, wanted: file.Channel) -> None:
    """Register a channel and connect its accounts now, whatever was before. Raises OperationError."""
    await register(services, wanted)
    for one in wanted.connections:
        await channels.connect(
            services,
            wanted.name,
            one.account_id,
            one.title,
            by=SYSTEM,
            was_lost=False,
            is_time_window_disabled=one.is_time_window_disabled,
        )


async def bring_back(services: Services, account: str) -> None:
    """Connect what Kommo dropped when the integration was disabled, now that the account consents again.

    What an operator disconnected stays so. What fails is in the log and in GET /v1/status.
    """
    try:
        await _bring_back(services, account)
    except (psycopg.Error, ViewsMissing, WrongMasterKey) as error:  # The consent itself is kept.
        log.error("account %s: not connected again until the next start: %s", account, str(error).strip())


async def _bring_back(services: Services, account: str) -> None:
    for channel in list((await services.channels.all()).values()):
        before = channel.connections.get(account)
        if before is None or before.connected or await by_operator(services, before):
            continue
        try:
            await channels.connect(services, channel.name, account, before.title, by=SYSTEM)
        except OperationError as error:
            log.error("%s: %s", _name(channel.name, account), error)
        else:
            log.info("%s: connected again because the account consents again", _name(channel.name, account))


async def by_operator(services: Services, connection: Connection) -> bool:
    """Whether it was an operator who connected or disconnected it last; also if that cannot be read."""
    stream = ids.connection_stream(connection.scope)
    rows = await services.pool.fetch(EventRow, STREAM, {"stream": stream})
    try:
        return bool(rows) and e.decode(rows[-1].event).by == ids.OPERATOR
    except (ValueError, RecursionError):
        return True


def _may_pass(error: OperationError) -> bool:
    return isinstance(error, NotYet) or (isinstance(error, KommoFailed) and error.is_transient)


def _name(channel: str, account: str) -> str:
    return f"channel {channel}, account {account}" if account else f"channel {channel}"
