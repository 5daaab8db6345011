"""One HTTP call to a server that is not ours: bounded in time and size, never redirected, read leniently."""

import asyncio
import contextlib
import zlib
from codecs import BOM_UTF8
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import aiohttp
import msgspec
from aiohttp.abc import AbstractStreamWriter
from aiohttp.connector import Connection
from aiohttp.tracing import Trace
from msgspec import Struct
from yarl import URL

# Chosen: a call that takes longer is more likely lost than slow, and its conversation waits for it.
TIMEOUT_SECONDS = 10.0
# Chosen: two retransmissions of a lost SYN.
CONNECT_SECONDS = 5.0
# Chosen: hundreds of times the largest answer that is documented; what exceeds it is cut.
ANSWER_BYTES_MAX = 1024 * 1024
# Chosen: what a person reads of an error on one screen.
TEXT_CHARACTERS_MAX = 500
# Chosen: nobody looks for a reason why nothing was tried for longer than an hour.
RETRY_AFTER_SECONDS_MAX = 3600.0
# Chosen: several connections for each of the busiest hosts, below the usual limit of 1024 open files.
CONNECTIONS_MAX = 200
# Chosen: a host that moves is found within a minute.
DNS_SECONDS = 60
# The 4xx of RFC 9110 and RFC 6585 that ask to try again: timeout, too early, too many requests.
RETRIED = frozenset({408, 425, 429})


def _nothing() -> None:
    """Nothing forbids to send."""


# Called at the last moment before a request's bytes go out; what it raises ends the call. A task sets it for
# the calls that it makes: between its decision to call and a free connection it may have waited long.
BEFORE_SENDING: ContextVar[Callable[[], None]] = ContextVar("before_sending", default=_nothing)


class _Connector(aiohttp.TCPConnector):
    """Asks BEFORE_SENDING once a connection is free."""

    async def connect(
        self, req: aiohttp.ClientRequest, traces: "list[Trace]", timeout: aiohttp.ClientTimeout
    ) -> "Connection":
        connection = await super().connect(req, traces, timeout)
        try:
            BEFORE_SENDING.get()()
        except BaseException:
            connection.release()
            raise
        return connection


class _Body(aiohttp.BytesPayload):
    """Asks BEFORE_SENDING again: head and body are written together, by a task that may begin late."""

    async def write_with_length(self, writer: "AbstractStreamWriter", content_length: int | None) -> None:
        BEFORE_SENDING.get()()
        await super().write_with_length(writer, content_length)


class Answer(Struct, frozen=True):
    """An answer: `retry_after` is in seconds (0: not given), `body` is cut at ANSWER_BYTES_MAX.

    `location` is where a redirect leads to, which is not followed here.
    """

    status: int
    content_type: str
    retry_after: float
    body: bytes
    location: str = ""

    @property
    def html(self) -> bool:
        """Whether it is a page instead of an answer, as a firewall in front sends it.

        The type alone does not show that: PHP calls everything a page, also JSON and an empty body.
        """
        begins = self.body[:20].lstrip()[:1]
        typed = self.content_type.startswith("text/html")
        return begins == b"<" or (typed and begins not in (b"", b"{", b"["))

    @property
    def text(self) -> str:
        """The body for people to read, shortened, without NUL, which the database does not take."""
        text = self.body[: TEXT_CHARACTERS_MAX * 4].decode("utf-8", "replace")[:TEXT_CHARACTERS_MAX]
        return text.replace("\0", "\ufffd")

    def json(self) -> dict[str, object]:
        """The body as a JSON object, with or without a byte order mark; an empty object if it is none."""
        try:
            value = msgspec.json.decode(self.body.removeprefix(BOM_UTF8))
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            return {}
        return value if isinstance(value, dict) else {}


def is_borne(answer: Answer) -> bool:
    """Whether an answer shows that the server bears our calls: no error of its own, and no wish to wait."""
    return answer.status < 500 and answer.status not in RETRIED and not answer.html


class Unreached(Exception):
    """No answer came. `unknown`: the server may have received the request all the same."""

    def __init__(self, reason: str, *, unknown: bool) -> None:
        super().__init__(reason)
        self.reason = reason
        self.unknown = unknown


class Client:
    """A pool of connections; Kommo and messengers are called with the same limits."""

    def __init__(self, connections: int = CONNECTIONS_MAX) -> None:
        """`connections`: how many at most, to one host or to all; more calls wait for one."""
        self._session = aiohttp.ClientSession(
            connector=_Connector(limit=connections, ttl_dns_cache=DNS_SECONDS),
            timeout=aiohttp.ClientTimeout(total=TIMEOUT_SECONDS, sock_connect=CONNECT_SECONDS),
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding"),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

    async def call(self, method: str, url: str | URL, body: bytes, headers: Mapping[str, str]) -> Answer:
        """Send a request and read the answer. A URL is called as it is, a text is encoded first.

        Raises Unreached.
        """
        try:
            async with self._session.request(
                method, url, data=_Body(body) if body else None, headers=headers, allow_redirects=False
            ) as response:
                return Answer(
                    response.status,
                    response.headers.get("Content-Type", ""),
                    retry_after(response.headers.get("Retry-After")),
                    decompressed(await _limited(response), response.headers.get("Content-Encoding", "")),
                    response.headers.get("Location", ""),
                )
        except aiohttp.ClientConnectorError as error:
            raise Unreached(f"no connection: {error.os_error.strerror or error}", unknown=False) from None
        except TimeoutError:
            raise Unreached(f"no answer within {TIMEOUT_SECONDS:.0f} s", unknown=True) from None
        except ValueError:  # aiohttp.InvalidURL, or UnicodeError for a host that is no name.
            raise Unreached("the URL cannot be called", unknown=False) from None
        except (aiohttp.ClientError, OSError) as error:
            raise Unreached(f"the connection broke: {type(error).__name__}", unknown=True) from None


async def _limited(response: aiohttp.ClientResponse) -> bytes:
    body = b""
    with contextlib.suppress(asyncio.IncompleteReadError):
        async for chunk in response.content.iter_any():
            body += chunk
            if len(body) > ANSWER_BYTES_MAX:
                response.close()
                break
    return body[:ANSWER_BYTES_MAX]


def decompressed(body: bytes, encoding: str) -> bytes:
    """A body without its Content-Encoding, cut at ANSWER_BYTES_MAX; as it came if it is not what it says."""
    coding = encoding.strip().lower()
    if coding in ("gzip", "x-gzip"):
        windows: tuple[int, ...] = (zlib.MAX_WBITS | 16,)
    elif coding == "deflate":
        windows = (zlib.MAX_WBITS, -zlib.MAX_WBITS)  # Many servers send it without the header of zlib.
    else:
        return body
    for window in windows:
        with contextlib.suppress(zlib.error):
            return zlib.decompressobj(window).decompress(body, ANSWER_BYTES_MAX)
    return body


def retry_after(header: str | None) -> float:
    """RFC 9110 Retry-After, seconds or a date, as seconds from now, bounded; 0 if there is none."""
    if not header:
        return 0.0
    seconds = header.strip()
    if seconds.isascii() and seconds.isdigit():
        return min(float(seconds[:9]), RETRY_AFTER_SECONDS_MAX)
    try:
        moment = parsedate_to_datetime(header)
    except (ValueError, OverflowError):
        return 0.0
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, min((moment - datetime.now(UTC)).total_seconds(), RETRY_AFTER_SECONDS_MAX))
