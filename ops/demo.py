"""The service with a sandbox beside it, connected to each other as an integrator would do it."""

import asyncio
import base64
import contextlib
import os
import socket
from collections.abc import Callable
from pathlib import Path

import msgspec
from msgspec import Struct

from app import reconnect, setup
from app.problems import Wrong
from app.serve import Running, running
from app.settings import Settings, prepare_folder
from ops.sandbox import Channel, Config, Sandbox

CHANNEL_ID = "f62a0162-46a6-4a63-a5ff-0b1e2b1d1a01"
ACCOUNT_ID = "52e591f7-c98f-4255-8495-827210138c81"
NAME = "demo"


class DemoFailed(OSError):
    """The demo could not connect its two halves."""


class Secrets(Struct, frozen=True):
    """The demo's secrets, made once and kept in its data folder."""

    kommo: str
    messenger: str


def _secrets(folder: Path) -> Secrets:
    path = folder / "demo.json"
    with contextlib.suppress(FileNotFoundError):
        return msgspec.json.decode(path.read_bytes(), type=Secrets)
    made = Secrets(os.urandom(20).hex(), "whsec_" + base64.b64encode(os.urandom(32)).decode())
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "wb") as file:
        file.write(msgspec.json.encode(made))
    return made


async def demo(settings: Settings, stop_on_signals: Callable[[], asyncio.Event]) -> None:
    """Run both until a signal. Everything is kept in the folder `demo` of the data folder."""
    stop = stop_on_signals()
    folder = settings.data / "demo"
    prepare_folder(settings.data)
    prepare_folder(folder)
    secrets = _secrets(folder)
    port = _free_port(settings)
    print("chatledger demo: starting PostgreSQL, NATS, chatledger and the sandbox", flush=True)
    if port != settings.port != 0:
        print(f"port {settings.port} is taken: using {port}", flush=True)
    async with contextlib.AsyncExitStack() as stack:
        url = f"http://{settings.host}:{port}"
        sandbox = await stack.enter_async_context(Sandbox(_config(folder, secrets, url)))
        settings = msgspec.structs.replace(settings, data=folder, port=port, kommo_url=sandbox.url)
        run = await stack.enter_async_context(running(settings))
        await _connect(run, sandbox.url, secrets)
        run.services.demo_links = {
            "Customer": f"{sandbox.url}/customer",
            "Manager": f"{sandbox.url}/manager",
        }
        _greet(run, sandbox.url)
        await run.until(stop)
        print("stopping", flush=True)


def _free_port(settings: Settings) -> int:
    """The port of the settings, or a free one if that is taken: the sandbox must know it beforehand."""
    for port in (settings.port, 0):
        with contextlib.suppress(OSError), socket.create_server((settings.host, port)) as listener:
            return int(listener.getsockname()[1])
    raise DemoFailed(f"no port of {settings.host} can be listened on: set CHATLEDGER_HOST to 127.0.0.1")


def _config(folder: Path, secrets: Secrets, url: str) -> Config:
    return Config(
        channels=(Channel(CHANNEL_ID, secrets.kommo),),
        accounts=(ACCOUNT_ID,),
        hook_url=f"{url}/kommo/:scope_id",
        messenger_url=f"{url}/messengers/{NAME}",
        messenger_secret=secrets.messenger,
        messenger_account=ACCOUNT_ID,
        state=str(folder / "sandbox.db"),
    )


async def _connect(run: Running, sandbox_url: str, secrets: Secrets) -> None:
    """Register the channel and connect the account, as a start does for the file: no news the second time."""
    bot_id = Channel(CHANNEL_ID, secrets.kommo).bot_id
    kommo = setup.KommoSide(CHANNEL_ID, secrets.kommo, bot_id)
    messenger = setup.MessengerSide("webhook", f"{sandbox_url}/messenger/hook", secrets.messenger)
    account = setup.Connected(ACCOUNT_ID, "Demo messenger")
    try:
        await reconnect.bring(run.services, setup.Channel(NAME, kommo, messenger, (account,)))
    except Wrong as wrong:
        raise DemoFailed(f"the demo was not connected: {wrong.problem.detail}") from None


def _greet(run: Running, sandbox_url: str) -> None:
    print(
        f"""
  Write as the customer     {sandbox_url}/customer
  Answer as the manager     {sandbox_url}/manager
  See what is recorded      {run.services.login_link(run.url or "")}

chatledger ready on {run.url}
Ctrl-C stops everything.""",
        flush=True,
    )
