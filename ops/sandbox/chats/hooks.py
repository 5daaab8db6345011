"""A hook is sent once, signed, in the order of its conversation, and only 200 within 5 s counts."""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from itertools import count

import aiohttp
import msgspec
from msgspec import Struct

from ops.sandbox.chats.hook_queue import HookQueue
from ops.sandbox.chats.signatures import hook_signature
from ops.sandbox.config import HOOK_SECONDS, HOOK_WORKERS, RECORDS_MAX, WAITING_MAX, Config
from ops.sandbox.faults import Faults
from ops.sandbox.feed import Feed
from ops.sandbox.lanes import Lanes
from ops.sandbox.state.chats import Chat, Connection, Crm, Message

TYPING_SECONDS = 5
EMPTY = {"markup": None, "tag": "", "media": "", "thumbnail": "", "file_name": "", "file_size": 0}


class Hook(Struct, kw_only=True):
    """One hook and its outcome: `status` is the receiver's answer, `error` the reason why there is none."""

    n: int
    kind: str
    scope_id: str
    url: str
    body: str
    message_id: str = ""
    queued_ns: int = 0
    sent_ns: int = 0
    answered_ns: int = 0
    status: int | None = None
    error: str = ""
    times: int = 0
    queue: str = "fast"

    @property
    def outcome(self) -> str:
        """In words: `ok`, `waiting`, `503`, `timeout` …"""
        if self.status == 200:
            return "ok"
        return str(self.status or self.error or "waiting")


Sent = tuple[Hook, asyncio.Future[None]]


class Hooks:
    """Sends hooks in the background, by a few workers."""

    def __init__(self, config: Config, crm: Crm, faults: Faults, feed: Feed) -> None:
        self.config, self.crm, self.faults, self.feed = config, crm, faults, feed
        self.source_of: Callable[[Chat], str] = _own_source
        self.secrets = {channel.id: channel.secret for channel in config.channels}
        self.sent: deque[Hook] = deque(maxlen=RECORDS_MAX)
        self.lanes, self.pace = Lanes(WAITING_MAX), HookQueue()
        self._numbers = count(1)
        self._workers = asyncio.Semaphore(HOOK_WORKERS)
        self._session: aiohttp.ClientSession | None = None

    def start(self, session: aiohttp.ClientSession) -> None:
        """Use this session from now on."""
        self._session = session

    def message(self, connection: Connection, chat: Chat, message: Message) -> Sent:
        """A manager's message to the client (§5.1)."""
        told: dict[str, object] = {
            "receiver": self._receiver(chat),
            "sender": {"id": message.sender, "name": message.sender_name},
            "conversation": _conversation(chat),
            "timestamp": message.timestamp,
            "msec_timestamp": message.msec_timestamp,
            "message": {"id": message.id, **EMPTY, **message.message},
        }
        if source := self.source_of(chat):
            told["source"] = {"external_id": source}
        return self.send("message", connection, {"message": told}, lane=chat.id, message=message)

    def typing(self, connection: Connection, chat: Chat, user: str, *, variant: str) -> Sent:
        """A manager types; the user is in `action.typing` (variant `sample`) or in `action` (`table`)."""
        typing: dict[str, object] = {
            "conversation": _conversation(chat),
            "expired_at": int(time.time()) + TYPING_SECONDS,
        }
        action: dict[str, object] = {"typing": typing}
        (action if variant == "table" else typing)["user"] = {"id": user}
        return self.send("typing", connection, {"action": action}, lane=chat.id)

    def reaction(
        self,
        connection: Connection,
        chat: Chat,
        message: Message,
        user: str,
        type: str,
        emoji: str,
        *,
        variant: str,
    ) -> Sent:
        """A manager reacts; the message is `message` (variant `table`) or only `msgid` (`sample`)."""
        reaction: dict[str, object] = {
            "user": {"id": user},
            "conversation": _conversation(chat),
            "type": type,
        }
        if variant == "sample":
            reaction["msgid"] = message.id
        else:
            reaction["message"] = _reacted(message)
        if type == "react":
            reaction["emoji"] = emoji
        return self.send("reaction", connection, {"action": {"reaction": reaction}}, lane=chat.id)

    def send(
        self,
        kind: str,
        connection: Connection,
        content: dict[str, object],
        *,
        lane: str,
        message: Message | None = None,
    ) -> Sent:
        """Queue a hook with this content; the future is done when it has been tried."""
        head = {"account_id": connection.account_id, "time": int(time.time())}
        return self.send_raw(
            kind, connection, msgspec.json.encode(head | content), lane=lane, message=message
        )

    def send_raw(
        self,
        kind: str,
        connection: Connection,
        body: bytes,
        *,
        lane: str = "",
        message: Message | None = None,
    ) -> Sent:
        """Queue these very bytes as a hook. Raises Full."""
        hook = Hook(
            n=next(self._numbers),
            kind=kind,
            scope_id=connection.scope_id,
            url=self.config.hook_url.replace(":scope_id", connection.scope_id),
            body=body.decode("utf-8", "replace"),
            message_id=message.id if message else "",
            queued_ns=time.monotonic_ns(),
        )
        future = self.lanes.put(
            lane or f"hook {hook.n}", lambda: self._carry(hook, connection, body, message)
        )
        self.sent.append(hook)
        return hook, future

    async def _carry(self, hook: Hook, connection: Connection, body: bytes, message: Message | None) -> None:
        chat = self.crm.chats.get(message.chat_id) if message else None
        fault = self.faults.take(f"hook.{hook.kind}", chat.client_id if chat else "")
        action = fault.action if fault else ""
        if fault and action == "slow":
            await asyncio.sleep(fault.seconds)
        hook.queue = self.pace.queue(hook.scope_id)
        if hook.queue == "slow":
            await asyncio.sleep(self.config.slow_seconds)
        signature = hook_signature(self.secrets[connection.channel_id], body)
        if action == "forged":
            signature = "0" * 40
        if action == "skip" or not connection.active or not hook.url:
            hook.error = "skipped" if action == "skip" else "disconnected" if hook.url else "no hook url"
        else:
            for _ in range(2 if action == "twice" else 1):
                await self._post(hook, body + b"\n" * (action == "newline"), signature)
        if message is not None and self.crm.messages.get(message.id) is message:
            message.hook = hook.outcome
            self.crm.save_message(message)
            self.feed.publish("manager", "message", chat=message.chat_id, message=message.id)

    async def _post(self, hook: Hook, body: bytes, signature: str) -> None:
        assert self._session is not None
        headers = {"Content-Type": "application/json", "X-Signature": signature}
        async with self._workers:
            hook.sent_ns = time.monotonic_ns()
            hook.times += 1
            timeout = aiohttp.ClientTimeout(
                total=HOOK_SECONDS, ceil_threshold=HOOK_SECONDS + 1
            )  # not rounded up
            try:
                async with self._session.post(
                    hook.url, data=body, headers=headers, timeout=timeout, allow_redirects=False
                ) as answer:
                    await answer.read()
                    hook.status, hook.error = answer.status, ""
            except TimeoutError:
                hook.error = "timeout"
            except (aiohttp.ClientError, ValueError) as error:
                hook.error = type(error).__name__
            hook.answered_ns = time.monotonic_ns()
        self.pace.tell(hook.scope_id, hook.status, (hook.answered_ns - hook.sent_ns) / 1e9)

    def _receiver(self, chat: Chat) -> dict[str, str]:
        client = self.crm.client(chat)
        told = {"id": client.id, "name": client.name, "phone": client.phone, "email": client.email}
        if client.client_id:
            told["client_id"] = client.client_id
        return told


def _own_source(chat: Chat) -> str:
    return chat.source


def _conversation(chat: Chat) -> dict[str, str]:
    named = {"id": chat.id}
    return named | {"client_id": chat.client_id} if chat.client_id else named


def _reacted(message: Message) -> dict[str, object]:
    named: dict[str, object] = {
        "id": message.id,
        "sender": {"id": message.sender},
        "timestamp": message.timestamp,
        "msec_timestamp": message.msec_timestamp,
    }
    if message.receiver:
        named["receiver"] = {"id": message.receiver}
    if message.client_id:
        named["client_id"] = message.client_id
    return named
