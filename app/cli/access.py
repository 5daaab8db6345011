"""`chatledger access`: who looked, sent, changed something or signed in, as a running service has it."""

import asyncio
import json
from pathlib import Path
from typing import Any

import click

from app.cli.shell import failing, find_service, tell
from app.cli.target import Target, ask

PAGE = 1000  # The largest page that the service gives.


@click.command()
@click.option("--key", help="Only what was done with this key, by its id or name.")
@click.option("--account", "account_id", help="Only what was about this account (amojo id), or about all.")
@click.option("--since", help="From this time on, such as 2026-11-22T08:00:00Z.")
@click.option("--until", help="Before this time.")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="How many at most.")
@click.option("--url", help="Where the service listens; the settings' host and port if not given.")
@click.option("--json", "as_json", is_flag=True, help="Print each as JSON, one a line.")
@click.pass_obj
def access(config: Path | None, /, limit: int, url: str | None, as_json: bool, **filters: str | None) -> None:
    """Show who read, sent, changed something or signed in, the latest first."""
    query = {name: value for name, value in filters.items() if value is not None}
    for one in asyncio.run(failing(_entries(find_service(config, url), query, limit))):
        tell(json.dumps(one) if as_json else line_of(one))


async def _entries(target: Target, query: dict[str, str], limit: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    while len(found) < limit:
        query["limit"] = str(min(PAGE, limit - len(found)))
        page = await ask(target, "GET", "/v1/access", query=query)
        found += page["items"]
        if page["next"] is None:
            break
        query["cursor"] = page["next"]
    return found


def line_of(entry: dict[str, Any]) -> str:
    """Returns an entry as a line for people."""
    about = ((name, entry[name]) for name in ("account_id", "conversation", "message"))
    names = "".join(f" {name.removesuffix('_id')} {value}" for name, value in about if value)
    who = entry["key_name"] or "-"
    if not entry["method"]:  # It tells of entries that are not there.
        return f"{entry['at']}  {entry['route']}"
    done = f"{entry['status']} {entry['method']} {entry['route']}"
    return f"{entry['at']}  {done}  {who}, {entry['address']}{names}"
