"""A file of messages becomes commands in its order, a window at a time; what is live always goes first.

The file is read twice. The first time finds the newest line of each chat, which alone may make a sound in
Kommo; the second time gives every line to the ledger, and keeps in `ledger.imports` how far it has come. So
an import that was cut off goes on where it stopped. What it had given to the ledger since the last checkpoint
meets itself there, and is told apart from what was there before the import by its position.

A line keeps its own time as its place in Kommo's feed. Where a chat's times are equal, each goes a
millisecond after the one before, so that the file's order stays. Memory: a window, two numbers a chat and a
bit a line.

While the database is away the import waits, and goes on with the line that had no answer.
"""

import asyncio
import logging
from codecs import BOM_UTF8
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import IO, Literal, cast

import msgspec
import psycopg
from msgspec import Struct
from msgspec.structs import replace

from app import clock
from app.database.connection import Db
from app.history.lines import LINE_BYTES_MAX, Line, pages
from app.history.patience import Patience, Stopped
from app.ledger.writer import EventTooLarge, Ledger, LedgerUnavailable, Recorded, Unrecordable
from app.messengers import checks, commands
from app.messengers.checks import ActionRefused
from app.messengers.contract import Sent
from app.printable import printable
from domain import commands as c
from domain.ids import Scope

WINDOW = 300
BREATH_LINES = 50
CHECKPOINT_LINES = 5_000
PROBLEMS_MAX = 100
PROBLEM_CHARACTERS_MAX = 300
OTHERS_MAX = 20
BUSY_SECONDS = 0.03
REST_SECONDS_MAX = 0.25
LAG_MAX = 20_000
WAIT_SECONDS = 0.01
NUMBER_BITS = 40
DRIFT_BITS = 24
BY = "import"
log = logging.getLogger("chatledger.import")

BEGIN = """INSERT INTO ledger.imports AS i (id, channel, account_id, began, lines, done, report, updated_at)
 SELECT %(id)s, %(channel)s, %(account)s, coalesce(max(notification_id), 0), 0, false, %(report)s, now()
 FROM ledger.stored_events ON CONFLICT (id) DO UPDATE SET
 began = CASE WHEN %(again)s THEN excluded.began ELSE i.began END,
 lines = CASE WHEN %(again)s THEN 0 ELSE i.lines END, done = i.done AND NOT %(again)s,
 report = CASE WHEN %(again)s THEN excluded.report ELSE i.report END
 RETURNING began, report, xmax = 0"""
IS_DONE = "SELECT done FROM ledger.imports WHERE id = %(id)s"
KEEP = """UPDATE ledger.imports SET lines = %(lines)s, done = %(done)s, report = %(report)s,
 updated_at = now() WHERE id = %(id)s"""

_sent = msgspec.json.Decoder(Sent).decode
Stage = Literal["checking", "importing"]


class LineProblem(Struct, frozen=True):
    """Why a line is not in the ledger as it stands; lines count from 1."""

    line: int
    problem: str


class Report(Struct, kw_only=True):
    """How far an import has come, or what it came to.

    `lines` were dealt with. `duplicates` were recorded before, with the same content; of `conflicts` another
    content is recorded, which stands; `resumed` were recorded before, had failed, and are sent again;
    `skipped` cannot be read. `backwards` are older than a line before of
    their chat: they have their own times all the same, by which Kommo orders them. `position` is the last of
    the ledger that it wrote or met: for `at_least` of a later read. `detail` says what to do when it stopped.
    Of the problems the first 100 are told; `left_off` counts the rest.
    """

    id: str
    state: Literal["running", "stopped", "done"] = "running"
    lines: int = 0
    imported: int = 0
    duplicates: int = 0
    conflicts: int = 0
    skipped: int = 0
    backwards: int = 0
    problems: list[LineProblem] = []
    left_off: int = 0
    detail: str = ""
    position: int = 0
    resumed: int = 0


class Cut(Stopped):
    """The same, but what it did since the last checkpoint is done again: it could not all be finished."""


class Place(Struct, frozen=True):
    """Where an import goes; `bot_id` is whose name stands under what nobody is named for.

    `per_conversation`: the ids of messages are unique only within a conversation.
    """

    scope: Scope
    bot_id: str | None
    per_conversation: bool = False


class Given(Struct):
    """A line given to the ledger, or why it was not; `again` if it was given before without an answer."""

    number: int
    outcome: "str | asyncio.Future[Recorded]"
    backwards: bool = False
    command: c.Send | None = None
    size: int = 0
    again: bool = False


class Import:
    """One import at work; `stage`, `seen` (lines read in it) and `report` say how far it is."""

    def __init__(self, database: Db, ledger: Ledger, place: Place, spool: IO[bytes], name: str) -> None:
        """`database` holds the lock of this import, `reconnect` makes another that does; `name` is its id."""
        self.stage: Stage = "checking"
        self.seen = 0
        self.total = 0
        self.report = Report(id=name)
        self.stopping = False
        self.view_position: Callable[[], int] = lambda: 1 << 62
        self.in_force: Callable[[], Awaitable[object | None]] | None = None
        self.resume: Callable[[list[str]], Awaitable[int]] | None = None
        self.database = database
        self.reconnect: Callable[[], Awaitable[Db]] | None = None
        self._patience = Patience(lambda: self.stopping)
        self._ledger = ledger
        self._place = place
        self._spool = spool
        self._began = 0
        self._resumed = 0
        self._repeats_to = 0
        self._kept = 0
        self._flying = 0
        self._head = 0
        self._good = bytearray()
        self._newest: dict[str, int] = {}
        self._last: dict[str, int] = {}
        self._waiting: deque[Given] = deque()
        self._repeated: list[str] = []

    async def is_done(self) -> bool:
        """Whether the same file was imported to its end before."""
        row = await (await self.database.execute(IS_DONE, {"id": self.report.id})).fetchone()
        return row == (True,)

    async def begin(self, *, again: bool) -> None:
        """Find how far it came before; `again` begins at the first line, whatever was done."""
        scope, fresh = self._place.scope, msgspec.json.encode(self.report)
        values = {"id": self.report.id, "channel": scope.channel, "account": scope.account}
        cursor = await self.database.execute(BEGIN, {**values, "report": fresh, "again": again})
        row = cast("tuple[int, bytes, bool] | None", await cursor.fetchone())
        assert row is not None
        self._began, raw, first = row
        self.report = msgspec.json.decode(raw, type=Report)
        self._resumed = self._kept = self.report.lines
        if not (first or again):
            self._repeats_to = self._resumed + CHECKPOINT_LINES + WINDOW

    async def run(self) -> Report:
        """Import what is not yet imported; ends early, at a checkpoint, once `stopping` is set."""
        report = self.report
        if report.state == "done":
            return report
        report.state, report.detail = "running", ""
        try:
            await self._check()
            await self._give()
            report.state = "done"
        except Cut as error:
            report.state, report.detail = "stopped", str(error)
            return report
        except Stopped as error:
            report.state, report.detail = "stopped", str(error)
        except psycopg.Error as error:
            log.warning("import %s: %s", report.id, str(error).strip())
            report.state, report.detail = "stopped", "the database is away: run the same command again"
            return report
        await self._keep()
        log.info("import %s: %s after %d lines", report.id, report.state, report.lines)
        return report

    # The first reading.

    async def _check(self) -> None:
        """Find the newest line of each chat: the latest time, and of equal ones the last."""
        newest = self._newest
        async for number, line in self._lines():
            if isinstance(sent := self._read(line), Sent):
                self._mark_good(number)
                mark = _at(sent) << NUMBER_BITS | number
                if mark > newest.get(sent.conversation_id, 0):
                    newest[sent.conversation_id] = mark
        self.total = self.seen

    async def _lines(self) -> AsyncIterator[Line]:
        """Every line that is not empty; others get their turn all the while."""
        self.seen = 0
        async for page in pages(self._spool):
            for number, line in page:
                self.seen = number
                if number % BREATH_LINES == 0:
                    await self._breathe()
                if number == 1 and line is not None:
                    line = line.removeprefix(BOM_UTF8)
                if line is None or line.strip():
                    yield number, line

    async def _breathe(self) -> None:
        """Let others go first: what is live, and the views, in which the live is shown and delivered.

        While the process has much else to do, the import leaves it half of the time.
        """
        loop = asyncio.get_running_loop()
        start = loop.time()
        await asyncio.sleep(0)
        if (took := loop.time() - start) > BUSY_SECONDS:
            await asyncio.sleep(min(took, REST_SECONDS_MAX))
        while True:
            if self.stopping:
                raise Stopped("it was stopped: run the same command again to go on")
            others = self._ledger.depth - self._flying
            if others <= OTHERS_MAX and self._head - self.view_position() <= LAG_MAX:
                return
            await asyncio.sleep(WAIT_SECONDS)

    def _read(self, line: bytes | None) -> Sent | str:
        """A line as a message, or why it is none."""
        if line is None:
            return f"a line holds at most {LINE_BYTES_MAX // 1024} KB: send less"
        try:
            sent = checks.parse_one(line)
        except ActionRefused as error:
            return f"{error.path}: {error.message}"
        if not isinstance(sent, Sent):
            return '$.type: an import takes messages only: "message.sent"'
        if sent.account_id not in (None, self._place.scope.account):
            return "$.account_id: this is another account's: import it there, or leave account_id out"
        return sent

    def _mark_good(self, number: int) -> None:
        while len(self._good) <= number >> 3:
            self._good.append(0)
        self._good[number >> 3] |= 1 << (number & 7)

    def _is_good(self, number: int) -> bool:
        """Whether a line was found good before; checking costs much more than reading it again."""
        return number >> 3 < len(self._good) and bool(self._good[number >> 3] & 1 << (number & 7))

    # The second reading.

    async def _give(self) -> None:
        """Give every line that was not dealt with before to the ledger."""
        self.stage = "importing"
        try:
            async for number, line in self._lines():
                sent = _sent(line) if line and self._is_good(number) else self._read(line)
                await self._room(len(line or b""))
                given = self._given(number, sent, len(line or b""))
                if given is not None:
                    self._waiting.append(given)
                if len(self._waiting) >= WINDOW:
                    await self._settle(WINDOW // 2)
        finally:
            await self._settle(0)
        self.report.lines = self.seen

    async def _room(self, size: int) -> None:
        """Wait until the ledger has room for a line: others may have filled it since the last breath."""
        while not self._ledger.has_room(1, size, self._place.scope):
            if self.stopping or self._ledger.closed:
                raise Stopped("it was stopped: run the same command again to go on")
            await asyncio.sleep(WAIT_SECONDS)

    def _given(self, number: int, sent: Sent | str, size: int) -> Given | None:
        """Give a line to the ledger, at its place in the chat; None if it was dealt with before."""
        if isinstance(sent, str):
            return Given(number, sent) if number > self._resumed else None
        at = _at(sent)
        msec = self._place_in_feed(sent.conversation_id, at)
        if number <= self._resumed:
            return None
        place = self._place
        try:
            given = commands.Circumstances(
                place.bot_id, imported=True, per_conversation=place.per_conversation
            )
            command = commands.command(place.scope, sent, given)
        except ActionRefused as error:
            return Given(number, f"{error.path}: {error.message}")
        newest = self._newest.get(sent.conversation_id, 0) & (1 << NUMBER_BITS) - 1 == number
        assert isinstance(command, c.Send)
        command = replace(command, msec=msec, silent=command.silent or not newest, by=BY)
        backwards = at < self._last[sent.conversation_id] >> DRIFT_BITS
        return Given(number, self._submit(command, size), backwards, command, size)

    def _submit(self, command: c.Send, size: int) -> "asyncio.Future[Recorded]":
        future = self._ledger.submit(command, size)
        self._flying += 1
        future.add_done_callback(self._landed)
        return future

    def _landed(self, _: "asyncio.Future[Recorded]") -> None:
        self._flying -= 1

    def _place_in_feed(self, chat: str, at: int) -> int:
        """The line's own time, or just after the line before of its chat if that has the same."""
        last = self._last.get(chat, 0)
        last_at, drift = last >> DRIFT_BITS, last & (1 << DRIFT_BITS) - 1
        if at < last_at:
            return at
        msec = max(at, last_at + drift + 1)
        self._last[chat] = at << DRIFT_BITS | msec - at
        return msec

    async def _settle(self, left: int) -> None:
        """Wait until no more than `left` lines are under way, and count what became of the others."""
        waiting, report = self._waiting, self.report
        while len(waiting) > left:
            given = waiting[0]
            if isinstance(given.outcome, str):
                self._skip(given.number, given.outcome)
            else:
                try:
                    self._count(given.number, await given.outcome, again=given.again)
                    self._patience.answered()
                except EventTooLarge:
                    self._skip(given.number, "the event would be over 384 KB: send less")
                except Unrecordable as error:  # It takes others, so this one alone is left out.
                    self._skip(given.number, f"the ledger cannot take it: {error}")
                except LedgerUnavailable as error:
                    await self._give_again(given, str(error))
                    continue
            waiting.popleft()
            report.backwards += given.backwards
            report.lines = given.number
            if report.lines - self._kept >= CHECKPOINT_LINES:
                self._kept = report.lines
                await self._take_up()  # What follows a checkpoint is all that is done again.
                await self._checkpoint()
        await self._take_up()

    async def _give_again(self, given: Given, error: str) -> None:
        """Give a line again of which the ledger did not say whether it has it; if it has, that shows."""
        try:
            await self._patience.pause(f"line {given.number}: the ledger did not take it ({error})")
            await self._room(given.size)
        except Stopped:
            self._let_go()
            raise
        assert given.command is not None
        given.outcome, given.again = self._submit(given.command, given.size), True

    async def _take_up(self) -> None:
        """Send again what was recorded before and has failed since: it is no duplicate of what arrived."""
        repeated, self._repeated = self._repeated, []
        if self.resume and repeated:
            count = await self._patience.ask(partial(self.resume, repeated))
            self.report.resumed += count
            self.report.duplicates -= count

    def _let_go(self) -> None:
        """What is under way still is given again next time."""
        for given in self._waiting:
            if not isinstance(given.outcome, str):
                given.outcome.cancel()
        self._waiting.clear()

    def _count(self, number: int, recorded: Recorded, *, again: bool) -> None:
        report, position = self.report, recorded.position or 0
        self._head = max(self._head, recorded.last or 0)
        report.position = max(report.position, position, recorded.last or 0)
        # Given before, when it was cut off or had no answer.
        ours = position > self._began and (again or number <= self._repeats_to)
        if recorded.conflict:
            report.conflicts += 1
            self._note(number, f"$.message_id: recorded with other content at position {position}")
        elif recorded.duplicate and not ours:
            report.duplicates += 1
            self._repeated.append(recorded.message or "")
        else:
            report.imported += 1

    def _skip(self, number: int, problem: str) -> None:
        self.report.skipped += 1
        self._note(number, problem)

    def _note(self, number: int, problem: str) -> None:
        if len(self.report.problems) < PROBLEMS_MAX:
            self.report.problems.append(LineProblem(number, printable(problem)[:PROBLEM_CHARACTERS_MAX]))
        else:
            self.report.left_off += 1

    async def _checkpoint(self) -> None:
        await self._keep()
        if self.in_force and await self._patience.ask(self.in_force) is None:
            raise Stopped("the channel was disconnected from the account: connect it, and run it again")

    async def _keep(self) -> None:
        report = self.report
        values: dict[str, object] = {"id": report.id, "lines": report.lines, "done": report.state == "done"}
        values |= {"report": msgspec.json.encode(report)}

        async def keep() -> None:
            if self.database.closed and self.reconnect:
                self.database = await self.reconnect()
            await self.database.execute(KEEP, values)

        await self._patience.ask(keep)


def _at(sent: Sent) -> int:
    return clock.milliseconds(sent.at)
