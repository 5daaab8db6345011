"""DOC"""

import asyncio

import msgspec
from msgspec import UNSET, Struct, UnsetType

from app import clock, problems
from app.channels.directory import Channel, Connection
from app.http.webhooks.body import BUSY, RETRY_AFTER_SECONDS, Answer
from app.ledger.writer import Full, Recorded, TooLarge, Unavailable
from app.messengers import checks
from app.messengers import commands as actions
from app.messengers.checks import BadAction
from app.messengers.contract import Action
from app.problems import Fault, Problem, Wrong
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


def _secrets(channel: Channel) -> list[str]:
    secrets = channel.secrets
    old = secrets.previous if secrets.previous and secrets.previous_until > clock.now_ms() else None
    return [secrets.messenger, old] if old else [secrets.messenger]


def _path(parsed: checks.Parsed, index: int) -> str:
    return f"$[{index}].account_id" if parsed.array else "$.account_id"


def _bad(path: str, message: str) -> Wrong:
    return Wrong(400, f"{path}: {message}; nothing of this body is stored", errors=[Fault(path, message)])


def _commands(channel: Channel, parsed: checks.Parsed, where: list[Connection]) -> list[c.AnyCommand]:
    """The command of each action."""
    found = []
    for index, (to, action) in enumerate(zip(where, parsed.actions, strict=True)):
        try:
            found.append(actions.command(to.link, action, bot_id=channel.bot_id))
        except BadAction as error:
            place = f"$[{index}]" if parsed.array else "$"
            raise _bad(place + error.path[1:], error.message) from None
    return found


def _connection(channel: Channel, action: Action, path: str) -> Connection:
    """The connection that an action belongs to: the account it names, or the only one there is."""
    accounts = channel.accounts
    if action.account_id is None and len(accounts) == 1:
        return accounts[0]
    for connection in accounts:
        if connection.link.account == action.account_id:
            return connection
    wrong = "name the account: the channel has several" if action.account_id is None else "unknown account"
    raise _bad(path, wrong)


def _results(parsed: checks.Parsed, done: list[Recorded | BaseException]) -> Answer:
    results: list[Result | dict[str, object]] = []
    last = 0
    for outcome in done:
        if isinstance(outcome, Unavailable | Full | asyncio.CancelledError):
            raise Wrong(503, BUSY, retry_after=RETRY_AFTER_SECONDS)
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


def _wrong(outcome: Recorded | BaseException) -> Wrong | None:
    match outcome:
        case Recorded(conflict=True, position=position):
            detail = f"this message_id is recorded with other content at position {position}, which stands"
            return Wrong(409, detail, position=position)
        case Recorded():
            return None
        case OwnMessage():
            return Wrong(400, OWN)
        case TooLarge():
            return Wrong(400, "the event would be over 384 KB: send less")
        case _:
            raise outcome
