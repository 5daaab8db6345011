"""The messengers' requests: the actions of one are all durable before its answer, or none is stored."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from msgspec import UNSET, Struct, UnsetType

from app.channels.directory import Channel, Connection
from app.http.webhooks.body import BUSY, RETRY_AFTER_SECONDS, UNSIGNED, Answer
from app.http.webhooks.kommo import refresh, refuse_unopened
from app.ledger.writer import EventTooLarge, LedgerFull, LedgerUnavailable, Recorded
from app.messengers import commands
from app.messengers.adapter import Messenger, Received, Request, Result, UnknownSender, Unsigned
from app.messengers.checks import ActionRefused
from app.messengers.contract import Action
from app.operations.services import Services
from app.problems import Fault, Problem, ProblemError
from app.vault import WrongMasterKey
from domain import commands as c
from domain.decide import OwnMessage

OWN = "this names a message of the messenger's own: only messages that we sent have a status"


class Outcome(Struct, frozen=True):
    """What became of one action: our message id, its position and whether it was a repeat; or a problem."""

    id: str | UnsetType | None = UNSET
    position: int | UnsetType | None = UNSET
    duplicate: bool | UnsetType = UNSET
    error: Problem | UnsetType = UNSET


class Outcomes(Struct, frozen=True):
    """One for each action, in their order."""

    results: list[Outcome]


class _Route(NamedTuple):
    """A kind's path, cut into its parts: (name, True) of a part in braces, (word, False) of any other."""

    kind: str
    parts: tuple[tuple[str, bool], ...]


class Routes:
    """Which kind of messenger takes a request."""

    def __init__(self, messengers: Mapping[str, Messenger]) -> None:
        self._routes: dict[tuple[str, str], list[_Route]] = {}
        for kind, messenger in messengers.items():
            for method, path in messenger.routes:
                first, *rest = path.strip("/").split("/")
                parts = tuple((part.strip("{}"), part.startswith("{")) for part in rest)
                self._routes.setdefault((method, first), []).append(_Route(kind, parts))

    def find(self, method: str, first: str, rest: Sequence[str]) -> tuple[str, dict[str, str]] | None:
        """The kind, and the path's parts by the names in braces; None if no kind has such a path."""
        for kind, parts in self._routes.get((method, first), ()):
            if len(parts) == len(rest) and all(
                text and (named or text == part) for (part, named), text in zip(parts, rest, strict=True)
            ):
                return kind, {part: text for (part, named), text in zip(parts, rest, strict=True) if named}
        return None


async def take(services: Services, kind: str, request: Request) -> Answer:
    """Record the actions of a request to a kind of messenger; the answer comes once all are durable.

    Raises ProblemError (400, 401, 404, 409, 503).
    """
    await refresh(services.channels)
    messenger = services.messengers[kind]
    channel = await _sender(services, kind, request)
    if not channel.accounts:
        raise ProblemError(409, "the channel is not connected yet: POST /v1/channels/{name}/connections")
    try:
        received = messenger.receive(request, channel)
    except ActionRefused as error:
        raise _bad(error.path, error.message) from None
    results, last = await _recorded(services, _commands(channel, received), len(request.body))
    failed = next((one for one in results if isinstance(one, ProblemError)), None)
    if failed is not None and not received.array:
        raise failed
    bodies: list[Result | Problem] = [
        one.problem if isinstance(one, ProblemError) else one for one in results
    ]
    headers = {"Content-Type": "application/json", "Ledger-Position": str(last)}
    return Answer(200, messenger.answer(bodies), headers)


async def _sender(services: Services, kind: str, request: Request) -> Channel:
    """The channel whose messenger proves that it made the request."""
    try:
        channel = services.messengers[kind].verify(request, await services.channels.all())
    except (UnknownSender, WrongMasterKey):
        channel = None
    except Unsigned:
        raise ProblemError(401, UNSIGNED) from None
    if channel is None:
        refuse_unopened(services.channels)
    if channel is None or channel.kind != kind:
        raise ProblemError(404, "no channel has this name: register it with POST /v1/channels")
    return channel


async def _recorded(
    services: Services, found: Sequence[c.AnyCommand], size: int
) -> tuple[list[Result | ProblemError], int]:
    """What became of each command, and the last position; `size` is that of the body they came in."""
    ledger = services.ledger
    if not ledger.has_room(len(found), size):
        raise ProblemError(503, BUSY, retry_after=RETRY_AFTER_SECONDS)
    futures = [ledger.submit(command, size // len(found)) for command in found]
    results, last = [], 0
    for outcome in await asyncio.gather(*futures, return_exceptions=True):
        results.append(result := _result(outcome))
        if isinstance(outcome, Recorded) and isinstance(result, Result):
            last = max(last, outcome.position or 0, outcome.last or 0)
    return results, last


def _path(received: Received, index: int) -> str:
    """Where an action stands in its body."""
    return f"$[{index}]" if received.array else "$"


def _bad(path: str, message: str) -> ProblemError:
    return ProblemError(
        400, f"{path}: {message}; nothing of this body is stored", errors=[Fault(path, message)]
    )


def _commands(channel: Channel, received: Received) -> list[c.AnyCommand]:
    """The command of each action."""
    connections = [
        _connection(channel, action, _path(received, index)) for index, action in enumerate(received.actions)
    ]
    found = []
    for index, (connection, action) in enumerate(zip(connections, received.actions, strict=True)):
        try:
            request = f"{received.request}:{index}" if received.request else None
            given = commands.Circumstances(channel.bot_id, request=request)
            found.append(commands.command(connection.scope, action, given))
        except ActionRefused as error:
            raise _bad(_path(received, index) + error.path[1:], error.message) from None
    return found


def _connection(channel: Channel, action: Action, path: str) -> Connection:
    """The connection that an action belongs to: the account it names, or the only one there is."""
    accounts = channel.accounts
    if action.account_id is None and len(accounts) == 1:
        return accounts[0]
    for connection in accounts:
        if connection.scope.account == action.account_id:
            return connection
    advice = "name the account: the channel has several" if action.account_id is None else "unknown account"
    raise _bad(f"{path}.account_id", advice)


def _result(outcome: Recorded | BaseException) -> Result | ProblemError:
    """What became of one command; raises ProblemError (503) for all if the ledger did not take it."""
    match outcome:
        case Recorded(conflict=True, position=position):
            detail = f"this message_id is recorded with other content at position {position}, which stands"
            return ProblemError(409, detail, position=position)
        case Recorded():
            return Result(outcome.message, outcome.position, outcome.duplicate)
        case OwnMessage():
            return ProblemError(400, OWN)
        case EventTooLarge():
            return ProblemError(400, "the event would be over 384 KB: send less")
        case LedgerUnavailable() | LedgerFull() | asyncio.CancelledError():
            raise ProblemError(503, BUSY, retry_after=RETRY_AFTER_SECONDS)
        case _:
            raise outcome
