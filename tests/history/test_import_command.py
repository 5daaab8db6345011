"""`chatledger import` as people use it: any file that holds the lines, and words for what it does not do."""

import asyncio
import gzip
import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.ids import ADMIN_KEY
from tests.support.import_files import line, mixed, ndjson
from tests.support.processes import ENVIRONMENT, ROOT, Result, run_command
from tests.support.system import Story, chat

BOM = b"\xef\xbb\xbf"
SETTINGS = {"CHATLEDGER_ADMIN_KEY": ADMIN_KEY}


def lines(many: int = 3) -> list[Any]:
    name = chat()
    return [line(name, number) for number in range(many)]


async def run(story: Story, file: Path, *more: str) -> Result:
    settings = SETTINGS | {"CHATLEDGER_DATA": str(file.parent)}
    command = ("import", str(file), "--channel", "acme", "--url", story.url, *more)
    return await run_command(*command, **settings)


@pytest.mark.parametrize("how", ["mark", "gzip", "gzip of several parts", "gzip and mark"])
async def test_a_file_is_read_however_it_was_written(story: Story, tmp_path: Path, how: str) -> None:
    file, body = tmp_path / "history", ndjson(lines())
    written = {
        "mark": BOM + body,
        "gzip": gzip.compress(body),
        "gzip of several parts": gzip.compress(body[:100]) + gzip.compress(body[100:]),
        "gzip and mark": gzip.compress(BOM + body),
    }
    file.write_bytes(written[how])
    found = await run(story, file, "--json")
    assert found.code == 0, found
    assert json.loads(found.out)["imported"] == 3


async def test_a_gzip_file_that_is_cut_off_is_named(story: Story, tmp_path: Path) -> None:
    file, before = tmp_path / "history.gz", await story.head()
    file.write_bytes(gzip.compress(ndjson(lines(200)))[:-20])
    found = await run(story, file)
    assert found.code == 1
    assert "history.gz is no whole gzip file" in found.err
    assert await story.head() == before


async def test_standard_input_is_read_and_what_is_done_is_not_read_again(
    story: Story, tmp_path: Path
) -> None:
    body = ndjson(lines())
    said = []
    for _ in range(2):
        settings = ENVIRONMENT | SETTINGS | {"CHATLEDGER_DATA": str(tmp_path)}
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "app", "import", "-", "--channel", "acme", "--url", story.url),
            stdin=-1,
            stdout=-1,
            stderr=-1,
            env=settings,
            cwd=ROOT,
        )
        out, err = await child.communicate(body)
        assert child.returncode == 0, err
        said.append(out.decode().splitlines())
    assert said[0][:3] == ["import     done", "lines      3", "imported   3"]
    assert said[1][0].startswith("import     done already, and nothing was read")
    assert "--again" in said[1][0]
    assert said[1][1:] == said[0][1:]


async def test_ctrl_c_says_where_it_goes_on(story: Story, tmp_path: Path) -> None:
    file = tmp_path / "history"
    file.write_bytes(ndjson(mixed([chat() for _ in range(50)], 400)))
    before = await story.head()
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "app", "import", str(file), "--channel", "acme", "--url", story.url),
        stdout=-1,
        stderr=-1,
        env=ENVIRONMENT | SETTINGS | {"CHATLEDGER_DATA": str(tmp_path)},
        cwd=ROOT,
    )
    async with asyncio.timeout(60):
        while await story.head() < before + 8000:  # noqa: ASYNC110  # another process is asked
            await asyncio.sleep(0.05)
    child.send_signal(signal.SIGINT)
    _, err = await child.communicate()
    assert child.returncode == 130, err
    assert "run the same command again: it goes on where it stopped" in err.decode()
    async with asyncio.timeout(30):
        while (again := await run(story, file, "--json")).code and "is running" in again.err:  # noqa: ASYNC110
            await asyncio.sleep(0.5)
    told = json.loads(again.out)
    assert (told["state"], told["imported"]) == ("done", 20_000)


async def test_the_help_shows_a_managers_message_that_can_be_imported(story: Story, tmp_path: Path) -> None:
    told = (await run_command("import", "--help", **SETTINGS)).out
    begin, end = told.index('{"type"'), told.index("In the file each")
    shown = told[begin:end].replace("MANAGER'S AMOJO ID", "0f8f1c5e-7f0a-4c52-9a43-3b1d0c7a1e01")
    customer, manager = shown.strip().split('\n  {"type"')
    one, two = (json.loads(text.replace("\n", "")) for text in (customer, '{"type"' + manager))
    assert (two["direction"], one["conversation_id"]) == ("out", two["conversation_id"])
    name = chat()
    file = tmp_path / "history"
    file.write_bytes(
        ndjson(
            [
                each | {"conversation_id": name, "message_id": f"{name}-{n}"}
                for n, each in enumerate((one, two))
            ]
        )
    )
    found = await run(story, file, "--json")
    assert (found.code, json.loads(found.out)["imported"]) == (0, 2), found
