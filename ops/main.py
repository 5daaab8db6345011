"""The console script `chatledger`: the commands of `app.cli`, with the demo and the sandbox where they are.

The production image has neither: there the command is `app.cli` alone.
"""

import sys
from pathlib import Path

import click

from app.cli.main import cli, main, stop_on_signals
from app.cli.shell import run, settings_of

__all__ = ["cli", "main"]


@click.command()
@click.option(
    "--port", type=click.IntRange(0, 65535), help="The port (8080, or a free one if that is taken)."
)
@click.pass_obj
def demo(config: Path | None, port: int | None) -> None:
    """Run the service with a sandbox beside it: a fake Kommo and a demo messenger, each with a page."""
    settings = settings_of(config, {"PORT": None if port is None else str(port)})
    run(run_demo(settings, stop_on_signals))


try:
    from ops.demo import demo as run_demo
    from ops.sandbox.cli import sandbox
except ModuleNotFoundError as error:
    if error.name not in ("ops.demo", "ops.sandbox"):
        raise
else:
    cli.add_command(demo)
    cli.add_command(sandbox)

if __name__ == "__main__":
    sys.exit(main())
