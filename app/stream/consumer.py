"""Feeds a callback with the messages of a stream, in order, from a durable consumer that outlives us.

Theory of operation.

Pulls. `_pull` keeps up to `outstanding` messages requested, so that the server pushes a new message without
being asked; it asks for more once half of them have come. The reply subject of a pull ends with the number of
the current `_round`. A status (a pull that expired, an error) counts only if it belongs to this round; a
message counts whatever round it answers.

Held messages. A message is held from the call of the callback until its `ack()`, which may come at any time.
The server may send a held message again; then only the subject of its acknowledgement changes, and the
callback is not called. If the callback raises, the message is not held, so that it is handed over again when
the server resends it. `ack()` only queues a few bytes; one task sends all that are queued in one write. A
lost acknowledgement costs a repeat.

Recovery. Silence (no message and no heartbeat), a broken connection and every unexpected status set
`_disturbed`. `_keep_pulling` then makes sure that the consumer exists with our settings, has the server
resend what was lost on the way, and begins a new round; it goes on trying until that succeeds. A consumer
that was deleted is created again behind what was acknowledged, or at the tail of a stream that now ends
earlier.

Invariant. Every message above the acknowledged floor reaches the callback, in order; after a disturbance some
messages may reach it twice. Only one process may use the consumer's name at a time: the caller holds a lease.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import NoReturn

import msgspec
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from app.stream import jetstream
from app.stream.jetstream import SECOND_NS, STREAM, SUBJECTS, JetStreamError, NatsClient, StreamUnavailable
from domain.ids import PARTITIONS

LOG = logging.getLogger("chatledger.consume")

# Chosen: 14 ms of messages at the 35,000 a second measured below, which is more than a round trip.
OUTSTANDING_MAX = 500
# Chosen: the same. The server sends nothing more while so many are not acknowledged.
UNACKNOWLEDGED_MAX = 500
# The server's default: a message that is not acknowledged within it is sent again.
ACK_WAIT_SECONDS = 30
# Chosen: the server forgets a pull after it; then the consumer pulls again.
EXPIRES_SECONDS = 30
# Chosen: the server allows at most half of EXPIRES_SECONDS.
HEARTBEAT_SECONDS = 5
# Two heartbeats are missing, and half an interval is left for delays.
SILENCE_SECONDS = 2.5 * HEARTBEAT_SECONDS
# Chosen: a 503 comes back within a millisecond, so trying at once would be a busy loop.
PAUSE_SECONDS = 0.5
# Where a consumer started is no reason to replace it: these fields are only read when it is created.
START_FIELDS = {"deliver_policy", "opt_start_seq"}

OnMessage = Callable[[int, bytes, Callable[[], None]], None]


class Consumer:
    """A durable pull consumer and the tasks that feed `on_message` from it.

    `on_message(sequence, data, ack)` is called in the order of the stream and must not block; `ack()` may be
    called at any later time. An acknowledged message may come again if the acknowledgement was lost.
    `last_sequence` is the highest sequence handed over so far.
    """

    def __init__(
        self,
        nats: NatsClient,
        name: str,
        filter_subjects: Iterable[str],
        start_sequence: int,
        on_message: OnMessage,
        *,
        outstanding: int = OUTSTANDING_MAX,
        stream: str = STREAM,
        headers_only: bool = False,
    ) -> None:
        """`start_sequence` (a ledger position) applies only if the durable consumer does not exist yet.

        With `headers_only` the server leaves out the bodies: `data` is empty, and only the sequence counts.
        """
        self.last_sequence = 0
        self._nats = nats
        self._name = name
        self._filters = list(filter_subjects)
        self._start_sequence = start_sequence
        self._on_message = on_message
        self._outstanding_max = outstanding
        self._stream = stream
        self._headers_only = headers_only
        self._inbox = nats.new_inbox()
        self._round = 0
        self._outstanding = 0
        self._held: dict[int, str] = {}  # sequence -> subject that acknowledges it
        self._acks: list[bytes] = []
        self._ack_ready = asyncio.Event()
        self._heard_at = 0.0
        self._disturbed = asyncio.Event()
        self._subscription: Subscription | None = None
        self._tasks: list[asyncio.Task[NoReturn]] = []

    async def start(self) -> None:
        """Create or take over the consumer and begin to receive. Raises JetStreamError if that fails.

        The messages that an earlier owner received and did not acknowledge come first, in order. So the
        caller must hold a lease that makes it the only owner.
        """
        await self._ensure(take_over=True)
        self._subscription = await self._nats.subscribe(
            self._inbox + ".*", cb=self._on_message_or_status, pending_bytes_limit=0
        )  # Unlimited, because nats-py would drop messages at a limit; what is outstanding is limited above.
        self._unwatch = self._nats.watch(self._disturbed.set)
        self._tasks = [
            asyncio.create_task(self._send_acks(), name=f"{self._name} acknowledges"),
            asyncio.create_task(self._keep_pulling(), name=f"{self._name} pulls"),
        ]
        await self._pull()

    async def stop(self) -> None:
        """Stop receiving, and send the acknowledgements that are queued."""
        if not self._subscription:
            return
        subscription, self._subscription = self._subscription, None
        self._unwatch()
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)
        if not self._nats.is_closed:
            await subscription.unsubscribe()  # The server drops a pull whose inbox nobody listens to.
            with contextlib.suppress(StreamUnavailable):
                await self._flush_acks()

    # The consumer on the server.

    async def _ensure(self, *, take_over: bool) -> None:
        """Make sure that the consumer exists with our settings and resends what was lost.

        A consumer with other settings is deleted, because the server ignores some of an update's fields. What
        was sent to an earlier owner (`take_over`) or lost with the connection would otherwise be resent only
        after ACK_WAIT_SECONDS, behind newer messages.
        """
        info = await jetstream.consumer_info(self._nats, self._name, self._stream)
        if info and _has_settings(info.config, self._config(0)):
            if (take_over and info.num_ack_pending) or info.delivered.stream_seq > self.last_sequence > 0:
                await jetstream.reset_consumer(self._nats, self._name, self._stream)
            return
        if info:
            LOG.warning("consumer %s has other settings and is replaced", self._name)
            await jetstream.delete_consumer(self._nats, self._name, self._stream)
        await self._create()

    async def _create(self) -> None:
        start = await self._resume_point()
        await jetstream.create_consumer(self._nats, self._config(start), self._stream)
        LOG.info("consumer %s created, starts at sequence %d", self._name, start)

    async def _resume_point(self) -> int:
        """Returns the sequence at which a new consumer starts.

        A replaced one goes on after the last acknowledged message, or at the tail of a stream that now ends
        before it, because the relay is refilling it or the ledger was restored to an older state.
        """
        if not self.last_sequence:
            return max(1, self._start_sequence)
        floor = min(self._held, default=self.last_sequence + 1) - 1
        info = await jetstream.stream_info(self._nats, self._stream)
        return min(floor, info.state.last_seq if info else 0) + 1

    def _config(self, start: int) -> dict[str, object]:
        return {
            "name": self._name,
            "durable_name": self._name,
            "filter_subjects": self._filters,
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": start,
            "ack_policy": "explicit",
            "ack_wait": ACK_WAIT_SECONDS * SECOND_NS,
            "max_ack_pending": UNACKNOWLEDGED_MAX,
            "max_deliver": -1,
            "replay_policy": "instant",
            **({"headers_only": True} if self._headers_only else {}),
        }

    # Pulling.

    async def _pull(self) -> None:
        """Request what is missing of `outstanding`, once that is half of it."""
        missing = self._outstanding_max - self._outstanding
        if missing * 2 < self._outstanding_max or not self._nats.is_connected:
            return
        self._outstanding += missing
        body = {
            "batch": missing,
            "expires": EXPIRES_SECONDS * SECOND_NS,
            "idle_heartbeat": HEARTBEAT_SECONDS * SECOND_NS,
        }
        self._heard_at = time.monotonic()
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{self._name} {self._inbox}.{self._round}"
        await self._nats.write(publish(subject, msgspec.json.encode(body)))

    async def _on_message_or_status(self, message: Msg) -> None:
        self._heard_at = time.monotonic()
        if not message.reply.startswith("$JS.ACK."):
            await self._on_status(message)
            return
        sequence = sequence_of(message.reply)
        self._outstanding = max(0, self._outstanding - 1)
        held = sequence in self._held
        self._held[sequence] = message.reply
        if not held:
            self._hand_over(sequence, message.data)
        await self._pull()

    def _hand_over(self, sequence: int, data: bytes) -> None:
        self.last_sequence = max(self.last_sequence, sequence)
        try:
            self._on_message(sequence, data, partial(self._ack, sequence))
        except BaseException:
            del self._held[sequence]  # So that the callback gets the message again.
            raise

    async def _on_status(self, message: Msg) -> None:
        """A heartbeat (100), the end of a pull (404, 408), or an error (409, 503)."""
        headers = message.headers or {}
        status = headers.get("Status")
        if status == "100" or not message.subject.endswith(f".{self._round}"):
            return
        if status in ("404", "408"):
            unused = headers.get("Nats-Pending-Messages", "")
            self._outstanding -= int(unused) if unused.isdecimal() else self._outstanding
            await self._pull()
        else:
            LOG.debug("consumer %s: %s %s", self._name, status, headers.get("Description"))
            self._disturbed.set()

    async def _keep_pulling(self) -> NoReturn:
        """Begin a new round whenever something has disturbed the pulls."""
        reason = ""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HEARTBEAT_SECONDS):
                    await self._disturbed.wait()
            if not self._disturbed.is_set() and time.monotonic() - self._heard_at < SILENCE_SECONDS:
                continue
            self._disturbed.clear()
            await asyncio.sleep(PAUSE_SECONDS)
            try:
                await self._ensure(take_over=False)
                self._round += 1
                self._outstanding = 0
                await self._pull()
                LOG.info("consumer %s goes on after sequence %d", self._name, self.last_sequence)
                reason = ""
            except JetStreamError as error:
                self._disturbed.set()
                if str(error) != reason:  # An outage is one line in the log, not one for each try.
                    reason = str(error)
                    LOG.warning("consumer %s waits: %s", self._name, reason)

    # Acknowledging.

    def _ack(self, sequence: int) -> None:
        if reply := self._held.pop(sequence, None):
            self._acks.append(publish(reply, b"+ACK"))
            self._ack_ready.set()

    async def _send_acks(self) -> NoReturn:
        while True:
            await self._ack_ready.wait()
            self._ack_ready.clear()
            with contextlib.suppress(StreamUnavailable):  # The server resends the messages.
                await self._flush_acks()

    async def _flush_acks(self) -> None:
        if self._acks:
            acks, self._acks = self._acks, []
            await self._nats.write(b"".join(acks))


def sequence_of(reply: str) -> int:
    """Returns the stream sequence in an acknowledgement subject of either form (ADR-15)."""
    tokens = reply.split(".")
    return int(tokens[5] if len(tokens) == 9 else tokens[7])


def publish(subject: str, payload: bytes) -> bytes:
    """Returns the bytes that publish a message; `subject` may carry a reply subject after a space."""
    return b"PUB %b %d\r\n%b\r\n" % (subject.encode(), len(payload), payload)


def partition_subjects(partitions: Iterable[int], types: Iterable[str] = ()) -> list[str]:
    """Returns the fewest filters for these partitions (0..63) and event types (all if `types` is empty).

    At the stream's tail filters cost the server little. Far behind it, several filters cost about 1 ms a
    message (measured with 5 and with 32, 50,000 messages in 5,000 conversations), while one or none gives
    35,000 messages a second: a reader of most partitions does better to read `ledger.>` and skip the rest.

    Raises ValueError without a partition, because to the server no filter means every message.
    """
    wanted = sorted(set(partitions))
    if not wanted or wanted[0] < 0 or wanted[-1] >= PARTITIONS:
        raise ValueError(f"partitions are numbers from 0 to {PARTITIONS - 1}, at least one")
    names = [kind.replace(".", "_") for kind in types]
    if len(wanted) == PARTITIONS:
        return [f"ledger.*.*.*.{name}" for name in names] or [SUBJECTS]
    heads = [f"ledger.p{number:02d}" for number in wanted]
    return [f"{head}.*.*.{name}" for head in heads for name in names] or [f"{head}.>" for head in heads]


def _has_settings(config: Mapping[str, object], wanted: Mapping[str, object]) -> bool:
    same = all(config.get(name) == value for name, value in wanted.items() if name not in START_FIELDS)
    return same and bool(config.get("headers_only")) == bool(wanted.get("headers_only"))
