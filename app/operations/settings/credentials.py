"""An account's credentials at its messenger: tried at once, then sealed with the connection they are for."""

from collections.abc import Mapping

from msgspec import Struct

from app.channels.directory import Channel, Connection, Credentials
from app.http_client import Unreached
from app.messengers.adapter import Messenger, Unfit
from app.operations import channels
from app.operations.channels import NotConnected
from app.operations.errors import InvalidInput
from app.operations.services import Services
from app.printable import printable

CHARACTERS_MAX = 4096  # Chosen: the longest tokens of the messengers that we know have some hundred.
OK = "ok"


class MessengerHealth(Struct, frozen=True):
    """Whether the messenger takes our calls: "ok", or why that is not known; `name` is its own for them."""

    health: str
    name: str | None = None


async def put(services: Services, name: str, account: str, given: Mapping[str, str]) -> MessengerHealth:
    """Try a connection's credentials and keep them; they are in force on every process then.

    Those that the messenger refuses are not kept; those that cannot be tried now are. Raises UnknownChannel,
    NotConnected, InvalidInput.
    """
    channel = await channels.named(services, name)
    connection = _connection(channel, account)
    health = await _tried(services, channel, given)
    await services.channels.set_credentials(name, connection.scope.account, Credentials(dict(given)))
    await services.channels.settle()
    await services.rests.nudge(name, connection.scope.account)
    return health


async def check(services: Services, name: str, account: str, given: Mapping[str, str]) -> MessengerHealth:
    """Try a connection's credentials, and change nothing. Raises as `put`."""
    channel = await channels.named(services, name)
    _connection(channel, account)
    return await _tried(services, channel, given)


def completed(kind: Messenger, connection: Connection | None, given: Mapping[str, str]) -> dict[str, str]:
    """What a form means: a secret that is left empty is the one that is kept already."""
    kept = connection.messenger.fields if connection else {}
    found = {}
    for field in kind.credentials:
        value = given.get(field.name, "").strip()
        found[field.name] = value or (kept.get(field.name, "") if field.secret else "")
    return found


def _connection(channel: Channel, account: str) -> Connection:
    """The connection to an account, in force or past: whoever connects again finds the credentials there."""
    connection = channel.connections.get(account.lower())
    if connection is None:
        raise NotConnected
    return connection


async def _tried(services: Services, channel: Channel, given: Mapping[str, str]) -> MessengerHealth:
    messenger = services.messengers[channel.kind]
    _check_fields(messenger, given)
    try:
        name = await messenger.try_credentials(channel, given)
    except Unfit as error:
        raise InvalidInput(f"the messenger refuses them: {error.says}: {error.todo}") from None
    except Unreached as error:
        return MessengerHealth(f"the messenger could not be reached: {error.reason}")
    return MessengerHealth(OK, printable(name) if name else None)


def _check_fields(messenger: Messenger, given: Mapping[str, str]) -> None:
    """Raises InvalidInput for what the kind of messenger does not declare, or lacks."""
    known = {field.name for field in messenger.credentials}
    there = ", ".join(sorted(known)) or "no fields"
    faults = [(f"$.{one}", f"it is not known: there are {there}") for one in given if one not in known]
    for name in known:
        value = given.get(name, "")
        if not value or len(value) > CHARACTERS_MAX or not value.isprintable():
            faults.append((f"$.{name}", f"give 1 to {CHARACTERS_MAX} printable characters"))
    if faults:
        raise InvalidInput("; ".join(f"{path}: {advice}" for path, advice in faults), faults=faults)
