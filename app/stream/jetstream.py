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
ANSWER_SECONDS = 5.0  # the default of nats-py's JetStream context
CONNECT_SECONDS = 10.0  # chosen: long enough for a cluster of three whose first servers are down
RECONNECT_SECONDS = 0.25  # chosen: nats-py waits 2 s by default, and delivery would stand still for it
PING_SECONDS = 20  # chosen: a broken path is noticed after two lost pings, not after nats-py's four minutes

# Numbers of nats-server's list of errors, errors.json.
STREAM_GONE = 10059
CONSUMER_GONE = 10014
MESSAGE_GONE = 10037

# The private methods of nats-py that `NatsClient` calls or overrides: the library has no public way to send
# protocol bytes that are ready, nor to leave headers unparsed. So pyproject pins its exact version, and a
# test compares the signature of each: an upgrade that renames one fails there, not in production.
NATS_PY_PRIVATE = ("_send_command", "_flush_pending", "_process_headers")

_STATUS_LINE = b"NATS/1.0 "
_Answer = TypeVar("_Answer")


class JetStreamError(Exception):
    """JetStream did not do what we asked."""


class StreamUnavailable(JetStreamError):
    """No connection, no answer in time, or no JetStream; whether the request was carried out is unknown."""


class StreamRefused(JetStreamError):
    """The server answered with an error; `code` is its number in the server's list of errors."""

    def __init__(self, code: int, description: str) -> None:
        super().__init__(f"{description} ({code})")
        self.code = code


class StreamState(Struct, frozen=True):
    """How many messages a stream holds, and from where to where; 0 if it never had a message."""

    messages: int
    first_seq: int
    last_seq: int


class StreamInfo(Struct, frozen=True):
    """A stream; `config` is the server's own, with the fields that this program does not know."""

    config: dict[str, object]
    state: StreamState

    @property
    def metadata(self) -> dict[str, str]:
        """Returns our metadata and the server's own (`_nats.…`)."""
        return msgspec.convert(self.config.get("metadata") or {}, dict[str, str])

    @property
    def configured_first(self) -> int:
        """Returns the sequence that the stream was created to begin with."""
        return msgspec.convert(self.config.get("first_seq") or 1, int)


class Delivered(Struct, frozen=True):
    """The last message that a consumer has sent."""

    stream_seq: int


class ConsumerInfo(Struct, frozen=True):
    """A durable consumer: `num_ack_pending` messages are sent and unacknowledged, `num_pending` unsent."""

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
    """A NATS connection that sends protocol bytes as they are and parses no headers that nobody reads.

    Nothing is buffered while disconnected: publishing then fails at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self._watchers: set[Callable[[], None]] = set()

    def watch(self, watcher: Callable[[], None]) -> Callable[[], None]:
        """Call `watcher` when the connection breaks or returns; returns the function that ends the watch."""
        self._watchers.add(watcher)
        return lambda: self._watchers.discard(watcher)

    async def write(self, protocol: bytes) -> None:
        """Send whole protocol lines, such as HPUB with headers and payload. Raises StreamUnavailable.

        nats-py's `publish` takes 20 µs to format headers; these bytes are ready. The caller limits how much
        is in flight by waiting for acknowledgements.
        """
        if not self.is_connected:
            raise StreamUnavailable("not connected to NATS")
        await self._send_command(protocol)
        await self._flush_pending()
        if (task := asyncio.current_task()) and task.cancelling():
            raise asyncio.CancelledError  # `_flush_pending` swallows it.

    async def _process_headers(self, headers: bytes | None) -> dict[str, str] | None:
        # We read only statuses (503, 409, heartbeats), and an event's headers would take 18 of the 40 µs from
        # socket to acknowledgement.
        if headers and headers.startswith(_STATUS_LINE):
            return await super()._process_headers(headers)
        return None

    async def notify_watchers(self) -> None:
        """The connection broke or returned: log it and call the watchers."""
        if not self.is_closed:
            LOG.warning("NATS %s", "connected again" if self.is_connected else "connection lost")
        for watcher in tuple(self._watchers):
            watcher()


async def connect(url: str, *, name: str, seconds: float = CONNECT_SECONDS) -> NatsClient:
    """Connect to `url` (the servers of a cluster, separated by commas); reconnect for ever once connected.

    Raises StreamUnavailable if no server accepts the connection within `seconds`.
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
                pending_size=0,  # no buffer while disconnected
                error_cb=_on_error,
                disconnected_cb=connection.notify_watchers,
                reconnected_cb=connection.notify_watchers,
            )
    except (OSError, nats.errors.Error, TimeoutError) as error:
        reason = connection.last_error or error
        await connection.close()
        raise StreamUnavailable(f"no NATS server lets us in: {_text(reason)}") from error
    return connection


async def _on_error(error: Exception) -> None:
    if isinstance(error, OSError | nats.errors.UnexpectedEOF | TimeoutError):
        LOG.debug("NATS: %s", error)  # `notify_watchers` logs the loss of the connection, once.
    else:
        LOG.error("NATS: %s", _text(error), exc_info=error)


def _text(error: Exception) -> str:
    return str(error) or type(error).__name__


async def call(connection: NatsClient, subject: str, body: Mapping[str, object] | None = None) -> bytes:
    """Request `$JS.API.<subject>`; returns the answer's bytes. Raises StreamUnavailable, StreamRefused."""
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
    """Returns the stream as it is now, None if there is none."""
    return await _find(connection, f"STREAM.INFO.{stream}", StreamInfo, gone=STREAM_GONE)


async def create_stream(connection: NatsClient, config: Mapping[str, object]) -> StreamInfo:
    """Create a stream; does nothing if it exists with exactly this `config`."""
    return _read(await call(connection, f"STREAM.CREATE.{config['name']}", config), StreamInfo)


async def update_stream(connection: NatsClient, config: Mapping[str, object]) -> StreamInfo:
    """Replace the whole configuration: fields missing in `config` get the server's defaults."""
    return _read(await call(connection, f"STREAM.UPDATE.{config['name']}", config), StreamInfo)


async def delete_stream(connection: NatsClient, stream: str = STREAM) -> None:
    """Delete the stream with its messages and consumers, if it exists."""
    await _delete(connection, f"STREAM.DELETE.{stream}", gone=STREAM_GONE)


async def last_message(
    connection: NatsClient, stream: str = STREAM, subject: str = SUBJECTS
) -> StoredMessage | None:
    """Returns the newest message that is still stored, None if there is none."""
    body = {"last_by_subj": subject}
    reply = await _find(connection, f"STREAM.MSG.GET.{stream}", _MessageReply, gone=MESSAGE_GONE, body=body)
    return StoredMessage(reply.message.seq, base64.b64decode(reply.message.data)) if reply else None


async def consumer_info(connection: NatsClient, name: str, stream: str = STREAM) -> ConsumerInfo | None:
    """Returns the consumer as it is now, None if there is none."""
    return await _find(connection, f"CONSUMER.INFO.{stream}.{name}", ConsumerInfo, gone=CONSUMER_GONE)


async def create_consumer(
    connection: NatsClient, config: Mapping[str, object], stream: str = STREAM
) -> ConsumerInfo:
    """Create a durable consumer. Raises StreamRefused if it exists with another `config`."""
    body = {"stream_name": stream, "config": config, "action": "create"}
    return _read(await call(connection, f"CONSUMER.CREATE.{stream}.{config['name']}", body), ConsumerInfo)


async def delete_consumer(connection: NatsClient, name: str, stream: str = STREAM) -> None:
    """Delete the consumer, if it exists."""
    await _delete(connection, f"CONSUMER.DELETE.{stream}.{name}", gone=CONSUMER_GONE)


async def reset_consumer(connection: NatsClient, name: str, stream: str = STREAM) -> None:
    """Make the server resend all above the acknowledged floor, in order (ADR-60, nats-server 2.14)."""
    await call(connection, f"CONSUMER.RESET.{stream}.{name}")


async def _find(
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
