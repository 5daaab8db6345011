"""What no webhook takes, and what is kept or mended of Kommo's hooks, which are sent only once."""

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Callable

import psycopg
import pytest
import pytest_asyncio
from multidict import CIMultiDict
from yarl import URL

from app.kommo.chats.hooks import CONTENT_BYTES_MAX
from tests.support.ids import ACCOUNT, OTHER_ACCOUNT, SCOPE_ID
from tests.support.service import Served, refused, sent, signature, wrote

KB = 1024
DEEP = b"[" * 100_000 + b"]" * 100_000
LONG = "x" * 10_000


@pytest_asyncio.fixture(scope="module", autouse=True)
async def recorded(service: Served) -> None:
    """A message of each side is recorded."""
    assert (await service.act(sent("known"))).status == 200
    assert (await service.hook(wrote("known"))).status == 200


@pytest.fixture(params=["front", "routes"])
def url(service: Served, request: pytest.FixtureRequest) -> str:
    """Both ways in: what stands in front, and the same function as a route."""
    return service.url if request.param == "front" else service.inner


# Sizes, encodings, methods and paths, of both webhooks.


async def pieces(count: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield b"x" * 10 * KB


@pytest.mark.parametrize("path", [f"/kommo/{SCOPE_ID}", "/messengers/acme"])
async def test_a_body_of_300_kb_is_too_large(service: Served, url: str, path: str) -> None:
    head = await service.head()
    await refused(service, await service.request("POST", path, url=url, data=b"x" * 300 * KB), 413, head)


@pytest.mark.parametrize("path", [f"/kommo/{SCOPE_ID}", "/messengers/acme"])
async def test_so_it_is_in_chunks_of_unknown_number(service: Served, url: str, path: str) -> None:
    head = await service.head()
    await refused(service, await service.request("POST", path, url=url, data=pieces(30)), 413, head)


async def test_a_body_of_256_kb_is_read(service: Served, url: str) -> None:
    body = json.dumps(sent("known")).encode()
    body = body + b" " * (256 * KB - len(body))
    assert (await service.act(body, url=url)).status == 200


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate", "zstd"])
async def test_a_compressed_body_is_refused(service: Served, url: str, encoding: str) -> None:
    head = await service.head()
    headers = {"Content-Encoding": encoding}
    await refused(service, await service.act(sent("zip"), url=url, headers=headers), 415, head)
    await refused(service, await service.hook(wrote("zip"), url=url, headers=headers), 415, head)


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize("path", [f"/kommo/{SCOPE_ID}", "/messengers/acme"])
async def test_other_methods_are_not_allowed(service: Served, url: str, method: str, path: str) -> None:
    await refused(service, await service.request(method, path, url=url), 405, await service.head())


@pytest.mark.parametrize(
    "path",
    [
        *("/kommo", "/kommo/", f"/kommo/{SCOPE_ID}/more", f"/kommo/a%2F{SCOPE_ID}", "/kommo/../v2"),
        *("/kommo/%F0%9F%98%80", "/kommo/%00", "/kommo/%FF", "/messengers/", "/messengers/a%2Fb", "/"),
    ],
)
async def test_other_paths_lead_nowhere(service: Served, url: str, path: str) -> None:
    head = await service.head()
    where = URL(url + path, encoded=True)
    async with service.client.post(where, data=b"{}") as found:
        assert found.status in (404, 405)
        assert found.content_type == "application/problem+json"
    assert await service.head() == head


# Kommo's hooks.


BAD_KOMMO_SIGNATURES = {
    "none": None,
    "nothing": "",
    "wrong": "0" * 40,
    "garbage": "not hex, and beyond ASCII: ÿ",
    "too long": "a" * 4000,
}


@pytest.mark.parametrize("name", BAD_KOMMO_SIGNATURES)
async def test_a_hook_that_is_not_signed_well_is_refused(service: Served, url: str, name: str) -> None:
    head = await service.head()
    answer = await service.hook(wrote("forged"), url=url, signature=BAD_KOMMO_SIGNATURES[name])
    await refused(service, answer, 403, head)


async def test_a_hook_for_an_unknown_scope_is_not_found(service: Served, url: str) -> None:
    head = await service.head()
    for scope in ("nobody", SCOPE_ID.upper(), f"{SCOPE_ID}x", "_"):
        await refused(service, await service.hook(wrote("lost"), scope=scope, url=url), 404, head)


NEVER_READABLE: dict[str, bytes] = {
    "not JSON": b"{",
    "nothing": b"",
    "an array": b"[]",
    "neither message nor action": b'{"account_id":"a","time":1}',
    "an old hook": b'{"receiver":"u-1","conversation_id":"c","type":"text","text":"Hi"}',
    "NaN": b'{"message":{"conversation":{"id":"c"},"message":{"id":"n","type":"location",'
    b'"location":{"lon":NaN,"lat":0}}}}',
    "an object in a text": json.dumps(wrote("bad", message={"text": {"a": 1}})).encode(),
    "no message id": json.dumps(wrote("bad", message={"id": None})).encode(),
    "an empty message id": json.dumps(wrote("bad", message={"id": ""})).encode(),
    "a long message id": json.dumps(wrote("bad", message={"id": LONG})).encode(),
    "a long conversation id": json.dumps(wrote("bad", conversation={"client_id": LONG})).encode(),
    "no conversation id": json.dumps(wrote("bad", conversation={"id": "", "client_id": ""})).encode(),
    "a reaction of an unknown kind": json.dumps(
        {"action": {"reaction": {"type": "love", "message": {"id": "k"}, "conversation": {"id": "c"}}}}
    ).encode(),
    "a reaction to nothing": json.dumps(
        {"action": {"reaction": {"type": "react", "conversation": {"id": "c"}}}}
    ).encode(),
}


@pytest.mark.parametrize("name", NEVER_READABLE)
async def test_a_signed_hook_that_cannot_be_read_is_kept_whole(service: Served, url: str, name: str) -> None:
    head, body = await service.head(), NEVER_READABLE[name]
    problem = await refused(service, await service.hook(body, url=url), 400, head)
    kept = (await service.get("/v1/refused", limit=1))["items"][0]
    assert base64.b64decode(kept["body"]) == body
    assert kept["scope_id"] == SCOPE_ID
    assert kept["id"] in problem["detail"]
    assert len(problem["detail"]) < 1000


def spoilt(old: bytes, new: bytes, **message: object) -> Callable[[str], bytes]:
    """A hook of the manager's by its number, with some of its bytes replaced."""
    return lambda number: json.dumps(wrote(number, message=message)).encode().replace(old, new)


UNDERSTOOD: dict[str, Callable[[str], bytes]] = {
    "not UTF-8": spoilt(b'"Hi ', b'"\xff\xfe'),
    "raw control characters": spoilt(b'"Hi ', b'"\n\t'),
    "a byte order mark": spoilt(b'{"account_id', b'\xef\xbb\xbf{"account_id'),
    "a number in a text": spoilt(b"@@", b"@@", text=7),
    "an unknown type": spoilt(b"@@", b"@@", type="hologram"),
    "a long type": spoilt(b"@@", b"@@", type=LONG),
    "deep nesting": spoilt(b'"@@"', DEEP, markup="@@"),
    "nesting that others could not read": spoilt(b'"@@"', b'{"a":' * 65 + b"1" + b"}" * 65, markup="@@"),
}


@pytest.mark.parametrize("name", UNDERSTOOD)
async def test_a_signed_hook_that_can_be_understood_is_recorded(service: Served, url: str, name: str) -> None:
    head = await service.head()
    assert (await service.hook(UNDERSTOOD[name](f"{name} {url}"), url=url)).status == 200
    [event] = await service.since(head)
    assert event["type"] == "message.sent"
    assert event["own_id"] == f"k-{name} {url}"


NEEDLESS = [
    *("media", "thumbnail", "file_size", "sticker_id", "tag", "location", "contact", "shared_post", "post"),
    *("markup", "template", "reply_to", "forwards"),
]
ODD: list[object] = [None, [], {}, "", 0, False, True, 7, 1.5, "x", [1], {"a": 1}, "1e400"]


async def test_whatever_stands_in_a_field_that_a_text_does_not_need_the_text_is_recorded(
    service: Served,
) -> None:
    head = await service.head()
    texts = []
    for name in NEEDLESS:
        for number, value in enumerate(ODD):
            hook = wrote(f"{name}-{number}", message={name: value})
            hook["message"] |= {("sender", "receiver", "source")[number % 3]: value} | {"timestamp": value}
            assert (await service.hook(hook | {"time": value})).status == 200, (name, value)
            texts.append(f"Hi {name}-{number}")
    assert [event["content"]["text"] for event in await service.since(head)] == texts


@pytest.mark.parametrize("encoding", ["Identity", "identity", "", " IDENTITY "])
async def test_a_body_that_is_called_identity_is_not_compressed(
    service: Served, url: str, encoding: str
) -> None:
    hook = wrote(f"encoding {encoding} {url}")
    assert (await service.hook(hook, url=url, headers={"Content-Encoding": encoding})).status == 200


async def test_two_signatures_are_a_bad_request(service: Served, url: str) -> None:
    head, body = await service.head(), json.dumps(wrote("twice signed")).encode()
    for two in ((signature(body), "0" * 40), ("0" * 40, signature(body))):
        headers = CIMultiDict([("X-Signature", one) for one in two])
        answer = await service.request("POST", f"/kommo/{SCOPE_ID}", url=url, data=body, headers=headers)
        assert "x-signature" in (await refused(service, answer, 400, head))["detail"]


async def test_a_hook_of_another_account_is_forbidden_and_kept(service: Served, url: str) -> None:
    head, hook = await service.head(), wrote("replayed") | {"account_id": OTHER_ACCOUNT}
    problem = await refused(service, await service.hook(hook, url=url), 403, head)
    kept = (await service.get("/v1/refused", limit=1))["items"][0]
    assert kept["id"] in problem["detail"]
    assert json.loads(base64.b64decode(kept["body"])) == hook


async def test_an_old_hook_is_taken_and_kept_and_not_recorded(service: Served, url: str) -> None:
    head, now = await service.head(), int(time.time())
    young, old = ({"time": now - hours * 3600 - 60} for hours in (23, 24))
    assert (await service.hook(wrote(f"young {url}") | young, url=url)).status == 200
    assert [event["own_id"] for event in await service.since(head)] == [f"k-young {url}"]
    assert (await service.hook(wrote(f"old {url}") | old, url=url)).status == 200
    kept = (await service.get("/v1/refused", limit=1))["items"][0]
    assert "24.0 hours old" in kept["reason"]
    assert len(await service.since(head)) == 1


MENDED: dict[str, tuple[bytes, str]] = {
    "NUL": (b'"a\\u0000b"', "a�b"),
    "a lone surrogate": (b'"a\\ud800b"', "a�b"),
    "a lone low surrogate": (b'"a\\uDC00b"', "a�b"),
    "a pair": (b'"a\\ud83d\\ude00b"', "a😀b"),
    "something that only looks so": (b'"a\\\\u0000b"', "a\\u0000b"),
}


@pytest.mark.parametrize("name", MENDED)
async def test_a_character_of_a_hook_that_cannot_be_stored_is_replaced(
    service: Served, url: str, name: str
) -> None:
    raw, text = MENDED[name]
    head = await service.head()
    hook = json.dumps(wrote(f"{name} {url}", message={"text": "@@"})).encode().replace(b'"@@"', raw)
    assert (await service.hook(hook, url=url)).status == 200
    assert (await service.since(head))[-1]["content"]["text"] == text


@pytest.mark.parametrize("ms", [0, -1, 1, 10**18, 10**40, 253_402_300_800_000])
async def test_a_time_of_a_hook_out_of_range_becomes_the_arrival(service: Served, url: str, ms: int) -> None:
    head = await service.head()
    hook = wrote(f"{ms} {url}", msec_timestamp=ms, timestamp=ms)
    assert (await service.hook(hook, url=url)).status == 200
    event = (await service.since(head))[-1]
    assert event["at"] == event["recorded_at"]
    assert abs(event["msec"] - time.time() * 1000) < 10_000


async def test_forwards_that_are_too_long_are_cut_and_marked(service: Served, url: str) -> None:
    assert (
        CONTENT_BYTES_MAX > 256 * KB
    )  # So a hook that is not too large to be taken never needs the scissors.
    forwards = {"messages": [{"id": "x", "type": "text", "text": "x" * 200 * KB}]}
    head = await service.head()
    assert (
        await service.hook(wrote(f"forwards {url}", message={"forwards": forwards}), url=url)
    ).status == 200
    assert (await service.since(head))[-1]["content"]["forwards"] == forwards


async def test_a_fault_of_ours_is_told_as_a_problem_too(service: Served, url: str) -> None:
    where = str(service.run.services.settings.database_url)
    async with await psycopg.AsyncConnection.connect(where, autocommit=True) as owner:
        await owner.execute("ALTER TABLE ledger.refused RENAME TO mislaid")
        answer = await service.hook(b"{", url=url)
        await owner.execute("ALTER TABLE ledger.mislaid RENAME TO refused")
    await refused(service, answer, 500, await service.head())


async def test_a_client_that_goes_away_before_its_body_is_complete_changes_nothing(
    service: Served, url: str
) -> None:
    head, body = await service.head(), json.dumps(wrote(f"half {url}")).encode()
    _, writer = await asyncio.open_connection("127.0.0.1", URL(url).port)
    lines = [f"POST /kommo/{SCOPE_ID} HTTP/1.1", "Host: localhost", f"X-Signature: {signature(body)}"]
    writer.write("\r\n".join([*lines, f"Content-Length: {len(body) + 9}", "", ""]).encode() + body)
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    await asyncio.sleep(0.1)
    assert await service.head() == head


async def test_nothing_in_the_database_is_unreadable_after_all_that(service: Served) -> None:
    status = await service.get("/v1/status", at_least=await service.head())
    assert all(view["lag"] == 0 for view in status["views"])
    assert (await service.ask("GET", "/readyz")).status == 200
    assert {item["account_id"] for item in (await service.get("/v1/conversations"))["items"]} == {ACCOUNT}
