"""Channels and their connections: what is answered is recorded, and in force on every process."""

from typing import Annotated, Literal

import msgspec
from litestar import Response, delete, get, post, put
from litestar.params import FromPath, JSONBody
from msgspec import Meta, Struct
from standardwebhooks import Webhook
from standardwebhooks.webhooks import EmptyWebhookSecretError

from app import clock, shapes
from app.channels import PREVIOUS_SECRET_MS, Channel, Connection, Secrets, Taken
from app.client import Answer, Unreached
from app.kommo import Credentials
from app.lanes import DISCONNECTED
from app.ledger import Full, Recorded, Unavailable
from app.problems import Fault, Wrong
from app.services import Call, Services, services_of
from app.setup import ChannelName, KommoSide, MessengerSide, Secret, Url, Uuid
from domain import commands as c
from domain import ids
from domain.ids import Link

DELIVERIES_PAGE = 1000
OPERATOR = "operator"


class NewChannel(Struct, frozen=True):
    """A channel to register."""

    name: ChannelName
    kommo: KommoSide
    messenger: MessengerSide


class KommoChange(Struct, frozen=True):
    """What may change on Kommo's side."""

    channel_id: Uuid | None = None
    secret: Secret | None = None
    bot_id: Uuid | None = None


class MessengerChange(Struct, frozen=True):
    """What may change on the messenger's side; the old secret is accepted for 24 hours more."""

    kind: Literal["webhook"] | None = None
    url: Url | None = None
    secret: Secret | None = None


class ChannelChange(Struct, frozen=True):
    """What to change; what is left out stays."""

    kommo: KommoChange = KommoChange()
    messenger: MessengerChange = MessengerChange()


class NewConnection(Struct, frozen=True):
    """The account to connect, by its amojo id, and the title it shows there."""

    account_id: Uuid
    title: Annotated[str, Meta(max_length=255)] = ""


class ConnectionShown(Struct, frozen=True):
    """A connection in force."""

    account_id: str
    scope_id: str
    title: str
    connected_at: str


class KommoShown(Struct, frozen=True):
    """Kommo's side, without its secret."""

    channel_id: str
    bot_id: str | None


class MessengerShown(Struct, frozen=True):
    """The messenger's side, without its secret."""

    kind: str
    url: str


class ChannelShown(Struct, frozen=True):
    """A registered channel and its connections."""

    name: str
    kommo: KommoShown
    messenger: MessengerShown
    connections: list[ConnectionShown]


class ChannelsShown(Struct, frozen=True):
    """All channels, by name."""

    items: list[ChannelShown]


@post("/channels", status_code=201, summary="Register a channel", tags=["channels"])
async def register(request: Call, data: JSONBody[NewChannel]) -> Response[ChannelShown]:
    """201 when it is registered, 200 when it was so already; 409 if the name or channel id is taken."""
    services = services_of(request)
    data = _lower(data)
    _check_secret(data.messenger.secret)
    wanted = Secrets(data.kommo.secret, data.messenger.secret)
    before = await services.channels.channel(data.name)
    if before:
        return Response(_shown(before), status_code=200 if _same(before, data) else _taken(data.name))
    try:
        await services.channels.add(data.name, data.kommo.channel_id, wanted)
    except Taken:
        _taken(data.name)
    stream = ids.channel_stream(data.name)
    given = clock.stamp(Link(data.name, "", "", b""), stream, OPERATOR, now=clock.now_ms())
    command = c.Register(
        **given,
        stream=stream,
        channel_id=data.kommo.channel_id,
        kind=data.messenger.kind,
        url=data.messenger.url,
        bot_id=data.kommo.bot_id,
    )
    recorded = await _record(services, command)
    channel = await _in_force(services, data.name, recorded)
    if not _same(channel, data):
        _taken(data.name)
    return Response(_shown(channel), status_code=201, headers=_position(recorded))


@put("/channels/{name:str}", summary="Change a channel's address or secrets", tags=["channels"])
async def change(request: Call, name: FromPath[str], data: JSONBody[ChannelChange]) -> Response[ChannelShown]:
    """200 when the change is in force."""
    services = services_of(request)
    channel = await _channel(services, name)
    kommo, messenger = data.kommo, data.messenger
    if kommo.channel_id not in (None, channel.channel_id):
        raise Wrong(409, "a channel keeps its channel_id: register another channel for another id")
    old = channel.secrets
    secrets = Secrets(
        kommo.secret or old.kommo, messenger.secret or old.messenger, old.previous, old.previous_until
    )
    if secrets.messenger != old.messenger:
        _check_secret(secrets.messenger)
        until = clock.now_ms() + PREVIOUS_SECRET_MS
        secrets = Secrets(secrets.kommo, secrets.messenger, old.messenger, until)
    changed = tuple(side for side in ("kommo", "messenger") if getattr(old, side) != getattr(secrets, side))
    url, bot_id = messenger.url or channel.url, kommo.bot_id or channel.bot_id
    if not changed and (url, bot_id) == (channel.url, channel.bot_id):
        return Response(_shown(channel))
    await services.channels.replace(name, secrets)
    stream = ids.channel_stream(name)
    given = clock.stamp(Link(name, "", "", b""), stream, OPERATOR, now=clock.now_ms())
    command = c.Change(**given, stream=stream, url=url, bot_id=bot_id, secrets=changed)
    recorded = await _record(services, command)
    return Response(_shown(await _in_force(services, name, recorded)), headers=_position(recorded))


@get("/channels", summary="All channels", tags=["channels"])
async def channels(request: Call) -> ChannelsShown:
    """By name; secrets are never shown."""
    found = await services_of(request).channels.all()
    return ChannelsShown([_shown(found[name]) for name in sorted(found)])


@post("/channels/{name:str}/connections", status_code=201, summary="Connect an account", tags=["channels"])
async def connect(
    request: Call, name: FromPath[str], data: JSONBody[NewConnection]
) -> Response[ConnectionShown]:
    """201 when Kommo has connected it, 200 when it was connected; 502 with Kommo's answer if it refuses."""
    services = services_of(request)
    channel = await _channel(services, name)
    data = msgspec.structs.replace(data, account_id=data.account_id.lower())
    where = ids.link(name, channel.channel_id, data.account_id)
    before = channel.connections.get(data.account_id)
    title = data.title or name
    await _ask_kommo(services, channel, "connect", data.account_id, title)
    stream = ids.connection_stream(where)
    given = clock.stamp(where, stream, OPERATOR, now=clock.now_ms())
    recorded = await _record(services, c.Connect(**given, stream=stream, title=title))
    channel = await _in_force(services, name, recorded)
    await _resume(services, where)
    now = channel.connections[data.account_id]
    again = before is not None and before.connected
    return Response(_connection(now), status_code=200 if again else 201, headers=_position(recorded))


@delete(
    "/channels/{name:str}/connections/{account_id:str}", summary="Disconnect an account", tags=["channels"]
)
async def disconnect(request: Call, name: FromPath[str], account_id: FromPath[str]) -> Response[None]:
    """204 when Kommo has disconnected it: its hooks get 404, and its open deliveries are parked."""
    services = services_of(request)
    channel = await _channel(services, name)
    account_id = account_id.lower()
    before = channel.connections.get(account_id)
    if before is None or not before.connected:
        raise Wrong(404, "the channel is not connected to this account")
    await _ask_kommo(services, channel, "disconnect", account_id, "")
    stream = ids.connection_stream(before.link)
    given = clock.stamp(before.link, stream, OPERATOR, now=clock.now_ms())
    recorded = await _record(services, c.Disconnect(**given, stream=stream))
    await _in_force(services, name, recorded)
    await _park(services, before.link)
    return Response(None, status_code=204, headers=_position(recorded))


def _lower(data: NewChannel) -> NewChannel:
    """Kommo writes UUIDs in lower case, and scope ids are compared as text."""
    kommo = data.kommo
    bot_id = kommo.bot_id.lower() if kommo.bot_id else None
    kommo = msgspec.structs.replace(kommo, channel_id=kommo.channel_id.lower(), bot_id=bot_id)
    return msgspec.structs.replace(data, kommo=kommo)


async def _channel(services: Services, name: str) -> Channel:
    channel = await services.channels.channel(name)
    if channel is None:
        raise Wrong(404, "no channel has this name: register it with POST /v1/channels")
    return channel


async def _record(services: Services, command: c.AnyCommand) -> Recorded:
    try:
        return await services.ledger.submit(command)
    except (Full, Unavailable):
        raise Wrong(503, "the ledger cannot take it now: send it again", retry_after=1) from None


async def _in_force(services: Services, name: str, recorded: Recorded) -> Channel:
    """The channel once the change is known to every web process."""
    await services.views_reach(recorded.position)
    await services.channels.settle()
    return await _channel(services, name)


async def _ask_kommo(services: Services, channel: Channel, what: str, account: str, title: str) -> None:
    who = Credentials(channel.channel_id, channel.secrets.kommo)
    try:
        if what == "connect":
            answer = await services.kommo.connect(who, account, title)
        else:
            answer = await services.kommo.disconnect(who, account)
    except Unreached as error:
        raise Wrong(502, f"Kommo could not be reached ({error.reason}); nothing is recorded") from None
    gone = what == "disconnect" and answer.status == 404
    if not (200 <= answer.status < 300 or gone):
        raise Wrong(502, f"Kommo answered HTTP {answer.status}: {_said(answer)}; nothing is recorded")


def _said(answer: Answer) -> str:
    hints = {403: "check the channel's secret and this machine's clock", 404: "check the channel_id"}
    return answer.text or hints.get(answer.status, "no reason given")


async def _open(services: Services, where: Link, states: tuple[str, ...]) -> list[shapes.Delivery]:
    found: list[shapes.Delivery] = []
    for state in states:
        cursor = None
        while True:
            page = await services.reads.list_deliveries(
                state=state,
                channel=where.channel,
                account_id=where.account,
                limit=DELIVERIES_PAGE,
                cursor=cursor,
            )
            found += page.items
            if (cursor := page.next) is None:
                break
    return found


async def _park(services: Services, where: Link) -> None:
    for delivery in await _open(services, where, ("open", "deferred")):
        given = _stamp(where, delivery)
        stream = delivery.message or delivery.id
        await _record(services, c.Park(**given, stream=stream, cause=delivery.id, reason=DISCONNECTED))


async def _resume(services: Services, where: Link) -> None:
    for delivery in await _open(services, where, ("parked",)):
        if delivery.reason == DISCONNECTED:
            await resume_one(services, where, delivery)


async def resume_one(services: Services, where: Link, delivery: shapes.Delivery) -> Recorded:
    """Take up a parked delivery again."""
    given = _stamp(where, delivery)
    stream = delivery.message or delivery.id
    return await _record(services, c.Resume(**given, stream=stream, cause=delivery.id))


def _stamp(where: Link, delivery: shapes.Delivery) -> c.Stamp:
    lane = delivery.conversation or delivery.id
    return clock.stamp(where, lane, OPERATOR, now=clock.now_ms())


def _position(recorded: Recorded) -> dict[str, str]:
    return {"Ledger-Position": str(recorded.position)}


def _taken(name: str) -> int:
    detail = f"the name {name} or its channel_id is registered with other content: change it with PUT"
    raise Wrong(409, detail)


def _check_secret(secret: str) -> None:
    try:
        Webhook(secret)
    except (ValueError, EmptyWebhookSecretError):
        message = "a Standard Webhooks secret is whsec_ and base64, for example: openssl rand -base64 32"
        fault = Fault("$.messenger.secret", message)
        raise Wrong(400, f"$.messenger.secret: {message}", errors=[fault]) from None


def _same(channel: Channel, data: NewChannel) -> bool:
    wanted = (data.kommo.channel_id, data.kommo.secret, data.kommo.bot_id)
    reached = (data.messenger.kind, data.messenger.url, data.messenger.secret)
    secrets = channel.secrets
    return (channel.channel_id, secrets.kommo, channel.bot_id) == wanted and (
        channel.kind,
        channel.url,
        secrets.messenger,
    ) == reached


def _shown(channel: Channel) -> ChannelShown:
    return ChannelShown(
        channel.name,
        KommoShown(channel.channel_id, channel.bot_id),
        MessengerShown(channel.kind, channel.url),
        [_connection(connection) for connection in channel.accounts],
    )


def _connection(connection: Connection) -> ConnectionShown:
    where = connection.link
    return ConnectionShown(where.account, where.scope_id, connection.title, connection.connected_at)


routes = [register, change, channels, connect, disconnect]
