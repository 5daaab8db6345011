"""The documents as the tests read them: their fenced blocks, and what a block stands for."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[3]
PAGES = ROOT / "ops/docs"
README = ROOT / "README.md"
EVERY_PAGE = sorted([README, *PAGES.rglob("*.md")])
FENCE = re.compile(r'^```([\w-]+)?(?: title="([^"]*)")?\n(.*?)^```$|^<!-- test: (.*?) -->$', re.M | re.S)


class Block(NamedTuple):
    """A fenced block, or an order to the test that readers do not see (kind "test")."""

    kind: str
    title: str
    text: str


def blocks(page: Path) -> Iterator[Block]:
    """The blocks of a page, in their order."""
    for found in FENCE.finditer(page.read_text()):
        if found[4]:
            yield Block("test", "", found[4])
        else:
            yield Block(found[1] or "", found[2] or "", found[3])


def name(page: Path) -> str:
    """A page's path in the repository."""
    return page.relative_to(ROOT).as_posix()
