"""Channels are registered, changed, connected and disconnected in one way, whoever asks: a route or a start.

Each function returns when its change is in force on every web process, and raises ProblemError with what to
do; NotDone is a ProblemError that knows what Kommo answered.
"""

from msgspec import Struct

from app import clock
from app.channels.directory import PREVIOUS_SECRET_MS, Channel, ChannelIdTaken, Connection, Secrets
from app.config.file import ChannelName, KommoSide, MessengerSide
from app.delivery.job import DISCONNECTED
from app.http_client import RETRIED, Answer, Unreached
from app.kommo.chats.signature import Credentials
from app.ledger.writer import Recorded
from app.messengers.kinds import KINDS
from app.operations.deliveries import LOST, _park, _resume
from app.operations.services import Services, record
from app.problems import Fault, ProblemError
from domain import commands as c
from domain import ids
from domain.decide import NotConnected
from domain.ids import OPERATOR, Scope

NOT_CONNECTED = "the channel is not connected to this account"


class NewChannel(Struct, frozen=True):
    """A channel to register."""

    name: ChannelName
    kommo: KommoSide
    messenger: MessengerSide


class Done(Struct, frozen=True):
    """What became of it; nothing `recorded` if it was so before. `again`: it was connected before."""

    channel: Channel
    recorded: Recorded | None = None
    again: bool = False


class NotDone(ProblemError):
    """Kommo refuses to connect or disconnect, or is not reached (no answer); nothing is recorded."""

    def __init__(self, detail: str, answer: Answer | None = None) -> None:
        super().__init__(502, detail)
        self.answer = answer

    @property
    def passing(self) -> bool:
        """Whether it may be otherwise later without anybody doing anything."""
        answer = self.answer
        return answer is None or answer.html or answer.status in RETRIED or answer.status >= 500


def lower(wanted: NewChannel) -> NewChannel:
    """Kommo writes UUIDs in lower case, and scope ids are compared as text."""
    kommo = wanted.kommo
    bot_id = kommo.bot_id.lower() if kommo.bot_id else None
    return NewChannel(
        wanted.name, KommoSide(kommo.channel_id.lower(), kommo.secret, bot_id), wanted.messenger
    )


async def register(services: Services, wanted: NewChannel, *, by: str = OPERATOR) -> Done:
    """Register a channel, unless it is so already; 409 if its name or channel id has other content."""
    wanted = lower(wanted)
    kommo, messenger = wanted.kommo, wanted.messenger
    check_secret(messenger.kind, messenger.secret)
    before = await services.channels.channel(wanted.name)
    if before:
        return Done(_as_wanted(before, wanted))
    try:
        await services.channels.add(wanted.name, kommo.channel_id, Secrets(kommo.secret, messenger.secret))
    except ChannelIdTaken:
        raise _taken(wanted.name) from None
    stream = ids.channel_stream(wanted.name)
    given = clock.stamp(Scope(wanted.name, "", "", b""), stream, by, now=clock.now_ms())
    command = c.Register(
        **given,
        stream=stream,
        channel_id=kommo.channel_id,
        kind=messenger.kind,
        url=messenger.url,
        bot_id=kommo.bot_id,
    )
    recorded = await record(services, command)
    return Done(_as_wanted(await _in_force(services, wanted.name, recorded), wanted), recorded)


async def change(
    services: Services,
    name: str,
    *,
    secrets: tuple[str | None, str | None] = (None, None),
    url: str | None = None,
    bot_id: str | None = None,
    by: str = OPERATOR,
) -> Done:
    """Change what is given. `secrets` are Kommo's and the messenger's, whose old one is good a day more."""
    channel = await named(services, name)
    old = channel.secrets
    new = Secrets(secrets[0] or old.kommo, secrets[1] or old.messenger, old.previous, old.previous_until)
    if new.messenger != old.messenger:
        check_secret(channel.kind, new.messenger)
        new = Secrets(new.kommo, new.messenger, old.messenger, clock.now_ms() + PREVIOUS_SECRET_MS)
    changed = tuple(side for side in ("kommo", "messenger") if getattr(old, side) != getattr(new, side))
    url, bot_id = url or channel.url, (bot_id or channel.bot_id or "").lower() or None
    if not changed and (url, bot_id) == (channel.url, channel.bot_id):
        return Done(channel)
    await services.channels.replace(name, new)
    stream = ids.channel_stream(name)
    given = clock.stamp(Scope(name, "", "", b""), stream, by, now=clock.now_ms())
    command = c.Change(**given, stream=stream, url=url, bot_id=bot_id, secrets=changed)
    recorded = await record(services, command)
    return Done(await _in_force(services, name, recorded), recorded)


async def connect(
    services: Services,
    name: str,
    account: str,
    title: str,
    *,
    by: str = OPERATOR,
    anew: bool = True,
    is_time_window_disabled: bool | None = None,
) -> Done:
    """Connect an account: at Kommo, then in the ledger; what was parked for want of it is taken up.

    `anew` false: it may have been connected all the time, so what Kommo did not find then stays parked.
    `is_time_window_disabled` None: as it was. Raises NotDone.
    """
    channel = await named(services, name)
    account = account.lower()
    where = ids.scope_of(name, channel.channel_id, account)
    before = channel.connections.get(account)
    again = before is not None and before.connected
    kept = before is not None and before.is_time_window_disabled
    disabled = kept if is_time_window_disabled is None else is_time_window_disabled
    try:
        await _ask_kommo(services, channel, "connect", account, title or name, disabled=disabled)
    except NotDone as refused:
        await services.attempts.record(name, account, refused.problem.detail)
        raise
    stream = ids.connection_stream(where)
    given = clock.stamp(where, stream, by, now=clock.now_ms())
    system = anew and again and by != OPERATOR
    command = c.Connect(
        **given, stream=stream, title=title or name, again=system, is_time_window_disabled=disabled
    )
    recorded = await record(services, command)
    channel = await _in_force(services, name, recorded)
    await services.attempts.record(name, account)
    await _resume(services, where, (DISCONNECTED, *LOST) if anew else (DISCONNECTED,), by)
    return Done(channel, recorded, again)


async def disconnect(services: Services, name: str, account: str, *, by: str = OPERATOR) -> Done:
    """Disconnect an account: at Kommo, then in the ledger; 404 if it is not connected. Raises NotDone."""
    channel = await named(services, name)
    connection = connected(channel, account.lower())
    await _ask_kommo(services, channel, "disconnect", connection.scope.account, "")
    return await dropped(services, connection, by=by)


async def dropped(services: Services, connection: Connection, *, by: str) -> Done:
    """Kommo has disconnected it: record that, and park what is open."""
    scope = connection.scope
    stream = ids.connection_stream(scope)
    given = clock.stamp(scope, stream, by, now=clock.now_ms())
    try:
        recorded = await record(services, c.Disconnect(**given, stream=stream))
    except NotConnected:  # Somebody else was first.
        raise ProblemError(404, NOT_CONNECTED) from None
    channel = await _in_force(services, scope.channel, recorded)
    await services.attempts.record(scope.channel, scope.account)
    await _park(services, scope, by)
    return Done(channel, recorded)


async def named(services: Services, name: str) -> Channel:
    """The channel of a name; raises ProblemError (404)."""
    channel = await services.channels.channel(name)
    if channel is None:
        raise ProblemError(404, "no channel has this name: register it with POST /v1/channels")
    return channel


def connected(channel: Channel, account: str) -> Connection:
    """The connection in force with an account; raises ProblemError (404)."""
    connection = channel.connections.get(account)
    if connection is None or not connection.connected:
        raise ProblemError(404, NOT_CONNECTED)
    return connection


def check_secret(kind: str, secret: str) -> None:
    """Whether a secret is one that the kind of messenger can use; raises ProblemError (400)."""
    faults = [Fault(f"$.messenger.{setting}", advice) for setting, advice in KINDS[kind].faults(secret)]
    if faults:
        detail = "; ".join(f"{fault.path}: {fault.message}" for fault in faults)
        raise ProblemError(400, detail, errors=faults)


def same(channel: Channel, wanted: NewChannel) -> bool:
    """Whether a channel is registered just so."""
    kommo, messenger, secrets = wanted.kommo, wanted.messenger, channel.secrets
    return (channel.channel_id, secrets.kommo, channel.bot_id) == (
        kommo.channel_id,
        kommo.secret,
        kommo.bot_id,
    ) and (channel.kind, channel.url, secrets.messenger) == (messenger.kind, messenger.url, messenger.secret)


def _as_wanted(channel: Channel, wanted: NewChannel) -> Channel:
    if not same(channel, wanted):
        raise _taken(wanted.name)
    return channel


def _taken(name: str) -> ProblemError:
    return ProblemError(
        409, f"the name {name} or its channel_id is registered with other content: change it with PUT"
    )


async def _in_force(services: Services, name: str, recorded: Recorded) -> Channel:
    """The channel once the change is known to every web process."""
    await services.views_reach(recorded.position)
    await services.channels.settle()
    return await named(services, name)


async def _ask_kommo(
    services: Services, channel: Channel, what: str, account: str, title: str, *, disabled: bool = False
) -> None:
    who = Credentials(channel.channel_id, channel.secrets.kommo)
    try:
        if what == "connect":
            answer = await services.kommo.connect(who, account, title, is_time_window_disabled=disabled)
        else:
            answer = await services.kommo.disconnect(who, account)
    except Unreached as error:
        raise NotDone(f"Kommo could not be reached ({error.reason}); nothing is recorded") from None
    gone = what == "disconnect" and answer.status == 404
    if answer.html or not (200 <= answer.status < 300 or gone):
        said = f"Kommo answered HTTP {answer.status}: {_said(answer)}; nothing is recorded"
        raise NotDone(said, answer)


def _said(answer: Answer) -> str:
    hints = {403: "check the channel's secret and this machine's clock", 404: "check the channel_id"}
    return answer.text or hints.get(answer.status, "no reason given")
