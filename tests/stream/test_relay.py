"""What the relay promises: the stream is the ledger, event for event, whatever was there before."""

import asyncio
import base64
import json
import logging
import re
import shutil

import nats
import psycopg
import pytest

from app.database.leases import Leases, leasing
from app.servers.nats import PrivateNats
from app.stream import jetstream
from app.stream.relay import Relay
from domain import events as e
from tests.support.databases import NewDatabase
from tests.support.ledgers.stream_ledger import (
    DAY_MS,
    Ledger,
    differing,
    message,
    relaying,
    stored,
    until,
    wipe,
)


@pytest.fixture
async def ledger(database_url: str) -> Ledger:
    return await Ledger(database_url).open()


@pytest.mark.parametrize("count", [1, 19, 20, 2500])
async def test_a_sequence_is_a_position_and_a_body_the_stored_bytes(
    ledger: Ledger, nats_own: PrivateNats, count: int
) -> None:
    await ledger.fill(count)
    async with relaying(ledger, nats_own.url) as relay:
        await until(lambda: relay.position == count)
        assert await differing(nats_own.url, ledger.rows) == []
        assert (relay.restarted, relay.active) == (0, True)


async def test_a_commit_of_another_process_is_published_within_a_moment(
    ledger: Ledger, nats_own: PrivateNats
) -> None:
    async with relaying(ledger, nats_own.url) as relay:
        await until(lambda: relay.active)
        await asyncio.sleep(0.2)
        await ledger.fill(1)
        await until(lambda: relay.position == 1, seconds=0.5)


async def test_a_commit_is_found_without_notice(ledger: Ledger, nats_own: PrivateNats) -> None:
    async with relaying(ledger, nats_own.url) as relay:
        await until(lambda: relay.active)
        async with await psycopg.AsyncConnection.connect(ledger.url, autocommit=True) as connection:
            await connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'"
            )
        await ledger.fill(1)
        await until(lambda: relay.position == 1, seconds=5)


async def test_the_largest_events_pass(ledger: Ledger, nats_own: PrivateNats) -> None:
    largest = message(1, text="")
    size = e.EVENT_BYTES_MAX - len(e.encode(largest))
    await ledger.write(*(message(n, text="x" * (size - 20)) for n in range(1, 31)))
    await ledger.write(message(31), message(32, text="y" * (size - 20)))
    async with relaying(ledger, nats_own.url) as relay:
        await until(lambda: relay.position == 32)
        assert relay.restarted == 0
    assert await differing(nats_own.url, ledger.rows) == []


async def test_an_event_that_cannot_be_read_keeps_its_place(ledger: Ledger, nats_own: PrivateNats) -> None:
    await ledger.fill(3)
    for damaged in (
        b"",
        b"\xff{",
        b'{"type":"message.sent"}',
        b'{"id":"x\\r\\n","type":"a b","channel":"c"}',
    ):
        position = len(ledger.rows) + 1
        async with await psycopg.AsyncConnection.connect(ledger.url, autocommit=True) as connection:
            await connection.execute(
                "INSERT INTO ledger.stored_events VALUES (gen_random_uuid(), 1, 'message.sent', %s, %s)",
                (damaged, position),
            )
        ledger.rows[position] = damaged
    for _ in range(2):  # One by one while it relays, then with what came before, in a batch.
        async with relaying(ledger, nats_own.url) as relay:
            await until(lambda: relay.position == len(ledger.rows))
            await ledger.fill(1)
            await until(lambda: relay.position == len(ledger.rows))
            assert await differing(nats_own.url, ledger.rows) == []
            assert relay.restarted == 0
        await wipe(nats_own)
        await ledger.fill(20)


async def test_a_message_is_a_cloud_event_in_its_causes_trace(ledger: Ledger, nats_own: PrivateNats) -> None:
    cause = message(1)
    effect = message(2, cause=cause.id)
    typing = e.ChannelConnected(
        id=cause.id, stream=cause.stream, version=9, channel="acme", at=cause.at, recorded_at=cause.at,
        by="operator", schema=1, scope_id="s",
    )  # fmt: skip
    await ledger.write(cause, effect, typing)
    async with relaying(ledger, nats_own.url) as relay:
        await until(lambda: relay.position == 3)
    subjects, headers = zip(*[await raw(nats_own.url, n) for n in (1, 2, 3)], strict=True)
    trace = cause.id.replace("-", "")
    assert [h["traceparent"].split("-")[1] for h in headers] == [trace] * 3
    assert all(re.fullmatch("00-[0-9a-f]{32}-[0-9a-f]{16}-01", h["traceparent"]) for h in headers)
    assert {name: headers[1][name] for name in headers[1] if name.startswith("ce-")} == {
        "ce-specversion": "1.0", "ce-id": effect.id, "ce-type": "message.sent", "ce-source": "/channels/acme",
    }  # fmt: skip
    assert re.fullmatch(rf"ledger\.p\d\d\.{cause.account}\.{cause.conversation}\.message_sent", subjects[0])
    assert subjects[2] == "ledger.p00.-.-.channel_connected"


async def raw(url: str, sequence: int) -> tuple[str, dict[str, str]]:
    client = await nats.connect(url)
    body = json.dumps({"seq": sequence}).encode()
    found = json.loads((await client.request("$JS.API.STREAM.MSG.GET.LEDGER", body)).data)["message"]
    await client.close()
    lines = base64.b64decode(found["hdrs"]).decode().split("\r\n")[1:]
    return found["subject"], dict(line.split(": ", 1) for line in lines if line)


async def test_a_new_stream_begins_with_the_retention_or_the_oldest_open_delivery(
    ledger: Ledger, nats_own: PrivateNats
) -> None:
    await ledger.fill(70, age_ms=31 * DAY_MS)
    await ledger.fill(30, age_ms=29 * DAY_MS)
    async with relaying(ledger, nats_own.url) as relay:
        await until(lambda: relay.position == 100)
    assert list(await stored(nats_own.url)) == list(range(71, 101))
    await wipe(nats_own)

    async def oldest_open() -> int:
        return 42

    async with relaying(ledger, nats_own.url, oldest_open=oldest_open) as relay:
        await until(lambda: relay.position == 100)
    assert await differing(nats_own.url, {n: ledger.rows[n] for n in range(42, 101)}) == []


async def test_an_old_ledger_without_news_makes_an_empty_stream(
    ledger: Ledger, nats_own: PrivateNats
) -> None:
    await ledger.fill(5, age_ms=40 * DAY_MS)
    async with relaying(ledger, nats_own.url) as relay:
        await until(lambda: relay.position == 5)
        assert await differing(nats_own.url, {}) == []
        await ledger.fill(1)
        await until(lambda: relay.position == 6)
    assert list(await stored(nats_own.url)) == [6]


async def test_a_wiped_store_is_filled_to_the_same_sequences(ledger: Ledger, nats_own: PrivateNats) -> None:
    await ledger.fill(300)
    async with relaying(ledger, nats_own.url) as relay:
        await until(lambda: relay.position == 300)
    await wipe(nats_own)
    await ledger.fill(3)
    async with relaying(ledger, nats_own.url) as relay:
        await until(lambda: relay.position == 303)
    assert await differing(nats_own.url, ledger.rows) == []


async def test_lost_message_files_are_filled_from_the_configured_start(
    ledger: Ledger, nats_own: PrivateNats
) -> None:
    await ledger.fill(40, age_ms=31 * DAY_MS)
    await ledger.fill(60)
    async with relaying(ledger, nats_own.url) as relay:
        await until(lambda: relay.position == 100)
        await nats_own.stop()
        for folder in nats_own.folder.glob("store/**/msgs"):
            shutil.rmtree(folder)
        await nats_own.start()
        await until(lambda: relay.position == 100 and relay.restarted > 0)
        await ledger.fill(1)
        await until(lambda: relay.position == 101)
    assert await differing(nats_own.url, {n: ledger.rows[n] for n in range(41, 102)}) == []


@pytest.mark.parametrize("api", ["DELETE", "PURGE"])
async def test_a_stream_deleted_or_purged_meanwhile_is_filled_again(
    ledger: Ledger, nats_own: PrivateNats, api: str
) -> None:
    await ledger.fill(100)
    admin = await jetstream.connect(nats_own.url, name="admin")
    async with relaying(ledger, nats_own.url, check_seconds=0.5) as relay:
        await until(lambda: relay.position == 100)
        await jetstream.call(admin, f"STREAM.{api}.LEDGER")
        await until(lambda: relay.restarted > 0 and relay.position == 100)
        assert await differing(nats_own.url, ledger.rows) == []
        await jetstream.call(admin, f"STREAM.{api}.LEDGER")
        await ledger.fill(30)
        await until(lambda: relay.position == 130)
        await asyncio.sleep(1.5)
        await until(lambda: relay.position == 130)
    assert await differing(nats_own.url, ledger.rows) == []
    await admin.close()


async def test_what_grew_too_old_may_be_gone(ledger: Ledger, nats_own: PrivateNats) -> None:
    await ledger.fill(50, age_ms=31 * DAY_MS)
    await ledger.fill(50)
    first = 1

    async def oldest_open() -> int:
        return first

    async with relaying(ledger, nats_own.url, oldest_open=oldest_open) as relay:
        await until(lambda: relay.position == 100)
    admin = await jetstream.connect(nats_own.url, name="admin")
    await jetstream.call(admin, "STREAM.PURGE.LEDGER", {"seq": 40})
    await admin.close()
    async with relaying(ledger, nats_own.url) as relay:
        await ledger.fill(1)
        await until(lambda: relay.position == 101)
        assert relay.restarted == 0
    assert list(await stored(nats_own.url)) == list(range(40, 102))


@pytest.mark.parametrize(("before", "after"), [(60, 40), (60, 60), (60, 90), (60, 0)])
async def test_a_restored_database_replaces_the_stream(
    new_database: NewDatabase,
    nats_own: PrivateNats,
    caplog: pytest.LogCaptureFixture,
    before: int,
    after: int,
) -> None:
    lost = await Ledger(await new_database()).open()
    await lost.fill(before)
    async with relaying(lost, nats_own.url) as relay:
        await until(lambda: relay.position == before)
    restored = await Ledger(await new_database()).open(lost.id)
    await restored.fill(after)
    with caplog.at_level(logging.ERROR):
        async with relaying(restored, nats_own.url) as relay:
            await until(lambda: relay.active and relay.position == after)
    assert await differing(nats_own.url, restored.rows) == []
    assert "filled again from the ledger" in caplog.text
    assert "restored" in caplog.text


@pytest.mark.parametrize(
    ("metadata", "advice"),
    [
        ({"chatledger.ledger": "other", "chatledger.format": "1"}, "belongs to ledger other"),
        ({}, "belongs to no ledger"),
        ({"chatledger.ledger": "OURS", "chatledger.format": "2"}, "upgrade chatledger"),
    ],
)
async def test_a_foreign_stream_is_not_touched(
    ledger: Ledger, nats_own: PrivateNats, metadata: dict[str, str], advice: str
) -> None:
    await ledger.fill(3)
    connection = await jetstream.connect(nats_own.url, name="test")
    metadata = {name: ledger.id if value == "OURS" else value for name, value in metadata.items()}
    await jetstream.create_stream(
        connection, {"name": "LEDGER", "subjects": ["ledger.>"], "metadata": metadata}
    )
    async with relaying(ledger, nats_own.url) as relay:
        await until(lambda: relay.standstill.now is not None)
        assert relay.standstill.now
        assert advice in relay.standstill.now.because
    info = await jetstream.stream_info(connection)
    assert info is not None
    assert info.state.messages == 0
    await connection.close()


async def test_an_older_configuration_is_brought_to_ours_but_for_its_start(
    ledger: Ledger, nats_own: PrivateNats
) -> None:
    connection = await jetstream.connect(nats_own.url, name="test")
    metadata = {"chatledger.ledger": ledger.id, "chatledger.format": "1", "note": "kept"}
    old = {"name": "LEDGER", "subjects": ["ledger.>"], "metadata": metadata, "first_seq": 1, "max_msgs": 9999}
    await jetstream.create_stream(connection, old)
    await ledger.fill(50)
    async with relaying(ledger, nats_own.url) as relay:
        await until(lambda: relay.position == 50)
    info = await jetstream.stream_info(connection)
    assert info is not None
    config = info.config
    assert (config["allow_atomic"], config["compression"], config["max_msgs"]) == (True, "s2", 9999)
    assert info.metadata["note"] == "kept"
    await connection.close()


async def test_a_second_relay_stands_by_and_takes_over(ledger: Ledger, nats_own: PrivateNats) -> None:
    async with relaying(ledger, nats_own.url) as second:
        async with relaying(ledger, nats_own.url) as first:
            await until(lambda: first.active or second.active)
            await ledger.fill(30)
            await until(lambda: first.position == second.position == 30)
            assert first.active != second.active
        await until(lambda: second.active)
        await ledger.fill(1)
        await until(lambda: second.position == 31)
    assert await differing(nats_own.url, ledger.rows) == []


async def test_a_lost_database_connection_is_made_anew(ledger: Ledger, nats_own: PrivateNats) -> None:
    async with relaying(ledger, nats_own.url) as relay:
        await until(lambda: relay.active)
        async with await psycopg.AsyncConnection.connect(ledger.url, autocommit=True) as connection:
            await connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        await ledger.fill(1)
        await until(lambda: relay.position == 1)
        assert relay.restarted > 0


async def test_a_closed_connection_ends_the_relay(ledger: Ledger, nats_own: PrivateNats) -> None:
    connection = await jetstream.connect(nats_own.url, name="test")
    async with leasing(leases := Leases(ledger.url)):
        task = asyncio.create_task(Relay(ledger.url, connection, ledger.id, leases).run())
        await asyncio.sleep(0.3)
        await connection.close()
        with pytest.raises(jetstream.StreamUnavailable, match="closed"):
            await asyncio.wait_for(task, 5)


async def test_a_gap_in_the_ledger_is_never_skipped(
    ledger: Ledger, nats_own: PrivateNats, caplog: pytest.LogCaptureFixture
) -> None:
    await ledger.fill(2)
    ledger.rows[3] = b""
    await ledger.fill(1)
    async with relaying(ledger, nats_own.url) as relay:
        await until(lambda: relay.restarted > 1)
        assert relay.position == 0
    assert "gap between positions 0 and 4" in caplog.text
