"""Calls JetStream's raw API (ADR-8, ADR-10, ADR-60), so that no field or error of an answer is lost.

The errors are those of the connection, client.py.
"""

import base64
from collections.abc import Mapping
from typing import TypeVar

import msgspec
import nats.errors
from msgspec import Struct

from app.stream.client import (
    JetStreamError,
    NatsClient,
    StreamRefused,
    StreamUnavailable,
    connect,
    not_cancelled,
    text,
)

__all__ = ["JetStreamError", "NatsClient", "StreamRefused", "StreamUnavailable", "call", "connect"]

STREAM = "LEDGER"
SUBJECTS = "ledger.>"
SECOND_NS = 1_000_000_000
ANSWER_SECONDS = 5.0  # the default of nats-py's JetStream context
# Numbers of nats-server's list of errors, errors.json.
FEW_SERVERS = 10005
OTHER_TAIL = 10071
STREAM_GONE = 10059
CONSUMER_GONE = 10014
MESSAGE_GONE = 10037
SEALED = 10109

_Answer = TypeVar("_Answer")


class StreamState(Struct, frozen=True):
    """How many messages a stream holds, and from where to where; 0 if it never had a message."""

    messages: int
    first_seq: int
    last_seq: int


class Cluster(Struct, frozen=True):
    """The cluster that keeps a stream; `leader` is the server that takes what is published."""

    leader: str | None = None


class StreamInfo(Struct, frozen=True):
    """A stream; `config` is the server's own, with the fields that this program does not know."""

    config: dict[str, object]
    state: StreamState
    cluster: Cluster | None = None

    @property
    def replicas(self) -> int:
        """Returns how often the stream is to be kept."""
        return msgspec.convert(self.config.get("num_replicas") or 1, int)

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


# On which the relay tells deliverers, and nobody else, how far the stream has come: a position in digits.
HEAD_SUBJECT = "chatledger.head"


async def call(connection: NatsClient, subject: str, body: Mapping[str, object] | None = None) -> bytes:
    """Request `$JS.API.<subject>`; returns the answer's bytes. Raises StreamUnavailable, StreamRefused."""
    if not connection.is_connected:
        raise StreamUnavailable(connection.why())
    try:
        answer = await connection.request(
            f"$JS.API.{subject}", msgspec.json.encode(body) if body else b"", timeout=ANSWER_SECONDS
        )
    except nats.errors.NoRespondersError:
        raise StreamUnavailable("the NATS server has no JetStream for us") from None
    except (nats.errors.Error, OSError) as error:
        reason = connection.denied or text(error)
        raise StreamUnavailable(f"JetStream does not answer {subject}: {reason}") from error
    not_cancelled()
    connection.denied = ""
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
