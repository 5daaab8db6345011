"""A push is tried until it is taken or refused for good, with patience and in its conversation's order."""

import asyncio
import gzip
import json
import logging
import zlib
from collections.abc import AsyncIterator
from itertools import pairwise
from statistics import median
from typing import Any

import pytest
from aiohttp import web
from prometheus_client import REGISTRY

from app.clock import LoopClock
from app.delivery.gate import Gate
from app.delivery.lane import LANE_MAX
from app.http_client import retry_after
from tests.support.messenger import Answering, answering, refusing
from tests.support.system import Story, chat, until

SLACK_SECONDS = 0.4
UNNAMED = "chatledger_unnamed_messages_total"


@pytest.fixture(scope="module", autouse=True)
async def messenger(story: Story) -> AsyncIterator[Answering]:
    """The messenger behind the channel."""
    async with answering() as messenger:
        await story.api("PUT", "/v1/channels/acme", {"messenger": {"url": messenger.url}})
        yield messenger


# Patience.


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 302])
async def test_what_may_pass_is_tried_again_under_the_same_id(
    story: Story, messenger: Answering, status: int
) -> None:
    name = chat()
    messenger.answers[name] = [refusing(status), refusing(status)]
    told = await story.manager(name)
    calls = await messenger.called(name, 3)
    assert len({call.webhook_id for call in calls}) == 1
    [deferred] = await story.until_recorded(told["ours"], "delivery.deferred")
    await story.until_recorded(told["ours"], "message.accepted")
    assert deferred["reason"] == f"HTTP {status} from the messenger"


async def test_pauses_grow_from_a_quarter_of_a_second_and_differ(story: Story, messenger: Answering) -> None:
    names = [chat() for _ in range(5)]
    for name in names:
        messenger.answers[name] = [refusing(503) for _ in range(4)]
        await story.manager(name)
    pauses = []
    for name in names:
        calls = await messenger.called(name, 5)
        pauses.append([later.at - call.at for call, later in pairwise(calls)])
    for each in pauses:
        assert all(pause < 0.25 * 2**n + SLACK_SECONDS for n, pause in enumerate(each))
    assert median(each[3] for each in pauses) > median(each[0] for each in pauses)
    assert len({round(each[3], 3) for each in pauses}) > 1


async def test_nothing_is_tried_before_the_time_that_was_asked_for(
    story: Story, messenger: Answering
) -> None:
    name = chat()
    messenger.answers[name] = [refusing(503, Retry_After="2")]
    await story.manager(name)
    first, second = await messenger.called(name, 2)
    assert second.at - first.at >= 2


async def test_a_429_holds_the_others_of_the_messenger_too(story: Story, messenger: Answering) -> None:
    name, other = chat(), chat()
    messenger.answers[name] = [refusing(429, Retry_After="1")]
    await story.manager(name)
    [refused] = await messenger.called(name, 1)
    await story.manager(other)
    [call] = await messenger.called(other, 1)
    assert call.at - refused.at >= 1


async def test_silence_and_a_broken_connection_are_tried_again(story: Story, messenger: Answering) -> None:
    name = chat()
    messenger.answers[name] = [12.0]
    told = await story.manager(name)
    calls = await messenger.called(name, 2)
    [deferred] = await story.until_recorded(told["ours"], "delivery.deferred")
    assert 10 <= calls[1].at - calls[0].at < 12
    assert deferred["reason"] == "no answer within 10 s"


async def test_a_reason_is_recorded_when_it_changes(story: Story, messenger: Answering) -> None:
    name = chat()
    messenger.answers[name] = [refusing(status) for status in (503, 503, 408, 408, 503)]
    told = await story.manager(name)
    await story.until_recorded(told["ours"], "message.accepted")
    deferred = await story.until_recorded(told["ours"], "delivery.deferred", 3)
    assert [one["reason"][:8] for one in deferred] == ["HTTP 503", "HTTP 408", "HTTP 503"]


# Refusal.


REFUSALS = [
    (422, None, 905, "HTTP 422 from the messenger"),
    (404, {"code": 904, "text": "not a user"}, 904, "not a user"),
    (400, {"code": 1, "text": "?"}, 905, "HTTP 400 from the messenger"),
    (410, {"code": 901, "text": "a\0b" + "x" * 10_000}, 901, "a"),
]


@pytest.mark.parametrize(("status", "body", "code", "text"), REFUSALS, ids=lambda value: str(value)[:20])
async def test_a_refusal_is_final_and_the_conversation_goes_on(
    story: Story, messenger: Answering, status: int, body: object, code: int, text: str
) -> None:
    name = chat()
    messenger.answers[name] = [refusing(status, body)]
    told = await story.manager(name)
    await story.manager(name, "next")
    await messenger.called(name, 2)
    [failed] = await story.until_recorded(told["ours"], "message.failed")
    assert (failed["code"], failed["text"][: len(text)]) == (code, text)
    assert messenger.texts(name) == ["Hi", "next"]
    await until(lambda: story.statuses(told["id"]) == [-1])


@pytest.mark.parametrize(
    "answer",
    [
        {"message_id": "x\0y"},
        {"message_id": "y" * 10_000, "conversation_id": 7},
        {"message_id": None},
        ["x"],
        "x",
    ],
    ids=str,
)
async def test_an_odd_answer_is_an_answer(story: Story, messenger: Answering, answer: object) -> None:
    name = chat()
    messenger.answers[name] = [web.json_response(answer)]
    told = await story.manager(name)
    await story.until_recorded(told["ours"], "message.accepted")
    assert (await story.shown(told["ours"]))["status"] == "accepted"


def _raw(body: bytes, status: int = 200, **headers: str) -> web.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return web.Response(body=body, status=status, headers={"Content-Type": "application/json"} | named)


def _packed(value: object) -> bytes:
    return json.dumps(value).encode()


def _deflated(value: object) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(_packed(value)) + packer.flush()


NAMED_ANSWERS = {
    "a number": (_raw(_packed({"message_id": 7001})), "7001"),
    "a number beyond 64 bits": (_raw(_packed({"message_id": 10**24})), str(10**24)),
    "a number with a fraction of zero": (_raw(b'{"message_id": 7002.0}'), "7002"),
    "a negative number": (_raw(_packed({"message_id": -7003})), "-7003"),
    "a byte order mark": (_raw(b"\xef\xbb\xbf" + _packed({"message_id": "bom"})), "bom"),
    "gzip": (_raw(gzip.compress(_packed({"message_id": "gz"})), Content_Encoding="GZIP"), "gz"),
    "gzip and a mark": (
        _raw(gzip.compress(b"\xef\xbb\xbf" + _packed({"message_id": 7004})), Content_Encoding="gzip"),
        "7004",
    ),
    "deflate": (_raw(zlib.compress(_packed({"message_id": "zl"})), Content_Encoding="deflate"), "zl"),
    "raw deflate": (_raw(_deflated({"message_id": "raw"}), Content_Encoding="deflate"), "raw"),
    "identity": (_raw(_packed({"message_id": "id"}), Content_Encoding="identity"), "id"),
    "gzip in name only": (_raw(_packed({"message_id": "no"}), Content_Encoding="gzip"), "no"),
    "201": (_raw(_packed({"message_id": "created"}), status=201), "created"),
}


@pytest.mark.parametrize("case", NAMED_ANSWERS)
async def test_a_name_is_read_however_it_is_written(story: Story, messenger: Answering, case: str) -> None:
    answer, expected = NAMED_ANSWERS[case]
    name = chat()
    messenger.answers[name] = [answer]
    told = await story.manager(name)
    await story.until_recorded(told["ours"], "message.accepted")
    assert (await story.shown(told["ours"]))["remote"]["messenger"] == expected
    read = {"type": "message.read", "conversation_id": name, "message_id": expected}
    assert (await story.tell(read))[0] == 200
    await until(lambda: story.statuses(told["id"]) == [2])


@pytest.mark.parametrize(
    "body",
    [b"{}", b"ok", b'{"message_id":""}', b'{"message_id":true}', b'{"message_id":1.5}', b"[7]"],
    ids=str,
)
async def test_an_answer_without_a_name_is_a_warning(
    story: Story, messenger: Answering, body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    before = REGISTRY.get_sample_value(UNNAMED, {"destination": "messenger"}) or 0.0
    name = chat()
    messenger.answers[name] = [_raw(body)]
    with caplog.at_level(logging.WARNING, "chatledger.deliver"):
        told = await story.manager(name)
        [accepted] = await story.until_recorded(told["ours"], "message.accepted")
    assert "gave no message_id" in accepted["warning"]
    [line] = [record.getMessage() for record in caplog.records if "unnamed" in record.getMessage()]
    assert told["ours"] in line
    assert REGISTRY.get_sample_value(UNNAMED, {"destination": "messenger"}) == before + 1


async def test_what_the_messenger_reports_as_failed_is_not_tried_again(
    story: Story, messenger: Answering
) -> None:
    name = chat()
    messenger.answers[name] = [refusing(503) for _ in range(50)]
    told = await story.manager(name)
    await messenger.called(name, 1)
    failed = {"type": "message.failed", "conversation_id": name, "id": told["ours"], "code": 904}
    assert (await story.tell(failed))[0] == 200
    await story.settled()
    tried = len(messenger.calls[name])
    await asyncio.sleep(2)
    assert len(messenger.calls[name]) <= tried + 1


# Order.


async def test_nothing_overtakes_what_is_tried_again(story: Story, messenger: Answering) -> None:
    name, words = chat(), [f"{n}" for n in range(20)]
    messenger.answers[name] = [refusing(503) for _ in range(3)]
    for word in words:
        await story.manager(name, word)
    await messenger.called(name, 23)
    assert messenger.texts(name) == ["0"] * 3 + words


async def test_other_conversations_do_not_wait_for_one_that_fails(story: Story, messenger: Answering) -> None:
    failing, others = [chat() for _ in range(20)], [chat() for _ in range(20)]
    for name in failing:
        messenger.answers[name] = [refusing(503) for _ in range(4)]
        await story.manager(name)
    delays = []
    for name in others:
        began = asyncio.get_running_loop().time()
        await story.manager(name)
        delays.append((await messenger.called(name, 1))[0].at - began)
    assert median(delays) < 0.25
    for name in failing:
        await messenger.called(name, 5)


async def test_a_lane_that_overflows_is_filled_again_in_its_order(story: Story, messenger: Answering) -> None:
    name, many = chat(), LANE_MAX + 60
    await story.customer(name)
    [message] = await story.arrived(name)
    chat_id = message.chat_id
    messenger.answers[name] = [refusing(503, Retry_After="2")]
    for word in range(many):
        content = {"type": "text", "text": f"{word}"}
        await story.order("POST", "/manager/messages", {"chat_id": chat_id, "message": content})
    await messenger.called(name, many + 1)
    assert messenger.texts(name)[1:] == [f"{word}" for word in range(many)]


# Gates.


async def test_what_was_on_its_way_does_not_open_a_gate() -> None:
    gate, passed = Gate(LoopClock()), asyncio.Event()
    async with gate.passing() as probe:
        gate.pause(0.2)
        waiting = asyncio.create_task(_pass(gate, passed))
        assert not probe
    await asyncio.sleep(0.05)
    assert not passed.is_set()
    await waiting


async def test_a_gate_lets_one_probe_pass_and_the_others_after_it() -> None:
    gate, passed = Gate(LoopClock()), asyncio.Event()
    gate.pause(0)
    async with gate.passing() as probe:
        assert probe
        waiting = asyncio.create_task(_pass(gate, passed))
        await asyncio.sleep(0.05)
        assert not passed.is_set()
        gate.open()
    await waiting


async def test_a_probe_that_is_cut_off_leaves_its_place_to_the_next() -> None:
    gate, passed = Gate(LoopClock()), asyncio.Event()
    gate.pause(0)
    first = asyncio.create_task(_pass(gate, passed, 60))
    await passed.wait()
    first.cancel()
    await asyncio.wait([first])
    async with asyncio.timeout(1), gate.passing() as probe:
        assert probe


async def _pass(gate: Gate, passed: asyncio.Event, seconds: float = 0) -> None:
    async with gate.passing():
        passed.set()
        await asyncio.sleep(seconds)


WAITS: list[tuple[Any, float]] = [
    (None, 0),
    ("", 0),
    ("7", 7),
    (" 7 ", 7),
    ("99999999999999", 3600),
    ("²", 0),
    ("-1", 0),
    ("soon", 0),
    ("Mon, 01 Jan 2001 00:00:00 GMT", 0),
    ("Mon, 01 Jan 99999999999999999999 00:00:00 GMT", 0),
    ("Fri, 31 Dec 9999 23:59:59 GMT", 3600),
]


@pytest.mark.parametrize(("header", "seconds"), WAITS)
def test_whatever_stands_in_retry_after_is_read(header: str | None, seconds: float) -> None:
    assert retry_after(header) == seconds
