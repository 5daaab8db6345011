"""The service that a command asks: that of the settings, or the demo that runs on the same data folder."""

import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import msgspec

from app.config.settings import Settings, find_admin_key
from app.servers.servers import is_in_use

DEMO = "demo"
"""The folder of the demo, in the data folder."""
DEMO_ADDRESS = "address"
"""The file there that holds the URL of the demo while it runs."""
LOOK_SECONDS = 1.0


class Target(NamedTuple):
    """Where a service listens, and its admin key."""

    url: str
    key: str


def find_target(settings: Settings, url: str | None) -> Target:
    """The service to ask; `url` is what the command line says. Raises BadSettings without a key."""
    own = url or f"http://{settings.host}:{settings.port}"
    demo = settings.data / DEMO
    address = _address_of(demo)
    if address is not None and (own == address or (url is None and not _own_service(settings))):
        return Target(address, find_admin_key(msgspec.structs.replace(settings, data=demo)))
    return Target(own, find_admin_key(settings))


async def ask(
    target: Target, method: str, path: str, *, body: object = None, query: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Returns the service's answer, decoded, {} without a body. Raises OSError, aiohttp.ClientError."""
    headers = {"Authorization": f"Bearer {target.key}"}
    url = target.url + path
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.request(method, url, json=body, params=query) as answer,
    ):
        raw = await answer.read()
        try:
            told = msgspec.json.decode(raw, type=dict[str, Any]) if raw else {}
        except msgspec.MsgspecError:
            raise OSError(f"{target.url} answered {answer.status}, but not as chatledger does") from None
        if answer.status >= 300:
            raise OSError(f"{target.url} answered {answer.status}: {told.get('detail')}")
        return told


def _address_of(demo: Path) -> str | None:
    """Where the demo listens, None unless it runs."""
    try:
        return (demo / DEMO_ADDRESS).read_text().strip() if is_in_use(demo) else None
    except OSError:
        return None


def _own_service(settings: Settings) -> bool:
    """Whether a service of this folder, or of these settings, runs beside the demo."""
    if is_in_use(settings.data):
        return True
    if settings.admin_key is None and not (settings.data / "admin.key").exists():
        return False
    try:
        with socket.create_connection((settings.host, settings.port), LOOK_SECONDS):
            return True
    except OSError:
        return False
