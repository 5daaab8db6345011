"""What can be wrong with an installation is tried, and told in a sentence with what to do about it.

Nothing is changed by it but this: a connection that is recorded, and that Kommo has dropped, is made again;
and one that only the file names is made, to see whether Kommo allows it, and ended again unless the service
runs, which may have made it at the same time.
"""

import asyncio
import contextlib
import os
import re
import stat
from collections.abc import Awaitable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import aiohttp
import nats.errors
import psycopg
from msgspec import Struct
from rich.console import Console
from rich.table import Table
from rich.text import Text

from app.access.keyring import Keyring
from app.channels.directory import Channel, Channels
from app.config.file import Setup, check_together, load_setup
from app.config.settings import (
    MASTER_FILE,
    MASTER_OLD_FILE,
    BadSettings,
    Settings,
    find_admin_key,
    load_masters,
    load_settings,
    read_file,
)
from app.database import schema
from app.database.connection import connect, open_session
from app.database.pooler import Pooled
from app.doctor.kommo import Case, Strangers, known, service_url
from app.doctor.probe import Check, Unheard, hear, skewed, slow_log, unsafe_disk
from app.http.webhooks.body import UNSIGNED
from app.kommo.crm.addresses import NONCES
from app.kommo.crm.hooks import hook_path
from app.printable import printable
from app.servers.postgres import PrivatePostgres
from app.servers.process import ServerFailed
from app.servers.servers import OldServer, check_nats, check_postgres
from app.stream import jetstream
from app.stream.identity import BadIdentity
from app.vault import Vault, WrongMasterKey
from domain import ids

LIMIT_SECONDS = 20.0
CALL_SECONDS = 8.0
SOURCES = """
SELECT DISTINCT c.account_id, m.source FROM (SELECT conversation, source, outgoing FROM views.messages
  ORDER BY position DESC LIMIT 10000) AS m JOIN views.conversations AS c ON c.id = m.conversation
WHERE m.source IS NOT NULL AND NOT m.outgoing
"""
CLOCK_AND_LOG = """SELECT clock_timestamp(), current_setting('wal_compression'),
 ARRAY(SELECT name FROM pg_settings WHERE name IN ('fsync', 'full_page_writes') AND setting = 'off')"""
SOURCES_TIMEOUT = "SET statement_timeout = '5s'"  # Of a large ledger they are not worth more.
JETSTREAM_INFO = "$JS.API.INFO"
KEY_FILES = ("admin.key", MASTER_FILE, MASTER_OLD_FILE)
SECRET_NAME = re.compile(r"(secret|token|password|_KEY|_KEY_OLD)$")
UNKNOWN_SCOPE = "no channel is connected under this scope id"


class Ground(Struct):
    """What the first checks found, for the later ones.

    The ledger's channels, the keys, and the sources that messages named lately, by account.
    """

    channels: dict[str, Channel] = {}
    key: str = ""
    address_key: bytes = b""
    nonces: dict[str, bytes] = {}
    sources: dict[str, set[str]] = {}

    def hooks_path(self, account: str) -> str:
        """The path of an account's CRM webhooks; empty if our keys are not at hand."""
        key = self.address_key
        return hook_path(key, account, self.nonces.get(account, b"")) if key else ""


async def diagnose(config: Path | None) -> list[Check]:
    """Every check of the installation that the file and the environment describe."""
    try:
        settings, setup = load_settings(config), load_setup(config)
        check_together(settings, setup)
    except BadSettings as error:
        return [Check("settings", False, printable(str(error)), "mend that, and ask again")]
    where = f"{config} is complete" if config else "there is no file: give one with --config"
    names = ", ".join(channel.name for channel in setup.channels) or "none"
    says = f"{where}; channels: {names}; accounts with a CRM: {len(setup.accounts)}"
    found = [Check("settings", True, says if config else where), *exposed(config, settings.data)]
    return [*found, *await examine(settings, setup)]


def exposed(config: Path | None, data: Path) -> list[Check]:
    """A warning for each file with secrets that every user of this machine may read."""
    files = [data / name for name in KEY_FILES]
    if config and _holds_secret(read_file(config)):
        files.append(config)
    says = "warning: every user can read {}, which holds secrets"
    return [
        Check("secrets", True, says.format(file), f"chmod o= {file}")
        for file in files
        if os.access(file, os.F_OK) and file.stat().st_mode & stat.S_IROTH
    ]


def _holds_secret(value: object, name: str = "") -> bool:
    """Whether a value of the file, or one within it, is a secret itself and not `env:NAME`."""
    if isinstance(value, dict):
        return any(_holds_secret(inner, key) for key, inner in value.items())
    if isinstance(value, list):
        return any(_holds_secret(inner, name) for inner in value)
    if not isinstance(value, str) or value.startswith("env:"):
        return False
    return bool(SECRET_NAME.search(name)) or (name.endswith("_URL") and bool(urlsplit(value).password))


async def examine(settings: Settings, setup: Setup) -> list[Check]:
    """Every check, in the order to mend things in; what does not depend on each other is tried together."""
    timeout = aiohttp.ClientTimeout(total=CALL_SECONDS)
    async with aiohttp.ClientSession(timeout=timeout, cookie_jar=aiohttp.DummyCookieJar()) as session:
        ground = Ground()
        doctor, strangers = Doctor(settings, session, ground), Strangers(settings, session)
        found = await _together(
            {
                "data folder": doctor.folder(),
                "database": doctor.database(),
                "nats": doctor.nats(),
                "service": doctor.service(),
                "public url": doctor.public(setup),
                "kommo": doctor.kommo(),
            }
        )
        who = known(setup, ground.channels)
        recorded: list[Case | None] = [case for case in who.cases if case.recorded]
        found += await _together(
            {f"messenger of {channel.name}": strangers.messenger(channel) for channel in who.channels}
            | {case.name: strangers.account(case) for case in who.cases}
            | {_hooks(case): doctor.hooks(case) for case in recorded or [None]}
            | {"deliveries": doctor.deliveries()}
        )
        crms = {
            f"crm of account {one.account_id}": strangers.crm(
                one, ground.key, ground.hooks_path(one.account_id), ground.sources
            )
            for one in setup.accounts
        }
        found += await _together({"oauth": strangers.app(setup)} | crms)
        return [Check(one.name, one.ok, printable(one.says), printable(one.todo)) for one in found]


async def _together(checks: Mapping[str, Awaitable[Iterable[Check]]]) -> list[Check]:
    """Run them at the same time, each for so long at most."""
    found = await asyncio.gather(*(_limited(name, check) for name, check in checks.items()))
    return [check for each in found for check in each]


async def _limited(name: str, check: Awaitable[Iterable[Check]]) -> list[Check]:
    try:
        async with asyncio.timeout(LIMIT_SECONDS):
            return list(await check)
    except Unheard as error:
        return [Check(name, False, error.says, error.todo)]
    except BadSettings as error:
        return [Check(name, False, str(error), "mend that, and ask again")]
    except TimeoutError:
        return [
            Check(name, False, f"no answer within {LIMIT_SECONDS:.0f} s", "try again; look at the network")
        ]
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        says = f"{where}{error.strerror or error}"
        return [Check(name, False, says, "run the doctor as the user whom the service runs as")]


class Doctor:
    """The checks of what is ours: servers, data folder, the service and the way to it from outside."""

    def __init__(self, settings: Settings, session: aiohttp.ClientSession, ground: Ground) -> None:
        self._settings, self._session, self._ground = settings, session, ground

    async def folder(self) -> list[Check]:
        """It can be written to, and has the keys."""
        folder, name = self._settings.data, "data folder"
        if not folder.exists():
            return [Check(name, True, f"{folder} is made by the first start, with the keys")]
        if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            return [
                Check(name, False, f"{folder} is not writable for this user", "mend its owner, or run as it")
            ]
        if (folder / MASTER_OLD_FILE).exists():
            says = "a rotation of the master key is not finished"
            return [Check(name, False, says, "run `chatledger keys rotate-master`, which goes on with it")]
        return [Check(name, True, f"{folder} is there")]

    async def database(self) -> list[Check]:
        """It answers, is of a version we know, has our tables, and its clock is ours."""
        url = self._settings.database_url or _private(self._settings.data)
        if url is None:
            return [Check("database", True, "private: the service starts it, and it is not running")]
        try:
            await check_postgres(url)
            async with await open_session(url) as connection:
                ids.use_namespace((await schema.check(connection)).id_secret)
                ((moment, packed, off),) = await (await connection.execute(CLOCK_AND_LOG)).fetchall()
            clock = skewed("database clock", datetime.now(UTC), cast("datetime", moment), "the database's")
            found = [Check("database", True, "PostgreSQL answers, with this version's tables"), clock]
            return [*found, *slow_log(str(packed)), *unsafe_disk(off), *(await self._registered(url))]
        except ServerFailed as error:
            todo = "start it, or mend CHATLEDGER_DATABASE_URL"
            return [Check("database", False, " ".join(str(error).split()), todo)]
        except OldServer as error:
            return [Check("database", False, str(error), "use a server of one of these versions")]
        except (schema.NewerSchema, schema.WrongEncoding, Pooled) as error:
            says, _, todo = str(error).partition(": ")
            return [Check("database", False, says, todo)]
        except schema.OldSchema as error:
            todo = "run `chatledger migrate`" if self._settings.database_url else "restart the service"
            return [Check("database", False, str(error).partition(":")[0], todo)]
        except psycopg.Error as error:
            todo = "give its user the rights to chatledger's tables: run `chatledger migrate` as the owner"
            return [Check("database", False, f"PostgreSQL refuses: {str(error).strip()}", todo)]

    async def _registered(self, url: str) -> list[Check]:
        """Read the channels with their secrets, for the later checks."""
        settings = self._settings
        if not (settings.master_key or (settings.data / "master.key").exists()):
            return []
        masters = load_masters(settings)
        if settings.admin_key or (settings.data / "admin.key").exists():
            self._ground.key = find_admin_key(settings)
        vault = Vault(*masters)
        channels = Channels(url, vault)
        try:
            self._ground.channels = dict(await channels.all())
            keyring = Keyring(url, vault, masters)
            self._ground.address_key = await keyring.address_key(make=False)
            for reason in channels.unopened.values():
                raise WrongMasterKey(reason)
        except WrongMasterKey as error:
            return [Check("master key", False, str(error).partition(":")[0], str(error).partition(": ")[2])]
        except psycopg.errors.UndefinedTable:
            return [Check("views", False, "the views are not made yet", "start the service once")]
        finally:
            await channels.close()
        async with await connect(url) as connection:
            for account, nonce in await (await connection.execute(NONCES)).fetchall():
                self._ground.nonces[str(account)] = bytes(cast("bytes", nonce))
            await connection.execute(SOURCES_TIMEOUT)
            with contextlib.suppress(psycopg.errors.QueryCanceled):
                for account, source in await (await connection.execute(SOURCES)).fetchall():
                    self._ground.sources.setdefault(str(account), set()).add(str(source))
        return []

    async def nats(self) -> list[Check]:
        """It answers, is new enough, lets us in and has JetStream."""
        url = self._settings.nats_url
        if url is None:
            return [Check("nats", True, "private: the service starts it")]
        try:
            await check_nats(url)
            identity = self._settings.nats_identity
            connection = await jetstream.connect(
                url, name="chatledger doctor", seconds=CALL_SECONDS, identity=identity
            )
        except ServerFailed as error:
            return [Check("nats", False, str(error), "start it, or mend CHATLEDGER_NATS_URL")]
        except OldServer as error:
            return [Check("nats", False, str(error), "update it")]
        except BadIdentity as error:
            return [Check("nats", False, str(error), "mend that, and ask again")]
        except jetstream.StreamUnavailable as error:
            return [Check("nats", False, str(error), "check user, password and CHATLEDGER_NATS_URL")]
        try:
            told = (await connection.request(JETSTREAM_INFO, b"", timeout=CALL_SECONDS)).data
        except (nats.errors.NoRespondersError, nats.errors.TimeoutError):
            told = b'{"error"'
        finally:
            await connection.close()
        if b'"error"' in told:
            says = "NATS answers, and has no JetStream for this user"
            return [Check("nats", False, says, "turn JetStream on: ops/nats.conf shows how")]
        return [Check("nats", True, "NATS answers, with JetStream")]

    async def service(self) -> list[Check]:
        """The service itself answers where it should, and is ready."""
        url = service_url(self._settings)
        try:
            alive = await hear(self._session, "GET", f"{url}/healthz")
            ready = await hear(self._session, "GET", f"{url}/readyz")
        except Unheard as error:
            return [Check("service", False, f"not running: {error.says}", "start it: chatledger serve")]
        if alive.json().get("status") != "ok":
            todo = "stop that, or set CHATLEDGER_PORT to another port"
            return [Check("service", False, f"something else answers at {url}", todo)]
        if ready.status != 200:
            todo = "wait a moment, then look at its log"
            return [Check("service", False, f"not ready: {_unready(ready.json())}", todo)]
        found = [Check("service", True, f"answers at {url}")]
        for part in cast("list[dict[str, str]]", ready.json().get("parts", [])):
            if part["part"] == "relay" and part["state"] == "stuck":
                todo = "mend that, and it goes on by itself; meanwhile subscribers see the past"
                found.append(Check("relay", False, part["detail"], todo))
        return found

    async def public(self, setup: Setup) -> list[Check]:
        """Who calls the public URL reaches a chatledger.

        Kommo's support was given the address of the hooks by hand, so that a channel works without it; for a
        CRM's webhooks we must know it ourselves.
        """
        url = self._settings.public_url
        if url is None:
            todo = "set CHATLEDGER_PUBLIC_URL to the URL under which Kommo reaches this service"
            if setup.accounts:
                says = "not set, so the webhooks of the accounts' CRM have no address to come to"
                return [Check("public url", False, says, todo)]
            says = "not set; Kommo's hooks come where its support was told, which is not tried"
            return [Check("public url", True, says, todo)]
        heard = await hear(self._session, "GET", f"{url.rstrip('/')}/healthz")
        if heard.json().get("status") == "ok":
            return [Check("public url", True, f"{url} reaches a chatledger")]
        says = f"{url} answers HTTP {heard.status}, but not as chatledger does"
        return [Check("public url", False, says, "let the reverse proxy pass every path to the service")]

    async def deliveries(self) -> list[Check]:
        """Nothing waits for somebody to look."""
        headers = {"Authorization": f"Bearer {self._ground.key}"}
        if not self._ground.key:
            return []
        try:
            heard = await hear(
                self._session, "GET", f"{service_url(self._settings)}/v1/status", headers=headers
            )
        except Unheard:
            return []  # That is told already.
        counts = heard.json().get("deliveries")
        parked = int(counts.get("parked", 0)) if isinstance(counts, dict) else 0
        waiting = heard.json().get("unconnected")
        found = [_unconnected(one) for one in cast("list[dict[str, object]]", waiting or [])]
        parked -= sum(int(one.get("deliveries", 0)) for one in cast("list[dict[str, int]]", waiting or []))
        if found and parked <= 0:
            return found
        if not parked:
            return [Check("deliveries", True, "none is parked")]
        says = "1 delivery is parked" if parked == 1 else f"{parked} deliveries are parked"
        todo = "GET /v1/deliveries?state=parked tells why; then POST /v1/deliveries/resume"
        return [Check("deliveries", False, says, todo), *found]

    async def hooks(self, case: Case | None) -> list[Check]:
        """A hook with a bad signature is refused by us; without a case, one for a scope nobody has."""
        url, name = self._settings.public_url, _hooks(case)
        if url is None:
            return []
        scope = case.where.scope_id if case else f"{uuid4()}_{UUID(int=0)}"
        address = f"{url.rstrip('/')}/kommo/{scope}"
        headers = {"X-Signature": "0" * 40, "Content-Type": "application/json"}
        heard = await hear(self._session, "POST", address, body=b"{}", headers=headers)
        detail = heard.json().get("detail")
        if (heard.status, detail) == (403, UNSIGNED) or (
            case is None and (heard.status, detail) == (404, UNKNOWN_SCOPE)
        ):
            return [Check(name, True, "Kommo's hooks reach us, and a forged one is refused")]
        if (heard.status, detail) == (404, UNKNOWN_SCOPE):
            says = "the chatledger behind the public URL does not know this scope"
            return [Check(name, False, says, "let the public URL lead to this service, or restart it")]
        says = f"the hook address answers HTTP {heard.status}, but not as chatledger does"
        todo = "let the reverse proxy pass POST /kommo/… to the service, with body and headers as they are"
        return [Check(name, False, says, todo)]

    async def kommo(self) -> list[Check]:
        """The Chats API answers something, and its clock is ours."""
        url = self._settings.kommo_url
        heard = await hear(self._session, "GET", url)
        found = [Check("kommo", True, f"{url} answers")]
        if moment := heard.date:
            found.append(skewed("kommo clock", datetime.now(UTC), moment, "Kommo's"))
        return found


def _unconnected(waiting: Mapping[str, object]) -> Check:
    """What customers wrote to an account that nobody has connected yet."""
    channel = waiting.get("channel")
    says = f"{waiting.get('deliveries')} for account {waiting.get('account_id')} wait for its connection"
    todo = f"POST /v1/channels/{channel}/connections connects it, and they are delivered"
    return Check(f"deliveries of channel {channel}", False, says, todo)


def _unready(answer: dict[str, object]) -> str:
    """The details of an answer of /readyz."""
    parts = answer.get("parts")
    details = (
        [part.get("detail") for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
    )
    return "; ".join(str(one) for one in details if one) or str(answer.get("detail"))


def _hooks(case: Case | None) -> str:
    return f"hooks of {case.name}" if case else "hooks"


def _private(data: Path) -> str | None:
    """Where the private PostgreSQL listens, if the service runs it now."""
    server = PrivatePostgres(data / "postgres")
    return server.url if any(server.sockets.glob(".s.PGSQL.*")) else None


def show(checks: list[Check], console: Console) -> None:
    """A table where somebody looks, plain lines elsewhere."""
    if not console.is_terminal:
        for check in checks:
            todo = f" -> {check.todo}" if check.todo else ""
            line = f"{'ok   ' if check.ok else 'WRONG'} {check.name}: {check.says}{todo}"
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        return
    table = Table(show_header=True, header_style="bold")
    for title in ("", "what", "says", "to do"):
        table.add_column(title, overflow="fold")
    for check in checks:
        mark = Text("ok", "green") if check.ok else Text("wrong", "bold red")
        table.add_row(mark, *map(Text, (check.name, check.says, check.todo)))
    console.print(table)
