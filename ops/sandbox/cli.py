"""`sandbox` on the command line says one line when it is ready and stops when it is told to."""

import asyncio
import logging
import signal
import sqlite3
import sys

import click
import uvloop

from ops.sandbox.config import Channel, Config
from ops.sandbox.guide import GUIDE
from ops.sandbox.server import Sandbox
from ops.sandbox.signatures import is_secret


@click.command(help=GUIDE)
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen.")
@click.option(
    "--port", default=0, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one."
)
@click.option(
    "--channel",
    "channels",
    multiple=True,
    metavar="CHANNEL_ID:SECRET[:BOT_ID]",
    help="A chat channel as Kommo's support hands it out. Repeatable.",
)
@click.option(
    "--account",
    "accounts",
    multiple=True,
    metavar="ACCOUNT_ID",
    help="An account (amojo_id) that may connect. Repeatable; none: any may.",
)
@click.option("--hook-url", default="", metavar="URL", help="Where hooks go; `:scope_id` in it is replaced.")
@click.option(
    "--duplicates",
    default="accept",
    show_default=True,
    type=click.Choice(["accept", "refuse"]),
    help="A repeated msgid: 200 with the first ids, or 400.",
)
@click.option(
    "--echo", is_flag=True, help="Also send a hook for what the integration sent in a manager's name."
)
@click.option(
    "--messenger-url", default="", metavar="URL", help="Where the demo messenger posts what its customers do."
)
@click.option(
    "--messenger-secret", default="", metavar="whsec_…", help="Standard Webhooks secret, both ways."
)
@click.option(
    "--messenger-account", default="", metavar="ACCOUNT_ID", help="The `account_id` of those actions."
)
@click.option(
    "--receipts/--no-receipts", default=True, help="Tell message.delivered and message.read by itself."
)
@click.option("--state", default="", metavar="FILE", help="Keep chats and connections here; none: in memory.")
def sandbox(
    host: str,
    port: int,
    channels: tuple[str, ...],
    accounts: tuple[str, ...],
    hook_url: str,
    duplicates: str,
    echo: bool,
    messenger_url: str,
    messenger_secret: str,
    messenger_account: str,
    receipts: bool,
    state: str,
) -> None:
    """Play both strangers until told to stop; `guide.py` is the help."""
    for url in (hook_url, messenger_url):
        if url and not url.startswith(("http://", "https://")):
            raise click.BadParameter(f"{url} is not an http URL")
    if messenger_secret and not is_secret(messenger_secret):
        raise click.BadParameter("--messenger-secret must be whsec_ and base64")
    if messenger_url and not messenger_secret:
        raise click.UsageError("--messenger-url needs --messenger-secret")
    config = Config(
        host=host,
        port=port,
        channels=tuple(_channel(text) for text in channels),
        accounts=accounts,
        hook_url=hook_url,
        duplicates=duplicates,
        echo=echo,
        messenger_url=messenger_url,
        messenger_secret=messenger_secret,
        messenger_account=messenger_account,
        receipts=receipts,
        state=state,
    )
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(name)s %(message)s")
    try:
        uvloop.run(_serve(config))
    except sqlite3.Error as error:
        click.echo(f"cannot keep its state in {state}: {error}", err=True)
        sys.exit(1)
    except OSError as error:
        click.echo(f"cannot listen on {host}:{port}: {error.strerror}", err=True)
        sys.exit(1)


async def _serve(config: Config) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for one in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(one, stop.set)
    async with Sandbox(config) as running:
        click.echo(f"sandbox ready on {running.url}")
        await stop.wait()


def _channel(text: str) -> Channel:
    parts = text.split(":")
    if len(parts) not in (2, 3) or not all(parts):
        raise click.BadParameter(f"--channel {text}: must be CHANNEL_ID:SECRET or CHANNEL_ID:SECRET:BOT_ID")
    return Channel(*parts)
