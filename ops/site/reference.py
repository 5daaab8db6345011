"""Reference pages say what the code says: between two comments, a block is written from the code itself.

`<!-- generated: NAME -->` begins a block of a page and `<!-- end of NAME -->` ends it. The text around it is
written by hand. `./ops/build-docs` writes the blocks, and a test compares them.
"""

import re
from collections.abc import Callable

from ops.site import build
from ops.site.cli import command_line, sandbox_help
from ops.site.configuration import example, settings, tables
from ops.site.house import modules, rooms
from ops.site.http import errors, rest
from ops.site.structs import actions, alerts, calls, contents, events, metrics

BLOCK = re.compile(r"(<!-- generated: ([\w-]+) -->\n).*?(<!-- end of \2 -->)", re.S)
BLOCKS: dict[str, Callable[[], str]] = {
    "actions": actions,
    "alerts": alerts,
    "calls": calls,
    "command-line": command_line,
    "contents": contents,
    "errors": errors,
    "events": events,
    "example": example,
    "metrics": metrics,
    "modules": modules,
    "rest": rest,
    "rooms": rooms,
    "sandbox": sandbox_help,
    "settings": settings,
    "tables": tables,
}


def pages() -> dict[str, str]:
    """Every page with a generated block, by its path below `ops/docs`, with what its blocks hold now."""
    found = {}
    for path in sorted(build.PAGES.rglob("*.md")):
        text = path.read_text()
        if BLOCK.search(text):
            found[path.relative_to(build.PAGES).as_posix()] = BLOCK.sub(_written, text)
    return found


def _written(block: re.Match[str]) -> str:
    return f"{block[1]}\n{BLOCKS[block[2]]().strip()}\n\n{block[3]}"
