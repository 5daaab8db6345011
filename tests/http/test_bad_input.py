"""What breaks the contract is refused with its status and what to do, and the ledger stays as it was."""

import json
from typing import Any

import pytest
import pytest_asyncio

from tests.support.service import Served, about, refused, sent, signed, wrote

KB = 1024
DEEP = b"[" * 100_000 + b"]" * 100_000
Raw = dict[str, bytes]


@pytest_asyncio.fixture(scope="module", autouse=True)
async def recorded(service: Served) -> None:
    """A message of each side is recorded."""
    assert (await service.act(sent("known"))).status == 200
    assert (await service.hook(wrote("known"))).status == 200


@pytest.fixture(params=["front", "routes"])
def url(service: Served, request: pytest.FixtureRequest) -> str:
    """Both ways in: what stands in front, and the same function as a route."""
    return service.url if request.param == "front" else service.inner


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
    "a status of nothing": (spoiled("message_id", None, about("message.read", "x")), "$.message_id"),
    "a status by an id that is none": (spoiled("id", "X", about("message.read", "x")), "$.id"),
    "a failure of an unknown code": (spoiled("code", 7, about("message.failed", "x")), "$.code"),
    "a reaction without an emoji": (
        json.dumps(about("reaction.added", "x", sender={"id": "u"})).encode(),
        "$.emoji",
    ),
}


@pytest.mark.parametrize("name", BAD_ACTIONS)
async def test_a_bad_action_is_refused_and_its_place_named(service: Served, url: str, name: str) -> None:
    body, path = BAD_ACTIONS[name]
    head = await service.head()
    problem = await refused(service, await service.act(body, url=url), 400, head)
    assert problem["errors"][0]["path"].startswith(path)
    assert problem["errors"][0]["message"]


@pytest.mark.parametrize("name", [name for name in BAD_ACTIONS if BAD_ACTIONS[name][0].startswith(b'{"')])
async def test_one_bad_action_refuses_its_whole_array_and_is_numbered(service: Served, name: str) -> None:
    body, _ = BAD_ACTIONS[name]
    head = await service.head()
    array = b"[%b,%b]" % (json.dumps(sent("good")).encode(), body)
    problem = await refused(service, await service.act(array), 400, head)
    if "JSON" not in name and "surrogate" not in name and "deep" not in name and "digits" not in name:
        assert problem["errors"][0]["path"].startswith("$[1]") or problem["errors"][0]["path"] == "$"


@pytest.mark.parametrize("count", [0, 501])
async def test_an_array_of_too_few_or_too_many_is_refused(service: Served, url: str, count: int) -> None:
    head = await service.head()
    small = {
        "type": "message.deleted",
        "conversation_id": "c",
        "message_id": "m",
        "at": "2026-01-01T00:00:00Z",
    }
    problem = await refused(service, await service.act([small] * count, url=url), 400, head)
    assert "1 to 500" in problem["detail"]


async def test_an_array_of_nothing_but_brackets_is_refused(service: Served, url: str) -> None:
    await refused(service, await service.act(b"[" * 200_000, url=url), 400, await service.head())


async def test_a_status_of_the_messengers_own_message_is_refused(service: Served, url: str) -> None:
    head = await service.head()
    answer = await service.act(about("message.read", "m-known"), url=url)
    await refused(service, answer, 400, head)


async def test_within_an_array_what_can_be_stored_is_and_the_rest_is_told(service: Served, url: str) -> None:
    array = [sent(url), about("message.read", "m-known"), sent("known")]
    first, second, third = (await service.act(array, url=url)).body["results"]
    assert first["position"] > 0
    assert second["error"]["status"] == 400
    assert third["duplicate"]


@pytest.mark.parametrize("times", [1, 2])
async def test_a_known_id_with_other_content_is_a_conflict_that_names_the_first(
    service: Served, url: str, times: int
) -> None:
    known = await service.act(sent("known"))
    changed = sent("known", message={"type": "text", "text": f"Other through {url}"})
    for _ in range(times):
        answer = await service.act(changed, url=url)
    assert answer.status == 409
    assert answer.body["position"] == known.body["results"][0]["position"]


async def test_a_conflict_is_noticed_once_for_each_content(service: Served) -> None:
    head = await service.head()
    for text in ("One", "Two", "One", "Two"):
        assert (await service.act(sent("known", message={"type": "text", "text": text}))).status == 409
    assert [event["type"] for event in await service.since(head)] == ["conflict.noticed"] * 2


async def test_a_hook_that_contradicts_a_known_one_is_noticed_and_answered_as_taken(
    service: Served, url: str
) -> None:
    head = await service.head()
    changed = wrote("known", message={"text": f"Other through {url}"})
    for _ in range(2):
        assert (await service.hook(changed, url=url)).status == 200
    assert [event["type"] for event in await service.since(head)] == ["conflict.noticed"]


async def test_unknown_fields_and_repeated_keys_are_no_fault(service: Served, url: str) -> None:
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
async def test_an_action_that_is_not_signed_well_is_refused(service: Served, url: str, name: str) -> None:
    head = await service.head()
    answer = await service.act(sent("unsigned"), url=url, headers=BAD_SIGNATURES[name])
    await refused(service, answer, 401, head)


@pytest.mark.parametrize("age_seconds", [310, -310])
async def test_an_action_signed_too_early_or_too_late_is_refused(
    service: Served, url: str, age_seconds: float
) -> None:
    head = await service.head()
    answer = await service.act(sent("old"), url=url, age_seconds=age_seconds)
    await refused(service, answer, 401, head)


async def test_an_action_signed_four_minutes_ago_is_taken(service: Served, url: str) -> None:
    assert (await service.act(sent("known"), url=url, age_seconds=240)).status == 200


async def test_an_action_signed_with_another_secret_is_refused(service: Served, url: str) -> None:
    head = await service.head()
    secret = "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
    await refused(service, await service.act(sent("forged"), url=url, secret=secret), 401, head)


async def test_bytes_that_are_no_text_cannot_be_signed(service: Served, url: str) -> None:
    await refused(service, await service.act(b"\xff\xfe", url=url), 401, await service.head())


async def test_one_right_signature_among_several_is_enough(service: Served, url: str) -> None:
    body = json.dumps(sent("known")).encode()
    headers = signed(body)
    headers["webhook-signature"] = "v1a,abc v1,AAAA " + headers["webhook-signature"]
    assert (await service.act(body, url=url, headers=headers)).status == 200


async def test_an_unknown_channel_is_not_found(service: Served, url: str) -> None:
    head = await service.head()
    for name in ("nobody", "ACME", "%F0%9F%98%80", "acme%00"):
        await refused(service, await service.act(sent("lost"), channel=name, url=url), 404, head)


async def test_a_channel_without_a_connection_cannot_be_used_yet(service: Served, url: str) -> None:
    await service.register("lonely", channel_id="344a5002-f8ca-454d-af3d-396180102ac8")
    head = await service.head()
    await refused(service, await service.act(sent("early"), channel="lonely", url=url), 409, head)
