"""The command line: results go to stdout; what went wrong to stderr, with exit code 1, or 2 for bad usage."""

import asyncio
import contextlib
import json
import logging
import signal
import sys
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import Console

from app.cli import databases, nats
from app.cli import refused as refused_hooks
from app.cli.access import access
from app.cli.keys import keys
from app.cli.shell import failing, find_service, run, sentence, settings_of, tell
from app.cli.target import ask, find_target
from app.cli.upload import STANDARD_INPUT, run_import, summary
from app.cli.views import rebuild_views, retry_views
from app.cli.widget import write_widget
from app.config.example import EXAMPLE
from app.config.file import Setup, check_together, load_setup
from app.config.settings import BadSettings, Settings
from app.doctor import doctor as doctors
from app.printable import PrintableFormatter
from app.servers.process import ServerFailed
from app.service.service import running

VERSION = "0.3.0.dev0"


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(VERSION, prog_name="chatledger")
@click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A TOML file with the settings CHATLEDGER_…; the environment wins over it.",
)
@click.pass_context
def cli(context: click.Context, config: Path | None) -> None:
    """An event-sourced message ledger that connects a messenger with Kommo CRM."""
    context.obj = config


@cli.command()
@click.option("--roles", help="Some of web,relay,project,deliver with commas between; all if not given.")
@click.option("--host", help="Where HTTP listens (127.0.0.1).")
@click.option("--port", type=click.IntRange(0, 65535), help="The port (8080); 0 takes a free one.")
@click.pass_obj
def serve(config: Path | None, roles: str | None, host: str | None, port: int | None) -> None:
    """Run the service until SIGTERM or Ctrl-C.

    Writes one line to stdout when it takes requests: `chatledger ready on http://HOST:PORT`.
    """
    given = {"ROLES": roles, "HOST": host, "PORT": None if port is None else str(port)}
    settings = settings_of(config, given)
    run(_serve(settings, _setup(config, settings)))


async def _serve(settings: Settings, setup: Setup) -> None:
    stop, ready = stop_on_signals(), asyncio.Event()
    stopped = asyncio.create_task(stop.wait())
    serving = asyncio.create_task(_serve_until(stop, ready, settings, setup))
    await asyncio.wait({stopped, serving}, return_when=asyncio.FIRST_COMPLETED)
    if not serving.done() and not ready.is_set():  # A start may wait for others, who may never come.
        serving.cancel()
        await asyncio.wait({serving})
    stopped.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await serving


async def _serve_until(stop: asyncio.Event, ready: asyncio.Event, settings: Settings, setup: Setup) -> None:
    async with running(settings, setup) as run:
        ready.set()
        where = f" on {run.url}" if run.url else f" ({', '.join(sorted(settings.roles))})"
        print(f"chatledger ready{where}", flush=True)
        await run.until(stop)


@cli.command(name="migrate")
@click.option("--check", is_flag=True, help="Change nothing; say what would be done.")
@click.option("--json", "as_json", is_flag=True, help='With --check: print {"version","needs","steps"}.')
@click.pass_obj
def migrate_command(config: Path | None, *, check: bool, as_json: bool) -> None:
    """Bring the database at CHATLEDGER_DATABASE_URL to this version's tables, while the service runs.

    With --check the exit code is 0 if nothing is to be done, 1 if a migration is, and 2 if that cannot be
    known, because the database does not answer or is not for this program.
    """
    settings = settings_of(config, {})
    if not settings.database_url:
        raise click.UsageError("set CHATLEDGER_DATABASE_URL: a private database is migrated by serve itself")
    if as_json and not check:
        raise click.UsageError("--json goes with --check")
    if check:
        planned = databases.plan(settings.database_url, packed=settings.pack_events)
        plan = asyncio.run(failing(planned, code=2))
        tell(*([json.dumps(msgspec.to_builtins(plan))] if as_json else databases.explain(plan)))
        sys.exit(1 if plan.steps else 0)
    ledger = asyncio.run(failing(databases.migrate(settings.database_url, packed=settings.pack_events)))
    print(f"migrated: ledger {ledger.ledger}")


@cli.command()
@click.option("--url", help="Where the service listens; the settings' host and port if not given.")
@click.option("--json", "as_json", is_flag=True, help="Print the answer of GET /v1/status.")
@click.pass_obj
def status(config: Path | None, url: str | None, as_json: bool) -> None:
    """Ask a running service where everything stands."""
    told = asyncio.run(failing(ask(find_service(config, url), "GET", "/v1/status")))
    if as_json:
        print(json.dumps(told))
        return
    tell(f"head      {told['head']}", f"queue     {told['queue']}", f"ids       {told['ids']}")
    for view in told["views"]:
        stands = ", stands still" if view["stands"] else ""
        parked = f", {view['parked']} parked" if view["parked"] else ""
        tell(f"view      {view['view']} at {view['position']}, {view['lag']} behind{stands}{parked}")
    for one in told["projection"]["parked"]:
        tell(f"parked    {one['view']} {one['position']}: {one['error']}")
    if relay := told["relay"]:
        tell(f"relay     at {relay['position']}, {relay['lag']} behind{_standing(relay)}")
    tell(f"refused   {told['refused']}")
    for one in told["unconnected"]:
        tell(f"waiting   {one['deliveries']} for {one['channel']} to be connected to {one['account_id']}")
    for name in ("pending", "deferred", "parked"):
        tell(f"{name:<9} {told['deliveries'][name]}")


def _standing(relay: dict[str, Any]) -> str:
    """That it stands still, of a service that says so: older ones do not."""
    stands = relay.get("stands")
    return f", stands still since {stands['since']}: {stands['because']}" if stands else ""


@cli.command(name="import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path))
@click.option("--channel", required=True, help="The channel that the messages belong to.")
@click.option("--account", help="The account (amojo id), if the channel is connected to several.")
@click.option("--url", help="Where the service listens; the settings' host and port if not given.")
@click.option("--again", is_flag=True, help="Begin at the first line, though it was imported before.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.pass_obj
def import_command(
    config: Path | None, /, file: Path, url: str | None, as_json: bool, again: bool, **place: str | None
) -> None:
    """Import FILE into a running service: messages in the contract's shape, as JSON, one a line.

    FILE may be compressed with gzip, and - is standard input. A customer's message, and a manager's:

    \b
    {"type":"message.sent","conversation_id":"conv-1","message_id":"m-1","at":"2024-05-01T09:00:00Z",
     "sender":{"id":"u-1","name":"Ann"},"message":{"type":"text","text":"Do you ship to Rome?"}}
    {"type":"message.sent","direction":"out","conversation_id":"conv-1","message_id":"m-2",
     "at":"2024-05-01T09:05:00Z","sender":{"id":"shop","name":"Acme","user_id":"MANAGER'S AMOJO ID"},
     "receiver":{"id":"u-1","name":"Ann"},"message":{"type":"text","text":"We do."}}

    In the file each of them is one line. What was cut off, by Ctrl-C too, goes on where it stopped, and the
    same file again changes nothing. The exit code is 1 unless every line is in the ledger.
    """
    settings = settings_of(config, {})
    given = {"channel": place["channel"], "account_id": place["account"], "again": str(again).lower()}
    query = {name: value for name, value in given.items() if value is not None}
    size = None if file == STANDARD_INPUT else file.stat().st_size
    report = asyncio.run(failing(run_import(settings, url, file, size, query)))
    tell(*([json.dumps(report)] if as_json else summary(report)))
    if report["state"] != "done" or report["skipped"] or report["conflicts"]:
        sys.exit(1)


@cli.group()
def refused() -> None:
    """Hooks of Kommo that were not taken, and are kept."""


@refused.command()
@click.argument("ids", nargs=-1, metavar="[ID…]")
@click.option("--url", help="Where the service listens; the settings' host and port if not given.")
@click.pass_obj
def retry(config: Path | None, ids: tuple[str, ...], url: str | None) -> None:
    """Have a running service take up the hooks of these ids, or all of them, in the order they came in.

    The exit code is 1 unless every one of them is recorded now.
    """
    settings = settings_of(config, {})
    left = asyncio.run(failing(_retry(settings, url, ids)))
    sys.exit(1 if left else 0)


async def _retry(settings: Settings, url: str | None, ids: tuple[str, ...]) -> int:
    where, key = find_target(settings, url)
    return await refused_hooks.retry(where, key, ids, tell)


@cli.command()
@click.option("--json", "as_json", is_flag=True, help='Print {"checks":[{"name","ok","says","todo"}]}.')
@click.option("--example", is_flag=True, help="Only print a complete file for --config, each line explained.")
@click.pass_obj
def doctor(config: Path | None, as_json: bool, example: bool) -> None:
    """Try everything an installation needs: each in a sentence, with what to do if it is wrong.

    Exits with 1 if something is wrong.
    """
    if example:
        click.echo(EXAMPLE, nl=False)
        return
    checks = asyncio.run(doctors.diagnose(config))
    if as_json:
        click.echo(msgspec.json.encode({"checks": checks}))
    else:
        doctors.show(checks, Console())
    sys.exit(0 if all(check.ok for check in checks) else 1)


@cli.command()
@click.option("--park", is_flag=True, help="Switch although a view parks an event that the old one has.")
@click.pass_obj
def rebuild(config: Path | None, park: bool) -> None:
    """Build all views anew from the ledger, beside the old ones, and switch. Reads go on meanwhile.

    The service may run meanwhile. If a new view cannot take an event that the old one has, the old ones stay.
    """
    run(rebuild_views(settings_of(config, {}), park=park))
    print("rebuilt")


@cli.command(name="nats")
@click.option("--json", "as_json", is_flag=True, help='Print {"url","user","password"}.')
@click.pass_obj
def nats_command(config: Path | None, as_json: bool) -> None:
    """Print where the stream LEDGER is, who may read it, and a Python program that does."""
    settings = settings_of(config, {})
    try:
        found = nats.access(settings)
    except ServerFailed as error:
        print(f"chatledger: {error}", file=sys.stderr)
        sys.exit(1)
    click.echo(json.dumps(found._asdict()) if as_json else nats.explain(found), nl=as_json)


@cli.group()
def views() -> None:
    """The views, which show what is in the ledger."""


@views.command(name="retry")
@click.argument("view", required=False)
@click.pass_obj
def retry_command(config: Path | None, view: str | None) -> None:
    """Take up what is parked for VIEW, or for all views, once its cause is mended.

    All views are built again, beside the old ones; the service may run meanwhile. Exits with 1 if anything
    stays parked.
    """
    left = asyncio.run(failing(retry_views(settings_of(config, {}), view)))
    tell(*left or ["nothing is parked"])
    sys.exit(1 if left else 0)


cli.add_command(keys)
cli.add_command(access)


@cli.command()
@click.argument("file", type=click.Path(dir_okay=False, writable=True, path_type=Path))
@click.pass_obj
def widget(config: Path | None, file: Path) -> None:
    """Write FILE, the zip archive that Kommo's developer page takes as the integration's widget.

    The --config file says the rest: [install] its title, CHATLEDGER_PUBLIC_URL where its settings are.
    """
    settings = settings_of(config, {})
    try:
        write_widget(settings, _setup(config, settings), VERSION, file)
    except (BadSettings, OSError) as error:
        tell(f"chatledger: {sentence(error)}", error=True)
        sys.exit(2 if isinstance(error, BadSettings) else 1)
    tell(f"{file}: upload it on the integration's page in Kommo")


def stop_on_signals() -> asyncio.Event:
    stop = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, stop.set)
    return stop


def _setup(config: Path | None, settings: Settings) -> Setup:
    try:
        setup = load_setup(config)
        check_together(settings, setup)
        return setup
    except BadSettings as error:
        tell(f"chatledger: {error}", error=True)
        sys.exit(2)


def main() -> int:
    """The console script."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PrintableFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    cli(prog_name="chatledger")
    return 0
