"""A connection to NATS that comes back whatever ends it, and says why as long as it does not.

JetStreamError
├── StreamUnavailable   no connection, no answer in time, or no JetStream on the server: try again later
└── StreamRefused       the server answered with an error; `code` is its number, such as 10071
"""

import asyncio
import logging
import ssl
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote, urlsplit

import msgspec
import nats.errors
from msgspec import Struct
from nats.aio.client import Client

from app.stream.identity import CA, CERTIFICATE, CREDENTIALS, BadIdentity, Identity

LOG = logging.getLogger("chatledger.nats")
CONNECT_SECONDS = 10.0  # chosen: long enough for a cluster of three whose first servers are down
RECONNECT_SECONDS = 0.25  # chosen: nats-py waits 2 s by default, and delivery would stand still for it
PING_SECONDS = 3  # chosen: a host that vanished without a word is given up after 9 to 12 s, three lost pings

# The private methods of nats-py that `NatsClient` calls or overrides: the library has no public way to send
# protocol bytes that are ready, to leave headers unparsed, to refuse a server by its greeting, or to come
# back to a server that has sent us away. So pyproject pins its exact version, and a test compares the
# signature of each: an upgrade that renames one fails there, not in production. It looks for attributes, too.
NATS_PY_PRIVATE = (
    *("_send_command", "_flush_pending", "_process_headers"),
    *("_process_info", "_process_err", "_process_op_err"),
)
NATS_PY_ATTRIBUTES = ("_current_server", "_public_nkey", "_transport")

# What servers and OpenSSL say when they do not let us in, and where to look then.
ADVICE = {
    "certificate verify failed": f"{CA} has to name the file of its authority, if that is a private one",
    "certificate required": f"the server asks for ours, which {CERTIFICATE} names",
    "bad certificate": f"the server does not trust ours, which {CERTIFICATE} names",
    "unknown ca": f"the server does not trust ours, which {CERTIFICATE} names",
    "authorization violation": f"check user and password in CHATLEDGER_NATS_URL, or {CREDENTIALS}",
    "authentication expired": f"renew the file that {CREDENTIALS} names",
    "authentication revoked": f"renew the file that {CREDENTIALS} names",
}
QUOTES = "'\""
DENIED = "permissions violation"
# What JetStream refuses, by its numbers, and what an operator can do about it.
FULL = "make room on its disk, or raise max_file_store or the limit of the account in its configuration"
REFUSED = {
    10002: FULL,
    10023: FULL,
    10028: FULL,
    10047: FULL,
    10077: "raise max_bytes of the stream",
    10109: "delete the stream (nats stream rm LEDGER), and it is filled again from the ledger",
}
# A server that does not answer or goes away; what it has said before says more.
SILENT = (OSError, nats.errors.UnexpectedEOF, TimeoutError)
_STATUS_LINE = b"NATS/1.0 "


class JetStreamError(Exception):
    """JetStream did not do what we asked."""


class StreamUnavailable(JetStreamError):
    """No connection, no answer in time, or no JetStream; whether the request was carried out is unknown."""


class StreamRefused(JetStreamError):
    """The server answered with an error; `code` is its number in the server's list of errors."""

    def __init__(self, code: int, description: str) -> None:
        advice = f": {REFUSED[code]}" if code in REFUSED else ""
        super().__init__(f"{description} ({code}){advice}")
        self.code = code


class Greeting(Struct, frozen=True):
    """What a server says of itself before it lets anybody in; `cluster` is the name of its cluster."""

    version: str = ""
    cluster: str = ""
    tls_required: bool = False
    tls_available: bool = False


class NatsClient(Client):
    """A NATS connection that sends protocol bytes as they are and parses no headers that nobody reads.

    Nothing is buffered while disconnected: publishing then fails at once. Whatever ends the connection, it
    tries again until it is closed. `greeting` is of the server that it is or was connected to; `trouble` is
    why no server lets us in, `denied` what this one does not let us do, both in the server's words.
    """

    def __init__(self) -> None:
        super().__init__()
        self.greeting = Greeting()
        self.trouble = ""
        self.denied = ""
        self._watchers: set[Callable[[], None]] = set()
        self._said: set[str] = set()

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
            raise StreamUnavailable(self.why())
        await self._send_command(protocol)
        await self._flush_pending()
        not_cancelled()

    def why(self) -> str:
        """Why it is not connected, in words."""
        return f"not connected to NATS{f' ({self.trouble})' if self.trouble else ''}"

    def sign_as(self, public_key: str | None) -> None:
        """Sign in with an nkey of this name; nats-py sets it only with a library of its own."""
        self._public_nkey = public_key

    async def _process_headers(self, headers: bytes | None) -> dict[str, str] | None:
        # We read only statuses (503, 409, heartbeats), and an event's headers would take 18 of the 40 µs from
        # socket to acknowledgement.
        if headers and headers.startswith(_STATUS_LINE):
            return await super()._process_headers(headers)
        return None

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        """Refuse a server without TLS where the URL asks for it: nats-py would send it the password."""
        greeting = msgspec.convert(info, Greeting)
        if initial_connection and self._current_server and self._current_server.uri.scheme == "tls":
            if not (greeting.tls_required or greeting.tls_available):
                raise nats.errors.Error("the URL begins with tls://, and the server has no TLS")
            info["tls_required"] = True
        self.greeting = greeting if initial_connection else self.greeting
        await super()._process_info(info, initial_connection)

    async def _process_err(self, err_msg: str) -> None:
        """Try again when a server sends us away, as when a key has expired: nats-py would stay closed."""
        if DENIED in err_msg.lower():
            await super()._process_err(err_msg)
            return
        await self.failed(nats.errors.Error(err_msg.strip("'")))
        await self._process_op_err(nats.errors.Error(err_msg.strip("'")))

    async def _process_op_err(self, e: Exception) -> None:
        """Drop what is unsent, for nats-py would wait until a host takes it that may be gone for ever."""
        self.drop()
        await super()._process_op_err(e)

    def drop(self) -> None:
        """Close the socket, whatever is unsent."""
        if writer := getattr(self._transport, "_io_writer", None):
            writer.transport.abort()

    async def failed(self, error: Exception) -> None:
        """Note an error of nats-py, which tries again by itself, and log a new one once."""
        said = text(error)
        if not self.is_connected:
            self.drop()  # nats-py would forget the socket of a server that does not let us in.
        if DENIED in said.lower():
            self.denied = said
            if DENIED not in self._said:  # A batch of a thousand is a thousand of them.
                LOG.error("NATS: %s", said)
            self._said.add(DENIED)
        elif isinstance(error, ssl.SSLError | BadIdentity) or not isinstance(error, SILENT):
            self.trouble = _advice(said)
            if (reason := self.trouble.lower()) not in self._said:  # nats-py lowers a part of them itself.
                LOG.error("NATS: %s", self.trouble)
            self._said.add(reason)
        else:  # `changed` logs the loss of the connection, once; a refusal says more than a silence.
            LOG.debug("NATS: %s", said)
            self.trouble = self.trouble or said

    async def changed(self) -> None:
        """The connection broke or returned: log it and call the watchers."""
        if self.is_connected:
            self.trouble = self.denied = ""
            self._said.clear()
        if not self.is_closed:
            LOG.warning("NATS %s", "connected again" if self.is_connected else "connection lost")
        for watcher in tuple(self._watchers):
            watcher()


async def connect(
    url: str, *, name: str, seconds: float = CONNECT_SECONDS, identity: Identity | None = None
) -> NatsClient:
    """Connect to `url` (the servers of a cluster, separated by commas); reconnect for ever once connected.

    Raises StreamUnavailable if no server lets us in within `seconds`, BadIdentity.
    """
    identity = identity or Identity()
    options = identity.options()
    connection = NatsClient()
    connection.sign_as(identity.public_key())
    servers, login = without_login(url)
    try:
        async with asyncio.timeout(seconds):
            await connection.connect(
                servers,
                name=name,
                max_reconnect_attempts=-1,
                reconnect_time_wait=RECONNECT_SECONDS,  # type: ignore[arg-type]  # It only sleeps for it.
                ping_interval=PING_SECONDS,
                pending_size=0,  # no buffer while disconnected
                error_cb=connection.failed,
                disconnected_cb=connection.changed,
                reconnected_cb=connection.changed,
                **login,
                **options,
            )
    except (OSError, nats.errors.Error, TimeoutError) as error:
        reason = connection.trouble or text(connection.last_error or error)
        connection.drop()
        await connection.close()
        raise StreamUnavailable(f"no NATS server lets us in: {reason}") from error
    connection.trouble = ""
    return connection


def without_login(urls: str) -> tuple[list[str], dict[str, Any]]:
    """Splits a list of URLs into the servers and the user, password or token for all of them.

    It is taken out of the URLs, because a server of the cluster that another one names has none in its
    address, and nats-py would go there without. URLs with different users keep them.
    """
    parts = [urlsplit(one.strip()) for one in urls.split(",")]
    logins = {(part.username, part.password) for part in parts if part.username is not None}
    if len(logins) != 1:
        return [part.geturl() for part in parts], {}
    ((user, password),) = logins
    bare = [part._replace(netloc=part.netloc.rpartition("@")[2]).geturl() for part in parts]
    if password is None:
        return bare, {"token": unquote(user or "")}
    return bare, {"user": unquote(user or ""), "password": unquote(password)}


def _advice(said: str) -> str:
    """What a server or OpenSSL says, with the setting to look at."""
    for word, advice in ADVICE.items():
        if word in said.lower():
            return f"{said.removeprefix('nats: ').strip(QUOTES)}: {advice}"
    return said.removeprefix("nats: ")


def not_cancelled() -> None:
    """Raise CancelledError if nats-py has swallowed it.

    `_flush_pending` does, and `asyncio.wait_for` of Python 3.11 in `request`, if the answer comes just then.
    """
    if (task := asyncio.current_task()) and task.cancelling():
        raise asyncio.CancelledError


def text(error: Exception) -> str:
    """Returns what an error says, or what it is."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate verify failed: {error.verify_message}"
    return str(error) or type(error).__name__
