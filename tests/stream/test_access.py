"""Each NATS configuration that we ship lets an analyst read the stream, and do nothing else."""

import asyncio
import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import nats
import nats.errors
import pytest
from nats.aio.client import Client
from nats.js.api import ConsumerConfig

from app.servers.nats import PrivateNats, analyst_access, nats_binary
from app.stream import jetstream

ROOT = Path(__file__).parents[2]
SERVICE = [f"deliver-{number}" for number in range(4)]  # of versions up to 0.2
SUBJECT = "ledger.p00.account.conversation.message_sent"
ANSWER_SECONDS = 0.5


class Place(NamedTuple):
    """The addresses of both users."""

    service: str
    analyst: str


@contextlib.asynccontextmanager
async def shipped(file: str, folder: Path) -> AsyncIterator[Place]:
    """A server with a file of ops/, at a free port and with a folder of its own, and alone."""
    text = (ROOT / "ops" / file).read_text()
    text = re.sub(r"\ncluster \{.*?\n\}\n", "\n", text, flags=re.DOTALL)
    text = re.sub(r'"[\d.]+:\d+"', '"127.0.0.1:-1"', text).replace('"/data"', f'"{folder}/data"')
    (folder / file).write_text(f'ports_file_dir: "{folder}"\n{text}')
    shutil.copy(ROOT / "ops" / "nats-accounts.conf", folder)
    environment = {"NATS_NAME": "nats-1", "NATS_PASSWORD": "service", "NATS_ANALYST_PASSWORD": "reader"}
    with (folder / "log").open("wb") as log:
        server = await asyncio.create_subprocess_exec(
            nats_binary(), "-c", folder / file, env=environment, stderr=log
        )
    try:
        async with asyncio.timeout(10):
            while not (ports := folder / f"nats-server_{server.pid}.ports").exists():  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        place = json.loads(ports.read_text())["nats"][0].removeprefix("nats://")
        yield Place(f"nats://chatledger:service@{place}", f"nats://analyst:reader@{place}")
    finally:
        server.terminate()
        await server.wait()


@contextlib.asynccontextmanager
async def private(folder: Path) -> AsyncIterator[Place]:
    """The private server."""
    server = PrivateNats(folder / "nats")
    await server.start()
    try:
        access = analyst_access(folder / "nats")
        assert access
        yield Place(server.url, access.url.replace("//", f"//{access.user}:{access.password}@"))
    finally:
        await server.stop()
    assert analyst_access(folder / "nats") is None


class Analyst(NamedTuple):
    """An analyst's connection, what the server refused, and the service's connection."""

    own: Client
    refused: list[str]
    service: Client

    async def ask(self, subject: str, body: object = None, reply: str = "") -> dict[str, Any] | None:
        """The answer to a request; None if there was none, as when it was refused."""
        data = b"" if body is None else json.dumps(body).encode()
        if reply:
            await self.own.publish(subject, data, reply=reply)
            await self.own.flush()
            await asyncio.sleep(ANSWER_SECONDS)
            return None
        with contextlib.suppress(nats.errors.TimeoutError, nats.errors.NoRespondersError):
            answer = await self.own.request(subject, data, timeout=ANSWER_SECONDS)
            return dict(json.loads(answer.data))
        return None

    async def state(self) -> object:
        """Whatever of the stream and the service's consumers an analyst might have changed."""
        stream = await self.service.jetstream().stream_info("LEDGER")
        consumers = [await self.service.jetstream().consumer_info("LEDGER", name) for name in SERVICE]
        told = [(one.config, one.delivered, one.ack_floor, one.num_pending) for one in consumers]
        return stream.config, stream.state.messages, stream.state.first_seq, stream.state.last_seq, told


@pytest.fixture(params=["private", "nats.conf", "nats-single.conf"], scope="module")
async def analyst(request: pytest.FixtureRequest) -> AsyncIterator[Analyst]:
    """The analyst of a configuration, on a stream of five events with the service's consumers."""
    folder = Path(tempfile.mkdtemp(prefix="chatledger-test-", dir="/tmp"))
    os.chmod(folder, 0o711)  # As root, we start the private server as another user.
    place = private(folder) if request.param == "private" else shipped(request.param, folder)
    refused: list[str] = []

    async def note(error: Exception) -> None:
        refused.append(str(error))

    async with place as where:
        service = await nats.connect(where.service)
        await service.jetstream().add_stream(name="LEDGER", subjects=["ledger.>"], allow_direct=True)
        for number in range(5):
            await service.jetstream().publish(SUBJECT, b'{"number": %d}' % number)
        for name in SERVICE:
            await service.jetstream().add_consumer(
                "LEDGER", ConsumerConfig(durable_name=name, filter_subject="ledger.>")
            )
        own = await nats.connect(where.analyst, error_cb=note)
        yield Analyst(own, refused, service)
        await own.close()
        await service.close()
    shutil.rmtree(folder)


async def test_an_analyst_subscribes_and_has_consumers_of_its_own(analyst: Analyst) -> None:
    context = analyst.own.jetstream()
    seen: list[bytes] = []

    async def note(message: Any) -> None:
        seen.append(message.data)

    await analyst.own.subscribe("ledger.>", cb=note)
    await analyst.own.flush()
    durable = await context.pull_subscribe("ledger.>", durable="reports")
    first = await durable.fetch(5, timeout=5)
    assert [json.loads(one.data)["number"] for one in first] == [0, 1, 2, 3, 4]
    assert [one.metadata.sequence.stream for one in first] == [1, 2, 3, 4, 5]
    for one in first:
        await one.ack_sync()
    passing = await context.pull_subscribe("ledger.*.*.*.message_sent")
    assert len(await passing.fetch(5, timeout=5)) == 5
    await analyst.service.jetstream().publish(SUBJECT, b"new")
    [new] = await durable.fetch(1, timeout=5)
    assert new.data == b"new"
    assert seen == [b"new"]
    assert (await context.consumer_info("LEDGER", "reports")).ack_floor.stream_seq == 5
    assert (await context.get_last_msg("LEDGER", SUBJECT)).data == b"new"
    assert await context.delete_consumer("LEDGER", "reports")
    assert analyst.refused == []


NEITHER = {"config": {"name": "LEDGER", "subjects": ["ledger.>", "more"]}}
TAKEN = {
    "stream_name": "LEDGER",
    "config": {"name": "deliver-0", "durable_name": "deliver-0", "max_deliver": 1},
}
CLOSED: list[tuple[str, object]] = [
    (SUBJECT, {"number": 99}),
    ("ledger.p63.-.-.x", {"number": 99}),
    ("$JS.API.STREAM.PURGE.LEDGER", None),
    ("$JS.API.STREAM.DELETE.LEDGER", None),
    ("$JS.API.STREAM.UPDATE.LEDGER", {"name": "LEDGER", "subjects": ["ledger.>"], "max_msgs": 1}),
    ("$JS.API.STREAM.CREATE.MINE", {"name": "MINE", "subjects": ["mine"]}),
    ("$JS.API.STREAM.MSG.DELETE.LEDGER", {"seq": 1}),
    ("$JS.API.STREAM.SNAPSHOT.LEDGER", {"deliver_subject": "ledger.p00.-.-.x"}),
    ("$JS.API.STREAM.RESTORE.LEDGER", NEITHER),
    ("$JS.API.STREAM.LEADER.STEPDOWN.LEDGER", None),
    ("$JS.API.CONSUMER.CREATE.LEDGER", TAKEN),
    ("$JS.API.CONSUMER.CREATE.LEDGER.mine", TAKEN),
    ("$JS.API.CONSUMER.CREATE.LEDGER.mine.ledger.>", TAKEN),
    ("$JS.API.CONSUMER.DURABLE.CREATE.LEDGER.mine", TAKEN),
    *(
        (f"{api}.{call}.LEDGER.{name}{rest}", TAKEN if "CREATE" in call else None)
        for name in SERVICE
        for api in ("$JS.API", "analyst")
        for call, rest in (
            ("CONSUMER.CREATE", ""),
            ("CONSUMER.CREATE", ".ledger.>"),
            ("CONSUMER.DURABLE.CREATE", ""),
            ("CONSUMER.DELETE", ""),
            ("CONSUMER.RESET", ""),
            ("CONSUMER.PAUSE", ""),
            ("CONSUMER.UNPIN", ""),
            ("CONSUMER.LEADER.STEPDOWN", ""),
            ("CONSUMER.MSG.NEXT", ""),
        )
    ),
    *((f"$JS.ACK.LEDGER.{name}.1.5.5.1700000000000000000.0", None) for name in SERVICE),
    ("$SYS.REQ.SERVER.PING", None),
]


async def test_nothing_else_is_open_to_an_analyst(analyst: Analyst) -> None:
    for name in SERVICE:  # Something that an acknowledgement by another would change.
        bound = await analyst.service.jetstream().pull_subscribe_bind(name, "LEDGER")
        assert len(await bound.fetch(1, timeout=5)) == 1
    before = await analyst.state()
    answers = await asyncio.gather(*(analyst.ask(subject, body) for subject, body in CLOSED))
    for (subject, _), answer in zip(CLOSED, answers, strict=True):
        assert answer is None or "error" in answer, (subject, answer)
    assert await analyst.state() == before


def sent_to(subject: str) -> dict[str, object]:
    """A request for a consumer that the server would feed to a subject."""
    config = {"name": "mine", "deliver_subject": subject, "ack_policy": "none", "filter_subject": "ledger.>"}
    return {"stream_name": "LEDGER", "config": config}


async def test_the_server_writes_nowhere_on_behalf_of_an_analyst(analyst: Analyst) -> None:
    """Its answers go where the asker wants, and what a consumer is fed goes where its maker wants."""
    before = await analyst.state()
    for subject in ("$JS.API.STREAM.INFO.LEDGER", "$JS.API.STREAM.NAMES", "$JS.API.INFO"):
        await analyst.ask(subject, reply=SUBJECT)
    for subject in (SUBJECT, "$JS.API.STREAM.PURGE.LEDGER", "$JS.API.STREAM.DELETE.LEDGER"):
        await analyst.ask("$JS.API.CONSUMER.CREATE.LEDGER.mine.ledger.>", sent_to(subject))
        await asyncio.sleep(ANSWER_SECONDS)
        await analyst.ask("$JS.API.CONSUMER.DELETE.LEDGER.mine")
    assert await analyst.state() == before


async def test_an_analyst_sees_nothing_but_the_ledger(analyst: Analyst) -> None:
    seen: list[str] = []

    async def note(message: Any) -> None:
        seen.append(message.subject)

    for subject in (">", "$JS.>", "_INBOX.>", "private.>"):
        await analyst.own.subscribe(subject, cb=note)
    await analyst.own.flush()
    analyst.refused.clear()
    await analyst.service.publish("private.x", b"secret")
    await analyst.service.jetstream().stream_info("LEDGER")
    await analyst.service.flush()
    await asyncio.sleep(ANSWER_SECONDS)
    assert seen == []


def test_what_is_shipped_for_production_is_what_the_private_server_has() -> None:
    private = (ROOT / "app" / "servers" / "nats-accounts.conf").read_text()
    assert (ROOT / "ops" / "nats-accounts.conf").read_text() == private
    assert all(f'"$JS.ACK.LEDGER.{name}.>"' in private for name in SERVICE)
    assert jetstream.STREAM == "LEDGER"
