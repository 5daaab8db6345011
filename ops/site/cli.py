"""The command line, as `--help` shows it at a fixed width."""

import click

from ops.main import cli
from ops.sandbox.cli import sandbox
from ops.site.markdown import code

WIDTH = 100


def command_line() -> str:
    """`chatledger` and each of its commands, but for the sandbox, which has a page of its own."""
    parts = [code(_help(cli, "chatledger"))]
    for name, command in sorted(cli.commands.items()):
        if command is sandbox:
            parts.append("## sandbox\n\nSee [the sandbox](sandbox.md).")
        else:
            parts.append(f"## {name}\n\n{code(_help(command, f'chatledger {name}'))}")
    return "\n\n".join(parts)


def sandbox_help() -> str:
    """The sandbox's help, which lists each call and order."""
    return code(_help(sandbox, "chatledger sandbox"))


def _help(command: click.Command, name: str) -> str:
    context = click.Context(command, info_name=name, terminal_width=WIDTH, max_content_width=WIDTH)
    context.help_option_names = ["-h", "--help"]
    return command.get_help(context)
