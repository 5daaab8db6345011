"""Channels and their connections: what is answered is recorded, and in force on every process."""

from typing import Annotated

from litestar import Response, delete, get, post, put
from litestar.params import FromPath, JSONBody
from msgspec import UNSET, Meta, Struct, UnsetType

from app import clock
from app.channels.directory import Channel, Connection, Side
from app.config.file import Kind, Secret, Url, Uuid, Wait
from app.http.api.parameters import NOT_TO_LEDGER, AtLeast, ledger_position
from app.http.openapi.responses import Taken, answers
from app.http.request import Call, services_of
from app.operations import channels as operations
from app.operations.channels import NewChannel, NotConnected, UnknownChannel
from app.operations.services import Services, views_reach
from app.operations.settings import credentials
from app.operations.settings.credentials import MessengerHealth
from domain.parts import WAIT_FOR_MESSENGER, ChannelOptions, MessageIds

NO_CHANNEL = {404: UnknownChannel.MESSAGE}


class KommoChange(Struct, frozen=True):
    """What may change on Kommo's side; hooks signed with the old secret are accepted for 24 hours more.

    `revoke_old` ends that at once, with a new secret or later.
    """

    channel_id: Uuid | None = None
    secret: Secret | None = None
    bot_id: Uuid | None = None
    revoke_old: bool = False


class MessengerChange(Struct, frozen=True):
    """What may change on the messenger's side; the old secret is accepted for 24 hours more.

    `revoke_old` ends that at once, with a new secret or later.
    """

    kind: Kind | None = None
    url: Url | None = None
    secret: Secret | None = None
    revoke_old: bool = False


class ChannelChange(Struct, frozen=True):
    """What to change; what is left out stays. A `default_account` of null ends it."""

    kommo: KommoChange = KommoChange()
    messenger: MessengerChange = MessengerChange()
    message_ids: MessageIds | UnsetType = UNSET
    default_account: Uuid | UnsetType | None = UNSET
    wait_for_messenger: Wait | UnsetType = UNSET


class NewConnection(Struct, frozen=True):
    """The account to connect, by its amojo id, and the title it shows there.

    `is_time_window_disabled`: managers may write at any time, whatever the channel says; left out, it stays.
    """

    account_id: Uuid
    title: Annotated[str, Meta(max_length=255)] = ""
    is_time_window_disabled: bool | None = None


class ConnectionShown(Struct, frozen=True):
    """A connection in force."""

    account_id: str
    scope_id: str
    title: str
    connected_at: str
    is_time_window_disabled: bool = False


class KommoShown(Struct, frozen=True):
    """Kommo's side, without its secret; `old_secret_until`: hooks signed with the one before are accepted."""

    channel_id: str
    bot_id: str | None
    old_secret_until: str | None = None


class MessengerShown(Struct, frozen=True):
    """The messenger's side, without its secret; `old_secret_until`: the one before is accepted."""

    kind: str
    url: str
    old_secret_until: str | None = None


class ChannelShown(Struct, frozen=True):
    """A registered channel and its connections.

    `wait_for_messenger` is how long managers' messages wait while the messenger refuses our calls.
    """

    name: str
    kommo: KommoShown
    messenger: MessengerShown
    connections: list[ConnectionShown]
    message_ids: MessageIds = "per channel"
    default_account: str | None = None
    wait_for_messenger: str = WAIT_FOR_MESSENGER


class ChannelsShown(Struct, frozen=True):
    """All channels, by name."""

    items: list[ChannelShown]


@post(
    "/channels",
    status_code=201,
    summary="Register a channel",
    tags=["channels"],
    responses=answers(409, also={200: ChannelShown}),
)
async def register(request: Call, data: JSONBody[NewChannel]) -> Response[ChannelShown]:
    """201 when it is registered, 200 when it was so already; 409 if the name or channel id is taken."""
    operations.check_kommo_secret(data.kommo.secret)
    done = await operations.register(services_of(request), data)
    status = 200 if done.recorded is None else 201
    return Response(_shown(done.channel), status_code=status, headers=ledger_position(done.recorded))


@put(
    "/channels/{name:str}",
    summary="Change a channel's address, options or secrets",
    tags=["channels"],
    responses=answers(409, said=NO_CHANNEL),
)
async def change(request: Call, name: FromPath[str], data: JSONBody[ChannelChange]) -> Response[ChannelShown]:
    """200 when the change is in force."""
    kommo, messenger = data.kommo, data.messenger
    services = services_of(request)
    operations.check_kommo_secret(kommo.secret)
    done = await operations.change(
        services,
        name,
        channel_id=kommo.channel_id,
        secrets=(kommo.secret, messenger.secret),
        revoked=_revoked(data),
        url=messenger.url,
        bot_id=kommo.bot_id,
        options=await _options(services, name, data),
    )
    return Response(_shown(done.channel), headers=ledger_position(done.recorded))


@get("/channels", summary="All channels", tags=["channels"])
async def channels(request: Call, at_least: AtLeast = None) -> ChannelsShown:
    """By name; secrets are never shown."""
    services = services_of(request)
    await views_reach(services, at_least, view="channels")
    found = await services.channels.all()
    return ChannelsShown([_shown(found[name]) for name in sorted(found)])


@post(
    "/channels/{name:str}/connections",
    status_code=201,
    summary="Connect an account",
    tags=["channels"],
    responses=answers(502, said=NO_CHANNEL, also={200: ConnectionShown}),
)
async def connect(
    request: Call, name: FromPath[str], data: JSONBody[NewConnection]
) -> Response[ConnectionShown]:
    """201 when Kommo has connected it, 200 when it was connected; 502 with Kommo's answer if it refuses."""
    disabled = data.is_time_window_disabled
    done = await operations.connect(
        services_of(request), name, data.account_id, data.title, is_time_window_disabled=disabled
    )
    now = done.channel.connections[data.account_id.lower()]
    status = 200 if done.again else 201
    return Response(_connection(now), status_code=status, headers=ledger_position(done.recorded))


@delete(
    "/channels/{name:str}/connections/{account_id:str}",
    summary="Disconnect an account",
    tags=["channels"],
    responses=answers(502, said={404: NotConnected.MESSAGE}),
)
async def disconnect(request: Call, name: FromPath[str], account_id: FromPath[str]) -> Response[None]:
    """204 when Kommo has disconnected it: its hooks get 404, and its open deliveries are parked."""
    done = await operations.disconnect(services_of(request), name, account_id)
    return Response(None, status_code=204, headers=ledger_position(done.recorded))


@put(
    "/channels/{name:str}/connections/{account_id:str}/messenger",
    summary="Set an account's credentials at the messenger",
    tags=["channels"],
    opt=NOT_TO_LEDGER | {"takes": Taken(dict[str, str], {"example": {"user": "acme", "token": "…"}})},
    responses=answers(said={404: NotConnected.MESSAGE}),
)
async def messenger(
    request: Call, name: FromPath[str], account_id: FromPath[str], data: JSONBody[dict[str, str]]
) -> MessengerHealth:
    """They are tried at once, and in force when it is answered; those that are refused (400) are not kept.

    The messenger's kind says which fields there are; all have to be given. `health` is "ok", or why they
    could not be tried now; `name` is the messenger's own for them. They are kept sealed, and never shown.
    """
    return await credentials.put(services_of(request), name, account_id, data)


def _revoked(data: ChannelChange) -> list[Side]:
    sides: list[tuple[Side, bool]] = [
        ("kommo", data.kommo.revoke_old),
        ("messenger", data.messenger.revoke_old),
    ]
    return [side for side, revoked in sides if revoked]


async def _options(services: Services, name: str, data: ChannelChange) -> ChannelOptions:
    """The channel's options with what changes of them; raises UnknownChannel."""
    options = (await operations.named(services, name)).options
    account = options.default_account
    if data.default_account is not UNSET:
        account = data.default_account.lower() if data.default_account else None
    ids = options.message_ids if data.message_ids is UNSET else data.message_ids
    wait = options.wait_for_messenger if data.wait_for_messenger is UNSET else data.wait_for_messenger
    return ChannelOptions(ids, account, wait)


def _shown(channel: Channel) -> ChannelShown:
    secrets, now_ms = channel.secrets, clock.now_ms()
    kommo = clock.text(secrets.previous_kommo_until) if secrets.old_kommo(now_ms) else None
    messenger = clock.text(secrets.previous_until) if secrets.old_messenger(now_ms) else None
    return ChannelShown(
        channel.name,
        KommoShown(channel.channel_id, channel.bot_id, kommo),
        MessengerShown(channel.kind, channel.url, messenger),
        [_connection(connection) for connection in channel.accounts],
        channel.options.message_ids,
        channel.options.default_account,
        channel.options.wait_for_messenger,
    )


def _connection(connection: Connection) -> ConnectionShown:
    scope = connection.scope
    return ConnectionShown(
        scope.account,
        scope.scope_id,
        connection.title,
        connection.connected_at,
        connection.is_time_window_disabled,
    )


routes = [register, change, channels, connect, disconnect, messenger]
