"""What breaks the contract is refused with its status and what to do, and the ledger stays as it was."""

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest
import pytest_asyncio
from served import (
    ACCOUNT,
    OTHER_ACCOUNT,
    SCOPE,
    Answer,
    Served,
    about,
    sent,
    serving,
    signature,
    signed,
    wrote,
)
from yarl import URL

from app.hooks import CONTENT_BYTES_MAX
from app.servers import Servers

KB = 1024
DEEP = b"[" * 100_000 + b"]" * 100_000
Raw = dict[str, bytes]


@pytest_asyncio.fixture(scope="module")
async def service(servers: Servers) -> AsyncIterator[Served]:
    async with serving(servers) as one:
        assert (await one.register()).status == 201
        assert (await one.connect()).status == 201
        assert (await one.act(sent("known"))).status == 200
        assert (await one.hook(wrote("known"))).status == 200
        yield one


@pytest.fixture(params=["front", "routes"])
def url(service: Served, request: pytest.FixtureRequest) -> str:
    """Both ways in: what stands in front, and the same function as a route."""
    return service.url if request.param == "front" else service.inner


async def refused(service: Served, answer: Answer, status: int, head: int) -> dict[str, Any]:
    """The problem of an answer that changed nothing."""
    assert answer.status == status, answer
    assert answer.headers["Content-Type"] == "application/problem+json"
    problem: dict[str, Any] = answer.body
    assert (problem["status"], problem["type"]) == (status, "about:blank")
    assert problem["title"]
    assert len(problem["detail"]) > 10
    assert await service.head() == head
    return problem


def spoiled(field: str, value: object, action: dict[str, Any] | None = None) -> bytes:
    """An action with another value, given as JSON text if it is bytes, at a dotted place."""
    told = json.loads(json.dumps(action or sent("bad")))
    inner = told
    *path, last = field.split(".")
    for name in path:
        inner = inner.setdefault(name, {})
    inner[last] = "@@" if isinstance(value, bytes) else value
    raw = json.dumps(told).encode()
    return raw.replace(b'"@@"', value) if isinstance(value, bytes) else raw


def lacking(field: str) -> bytes:
    told = sent("bad")
    return json.dumps({name: value for name, value in told.items() if name != field}).encode()


LONG = "x" * 10_000
BAD_ACTIONS: dict[str, tuple[bytes, str]] = {
    "not JSON": (b"{", "$"),
    "nothing": (b"", "$"),
    "a number": (b"7", "$"),
    "null": (b"null", "$"),
    "JSON and more": (json.dumps(sent("bad")).encode() + b" {}", "$"),
    "a lone surrogate": (spoiled("message.text", b'"\\ud800"'), "$"),
    "a lone surrogate as an id": (spoiled("message_id", b'"\\udc00"'), "$"),
    "NUL in a text": (spoiled("message.text", b'"a\\u0000b"'), "$.message.text"),
    "NUL in a name": (spoiled("sender.name", b'"a\\u0000b"'), "$.sender.name"),
    "NUL in an id": (spoiled("message_id", b'"a\\u0000b"'), "$.message_id"),
    "a bare NUL": (spoiled("message.text", b'"a\x00b"'), "$"),
    "NaN": (spoiled("message.file_size", b"NaN"), "$"),
    "infinity": (spoiled("message.location", b'{"lon":1e400,"lat":0}'), "$"),
    "a number in a text": (spoiled("message.text", 7), "$.message.text"),
    "a text in a number": (spoiled("message.file_size", "7"), "$.message.file_size"),
    "an object in a text": (spoiled("conversation_id", {}), "$.conversation_id"),
    "an array in an object": (spoiled("sender", []), "$.sender"),
    "a huge number": (spoiled("message.file_size", b"9" * 30), "$.message.file_size"),
    "a number of 5000 digits": (spoiled("message.file_size", b"9" * 5000), "$"),
    "a number over 2**53": (spoiled("message.file_size", 2**53 + 1), "$.message.file_size"),
    "a huge number within an object": (
        spoiled("message.shared_post.a", [1, {"b": 2**60}]),
        "$.message.shared_post.a[1].b",
    ),
    "a negative size": (spoiled("message.file_size", -1), "$.message.file_size"),
    "deep nesting": (spoiled("message.shared_post", b'{"a":' * 65 + b"1" + b"}" * 65), "$"),
    "very deep nesting": (spoiled("message.shared_post", DEEP), "$"),
    "very deep nesting where nobody looks": (spoiled("unknown", DEEP), "$"),
    "an unknown type": (spoiled("type", "message.exploded"), "$.type"),
    "no type": (lacking("type"), "$"),
    "no conversation": (lacking("conversation_id"), "$"),
    "no message id": (lacking("message_id"), "$"),
    "no sender": (lacking("sender"), "$"),
    "no message": (lacking("message"), "$"),
    "no time": (lacking("at"), "$"),
    "an empty id": (spoiled("message_id", ""), "$.message_id"),
    "a long conversation id": (spoiled("conversation_id", LONG), "$.conversation_id"),
    "a long message id": (spoiled("message_id", LONG), "$.message_id"),
    "a long sender id": (spoiled("sender.id", LONG), "$.sender.id"),
    "an id with a line break": (spoiled("message_id", "a\nb"), "$.message_id"),
    "a reply to an id with a tab": (spoiled("reply_to", {"message_id": "a\tb"}), "$.reply_to.message_id"),
    "a time of 1999": (spoiled("at", "1999-12-31T23:59:59Z"), "$.at"),
    "a time of the year 1": (spoiled("at", "0001-01-01T00:00:00+14:00"), "$.at"),
    "a time of tomorrow": (spoiled("at", "2099-01-01T00:00:00Z"), "$.at"),
    "a time of the year 9999": (spoiled("at", "9999-12-31T23:59:59-12:00"), "$.at"),
    "a time without a zone": (spoiled("at", "2026-01-01T00:00:00"), "$.at"),
    "a time as a number": (spoiled("at", 1_700_000_000), "$.at"),
    "no time at all": (spoiled("at", "yesterday"), "$.at"),
    "a text of nothing": (spoiled("message.text", ""), "$.message.text"),
    "a text over 64 KB": (spoiled("message.text", "x" * (64 * KB + 1)), "$.message.text"),
    "an unknown kind of message": (spoiled("message.type", "hologram"), "$.message.type"),
    "a picture without media": (spoiled("message", {"type": "picture"}), "$.message.media"),
    "media that is no link": (
        spoiled("message", {"type": "file", "media": "file:///etc"}),
        "$.message.media",
    ),
    "a place off the earth": (
        spoiled("message", {"type": "location", "location": {"lon": 0, "lat": 91}}),
        "$.message.location.lat",
    ),
    "a source beyond ASCII": (spoiled("source", {"external_id": "é"}), "$.source.external_id"),
    "an unknown account": (spoiled("account_id", "nobody"), "$.account_id"),
    "an account that is not connected": (spoiled("account_id", OTHER_ACCOUNT), "$.account_id"),
    "a status of nothing": (spoiled("message_id", None, about("message.read", "x")), "$.message_id"),
    "a status by an id that is none": (spoiled("id", "X", about("message.read", "x")), "$.id"),
    "a failure of an unknown code": (spoiled("code", 7, about("message.failed", "x")), "$.code"),
    "a reaction without an emoji": (
        json.dumps(about("reaction.added", "x", sender={"id": "u"})).encode(),
        "$.emoji",
    ),
}


@pytest.mark.parametrize("name", BAD_ACTIONS)
async def test_a_bad_action_is_refused_and_its_place_named(service: Served, url: str, name: str):
    body, path = BAD_ACTIONS[name]
    head = await service.head()
    problem = await refused(service, await service.act(body, url=url), 400, head)
    assert problem["errors"][0]["path"].startswith(path)
    assert problem["errors"][0]["message"]


@pytest.mark.parametrize("name", [name for name in BAD_ACTIONS if BAD_ACTIONS[name][0].startswith(b'{"')])
async def test_one_bad_action_refuses_its_whole_array_and_is_numbered(service: Served, name: str):
    body, _ = BAD_ACTIONS[name]
    head = await service.head()
    array = b"[%b,%b]" % (json.dumps(sent("good")).encode(), body)
    problem = await refused(service, await service.act(array), 400, head)
    if "JSON" not in name and "surrogate" not in name and "deep" not in name and "digits" not in name:
        assert problem["errors"][0]["path"].startswith("$[1]") or problem["errors"][0]["path"] == "$"


@pytest.mark.parametrize("count", [0, 501])
async def test_an_array_of_too_few_or_too_many_is_refused(service: Served, url: str, count: int):
    head = await service.head()
    small = {
        "type": "message.deleted",
        "conversation_id": "c",
        "message_id": "m",
        "at": "2026-01-01T00:00:00Z",
    }
    problem = await refused(service, await service.act([small] * count, url=url), 400, head)
    assert "1 to 500" in problem["detail"]


async def test_an_array_of_nothing_but_brackets_is_refused(service: Served, url: str):
    await refused(service, await service.act(b"[" * 200_000, url=url), 400, await service.head())


async def test_a_status_of_the_messengers_own_message_is_refused(service: Served, url: str):
    head = await service.head()
    answer = await service.act(about("message.read", "m-known"), url=url)
    await refused(service, answer, 400, head)


async def test_within_an_array_what_can_be_stored_is_and_the_rest_is_told(service: Served, url: str):
    array = [sent(url), about("message.read", "m-known"), sent("known")]
    first, second, third = (await service.act(array, url=url)).body["results"]
    assert first["position"] > 0
    assert second["error"]["status"] == 400
    assert third["duplicate"]


@pytest.mark.parametrize("times", [1, 2])
async def test_a_known_id_with_other_content_is_a_conflict_that_names_the_first(
    service: Served, url: str, times: int
):
    known = await service.act(sent("known"))
    changed = sent("known", message={"type": "text", "text": f"Other through {url}"})
    for _ in range(times):
        answer = await service.act(changed, url=url)
    assert answer.status == 409
    assert answer.body["position"] == known.body["results"][0]["position"]


async def test_a_conflict_is_noticed_once_for_each_content(service: Served):
    head = await service.head()
    for text in ("One", "Two", "One", "Two"):
        assert (await service.act(sent("known", message={"type": "text", "text": text}))).status == 409
    assert [event["type"] for event in await service.since(head)] == ["conflict.noticed"] * 2


async def test_a_hook_that_contradicts_a_known_one_is_noticed_and_answered_as_taken(
    service: Served, url: str
):
    head = await service.head()
    changed = wrote("known", message={"text": f"Other through {url}"})
    for _ in range(2):
        assert (await service.hook(changed, url=url)).status == 200
    assert [event["type"] for event in await service.since(head)] == ["conflict.noticed"]


async def test_unknown_fields_and_repeated_keys_are_no_fault(service: Served, url: str):
    body = json.dumps(sent(f"odd {url}", unknown={"big": 2**70})).encode()
    body = body.replace(b'"message":', b'"message": {"type": "text", "text": "first"}, "message":')
    assert (await service.act(body, url=url)).status == 200


# Signatures of the messenger.


BAD_SIGNATURES: dict[str, dict[str, str | None]] = {
    "none": {"webhook-signature": None},
    "no id": {"webhook-id": None},
    "no time": {"webhook-timestamp": None},
    "nothing": {"webhook-signature": ""},
    "no version": {"webhook-signature": "v1"},
    "no value": {"webhook-signature": "v1,"},
    "another version": {"webhook-signature": "v2,AAAA"},
    "garbage": {"webhook-signature": "v1,%%% v1 v1,a,b"},
    "beyond ASCII": {"webhook-signature": "v1,ÿÿÿ"},
    "another id": {"webhook-id": "msg_2"},
    "a time that is none": {"webhook-timestamp": "soon"},
    "a time without end": {"webhook-timestamp": "inf"},
    "a time of no number": {"webhook-timestamp": "nan"},
    "a huge time": {"webhook-timestamp": "9" * 40},
}


@pytest.mark.parametrize("name", BAD_SIGNATURES)
async def test_an_action_that_is_not_signed_well_is_refused(service: Served, url: str, name: str):
    head = await service.head()
    answer = await service.act(sent("unsigned"), url=url, headers=BAD_SIGNATURES[name])
    await refused(service, answer, 401, head)


@pytest.mark.parametrize("age_seconds", [310, -310])
async def test_an_action_signed_too_early_or_too_late_is_refused(
    service: Served, url: str, age_seconds: float
):
    head = await service.head()
    answer = await service.act(sent("old"), url=url, age_seconds=age_seconds)
    await refused(service, answer, 401, head)


async def test_an_action_signed_four_minutes_ago_is_taken(service: Served, url: str):
    assert (await service.act(sent("known"), url=url, age_seconds=240)).status == 200


async def test_an_action_signed_with_another_secret_is_refused(service: Served, url: str):
    head = await service.head()
    secret = "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
    await refused(service, await service.act(sent("forged"), url=url, secret=secret), 401, head)


async def test_bytes_that_are_no_text_cannot_be_signed(service: Served, url: str):
    await refused(service, await service.act(b"\xff\xfe", url=url), 401, await service.head())


async def test_one_right_signature_among_several_is_enough(service: Served, url: str):
    body = json.dumps(sent("known")).encode()
    headers = signed(body)
    headers["webhook-signature"] = "v1a,abc v1,AAAA " + headers["webhook-signature"]
    assert (await service.act(body, url=url, headers=headers)).status == 200


async def test_an_unknown_channel_is_not_found(service: Served, url: str):
    head = await service.head()
    for name in ("nobody", "ACME", "%F0%9F%98%80", "acme%00"):
        await refused(service, await service.act(sent("lost"), channel=name, url=url), 404, head)


async def test_a_channel_without_a_connection_cannot_be_used_yet(service: Served, url: str):
    await service.register("lonely", channel_id="344a5002-f8ca-454d-af3d-396180102ac8")
    head = await service.head()
    await refused(service, await service.act(sent("early"), channel="lonely", url=url), 409, head)


# Sizes, encodings, methods and paths, of both webhooks.


async def pieces(count: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield b"x" * 10 * KB


@pytest.mark.parametrize("path", [f"/kommo/{SCOPE}", "/messengers/acme"])
async def test_a_body_of_300_kb_is_too_large(service: Served, url: str, path: str):
    head = await service.head()
    await refused(service, await service.request("POST", path, url=url, data=b"x" * 300 * KB), 413, head)


@pytest.mark.parametrize("path", [f"/kommo/{SCOPE}", "/messengers/acme"])
async def test_so_it_is_in_chunks_of_unknown_number(service: Served, url: str, path: str):
    head = await service.head()
    await refused(service, await service.request("POST", path, url=url, data=pieces(30)), 413, head)


async def test_a_body_of_256_kb_is_read(service: Served, url: str):
    body = json.dumps(sent("known")).encode()
    body = body + b" " * (256 * KB - len(body))
    assert (await service.act(body, url=url)).status == 200


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate", "zstd"])
async def test_a_compressed_body_is_refused(service: Served, url: str, encoding: str):
    head = await service.head()
    headers = {"Content-Encoding": encoding}
    await refused(service, await service.act(sent("zip"), url=url, headers=headers), 415, head)
    await refused(service, await service.hook(wrote("zip"), url=url, headers=headers), 415, head)


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize("path", [f"/kommo/{SCOPE}", "/messengers/acme"])
async def test_other_methods_are_not_allowed(service: Served, url: str, method: str, path: str):
    await refused(service, await service.request(method, path, url=url), 405, await service.head())


@pytest.mark.parametrize(
    "path",
    [
        *("/kommo", "/kommo/", f"/kommo/{SCOPE}/more", f"/kommo/a%2F{SCOPE}", "/kommo/../v2"),
        *("/kommo/%F0%9F%98%80", "/kommo/%00", "/kommo/%FF", "/messengers/", "/messengers/a%2Fb", "/"),
    ],
)
async def test_other_paths_lead_nowhere(service: Served, url: str, path: str):
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
async def test_a_hook_that_is_not_signed_well_is_refused(service: Served, url: str, name: str):
    head = await service.head()
    answer = await service.hook(wrote("forged"), url=url, signature=BAD_KOMMO_SIGNATURES[name])
    await refused(service, answer, 403, head)


async def test_a_hook_for_an_unknown_scope_is_not_found(service: Served, url: str):
    head = await service.head()
    for scope in ("nobody", SCOPE.upper(), f"{SCOPE}x", "_"):
        await refused(service, await service.hook(wrote("lost"), scope=scope, url=url), 404, head)


NEVER_READABLE: dict[str, bytes] = {
    "not JSON": b"{",
    "nothing": b"",
    "an array": b"[]",
    "neither message nor action": b'{"account_id":"a","time":1}',
    "an old hook": b'{"receiver":"u-1","conversation_id":"c","type":"text","text":"Hi"}',
    "not UTF-8": json.dumps(wrote("bad")).encode().replace(b"Hi bad", b"\xff\xfe"),
    "NaN": b'{"message":{"conversation":{"id":"c"},"message":{"id":"n","type":"location","text":"\\u0000",'
    b'"location":{"lon":NaN,"lat":0}}}}',
    "a number in a text": json.dumps(wrote("bad", message={"text": 7})).encode(),
    "no message id": json.dumps(wrote("bad", message={"id": None})).encode(),
    "an empty message id": json.dumps(wrote("bad", message={"id": ""})).encode(),
    "a long message id": json.dumps(wrote("bad", message={"id": LONG})).encode(),
    "a long conversation id": json.dumps(wrote("bad", conversation={"client_id": LONG})).encode(),
    "no conversation id": json.dumps(wrote("bad", conversation={"id": ""})).encode(),
    "an unknown type": json.dumps(wrote("bad", message={"type": "hologram"})).encode(),
    "a long type": json.dumps(wrote("bad", message={"type": LONG})).encode(),
    "deep nesting": json.dumps(wrote("bad", message={"markup": "@@"})).encode().replace(b'"@@"', DEEP),
    "nesting that others could not read": json.dumps(wrote("bad", message={"markup": "@@"}))
    .encode()
    .replace(b'"@@"', b'{"a":' * 65 + b"1" + b"}" * 65),
    "a reaction of an unknown kind": json.dumps(
        {"action": {"reaction": {"type": "love", "message": {"id": "k"}, "conversation": {"id": "c"}}}}
    ).encode(),
    "a reaction to nothing": json.dumps(
        {"action": {"reaction": {"type": "react", "conversation": {"id": "c"}}}}
    ).encode(),
}


@pytest.mark.parametrize("name", NEVER_READABLE)
async def test_a_signed_hook_that_cannot_be_read_is_kept_whole(service: Served, url: str, name: str):
    head, body = await service.head(), NEVER_READABLE[name]
    problem = await refused(service, await service.hook(body, url=url), 400, head)
    kept = (await service.get("/v1/refused", limit=1))["items"][0]
    assert base64.b64decode(kept["body"]) == body
    assert kept["scope_id"] == SCOPE
    assert kept["id"] in problem["detail"]
    assert len(problem["detail"]) < 1000


MENDED: dict[str, tuple[bytes, str]] = {
    "NUL": (b'"a\\u0000b"', "a�b"),
    "a lone surrogate": (b'"a\\ud800b"', "a�b"),
    "a lone low surrogate": (b'"a\\uDC00b"', "a�b"),
    "a pair": (b'"a\\ud83d\\ude00b"', "a😀b"),
    "something that only looks so": (b'"a\\\\u0000b"', "a\\u0000b"),
}


@pytest.mark.parametrize("name", MENDED)
async def test_a_character_of_a_hook_that_cannot_be_stored_is_replaced(service: Served, url: str, name: str):
    raw, text = MENDED[name]
    head = await service.head()
    hook = json.dumps(wrote(f"{name} {url}", message={"text": "@@"})).encode().replace(b'"@@"', raw)
    assert (await service.hook(hook, url=url)).status == 200
    assert (await service.since(head))[-1]["content"]["text"] == text


@pytest.mark.parametrize("ms", [0, -1, 1, 10**18, 10**40, 253_402_300_800_000])
async def test_a_time_of_a_hook_out_of_range_becomes_the_arrival(service: Served, url: str, ms: int):
    head = await service.head()
    hook = wrote(f"{ms} {url}", msec_timestamp=ms, timestamp=ms)
    assert (await service.hook(hook, url=url)).status == 200
    event = (await service.since(head))[-1]
    assert event["at"] == event["recorded_at"]
    assert abs(event["msec"] - time.time() * 1000) < 10_000


async def test_forwards_that_are_too_long_are_cut_and_marked(service: Served, url: str):
    assert (
        CONTENT_BYTES_MAX > 256 * KB
    )  # So a hook that is not too large to be taken never needs the scissors.
    forwards = {"messages": [{"id": "x", "type": "text", "text": "x" * 200 * KB}]}
    head = await service.head()
    assert (
        await service.hook(wrote(f"forwards {url}", message={"forwards": forwards}), url=url)
    ).status == 200
    assert (await service.since(head))[-1]["content"]["forwards"] == forwards


async def test_a_fault_of_ours_is_told_as_a_problem_too(service: Served, url: str):
    where = str(service.run.services.settings.database_url)
    async with await psycopg.AsyncConnection.connect(where, autocommit=True) as owner:
        await owner.execute("ALTER TABLE ledger.refused RENAME TO mislaid")
        answer = await service.hook(b"{", url=url)
        await owner.execute("ALTER TABLE ledger.mislaid RENAME TO refused")
    await refused(service, answer, 500, await service.head())


async def test_a_client_that_goes_away_before_its_body_is_complete_changes_nothing(service: Served, url: str):
    head, body = await service.head(), json.dumps(wrote(f"half {url}")).encode()
    _, writer = await asyncio.open_connection("127.0.0.1", URL(url).port)
    lines = [f"POST /kommo/{SCOPE} HTTP/1.1", "Host: localhost", f"X-Signature: {signature(body)}"]
    writer.write("\r\n".join([*lines, f"Content-Length: {len(body) + 9}", "", ""]).encode() + body)
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    await asyncio.sleep(0.1)
    assert await service.head() == head


async def test_nothing_in_the_database_is_unreadable_after_all_that(service: Served):
    status = await service.get("/v1/status", at_least=await service.head())
    assert all(view["lag"] == 0 for view in status["views"])
    assert (await service.ask("GET", "/readyz")).status == 200
    assert {item["account_id"] for item in (await service.get("/v1/conversations"))["items"]} == {ACCOUNT}
