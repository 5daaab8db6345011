"""What strangers write controls no terminal: through log, command line, import report and doctor."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.cli.shell import tell
from app.cli.upload import summary
from app.printable import PrintableFormatter, printable
from tests.support.ids import ADMIN_KEY
from tests.support.processes import run_command
from tests.support.service import Served, sent

FLOOD = (
    "\x1b[2J\x1b]0;owned\x07\r\n2026-11-27 08:00:00 ERROR chatledger: forged \x9b31m\u202egnp\u2066\x7f\x00"
)
CONTROLS = {*map(chr, range(32)), *map(chr, range(0x7F, 0xA0)), *"\u2028\u2029\u202e\u2066\u200f\u061c"}


def harmless(text: str) -> bool:
    return not set(text) & CONTROLS


@given(st.text(st.characters(codec=None)))
def test_a_printable_text_has_no_control_character_and_loses_nothing_else(text: str) -> None:
    shown = printable(text)
    assert harmless(shown)
    kept = "".join(one for one in text if harmless(one) and not "\ud800" <= one <= "\udfff")
    assert printable(kept) == kept
    assert printable(shown) == shown
    shown.encode()  # Also a terminal that takes only valid text is content.


def test_what_people_write_stays_as_it_is() -> None:
    for text in ("Grüße, 世界 \u200d👩\u200d👩\u200d👧", "שלום", "a\\x1bb", "e\u0301"):
        assert printable(text) == text
    assert printable("a\tb\n\x1b\x9b\u202e") == "a\\tb\\n\\x1b\\x9b\\u202e"


def test_a_log_entry_is_one_line_and_a_traceback_is_indented_below_it() -> None:
    try:
        raise ValueError(FLOOD)
    except ValueError as error:
        record = logging.LogRecord(
            "chatledger", 40, "", 0, "%s: %s", (FLOOD, error), (ValueError, error, None)
        )
    lines = PrintableFormatter().format(record).split("\n")
    assert all(map(harmless, lines))
    assert [line for line in lines if not line.startswith("  ")] == lines[:1]
    assert "forged" in lines[0]


def test_the_command_line_and_the_report_of_an_import_are_harmless(
    capsys: pytest.CaptureFixture[str],
) -> None:
    counts = dict.fromkeys(("lines", "imported", "duplicates", "conflicts", "skipped", "left_off"), 1)
    problems = [{"line": 1, "problem": FLOOD}]
    report = {"state": "stopped", "detail": FLOOD, "backwards": 0, "problems": problems, **counts}
    tell(*summary(report))
    tell(FLOOD, error=True)
    shown = capsys.readouterr()
    lines = (shown.out + shown.err).splitlines()
    assert len(lines) == 9
    assert all(map(harmless, lines))


async def test_an_import_reports_odd_lines_without_their_control_characters(service: Served) -> None:
    """The names of fields in a line are the stranger's, and stand in the paths of the problems."""
    free = {FLOOD.replace("\0", ""): 2**60}
    lines = [
        json.dumps(sent(1, message={"type": "text", "text": "Hi", "shared_post": free})).encode(),
        FLOOD.encode(),
    ]
    body = b"\n".join(lines)
    headers = {"Content-Type": "application/x-ndjson", "Authorization": f"Bearer {ADMIN_KEY}"}
    place = {"channel": "acme"}
    answer = await service.request("POST", "/v1/import", data=body, headers=headers, params=place)
    report = json.loads(answer.raw.splitlines()[-1])
    assert any("owned" in one["problem"] for one in report["problems"])
    assert all(harmless(one["problem"]) for one in report["problems"])


async def test_what_answers_in_place_of_the_service_writes_nothing_but_text(tmp_path: object) -> None:
    async with answering(json.dumps({"detail": FLOOD}).encode()) as url:
        settings = {"CHATLEDGER_DATA": str(tmp_path), "CHATLEDGER_ADMIN_KEY": "key-of-this-test-alone-1234"}
        told = await run_command("status", "--url", url, **settings)
        assert (told.code, told.out) == (1, "")
        assert "owned" in told.err
        assert harmless(told.err.removesuffix("\n"))
        port = url.rpartition(":")[2]
        checked = await run_command("doctor", **settings, CHATLEDGER_PORT=port, CHATLEDGER_KOMMO_URL=url)
        assert "owned" in checked.out
        assert all(map(harmless, checked.out.splitlines()))


@asynccontextmanager
async def answering(body: bytes) -> AsyncIterator[str]:
    """A stranger's server that answers everything with this body and the status 503; healthz is well."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        alive = b"/healthz" in head
        content = b'{"status":"ok"}' if alive else body
        status = b"200 OK" if alive else b"503 Service Unavailable"
        lines = (b"HTTP/1.1 " + status, b"Content-Type: application/json", b"Connection: close")
        writer.write(b"\r\n".join((*lines, b"Content-Length: %d" % len(content), b"", content)))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
