"""A start brings the ledger to what the file says, and Kommo to what the ledger says, once."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from app.config.file import Channel, Connected, KommoSide, MessengerSide, Setup
from app.operations import channels
from app.operations.startup import Start
from app.servers.servers import Servers
from app.service.service import migrate, running
from ops.sandbox import Sandbox
from tests.support.databases import database
from tests.support.ids import ACCOUNT, BOT, CHANNEL, CHANNEL_SECRET, MESSENGER_SECRET, OTHER_ACCOUNT, SCOPE
from tests.support.system import Story, broker, chat, config, free_port, settings_of, until

UNKNOWN = "00000000-f8ca-454d-af3d-396180102ac7"


class House:
    """A database, a broker and a sandbox, between which services are started one after the other."""

    def __init__(self, folder: Path, urls: tuple[str, str], sandbox: Sandbox, client: Any, port: int) -> None:
        self.folder, self.urls, self.sandbox, self.client, self.port = folder, urls, sandbox, client, port
        self.url = f"http://127.0.0.1:{port}"

    @asynccontextmanager
    async def started(self, setup: Setup, roles: str = "", kommo_url: str = "") -> AsyncIterator[Story]:
        """A service with that file."""
        more = {"CHATLEDGER_KOMMO_URL": kommo_url or self.sandbox.url, "CHATLEDGER_PORT": str(self.port)}
        given = settings_of(self.folder, *self.urls, CHATLEDGER_ROLES=roles, **more)
        async with running(given, setup) as run:
            story = Story(self.client, self.sandbox, self.url)
            story.run = run
            yield story

    def dropped(self) -> None:
        """The integration is installed again: Kommo says nothing, and forgets the connection."""
        self.sandbox.chat_state.connections.clear()

    def connected(self, account: str = ACCOUNT) -> bool:
        found = self.sandbox.chat_state.connections.get(f"{CHANNEL}_{account}")
        return found is not None and found.active

    def file(self, *accounts: str, **changed: Any) -> Setup:
        """What an integrator wrote."""
        kommo = KommoSide(changed.get("channel_id", CHANNEL), changed.get("secret", CHANNEL_SECRET), BOT)
        url = f"{self.sandbox.url}{changed.get('path', '/messenger/hook')}"
        connections = tuple(Connected(account, "Acme") for account in accounts)
        return Setup(
            channels=(Channel("acme", kommo, MessengerSide("webhook", url, MESSENGER_SECRET), connections),)
        )


@pytest.fixture
async def house(servers: Servers) -> AsyncIterator[House]:
    """A whitelist with one account; nothing is registered yet."""
    port = free_port()
    async with (
        database(servers) as database_url,
        broker() as nats,
        aiohttp.ClientSession() as client,
        Sandbox(config(f"http://127.0.0.1:{port}", accounts=(ACCOUNT,))) as sandbox,
    ):
        await migrate(database_url)
        yield House(nats.folder, (database_url, nats.url), sandbox, client, port)


async def logged(caplog: pytest.LogCaptureFixture, text: str) -> None:
    """Wait until the start has said so."""
    await until(lambda: any(text in line for line in said(caplog)))


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "chatledger.start"]


async def types(story: Story) -> list[str]:
    """The channel's events, in their order."""
    return [one["type"] for one in await story.events() if one["type"].startswith("channel.")]


@pytest.fixture(autouse=True)
def every_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "chatledger.start")


async def test_a_file_is_enough_to_connect(house: House, caplog: pytest.LogCaptureFixture) -> None:
    async with house.started(house.file(ACCOUNT)) as story:
        await logged(caplog, f"account {ACCOUNT}: connected")
        name = chat()
        await story.customer(name)
        await story.arrived(name)
        assert await types(story) == ["channel.registered", "channel.connected"]
        assert (await story.api("GET", "/v1/status"))["connections"] == []


async def test_what_the_file_says_of_a_connection_is_told_to_kommo(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    [channel] = house.file().channels
    for title, disabled in (("Acme", None), ("Chat", True), ("Chat", None)):
        wanted = msgspec.structs.replace(channel, connections=(Connected(ACCOUNT, title, disabled),))
        async with house.started(Setup(channels=(wanted,))) as story:
            await logged(caplog, f"account {ACCOUNT}: connected")
            events = await types(story)
        caplog.clear()
        there = house.sandbox.chat_state.connections[SCOPE.scope_id]
        assert there.title == title
    assert there.is_time_window_disabled
    assert events == ["channel.registered", "channel.connected", "channel.connected"]


async def test_a_second_start_is_no_news(house: House, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        async with house.started(house.file(ACCOUNT)) as story:
            await logged(caplog, f"account {ACCOUNT}: connected")
            assert await types(story) == ["channel.registered", "channel.connected"]
        caplog.clear()


async def test_what_the_file_changes_is_changed_once(house: House, caplog: pytest.LogCaptureFixture) -> None:
    for setup in (
        house.file(ACCOUNT),
        house.file(ACCOUNT, path="/other"),
        house.file(ACCOUNT, path="/other"),
    ):
        async with house.started(setup) as story:
            await logged(caplog, f"account {ACCOUNT}: connected")
            events = await types(story)
            [channel] = (await story.api("GET", "/v1/channels"))["items"]
        caplog.clear()
    assert events == ["channel.registered", "channel.connected", "channel.changed"]
    assert channel["messenger"]["url"].endswith("/other")


async def test_a_connection_that_kommo_dropped_is_made_again_at_the_start(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    async with house.started(house.file(ACCOUNT)):
        await logged(caplog, f"account {ACCOUNT}: connected")
    house.dropped()
    async with house.started(Setup()) as story:  # Made through the API or by a file: both are recorded.
        await logged(caplog, "Kommo had dropped the connection")
        assert house.connected()
        assert await types(story) == ["channel.registered", "channel.connected", "channel.connected"]


async def test_what_was_parked_for_want_of_the_connection_is_taken_up(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    name = chat()
    async with house.started(house.file(ACCOUNT)) as story:
        await logged(caplog, f"account {ACCOUNT}: connected")
        house.dropped()
        await story.fault("kommo.connect", "403", times=None)
        ours = await story.customer(name)
        await until_parked(story)
        [problem] = (await story.api("GET", "/v1/status"))["connections"]
        assert (problem["channel"], problem["account_id"]) == ("acme", ACCOUNT)
        assert "403" in problem["problem"]
        await story.order("DELETE", "/faults")
    async with house.started(house.file(ACCOUNT)) as story:
        await story.arrived(name)
        await story.until_recorded(ours, "message.accepted")
        assert (await story.api("GET", "/v1/status"))["connections"] == []


async def test_connecting_by_hand_takes_up_what_kommo_did_not_find(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    name = chat()
    async with house.started(house.file(ACCOUNT)) as story:
        await logged(caplog, f"account {ACCOUNT}: connected")
        await story.fault("kommo.new_message", "404", times=None)
        await story.customer(name)
        await until_parked(story)
        await story.order("DELETE", "/faults")
        await story.api("POST", "/v1/channels/acme/connections", {"account_id": ACCOUNT, "title": "Acme"})
        await story.arrived(name)


async def test_kommo_is_asked_to_connect_once_and_not_for_every_message(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    async with house.started(house.file(ACCOUNT)) as story:
        await logged(caplog, f"account {ACCOUNT}: connected")
        house.dropped()
        await story.fault("kommo.connect", "403", times=None)
        [fault] = house.sandbox.faults.faults
        for _ in range(5):
            await story.customer(chat())
        await until_parked(story, 5)
        assert fault.hits == 1


async def until_parked(story: Story, many: int = 1) -> None:
    """Wait until so many deliveries are parked."""
    async with asyncio.timeout(15):
        while True:
            if (await story.api("GET", "/v1/status"))["deliveries"]["parked"] >= many:
                return
            await asyncio.sleep(0.02)


async def test_what_an_operator_disconnected_stays_so(house: House, caplog: pytest.LogCaptureFixture) -> None:
    async with house.started(house.file(ACCOUNT)) as story:
        await logged(caplog, f"account {ACCOUNT}: connected")
        await story.api("DELETE", f"/v1/channels/acme/connections/{ACCOUNT}")
    async with house.started(house.file(ACCOUNT)) as story:
        await logged(caplog, "an operator disconnected it")
        assert not house.connected()
        assert (await types(story))[-1] == "channel.disconnected"


async def test_what_kommo_disconnected_is_tried_again_because_the_file_names_it(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    async with house.started(house.file(ACCOUNT)) as story:
        await logged(caplog, f"account {ACCOUNT}: connected")
        assert story.run
        services = story.run.services
        channel = await channels.named(services, "acme")
        await channels.record_disconnected(services, channels.connected(channel, ACCOUNT), by="kommo")
    caplog.clear()
    async with house.started(house.file(ACCOUNT)) as story:
        await logged(caplog, f"account {ACCOUNT}: connected")
        assert (await types(story))[-1] == "channel.connected"


async def test_what_is_taken_out_of_the_file_stays_and_that_is_said(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    async with house.started(house.file(ACCOUNT)):
        await logged(caplog, f"account {ACCOUNT}: connected")
    async with house.started(house.file()):
        await logged(caplog, "is not in the file: it stays connected until DELETE")
        await logged(caplog, "connected, as it was")
        assert house.connected()


REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "a private channel without this account": ({}, OTHER_ACCOUNT, "private channel"),
    "an unknown channel id": ({"channel_id": UNKNOWN}, ACCOUNT, "channel does not exist"),
    "a wrong secret": ({"secret": "wrong" * 8}, ACCOUNT, "X-Signature"),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_what_kommo_refuses_is_one_line_and_shown(
    house: House, case: str, caplog: pytest.LogCaptureFixture
) -> None:
    changed, account, reason = REFUSED[case]
    async with house.started(house.file(account, **changed)) as story:
        await logged(caplog, "Kommo answered HTTP 40")
        await asyncio.sleep(2.5)  # Twice as long as the first pause.
        assert sum(account in line for line in said(caplog)) == 1
        assert reason not in caplog.text  # Texts of Kommo stand in a field of their own, and in no log.
        [problem] = (await story.api("GET", "/v1/status"))["connections"]
        assert (problem["channel"], problem["account_id"]) == ("acme", account)
        assert reason in problem["answer"]
        assert "Kommo answered HTTP 40" in problem["problem"]
        assert "channel.connected" not in await types(story)


async def test_the_service_starts_while_kommo_is_down_and_connects_when_it_is_back(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    async with house.started(house.file(ACCOUNT), roles="web,relay,project") as story:
        await story.fault("kommo.connect", "503", times=2)
        assert story.run
        start = asyncio.create_task(Start(story.run.services, delay_seconds=0.1).run())
        await logged(caplog, "trying again from time to time")
        [problem] = (await story.api("GET", "/v1/status"))["connections"]
        assert "503" in problem["problem"]
        async with asyncio.timeout(15):
            await start
        assert [line for line in said(caplog) if ACCOUNT in line][1:] == [
            f"channel acme, account {ACCOUNT}: connected"
        ]
        assert (await story.api("GET", "/v1/status"))["connections"] == []


async def test_of_two_processes_one_connects(house: House, caplog: pytest.LogCaptureFixture) -> None:
    async with house.started(house.file(ACCOUNT), roles="web,relay,project") as story:
        assert story.run
        await asyncio.gather(*(Start(story.run.services).run() for _ in range(2)))
        await logged(caplog, "another process has connected it")
        assert await types(story) == ["channel.registered", "channel.connected"]


async def test_a_name_that_has_another_channel_id_is_left_and_told(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    async with house.started(house.file(ACCOUNT)):
        await logged(caplog, f"account {ACCOUNT}: connected")
    async with house.started(house.file(ACCOUNT, channel_id=UNKNOWN)) as story:
        await logged(caplog, "it is registered with channel_id")
        await logged(caplog, "connected, as it was")
        [problem] = (await story.api("GET", "/v1/status"))["connections"]
        assert (problem["channel"], problem["account_id"]) == ("acme", None)


def test_the_scope_of_a_connection_is_the_channels_and_the_accounts() -> None:
    assert f"{CHANNEL}_{ACCOUNT}" == SCOPE.scope_id
    assert msgspec.to_builtins(Setup().channels) == ()
