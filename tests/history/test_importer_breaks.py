"""An import that is cut off goes on where it stopped: killed, hung up on, or out of room."""

import asyncio
import json
import resource
from collections.abc import AsyncIterator
from io import BytesIO
from pathlib import Path
from signal import SIGKILL
from typing import Any

import aiohttp
import psycopg
import pytest
from msgspec.structs import replace

from app.history.importer import CHECKPOINT_LINES, Import, Place
from app.ledger.writer import QUEUE_MAX, Ledger, Recorded
from app.operations.deliveries import patiently
from app.operations.errors import LedgerBusy
from app.service.service import migrate
from tests.support.ids import ACCOUNT, ADMIN_KEY, AS_ADMIN, SCOPE
from tests.support.import_files import HEADERS, Json, imported, line, mixed, ndjson
from tests.support.ledgers.decisions import customer
from tests.support.processes import (
    COMMAND_SECONDS,
    RemoteSandbox,
    Result,
    run_command,
    sandbox_process,
    service_process,
    started,
)
from tests.support.system import Story, chat, free_port

LINES, CHATS = 10_000, 40


async def import_file(file: Path, *more: str) -> Result:
    """`chatledger import FILE`, as it is run."""
    settings = {"CHATLEDGER_ADMIN_KEY": ADMIN_KEY, "CHATLEDGER_DATA": str(file.parent / "cli")}
    return await run_command("import", str(file), "--channel", "acme", *more, **settings)


def lines_file(folder: Path, lines: list[Any]) -> Path:
    file = folder / "history.ndjson"
    file.write_bytes(ndjson(lines))
    return file


async def test_killed_in_the_middle_it_goes_on_where_it_stopped(data_folder: Path) -> None:
    url = f"http://127.0.0.1:{(port := free_port())}"
    file = lines_file(data_folder, mixed([f"kept-{n}" for n in range(CHATS)], LINES // CHATS))
    async with started(sandbox_process(data_folder, url)) as kommo_url, aiohttp.ClientSession() as client:
        process = service_process(data_folder, port, kommo_url)
        await process.start()
        story = Story(client, RemoteSandbox(kommo_url), url)
        await story.connect()
        first = asyncio.create_task(import_file(file, "--url", url, "--json"))
        async with asyncio.timeout(COMMAND_SECONDS):
            while await story.head() < CHECKPOINT_LINES * 1.3:  # noqa: ASYNC110  # another process is asked
                await asyncio.sleep(0.05)
        await process.end(SIGKILL)
        broken = await first
        assert broken.code == 1
        assert "run the same command again" in broken.err
        await process.start()
        again = await import_file(file, "--url", url, "--json")
        assert again.code == 0, again
        told = json.loads(again.out)
        assert (told["lines"], told["imported"], told["duplicates"]) == (LINES, LINES, 0)
        found = await story.api("GET", f"/v1/conversations?limit=1000&at_least={await story.head()}")
        assert {one["messages"] for one in found["items"]} == {LINES // CHATS}
        assert len(found["items"]) == CHATS
        await process.end()


async def test_when_nobody_listens_any_more_it_stops_and_the_same_again_goes_on(story: Story) -> None:
    body, before = ndjson(mixed([chat() for _ in range(20)], 400)), await story.head()
    url = f"{story.url}/v1/import?channel=acme"
    async with story.client.post(url, data=_whole(body), headers=HEADERS) as answer:
        async for sent_line in answer.content:
            if json.loads(sent_line).get("imported"):
                break
    report = (await imported(story, _whole(body))).report
    counts = [report[name] for name in ("lines", "imported", "duplicates")]
    assert (report["state"], counts) == ("done", [8000, 8000, 0])
    sent = [one async for one in _messages(story, before)]
    assert len(sent) == len(set(sent)) == 8000


async def test_without_room_for_the_file_nothing_is_taken(data_folder: Path) -> None:
    url = f"http://127.0.0.1:{(port := free_port())}"
    async with (
        started(sandbox_process(data_folder, url)) as kommo_url,
        aiohttp.ClientSession() as client,
        started(process := service_process(data_folder, port, kommo_url)),
    ):
        story = Story(client, RemoteSandbox(kommo_url), url)
        await story.connect()
        assert process.child
        resource.prlimit(process.child.pid, resource.RLIMIT_FSIZE, (100_000, -1))
        file = lines_file(data_folder, mixed(["full"], 2000))
        result = await import_file(file, "--url", url)
        assert result.code == 1
        assert "answered 507: the data folder has no room" in result.err
        resource.prlimit(process.child.pid, resource.RLIMIT_FSIZE, (-1, -1))
        result = await import_file(file, "--url", url)
        assert result.code == 0, result
        await process.end()


async def test_the_command_reports_and_its_exit_code_says_whether_all_is_in(
    story: Story, data_folder: Path
) -> None:
    file = lines_file(data_folder, [line(chat(), 0), "{}", line(chat(), 1)])
    result = await import_file(file, "--url", story.url)
    assert result.code == 1
    assert "imported   2" in result.out
    assert "line 2: $: Object missing required field `type`" in result.out
    good = await import_file(lines_file(data_folder, [line(chat(), 0)]), "--url", story.url, "--json")
    assert (good.code, json.loads(good.out)["imported"]) == (0, 1)


async def test_without_a_service_the_command_says_what_to_do(data_folder: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    result = await import_file(lines_file(data_folder, []), "--url", url)
    assert result.code == 1
    assert result.err.startswith(f"chatledger: no service answers at {url}: start it with `chatledger serve`")


async def test_a_large_file_is_refused_before_it_is_sent(story: Story, data_folder: Path) -> None:
    file = lines_file(data_folder, mixed([chat()], 20_000))
    result = await import_file(file, "--url", story.url, "--channel", "nobody")
    assert result.code == 1
    assert "answered 404: no channel has this name" in result.err


async def _whole(body: bytes) -> AsyncIterator[bytes]:
    yield body


async def _messages(story: Story, after: int) -> AsyncIterator[str]:
    """The ids of all messages recorded since."""
    headers: Json = {**AS_ADMIN, "Accept": "application/x-ndjson"}
    url = f"{story.url}/v1/events?after={after}&type=message.sent&at_least={await story.head()}"
    async with story.client.get(url, headers=headers) as answer:
        async for one in answer.content:
            yield json.loads(one)["event"]["message"]


async def test_a_full_ledger_is_waited_for(database_url: str) -> None:
    """Others may fill it between two breaths: the import stopped, and had to be given again by hand."""
    await migrate(database_url)
    ledger, spool = Ledger(database_url, lambda _: None), BytesIO(ndjson([line("full", n) for n in range(5)]))
    others = [ledger.submit(replace(customer(1), lane=f"other {n}")) for n in range(QUEUE_MAX)]
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as database:
        work = Import(database, ledger, Place(SCOPE, None), spool, ACCOUNT)
        await work.begin(again=False)
        running = asyncio.create_task(work.run())
        await asyncio.sleep(0.5)
        assert (work.stage, running.done()) == ("importing", False)
        await ledger.open()
        async with asyncio.timeout(COMMAND_SECONDS):
            report = await running
    assert (report.state, report.imported) == ("done", 5)
    await ledger.close()
    await asyncio.gather(*others, return_exceptions=True)


KILL = """SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
 WHERE datname = current_database() AND pid <> pg_backend_pid()"""


async def test_while_the_database_is_away_it_waits_and_goes_on(own_story: Story) -> None:
    """What had no answer is given again, and meets itself; the lock is taken on another connection."""
    story, count = own_story, 12_000
    body = ndjson(mixed([f"away-{n}" for n in range(CHATS)], count // CHATS))
    assert story.run
    url = story.run.services.settings.database_url or ""
    running = asyncio.create_task(imported(story, body))
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as owner:
        kills = 0
        while not running.done():
            await asyncio.sleep(0.7)
            if not running.done() and kills < 4 and await story.head() > 1_000 * kills:
                await owner.execute(KILL)
                kills += 1
    report = (await running).report
    assert kills >= 2, report
    assert (report["state"], report["lines"], report["imported"], report["duplicates"]) == (
        *("done", count, count, 0),
    )
    found = await story.api("GET", f"/v1/conversations?limit=1000&at_least={await story.head()}")
    assert {one["messages"] for one in found["items"]} == {count // CHATS}


async def test_what_has_failed_is_sent_again_once_the_ledger_has_room() -> None:
    answers: list[Recorded | LedgerBusy] = [LedgerBusy(), LedgerBusy(), Recorded(7, False, False, None, 7)]

    async def ask() -> Recorded:
        answer = answers.pop(0)
        if isinstance(answer, LedgerBusy):
            raise answer
        return answer

    with pytest.raises(LedgerBusy):
        await patiently(ask, lambda: False)
    assert (await patiently(ask, lambda: True)).position == 7


async def test_a_line_whose_past_is_damaged_is_left_out_alone(own_story: Story) -> None:
    story = own_story
    assert (await imported(story, ndjson([line("spoiled", 0)]))).report["imported"] == 1
    assert story.run
    url = story.run.services.settings.database_url or ""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as owner:
        await owner.execute("SET session_replication_role = replica")
        await owner.execute("UPDATE ledger.stored_events SET state = '{' WHERE topic = 'message.sent'")
    report = (await imported(story, ndjson([line("spoiled", 0), line("whole", 0)]))).report
    assert (report["state"], report["imported"], report["skipped"]) == ("done", 1, 1)
    assert "the ledger cannot take it" in str(report["problems"])
