"""`chatledger keys`: the keys of the API and the admin key, by a running service, and the master key."""

import asyncio
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from app.access.api_keys import RIGHTS
from app.access.rotation import Resealed, reseal, rotation
from app.cli.databases import reach_database
from app.cli.shell import failing, find_service, settings_of, tell
from app.cli.target import Target, ask
from app.config import rotation as files
from app.config.settings import MASTER_SETTING, SECONDS, BadSettings, Settings, find_admin_key, load_masters
from app.vault import Vault, kid_of

ADMIN = "admin"
ONCE = "this is the only time that the key is shown: only its hash is kept"
Command = TypeVar("Command", bound=Callable[..., object])


def with_service(command: Command) -> Command:
    """The options of a command that asks a running service."""
    where = click.option("--url", help="Where the service listens; the settings' host and port if not given.")
    return where(click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON.")(command))


class Span(click.ParamType[int]):
    """A time such as 90s, 30m, 24h or 7d, in seconds."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> int:
        """Returns the seconds."""
        if isinstance(value, int):
            return value
        if not re.fullmatch("[0-9]{1,9}[smhd]", value):
            self.fail(f"{value} is no time: give a whole number with s, m, h or d behind it, like 24h")
        return int(value[:-1]) * SECONDS[value[-1]]


@click.group()
def keys() -> None:
    """The keys of this installation."""


@keys.command()
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    type=click.Choice(RIGHTS),
    multiple=True,
    required=True,
    help="A right of the key. Repeatable.",
)
@click.option(
    "--account", "accounts", multiple=True, help="The only account (amojo id) in reach. Repeatable."
)
@click.option("--expires-at", help="When the key is over, such as 2027-01-01T00:00:00Z.")
@with_service
@click.pass_obj
def create(
    config: Path | None,
    /,
    name: str,
    scopes: tuple[str, ...],
    accounts: tuple[str, ...],
    url: str | None,
    as_json: bool,
    **more: str | None,
) -> None:
    """Make a key for the API and print it, this once.

    Without --account it reaches all accounts.
    """
    target = find_service(config, url)
    order = {"name": name, "scopes": scopes, "accounts": accounts or None, "expires_at": more["expires_at"]}
    made = asyncio.run(failing(ask(target, "POST", "/v1/keys", body=order)))
    tell(json.dumps(made) if as_json else made["key"])
    if not as_json:
        tell(f"key {made['id']}: {ONCE}", error=True)


@keys.command(name="list")
@with_service
@click.pass_obj
def list_command(config: Path | None, /, url: str | None, as_json: bool) -> None:
    """Show all keys, without themselves, and when each was used last."""
    told = asyncio.run(failing(ask(find_service(config, url), "GET", "/v1/keys")))
    if as_json:
        tell(json.dumps(told))
        return
    for one in told["items"]:
        accounts = "all accounts" if one["accounts"] is None else " ".join(one["accounts"])
        until = f", until {one['expires_at']}" if one["expires_at"] else ""
        used = f"used {one['last_used_at']}" if one["last_used_at"] else "never used"
        tell(f"{one['id']}  {one['name']}: {' '.join(one['scopes'])}, {accounts}{until}, {used}")


@keys.command()
@click.argument("key")
@click.option("--url", help="Where the service listens; the settings' host and port if not given.")
@click.pass_obj
def delete(config: Path | None, /, key: str, url: str | None) -> None:
    """End KEY, given by its id or its name, on every process at once."""
    target = find_service(config, url)
    tell(f"deleted {asyncio.run(failing(_delete(target, key)))}")


async def _delete(target: Target, key: str) -> str:
    key_id = await _id_of(target, key)
    await ask(target, "DELETE", f"/v1/keys/{key_id}")
    return key_id


@keys.command()
@click.argument("key")
@click.option(
    "--overlap", type=Span(), default="24h", show_default=True, help="How long the old key is good, too."
)
@with_service
@click.pass_obj
def replace(config: Path | None, /, key: str, overlap: int, url: str | None, as_json: bool) -> None:
    """Make a new key with the rights of KEY, its id or name, and print it, this once.

    KEY may be `admin`: the new admin key is good on every process at once. If the service keeps it in its
    data folder, that has the new one. If it is in CHATLEDGER_ADMIN_KEY, set that to the new one before the
    old one is over; the service need not be started again for it.
    """
    settings = settings_of(config, {})
    target = find_service(config, url)
    made = asyncio.run(failing(_replace(target, key, overlap)))
    tell(json.dumps(made) if as_json else made["key"])
    if not as_json:
        tell(_advice(settings, made, is_admin=key == ADMIN), error=True)


async def _replace(target: Target, key: str, overlap: int) -> dict[str, Any]:
    key_id = key if key == ADMIN else await _id_of(target, key)
    body = {"overlap_seconds": overlap}
    return await ask(target, "POST", f"/v1/keys/{key_id}/replace", body=body)


def _advice(settings: Settings, made: dict[str, Any], *, is_admin: bool) -> str:
    if not is_admin:
        return f"key {made['id']}: {ONCE}"
    if settings.admin_key is None and find_admin_key(settings) == made["key"]:
        return f"key {made['id']}: it is kept in {settings.data}"
    return f"key {made['id']}: {ONCE}; set CHATLEDGER_ADMIN_KEY to it before the old one is over"


async def _id_of(target: Target, key: str) -> str:
    """The id of a key that is given by its id or its name. Raises OSError."""
    items = (await ask(target, "GET", "/v1/keys"))["items"]
    found = [one["id"] for one in items if key in (one["id"], one["name"])]
    if len(found) == 1:
        return str(found[0])
    if not found:
        raise OSError(f"no key has the id or name {key}: `chatledger keys list` shows them")
    raise OSError(f"{len(found)} keys have the name {key}: give the id of one, {' or '.join(found)}")


@keys.command(name="rotate-master")
@click.pass_obj
def rotate_master_command(config: Path | None) -> None:
    """Seal all secrets in the database again with a new master key; the service may run meanwhile.

    A key in the data folder is replaced. A key in CHATLEDGER_MASTER_KEY is replaced by the operator, who
    gives the one before as CHATLEDGER_MASTER_KEY_OLD. After a kill, the same command goes on.
    """
    settings = settings_of(config, {})
    tell(*asyncio.run(failing(rotate_master(settings))))


async def rotate_master(settings: Settings) -> list[str]:
    """Rotate the master key; returns lines for people. Raises BadSettings, RotationRuns, NotRotated.

    A key in the data folder is replaced here. Keys in the settings are the operator's to replace, so that
    everything is only sealed again with the first of them.
    """
    async with reach_database(settings) as url, rotation(url) as db:
        in_files = settings.master_key is None
        if in_files:
            files.begin(settings.data)
        try:
            masters = load_masters(settings)
        except FileNotFoundError as error:
            raise BadSettings(f"there is no master key to rotate: {error}") from None
        found = await reseal(db, Vault(*masters))
        lines = [_summary(found, kid_of(masters[0]))]
        if in_files and (retired := files.end(settings.data)):
            lines.append(
                f"the old key is kept as {retired}: delete it once no backup older than now is needed"
            )
        elif len(masters) > 1:
            lines.append(f"remove {MASTER_SETTING}_OLD and restart every process")
        elif not in_files and not found.changed:
            lines.append(
                f"to replace the key: set {MASTER_SETTING} to a new one (openssl rand -base64 32) and "
                f"{MASTER_SETTING}_OLD to the present one, restart every process, and run this again"
            )
        return lines


def _summary(found: Resealed, kid: str) -> str:
    values = "value" if found.total == 1 else "values"
    return f"{found.total} sealed {values}, {found.changed} of them sealed anew, all with master key {kid}"
