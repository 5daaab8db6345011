"""`chatledger keys` and `chatledger access`: what they print, and their errors."""

import json
from typing import Any

from app.config import key_text
from tests.support.ids import ACCOUNT, ADMIN_KEY
from tests.support.processes import Result, run_command
from tests.support.service import Served


async def command(service: Served, *arguments: str, **given: str) -> Result:
    settings = {"CHATLEDGER_ADMIN_KEY": ADMIN_KEY, **given}
    return await run_command(*arguments, "--url", service.url, **settings)


async def test_keys_are_made_listed_replaced_and_deleted(service: Served) -> None:
    made = await command(service, "keys", "create", "shop", "--scope", "read", "--scope", "send")
    assert (made.code, "only time" in made.err) == (0, True), made
    assert key_text.is_key(made.out.strip())
    limits = ("--account", ACCOUNT, "--expires-at", "2999-01-01T00:00:00Z", "--json")
    told = await command(service, "keys", "create", "limited", "--scope", "audit", *limits)
    limited: dict[str, Any] = json.loads(told.out)
    assert (set(limited), told.err) == ({"id", "key"}, "")
    assert (await service.ask("GET", "/v1/conversations", key=limited["key"])).status == 200
    listed = await command(service, "keys", "list")
    (line,) = [one for one in listed.out.splitlines() if "limited" in one]
    assert line.startswith(f"{limited['id']}  limited: audit, {ACCOUNT}, until 2999-01-01T00:00:00.000Z, ")
    shown = json.loads((await command(service, "keys", "list", "--json")).out)["items"]
    assert {"shop", "limited"} <= {one["name"] for one in shown}

    new = await command(service, "keys", "replace", "shop", "--overlap", "0s")
    assert new.code == 0, new
    statuses = [
        (await service.ask("GET", "/v1/events", key=one)).status
        for one in (made.out.strip(), new.out.strip())
    ]
    assert statuses == [401, 200]
    both = await command(service, "keys", "delete", "shop")
    assert (both.code, "2 keys have the name shop" in both.err) == (1, True)
    gone = await command(service, "keys", "delete", "limited")
    assert (gone.code, gone.out) == (0, f"deleted {limited['id']}\n")
    assert (await service.ask("GET", "/v1/conversations", key=limited["key"])).status == 401


async def test_what_is_wrong_is_said(service: Served) -> None:
    for arguments, code, said in (
        (("keys", "create", "x"), 2, "--scope"),
        (("keys", "create", "x", "--scope", "root"), 2, "root"),
        (("keys", "create", "x", "--scope", "read", "--account", "acme"), 1, "$.accounts"),
        (("keys", "create", "x", "--scope", "read", "--expires-at", "soon"), 1, "zone"),
        (("keys", "delete", "nobody"), 1, "chatledger keys list"),
        (("keys", "replace", "admin", "--overlap", "soon"), 2, "24h"),
        (("keys", "replace", "admin", "--overlap", "31d"), 1, "overlap_seconds"),
        (("access", "--since", "yesterday"), 1, "since"),
    ):
        done = await command(service, *arguments)
        assert (done.code, said in done.err, done.out) == (code, True, ""), done
    refused = await command(service, "keys", "list", CHATLEDGER_ADMIN_KEY="another" * 4)
    assert (refused.code, "401" in refused.err) == (1, True)


async def test_who_looked_is_printed(service: Served) -> None:
    made = json.loads((await command(service, "keys", "create", "looks", "--scope", "read", "--json")).out)
    for _ in range(3):
        await service.ask("GET", "/v1/conversations", key=made["key"], params={"account_id": ACCOUNT})
    await service.run.services.access_log.flush()
    lines = (await command(service, "access", "--key", "looks", "--limit", "2")).out.splitlines()
    assert len(lines) == 2
    assert "200 GET /v1/conversations  looks, 2001:db8:" in lines[0]
    assert lines[0].endswith(f" account {ACCOUNT}")
    rows = (await command(service, "access", "--key", made["id"], "--account", ACCOUNT, "--json")).out
    assert [json.loads(row)["status"] for row in rows.splitlines()] == [200, 200, 200]
