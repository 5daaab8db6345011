"""`POST /messengers/{channel}`: a body's actions are all durable before the answer, or none is stored."""

import asyncio
from collections.abc import Mapping

import msgspec
from msgspec import UNSET, Struct, UnsetType

from app import clock, problems
from app.channels.directory import Channel, Connection
from app.http.webhooks.body import BUSY, RETRY_AFTER_SECONDS, UNSIGNED, Answer
from app.http.webhooks.kommo import refresh
from app.ledger.writer import EventTooLarge, LedgerFull, LedgerUnavailable, Recorded
from app.messengers import checks, webhook
from app.messengers import commands as actions
from app.messengers.checks import ActionRefused
from app.messengers.contract import Action
from app.operations.services import Services
from app.problems import Fault, Problem, ProblemError
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


class Result(Struct, frozen=True):
    """What became of an action: our message id (None while the message is not known), and its position."""

    id: str | None
    position: int | None
    duplicate: bool


async def take(services: Services, name: str, headers: Mapping[str, str], body: bytes) -> Answer:
    """Record a messenger's actions; the answer has one result per action once all are durable.

    Raises ProblemError (400, 401, 404, 409, 503).
    """
    await refresh(services.channels)
    channel = await services.channels.channel(name)
    if channel is None:
        raise ProblemError(404, "no channel has this name: register it with POST /v1/channels")
    if not webhook.verified(_secrets(channel), headers, body):
        raise ProblemError(401, UNSIGNED)
    if not channel.accounts:
        raise ProblemError(409, "the channel is not connected yet: POST /v1/channels/{name}/connections")
    try:
        parsed = checks.parse(body)
    except ActionRefused as error:
        raise _bad(error.path, error.message) from None
    connections = [_connection(channel, action, _path(parsed, n)) for n, action in enumerate(parsed.actions)]
    commands = _commands(channel, parsed, connections)
    if not services.ledger.has_room(len(commands), len(body)):
        raise ProblemError(503, BUSY, retry_after=RETRY_AFTER_SECONDS)
    size = len(body) // len(commands)
    futures = [services.ledger.submit(command, size) for command in commands]
    done = await asyncio.gather(*futures, return_exceptions=True)
    return _results(parsed, done)


def _secrets(channel: Channel) -> list[str]:
    secrets = channel.secrets
    old = secrets.previous if secrets.previous and secrets.previous_until > clock.now_ms() else None
    return [secrets.messenger, old] if old else [secrets.messenger]


def _path(parsed: checks.Parsed, index: int) -> str:
    return f"$[{index}].account_id" if parsed.array else "$.account_id"


def _bad(path: str, message: str) -> ProblemError:
    return ProblemError(
        400, f"{path}: {message}; nothing of this body is stored", errors=[Fault(path, message)]
    )


def _commands(channel: Channel, parsed: checks.Parsed, connections: list[Connection]) -> list[c.AnyCommand]:
    """The command of each action."""
    found = []
    for index, (connection, action) in enumerate(zip(connections, parsed.actions, strict=True)):
        try:
            found.append(actions.command(connection.scope, action, bot_id=channel.bot_id))
        except ActionRefused as error:
            place = f"$[{index}]" if parsed.array else "$"
            raise _bad(place + error.path[1:], error.message) from None
    return found


def _connection(channel: Channel, action: Action, path: str) -> Connection:
    """The connection that an action belongs to: the account it names, or the only one there is."""
    accounts = channel.accounts
    if action.account_id is None and len(accounts) == 1:
        return accounts[0]
    for connection in accounts:
        if connection.scope.account == action.account_id:
            return connection
    wrong = "name the account: the channel has several" if action.account_id is None else "unknown account"
    raise _bad(path, wrong)


def _results(parsed: checks.Parsed, done: list[Recorded | BaseException]) -> Answer:
    results: list[Result | dict[str, object]] = []
    last = 0
    for outcome in done:
        if isinstance(outcome, LedgerUnavailable | LedgerFull | asyncio.CancelledError):
            raise ProblemError(503, BUSY, retry_after=RETRY_AFTER_SECONDS)
        wrong = _wrong(outcome)
        if wrong is not None and not parsed.array:
            raise wrong
        if wrong is not None:
            results.append({"error": msgspec.json.decode(problems.encode(wrong.problem))})
            continue
        assert isinstance(outcome, Recorded)
        last = max(last, outcome.position or 0, outcome.last or 0)
        results.append(Result(outcome.message, outcome.position, outcome.duplicate))
    headers = {"Content-Type": "application/json", "Ledger-Position": str(last)}
    return Answer(200, msgspec.json.encode({"results": results}), headers)


def _wrong(outcome: Recorded | BaseException) -> ProblemError | None:
    match outcome:
        case Recorded(conflict=True, position=position):
            detail = f"this message_id is recorded with other content at position {position}, which stands"
            return ProblemError(409, detail, position=position)
        case Recorded():
            return None
        case OwnMessage():
            return ProblemError(400, OWN)
        case EventTooLarge():
            return ProblemError(400, "the event would be over 384 KB: send less")
        case _:
            raise outcome
