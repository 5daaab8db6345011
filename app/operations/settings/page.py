"""What an account's settings page shows, and who may open it: a user whom Kommo's one-time token names."""

import secrets

import msgspec
from msgspec import Struct

from app import clock
from app.channels.directory import Channel, Connection
from app.kommo.crm.users import User
from app.messengers import checks, commands
from app.messengers.adapter import Credential
from app.operations import accounts, channels, consent, crm
from app.operations.accounts import AccountShown
from app.operations.channels import UnknownChannel
from app.operations.errors import OperationError
from app.operations.services import Services, record, views_reach
from app.views.conversations import Conversation, customers, list_conversations
from app.views.deliveries import Delivery, list_deliveries

STUCK_MAX = 20  # Chosen, both: what a person reads; the rest is behind the same button, or in Kommo.
CHATS_MAX = 10
TEST = "chatledger-test"
PROBLEM = """SELECT problem, answer FROM ledger.connecting
 WHERE channel = %(channel)s AND account_id = %(account)s AND problem IS NOT NULL"""


class Field(Struct, frozen=True):
    """A field of the messenger's credentials: what is kept, unless that is a secret."""

    declared: Credential
    is_kept: bool
    value: str


class ChannelState(Struct, frozen=True):
    """A channel of the account: whether it is connected, why not, and the messenger's credentials."""

    name: str
    title: str
    connected: bool
    problem: str
    fields: list[Field]


class Chat(Struct, frozen=True):
    """A conversation and its customer's name."""

    conversation: Conversation
    customer: str


class Live(Struct, frozen=True):
    """What changes by itself: what is not delivered, and the latest conversations."""

    stuck: list[Delivery]
    chats: list[Chat]


class Source(Struct, frozen=True):
    """A source as Kommo has it."""

    id: int
    name: str | None = None
    external_id: str | None = None
    pipeline_id: int | None = None
    default: bool | None = None


class Pipeline(Struct, frozen=True):
    """A pipeline of the account's CRM."""

    id: int
    name: str = ""


class OfCrm(Struct, frozen=True):
    """What Kommo's CRM says; `problem` is why it does not."""

    sources: list[Source] = []
    pipelines: list[Pipeline] = []
    managers: list[User] = []
    problem: str = ""


class _Problem(Struct):
    problem: str
    answer: str | None


async def account(services: Services, account_id: str) -> AccountShown:
    """The account and the steps of its installation."""
    return await accounts.installed(services, account_id)


async def channel_states(services: Services, account_id: str) -> list[ChannelState]:
    """The channels that the account has, has had or is to get, by name."""
    install = services.setup.install
    wanted = set(install.channels) if install else set()
    found = []
    for name, channel in sorted((await services.channels.all()).items()):
        if name in wanted or account_id in channel.connections:
            found.append(await _state(services, channel, account_id))
    return found


async def channel_of(services: Services, account_id: str, name: str) -> Channel:
    """A channel that the account has; raises UnknownChannel for any other, as if there were none."""
    install = services.setup.install
    channel = await channels.named(services, name)
    if account_id not in channel.connections and name not in (install.channels if install else ()):
        raise UnknownChannel
    return channel


async def _state(services: Services, channel: Channel, account_id: str) -> ChannelState:
    connection = channel.connections.get(account_id)
    connected = connection is not None and connection.connected
    problem = "" if connected else await _problem(services, channel.name, account_id)
    fields = [_field(one, connection) for one in services.messengers[channel.kind].credentials]
    title = connection.title if connection else channel.name
    return ChannelState(channel.name, title, connected, problem, fields)


def _field(declared: Credential, connection: Connection | None) -> Field:
    kept = connection.messenger.fields.get(declared.name, "") if connection else ""
    return Field(declared, bool(kept), "" if declared.secret else kept)


async def _problem(services: Services, channel: str, account_id: str) -> str:
    """Why the last attempt to connect failed."""
    values = {"channel": channel, "account": account_id}
    rows = await services.pool.fetch(_Problem, PROBLEM, values)
    return "; ".join(text for row in rows for text in (row.problem, row.answer) if text)


async def live(services: Services, account_id: str) -> Live:
    """What is not delivered, the oldest first, and the latest conversations."""
    stuck = await list_deliveries(
        services.pool, states=["deferred", "parked", "failed"], account_id=account_id, limit=STUCK_MAX
    )
    chats = await list_conversations(services.pool, account_id=account_id, limit=CHATS_MAX)
    known = await customers(services.pool, [one.id for one in chats.items])
    named = []
    for one in chats.items:
        customer = known.get(one.id)
        name = (customer.name or customer.phone) if customer else None
        named.append(Chat(one, name or one.conversation_id or one.id[:8]))
    return Live(stuck.items, named)


async def of_crm(services: Services, account_id: str) -> OfCrm:
    """Sources, pipelines and managers; without them if Kommo's CRM does not answer, with its reason."""
    try:
        answer = await crm.call(services, account_id, "GET", "sources")
        sources = msgspec.convert(crm.contents(answer, "sources", Source), list[Source])
        managers = await crm.list_users(services, account_id)
        return OfCrm(sources, await _pipelines(services, account_id), msgspec.convert(managers, list[User]))
    except OperationError as error:
        return OfCrm(problem=error.detail)


async def _pipelines(services: Services, account_id: str) -> list[Pipeline]:
    """The account's pipelines; none where we may not read them, so that their numbers are asked for."""
    try:
        answer = await crm.call(services, account_id, "GET", "leads/pipelines")
    except OperationError:
        return []
    return msgspec.convert(crm.contents(answer, "pipelines", Pipeline), list[Pipeline])


async def consent_url(services: Services, account_id: str) -> str:
    """Where an administrator lets us in again; raises NoIntegration."""
    return consent.authorize_url(services, account_id)[0]


# What it does.


async def send_test(services: Services, account_id: str, name: str, text: str) -> None:
    """A message as if a customer had written it, to be seen in Kommo. Raises NotConnected, LedgerBusy."""
    channel = await channel_of(services, account_id, name)
    connection = channels.connected(channel, account_id)
    action = {
        "type": "message.sent",
        "conversation_id": TEST,
        "message_id": f"{TEST}-{secrets.token_hex(8)}",
        "at": clock.text(clock.now_ms()),
        "sender": {"id": TEST, "name": "Test"},
        "message": {"type": "text", "text": text},
    }
    given = commands.Circumstances(channel.bot_id)
    command = commands.command(connection.scope, checks.parse_one(msgspec.json.encode(action)), given)
    recorded = await record(services, command)
    await views_reach(services, recorded.position)


async def add_source(services: Services, account_id: str, name: str, pipeline_id: int | None) -> None:
    """Create a source under a new external id. Raises an OperationError."""
    order: dict[str, object] = {"name": name, "external_id": f"source-{secrets.token_hex(4)}"}
    if pipeline_id is not None:
        order["pipeline_id"] = pipeline_id
    await crm.call(services, account_id, "POST", "sources", [order])


async def change_source(services: Services, account_id: str, source_id: int, **changed: object) -> None:
    """Change what is given of a source of ours. Raises an OperationError."""
    await crm.call(services, account_id, "PATCH", "sources", [{"id": source_id, **changed}])


async def delete_source(services: Services, account_id: str, source_id: int) -> None:
    """Delete a source. Raises an OperationError."""
    await crm.call(services, account_id, "DELETE", f"sources/{source_id}")
