"""Traffic both ways at a steady rate: hooks of Kommo, each sent once, and actions of a messenger, each
repeated under its id until it is answered 200. What was answered 200 is `accepted`.
"""

import asyncio
import hashlib
import hmac
import random
import time
from collections import Counter, defaultdict

import aiohttp
import msgspec
from msgspec import Struct

from app import clock
from app.messengers import webhook
from ops.benches import samples
from ops.benches.cluster.services import Service

PATIENCE = aiohttp.ClientTimeout(total=12.0)
REPEAT_SECONDS = 0.25
SCOPE_ID = f"{samples.CHANNEL_ID}_{samples.ACCOUNT}"


class Accepted(Struct, frozen=True):
    """A message that was answered 200 at `at`, by the monotonic clock."""

    text: str
    at: float


class Request(Struct, frozen=True):
    """A request and its answer, 0 for none; `hit`: the service itself was broken meanwhile."""

    service: str
    began: float
    seconds: float
    status: int
    hit: bool


class Traffic:
    """`chats` conversations in which both sides write, `rate` messages a second in all."""

    def __init__(self, services: list[Service], *, chats: int, rate: float, name: str) -> None:
        self.services, self.chats, self.name = services, chats, name
        self.interval_seconds = 2 * chats / rate
        self.accepted: defaultdict[tuple[str, int], list[Accepted]] = defaultdict(list)
        self.requests: list[Request] = []
        self._ends = asyncio.Event()
        self._dice = random.Random()

    async def run(self) -> None:
        """Write until `end`."""
        async with aiohttp.ClientSession(timeout=PATIENCE) as client, asyncio.TaskGroup() as group:
            for chat in range(self.chats):
                group.create_task(self._kommo(client, chat))
                group.create_task(self._messenger(client, chat))

    def end(self) -> None:
        """Begin nothing more."""
        self._ends.set()

    @property
    def texts(self) -> set[str]:
        """All that was accepted until now."""
        return {one.text for each in self.accepted.values() for one in each}

    @property
    def refused(self) -> Counter[int]:
        """How many were answered with each status other than 200."""
        return Counter(one.status for one in self.requests if one.status != 200)

    def back(self, service: Service, since: float) -> float | None:
        """Seconds from `since` until a request to a service was answered 200 again; None: none was."""
        good = (one for one in self.requests if one.status == 200 and one.began >= since)
        ends = (one.began + one.seconds for one in good if one.service == service.name)
        return min((end - since for end in ends), default=None)

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._ends.wait()
        except TimeoutError:
            pass

    async def _kommo(self, client: aiohttp.ClientSession, chat: int) -> None:
        number = 0
        while not self._ends.is_set():
            await self._pause(self._dice.uniform(0.5, 1.5) * self.interval_seconds)
            number += 1
            text = f"{self.name} kommo {chat} {number}"
            if await self._post(client, f"/kommo/{SCOPE_ID}", *hook(chat, text)):
                self.accepted["messenger", chat].append(Accepted(text, time.monotonic()))

    async def _messenger(self, client: aiohttp.ClientSession, chat: int) -> None:
        number = 0
        while not self._ends.is_set():
            await self._pause(self._dice.uniform(0.5, 1.5) * self.interval_seconds)
            number += 1
            text = f"{self.name} messenger {chat} {number}"
            while not await self._post(client, "/messengers/bench", *action(chat, text)):
                if self._ends.is_set():
                    return
                await self._pause(REPEAT_SECONDS)
            self.accepted["kommo", chat].append(Accepted(text, time.monotonic()))

    async def _post(
        self, client: aiohttp.ClientSession, path: str, body: bytes, headers: dict[str, str]
    ) -> bool:
        """Post to one of the services that are up; to another one if it cannot even be reached."""
        there = [service for service in self.services if service.is_up]
        self._dice.shuffle(there)
        for service in there:
            began, hit, status = time.monotonic(), service.is_hit, 0
            try:
                async with client.post(service.url + path, data=body, headers=headers) as answer:
                    await answer.read()
                    status = answer.status
            except aiohttp.ClientConnectorError:
                continue
            except (aiohttp.ClientError, TimeoutError):
                pass
            finally:
                took = time.monotonic() - began
                self.requests.append(Request(service.name, began, took, status, hit or service.is_hit))
            return status == 200
        return False


def hook(chat: int, text: str) -> tuple[bytes, dict[str, str]]:
    """A signed v2 hook: a manager writes."""
    now = clock.now_ms()
    chat_id = hashlib.md5(f"{chat}".encode(), usedforsecurity=False).hexdigest()
    message = {"id": text.replace(" ", "-"), "type": "text", "text": text}
    outgoing = {
        "receiver": {"id": "r-1", "phone": "+15550100", "client_id": f"u-{chat}"},
        "sender": {"id": samples.MANAGER},
        "conversation": {"id": chat_id, "client_id": f"chat-{chat}"},
        "timestamp": now // 1000,
        "msec_timestamp": now,
        "message": message,
    }
    body = msgspec.json.encode({"account_id": samples.ACCOUNT, "time": now // 1000, "message": outgoing})
    return body, {"X-Signature": hmac.digest(samples.SECRET.encode(), body, "sha1").hex()}


def action(chat: int, text: str) -> tuple[bytes, dict[str, str]]:
    """A signed action: a customer writes."""
    now = clock.now_ms()
    body = msgspec.json.encode(
        {
            "type": "message.sent",
            "conversation_id": f"chat-{chat}",
            "message_id": text.replace(" ", "-"),
            "at": clock.text(now),
            "sender": {"id": f"u-{chat}", "name": "Ann Example"},
            "message": {"type": "text", "text": text},
        }
    )
    return body, webhook.signed(samples.MESSENGER_SECRET, clock.new_id(now), body)
