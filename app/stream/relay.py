"""Every event of the ledger is in the stream LEDGER, once, at the sequence that is its position.

The relay keeps no record of what it has published, because the stream's own tail is that record. Every write
names the sequence that must precede it (`Nats-Expected-Last-Sequence`; in an atomic batch, ADR-50, on its
first message only). So whatever breaks in between, and however many relays run at once, an event is published
once and in its place, or it is not published and tried again. After any error the relay goes back to the tail
and compares it with the ledger, because a database restored to an older state would leave events in the
stream that never happened.

A relay is in one of three states: standing by, until it gets the lock (`_wait_for_turn`); opening, when it
brings the stream and its own position in line with the ledger (`_relay`); and publishing (`_publish_from`),
with at most `IN_FLIGHT_MAX` groups unacknowledged. A refusal and a broken connection end publishing through
`_failure`.
"""

import asyncio
import contextlib
import logging
import os
import random
import re
import time
from collections import deque
from collections.abc import Sequence
from typing import NoReturn, cast
from uuid import UUID

import msgspec
import psycopg
from msgspec import Struct
from nats.aio.msg import Msg

from app.database import connection, names
from app.database.connection import Db
from app.database.leases import LeaseLost, Leases
from app.database.packed import unpack
from app.stream import jetstream
from app.stream.jetstream import (
    HEAD_SUBJECT,
    OTHER_TAIL,
    JetStreamError,
    NatsClient,
    StreamRefused,
    StreamUnavailable,
)
from app.stream.ledger_stream import ForeignStream, LedgerStream, OldestOpen, head
from app.stream.standstill import Standstill
from domain import ids
from domain.events import EVENT_BYTES_MAX

__all__ = ["ForeignStream", "LedgerGap", "Relay"]

LOG = logging.getLogger("chatledger.relay")

# Milliseconds from write to answer for k events of 1 KB with headers, `sync_interval: always`, medians of 300
# on two shared cores: every publish is one fsync after the other, a batch is about six, however long it is.
#   k            1     2     3     5     7    10    15    20    50
#   pipelined  1.5   2.2   2.9   4.1   5.4   8.1  12.0  16.7  41.9
#   atomic    11.3  10.7  10.7  10.7  11.5  11.8  10.4  11.6  13.2
ATOMIC_MIN = 15
BATCH_MAX = 1000  # the most that an atomic batch may have (ADR-50)
BATCH_BYTES_MAX = 8 * 1024 * 1024  # chosen: with three groups in flight, the relay's memory stays flat
LARGE_BATCH_MAX = BATCH_BYTES_MAX // EVENT_BYTES_MAX
# Groups. With 2, catching up takes a fifth longer; 4, or any number at 200 events/s, makes no difference.
IN_FLIGHT_MAX = 3
# Chosen: a cluster that has lost a leader has another within seconds, and a look at the tail costs little.
ACK_SECONDS = 5.0
POLL_SECONDS = 1.0  # chosen: how late an event may be whose notification was lost
CHECK_SECONDS = 10.0  # chosen: how long an idle relay may overlook that its stream was deleted
PAUSE_SECONDS_MIN, PAUSE_SECONDS_MAX = 0.02, 1.0  # chosen: an outage costs one try a second

# Large events are limited by their number, so that no read is over 8 MB; a running sum takes twice as long.
READ = """
SELECT notification_id, state FROM ledger.stored_events WHERE notification_id > %(after)s
ORDER BY notification_id LIMIT (
  SELECT CASE WHEN sum(size) < %(bytes)s THEN %(limit)s ELSE %(large_limit)s END FROM (
    SELECT octet_length(state) AS size FROM ledger.stored_events
    WHERE notification_id > %(after)s ORDER BY notification_id LIMIT %(limit)s) AS e)
"""
LISTEN = f"LISTEN {names.CHANNEL}"
LEASE = "relay"

LIMITS = {"limit": BATCH_MAX, "bytes": BATCH_BYTES_MAX, "large_limit": LARGE_BATCH_MAX}

Row = tuple[int, bytes]


class LedgerGap(Exception):
    """The ledger's positions are not consecutive, which its writer rules out: look at the database."""


class Envelope(Struct, gc=False):
    """The fields of an event that its subject and headers are made from; the decoder skips the rest."""

    id: str
    type: str
    channel: str
    account: str | None = None
    conversation: str | None = None
    cause: str | None = None


# Stands for an event that cannot be read; its bytes are relayed as they are stored.
DAMAGED = Envelope(id=str(UUID(int=0)), type="unreadable", channel="unreadable")
# Nothing else may become part of a NATS protocol line.
WELL_FORMED = re.compile(
    r"ledger\.p\d\d(?:\.[^\s.*>]+){3} [0-9a-f-]{36} [0-9a-f-]{36} [\w.-]*", re.ASCII
).fullmatch


class _Problem(Struct, frozen=True):
    err_code: int = 0
    description: str = ""


class _Acknowledgement(Struct, frozen=True):
    seq: int = 0
    error: _Problem | None = None


# An answer without a body is a status: nobody listens to the subject.
NO_JETSTREAM = _Acknowledgement(error=_Problem(503, "there is no JetStream at the server"))

_open_envelope = msgspec.json.Decoder(Envelope).decode
_read_acknowledgement = msgspec.json.Decoder(_Acknowledgement).decode


class Relay:
    """Copies the ledger to the stream, from the stream's tail on, while `run` is running.

    `position` is the last one known to be in the stream. `restarted` counts the returns to the tail after an
    error. `active` is False while another relay does the work. `standstill` says whether it can do its work.
    """

    def __init__(
        self,
        database_url: str,
        nats: NatsClient,
        ledger_id: str,
        leases: Leases,
        *,
        replicas: int | None = None,
        oldest_open: OldestOpen | None = None,
        exclusive: bool = True,
        check_seconds: float = CHECK_SECONDS,
    ) -> None:
        """`replicas` and `oldest_open` are for a new stream: see LedgerStream.

        `exclusive=False` lets relays race; what they publish stays exact, they only waste work.
        """
        self.position = 0
        self.restarted = 0
        self.active = False
        self.standstill = Standstill()
        self._database_url = database_url
        self._nats = nats
        self._stream = LedgerStream(nats, ledger_id, replicas=replicas, oldest_open=oldest_open)
        self._exclusive = exclusive
        self._leases = leases
        self._check_seconds = check_seconds
        self._inbox = nats.new_inbox()
        self._session = 0
        self._woken = asyncio.Event()
        self._careful = False  # whether one event goes alone, so that the answer says what is wrong with it
        self._has_news = True  # whether the ledger may hold more than has been read
        self._failure: JetStreamError | None = None
        self._in_flight: deque[int] = deque()
        self._sent_at = 0.0
        self._checked_at = 0.0

    @property
    def replicas(self) -> int:
        """Returns how often the stream is kept; 0 while this relay has not opened it."""
        return self._stream.replicas

    @property
    def shortage(self) -> str | None:
        """Returns why the stream is kept less often than the operator wants it, None if it is not."""
        return self._stream.shortage

    def wake(self) -> None:
        """Look for new events; call it after a commit in this process."""
        self._has_news = True
        self._woken.set()

    async def run(self) -> NoReturn:
        """Relay until cancelled, waiting for what it needs. Raises StreamUnavailable if `nats` is closed."""
        unwatch = self._nats.watch(self._connection_changed)
        acknowledgements = await self._nats.subscribe(self._inbox + ".>", cb=self._acknowledged)
        listener = asyncio.create_task(self._listen(), name="relay listens")
        try:
            await self._keep_relaying()
        finally:
            unwatch()
            listener.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await listener
            if not self._nats.is_closed:
                await acknowledgements.unsubscribe()

    async def _keep_relaying(self) -> NoReturn:
        pause, before = PAUSE_SECONDS_MIN, 0
        while True:
            try:
                async with await connection.connect(self._database_url) as db:
                    await self._relay(db)
            except (
                JetStreamError,
                ForeignStream,
                LeaseLost,
                LedgerGap,
                psycopg.OperationalError,
                OSError,
            ) as error:
                if self._nats.is_closed:
                    raise StreamUnavailable("the NATS connection was closed") from error
                self.restarted += 1
                self._failed(error)
            finally:
                self.active = False
                self._session += 1  # What was in flight is answered too late.
                await self._leases.release([LEASE])
            pause = PAUSE_SECONDS_MIN if self.position > before else min(pause * 2, PAUSE_SECONDS_MAX)
            before = self.position
            await asyncio.sleep(pause * random.uniform(0.5, 1))  # News must not hurry a server that refuses.

    def _failed(self, error: Exception) -> None:
        """Tell it, but not that the tail is another once: a new leader or another relay may have moved it.

        It is also what the last of several events is answered when the first is refused.
        """
        once = isinstance(error, StreamRefused) and error.code == OTHER_TAIL and not self._careful
        self._careful = True
        if not once:
            self.standstill.because(str(error).strip() or type(error).__name__, self.position)

    async def _relay(self, db: Db) -> NoReturn:
        await self._wait_for_turn(db)
        self._session += 1
        self._failure = None
        self._in_flight.clear()
        self.position = await self._stream.open(db)
        self._checked_at = time.monotonic()
        self.active = True
        if not self.standstill.now:
            LOG.info("relay starts after position %d of %d", self.position, await head(db))
        await self._publish_from(db, self.position)

    async def _wait_for_turn(self, db: Db) -> None:
        """Wait until no other relay of this ledger is active."""
        while self._exclusive and not await self._leases.take({LEASE: names.RELAY_LOCK}):
            info = await jetstream.stream_info(self._nats)
            self.position = info.state.last_seq if info else 0
            self.standstill.over(self.position)
            self._woken.clear()
            await asyncio.sleep(POLL_SECONDS)

    # The loop: read and send a group, or wait for news, an acknowledgement, a failure, or POLL_SECONDS.

    async def _publish_from(self, db: Db, sent: int) -> NoReturn:
        poll_at = 0.0
        while True:
            self._woken.clear()
            if self._failure:
                raise self._failure
            if self._exclusive:
                self._leases.fence(LEASE)
            if (now := time.monotonic()) >= poll_at:
                poll_at = now + POLL_SECONDS
                await self._poll(db, now)
            if self._has_news and len(self._in_flight) < (1 if self._careful else IN_FLIGHT_MAX):
                self._has_news = False
                if rows := await self._read(db, sent):
                    sent = await self._send(rows[:1] if self._careful else rows)
                elif not self._in_flight:
                    self._well()
            else:
                await self._wait(POLL_SECONDS)

    async def _poll(self, db: Db, now: float) -> None:
        if self._in_flight and now - self._sent_at > ACK_SECONDS:
            reason = f": {self._nats.denied}" if self._nats.denied else ""
            raise StreamUnavailable(f"no acknowledgement within {ACK_SECONDS:.0f} s{reason}")
        if not self._in_flight and now - self._checked_at > self._check_seconds:
            await self._check(db)
        self._has_news = True

    async def _check(self, db: Db) -> None:
        """Notice that the stream was deleted or purged, while nothing is published that would fail."""
        self._checked_at = time.monotonic()
        published, self.position = self.position, await self._stream.open(db)
        if self.position != published:
            raise StreamRefused(0, f"the stream ends at {self.position}, not at {published}")

    async def _read(self, db: Db, after: int) -> list[Row]:
        cursor = db.cursor(binary=True)
        await cursor.execute(READ, {**LIMITS, "after": after}, prepare=True)
        rows = cast(list[Row], await cursor.fetchall())
        if rows and (rows[0][0] != after + 1 or rows[-1][0] != after + len(rows)):
            raise LedgerGap(f"the ledger has a gap between positions {after} and {rows[-1][0]}")
        return [(position, unpack(state)) for position, state in rows]

    async def _send(self, rows: Sequence[Row]) -> int:
        """Write a group of events; only the last message requests an answer, which covers the whole group."""
        last = rows[-1][0]
        reply = f"{self._inbox}.{self._session}.{last}"
        lines = batch(rows, reply) if len(rows) >= ATOMIC_MIN else singles(rows, reply)
        self._in_flight.append(last)
        self._sent_at = time.monotonic()
        await self._nats.write(lines)
        if len(rows) in (BATCH_MAX, LARGE_BATCH_MAX):
            self._has_news = True  # The read may have been cut short.
        return last

    async def _acknowledged(self, message: Msg) -> None:
        _, session, position = message.subject.rsplit(".", 2)
        if session != str(self._session):
            return  # It answers a write before an error; the tail has been read since.
        answer = _read_acknowledgement(message.data) if message.data else NO_JETSTREAM
        if answer.error:
            self._failure = StreamRefused(answer.error.err_code, answer.error.description)
        elif answer.seq != int(position):
            self._failure = StreamRefused(0, f"position {position} was stored as sequence {answer.seq}")
        else:
            self.position = answer.seq
            self._well()
            while self._in_flight and self._in_flight[0] <= answer.seq:
                self._in_flight.popleft()
            await self._tell(answer.seq)
        self._woken.set()

    def _well(self) -> None:
        """What was sent is in the stream: go on at full speed."""
        self._has_news |= self._careful
        self._careful = False
        self.standstill.over(self.position)

    async def _tell(self, position: int) -> None:
        """Wake the deliverers of all processes: one small message for a group, whatever their number."""
        digits = str(position).encode()
        with contextlib.suppress(JetStreamError):
            await self._nats.write(b"PUB %b %d\r\n%b\r\n" % (HEAD_SUBJECT.encode(), len(digits), digits))

    def _connection_changed(self) -> None:
        if not self._nats.is_connected:
            self._failure = StreamUnavailable("the connection to NATS was lost")
        self._woken.set()

    async def _wait(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._woken.wait()

    async def _listen(self) -> NoReturn:
        """Wake on the commits of other processes. If listening fails, the poll still finds them."""
        while True:
            with contextlib.suppress(psycopg.OperationalError, OSError):
                async with await connection.connect(self._database_url) as listener:
                    await listener.execute(LISTEN)
                    async for _ in connection.notified(listener):
                        self.wake()
            await asyncio.sleep(POLL_SECONDS)


# A message has a subject, the attributes that CloudEvents 1.0 requires (binary mode; the others are in the
# body), the W3C trace context, and JetStream's own headers. An effect shares the trace of its cause.


def singles(rows: Sequence[Row], reply: str) -> bytes:
    """Returns separate publishes, to be pipelined; the last requests an answer at `reply`."""
    parts: list[bytes] = []
    last = rows[-1][0]
    for position, body in rows:
        expected = f"Nats-Expected-Last-Sequence: {position - 1}\r\n"
        _add_message(parts, body, expected, reply if position == last else "")
    return b"".join(parts)


def batch(rows: Sequence[Row], reply: str) -> bytes:
    """Returns an atomic batch (ADR-50): stored whole, with one fsync, or not at all; answered at `reply`."""
    parts: list[bytes] = []
    first, last = rows[0][0], rows[-1][0]
    name = f"Nats-Batch-Id: {os.urandom(8).hex()}\r\nNats-Batch-Sequence: "
    for position, body in rows:
        member = f"{name}{position - first + 1}\r\n"
        if position == first:
            member += f"Nats-Expected-Last-Sequence: {position - 1}\r\n"
        if position == last:
            member += "Nats-Batch-Commit: 1\r\n"
        _add_message(parts, body, member, reply if position == last else "")
    return b"".join(parts)


def _add_message(parts: list[bytes], body: bytes, more: str, reply: str) -> None:
    try:
        event = _open_envelope(body)
        subject = ids.subject(event.conversation, event.account, event.type)
        damaged = not WELL_FORMED(f"{subject} {event.id} {event.cause or event.id} {event.channel}")
    except (ValueError, RecursionError):
        damaged = True
    if damaged:  # Its place in the stream is taken all the same, so that what follows keeps its own.
        event, subject = DAMAGED, ids.subject(None, None, DAMAGED.type)
    trace = (event.cause or event.id).replace("-", "")
    span = event.id[-17:].replace("-", "")
    source = f"channels/{event.channel}" if event.channel else f"accounts/{event.account}"
    headers = (
        f"NATS/1.0\r\nce-specversion: 1.0\r\nce-id: {event.id}\r\nce-source: /{source}\r\n"
        f"ce-type: {event.type}\r\ntraceparent: 00-{trace}-{span}-01\r\n{more}\r\n"
    )
    size = len(headers)
    parts += f"HPUB {subject} {reply} {size} {size + len(body)}\r\n{headers}".encode("ascii"), body, b"\r\n"
