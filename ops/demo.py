"""The demo: the service and a sandbox, connected to each other as an integrator connects them."""

import asyncio
import base64
import contextlib
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import msgspec
from msgspec import Struct, field
from yarl import URL

from app.cli.main import VERSION
from app.cli.target import DEMO, DEMO_ADDRESS
from app.cli.widget import archive
from app.config import file as setup
from app.config.settings import Settings, prepare_folder
from app.kommo.crm.hooks import hook_path
from app.operations import crm, startup
from app.operations.errors import OperationError
from app.service.service import Running, running
from app.vault import WrongMasterKey
from ops.sandbox import Channel, Config, OAuthClient, Sandbox, crm_account

CHANNEL_ID = "f62a0162-46a6-4a63-a5ff-0b1e2b1d1a01"
ACCOUNT_ID = "52e591f7-c98f-4255-8495-827210138c81"
OTHER_ACCOUNT_ID = "52e591f7-c98f-4255-8495-827210138c82"  # It may install the integration by itself.
NAME, TITLE = "demo", "Demo messenger"
HOST = "127.0.0.1"
PATIENCE = aiohttp.ClientTimeout(total=30)


class DemoFailed(OSError):
    """The demo could not connect its two halves."""


class Kept(Struct, frozen=True):
    """What the demo keeps between starts: the secrets, and the sandbox's port, to which the consent belongs.

    Each is made when it is missing. `sandbox_port` 0: none yet.
    """

    kommo: str = field(default_factory=lambda: os.urandom(20).hex())
    messenger: str = field(default_factory=lambda: "whsec_" + base64.b64encode(os.urandom(32)).decode())
    client_id: str = field(default_factory=lambda: str(uuid4()))
    client_secret: str = field(default_factory=lambda: os.urandom(32).hex())
    sandbox_port: int = 0


def _kept(path: Path) -> Kept:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Kept)
    except FileNotFoundError:
        return Kept()
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise DemoFailed(f"{path} cannot be read: delete it, and the demo makes another") from None


def _keep(path: Path, kept: Kept) -> None:
    draft = path.with_suffix(".new")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(msgspec.json.encode(kept))
    draft.replace(path)


async def demo(settings: Settings, stop_on_signals: Callable[[], asyncio.Event]) -> None:
    """Run both until a signal. Everything is kept in the folder `demo` of the data folder."""
    stop = stop_on_signals()
    folder = settings.data / DEMO
    prepare_folder(settings.data)
    prepare_folder(folder)
    kept = _kept(folder / "demo.json")
    port = _free_port(settings.host, settings.port)
    print("chatledger demo: starting PostgreSQL, NATS, chatledger and the sandbox", flush=True)
    if port != settings.port != 0:
        print(f"port {settings.port} is taken: using {port}", flush=True)
    kept = msgspec.structs.replace(kept, sandbox_port=_free_port(HOST, kept.sandbox_port))
    async with contextlib.AsyncExitStack() as stack:
        url = f"http://{settings.host}:{port}"
        sandbox = await stack.enter_async_context(Sandbox(_config(folder, kept, url)))
        settings = msgspec.structs.replace(
            settings, data=folder, port=port, kommo_url=sandbox.url, public_url=url
        )
        run = await stack.enter_async_context(running(settings, _setup(kept, url, sandbox.url)))
        _keep(folder / "demo.json", kept)  # Now the folder is ours alone.
        try:
            await _connect(run, sandbox.url, kept)
            await _let_in(run, url, sandbox.url)
        except (OperationError, WrongMasterKey) as error:
            raise DemoFailed(f"the demo was not connected: {error}") from None
        run.services.demo_links = {
            "Customer": f"{sandbox.url}/customer",
            "Manager": f"{sandbox.url}/manager",
        }
        (folder / DEMO_ADDRESS).write_text(f"{run.url}\n")
        _greet(run, sandbox.url)
        await run.until(stop)
        print("stopping", flush=True)


def _free_port(host: str, wanted: int) -> int:
    """The wanted port, or a free one if that is taken, because each half must know the other's beforehand."""
    for port in (wanted, 0):
        with contextlib.suppress(OSError), socket.create_server((host, port)) as listener:
            return int(listener.getsockname()[1])
    raise DemoFailed(f"no port of {host} can be listened on: set CHATLEDGER_HOST to 127.0.0.1")


def _config(folder: Path, kept: Kept, url: str) -> Config:
    return Config(
        host=HOST,
        port=kept.sandbox_port,
        channels=(Channel(CHANNEL_ID, kept.kommo),),
        accounts=(ACCOUNT_ID, OTHER_ACCOUNT_ID),
        crm_accounts=(crm_account(ACCOUNT_ID), crm_account(OTHER_ACCOUNT_ID, 0, "newcomer")),
        widget=archive(url, kept.client_id, TITLE, VERSION),
        oauth=(OAuthClient(kept.client_id, kept.client_secret, url + setup.CALLBACK),),
        disabled_url=f"{url}/oauth/disabled",
        hook_url=f"{url}/kommo/:scope_id",
        messenger_url=f"{url}/messengers/{NAME}",
        messenger_secret=kept.messenger,
        messenger_account=ACCOUNT_ID,
        state=str(folder / "sandbox.db"),
    )


def _setup(kept: Kept, url: str, sandbox_url: str) -> setup.Setup:
    """The setup that an integrator would write for the sandbox's integration and account."""
    secrets = (kept.client_id, kept.client_secret)
    address, domains = f"{sandbox_url}/oauth", (URL(sandbox_url).authority,)
    oauth = setup.OAuthApp(*secrets, url + setup.CALLBACK, authorize_url=address, domains=domains)
    # Without webhooks, which are subscribed in the background: a first start always records the same events.
    install = setup.Install((NAME,), TITLE, webhooks=False)
    return setup.Setup(oauth=oauth, install=install, accounts=(setup.Account(ACCOUNT_ID, sandbox_url),))


async def _connect(run: Running, sandbox_url: str, kept: Kept) -> None:
    """Register the channel and connect the account, as a start does for the file; idempotent."""
    bot_id = Channel(CHANNEL_ID, kept.kommo).bot_id
    kommo = setup.KommoSide(CHANNEL_ID, kept.kommo, bot_id)
    messenger = setup.MessengerSide("webhook", f"{sandbox_url}/messenger/hook", kept.messenger)
    account = setup.Connected(ACCOUNT_ID, TITLE)
    await startup.bring(run.services, setup.Channel(NAME, kommo, messenger, (account,)))


async def _let_in(run: Running, url: str, sandbox_url: str) -> None:
    """The account's administrator gives consent once, and the CRM's webhooks are subscribed.

    Done again if the sandbox lost it or has moved; subscriptions for an earlier port of ours are removed.
    """
    key = {"Authorization": f"Bearer {run.services.keys.admin}"}
    address_key = await run.services.keyring.address_key()
    account, path = f"{url}/v1/accounts/{ACCOUNT_ID}", hook_path(address_key, ACCOUNT_ID)
    async with aiohttp.ClientSession(timeout=PATIENCE) as session:
        told = None
        if any(one.crm_url == sandbox_url for one in await run.services.tokens.all()):
            with contextlib.suppress(DemoFailed):
                told = await _call(session, "GET", f"{account}/webhooks", headers=key)
        if told is None:
            asked = URL((await _call(session, "POST", f"{account}/authorize", headers=key))["url"])
            agreed = {**asked.query, "account_id": ACCOUNT_ID, "decision": "allow"}
            await _call(session, "POST", f"{sandbox_url}/oauth", data=agreed)  # Leads back to our callback.
            told = await _call(session, "GET", f"{account}/webhooks", headers=key)
        known = {one["destination"]: one["disabled"] for one in told["items"]}
        for old in known.keys() - {url + path}:
            if old.endswith(path):
                await crm.call(run.services, ACCOUNT_ID, "DELETE", "webhooks", {"destination": old})
        if known.get(url + path, True):
            await _call(session, "POST", f"{account}/webhooks", headers=key)


async def _call(session: aiohttp.ClientSession, method: str, url: str, **more: Any) -> dict[str, Any]:
    """The JSON of the answer, after redirects, which must be a success. Raises DemoFailed."""
    try:
        async with session.request(method, url, **more) as answer:
            found = await answer.json() if "json" in answer.content_type else {}
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        raise DemoFailed(f"the demo's CRM was not connected: {str(error) or 'no answer came'}") from None
    if not answer.ok:
        detail = found.get("detail") or found.get("error") or f"HTTP {answer.status}"
        raise DemoFailed(f"the demo's CRM was not connected: {detail}")
    return dict(found)


def _greet(run: Running, sandbox_url: str) -> None:
    print(
        f"""
  Write as the customer     {sandbox_url}/customer
  Answer as the manager     {sandbox_url}/manager
  Install in an account     {sandbox_url}/integrations
  See what is recorded      {run.services.login_links.make(run.url or "", lasting=True)}

The links are good as long as the demo runs. Beside it, `./ops/run status` works, and so does
  curl -H "Authorization: Bearer $(cat {run.services.settings.data}/admin.key)" {run.url}/v1/status

chatledger ready on {run.url}
Ctrl-C stops everything.""",
        flush=True,
    )
