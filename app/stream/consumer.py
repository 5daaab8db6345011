"""Messages of the stream reach one callback in their order, from a durable consumer that outlives us.

The consumer always has pulls outstanding, so that a new message is pushed to us without being asked for; an
acknowledgement is a few bytes, gathered and sent together. Whatever disturbs this (the link, a server that
starts, a consumer or stream deleted and made anew) ends in asking again, and at worst in messages seen twice.
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

OUTSTANDING_MAX = 500
UNACKNOWLEDGED_MAX = 500
ACK_WAIT_SECONDS = 30
EXPIRES_SECONDS = 30
HEARTBEAT_SECONDS = 5
SILENCE_SECONDS = 2.5 * HEARTBEAT_SECONDS
PAUSE_SECONDS = 0.5
START_FIELDS = {"deliver_policy", "opt_start_seq"}

OnMessage = Callable[[int, bytes, Callable[[], None]], None]


class Consumer:
    """A durable pull consumer and the loop that feeds `on_message` from it.

    `on_message(sequence, data, ack)` is called in the order of the stream and must not block; `ack()` may be
    called at any later time. A message is given once while it is held, that is, until `ack()` or `reset()`;
    what was acknowledged may come again if the acknowledgement was lost.
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
    ) -> None:
        """`start_sequence` (a ledger position) counts only while the durable consumer does not exist yet."""
        self.received = 0
        self.last_sequence = 0
        self._nats = nats
        self._name = name
        self._filters = list(filter_subjects)
        self._start_sequence = start_sequence
        self._on_message = on_message
        self._outstanding_max = outstanding
        self._stream = stream
        self._inbox = nats.new_inbox()
        self._round = 0  # Pulls of earlier rounds are forgotten, and what they answer with it.
        self._outstanding = 0
        self._held: dict[int, str] = {}  # Given and not acknowledged: sequence and where to acknowledge it.
        self._acks: list[bytes] = []
        self._ack_ready = asyncio.Event()
        self._heard_at = 0.0
        self._disturbed = asyncio.Event()
        self._subscription: Subscription | None = None
        self._tasks: list[asyncio.Task[NoReturn]] = []

    async def start(self) -> None:
        """Make or take over the consumer and begin to receive. Raises JetStreamError if it cannot be made.

        What an earlier owner received and did not acknowledge comes again first, in its order: whoever starts
        must therefore be alone, by a lease of its own.
        """
        await self._provide(take_over=True)
        self._subscription = await self._nats.subscribe(
            self._inbox + ".*", cb=self._received, pending_bytes_limit=0
        )  # No limit: what is outstanding bounds it, and nats-py would drop messages.
        self._unwatch = self._nats.watch(self._disturbed.set)
        self._tasks = [
            asyncio.create_task(self._send_acks(), name=f"{self._name} acknowledges"),
            asyncio.create_task(self._keep_asking(), name=f"{self._name} pulls"),
        ]
        await self._ask()

    async def stop(self) -> None:
        """Receive nothing more; acknowledgements already given are sent."""
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

    async def reset(self) -> None:
        """Have everything above the acknowledged floor delivered again at once, in order (ADR-60).

        What was acknowledged a moment ago may be among it. Raises JetStreamError.
        """
        await self._flush_acks()
        self._held.clear()
        await jetstream.reset_consumer(self._nats, self._name, self._stream)

    # The consumer on the server.

    async def _provide(self, *, take_over: bool) -> None:
        """The consumer exists with our settings; one with others is deleted, for updates are taken half.

        It sends again what was sent to an earlier owner (`take_over`) or lost on a broken link: left alone,
        that would come only after 30 s, behind what is newer.
        """
        info = await jetstream.consumer_info(self._nats, self._name, self._stream)
        if info and _same(self._config(0), info.config):
            if (take_over and info.num_ack_pending) or info.delivered.stream_seq > self.last_sequence > 0:
                await jetstream.reset_consumer(self._nats, self._name, self._stream)
            return
        if info:
            LOG.warning("consumer %s has other settings and is made anew", self._name)
            await jetstream.delete_consumer(self._nats, self._name, self._stream)
        await self._create()

    async def _create(self) -> None:
        start = await self._resume_point()
        await jetstream.create_consumer(self._nats, self._config(start), self._stream)
        LOG.info("consumer %s made, from sequence %d on", self._name, start)

    async def _resume_point(self) -> int:
        """Where a consumer that we have used goes on: after what was acknowledged, or at the tail of a stream
        that now ends before it (the relay is refilling it, or the ledger was restored to an older state)."""
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
        }

    # Pulling.

    async def _ask(self) -> None:
        """Fill up what is outstanding, once half of it has come."""
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

    async def _received(self, message: Msg) -> None:
        self._heard_at = time.monotonic()
        if not message.reply.startswith("$JS.ACK."):
            await self._told(message)
            return
        sequence = sequence_of(message.reply)
        self._outstanding = max(0, self._outstanding - 1)
        held = sequence in self._held
        self._held[sequence] = message.reply
        if not held:
            self._give(sequence, message.data)
        await self._ask()

    def _give(self, sequence: int, data: bytes) -> None:
        self.received += 1
        self.last_sequence = max(self.last_sequence, sequence)
        try:
            self._on_message(sequence, data, partial(self._ack, sequence))
        except BaseException:
            del self._held[sequence]  # So that it comes again.
            raise

    async def _told(self, message: Msg) -> None:
        """A pull ended (408), something is amiss (409, 503), or a heartbeat (100): we are heard."""
        headers = message.headers or {}
        status = headers.get("Status")
        if status == "100" or not message.subject.endswith(f".{self._round}"):
            return
        if status in ("404", "408"):
            ended = headers.get("Nats-Pending-Messages", "")
            self._outstanding -= int(ended) if ended.isdecimal() else self._outstanding
            await self._ask()
        else:
            LOG.debug("consumer %s: %s %s", self._name, status, headers.get("Description"))
            self._disturbed.set()

    async def _keep_asking(self) -> NoReturn:
        """Begin anew after whatever disturbed the pulls: silence, a lost link, a consumer or stream gone."""
        reason = ""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HEARTBEAT_SECONDS):
                    await self._disturbed.wait()
            if not self._disturbed.is_set() and time.monotonic() - self._heard_at < SILENCE_SECONDS:
                continue
            self._disturbed.clear()
            await asyncio.sleep(PAUSE_SECONDS)  # Never at once: a 503 comes back within the millisecond.
            try:
                await self._provide(take_over=False)
                self._round += 1
                self._outstanding = 0
                await self._ask()
                LOG.info("consumer %s goes on after sequence %d", self._name, self.last_sequence)
                reason = ""
            except JetStreamError as error:
                self._disturbed.set()
                if str(error) != reason:
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
            with contextlib.suppress(StreamUnavailable):  # They come again.
                await self._flush_acks()

    async def _flush_acks(self) -> None:
        if self._acks:
            acks, self._acks = self._acks, []
            await self._nats.write(b"".join(acks))


def sequence_of(reply: str) -> int:
    """The stream sequence in an acknowledgement subject, of either form (ADR-15)."""
    tokens = reply.split(".")
    return int(tokens[5] if len(tokens) == 9 else tokens[7])


def publish(subject: str, payload: bytes) -> bytes:
    """The protocol line of a message without headers; `subject` may carry a reply subject after a space."""
    return b"PUB %b %d\r\n%b\r\n" % (subject.encode(), len(payload), payload)


def partition_subjects(partitions: Iterable[int], types: Iterable[str] = ()) -> list[str]:
    """Filters for these partitions (0..63) and event types (all if none is given), as few as it takes.

    At the stream's tail filters cost the server little. Far behind it, several of them cost about 1 ms a
    message (measured with 5 and with 32, 50,000 messages in 5,000 conversations), one or none gives 35,000/s:
    who holds most partitions does better to read `ledger.>` and skip the rest.

    Raises ValueError if there is no partition: to the server, no filter means everything.
    """
    wanted = sorted(set(partitions))
    if not wanted or wanted[0] < 0 or wanted[-1] >= PARTITIONS:
        raise ValueError(f"partitions are numbers from 0 to {PARTITIONS - 1}, at least one")
    names = [kind.replace(".", "_") for kind in types]
    if len(wanted) == PARTITIONS:
        return [f"ledger.*.*.*.{name}" for name in names] or [SUBJECTS]
    heads = [f"ledger.p{number:02d}" for number in wanted]
    return [f"{head}.*.*.{name}" for head in heads for name in names] or [f"{head}.>" for head in heads]


def _same(wanted: Mapping[str, object], found: Mapping[str, object]) -> bool:
    return all(found.get(name) == value for name, value in wanted.items() if name not in START_FIELDS)
