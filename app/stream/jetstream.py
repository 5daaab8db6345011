"""Calls JetStream's raw API (ADR-8, ADR-10, ADR-60), so that no field or error of an answer is lost.

JetStreamError
├── StreamUnavailable   no connection, no answer in time, or no JetStream on the server: try again later
└── StreamRefused       the server answered with an error; `code` is its number, such as 10071
"""

import asyncio
import base64
import logging
from collections.abc import Callable, Mapping
from typing import TypeVar

import msgspec
import nats.errors
from msgspec import Struct
from nats.aio.client import Client

LOG = logging.getLogger("chatledger.nats")
STREAM = "LEDGER"
SUBJECTS = "ledger.>"
SECOND_NS = 1_000_000_000
ANSWER_SECONDS = 5.0
CONNECT_SECONDS = 10.0
RECONNECT_SECONDS = 0.25
PING_SECONDS = 20

STREAM_GONE = 10059
CONSUMER_GONE = 10014
MESSAGE_GONE = 10037

_STATUS_LINE = b"NATS/1.0 "
_Answer = TypeVar("_Answer")


class JetStreamError(Exception):
    """JetStream did not do what it was asked."""


class StreamUnavailable(JetStreamError):
    """No connection, no answer in time, or no JetStream there; nothing is known about what was asked."""


class StreamRefused(JetStreamError):
    """The server's answer is an error; `code` is its number in the server's list of errors."""

    def __init__(self, code: int, description: str) -> None:
        super().__init__(f"{description} ({code})")
        self.code = code


class StreamState(Struct, frozen=True):
    """Sequences are 0 where there was never a message."""

    messages: int
    first_seq: int
    last_seq: int


class StreamInfo(Struct, frozen=True):
    """`config` is what the server answered, fields unknown to us included."""

    config: dict[str, object]
    state: StreamState

    @property
    def metadata(self) -> dict[str, str]:
        """Ours and the server's own (`_nats.…`)."""
        return msgspec.convert(self.config.get("metadata") or {}, dict[str, str])

    @property
    def configured_first(self) -> int:
        """The sequence that the stream was made to begin with."""
        return msgspec.convert(self.config.get("first_seq") or 1, int)


class Delivered(Struct, frozen=True):
    """The last message that a consumer has sent to somebody."""

    stream_seq: int


class ConsumerInfo(Struct, frozen=True):
    """What a durable consumer is set to and still owes: sent and not acknowledged, and not yet sent."""

    config: dict[str, object]
    delivered: Delivered
    num_ack_pending: int
    num_pending: int


class StoredMessage(Struct, frozen=True):
    """A message of a stream, without its headers."""

    seq: int
    data: bytes = b""


class _Problem(Struct, frozen=True):
    err_code: int = 0
    description: str = ""
    code: int = 0


class _Reply(Struct, frozen=True):
    error: _Problem | None = None


class _RawMessage(Struct, frozen=True):
    seq: int
    data: str = ""


class _MessageReply(Struct, frozen=True):
    message: _RawMessage


class NatsClient(Client):
    """A NATS connection that takes preformatted protocol bytes and does not parse headers nobody reads.

    Nothing is kept back while disconnected: what is published then fails at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self._watchers: set[Callable[[], None]] = set()

    def watch(self, watcher: Callable[[], None]) -> Callable[[], None]:
        """Call `watcher` after each loss and each return of the link; returns what ends that."""
        self._watchers.add(watcher)
        return lambda: self._watchers.discard(watcher)

    async def write(self, protocol: bytes) -> None:
        """Send whole protocol lines, such as HPUB with headers and payload. Raises StreamUnavailable.

        `publish` formats headers for 20 µs; these bytes are ready, which nats-py has no public way to send.
        Callers bound what is in flight by waiting for acknowledgements.
        """
        if not self.is_connected:
            raise StreamUnavailable("not connected to NATS")
        await self._send_command(protocol)
        await self._flush_pending()
        if (task := asyncio.current_task()) and task.cancelling():
            raise asyncio.CancelledError  # nats-py swallows it in there.

    async def _process_headers(self, headers: bytes | None) -> dict[str, str] | None:
        # Only statuses (503, 409, heartbeats) are read here, and an event's headers take 18 of the 40 µs from
        # socket to acknowledgement. Should nats-py rename this method, they are parsed again, no more.
        if headers and headers.startswith(_STATUS_LINE):
            return await super()._process_headers(headers)
        return None

    async def changed(self) -> None:
        """The link was lost or is back: tell those who watch."""
        if not self.is_closed:
            LOG.warning("NATS %s", "connected again" if self.is_connected else "connection lost")
        for watcher in tuple(self._watchers):
            watcher()


async def connect(url: str, *, name: str, seconds: float = CONNECT_SECONDS) -> NatsClient:
    """Connect to `url` (several of a cluster with commas between), and again for ever when the link breaks.

    Raises StreamUnavailable if no server lets us in within `seconds`.
    """
    connection = NatsClient()
    try:
        async with asyncio.timeout(seconds):
            await connection.connect(
                url.split(","),
                name=name,
                max_reconnect_attempts=-1,
                reconnect_time_wait=RECONNECT_SECONDS,  # type: ignore[arg-type]  # It only sleeps for it.
                ping_interval=PING_SECONDS,
                pending_size=0,
                error_cb=_on_error,
                disconnected_cb=connection.changed,
                reconnected_cb=connection.changed,
            )
    except (OSError, nats.errors.Error, TimeoutError) as error:
        reason = connection.last_error or error
        await connection.close()
        raise StreamUnavailable(f"no NATS server lets us in: {_text(reason)}") from error
    return connection


async def _on_error(error: Exception) -> None:
    if isinstance(error, OSError | nats.errors.UnexpectedEOF | TimeoutError):
        LOG.debug("NATS: %s", error)  # The loss of the link is logged once, by the connection.
    else:
        LOG.error("NATS: %s", _text(error), exc_info=error)


def _text(error: Exception) -> str:
    return str(error) or type(error).__name__


async def call(connection: NatsClient, subject: str, body: Mapping[str, object] | None = None) -> bytes:
    """Ask `$JS.API.<subject>`; the answer's bytes. Raises StreamUnavailable and StreamRefused."""
    try:
        answer = await connection.request(
            f"$JS.API.{subject}", msgspec.json.encode(body) if body else b"", timeout=ANSWER_SECONDS
        )
    except (nats.errors.Error, OSError) as error:
        raise StreamUnavailable(f"JetStream does not answer {subject}: {_text(error)}") from error
    if problem := msgspec.json.decode(answer.data, type=_Reply).error:
        raise StreamRefused(problem.err_code or problem.code, problem.description)
    return answer.data


async def stream_info(connection: NatsClient, stream: str = STREAM) -> StreamInfo | None:
    """The stream as it is now; None if there is none."""
    return await _known(connection, f"STREAM.INFO.{stream}", StreamInfo, gone=STREAM_GONE)


async def create_stream(connection: NatsClient, config: Mapping[str, object]) -> StreamInfo:
    """Make a stream; if it is there with exactly this `config`, nothing happens."""
    return _read(await call(connection, f"STREAM.CREATE.{config['name']}", config), StreamInfo)


async def update_stream(connection: NatsClient, config: Mapping[str, object]) -> StreamInfo:
    """Set the whole configuration: what `config` does not name falls back to the server's defaults."""
    return _read(await call(connection, f"STREAM.UPDATE.{config['name']}", config), StreamInfo)


async def delete_stream(connection: NatsClient, stream: str = STREAM) -> None:
    """Delete the stream with its messages and consumers; it may be gone already."""
    await _delete(connection, f"STREAM.DELETE.{stream}", gone=STREAM_GONE)


async def last_message(
    connection: NatsClient, stream: str = STREAM, subject: str = SUBJECTS
) -> StoredMessage | None:
    """The newest message that is still stored; None if there is none."""
    body = {"last_by_subj": subject}
    reply = await _known(connection, f"STREAM.MSG.GET.{stream}", _MessageReply, gone=MESSAGE_GONE, body=body)
    return StoredMessage(reply.message.seq, base64.b64decode(reply.message.data)) if reply else None


async def consumer_info(connection: NatsClient, name: str, stream: str = STREAM) -> ConsumerInfo | None:
    """The consumer as it is now; None if there is none."""
    return await _known(connection, f"CONSUMER.INFO.{stream}.{name}", ConsumerInfo, gone=CONSUMER_GONE)


async def create_consumer(
    connection: NatsClient, config: Mapping[str, object], stream: str = STREAM
) -> ConsumerInfo:
    """Make a durable consumer; refused if it is there with another `config`."""
    body = {"stream_name": stream, "config": config, "action": "create"}
    return _read(await call(connection, f"CONSUMER.CREATE.{stream}.{config['name']}", body), ConsumerInfo)


async def delete_consumer(connection: NatsClient, name: str, stream: str = STREAM) -> None:
    """Delete the consumer; it may be gone already."""
    await _delete(connection, f"CONSUMER.DELETE.{stream}.{name}", gone=CONSUMER_GONE)


async def reset_consumer(connection: NatsClient, name: str, stream: str = STREAM) -> None:
    """Deliver again, in order, everything above the acknowledged floor (ADR-60, nats-server 2.14)."""
    await call(connection, f"CONSUMER.RESET.{stream}.{name}")


async def _known(
    connection: NatsClient,
    subject: str,
    kind: type[_Answer],
    *,
    gone: int,
    body: Mapping[str, object] | None = None,
) -> _Answer | None:
    try:
        return _read(await call(connection, subject, body), kind)
    except StreamRefused as refusal:
        if refusal.code == gone:
            return None
        raise


async def _delete(connection: NatsClient, subject: str, *, gone: int) -> None:
    try:
        await call(connection, subject)
    except StreamRefused as refusal:
        if refusal.code not in (gone, STREAM_GONE):
            raise


def _read(answer: bytes, kind: type[_Answer]) -> _Answer:
    return msgspec.json.decode(answer, type=kind)
