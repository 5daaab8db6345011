"""The files and the code that the guides show are ones that chatledger takes."""

import asyncio
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from app.config.file import check_together, load_setup
from app.config.settings import load_settings
from app.database import names
from app.views.tables import connect, create_views
from tests.support.documents.pages import EVERY_PAGE, PAGES, blocks, name
from tests.support.ledgers.view_events import EventLog, prepare

SECRETS = {
    "ACME_CHANNEL_SECRET": "f2d7f8704eff95087ed45b23ba99c0b5aac8278e",
    "ACME_MESSENGER_SECRET": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
    "KOMMO_CLIENT_SECRET": "f2d7f8704eff95087ed45b23ba99c0b5aac8278e",
    "MESSENGER_SECRET": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
}
FILES = [
    pytest.param(block.text, id=name(page))
    for page in EVERY_PAGE
    for block in blocks(page)
    if block.kind == "toml"
]
PROGRAMS = [
    pytest.param(block.text, id=name(page))
    for page in EVERY_PAGE
    for block in blocks(page)
    if block.kind == "python"
]


@pytest.mark.parametrize("text", FILES)
def test_a_file_that_is_shown_is_taken(text: str, tmp_path: Path) -> None:
    path = tmp_path / "chatledger.toml"
    path.write_text("\n".join(line[3:] if line.startswith("   ") else line for line in text.splitlines()))
    check_together(load_settings(path, environment=SECRETS), load_setup(path, SECRETS))


@pytest.mark.parametrize("text", PROGRAMS)
def test_a_program_that_is_shown_can_be_read(text: str) -> None:
    compile(text, "shown", "exec")


def shown_view(folder: Path) -> ModuleType:
    """The module that "Add a view" shows."""
    (block,) = [one for one in blocks(PAGES / "how-to/add-a-view.md") if one.title == "days.py"]
    path = folder / block.title
    path.write_text(block.text)
    spec = importlib.util.spec_from_file_location("days", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def test_the_view_that_is_shown_counts(database_url: str, tmp_path: Path) -> None:
    await prepare(database_url)
    view, log = await asyncio.to_thread(shown_view, tmp_path), EventLog()
    chat = log.start("conv-1")
    for number in range(5):
        log.send(chat, f"m-{number}")
    page = list(enumerate(log.events, start=1))
    async with await connect(database_url, names.VIEWS_NEXT_SCHEMA) as db:
        await create_views(db)
        await db.execute(view.SCHEMA)
        for half in (page[:4], page[4:]):
            for statement, values in view.project(half):
                await db.cursor(binary=True).execute(statement, values)
        rows = await (
            await db.execute("SELECT sum(messages)::integer, count(*)::integer FROM days")
        ).fetchall()
    assert rows == [(5, 1)]
