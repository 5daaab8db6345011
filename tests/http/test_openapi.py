"""What `/schema` says is true: schemathesis asks all that it allows and what it does not.

By hand, against any service: `schemathesis run http://127.0.0.1:8080/schema -H "Authorization: Bearer KEY"`.
"""

import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jsonschema_rs
import msgspec
import pytest
import pytest_asyncio
from schemathesis.specs.openapi.definitions import OPENAPI_31_VALIDATOR

from app.access.tries import Tries
from app.http.openapi import examples
from app.messengers import webhook
from app.messengers.adapter import Push
from app.messengers.calls import Call
from app.servers.servers import Servers
from domain import events as e
from ops.sandbox import crm_account
from tests.support.crm_service import Office, office_of
from tests.support.ids import ACCOUNT, ADMIN_KEY, CRM_ID, OTHER_ACCOUNT
from tests.support.openapi.data import LEAVING, LEFT, Things, things
from tests.support.processes import ENVIRONMENT

ROOT = Path(__file__).parents[2]
Json = dict[str, Any]


@pytest_asyncio.fixture(scope="module")
async def service(servers: Servers) -> AsyncIterator[Office]:
    others = (OTHER_ACCOUNT, LEAVING, LEFT)
    accounts = (crm_account(ACCOUNT, CRM_ID), *(crm_account(one) for one in others))
    async with office_of(servers, crm_accounts=accounts) as one:
        yield one


@pytest_asyncio.fixture(scope="module")
async def there(service: Office) -> Things:
    return await things(service)


@pytest_asyncio.fixture(scope="module")
async def document(service: Office) -> Json:
    told: Json = (await service.ask("GET", "/schema", key=None)).body
    return told


class Operation(NamedTuple):
    name: str
    told: Json


def operations(document: Json) -> Iterator[Operation]:
    for path, item in document["paths"].items():
        for method, told in item.items():
            yield Operation(f"{method.upper()} {path}", told)


def bodies(told: Json) -> Iterator[tuple[str, str, Json]]:
    """Of an operation each body, taken or answered: where, its media type, and what is said of it."""
    for media_type, content in told.get("requestBody", {}).get("content", {}).items():
        yield "request", media_type, content
    for status, answer in told["responses"].items():
        for media_type, content in answer.get("content", {}).items():
            yield status, media_type, content


def given(content: Json) -> list[Any]:
    """The examples of a body."""
    return [one["value"] for one in content.get("examples", {}).values()] or [content.get("example")]


def test_every_operation_says_what_it_is_for(document: Json) -> None:
    for name, told in operations(document):
        assert told["summary"], name
        assert told["description"], name
        assert told["tags"], name
        assert any(status < "400" for status in told["responses"]), name
        for parameter in told.get("parameters", ()):
            assert parameter["description"], (name, parameter["name"])


def test_operations_have_names_of_their_own(document: Json) -> None:
    names = [told["operationId"] for _, told in operations(document)]
    assert len(names) == len(set(names))


def test_every_reference_leads_somewhere_and_every_shape_is_valid(document: Json) -> None:
    assert re.fullmatch(r"3\.1\.\d", document["openapi"])
    assert not [str(error) for error in OPENAPI_31_VALIDATOR.iter_errors(document)]
    for name, schema in document["components"]["schemas"].items():
        assert re.fullmatch(r"[A-Za-z0-9._-]+", name)
        jsonschema_rs.Draft202012Validator(schema | {"components": document["components"]})
    for name in set(re.findall(r"'#/components/schemas/([^']+)'", str(document))):
        assert name in document["components"]["schemas"]


def calls(document: Json) -> Iterator[Operation]:
    """What we post to a messenger."""
    for name, item in document["webhooks"].items():
        yield Operation(name, item["post"])


def test_every_body_has_an_example_that_fits_its_shape(document: Json) -> None:
    for name, told in (*operations(document), *calls(document)):
        for where, media_type, content in bodies(told):
            shape = content["schema"] | {"components": document["components"]}
            validator = jsonschema_rs.Draft202012Validator(shape, validate_formats=True)
            for example in given(content):
                assert example is not None, (
                    f"app/http/openapi/examples.py has none: {name} {where} {media_type}"
                )
                errors = [str(error) for error in validator.iter_errors(example)]
                assert not errors, (name, where, errors)


def test_every_call_to_a_messenger_is_described_with_its_body_answer_and_signature(document: Json) -> None:
    told = dict(calls(document))
    assert set(told) == {"message.send", "typing", "reaction.added", "reaction.removed", "probe"}
    for name, call in told.items():
        assert {one["name"] for one in call["parameters"]} == {
            "webhook-id",
            "webhook-timestamp",
            "webhook-signature",
        }
        assert call["description"]
        assert call["requestBody"]["content"]["application/json"]["example"]["type"] == name
        assert {"200", "401", "422", "429"} == set(call["responses"])
    assert "/messengers/{channel}" in document["paths"]


STORED = sorted((ROOT / "tests/golden/events").glob("*.json"))


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_what_we_post_to_a_messenger_is_as_the_document_says(document: Json, path: Path) -> None:
    event = e.decode(path.read_bytes())
    if not isinstance(event, e.MessageSent | e.TypingStarted | e.ReactionAdded | e.ReactionRemoved):
        assert path.stem not in document["webhooks"]
        return
    body = msgspec.to_builtins(webhook.request(Push(event, "conv-1", "m-1", "m-0")))
    content = document["webhooks"][body["type"]]["post"]["requestBody"]["content"]["application/json"]
    shape = content["schema"] | {"components": document["components"]}
    assert [str(error) for error in jsonschema_rs.Draft202012Validator(shape).iter_errors(body)] == []
    known = msgspec.to_builtins(msgspec.convert(body, Call))
    if "message" in body:  # Its fields are optional, and stand as null in what is read back.
        known["message"] = {name: value for name, value in known["message"].items() if value is not None}
    assert known == body
    assert (
        {name: value for name, value in known["message"].items() if value is not None} == body["message"]
        if ("message" in body)
        else known == body
    )


def test_every_problem_is_one_and_its_example_has_its_status(document: Json) -> None:
    for name, told in operations(document):
        for where, media_type, content in bodies(told):
            if where >= "400" and where != "request" and name != "GET /readyz":  # It names the parts.
                assert media_type == "application/problem+json", (name, where)
                assert content["example"]["status"] == int(where), name


def test_what_all_operations_of_a_kind_answer_is_said(document: Json) -> None:
    for name, told in operations(document):
        answers = told["responses"]
        if {"key": []} in told.get("security", []):
            assert {"401", "503"} <= set(answers), name
            assert "WWW-Authenticate" in answers["401"]["headers"]
        if "503" in answers:
            assert answers["503"]["headers"]["Retry-After"]["required"], name
        if "requestBody" in told:
            assert {"400", "413"} <= set(answers), name


def test_the_webhooks_say_how_they_are_signed(document: Json) -> None:
    schemes = document["components"]["securitySchemes"]
    for path, header in (
        ("/kommo/{scope_id}", "X-Signature"),
        ("/messengers/{channel}", "webhook-signature"),
    ):
        ((scheme, _),) = document["paths"][path]["post"]["security"][0].items()
        assert (schemes[scheme]["in"], schemes[scheme]["name"]) == ("header", header)


async def test_the_examples_tell_a_story_that_happens(service: Office, there: Things) -> None:
    told = [action for action in examples.ACTIONS.values() if isinstance(action, dict)]
    sent = {action["type"]: action for action in reversed(told)}["message.sent"]
    (result,) = (await service.act(sent | {"account_id": ACCOUNT})).body["results"]
    assert result["id"] == examples.MESSAGE
    shown = await service.get(f"/v1/conversations/{examples.CHAT}", at_least=result["position"])
    assert (shown["conversation_id"], shown["account_id"]) == ("conv-1", ACCOUNT)
    for action in told:
        assert (await service.act(action | {"account_id": ACCOUNT})).status == 200, action
    for hook in examples.HOOKS.values():
        assert (await service.hook(hook)).status == 200, hook


async def test_a_method_that_is_not_allowed_is_told_with_those_that_are(service: Office) -> None:
    answer = await service.ask("DELETE", "/v1/channels")
    assert answer.status == 405
    assert {"GET", "POST"} <= set(answer.headers["Allow"].split(", "))


@pytest.mark.parametrize("path", ["/schema/anything", "/schema/any.json", "/schema/any/thing"])
async def test_nothing_is_under_the_schema_but_a_problem(service: Office, path: str) -> None:
    answer = await service.ask("GET", path, key=None)
    assert (answer.status, answer.headers["Content-Type"]) == (404, "application/problem+json")
    assert answer.body["status"] == 404


@pytest.mark.parametrize("path", ["/v1/deliveries", "/v1/events"])
async def test_an_id_that_can_be_none_is_refused_in_our_words(service: Office, path: str) -> None:
    answer = await service.ask("GET", path, params={"conversation": "x"})
    assert (answer.status, "UUID" in answer.body["detail"]) == (400, True)
    assert "portal" not in answer.body["detail"]


@pytest.mark.timeout(300)
async def test_schemathesis_finds_every_success_no_500_and_no_undocumented_answer(
    service: Office, document: Json, there: Things, tmp_path: Path
) -> None:
    files = {"ASKED": tmp_path / "asked.json", "TOLD": tmp_path / "told"}
    files["ASKED"].write_text(json.dumps(there))
    paths = {"SCHEMATHESIS_HOOKS": "tests.support.openapi.schemathesis_hooks", "PYTHONPATH": str(ROOT)}
    child = await asyncio.create_subprocess_exec(
        *(
            sys.executable,
            "-m",
            "schemathesis.cli",
            "--config-file",
            str(ROOT / "tests/support/openapi/schemathesis.toml"),
        ),
        *("run", f"{service.url}/schema", "--header", f"Authorization: Bearer {ADMIN_KEY}", "--no-color"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=ENVIRONMENT | paths | {name: str(path) for name, path in files.items()},
        cwd=tmp_path,
    )
    assert child.stdout is not None
    reading = asyncio.create_task(child.stdout.read())
    while not reading.done():  # It asks with many wrong keys, for which a source is slowed down otherwise.
        service.run.services.tries = Tries()
        await asyncio.wait([reading], timeout=0.2)
    told = (await reading).decode()
    assert await child.wait() == 0, told
    done = {line[4:] for line in files["TOLD"].read_text().splitlines() if line[0] == "2"}
    assert sorted(name for name, _ in operations(document) if name not in done) == []
