"""The two webhooks, as plain functions: bytes in, an answer out once everything is durable."""

import asyncio
import hmac
import logging
import uuid
from collections.abc import Mapping
from functools import lru_cache

import msgspec
import psycopg
from msgspec import Struct

from app import clock, problems
from app.channels.directory import Channel, Channels, Connection, Scope
from app.database import schema
from app.kommo.chats import hooks
from app.kommo.chats.hooks import BadHook
from app.ledger.writer import Full, Ledger, Recorded, TooLarge, Unavailable
from app.messengers import commands as actions
from app.messengers import webhook
from app.messengers.commands import BadAction
from app.messengers.contract import Action
from app.problems import Fault, Wrong
from domain import commands as c
from domain.decide import OwnMessage

BODY_BYTES_MAX = 256 * 1024
RETRY_AFTER_SECONDS = 1
KEYS_KEPT = 1024
KEEP = """INSERT INTO ledger.refused (id, scope_id, received_at, reason, body)
 VALUES (%s, %s, now(), %s, %s)"""
SIGNED_HOOK = "a signed hook"
OLD_HOOK = "a v1 hook (connect the account again: that asks Kommo for v2)"
log = logging.getLogger("chatledger.webhooks")


class Answer(Struct, frozen=True):
    """A response: status, headers and body."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = {}


class Result(Struct, frozen=True):
    """What became of an action: our message id (None while the message is not known), and its position."""

    id: str | None
    position: int | None
    duplicate: bool


OK = Answer(200)
UNSIGNED = "the signature is missing or wrong: sign the exact bytes of the body with the channel's secret"
OWN = "this names a message of the messenger's own: only messages that we sent have a status"
BUSY = "the ledger cannot take it now: send it again"


class Webhooks:
    """What Kommo and the messengers may tell us."""

    def __init__(self, url: str, ledger: Ledger, channels: Channels) -> None:
        self._url = url
        self._ledger = ledger
        self._channels = channels

    async def kommo(self, scope_id: str, signature: str, body: bytes) -> Answer:
        """`POST /kommo/{scope_id}`: 200 once the hook is durable; raises Wrong."""
        channels = self._channels
        if not channels.fresh_ahead():
            await self._refresh()
        scope = channels.known_scope(scope_id)
        if scope is None:
            raise Wrong(404, "no channel is connected under this scope id")
        if not signed(scope, signature, body):
            raise Wrong(403, UNSIGNED)
        try:
            command = hooks.command(scope.connection.link, body)
        except BadHook as error:
            what = OLD_HOOK if error.old else SIGNED_HOOK
            raise await self._keep(scope_id, body, str(error), what) from None
        try:
            await self._ledger.submit(command, len(body))
        except (Full, Unavailable):
            raise Wrong(503, BUSY, retry_after=RETRY_AFTER_SECONDS) from None
        except TooLarge:
            raise await self._keep(scope_id, body, "larger than an event may be") from None
        return OK

    async def _refresh(self) -> None:
        try:
            await self._channels.refresh()
        except psycopg.OperationalError:
            raise Wrong(503, BUSY, retry_after=RETRY_AFTER_SECONDS) from None

    async def _keep(self, scope_id: str, body: bytes, reason: str, what: str = SIGNED_HOOK) -> Wrong:
        """Keep a signed hook that we cannot read: Kommo will not send it again."""
        refused = uuid.uuid4()
        try:
            async with await schema.connect(self._url) as connection:
                await connection.execute(KEEP, (refused, scope_id, reason.replace("\0", "\ufffd"), body))
        except psycopg.OperationalError:
            return Wrong(503, BUSY, retry_after=RETRY_AFTER_SECONDS)
        log.error("%s was refused and kept: id %s, %d bytes", what, refused, len(body))
        return Wrong(400, f"the hook cannot be read, and is kept as {refused} (GET /v1/refused): {reason}")

    async def messenger(self, name: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """`POST /messengers/{channel}`: 200 with a result an action once all are durable; raises Wrong."""
        await self._refresh()
        channel = await self._channels.channel(name)
        if channel is None:
            raise Wrong(404, "no channel has this name: register it with POST /v1/channels")
        if not webhook.verified(_secrets(channel), headers, body):
            raise Wrong(401, UNSIGNED)
        if not channel.accounts:
            raise Wrong(409, "the channel is not connected yet: POST /v1/channels/{name}/connections")
        try:
            parsed = actions.parse(body)
        except BadAction as error:
            raise _bad(error.path, error.message) from None
        where = [_connection(channel, action, _path(parsed, n)) for n, action in enumerate(parsed.actions)]
        commands = _commands(channel, parsed, where)
        if not self._ledger.has_room(len(commands), len(body)):
            raise Wrong(503, BUSY, retry_after=RETRY_AFTER_SECONDS)
        size = len(body) // len(commands)
        futures = [self._ledger.submit(command, size) for command in commands]
        done = await asyncio.gather(*futures, return_exceptions=True)
        return _results(parsed, done)


def signed(scope: Scope, signature: str, body: bytes) -> bool:
    """Kommo's X-Signature: HMAC-SHA1 of the body as sent, or without the newline that it may append."""
    given = signature.lower().encode("latin-1", "replace")
    return _signs(scope.key, body, given) or (
        body[-1:] in (b"\n", b"\r") and _signs(scope.key, body.rstrip(b"\r\n"), given)
    )


def _signs(key: bytes, body: bytes, given: bytes) -> bool:
    right = _keyed(key).copy()
    right.update(body)
    return hmac.compare_digest(given, right.hexdigest().encode())


@lru_cache(maxsize=KEYS_KEPT)
def _keyed(key: bytes) -> hmac.HMAC:
    """What signs with a key; to begin with a copy costs less than to look the algorithm up each time."""
    return hmac.new(key, digestmod="sha1")


def _secrets(channel: Channel) -> list[str]:
    secrets = channel.secrets
    old = secrets.previous if secrets.previous and secrets.previous_until > clock.now_ms() else None
    return [secrets.messenger, old] if old else [secrets.messenger]


def _path(parsed: actions.Parsed, index: int) -> str:
    return f"$[{index}].account_id" if parsed.array else "$.account_id"


def _bad(path: str, message: str) -> Wrong:
    return Wrong(400, f"{path}: {message}; nothing of this body is stored", errors=[Fault(path, message)])


def _commands(channel: Channel, parsed: actions.Parsed, where: list[Connection]) -> list[c.AnyCommand]:
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


def _results(parsed: actions.Parsed, done: list[Recorded | BaseException]) -> Answer:
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
