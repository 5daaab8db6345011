"""Query parameters: the unknown are refused with the nearest name, and no value of a known one is a 500."""

from typing import Any
from urllib.parse import quote
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.service.application import routed
from projections.events import TAGS
from tests.support.ids import ACCOUNT
from tests.support.service import Json, Served, sent

ANSWERS = {200, 307, 400, 404, 409, 422}
DATES = [
    *("9999-12-31T23:59:59-14:00", "0001-01-01T00:00:00+14:00", "9999-12-31T24:00:00Z"),
    *("2026-11-22T23:59:60Z", "2026-11-22", "1e308", "-1", "2026-11-22T08:00:00"),
    *("2026-11-22T08:00:00.123456789Z", "0000-01-01T00:00:00Z", "10000-01-01T00:00:00Z", "infinity", "now"),
]
# Positions in the future make a reader wait for 5 s, as they should.
POSITIONS = [*(str(2**power + add) for power in (31, 32, 53, 63, 64) for add in (-1, 0, 1)), "-1", "0", "1.5"]
WORDS = ["", "null", "true", "[]", "{}", "\0", "\ud800", "%", "🦊", "é", " ", "a" * 5000, str(UUID(int=0))]
CURSORS = [
    "MQ",
    "LTE",
    "MWUzMDA",
    "OTk5OTk5OTk5OTk5OTk5OTk5OTk5OQ",
    "WzEsIm5vIl0",
    "e30",
    "bnVsbA",
    "===",
    "-_-",
]
VALUES = st.sampled_from([*DATES, *POSITIONS, *WORDS, *CURSORS, *TAGS]) | st.text() | st.integers().map(str)


def gets() -> list[tuple[str, list[str]]]:
    """The GET routes of the document under /v1 with their query parameters."""
    app = routed({})
    document: Json = app.openapi_schema.to_schema()
    found = []
    for path, operations in document["paths"].items():
        if path.startswith(("/v1", "/healthz", "/readyz", "/metrics")) and (one := operations.get("get")):
            parameters = [each["name"] for each in one.get("parameters", []) if each["in"] == "query"]
            found.append((path, parameters))
    return found


def encoded(text: str) -> str:
    return quote(text.encode("utf-8", "surrogatepass"), safe="")


@pytest.fixture(scope="module")
async def conversation(service: Served) -> str:
    """Our id of a conversation."""
    await service.act(sent("query"))
    found = await service.get("/v1/conversations", at_least=await service.head())
    return str(found["items"][0]["id"])


GETS = gets()
WITH_QUERY = [(path, names) for path, names in GETS if names]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
async def test_no_value_of_a_query_parameter_is_an_error_of_ours(
    service: Served, conversation: str, data: Any
) -> None:
    path, names = data.draw(st.sampled_from(WITH_QUERY))
    id_ = data.draw(st.sampled_from([conversation, str(UUID(int=1)), "x", "\ud800"]))
    for name, value in (("conversation", id_), ("message", id_), ("account_id", ACCOUNT)):
        path = path.replace(f"{{{name}}}", encoded(value))
    given = {name: data.draw(VALUES) for name in data.draw(st.sets(st.sampled_from(names), min_size=1))}
    if given.get("at_least", "").isdecimal():
        given["at_least"] = str(int(given["at_least"][:4]) % (await service.head() + 1))
    query = "&".join(f"{name}={encoded(value)}" for name, value in given.items())
    answer = await service.ask("GET", f"{path}?{query}")
    assert answer.status in ANSWERS, (path, given, answer)
    if answer.status == 400:
        assert len(answer.body["detail"]) > 10


@pytest.mark.parametrize("value", DATES)
@pytest.mark.parametrize("name", ["since", "until"])
async def test_a_time_is_answered_or_refused_with_words(service: Served, name: str, value: str) -> None:
    answer = await service.ask("GET", f"/v1/events?{name}={encoded(value)}")
    assert answer.status in (200, 400), answer
    assert answer.status == 200 or len(answer.body["detail"]) > 10


@pytest.mark.parametrize(("path", "names"), GETS, ids=[path for path, _ in GETS])
async def test_a_parameter_that_a_route_does_not_know_is_400(
    service: Served, path: str, names: list[str]
) -> None:
    for name, value in (("{conversation}", str(UUID(int=1))), ("{account_id}", ACCOUNT)):
        path = path.replace(name, value)
    path = path.replace("{message}", str(UUID(int=1))).replace("{", "").replace("}", "")
    path = path.replace("_id/", "_id/").replace("talk_id", "1").replace("source_id", "1")
    path = path.replace("template_id", "1")
    answer = await service.ask("GET", f"{path}?as_of=2026-11-22T08:00:00Z")
    assert answer.status == 400, answer
    assert answer.body["errors"][0]["path"] == "as_of"
    for name in names:
        answer = await service.ask("GET", f"{path}?{name}s=1")
        assert answer.status == 400, answer
        assert f"did you mean {name}?" in answer.body["detail"]
        answer = await service.ask("GET", f"{path}?{name}=1&{name}=2")
        assert (answer.status, "twice" in answer.body["detail"]) == (400, True)


@pytest.mark.parametrize(
    ("method", "query", "says"),
    [
        ("GET", "/v1/conversations?chanel=acme", "chanel: it is not known: did you mean channel?"),
        ("GET", "/v1/conversations?q=Ann", "q: it is not known: give one of account_id, at_least, channel"),
        ("GET", "/v1/events?Type=message.sent", "did you mean type?"),
        ("GET", "/v1/events?type=bogus", "bogus is no type of event: give one of channel.registered"),
        ("GET", "/v1/events?type=message.send", "did you mean message.sent?"),
        ("GET", "/healthz?verbose=1", "this path takes no query parameters"),
        ("POST", "/v1/channels?name=x", "this path takes no query parameters"),
        ("POST", "/v1/import?chanel=acme", "did you mean channel?"),
    ],
)
async def test_the_nearest_name_is_said(service: Served, method: str, query: str, says: str) -> None:
    head = await service.head()
    answer = await service.ask(method, query)
    assert answer.status == 400, answer
    assert says in answer.body["detail"]
    assert await service.head() == head


async def test_without_a_key_nothing_is_said_of_parameters(service: Served) -> None:
    assert (await service.ask("GET", "/v1/conversations?chanel=acme", key=None)).status == 401


async def test_what_others_call_by_our_addresses_may_carry_more(service: Served) -> None:
    body = b"{}"
    answer = await service.request("POST", "/kommo/none?utm_source=x", data=body)
    assert answer.status == 404
    assert (await service.ask("GET", "/login?utm_source=x", key=None)).status == 200


async def test_an_answer_is_not_many_times_as_long_as_its_address(service: Served) -> None:
    query = "&".join(f"{n:x}" for n in range(10_000))
    answer = await service.request("GET", f"/healthz?{query}")
    assert (answer.status, len(answer.body["errors"])) == (400, 100)
