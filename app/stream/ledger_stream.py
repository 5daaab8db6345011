"""The stream LEDGER is this ledger's true copy as far as it goes, or it is made anew from the ledger.

It begins at a ledger position (`first_seq`), chosen when it is made and never changed: so a message's
sequence is the position of its event. Its metadata names the ledger, so that two ledgers never share it.
"""

import logging
from collections.abc import Awaitable, Callable

import msgspec
from msgspec import Struct

from app.database.connection import Db
from app.stream import jetstream
from app.stream.jetstream import STREAM, SUBJECTS, NatsClient, StreamInfo

LOG = logging.getLogger("chatledger.relay")

FORMAT = 1
LEDGER_KEY, FORMAT_KEY = "chatledger.ledger", "chatledger.format"
RETENTION_SECONDS = 30 * 24 * 3600
CLOCKS_APART_SECONDS = 3600  # PostgreSQL's clock says what is recent, the NATS server's what is too old.
MESSAGE_BYTES_MAX = 768 * 1024

HEAD = "SELECT coalesce(max(notification_id), 0) FROM ledger.stored_events"
STATE = "SELECT state FROM ledger.stored_events WHERE notification_id = %(position)s"
CUTOFF = """
SELECT to_char(
  (now() AT TIME ZONE 'UTC') - make_interval(secs => %(seconds)s), 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')
"""

OldestOpen = Callable[[], Awaitable[int | None]]


class ForeignStream(Exception):
    """The stream is another ledger's, or of a newer chatledger; the message says what to do."""


class _Recorded(Struct, gc=False):
    recorded_at: str


_recorded = msgspec.json.Decoder(_Recorded).decode


class LedgerStream:
    """The stream of the ledger `ledger_id`, as it should be on the server behind `nats`."""

    def __init__(
        self, nats: NatsClient, ledger_id: str, *, replicas: int = 1, oldest_open: OldestOpen | None = None
    ) -> None:
        """`oldest_open` gives the position of the oldest open delivery, which a new stream must hold too."""
        self._nats = nats
        self._ledger_id = ledger_id
        self._replicas = replicas
        self._oldest_open = oldest_open

    async def open(self, database: Db) -> int:
        """The position up to which the stream holds the ledger; it is made, or made anew, if it does not.

        Raises ForeignStream, and JetStreamError while the server does not do its part.
        """
        info = await jetstream.stream_info(self._nats)
        if info is None:
            return await self._create(database)
        self._recognise(info)
        if reason := await self._difference(database, info):
            LOG.error("stream %s is deleted and made anew from the ledger: %s", STREAM, reason)
            await jetstream.delete_stream(self._nats)
            return await self._create(database)
        await self._adjust(info)
        return info.state.last_seq

    def _recognise(self, info: StreamInfo) -> None:
        owner, number = info.metadata.get(LEDGER_KEY), info.metadata.get(FORMAT_KEY, "0")
        if owner != self._ledger_id:
            whose = f"ledger {owner}" if owner else "no ledger"
            raise ForeignStream(
                f"the stream {STREAM} on this NATS server belongs to {whose}, ours is {self._ledger_id}: use "
                f"another NATS server or account, or, if nobody needs that stream, delete it "
                f"(nats stream rm {STREAM}) and start again"
            )
        if not number.isdecimal() or int(number) > FORMAT:
            raise ForeignStream(
                f"the stream {STREAM} has format {number}, ours is {FORMAT}: upgrade chatledger"
            )

    async def _difference(self, database: Db, info: StreamInfo) -> str | None:
        """What of the stream cannot be mended by going on; None if it is a copy as far as it goes."""
        last, number = info.state.last_seq, info.metadata.get(FORMAT_KEY)
        if number != str(FORMAT):
            return f"its format is {number}, ours {FORMAT}"
        if last and await state(database, last) is None:
            return f"it ends at {last}, the ledger at {await head(database)}: the database was restored"
        tail = await jetstream.last_message(self._nats)
        if tail and await state(database, tail.seq) != tail.data:
            return f"its event {tail.seq} is not the ledger's: the database was restored"
        if last < info.configured_first < (first := await self._first(database)):
            return f"it is empty and begins at {info.configured_first}, {first} is enough"
        return await self._purged(database, info)

    async def _purged(self, database: Db, info: StreamInfo) -> str | None:
        """What is too old leaves the stream by itself; anything younger was taken out by somebody."""
        first = info.state.first_seq
        if first <= info.configured_first or first > info.state.last_seq + 1:
            return None
        needed = max(
            info.configured_first, await first_recent(database, RETENTION_SECONDS - CLOCKS_APART_SECONDS)
        )
        return f"its events {needed} to {first - 1} were purged" if needed < first else None

    async def _create(self, database: Db) -> int:
        first = await self._first(database)
        info = await jetstream.create_stream(self._nats, {**self._config(), "first_seq": first})
        LOG.info("stream %s made, to begin at position %d", STREAM, first)
        return info.state.last_seq

    async def _adjust(self, info: StreamInfo) -> None:
        """Bring an older configuration to ours, all but `first_seq`, which belongs to the stream's making."""
        ours = self._config()
        wanted = {**info.config, **ours, "metadata": {**info.metadata, **self._metadata()}}
        if changed := [name for name in ours if wanted[name] != info.config.get(name)]:
            await jetstream.update_stream(self._nats, wanted)
            LOG.warning("stream %s: set %s as this version needs it", STREAM, ", ".join(changed))

    def _metadata(self) -> dict[str, str]:
        return {LEDGER_KEY: self._ledger_id, FORMAT_KEY: str(FORMAT)}

    def _config(self) -> dict[str, object]:
        return {
            "name": STREAM,
            "subjects": [SUBJECTS],
            "storage": "file",
            "retention": "limits",
            "discard": "old",
            "max_age": RETENTION_SECONDS * jetstream.SECOND_NS,
            "max_msg_size": MESSAGE_BYTES_MAX,
            "num_replicas": self._replicas,
            "allow_atomic": True,
            "allow_direct": True,
            "metadata": self._metadata(),
        }

    async def _first(self, database: Db) -> int:
        """Where a new stream begins: what subscribers may ask for, and what is still to be delivered."""
        recent = await first_recent(database, RETENTION_SECONDS)
        oldest = await self._oldest_open() if self._oldest_open else None
        return max(1, recent if oldest is None else min(recent, oldest))


async def first_recent(database: Db, seconds: int) -> int:
    """The first position recorded within the last `seconds`; the head's successor if there is none.

    A binary search: positions have no gaps, and `recorded_at` rises with them, but for a clock set back.
    """
    row = await (await database.execute(CUTOFF, {"seconds": seconds})).fetchone()
    assert row is not None
    low, high = 1, await head(database) + 1
    while low < high:
        middle = (low + high) // 2
        body = await state(database, middle)
        if body is not None and _recorded(body).recorded_at < str(row[0]):
            low = middle + 1
        else:
            high = middle
    return low


async def head(database: Db) -> int:
    """The ledger's last position, 0 while it is empty."""
    row = await (await database.execute(HEAD)).fetchone()
    assert row is not None
    return msgspec.convert(row[0], int)


async def state(database: Db, position: int) -> bytes | None:
    """The stored bytes of the event at `position`; None if there is none."""
    row = await (await database.execute(STATE, {"position": position}, binary=True)).fetchone()
    return msgspec.convert(row[0], bytes) if row else None
