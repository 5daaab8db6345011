"""Whatever is wrong with an installation is told in a sentence, with what to do about it."""

import asyncio
import io
import json
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import psycopg
import pytest
from aiohttp import web
from msgspec.structs import replace
from rich.console import Console
from standardwebhooks import Webhook

from app.channels.directory import Channel as Registered
from app.channels.directory import Secrets
from app.config.file import Account, Channel, Connected, KommoSide, MessengerSide, Setup
from app.config.settings import Settings
from app.doctor.doctor import Doctor, Ground, diagnose, examine, show
from app.doctor.kommo import Case, Strangers
from app.doctor.probe import Check, skewed
from app.servers.nats import nats_binary
from app.servers.servers import Servers
from app.service.service import migrate, running
from app.stream import jetstream
from domain import ids
from tests.support.databases import NewDatabase
from tests.support.ids import (
    ACCOUNT,
    BOT,
    CHANNEL,
    CHANNEL_SECRET,
    MESSENGER_SECRET,
    OTHER_ACCOUNT,
    SCOPE,
)
from tests.support.processes import ROOT, Process
from tests.support.system import WAIT_SECONDS, Story, free_port, installed, until

STRANGER = "52e591f7-c98f-4255-8495-827210138c83"
UNKNOWN = "00000000-f8ca-454d-af3d-396180102ac7"
ACME = f"channel acme, account {ACCOUNT}"
NOBODY = "http://chat.example.invalid"
DOWN = "http://127.0.0.1:9"


class Clinic:
    """A service that is well, and the settings and the file that it was started with."""

    def __init__(self, story: Story, settings: Settings, setup: Setup) -> None:
        self.story, self.settings, self.setup = story, settings, setup

    async def examined(self, setup: Setup | None = None, **changed: Any) -> dict[str, Check]:
        """The checks of other settings or another file, by their names."""
        settings = msgspec.structs.replace(self.settings, **changed)
        return {check.name: check for check in await examine(settings, setup or self.setup)}

    def file(self, *accounts: str, **changed: str) -> Setup:
        """A file with one channel; `url`, `secret` and `channel_id` may differ."""
        url = changed.get("url", f"{self.story.sandbox.url}/messenger/hook")
        kommo = KommoSide(changed.get("channel_id", CHANNEL), changed.get("secret", CHANNEL_SECRET), BOT)
        connections = tuple(Connected(account, "Acme") for account in accounts)
        name = changed.get("name", "acme")
        return Setup(
            channels=(Channel(name, kommo, MessengerSide("webhook", url, MESSENGER_SECRET), connections),)
        )


@pytest.fixture(scope="module")
async def clinic(servers: Servers) -> AsyncIterator[Clinic]:
    """A channel with one account connected; a second one may be, a third one not."""
    async with installed(servers, accounts=(ACCOUNT, OTHER_ACCOUNT)) as (story, settings):
        settings = replace(settings, public_url=story.url)
        clinic = Clinic(story, settings, Setup())
        clinic.setup = clinic.file(ACCOUNT)
        async with running(settings, clinic.setup) as run:
            story.run = run
            await until(lambda: SCOPE.scope_id in story.sandbox.chat_state.connections)
            async with asyncio.timeout(WAIT_SECONDS):
                while (await story.call("POST", f"{story.url}/kommo/{SCOPE.scope_id}", {}))[0] != 403:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)  # The scope becomes known to the web within the lease.
            yield clinic


async def test_who_is_well_is_told_so(clinic: Clinic) -> None:
    found = await clinic.examined()
    assert [check for check in found.values() if not check.ok] == []
    assert set(found) == {
        *("data folder", "database", "database clock", "nats", "service", "public url", "kommo"),
        *("kommo clock", "messenger of acme", ACME, f"hooks of {ACME}", "deliveries"),
    }


# What is changed, the check that must notice, what it must say and what to do, as they contain.
OURS: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "no database": (
        {"database_url": "postgresql://x@127.0.0.1:9/x"},
        "database",
        "does not answer",
        "CHATLEDGER_DATABASE_URL",
    ),
    "no nats": ({"nats_url": "nats://127.0.0.1:9"}, "nats", "does not answer", "CHATLEDGER_NATS_URL"),
    "no service": ({"port": 9}, "service", "not running", "chatledger serve"),
    "another master key": (
        {"master_key": "MTIzNDU2Nzg5MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTI="},
        "master key",
        "sealed with another",
        "CHATLEDGER_MASTER_KEY",
    ),
    "a name that DNS does not have": ({"public_url": NOBODY}, "public url", "DNS does not know", "spelling"),
    "a public URL where nobody is": (
        {"public_url": DOWN},
        "public url",
        "refuses the connection",
        "start it",
    ),
    "no Kommo": ({"kommo_url": DOWN}, "kommo", "refuses the connection", "start it"),
    "a Kommo that DNS does not have": ({"kommo_url": NOBODY}, "kommo", "DNS does not know", "spelling"),
}


@pytest.mark.parametrize("case", OURS)
async def test_what_is_ours_and_wrong_is_told(clinic: Clinic, case: str) -> None:
    changed, name, says, todo = OURS[case]
    check = (await clinic.examined(**changed))[name]
    assert (check.ok, says in check.says, todo in check.todo) == (False, True, True), check


async def test_a_wrong_password_of_nats_is_told(clinic: Clinic) -> None:
    place = str(clinic.settings.nats_url).rpartition("@")[2]
    check = (await clinic.examined(nats_url=f"nats://wrong@{place}"))["nats"]
    assert (check.ok, "check user, password" in check.todo) == (False, True), check
    assert "wrong" not in check.says


async def test_a_nats_without_jetstream_is_told(clinic: Clinic) -> None:
    port = free_port()
    child = await asyncio.create_subprocess_exec(
        nats_binary(), "-a", "127.0.0.1", "-p", str(port), stderr=asyncio.subprocess.DEVNULL
    )
    try:
        url = f"nats://127.0.0.1:{port}"
        await (await jetstream.connect(url, name="test")).close()
        check = (await clinic.examined(nats_url=url))["nats"]
    finally:
        child.terminate()
        await child.wait()
    assert (check.ok, "has no JetStream" in check.says, "ops/nats.conf" in check.todo) == (False, True, True)


async def test_a_database_without_our_tables_is_told(clinic: Clinic, new_database: NewDatabase) -> None:
    url = await new_database(keyed=True)
    check = (await clinic.examined(database_url=url))["database"]
    assert (check.ok, "no chatledger tables" in check.says) == (False, True), check
    assert check.todo == "run `chatledger migrate`"
    url = await new_database()
    await migrate(url)
    found = await clinic.examined(database_url=url)
    assert (found["database"].ok, found["views"].todo) == (True, "start the service once")


async def test_an_old_schema_is_told(clinic: Clinic, new_database: NewDatabase) -> None:
    url = await new_database()
    await migrate(url)
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        await connection.execute("UPDATE ledger.meta SET version = 1, tables = 1")
        check = (await clinic.examined(database_url=url))["database"]
        assert (check.ok, "version 1" in check.says) == (False, True), check
        await connection.execute("UPDATE ledger.meta SET version = 99")
        check = (await clinic.examined(database_url=url))["database"]
    assert (check.ok, "version 99" in check.says, "newer chatledger" in check.todo) == (False, True, True)


async def test_a_spoiled_key_is_one_check_and_the_others_are_told(clinic: Clinic, tmp_path: Path) -> None:
    (tmp_path / "master.key").write_text("AAAA")
    found = await clinic.examined(data=tmp_path, master_key=None)
    assert (found["database"].ok, "master.key" in found["database"].says) == (False, True), found["database"]
    assert "give 32 bytes" in found["database"].says
    assert all(found[name].ok for name in ("data folder", "nats", "service", "kommo", "messenger of acme"))


async def test_a_folder_that_cannot_be_looked_at_is_one_check(clinic: Clinic, tmp_path: Path) -> None:
    found = await clinic.examined(data=tmp_path / ("x" * 300))  # Longer than a name may be: an OSError.
    assert (found["data folder"].ok, "xxx" in found["data folder"].says) == (False, True)
    assert all(found[name].ok for name in ("nats", "service", "kommo", "messenger of acme"))


async def parked(story: Story) -> None:
    """Wait until a delivery is."""
    async with asyncio.timeout(15):
        while True:
            if (await story.api("GET", "/v1/status"))["deliveries"]["parked"]:
                return
            await asyncio.sleep(0.05)


async def test_what_is_parked_is_told(clinic: Clinic) -> None:
    story = clinic.story
    await story.fault("kommo.new_message", "404", times=2)
    await story.customer("parked")
    await parked(story)
    check = (await clinic.examined())["deliveries"]
    assert check.says == "1 delivery is parked"
    assert (check.ok, "POST /v1/deliveries/resume" in check.todo) == (False, True)
    await story.api("POST", "/v1/deliveries/resume")
    await story.arrived("parked")
    await story.settled()
    assert (await clinic.examined())["deliveries"].ok


async def test_something_else_at_our_port_or_public_url_is_told(clinic: Clinic) -> None:
    stranger = clinic.story.sandbox.url
    found = await clinic.examined(port=int(stranger.rpartition(":")[2]), public_url=stranger)
    for name, todo in (
        ("service", "CHATLEDGER_PORT"),
        ("public url", "reverse proxy"),
        (f"hooks of {ACME}", "POST /kommo/"),
    ):
        assert (found[name].ok, todo in found[name].todo) == (False, True), found[name]


async def test_a_public_url_whose_tls_is_none_is_told(clinic: Clinic) -> None:
    check = (await clinic.examined(public_url=clinic.story.url.replace("http:", "https:")))["public url"]
    assert (check.ok, "TLS" in check.says) == (False, True), check


async def test_a_public_url_that_leads_to_another_chatledger_is_told(clinic: Clinic) -> None:
    case = Case(ids.scope_of("acme", UNKNOWN, ACCOUNT), CHANNEL_SECRET, recorded=True)
    async with aiohttp.ClientSession() as session:
        [check] = await Doctor(clinic.settings, session, Ground()).hooks(case)
    assert (check.ok, "does not know this scope" in check.says) == (False, True), check


async def test_without_a_public_url_the_way_to_us_is_not_tried(clinic: Clinic) -> None:
    found = await clinic.examined(public_url=None)
    assert (found["public url"].ok, "CHATLEDGER_PUBLIC_URL" in found["public url"].todo) == (True, True)
    assert f"hooks of {ACME}" not in found


async def test_a_crm_needs_a_public_url(clinic: Clinic) -> None:
    listed = msgspec.structs.replace(clinic.setup, accounts=(Account(ACCOUNT, DOWN),))
    check = (await clinic.examined(listed, public_url=None))["public url"]
    assert (check.ok, "CRM" in check.says, "CHATLEDGER_PUBLIC_URL" in check.todo) == (False, True, True)


NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("minutes", "ok", "says"),
    [
        (0, True, "within 1 s of Kommo's"),
        (4.9, True, "within 294 s of Kommo's"),
        (-5, True, "within 300 s"),
        (7, False, "7 minutes ahead of Kommo's; signatures are good for 15"),
        (-20, False, "20 minutes behind Kommo's"),
    ],
)
def test_a_clock_is_well_within_five_minutes(minutes: float, ok: bool, says: str) -> None:
    check = skewed("clock", NOON + timedelta(minutes=minutes), NOON, "Kommo's")
    assert (check.ok, says in check.says, bool(check.todo)) == (ok, True, not ok), check


# The file that is changed, the check that must notice, what it must say and what to do.
THEIRS: dict[str, tuple[tuple[str, ...], dict[str, str], str, str, str]] = {
    "a wrong secret": ((ACCOUNT,), {"secret": "wrong" * 8}, ACME, "403", "secret as Kommo's support sent it"),
    "a private channel": (
        (STRANGER,),
        {},
        f"channel acme, account {STRANGER}",
        "is private",
        "ask Kommo's support to add",
    ),
    "an unknown channel": (
        (ACCOUNT,),
        {"name": "new", "channel_id": UNKNOWN},
        f"channel new, account {ACCOUNT}",
        f"no channel {UNKNOWN}",
        "give the channel_id",
    ),
    "no messenger": ((), {"url": DOWN}, "messenger of acme", "refuses the connection", "mend the port"),
    "a messenger that DNS does not have": (
        (),
        {"url": NOBODY},
        "messenger of acme",
        "DNS does not know chat.example.invalid",
        "spelling",
    ),
}


@pytest.mark.parametrize("case", THEIRS)
async def test_what_is_wrong_with_the_others_is_told(clinic: Clinic, case: str) -> None:
    accounts, changed, name, says, todo = THEIRS[case]
    check = (await clinic.examined(clinic.file(*accounts, **changed)))[name]
    assert (check.ok, says in check.says, todo in check.todo) == (False, True, True), check


async def test_a_messenger_without_tls_is_told_apart(clinic: Clinic) -> None:
    url = clinic.story.sandbox.url.replace("http:", "https:")
    check = (await clinic.examined(clinic.file(url=url)))["messenger of acme"]
    assert (check.ok, "TLS" in check.says, "chain" in check.todo) == (False, True, True), check


async def test_a_kommo_that_fails_is_told(clinic: Clinic) -> None:
    await clinic.story.fault("kommo.history", "500")
    check = (await clinic.examined())[ACME]
    assert (check.ok, "HTTP 500" in check.says) == (False, True), check


async def test_an_account_that_is_not_connected_yet_is_tried_and_left_as_it_was(clinic: Clinic) -> None:
    name = f"channel acme, account {OTHER_ACCOUNT}"
    check = (await clinic.examined(clinic.file(ACCOUNT, OTHER_ACCOUNT), port=9))[name]  # Nobody runs there.
    assert (check.ok, "the next start does it" in check.says) == (True, True), check
    assert not clinic.story.sandbox.chat_state.connections[f"{CHANNEL}_{OTHER_ACCOUNT}"].active


async def test_what_the_service_may_just_have_connected_is_not_disconnected(clinic: Clinic) -> None:
    name = f"channel acme, account {OTHER_ACCOUNT}"
    check = (await clinic.examined(clinic.file(ACCOUNT, OTHER_ACCOUNT)))[name]
    assert (check.ok, "a start records that" in check.says) == (True, True), check
    assert clinic.story.sandbox.chat_state.connections[f"{CHANNEL}_{OTHER_ACCOUNT}"].active


async def test_a_connection_that_kommo_dropped_is_made_again(clinic: Clinic) -> None:
    clinic.story.sandbox.chat_state.connections[SCOPE.scope_id].active = False
    check = (await clinic.examined())[ACME]
    assert (check.ok, "dropped" in check.says, "/v1/deliveries/resume" in check.todo) == (True, True, True)
    assert clinic.story.sandbox.chat_state.connections[SCOPE.scope_id].active


async def test_what_an_operator_disconnected_is_not_connected_by_looking(clinic: Clinic) -> None:
    story = clinic.story
    await story.api("POST", "/v1/channels/acme/connections", {"account_id": OTHER_ACCOUNT})
    await story.api("DELETE", f"/v1/channels/acme/connections/{OTHER_ACCOUNT}")
    check = (await clinic.examined(clinic.file(ACCOUNT, OTHER_ACCOUNT)))[
        f"channel acme, account {OTHER_ACCOUNT}"
    ]
    assert (check.ok, "disconnected" in check.says) == (True, True), check
    assert not story.sandbox.chat_state.connections[f"{CHANNEL}_{OTHER_ACCOUNT}"].active


CHECKS = [Check("database", True, "answers"), Check("nats", False, "[b]is away", "start it")]


def test_plain_lines_are_for_logs_and_a_table_for_people() -> None:
    plain, table = io.StringIO(), io.StringIO()
    show(CHECKS, Console(file=plain, width=20))
    show(CHECKS, Console(file=table, width=100, force_terminal=True))
    assert plain.getvalue() == "ok    database: answers\nWRONG nats: [b]is away -> start it\n"
    assert "[b]is away" in table.getvalue()
    assert "wrong" in table.getvalue()


async def test_a_file_that_is_wrong_is_the_only_check(tmp_path: Path) -> None:
    path = tmp_path / "chatledger.toml"
    path.write_text("[budget]\nx = 1")
    [check] = await diagnose(path)
    assert (check.name, check.ok, "did you mean budgets" in check.says) == ("settings", False, True)


async def run(*arguments: str) -> tuple[int, str]:
    """The command as it is run: its exit code and what it printed."""
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "app", *arguments),
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
        env=Process(Path("/tmp"), "app").settings,
    )
    told, _ = await child.communicate()
    return child.returncode or 0, told.decode()


async def test_the_command_says_by_its_exit_code_whether_all_is_well(clinic: Clinic, tmp_path: Path) -> None:
    settings = msgspec.to_builtins(clinic.settings, enc_hook=str)
    lines = [
        f"{key} = {json.dumps(value)}"
        for key, value in settings.items()
        if isinstance(value, str | int) and value
    ]
    url = f"{clinic.story.sandbox.url}/messenger/hook"
    lines += [
        "[[channels]]",
        'name = "acme"',
        f'kommo = {{ channel_id = "{CHANNEL}", secret = "{CHANNEL_SECRET}" }}',
    ]
    lines += [f'messenger = {{ kind = "webhook", url = "{url}", secret = "{MESSENGER_SECRET}" }}']
    lines += [f'connections = [{{ account_id = "{ACCOUNT}" }}]']
    path = tmp_path / "chatledger.toml"
    path.write_text("\n".join(lines))
    code, told = await run("--config", str(path), "doctor", "--json")
    assert (code, [one for one in json.loads(told)["checks"] if not one["ok"]]) == (0, [])
    path.write_text("\n".join(lines).replace(CHANNEL_SECRET, "wrong" * 8))
    code, told = await run("--config", str(path), "doctor")
    assert code == 1
    assert f"WRONG {ACME}: Kommo does not take our signature (403)" in told


async def test_the_example_is_printed(tmp_path: Path) -> None:
    code, told = await run("doctor", "--example")
    assert (code, "[[channels]]" in told) == (0, True)


# How a messenger answers a signed probe: the check is well or not, and what it says and advises.
PROBED: dict[str, tuple[int, str, bool, str, str]] = {
    "an object": (200, '{"ok":true}', True, "it takes our calls (HTTP 200", ""),
    "nothing": (204, "", True, "it takes our calls (HTTP 204", ""),
    "a page": (200, "<html>Hello</html>", False, "with no JSON object", "message_id"),
    "a list": (200, "[]", False, "with no JSON object", "message_id"),
    "another secret": (401, "{}", False, "does not take our signature", "same secret"),
    "another path": (404, "{}", False, "nothing takes our calls", "url of the channel"),
    "no POST": (405, "", False, "nothing takes our calls", "url of the channel"),
    "an unknown type": (422, '{"code":905}', True, "does not know the probe", ""),
    "an error": (500, "", False, "answers HTTP 500", "log"),
    "a redirect": (302, "", False, "answers HTTP 302", "log"),
}


@pytest.mark.parametrize("case", PROBED)
async def test_the_answer_of_a_messenger_to_a_signed_probe_is_looked_at(case: str) -> None:
    status, text, well, says, todo = PROBED[case]
    taken: list[dict[str, Any]] = []

    async def take(request: web.Request) -> web.Response:
        taken.append(Webhook(MESSENGER_SECRET).verify(await request.read(), dict(request.headers)))
        return web.Response(status=status, text=text)

    app = web.Application()
    app.router.add_post("/hook", take)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
    channel = Registered("acme", CHANNEL, "webhook", url, None, Secrets(CHANNEL_SECRET, MESSENGER_SECRET))
    try:
        async with aiohttp.ClientSession() as session:
            (check,) = await Strangers(Settings(data=Path("/nowhere")), session).messenger(channel)
    finally:
        await runner.cleanup()
    assert (check.ok, says in check.says, todo in check.todo) == (well, True, True), check
    assert [one["type"] for one in taken] == ["probe"]
