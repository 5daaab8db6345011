"""A client that dribbles, floods or talks nonsense costs nobody else anything: each ends at its limit."""

import asyncio
import contextlib
import itertools
import json
import logging
import resource
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest

from app.bad_requests import BadRequests
from app.metrics import BAD_REQUESTS
from app.service import application, connections
from app.service.connections import limits_for
from app.service.web import Server
from tests.support.ids import ADMIN_KEY, MESSENGER_SECRET, SCOPE_ID
from tests.support.raw_http import Raw, listening, raw
from tests.support.service import Served, sent, signed

KB = 1024
QUICK = {"head_seconds": 0.4, "body_seconds": 0.6, "idle_seconds": 1.2, "unread_seconds": 1.0}
GET = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /messengers/acme HTTP/1.1\r\nHost: x\r\n"
KEY = f"Authorization: Bearer {ADMIN_KEY}\r\n".encode()


@pytest.fixture(scope="module")
async def server(service: Served) -> AsyncIterator[tuple[int, Server]]:
    """The service once more, with short limits and few connections."""
    async with listening(
        application.application(service.run.services), **QUICK, connections=20, pipelined=10
    ) as found:
        yield found


@pytest.fixture
def port(server: tuple[int, Server]) -> int:
    return server[0]


def counted(kind: str) -> float:
    """How many bad requests of a kind have been counted."""
    return BAD_REQUESTS.labels(kind)._value.get()  # type: ignore[no-any-return]


async def dribble(connection: Raw, begin: bytes, *, forever: bytes = b"x", seconds: float = 3.0) -> None:
    """Send a byte now and then, until the other side closes."""
    with contextlib.suppress(ConnectionError):
        await connection.send(begin)
        for _ in range(int(seconds / 0.05)):
            await connection.send(forever, pause=0.05)


HEADS = {
    "an address": b"POST /",
    "no line end": b"POST /kommo/x HTTP/1.1\r\nX-A: ",
    "headers": b"POST /kommo/x HTTP/1.1\r\nX-A: b\r\nX-B",
    "after an answer": GET + b"GET /",
}


@pytest.mark.parametrize("name", HEADS)
async def test_a_head_that_is_never_complete_is_ended(port: int, name: str) -> None:
    before = counted("head_timeout")
    async with raw(port) as connection:
        sending = asyncio.create_task(dribble(connection, HEADS[name]))
        got = await connection.rest()
        await sending
    assert 0.3 < got.seconds < 1.2
    assert got.statuses[-1] == 408
    assert "application/problem+json" in got.text
    assert counted("head_timeout") == before + 1


@pytest.mark.parametrize("line_ends", [b"", b"\r\n"])
async def test_a_connection_that_says_nothing_is_closed(port: int, line_ends: bytes) -> None:
    async with raw(port) as connection:
        sending = asyncio.create_task(dribble(connection, b"", forever=line_ends, seconds=1))
        got = await connection.rest()
        await sending
    assert got.text == ""
    assert got.seconds < 1.2


BODIES = {
    "length": POST + b"Content-Length: 1000\r\n\r\n{",
    "chunked": POST + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{    \r\n",
    "a hook": f"POST /kommo/{SCOPE_ID} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{{".encode(),
    "a route": b"POST /v1/channels HTTP/1.1\r\n" + KEY + b"Content-Length: 1000\r\n\r\n{",
    "a form": b"POST /login HTTP/1.1\r\nContent-Length: 1000\r\n\r\n{",
    "an import": b"POST /v1/import?channel=acme HTTP/1.1\r\n" + KEY + b"Content-Length: 100000\r\n\r\n{",
}


@pytest.mark.parametrize("name", BODIES)
async def test_a_body_that_is_never_complete_is_ended(port: int, name: str) -> None:
    before = counted("body_timeout")
    async with raw(port) as connection:
        more = b"1\r\nx\r\n" if name == "chunked" else b" "
        sending = asyncio.create_task(dribble(connection, BODIES[name], forever=more))
        got = await connection.rest()
        await sending
    assert 0.5 < got.seconds < 1.5
    assert got.statuses in ([408], [200], [403])  # An import has begun its answer; it is cut.
    assert counted("body_timeout") == before + 1


async def test_a_body_that_is_refused_unread_does_not_go_on_for_ever(port: int) -> None:
    async with raw(port) as connection:
        begin = b"POST /v1/channels HTTP/1.1\r\nContent-Length: 100000\r\n\r\n{"
        sending = asyncio.create_task(dribble(connection, begin))
        got = await connection.rest()
        await sending
    assert got.statuses == [401]
    assert got.seconds < 1.5


async def test_a_long_import_is_not_ended_while_it_comes_in(service: Served, port: int) -> None:
    lines = [
        json.dumps(sent(number, message={"type": "text", "text": "x" * 20_000}, direction="in")).encode()
        + b"\n"
        for number in range(60)
    ]
    begin = b"POST /v1/import?channel=acme HTTP/1.1\r\nHost: x\r\n" + KEY
    async with raw(port) as connection:
        await connection.send(begin + b"Content-Length: %d\r\n\r\n" % sum(map(len, lines)))
        await connection.send(*lines, pause=0.03)  # 1.8 seconds, three times the limit.
        got = await connection.rest(20)
    assert got.statuses == [200]
    assert '"report"' in got.text
    assert '"problems":[]' in got.text


async def test_an_idle_connection_is_closed_and_one_in_use_is_not(port: int) -> None:
    async with raw(port) as connection:
        for _ in range(4):
            await connection.send(GET, pause=0.4)
            assert (await connection.answer()).statuses == [200]
        assert not await connection.closed(0.5)
        assert await connection.closed(2)


HUGE_HEADS = {
    "one header": [b"X-A: " + b"a" * 100 * KB + b"\r\n"],
    "one header without end": [b"X-A: ", *[b"a" * KB] * 100],
    "many headers": [b"X-%d: b\r\n" % number for number in range(10_000)],
    "many headers in one piece": [b"".join(b"X-%d: b\r\n" % number for number in range(10_000))],
    "a name": [b"x" * 100 * KB + b": b\r\n"],
}


@pytest.mark.parametrize("name", HUGE_HEADS)
async def test_headers_over_64_kb_are_refused(port: int, name: str) -> None:
    before = counted("head_too_large")
    async with raw(port) as connection:
        with contextlib.suppress(ConnectionError):
            await connection.send(b"GET /healthz HTTP/1.1\r\n", *HUGE_HEADS[name], b"\r\n")
        got = await connection.rest()
    assert got.statuses in ([431], [])  # What we had not read resets the connection, maybe with our answer.
    assert counted("head_too_large") == before + 1


async def test_a_long_address_is_refused(port: int) -> None:
    async with raw(port) as connection:
        await connection.send(b"GET /" + b"a" * 100 * KB + b" HTTP/1.1\r\n\r\n")
        assert (await connection.rest()).statuses == [431]


async def test_headers_of_60_kb_pass(port: int) -> None:
    async with raw(port) as connection:
        await connection.send(b"GET /healthz HTTP/1.1\r\n" + b"X-A: b\r\n" * 6000 + b"\r\n")
        assert (await connection.answer()).statuses == [200]
        await connection.send(b"GET /healthz HTTP/1.1\r\nX-A: ", *[b"a" * KB] * 60, b"\r\n\r\n")
        assert (await connection.answer()).statuses == [200]


async def test_headers_after_a_body_are_bounded_and_count_for_nothing(service: Served, port: int) -> None:
    body = json.dumps(sent("trailers")).encode()
    chunk = b"%x\r\n%b\r\n0\r\n" % (len(body), body)
    head = POST + b"Transfer-Encoding: chunked\r\n"
    proof = b"".join(
        b"%b: %b\r\n" % (n.encode(), v.encode()) for n, v in signed(body, MESSENGER_SECRET).items()
    )
    async with raw(port) as connection:
        await connection.send(head + b"\r\n" + chunk + proof + b"\r\n")
        assert (await connection.answer()).statuses == [401]
        await connection.send(head + proof + b"\r\n" + chunk + b"X-A: b\r\n\r\n")
        assert (await connection.answer()).statuses == [200]
        with contextlib.suppress(ConnectionError):
            await connection.send(head + b"\r\n" + chunk, *[b"X-A: " + b"a" * KB + b"\r\n"] * 200, b"\r\n")
        assert await connection.closed()


MALFORMED = {
    "no HTTP": b"hello\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "no version": b"GET /healthz\r\n\r\n",
    "another version": b"GET /healthz HTTP/2.0\r\n\r\n",
    "an unknown version": b"GET /healthz HTTP/9.1\r\n\r\n",
    "an unknown method": b"HACK /healthz HTTP/1.1\r\n\r\n",
    "two lengths": POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}x",
    "a length and chunks": POST + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and a length": POST + b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n0\r\n\r\n",
    "chunks that are not last": POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "a negative length": POST + b"Content-Length: -1\r\n\r\n",
    "a length of words": POST + b"Content-Length: two\r\n\r\n",
    "a list of lengths": POST + b"Content-Length: 2, 2\r\n\r\n{}",
    "a huge length": POST + b"Content-Length: 99999999999999999999999\r\n\r\n",
    "a space before the colon": POST + b"Content-Length : 2\r\n\r\n{}",
    "a folded header": POST + b"X-A: b\r\n  c\r\n\r\n",
    "a NUL in a header": POST + b"X-A: b\x00c\r\n\r\n",
    "a header without a name": POST + b": b\r\n\r\n",
    "a bare carriage return": POST + b"X-A: b\rX-B: c\r\n\r\n",
    "a size that is no number": POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    "a huge size": POST + b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffffff\r\n",
    "a chunk with more than it says": POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n0\r\n\r\n",
    "no address": b"GET  HTTP/1.1\r\n\r\n",
    "an address of another kind": b"CONNECT example.com:443 HTTP/1.1\r\n\r\n",
    "an address beyond ASCII": b"GET /\xff\xfe HTTP/1.1\r\n\r\n",
}


@pytest.mark.parametrize("name", MALFORMED)
async def test_a_malformed_request_is_refused_and_ends_the_connection(
    port: int, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with raw(port) as connection:
        await connection.send(MALFORMED[name])
        got = await connection.rest()
    assert got.statuses in ([400], [404], [405])
    assert "Traceback" not in caplog.text
    assert not [record for record in caplog.records if record.exc_info]


@pytest.mark.parametrize("method", [b"POST", b"OPTIONS", b"GET", b"HEAD", b"DELETE"])
async def test_an_asterisk_is_an_answer_and_no_traceback(
    port: int, method: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with raw(port) as connection:
        await connection.send(method + b" * HTTP/1.1\r\nConnection: close\r\n\r\n")
        got = await connection.rest()
    assert got.statuses[0] in (400, 404, 405)
    assert not [record for record in caplog.records if record.exc_info]


async def test_a_bad_request_is_answered_after_those_before_it(port: int) -> None:
    async with raw(port) as connection:
        await connection.send(GET * 3 + b"hello\r\n\r\n" + GET)
        got = await connection.rest()
    assert got.statuses == [200, 200, 200]


async def test_a_bad_request_does_not_break_into_an_answer(service: Served, port: int) -> None:
    follow = b"GET /v1/events HTTP/1.1\r\nAccept: text/event-stream\r\n" + KEY + b"\r\n"
    async with raw(port) as connection:
        await connection.send(follow + b"hello\r\n\r\n")
        with contextlib.suppress(TimeoutError):
            await connection.rest(1.5)
            raise AssertionError("the stream was ended")


@pytest.mark.parametrize("end", ["the client leaves", "too many ahead"])
async def test_a_stream_ends_with_its_connection_also_if_requests_came_ahead(
    service: Served, server: tuple[int, Server], end: str, caplog: pytest.LogCaptureFixture
) -> None:
    follow = b"GET /v1/events HTTP/1.1\r\nAccept: text/event-stream\r\n" + KEY + b"\r\n"
    port, running = server
    tasks = running.server_state.tasks
    async with raw(port) as connection:
        await connection.send(follow, pause=0.3)
        assert len(tasks) == 1
        with contextlib.suppress(ConnectionError):
            await connection.send(GET * (2 if end == "the client leaves" else 10_000))
    async with asyncio.timeout(5):
        for number in itertools.count():  # What is written shows that nobody is there.
            if not tasks:
                break
            assert (await service.act(sent(f"{end} {number}"))).status == 200
            await asyncio.sleep(0.1)
    assert not [record for record in caplog.records if record.exc_info]


async def test_a_refused_body_is_not_read_to_its_end(port: int) -> None:
    begin = b"POST /v1/channels HTTP/1.1\r\nContent-Length: 999999999999\r\n\r\n"
    async with raw(port) as connection:
        with contextlib.suppress(ConnectionError):
            await connection.send(begin, *[b"x" * 64 * KB] * 200)
            raise AssertionError("it was read to its end")
        assert await connection.closed(0.3)


@pytest.mark.parametrize("path", [b"/login", b"/v1/channels", b"/messengers/acme", b"/crm/a/b"])
async def test_a_client_that_hangs_up_is_no_error_of_ours(
    port: int, path: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    form = b"Content-Type: multipart/form-data; boundary=x\r\n" if path == b"/login" else b""
    async with raw(port) as connection:
        head = b"POST " + path + b" HTTP/1.1\r\n" + KEY + form
        await connection.send(head + b"Content-Length: 99\r\n\r\n--x\r\n", pause=0.1)
    await asyncio.sleep(0.2)
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_requests_may_come_ahead_but_not_without_end(port: int) -> None:
    async with raw(port) as connection:
        await connection.send(GET * 10)
        for _ in range(10):
            assert (await connection.answer()).statuses == [200]
        before = counted("pipelined")
        with contextlib.suppress(ConnectionError):
            await connection.send(GET * 10_000)
        assert await connection.closed()
    assert counted("pipelined") == before + 1


async def test_an_upgrade_is_answered_as_a_plain_request(port: int, caplog: pytest.LogCaptureFixture) -> None:
    upgrade = (
        b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n"
    )
    for request in (
        b"GET /healthz HTTP/1.1\r\n" + upgrade + b"\r\n",
        b"GET /healthz HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    ):
        async with raw(port) as connection:
            await connection.send(request)
            assert (await connection.answer()).statuses == [200]
    body = json.dumps(sent("upgrade")).encode()
    proof = b"".join(b"%b: %b\r\n" % (n.encode(), v.encode()) for n, v in signed(body).items())
    length = b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    chunks = b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    async with raw(port) as connection:
        for framed in (length, chunks):
            for pause in (0.0, 0.1):
                head, data = (POST + upgrade + proof + framed).split(b"\r\n\r\n", 1)
                await connection.send(head + b"\r\n\r\n", pause=pause)
                await connection.send(data)
                assert (await connection.answer()).statuses == [200]
                await connection.send(GET)
                assert (await connection.answer()).statuses == [200]
    assert not [record for record in caplog.records if record.exc_info]


async def test_http_1_0_is_answered_and_closed(port: int) -> None:
    async with raw(port) as connection:
        await connection.send(b"GET /healthz HTTP/1.0\r\n\r\n")
        got = await connection.rest()
    assert got.statuses == [200]
    assert "connection: close" in got.text.lower()


async def test_a_client_that_does_not_read_is_ended(service: Served, port: int) -> None:
    ask = b"GET /schema HTTP/1.1\r\n\r\n"
    async with raw(port) as connection:
        before = counted("unread")
        for _ in range(200):
            await connection.send(ask, pause=0.005)
            if counted("unread") > before:
                break
        await asyncio.sleep(2.0)
        assert counted("unread") == before + 1


async def test_those_that_wait_make_room_for_a_new_connection(server: tuple[int, Server]) -> None:
    port, running = server
    before = counted("evicted")
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(40):
            await stack.enter_async_context(raw(port))
        for _ in range(5):
            async with raw(port) as connection:
                await connection.send(GET)
                assert (await connection.answer()).statuses == [200]
        assert len(running.server_state.connections) <= 20
    assert counted("evicted") > before


async def test_a_new_connection_is_refused_while_all_are_answered(server: tuple[int, Server]) -> None:
    port, _ = server
    follow = b"GET /v1/events HTTP/1.1\r\nAccept: text/event-stream\r\n" + KEY + b"\r\n"
    before = counted("no_room")
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(20):
            await (await stack.enter_async_context(raw(port))).send(follow, pause=0.01)
        async with raw(port) as connection:
            got = await connection.rest()
        assert got.statuses == [503]
        assert "Retry-After: 1" in got.text
    assert counted("no_room") == before + 1
    await asyncio.sleep(0.2)
    async with raw(port) as connection:
        await connection.send(GET)
        assert (await connection.answer()).statuses == [200]


async def test_a_flood_of_bad_requests_writes_a_line_a_second(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    bad = BadRequests(lambda: now)
    with caplog.at_level(logging.WARNING, "chatledger.web"):
        for _ in range(1000):
            bad.count("malformed", "192.0.2.1", "nonsense")
            bad.count("unread", "192.0.2.1", "slow")
        assert len(caplog.records) == 2
        now = 1.0
        bad.flush()
    assert len(caplog.records) == 4
    assert "and 998 more" in caplog.records[-1].getMessage()


def test_the_limit_of_open_files_is_raised_and_connections_leave_some_for_ourselves() -> None:
    code = (
        "import resource; from app.service.connections import raise_descriptor_limit as up;"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 4096)); print(up());"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["4096", "4096"]
    for descriptors in (64, 300, 1024, 4096, 65_536):
        limits = limits_for(descriptors)
        taken = limits.connections + connections.backlog(descriptors)
        assert taken <= descriptors - min(256, descriptors // 2)
        assert limits.connections >= min(10_000, descriptors // 4)
    assert limits_for(65_536).connections == 10_000
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= 64


def test_the_limits_are_those_of_the_documents() -> None:
    found: Any = limits_for(65_536)
    assert (found.head_seconds, found.body_seconds, found.head_bytes) == (10, 20, 64 * KB)
