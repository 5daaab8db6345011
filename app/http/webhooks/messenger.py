"""The messengers' requests: the actions of one are all durable before its answer, or none is stored."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import psycopg
from msgspec import UNSET, Struct, UnsetType

from app.access.account_limits import OverLimit
from app.channels.directory import Channel
from app.database.pool import ViewsMissing
from app.http.webhooks import routing
from app.http.webhooks.body import BUSY, RETRY_AFTER_SECONDS, Answer, WrongSignature
from app.http.webhooks.kommo import in_time, refresh, refuse_unopened
from app.ledger.writer import EventTooLarge, LedgerFull, LedgerUnavailable, Recorded
from app.messengers import commands
from app.messengers.adapter import Messenger, Received, Request, Result, UnknownSender, Unsigned, WrongClock
from app.messengers.checks import ActionRefused
from app.operations.services import Services
from app.problems import Problem, ProblemError
from app.turns import Turns
from app.vault import WrongMasterKey
from app.views.deliveries import count_open
from domain import commands as c
from domain.decide import OwnMessage, TooManyFacts
from domain.ids import Scope

# Chosen: a message that is full stays so, but who asks again within an hour finds the same.
FULL_RETRY_SECONDS = 3600
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

    What names an account that is not connected is kept for it. Raises ProblemError (400, 401, 404, 409, 429,
    503).
    """
    if services.channels.fresh_ahead():
        return await _take_turn(services, kind, request)
    return await in_time(_take_after_refresh(services, kind, request))


async def _take_after_refresh(services: Services, kind: str, request: Request) -> Answer:
    await refresh(services.channels)
    return await _take_turn(services, kind, request)


async def _take_turn(services: Services, kind: str, request: Request) -> Answer:
    channel = await _sender(services, kind, request)
    size, shared = len(request.body), services.ledger.is_shared
    try:
        async with services.limits.turn(channel.name, size, shared=shared):
            return await _take(services, services.messengers[kind], channel, request)
    except OverLimit as error:
        raise ProblemError(429, str(error), retry_after=error.retry_after) from None


async def _take(services: Services, messenger: Messenger, channel: Channel, request: Request) -> Answer:
    try:
        received = await messenger.receive(request, channel)
    except ActionRefused as error:
        raise routing.bad(error.path, error.message) from None
    scopes = await _scopes(services, channel, received)
    refused = await _over_limit(services, scopes, len(request.body))
    found = await _commands(services.limits.turns, channel, received, scopes)
    waiting = [one for one in scopes if one.scope_id not in refused and not _is_connected(channel, one)]
    if waiting:
        async with services.unconnected.room(waiting) as room:
            refused |= {
                one.scope_id: room.refused[one.account] for one in waiting if one.account in room.refused
            }
            results, last = await _recorded(services, found, refused, len(request.body))
            room.note(Counter(one.account for one in waiting if one.scope_id not in refused), last)
    else:
        results, last = await _recorded(services, found, refused, len(request.body))
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
    except WrongClock as error:
        raise ProblemError(401, str(error)) from None
    except Unsigned:
        raise WrongSignature(401) from None
    if channel is None:
        refuse_unopened(services.channels)
    if channel is None or channel.kind != kind:
        raise ProblemError(404, "no channel has this name: register it with POST /v1/channels")
    return channel


async def _over_limit(services: Services, scopes: Sequence[Scope], size: int) -> dict[str, ProblemError]:
    """The accounts, by scope id, that have too many deliveries open, or send too fast.

    `size` is the body's, in bytes.
    """
    limits, refused = services.limits, dict[str, ProblemError]()
    if limits.wants_count:
        with contextlib.suppress(ViewsMissing, psycopg.OperationalError):
            limits.counted(await count_open(services.pool))
    actions = Counter(scope.scope_id for scope in scopes)
    for scope_id, scope in {scope.scope_id: scope for scope in scopes}.items():
        count = actions[scope_id]
        try:
            limits.check_open(scope.channel, scope.account)
            limits.take(scope_id, count, size * count // len(scopes))
        except OverLimit as error:
            refused[scope_id] = ProblemError(429, str(error), retry_after=error.retry_after)
    return refused


async def _recorded(
    services: Services, found: Sequence[c.AnyCommand], refused: Mapping[str, ProblemError], size: int
) -> tuple[list[Result | ProblemError], int]:
    """What became of each command, and the last position; `size` is that of the body they came in.

    Those of a scope that is refused are not recorded. Raises its ProblemError if that are all.
    """
    ledger = services.ledger
    taken = [command for command in found if command.scope.scope_id not in refused]
    if not taken:
        raise refused[found[0].scope.scope_id]
    scopes = {command.scope.scope_id: command.scope for command in taken}
    if not all(ledger.has_room(len(taken), size, scope) for scope in scopes.values()):
        raise ProblemError(503, BUSY, retry_after=RETRY_AFTER_SECONDS)
    futures = [ledger.submit(command, size // len(found)) for command in taken]
    outcomes = iter(await asyncio.gather(*futures, return_exceptions=True))
    results: list[Result | ProblemError] = []
    last = 0
    for command in found:
        if wrong := refused.get(command.scope.scope_id):
            results.append(wrong)
            continue
        outcome = next(outcomes)
        results.append(result := _result(outcome))
        if isinstance(outcome, Recorded) and isinstance(result, Result):
            last = max(last, outcome.position or 0, outcome.last or 0)
    return results, last


async def _scopes(services: Services, channel: Channel, received: Received) -> list[Scope]:
    """The scope of each action; raises ProblemError (400, 409, 503)."""
    try:
        return await routing.scopes(services, channel, received)
    except (ViewsMissing, psycopg.OperationalError):
        raise ProblemError(503, BUSY, retry_after=RETRY_AFTER_SECONDS) from None


def _is_connected(channel: Channel, scope: Scope) -> bool:
    connection = channel.connections.get(scope.account)
    return connection is not None and connection.connected


async def _commands(
    turns: Turns, channel: Channel, received: Received, scopes: Sequence[Scope]
) -> list[c.AnyCommand]:
    """The command of each action, in its scope; those of an array are made in `turns`."""
    found: list[c.AnyCommand] = []
    for index, (scope, action) in enumerate(zip(scopes, received.actions, strict=True)):
        if received.array:
            await turns.take()
        try:
            request = f"{received.request}:{index}" if received.request else None
            within = channel.options.message_ids == "per conversation"
            given = commands.Circumstances(channel.bot_id, request=request, per_conversation=within)
            found.append(commands.command(scope, action, given))
        except ActionRefused as error:
            place = f"$[{index}]" if received.array else "$"
            raise routing.bad(place + error.path[1:], error.message) from None
    return found


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
        case TooManyFacts():
            return ProblemError(429, str(outcome), retry_after=FULL_RETRY_SECONDS)
        case EventTooLarge():
            return ProblemError(400, "the event would be over 384 KB: send less")
        case LedgerUnavailable() | LedgerFull() | asyncio.CancelledError():
            raise ProblemError(503, BUSY, retry_after=RETRY_AFTER_SECONDS)
        case _:
            raise outcome
