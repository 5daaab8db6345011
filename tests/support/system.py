"""A whole chatledger between the two strangers of the sandbox: real servers, real HTTP, nothing replaced."""

import asyncio
import json
import os
import random
import socket
import tempfile
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import msgspec

from app import clock
from app.config.file import Budgets, Setup
from app.config.settings import Settings, load_settings
from app.messengers import webhook
from app.servers.nats import PrivateNats
from app.servers.servers import Servers, servers
from app.service.service import Running, migrate, running
from domain import ids
from ops.sandbox import Channel, Config, Sandbox
from ops.sandbox.state.chats import Message as KommoMessage
from ops.sandbox.state.messenger import Push
from tests.support.databases import database, make_without_a_secret
from tests.support.ids import (
    ACCOUNT,
    ADMIN_KEY,
    AS_ADMIN,
    BOT,
    CHANNEL,
    CHANNEL_SECRET,
    MASTER_KEY,
    MESSENGER_SECRET,
    SCOPE,
)

PHOTO = "https://media.example/cat.jpg"
WAIT_SECONDS = 15.0
CHATS = 6
PAUSE_SECONDS_MAX = 0.05
PATIENCE = aiohttp.ClientTimeout(total=5.0)
Found = TypeVar("Found")
_numbers = count(1)


def settings_of(folder: Path, database_url: str, nats_url: str, **more: str) -> Settings:
    """Settings of a service on servers of the test's own."""
    given = {
        "CHATLEDGER_DATA": str(folder / "service"),
        "CHATLEDGER_DATABASE_URL": database_url,
        "CHATLEDGER_NATS_URL": nats_url,
        "CHATLEDGER_ADMIN_KEY": ADMIN_KEY,
        "CHATLEDGER_MASTER_KEY": MASTER_KEY,
        "CHATLEDGER_PORT": "0",
    }
    return load_settings(environment=given | more)


async def until(true: Callable[[], Found], seconds: float = WAIT_SECONDS) -> Found:
    """Wait until something has come about, and return it."""
    async with asyncio.timeout(seconds):
        while not (found := true()):  # noqa: ASYNC110 - of any state, most of which has no event
            await asyncio.sleep(0.01)
    return found


def chat() -> str:
    """The name of a conversation that no other test has."""
    return f"conv-{next(_numbers)}"


class Story:
    """A service, the sandbox it serves, and whoever gives the orders."""

    def __init__(self, client: aiohttp.ClientSession, sandbox: Any, url: str) -> None:
        self.client, self.sandbox, self.url = client, sandbox, url
        self.run: Running | None = None

    # Orders.

    async def call(self, method: str, url: str, body: object = None, **more: Any) -> tuple[int, Any]:
        async with self.client.request(method, url, json=body, **more) as answer:
            text = await answer.text()
            return answer.status, json.loads(text) if text else None

    async def api(self, method: str, path: str, body: object = None) -> Any:
        """A call of the REST API, which must succeed."""
        status, told = await self.call(method, self.url + path, body, headers=AS_ADMIN)
        assert status < 300, told
        return told

    async def order(self, method: str, path: str, body: object = None) -> Any:
        """An order to the sandbox, which must succeed."""
        status, told = await self.call(method, f"{self.sandbox.url}/control{path}", body)
        assert status < 300, told
        return told

    async def connect(self) -> None:
        """Register the channel and connect the account."""
        channel = {
            "name": "acme",
            "kommo": {"channel_id": CHANNEL, "secret": CHANNEL_SECRET, "bot_id": BOT},
            "messenger": {
                "kind": "webhook",
                "url": f"{self.sandbox.url}/messenger/hook",
                "secret": MESSENGER_SECRET,
            },
        }
        await self.api("POST", "/v1/channels", channel)
        await self.api("POST", "/v1/channels/acme/connections", {"account_id": ACCOUNT, "title": "Acme"})

    async def customer(self, conversation: str, text: str = "Hello", **more: Any) -> str:
        """A customer writes, and the ledger takes it; the message's id."""
        order = {"conversation_id": conversation, "sender": {"id": f"u-{conversation}", "name": "Ann"}}
        order |= more if "message" in more else {"text": text} | more
        told = await self.order("POST", "/customer/messages?wait=1", order)
        assert told["state"] == "accepted", told
        return ids.message_id(SCOPE, "messenger", told["message_id"])

    async def manager(self, conversation: str, text: str = "Hi", **more: Any) -> dict[str, Any]:
        """A manager writes, and the ledger takes it; `id` and `chat_id` are Kommo's, `ours` the ledger's."""
        order = {"conversation_id": conversation, "message": {"type": "text", "text": text}} | more
        told: dict[str, Any] = await self.order("POST", "/manager/messages?wait=1", order)
        assert told["status"] == 200, told
        return told | {"ours": ids.message_id(SCOPE, "kommo", told["id"])}

    async def operator(self, conversation: str, own: str, text: str = "Hi", **more: Any) -> dict[str, Any]:
        """An operator sends by the REST API, under the name `own`; returns the answer, which is 202."""
        body = {"message_id": own, "message": {"type": "text", "text": text}} | more
        url = f"{self.url}/v1/conversations/{conversation}/messages"
        status, answer = await self.call("POST", url, body, headers=AS_ADMIN)
        assert status == 202, answer
        return dict(answer)

    async def tell(self, action: dict[str, Any]) -> tuple[int, Any]:
        """An action of the messenger as it is, signed; status and body of the answer."""
        given = {"at": clock.text(clock.now_ms())} | action
        told = await self.order("POST", "/customer/actions", given)
        return told["status"], json.loads(told["body"]) if told["body"] else None

    async def hook(self, body: dict[str, Any], **where: str) -> int:
        """A hook of Kommo as it is, signed; the status of the answer."""
        told = await self.order("POST", "/hooks?wait=1", {"body": body} | where)
        return int(told["status"])

    async def fault(self, where: str, action: str, **more: Any) -> None:
        await self.order("POST", "/faults", {"where": where, "action": action} | more)

    # What arrived.

    def kommo(self, conversation: str) -> list[KommoMessage]:
        """The customer's messages that Kommo has, in the order of their arrival."""
        crm = self.sandbox.chat_state
        found = crm.chat(SCOPE.scope_id, conversation)
        return [one for one in crm.timelines[found.id] if one.direction == "in"] if found else []

    def pushes(self, conversation: str, kind: str = "message.send") -> list[Push]:
        """What the messenger was told, in the order of arrival."""
        pushes = self.sandbox.messenger_state.pushes.values()
        return [one for one in pushes if one.type == kind and one.conversation_id == conversation]

    def statuses(self, kommo_id: str) -> list[int]:
        """What Kommo was told of a manager's message."""
        return [one.status for one in self.sandbox.chat_state.messages[kommo_id].statuses]

    async def arrived(self, conversation: str, many: int = 1) -> list[KommoMessage]:
        """The customer's messages, once so many are with Kommo."""
        return await until(lambda: found if len(found := self.kommo(conversation)) >= many else [])

    async def pushed(self, conversation: str, many: int = 1, kind: str = "message.send") -> list[Push]:
        """What the messenger was told, once it was so many times."""
        return await until(lambda: found if len(found := self.pushes(conversation, kind)) >= many else [])

    # What is recorded.

    async def shown(self, message: str) -> dict[str, Any]:
        """A message with its timeline."""
        shown: dict[str, Any] = await self.api("GET", f"/v1/messages/{message}?at_least={await self.head()}")
        return shown

    async def timeline(self, message: str) -> list[str]:
        """The types of what happened to a message."""
        return [one["type"] for one in (await self.shown(message))["timeline"]]

    async def events(self, **filters: Any) -> list[dict[str, Any]]:
        """Recorded events, all or those the filters of /v1/events let pass."""
        query = "&".join(f"{name}={value}" for name, value in filters.items())
        told = await self.api("GET", f"/v1/events?limit=1000&at_least={await self.head()}&{query}")
        return [one["event"] for one in told["items"]]

    async def until_recorded(self, message: str, kind: str, many: int = 1) -> list[dict[str, Any]]:
        """The transitions of a type in a message's timeline, once they are recorded."""
        async with asyncio.timeout(WAIT_SECONDS):
            while True:
                found = [one for one in (await self.shown(message))["timeline"] if one["type"] == kind]
                if len(found) >= many:
                    return found
                await asyncio.sleep(0.02)

    async def settled(self, seconds: float = WAIT_SECONDS * 2) -> None:
        """Wait until nothing is pending and the views and the stream have all of the ledger."""
        async with asyncio.timeout(seconds):
            while not await self._is_settled():  # noqa: ASYNC110 - of a whole service, which has no event
                await asyncio.sleep(0.05)

    async def _is_settled(self) -> bool:
        status, told = await self.call("GET", f"{self.url}/v1/status", headers=AS_ADMIN)
        if status == 503:  # A server of it is being started again.
            return False
        assert status == 200, told
        behind = [part["lag"] for part in (*told["views"], told["relay"]) if part]
        return told["deliveries"]["pending"] == told["deliveries"]["deferred"] == 0 and not any(behind)

    async def head(self) -> int:
        return int((await self.api("GET", "/v1/status"))["head"])


@asynccontextmanager
async def telling(
    folder: Path,
    database_url: str,
    nats_url: str,
    *,
    roles: str = "",
    ask_for_chats: bool = False,
    **changed: Any,
) -> AsyncIterator[Story]:
    """A service in this process and a sandbox, connected; `changed` are fields of the sandbox's Config.

    Without `ask_for_chats` nothing but the story itself makes events.
    """
    await migrate(database_url)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    async with (
        aiohttp.ClientSession() as client,
        Sandbox(config(url, **changed)) as sandbox,
    ):
        more = {"CHATLEDGER_KOMMO_URL": sandbox.url, "CHATLEDGER_PORT": str(port), "CHATLEDGER_ROLES": roles}
        setup = Setup(budgets=Budgets(ask_for_chats=ask_for_chats))
        async with running(settings_of(folder, database_url, nats_url, **more), setup) as run:
            story = Story(client, sandbox, url)
            story.run = run
            await story.connect()
            yield story


@asynccontextmanager
async def broker() -> AsyncIterator[PrivateNats]:
    """A nats-server of its own, for a service wants the stream's name to itself."""
    with tempfile.TemporaryDirectory(prefix="chatledger-test-", dir="/tmp") as folder:
        os.chmod(folder, 0o711)  # The server runs as another user if we are root.
        own = PrivateNats(Path(folder) / "nats")
        await own.start()
        try:
            yield own
        finally:
            await own.stop()


@asynccontextmanager
async def story_on(servers: Servers, **changed: Any) -> AsyncIterator[Story]:
    """A service on a database and a nats-server of its own, and a sandbox."""
    async with (
        database(servers) as database_url,
        broker() as nats,
        telling(nats.folder, database_url, nats.url, **changed) as story,
    ):
        yield story


async def make_public(folder: Path) -> None:
    """Make a data folder the ledger of an older version, so that a test makes the same ids as its service."""
    async with servers(load_settings(environment={"CHATLEDGER_DATA": str(folder)})) as where:
        await make_without_a_secret(where.database_url)


@asynccontextmanager
async def on_its_own_servers(folder: Path) -> AsyncIterator[Story]:
    """A service that has started its servers itself, and will start them again."""
    os.chmod(folder, 0o711)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    async with aiohttp.ClientSession() as client, Sandbox(config(url)) as sandbox:
        given = {"CHATLEDGER_DATA": str(folder), "CHATLEDGER_PORT": str(port)}
        given |= {"CHATLEDGER_ADMIN_KEY": ADMIN_KEY, "CHATLEDGER_MASTER_KEY": MASTER_KEY}
        settings = load_settings(environment=given | {"CHATLEDGER_KOMMO_URL": sandbox.url})
        await make_public(folder)
        async with running(settings) as run:
            story = Story(client, sandbox, url)
            story.run = run
            await story.connect()
            yield story


@asynccontextmanager
async def installed(servers: Servers, **changed: Any) -> AsyncIterator[tuple[Story, Settings]]:
    """All that a service needs, and its settings, before it runs; `changed` as in `telling`."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    async with (
        database(servers) as database_url,
        broker() as nats,
        aiohttp.ClientSession() as client,
        Sandbox(config(url, **changed)) as sandbox,
    ):
        await migrate(database_url)
        more = {"CHATLEDGER_KOMMO_URL": sandbox.url, "CHATLEDGER_PORT": str(port)}
        yield Story(client, sandbox, url), settings_of(nats.folder, database_url, nats.url, **more)


class Traffic:
    """Customers and managers who write all the time.

    `taken` are the ids of what was acknowledged with 200, by conversation and side, in their order; `refused`
    are the statuses of the rest, 0 without an answer.
    """

    def __init__(self, story: Story, seed: int = 0) -> None:
        self.story, self.dice = story, random.Random(seed)
        self.taken: dict[tuple[str, str], list[str]] = defaultdict(list)
        self.refused: list[int] = []
        self.tried = 0
        self._writing: list[asyncio.Task[None]] = []

    def begin(self) -> None:
        for name in [chat() for _ in range(CHATS)]:
            self._writing.append(asyncio.create_task(self._write(name, "messenger", self._customer)))
            self._writing.append(asyncio.create_task(self._write(name, "kommo", self._manager)))

    async def end(self) -> None:
        for task in self._writing:
            task.cancel()
        for outcome in await asyncio.gather(*self._writing, return_exceptions=True):
            assert isinstance(outcome, asyncio.CancelledError), outcome

    async def _write(self, name: str, side: str, write: Any) -> None:
        while True:
            self.tried += 1
            status, own = await write(name, f"{name}-{self.tried}")
            if status == 200:
                self.taken[name, side].append(ids.message_id(SCOPE, side, own))
            else:
                self.refused.append(status)
            await asyncio.sleep(self.dice.uniform(0, PAUSE_SECONDS_MAX))

    async def _customer(self, name: str, own: str) -> tuple[int, str]:
        """A signed action, posted once."""
        action = {
            "type": "message.sent",
            "conversation_id": name,
            "message_id": own,
            "at": clock.text(clock.now_ms()),
            "sender": {"id": f"u-{name}", "name": "Ann"},
            "message": {"type": "text", "text": own},
        }
        body = msgspec.json.encode(action)
        url, headers = f"{self.story.url}/messengers/acme", webhook.signed(MESSENGER_SECRET, own, body)
        with suppress(aiohttp.ClientError, TimeoutError):
            async with self.story.client.post(url, data=body, headers=headers, timeout=PATIENCE) as answer:
                return answer.status, own
        return 0, own

    async def _manager(self, name: str, text: str) -> tuple[int, str]:
        """A message in Kommo, whose hook is sent once."""
        order = {"conversation_id": name, "message": {"type": "text", "text": text}}
        told = await self.story.order("POST", "/manager/messages?wait=1", order)
        return told["status"] or 0, told["id"]


def config(url: str, **changed: Any) -> Config:
    """A sandbox for a service at `url`."""
    given: dict[str, Any] = {
        "channels": (Channel(CHANNEL, CHANNEL_SECRET, BOT),),
        "hook_url": f"{url}/kommo/:scope_id",
        "messenger_url": f"{url}/messengers/acme",
        "messenger_secret": MESSENGER_SECRET,
        "receipts": False,
    }
    return Config(**(given | changed))


def free_port() -> int:
    """A port that is free now, of those that the system gives to nobody who asks for any.

    Each of the two must know the other's address before it starts, and tests run beside each other.
    """
    while True:
        port = random.SystemRandom().randrange(15_000, 30_000)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
