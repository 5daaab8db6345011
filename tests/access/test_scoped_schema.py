"""Schemathesis asks every operation with a key of one account about another: no 500, and nothing is told."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from app.access.tries import Tries
from tests.support.ids import ACCOUNT, OTHER_ACCOUNT
from tests.support.processes import ENVIRONMENT
from tests.support.service import Served
from tests.support.tenants.accounts import make_key, make_tenants

ROOT = Path(__file__).parents[2]
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
NAMED = ("{account_id}", "{conversation}", "{message}")
BODY = ("POST /v1/conversations", "POST /v1/deliveries/resume")
Json = dict[str, Any]


@pytest.mark.timeout(120)
async def test_schemathesis_with_a_limited_key_is_told_nothing_of_another_account(
    service: Served, tmp_path: Path
) -> None:
    tenants = await make_tenants(service)
    document = (await service.ask("GET", "/schema", key=None)).body
    path = {
        "account_id": OTHER_ACCOUNT,
        "conversation": tenants.chats[OTHER_ACCOUNT],
        "message": tenants.messages[OTHER_ACCOUNT],
    }
    things: dict[str, list[Json]] = {}
    for where, methods in document["paths"].items():
        for method in methods:
            name = f"{method.upper()} {where}"
            things[name] = [{"path": {one: path[one] for one in path if "{" + one + "}" in where}}]
            if name in BODY:
                things[name][0]["body"] = {"account_id": OTHER_ACCOUNT}
    files = {"ASKED": tmp_path / "asked.json", "TOLD": tmp_path / "told"}
    files["ASKED"].write_text(json.dumps(things))
    _, key = await make_key(service, "admin", accounts=[ACCOUNT])
    head = await service.head()
    paths = {"SCHEMATHESIS_HOOKS": "tests.support.openapi.schemathesis_hooks", "PYTHONPATH": str(ROOT)}
    secrets = json.dumps(tenants.secrets(OTHER_ACCOUNT)[1:])
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "schemathesis.cli"),
        *("--config-file", str(ROOT / "tests/support/openapi/schemathesis.toml")),
        *("run", f"{service.url}/schema", "--header", f"Authorization: Bearer {key}", "--no-color"),
        *("--phases", "examples,fuzzing", "--max-examples", "1", "--checks", CHECKS),
        *("--mode", "positive", "--exclude-tag", "webhooks", "--exclude-path-regex", "^/(oauth|install)"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=ENVIRONMENT
        | paths
        | {name: str(path) for name, path in files.items()}
        | {"HIDDEN_FROM_KEY": secrets},
        cwd=tmp_path,
    )
    assert child.stdout is not None
    reading = asyncio.create_task(child.stdout.read())
    while not reading.done():
        service.run.services.tries = Tries()
        await asyncio.wait([reading], timeout=0.2)
    told = (await reading).decode()
    assert await child.wait() == 0, told
    lines = files["TOLD"].read_text().splitlines()
    assert len(lines) > 100
    assert [one for one in lines if one.startswith("LEAK")] == []
    named = [one for one in lines if any(part in one for part in NAMED) or one[4:] in BODY]
    assert len(named) > 30
    assert {one[:3] for one in named} <= {"400", "404"}, [one for one in named if one[0] != "4"]
    assert {one["account"] for one in await service.since(head)} <= {ACCOUNT}
