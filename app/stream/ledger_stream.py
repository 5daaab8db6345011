"""The stream LEDGER is a true copy of this ledger as far as it goes, or it is replaced by one.

The stream begins at a ledger position (`first_seq`) that is chosen when it is created and never changes, so
the sequence of a message is the position of its event. Its metadata names the ledger, so that two ledgers
never share a stream.

It is kept as often as wanted, or as the cluster can: a cluster that is too small keeps it once, until one of
the checks finds that it can be raised. It is never lowered, for an operator may have a reason. Consumers are
kept as often as their stream.
"""

import logging
from collections.abc import Awaitable, Callable

import msgspec
from msgspec import Struct

from app.database.connection import Db
from app.database.packed import unpack
from app.stream import jetstream
from app.stream.jetstream import (
    FEW_SERVERS,
    SEALED,
    STREAM,
    SUBJECTS,
    NatsClient,
    StreamInfo,
    StreamRefused,
    StreamUnavailable,
)

LOG = logging.getLogger("chatledger.relay")

FORMAT = 1  # of the messages; a stream of an older format is replaced, a newer one is refused
LEDGER_KEY, FORMAT_KEY = "chatledger.ledger", "chatledger.format"
# Chosen: how far back subscribers may start without a backfill from the ledger.
RETENTION_SECONDS = 30 * 24 * 3600
# Chosen: how far apart the clocks of PostgreSQL, which decides what is recent, and of the NATS server, which
# decides what is too old, may be.
CLOCKS_APART_SECONDS = 3600
# We set none of these; where an operator does, the stream drops what is too much.
OPERATORS_LIMITS = ("max_bytes", "max_msgs", "max_msgs_per_subject")
REPLICAS_OF_A_CLUSTER = 3  # any one server may be lost
# Twice EVENT_BYTES_MAX, which leaves room for headers, and below the 1 MB that nats-server accepts by
# default.
MESSAGE_BYTES_MAX = 768 * 1024

HEAD = "SELECT coalesce(max(notification_id), 0) FROM ledger.stored_events"
STATE = "SELECT state FROM ledger.stored_events WHERE notification_id = %(position)s"
CUTOFF = """
SELECT to_char(
  (now() AT TIME ZONE 'UTC') - make_interval(secs => %(seconds)s), 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')
"""

OldestOpen = Callable[[], Awaitable[int | None]]


class ForeignStream(Exception):
    """The stream belongs to another ledger or a newer chatledger; the message says what to do."""


class _Recorded(Struct, gc=False):
    recorded_at: str


_recorded = msgspec.json.Decoder(_Recorded).decode


class LedgerStream:
    """The stream of the ledger `ledger_id` on the server that `nats` is connected to."""

    def __init__(
        self,
        nats: NatsClient,
        ledger_id: str,
        *,
        replicas: int | None = None,
        oldest_open: OldestOpen | None = None,
    ) -> None:
        """`replicas` is how often the stream is kept (1, 3 or 5), None for what the servers allow up to 3.

        `oldest_open` returns the position of the oldest open delivery, which a new stream must contain.
        """
        self.replicas = 0  # How often the stream is kept; 0 until it has been opened.
        self._nats = nats
        self._ledger_id = ledger_id
        self._wanted = replicas
        self._told = ""
        self._oldest_open = oldest_open

    async def open(self, db: Db) -> int:
        """Create, replace or adjust the stream; returns the position up to which it holds the ledger.

        Raises ForeignStream, and JetStreamError if the server does not answer or refuses.
        """
        info = await jetstream.stream_info(self._nats)
        if info is None:
            return await self._create(db)
        self._check_owner(info)
        if info.cluster and not info.cluster.leader:
            raise StreamUnavailable(f"the stream {STREAM} has no leader: too few of its NATS servers are up")
        if info.config.get("sealed"):
            raise StreamRefused(SEALED, f"the stream {STREAM} is sealed")
        if reason := await self._difference(db, info):
            LOG.error("stream %s is deleted and filled again from the ledger: %s", STREAM, reason)
            await jetstream.delete_stream(self._nats)
            return await self._create(db)
        await self._adjust(info)
        return info.state.last_seq

    def _check_owner(self, info: StreamInfo) -> None:
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

    async def _difference(self, db: Db, info: StreamInfo) -> str | None:
        """Returns why the stream must be replaced, None if it is a true copy as far as it goes."""
        last, number = info.state.last_seq, info.metadata.get(FORMAT_KEY)
        if number != str(FORMAT):
            return f"its format is {number}, ours {FORMAT}"
        if last and await state(db, last) is None:
            return f"it ends at {last}, the ledger at {await head(db)}: the database was restored"
        tail = await jetstream.last_message(self._nats)
        if tail and await state(db, tail.seq) != tail.data:
            return f"its event {tail.seq} is not the ledger's: the database was restored"
        if last < info.configured_first < (first := await self._first(db)):
            return f"it is empty and begins at {info.configured_first}, {first} is enough"
        return await self._purged(db, info)

    async def _purged(self, db: Db, info: StreamInfo) -> str | None:
        """Returns which events somebody purged: the stream itself drops only those that are too old."""
        first = info.state.first_seq
        if any(msgspec.convert(info.config.get(name) or 0, int) > 0 for name in OPERATORS_LIMITS):
            return None
        if first <= info.configured_first or first > info.state.last_seq + 1:
            return None
        needed = max(info.configured_first, await first_recent(db, RETENTION_SECONDS - CLOCKS_APART_SECONDS))
        return f"its events {needed} to {first - 1} were purged" if needed < first else None

    async def _create(self, db: Db) -> int:
        first = await self._first(db)
        config = {**self._config(), "first_seq": first}
        try:
            info = await jetstream.create_stream(self._nats, config)
        except StreamRefused as refusal:
            if refusal.code != FEW_SERVERS or self._replicas() == 1:
                raise
            self._tell_few(refusal)
            info = await jetstream.create_stream(self._nats, {**config, "num_replicas": 1})
        self.replicas = info.replicas
        LOG.info("stream %s created, begins at position %d, is kept %d×", STREAM, first, self.replicas)
        return info.state.last_seq

    async def _adjust(self, info: StreamInfo) -> None:
        """Update an older configuration to ours, except `first_seq`, which cannot change."""
        self.replicas = info.replicas
        ours = {**self._config(), "num_replicas": max(self._replicas(), self.replicas)}
        wanted = {**info.config, **ours, "metadata": {**info.metadata, **self._metadata()}}
        if wanted["num_replicas"] != self.replicas:
            await self._raise(info, wanted)
            wanted["num_replicas"] = self.replicas
        if changed := [
            name for name in ours if name != "num_replicas" and wanted[name] != info.config.get(name)
        ]:
            await jetstream.update_stream(self._nats, wanted)
            LOG.warning("stream %s: set %s as this version needs it", STREAM, ", ".join(changed))

    async def _raise(self, info: StreamInfo, wanted: dict[str, object]) -> None:
        """Have the stream and its consumers kept more often, by itself and alone: the rest may be refused."""
        more = {**info.config, "num_replicas": wanted["num_replicas"]}
        try:
            now = await jetstream.update_stream(self._nats, more)
        except StreamRefused as refusal:
            if refusal.code != FEW_SERVERS:
                raise
            self._tell_few(refusal)
            return
        LOG.info("stream %s was kept %d× and is now kept %d×", STREAM, self.replicas, now.replicas)
        self.replicas, self._told = now.replicas, ""

    def _replicas(self) -> int:
        """How often the stream is wanted."""
        return self._wanted or (REPLICAS_OF_A_CLUSTER if self._nats.greeting.cluster else 1)

    @property
    def shortage(self) -> str | None:
        """Returns why the stream is kept less often than the operator wants it, None if it is not."""
        if not self._wanted or not 0 < self.replicas < self._wanted:
            return None
        return (
            f"the stream {STREAM} is kept {self.replicas}×, not {self._wanted}× as CHATLEDGER_NATS_REPLICAS"
            " says, until the NATS cluster has so many servers"
        )

    def _tell_few(self, refusal: StreamRefused) -> None:
        """Say it once; that a cluster of two keeps the stream once is as it should be."""
        said = (
            f"cannot be kept {self._replicas()}×, and is kept {self.replicas or 1}× until it can: {refusal}"
        )
        if said != self._told:
            LOG.log(logging.WARNING if self._wanted else logging.INFO, "stream %s %s", STREAM, said)
        self._told = said

    def _metadata(self) -> dict[str, str]:
        return {LEDGER_KEY: self._ledger_id, FORMAT_KEY: str(FORMAT)}

    def _compression(self) -> str:
        """Full blocks are compressed (0.5 KB a message instead of 2.7), but not in a cluster.

        A server of a cluster that is killed cuts what its log does not confirm from the stream's last block,
        and nats-server 2.15.1 cannot do that with a compressed one ("smb.truncate: … s2: corrupt input"):
        that copy of the stream was never repaired. It was so after the second kill; without compression none
        of eight did harm, and on a single server none of ten with it.
        """
        return "none" if self._nats.greeting.cluster else "s2"

    def _config(self) -> dict[str, object]:
        return {
            "name": STREAM,
            "subjects": [SUBJECTS],
            "storage": "file",
            "compression": self._compression(),
            "retention": "limits",
            "discard": "old",
            "max_age": RETENTION_SECONDS * jetstream.SECOND_NS,
            "max_msg_size": MESSAGE_BYTES_MAX,
            "num_replicas": self._replicas(),
            "allow_atomic": True,
            "allow_direct": True,
            "metadata": self._metadata(),
        }

    async def _first(self, db: Db) -> int:
        """Returns the first position of a new stream: it holds all that is recent or not yet delivered."""
        recent = await first_recent(db, RETENTION_SECONDS)
        oldest = await self._oldest_open() if self._oldest_open else None
        return max(1, recent if oldest is None else min(recent, oldest))


async def first_recent(db: Db, seconds: int) -> int:
    """Returns the first position recorded within the last `seconds`, the head's successor if there is none.

    This is a binary search: positions have no gaps, and `recorded_at` rises with them unless a clock was set
    back.
    """
    row = await (await db.execute(CUTOFF, {"seconds": seconds})).fetchone()
    assert row is not None
    low, high = 1, await head(db) + 1
    while low < high:
        middle = (low + high) // 2
        body = await state(db, middle)
        if body is not None and _recorded_at(body) < str(row[0]):
            low = middle + 1
        else:
            high = middle
    return low


def _recorded_at(body: bytes) -> str:
    """The time of an event; of one that cannot be read the latest, so that the stream holds too much."""
    try:
        return _recorded(body).recorded_at
    except (ValueError, RecursionError):
        return "~"


async def head(db: Db) -> int:
    """Returns the ledger's last position, 0 if it is empty."""
    row = await (await db.execute(HEAD)).fetchone()
    assert row is not None
    return msgspec.convert(row[0], int)


async def state(db: Db, position: int) -> bytes | None:
    """Returns the JSON of the event at `position`, None if there is none."""
    row = await (await db.execute(STATE, {"position": position}, binary=True)).fetchone()
    return unpack(msgspec.convert(row[0], bytes)) if row else None
