"""A relay that cannot publish says why and since when wherever an operator looks, and goes on by itself."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import msgspec
import pytest

from app.doctor.doctor import Doctor, Ground
from app.servers.servers import Servers, check_versions
from app.stream import jetstream
from app.stream.standstill import Standstill
from tests.support.ledgers.nats_cluster import NatsServer, nats_server
from tests.support.ledgers.stream_ledger import Ledger, differing, relaying, until
from tests.support.service import Answer, Served, sent, serving

DENIED = (
    'authorization {{ users: [{{user: us, password: p, permissions: {{publish: {{deny: ["{0}"]}}}}}}, '
    "{{user: all, password: p}}] }}"
)


@pytest.fixture
async def ledger(database_url: str) -> Ledger:
    return await Ledger(database_url).open()


@pytest.fixture
async def server(data_folder: Path) -> AsyncIterator[NatsServer]:
    async with nats_server(data_folder / "server") as server:
        yield server


async def test_a_full_store_is_told_and_keeps_nobody_from_storing(
    servers: Servers, data_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with nats_server(data_folder / "full", limits="max_file_store: 100KB") as server:
        changed = {"CHATLEDGER_NATS_URL": server.url}
        async with serving(servers, roles="web,relay,project,deliver", changed=changed) as service:
            assert (await service.register()).status == 201
            assert (await service.connect()).status == 201
            relay = service.run.services.relay
            assert relay
            await until(lambda: relay.position > 1)
            ours = [record for record in caplog.records if record.name.startswith("chatledger")]
            assert [each.getMessage() for each in ours if each.levelno >= logging.WARNING] == []

            text = {"type": "text", "text": "x" * 2000}
            await service.act([sent(number, message=text) for number in range(60)])
            await until(lambda: "insufficient resources" in str(relay.standstill.now))
            ready = await service.request("GET", "/readyz")
            (part,) = [part for part in ready.body["parts"] if part["part"] == "relay"]
            assert (ready.status, ready.body["ready"], part["state"]) == (200, True, "stuck")
            assert re.match(r"standing still since 20\S+Z: insufficient resources \(10023\)", part["detail"])
            told = (await service.get("/v1/status"))["relay"]
            assert told["lag"] > 0
            assert "raise max_file_store" in told["stands"]["because"]
            measured = await gauges(await service.ask("GET", "/metrics"))
            assert (measured["stands_seconds"] > 0, measured["replicas"]) == (True, 1)

            assert "insufficient resources" in await doctors_word(service)
            assert (await service.act(sent("more"))).status == 200
            head = await service.head()
            server.kill()
            server.more = server.more.replace("100KB", "10MB")
            await server.start()
            await until(lambda: relay.standstill.now is None)
            await until(lambda: relay.position >= head)
            assert (await gauges(await service.ask("GET", "/metrics")))["stands_seconds"] == 0
    lines = [record.getMessage() for record in caplog.records if record.name == "chatledger.relay"]
    assert len([line for line in lines if "insufficient resources" in line]) == 1
    assert len([line for line in lines if "relay goes on after" in line]) == 1


async def test_one_nats_server_of_several_is_enough(
    servers: Servers, caplog: pytest.LogCaptureFixture
) -> None:
    await check_versions(servers.database_url, f"nats://127.0.0.1:1,{servers.nats_url}")
    (told,) = caplog.messages
    assert told.startswith("NATS at 127.0.0.1:1 does not answer")


async def test_what_only_stores_and_answers_does_not_need_nats(servers: Servers) -> None:
    changed = {"CHATLEDGER_NATS_URL": "nats://127.0.0.1:9"}
    async with serving(servers, roles="web,project", changed=changed) as service:
        assert (await service.request("GET", "/readyz")).status == 200


async def doctors_word(service: Served) -> str:
    """What the doctor says of the relay."""
    settings = msgspec.structs.replace(service.run.services.settings, port=urlsplit(service.url).port)
    async with aiohttp.ClientSession() as session:
        found = {check.name: check for check in await Doctor(settings, session, Ground()).service()}
    assert (found["service"].ok, found["relay"].ok) == (True, False)
    return found["relay"].says


async def gauges(answer: Answer) -> dict[str, float]:
    """The relay's metrics."""
    found = re.findall(r"^chatledger_relay_(\w+) (\S+)$", answer.raw.decode(), re.MULTILINE)
    return {name: float(value) for name, value in found}


async def test_a_sealed_stream_is_told_until_it_is_deleted(ledger: Ledger, server: NatsServer) -> None:
    await ledger.fill(3)
    admin = await jetstream.connect(server.url, name="admin")
    async with relaying(ledger, server.url) as relay:
        await until(lambda: relay.position == 3)
        info = await jetstream.stream_info(admin)
        assert info
        await jetstream.update_stream(admin, {**info.config, "sealed": True})
        await ledger.fill(1)
        await until(lambda: relay.restarted > 1)
        assert relay.standstill.now
        assert "the stream LEDGER is sealed (10109): delete the stream" in relay.standstill.now.because
        await jetstream.delete_stream(admin)
        await until(lambda: relay.standstill.now is None and relay.position == 4)
    assert await differing(server.url, ledger.rows) == []
    await admin.close()


async def test_another_ledgers_stream_is_told_until_it_is_gone(ledger: Ledger, server: NatsServer) -> None:
    admin = await jetstream.connect(server.url, name="admin")
    config = {"name": "LEDGER", "subjects": ["ledger.>"], "metadata": {"chatledger.ledger": "other"}}
    await jetstream.create_stream(admin, config)
    await ledger.fill(3)
    async with relaying(ledger, server.url) as relay:
        await until(lambda: relay.restarted > 1)
        assert relay.standstill.now
        assert "belongs to ledger other" in relay.standstill.now.because
        await jetstream.delete_stream(admin)
        await until(lambda: relay.standstill.now is None and relay.position == 3)
    await admin.close()


@pytest.mark.parametrize(
    ("subject", "words"),
    [
        ("ledger.>", 'no acknowledgement within 5 s: nats: permissions violation for publish to "ledger.'),
        ("$JS.API.STREAM.INFO.LEDGER", 'permissions violation for publish to "$js.api.stream.info.ledger"'),
    ],
)
async def test_a_missing_right_is_told(ledger: Ledger, data_folder: Path, subject: str, words: str) -> None:
    await ledger.fill(30)
    async with (
        nats_server(data_folder / "server", DENIED.format(subject)) as server,
        relaying(ledger, server.url.replace("//", "//us:p@")) as relay,
    ):
        await until(lambda: relay.standstill.now is not None)
        assert relay.standstill.now
        assert words in relay.standstill.now.because


async def test_an_operators_limit_of_the_stream_is_no_loss(
    ledger: Ledger, server: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    admin = await jetstream.connect(server.url, name="admin")
    async with relaying(ledger, server.url, check_seconds=0.2) as relay:
        await until(lambda: relay.active)
        info = await jetstream.stream_info(admin)
        assert info
        await jetstream.update_stream(admin, {**info.config, "max_msgs": 10})
        await ledger.fill(30)
        await until(lambda: relay.position == 30)
        await asyncio.sleep(1)
        assert relay.restarted == 0
    assert "purged" not in caplog.text
    await admin.close()


def test_a_standstill_is_one_line_then_one_a_minute_and_one_at_its_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    often, rarely = Standstill(again_seconds=0.0), Standstill()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            often.because("it is full", 7)
            rarely.because("it is full", 8)
        for _ in range(2):
            often.over(9)
            rarely.over(9)
    assert caplog.messages == [
        "relay stopped after position 7 and tries again: it is full",
        "relay stopped after position 8 and tries again: it is full",
        "relay stands still after position 7 for 0 s: it is full",
        "relay stands still after position 7 for 0 s: it is full",
        "relay goes on after 0 s, at position 9",
        "relay goes on after 0 s, at position 9",
    ]
