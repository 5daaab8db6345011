"""Channels are registered, changed, connected and disconnected in one way, whoever asks: a route or a start.

Each function returns once its change is in force on every web process, and raises an OperationError that says
what to do.
"""

from collections.abc import Awaitable, Collection

from msgspec import Struct
from msgspec.structs import replace

from app import clock
from app.channels.directory import Channel, ChannelIdTaken, Connection, Secrets, Side
from app.config.file import GUESSABLE, ChannelName, KommoSide, MessengerSide, Uuid, Wait
from app.delivery.job import DISCONNECTED, UNCONNECTED
from app.http_client import Answer, Unreached
from app.kommo.chats.scope import named as named_scope
from app.kommo.chats.signature import Credentials
from app.ledger.writer import Recorded
from app.limits import is_weak
from app.messengers.kinds import KINDS
from app.operations.deliveries import LOST, park_open, resume_of_scope
from app.operations.errors import InvalidInput, KommoFailed, NotFound, StateConflict
from app.operations.services import Services, record, views_reach
from domain import commands as c
from domain import decide, ids
from domain.ids import OPERATOR, Scope
from domain.parts import WAIT_FOR_MESSENGER, ChannelOptions, MessageIds

HINTS = {403: "check the channel's secret and this machine's clock", 404: "check the channel_id"}


class UnknownChannel(NotFound):
    """No channel has this name."""

    MESSAGE = "no channel has this name: register it with POST /v1/channels"


class NotConnected(NotFound):
    """There is no connection to end, or to create a chat over."""

    MESSAGE = "the channel is not connected to this account"


class ConnectionNeeded(StateConflict):
    """A chat's channel is not connected, or no longer."""

    MESSAGE = "the channel is not connected to this account: POST /v1/channels/{name}/connections"


class ChannelTaken(StateConflict):
    """The name or the channel id belongs to a channel with other content."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"the name {name} or its channel_id is registered with other content: change it with PUT"
        )


class NewChannel(Struct, frozen=True):
    """A channel to register."""

    name: ChannelName
    kommo: KommoSide
    messenger: MessengerSide
    message_ids: MessageIds = "per channel"
    default_account: Uuid | None = None
    wait_for_messenger: Wait = WAIT_FOR_MESSENGER

    @property
    def options(self) -> ChannelOptions:
        """How its messenger speaks."""
        return ChannelOptions(self.message_ids, self.default_account, self.wait_for_messenger)


class Done(Struct, frozen=True):
    """The channel as it is now. `recorded` is None if nothing changed; `again`: it was connected before."""

    channel: Channel
    recorded: Recorded | None = None
    again: bool = False


async def register(services: Services, wanted: NewChannel, *, by: str = OPERATOR) -> Done:
    """Register a channel, unless it is registered just so. Raises ChannelTaken, InvalidInput."""
    wanted = _in_lower_case(wanted)
    kommo, messenger = wanted.kommo, wanted.messenger
    _check_secret(messenger.kind, messenger.secret)
    before = await services.channels.channel(wanted.name)
    if before:
        return Done(_checked(before, wanted))
    try:
        await services.channels.add(wanted.name, kommo.channel_id, Secrets(kommo.secret, messenger.secret))
    except ChannelIdTaken:
        raise ChannelTaken(wanted.name) from None
    command = c.Register(
        **_channel_stamp(wanted.name, by),
        stream=ids.channel_stream(wanted.name),
        channel_id=kommo.channel_id,
        kind=messenger.kind,
        url=messenger.url,
        bot_id=kommo.bot_id,
        options=wanted.options,
    )
    recorded = await record(services, command)
    return Done(_checked(await _in_force(services, wanted.name, recorded), wanted), recorded)


async def change(
    services: Services,
    name: str,
    *,
    channel_id: str | None = None,
    secrets: tuple[str | None, str | None] = (None, None),
    revoked: Collection[Side] = (),
    url: str | None = None,
    bot_id: str | None = None,
    options: ChannelOptions | None = None,
    by: str = OPERATOR,
) -> Done:
    """Change what is not None. `secrets` are Kommo's and the messenger's; an old one is accepted a day more.

    `revoked` are the sides whose old secret is no longer accepted from now on. `channel_id` is there only to
    be refused when it differs. Raises UnknownChannel, StateConflict.
    """
    channel = await named(services, name)
    if channel_id and channel_id.lower() != channel.channel_id:
        raise StateConflict("a channel keeps its channel_id: register another channel for another id")
    old, now_ms = channel.secrets, clock.now_ms()
    new = old.with_kommo(secrets[0], now_ms).with_messenger(secrets[1], now_ms)
    if new.messenger != old.messenger:
        _check_secret(channel.kind, new.messenger)
    new = new.without_old(revoked)
    changed = old.changed_sides(new)
    url, bot_id = url or channel.url, (bot_id or channel.bot_id or "").lower() or None
    options = channel.options if options is None else options
    if not changed and (url, bot_id, options) == (channel.url, channel.bot_id, channel.options):
        return Done(channel)
    await services.channels.replace(name, new)
    stream, stamp = ids.channel_stream(name), _channel_stamp(name, by)
    command = c.Change(**stamp, stream=stream, url=url, bot_id=bot_id, secrets=changed, options=options)
    recorded = await record(services, command)
    return Done(await _in_force(services, name, recorded), recorded)


async def connect(
    services: Services,
    name: str,
    account: str,
    title: str,
    *,
    by: str = OPERATOR,
    was_lost: bool = True,
    renewed: bool = False,
    is_time_window_disabled: bool | None = None,
) -> Done:
    """Connect an account: at Kommo, then in the ledger; what was parked without the connection is resumed.

    `was_lost` False: Kommo may have known the connection all the time, so a delivery that Kommo answered with
    404 stays parked. `renewed`: only if it is still connected. `is_time_window_disabled` None: it stays as it
    was. Raises UnknownChannel, KommoFailed, and NotConnected if it is to be renewed and is no longer there.
    """
    channel = await named(services, name)
    account = account.lower()
    before = channel.connections.get(account)
    scope = before.scope if before else ids.scope_of(name, channel.channel_id, account)
    again = before is not None and before.connected
    disabled = is_time_window_disabled
    if disabled is None:
        disabled = before is not None and before.is_time_window_disabled
    unconnected = (DISCONNECTED, UNCONNECTED)
    async with services.attempts.turn(name, account):
        if renewed and not await services.attempts.is_connected(scope):
            raise NotConnected
        answer = await _connect_at_kommo(services, channel, account, title or name, disabled=disabled)
        before_id, scope = scope.scope_id, named_scope(answer, scope)
        await _check_scope(services, scope)
        stream = ids.connection_stream(scope)
        command = c.Connect(
            **clock.stamp(scope, stream, by, now=clock.now_ms()),
            stream=stream,
            title=title or name,
            again=again and (before_id != scope.scope_id or (was_lost and by != OPERATOR)),
            is_time_window_disabled=disabled,
            renewed=renewed,
        )
        if not again:  # What waited is in its lanes before that is in force, so nothing later overtakes it.
            await resume_of_scope(services, scope, unconnected, by)
        recorded = await record(services, command)
        channel = await _in_force(services, name, recorded)
    await services.attempts.record(name, account)
    await resume_of_scope(services, scope, (*unconnected, *LOST) if was_lost else unconnected, by)
    return Done(channel, recorded, again)


async def disconnect(services: Services, name: str, account: str, *, by: str = OPERATOR) -> Done:
    """Disconnect an account: at Kommo, then in the ledger.

    Raises UnknownChannel, NotConnected, KommoFailed.
    """
    channel = await named(services, name)
    connection = connected(channel, account.lower())
    async with services.attempts.turn(name, connection.scope.account):
        answer = await _answer(services.kommo.disconnect(_credentials(channel), connection.scope.account))
        if answer.html or answer.status != 404:  # 404: Kommo does not know the connection, so it has ended.
            _check_answer(answer)
        done = await _record_end(services, connection, by=by)
    await _park(services, connection, by)
    return done


async def record_disconnected(services: Services, connection: Connection, *, by: str) -> Done:
    """Record that Kommo has ended a connection, and park what is open. Raises NotConnected."""
    done = await _record_end(services, connection, by=by)
    await _park(services, connection, by)
    return done


async def _record_end(services: Services, connection: Connection, *, by: str) -> Done:
    scope = connection.scope
    stream = ids.connection_stream(scope)
    stamp = clock.stamp(scope, stream, by, now=clock.now_ms())
    try:
        recorded = await record(services, c.Disconnect(**stamp, stream=stream))
    except decide.NotConnected:  # Another process was first.
        raise NotConnected from None
    return Done(await _in_force(services, scope.channel, recorded), recorded)


async def _park(services: Services, connection: Connection, by: str) -> None:
    scope = connection.scope
    await services.attempts.record(scope.channel, scope.account)
    await park_open(services, scope, by)


async def named(services: Services, name: str) -> Channel:
    """The channel of a name; raises UnknownChannel."""
    channel = await services.channels.channel(name)
    if channel is None:
        raise UnknownChannel
    return channel


def connected(channel: Channel, account: str) -> Connection:
    """The connection in force with an account; raises NotConnected."""
    connection = channel.connections.get(account)
    if connection is None or not connection.connected:
        raise NotConnected
    return connection


def _in_lower_case(wanted: NewChannel) -> NewChannel:
    """Kommo writes UUIDs in lower case, and scope ids are compared as text."""
    kommo = wanted.kommo
    bot_id = kommo.bot_id.lower() if kommo.bot_id else None
    kommo = KommoSide(kommo.channel_id.lower(), kommo.secret, bot_id)
    account = wanted.default_account.lower() if wanted.default_account else None
    return replace(wanted, kommo=kommo, default_account=account)


def check_kommo_secret(secret: str | None) -> None:
    """Refuse a secret of Kommo's side that can be guessed; raises InvalidInput.

    The routes and the --config file check what an operator gives; the demo's sandbox has secrets of its own.
    """
    if secret is not None and is_weak(secret):
        raise InvalidInput(f"$.kommo.secret: {GUESSABLE}", faults=[("$.kommo.secret", GUESSABLE)])


def _check_secret(kind: str, secret: str) -> None:
    """Refuse a secret that the kind of messenger cannot use; raises InvalidInput."""
    faults = [(f"$.messenger.{setting}", advice) for setting, advice in KINDS[kind].faults(secret)]
    if faults:
        raise InvalidInput("; ".join(f"{path}: {advice}" for path, advice in faults), faults=faults)


def _checked(channel: Channel, wanted: NewChannel) -> Channel:
    """The channel, if it is registered just so; raises ChannelTaken."""
    secrets = channel.secrets
    kommo = KommoSide(channel.channel_id, secrets.kommo, channel.bot_id)
    messenger = (channel.kind, channel.url, secrets.messenger)
    side = wanted.messenger
    now = (kommo, messenger, channel.options)
    if now != (wanted.kommo, (side.kind, side.url, side.secret), wanted.options):
        raise ChannelTaken(wanted.name)
    return channel


def _channel_stamp(name: str, by: str) -> c.Stamp:
    scope = Scope(name, "", "", b"")
    return clock.stamp(scope, ids.channel_stream(name), by, now=clock.now_ms())


async def _in_force(services: Services, name: str, recorded: Recorded) -> Channel:
    """The channel, once every web process knows the change."""
    await views_reach(services, recorded.position, view="channels")
    await services.channels.settle()
    return await named(services, name)


async def _connect_at_kommo(
    services: Services, channel: Channel, account: str, title: str, *, disabled: bool
) -> Answer:
    """Ask Kommo to connect; returns its answer. Raises KommoFailed, noted for GET /v1/status too."""
    call = services.kommo.connect(_credentials(channel), account, title, is_time_window_disabled=disabled)
    try:
        answer = await _answer(call)
        _check_answer(answer)
    except KommoFailed as error:
        await services.attempts.record(channel.name, account, str(error), error.text)
        raise
    return answer


async def _check_scope(services: Services, scope: Scope) -> None:
    """Raises KommoFailed if Kommo names the scope of another connection, whose hooks would come here."""
    active = await services.channels.scope(scope.scope_id)
    if active and (active.channel.name, active.connection.scope.account) != (scope.channel, scope.account):
        raise KommoFailed(f"Kommo names {scope.scope_id}, the scope of channel {active.channel.name}")


def _credentials(channel: Channel) -> Credentials:
    return Credentials(channel.channel_id, channel.secrets.kommo)


async def _answer(call: Awaitable[Answer]) -> Answer:
    try:
        return await call
    except Unreached as error:
        raise KommoFailed(f"Kommo could not be reached ({error.reason}); nothing is recorded") from None


def _check_answer(answer: Answer) -> None:
    if answer.html or not 200 <= answer.status < 300:
        hint = f" ({HINTS[answer.status]})" if answer.status in HINTS else ""
        raise KommoFailed(f"Kommo answered HTTP {answer.status}{hint}; nothing is recorded", answer)
