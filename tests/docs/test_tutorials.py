"""Every shell block of the tutorials runs, in terminals as a reader has them, and shows what is shown."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.documents.pages import PAGES, Block, blocks
from tests.support.documents.terminals import Open, terminals
from tests.support.system import free_port

TUTORIALS = sorted((PAGES / "tutorials").glob("*.md"))
TOOLS = ("curl", "jq", "openssl")
PORTS = ("8070", "8080", "8090")
EVERY = "Every terminal"
pytestmark = pytest.mark.timeout(300)


def own(folder: Path) -> Callable[[str], str]:
    """What puts a text's folders and ports into this test's own."""
    folder.chmod(0o711)  # PostgreSQL may run as another user.
    ports = {port: str(free_port()) for port in PORTS}

    def changed(text: str) -> str:
        text = re.sub(r"/tmp/(?=chatledger-tutorial|bridge)", f"{folder}/", text)
        return re.sub("|".join(PORTS), lambda found: ports[found[0]], text)

    return changed


async def follow(page: Path, folder: Path, mine: Callable[[str], str], open_: Open) -> int:
    """Do what a tutorial says, from its beginning to its end; returns how many shell blocks ran."""
    found, ran, first, begun = list(blocks(page)), 0, "", set[str]()
    for block, following in zip(found, [*found[1:], None], strict=True):
        match block:
            case Block("sh", title, text) if title == EVERY:
                first = mine(text)
            case Block("sh", title, text):
                terminal = await open_(title)
                if title not in begun:
                    begun.add(title)
                    await terminal.run(first, None)
                untitled = following is not None and following[:2] == ("output", "")
                await terminal.run(mine(text), mine(following.text) if following and untitled else None)
                ran += 1
            case Block("output", title, text) if title:
                assert await (await open_(title)).has_shown(mine(text))
            case Block("python" | "toml", title, text) if title:
                (folder / "bridge" / title).write_text(mine(text))
            case Block("test", _, text):
                terminal = await open_(text.removeprefix("Ctrl-C in "))
                terminal.interrupt()
                await terminal.has_shown(None)
    return ran


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
async def test_the_tutorial_does_what_it_shows(page: Path, data_folder: Path) -> None:
    assert [tool for tool in TOOLS if shutil.which(tool) is None] == [], "apt-get install curl jq openssl"
    mine = own(data_folder)
    async with terminals(data_folder, CHATLEDGER_PORT=mine("8080")) as open_:
        assert await follow(page, data_folder, mine, open_) >= 10
