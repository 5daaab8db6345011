"""A new ledger's ids cannot be guessed, and stay the same over restarts, processes and a restored copy."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp

from app.servers.servers import Servers
from domain import ids
from ops.sandbox import Sandbox
from tests.support.databases import database
from tests.support.ids import ACCOUNT, ADMIN_KEY, AS_ADMIN, CHANNEL, SCOPE
from tests.support.processes import Process, run_command, started
from tests.support.service import channel, sent, signed
from tests.support.system import config, free_port

PHONE = "+15550142"


async def test_a_phone_cannot_be_guessed_from_the_id_of_its_conversation(
    servers: Servers, tmp_path: Path
) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    async with (
        database(servers, keyed=True) as database_url,
        Sandbox(config(url)) as sandbox,
        aiohttp.ClientSession(headers=AS_ADMIN) as session,
    ):
        settings = {
            "CHATLEDGER_DATA": str(tmp_path / "data"),
            "CHATLEDGER_DATABASE_URL": database_url,
            "CHATLEDGER_NATS_URL": servers.nats_url,
            "CHATLEDGER_ADMIN_KEY": ADMIN_KEY,
            "CHATLEDGER_KOMMO_URL": sandbox.url,
            "CHATLEDGER_PORT": str(port),
            "CHATLEDGER_ROLES": "web,project",
        }
        assert (await run_command("migrate", **settings)).code == 0
        async with started(Process(tmp_path, "app", "serve", **settings)):
            await asked(session, "POST", f"{url}/v1/channels", channel())
            await asked(session, "POST", f"{url}/v1/channels/acme/connections", {"account_id": ACCOUNT})
            first = await wrote(session, url)
            query = f"conversation_id={quote(PHONE)}&at_least={first['position']}"
            (chat,) = (await asked(session, "GET", f"{url}/v1/conversations?{query}"))["items"]
            told = await run_command("status", "--url", url, **settings)
            assert "ids       keyed" in told.out
        guesses = {guess for number in range(1000) for guess in attempts(f"+15550{number:03d}")}
        assert chat["id"] not in guesses
        assert first["id"] != ids.message_id(SCOPE, "messenger", "m-1")
        template = database_url.rpartition("/")[2].partition("?")[0]
        async with database(servers, template) as copy_url:  # As a restore of a backup.
            settings["CHATLEDGER_DATABASE_URL"] = copy_url
            assert (await run_command("migrate", **settings)).code == 0
            async with started(Process(tmp_path, "app", "serve", **settings)):
                again = await wrote(session, url)
        assert again == first | {"duplicate": True}


def attempts(phone: str) -> list[str]:
    """What an attacker makes of a phone, who knows the code, the channel and the account."""
    makers: list[Callable[[ids.Scope, str, str], str]] = [ids.conversation_id, ids.message_id]
    return [make(ids.scope_of("acme", CHANNEL, ACCOUNT), "messenger", phone) for make in makers]


async def wrote(session: aiohttp.ClientSession, url: str) -> dict[str, object]:
    """The result of the customer's first message."""
    body = json.dumps(sent(1, conversation_id=PHONE)).encode()
    async with session.post(f"{url}/messengers/acme", data=body, headers=signed(body)) as answer:
        assert answer.status == 200, await answer.text()
        found: dict[str, object] = (await answer.json())["results"][0]
        return found


async def asked(session: aiohttp.ClientSession, method: str, url: str, content: object = None) -> Any:
    async with session.request(method, url, json=content) as answer:
        assert answer.status < 300, await answer.text()
        return await answer.json()
