"""The command `sandbox` prints one line when it is ready and stops on a signal."""

import asyncio
import logging
import signal
import sqlite3
import sys
from pathlib import Path

import click
import uvloop

from ops.sandbox.chats.signatures import is_secret
from ops.sandbox.config import (
    CRM_PER_SECOND,
    TOKEN_SECONDS,
    Channel,
    Config,
    CrmAccount,
    OAuthClient,
    crm_account,
)
from ops.sandbox.help_text import GUIDE
from ops.sandbox.server import Sandbox
from ops.sandbox.widget.archive import Refused, unpacked


@click.command(help=GUIDE)
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen.")
@click.option(
    "--port", default=0, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one."
)
@click.option(
    "--channel",
    "channels",
    multiple=True,
    metavar="CHANNEL_ID:SECRET[:BOT_ID[:CLIENT_ID]]",
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
@click.option(
    "--oauth",
    multiple=True,
    metavar="CLIENT_ID:SECRET[:REDIRECT_URI]",
    help="An integration that may ask for consent. Repeatable.",
)
@click.option(
    "--crm-account",
    "crm_accounts",
    multiple=True,
    metavar="ACCOUNT_ID[:CRM_ID[:SUBDOMAIN]]",
    help="An account's number and name in the CRM; derived if not given. Repeatable.",
)
@click.option("--disabled-url", default="", metavar="URL", help="Told, signed, of a disabled integration.")
@click.option(
    "--token-seconds", default=TOKEN_SECONDS, show_default=True, help="How long an access token lives."
)
@click.option(
    "--crm-per-second", default=CRM_PER_SECOND, show_default=True, help="CRM requests an account; 0: any."
)
@click.option(
    "--chats-per-second", default=0, show_default=True, help="Chats API requests an account; 0: any."
)
@click.option(
    "--crm-retry-scale",
    default=1.0,
    show_default=True,
    type=click.FloatRange(0),
    help="Shortens the waits (5 min … 1 h) between the tries of a CRM webhook.",
)
@click.option(
    "--slow-seconds",
    default=0.0,
    show_default=True,
    type=click.FloatRange(0),
    help="How long each hook waits in the slow queue.",
)
@click.option(
    "--widget",
    default="",
    metavar="FILE",
    help="The archive of the integration's widget, as Kommo's developer page takes it.",
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
    oauth: tuple[str, ...],
    crm_accounts: tuple[str, ...],
    disabled_url: str,
    token_seconds: int,
    crm_per_second: int,
    chats_per_second: int,
    crm_retry_scale: float,
    slow_seconds: float,
    widget: str,
    state: str,
) -> None:
    """Run the fake Kommo and the demo messenger until a signal; the help is in `help_text.py`."""
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
        oauth=tuple(_client(text) for text in oauth),
        crm_accounts=tuple(_account(text) for text in crm_accounts),
        disabled_url=disabled_url,
        token_seconds=token_seconds,
        crm_per_second=crm_per_second,
        chats_per_second=chats_per_second,
        crm_retry_scale=crm_retry_scale,
        slow_seconds=slow_seconds,
        widget=_widget(widget),
        state=state,
    )
    _check(config)
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


def _check(config: Config) -> None:
    for url in (config.hook_url, config.messenger_url, config.disabled_url):
        if url and not url.startswith(("http://", "https://")):
            raise click.BadParameter(f"{url} is not an http URL")
    if config.messenger_secret and not is_secret(config.messenger_secret):
        raise click.BadParameter("--messenger-secret must be whsec_ and base64")
    if config.messenger_url and not config.messenger_secret:
        raise click.UsageError("--messenger-url needs --messenger-secret")
    if config.widget and not config.oauth:
        raise click.UsageError("--widget needs --oauth, the integration whose widget it is")


def _widget(path: str) -> bytes:
    """The archive of a widget, which Kommo would take."""
    try:
        content = Path(path).read_bytes() if path else b""
        if content:
            unpacked(content)
    except OSError as error:
        raise click.BadParameter(f"--widget {path}: {error.strerror}") from error
    except Refused as refused:
        raise click.BadParameter("--widget: " + "\n  ".join(refused.faults)) from refused
    return content


def _channel(text: str) -> Channel:
    parts = text.split(":")
    if len(parts) not in (2, 3, 4) or not all(parts[:2]):
        raise click.BadParameter(f"--channel {text}: must be CHANNEL_ID:SECRET[:BOT_ID[:CLIENT_ID]]")
    return Channel(*parts)


def _client(text: str) -> OAuthClient:
    id, _, rest = text.partition(":")
    secret, _, redirect_uri = rest.partition(":")
    if not id or not secret or (redirect_uri and not redirect_uri.startswith(("http://", "https://"))):
        raise click.BadParameter(f"--oauth {id}: must be CLIENT_ID:SECRET or CLIENT_ID:SECRET:REDIRECT_URI")
    return OAuthClient(id, secret, redirect_uri)


def _account(text: str) -> CrmAccount:
    amojo_id, *more = text.split(":")
    number, subdomain = [*more, "", ""][:2]
    if not amojo_id or len(more) > 2 or (number and not number.isdecimal()):
        raise click.BadParameter(f"--crm-account {text}: must be ACCOUNT_ID[:CRM_ID[:SUBDOMAIN]]")
    return crm_account(amojo_id, int(number or 0), subdomain)
