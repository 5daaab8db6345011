"""HTTP/1.1 of one connection: uvicorn's protocol on httptools, with limits on all that a client may drag out.

A connection is between two requests, in a head, or in a body (`Phase`), as the parser sees it; beside that a
request may be being answered. Whatever cannot be read is answered with a problem and ends the connection, but
never into the middle of an answer: requests that came before it are answered first.
"""

import asyncio
import enum
from typing import Any, cast

import httptools
import uvicorn
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from app.bad_requests import BAD_REQUESTS, Kind
from app.http.webhooks.body import refuse
from app.problems import ProblemError
from app.service.connections import BEGUN_SECONDS, Perimeter

LONG_BODIES = ("/v1/import",)  # Without a limit of their own, but never slower than this:
LONG_BODY_BYTES = 64 * 1024
VERSIONS = ("1.1", "1.0")
FRAMING = (b"content-length", b"transfer-encoding")
LINGER_BYTES = 1024 * 1024  # Chosen: a client that is refused can read why, unless it goes on for long.
HEADER_OVERHEAD = 4  # The colon, the space and the line end of each header.


class Config(uvicorn.Config):
    """uvicorn's, with the limits of the server."""

    perimeter: Perimeter


class Phase(enum.Enum):
    """Where the parser is."""

    BETWEEN = "between"
    HEAD = "head"
    BODY = "body"


class UnknownVersion(Exception):
    """The request is not of HTTP/1.0 or 1.1."""


class HeadTooLarge(Exception):
    """The head is over the limit."""


class TooManyAhead(Exception):
    """The client sends more requests ahead of our answers than we keep."""


class HttpProtocol(HttpToolsProtocol):
    """One connection."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.perimeter = config.perimeter
        self._limits = config.perimeter.limits
        self._phase = Phase.BETWEEN
        self._answered: RequestResponseCycle | None = None  # `cycle` may be one that came ahead.
        self._stage = 0  # Counts the heads and bodies that have begun.
        self._since = 0.0  # When what we wait for began.
        self._chunk = 0  # Bytes that the parser has now.
        self._begun = 0  # Bytes of the piece that an unfinished head began in, at most as many are its own.
        self._fed = 0  # Bytes of an unfinished head since then, or of a body since it last grew.
        self._received = 0  # Bytes of the body.
        self._timely = 0  # As many of them had come when the body's time began.
        self._fresh = True  # Nothing has been sent yet.
        self._replays = False  # The parser reads a head again that has been taken.
        self._deaf = False  # The rest of what comes in is not read.
        self._stalled: float | None = None  # Since when the client does not read what we write.

    # Called by the transport.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take the connection, if there is room."""
        super().connection_made(transport)
        self._since = self.loop.time()
        self.perimeter.admit(self, cast("set[Any]", self.connections))

    def data_received(self, data: bytes) -> None:
        """Parse what came, and see whether it is too much."""
        if self._deaf:
            return
        stage, received, self._chunk = self._stage, self._received, len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._ignore_upgrade(data[upgrade.args[0] :])
            return
        except httptools.HttpParserError as error:
            self._refuse_malformed(error)
            return
        if self._phase is Phase.BETWEEN:
            return
        if self._stage != stage:
            self._since = self.loop.time()
            self._begun = len(data)
        elif self._received == received:
            self._fed += len(data)
        else:
            self._fed = 0
        if self._received > LINGER_BYTES and self.cycle.response_complete:
            self._deaf = True  # It was refused, and is not read to its end.
            self.transport.close()
            return
        large = self._chunk > self._limits.head_bytes
        if self._fed > self._limits.head_bytes or (
            large and self._phase is Phase.HEAD and self._is_head_too_large()
        ):
            self._refuse_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Every request that came ahead learns it, too."""
        self._disconnect()
        super().connection_lost(exc)

    # Called by the parser.

    def on_message_begin(self) -> None:
        """A head begins."""
        if self._replays:
            return
        super().on_message_begin()
        self._phase = Phase.HEAD
        self._fresh = False
        self._stage += 1
        self._begun = self._fed = 0

    def on_headers_complete(self) -> None:
        """The head is complete; its request is answered at once, or after those before it."""
        if self._replays:
            return
        if self._begun + self._fed + self._chunk > self._limits.head_bytes and self._is_head_too_large():
            raise HeadTooLarge
        super().on_headers_complete()
        self.headers = []  # Headers that follow a chunked body are nobody's: the request is checked already.
        self._phase = Phase.BODY
        self._stage += 1
        self._fed = self._received = self._timely = 0
        if self.scope["http_version"] not in VERSIONS:
            raise UnknownVersion
        if len(self.pipeline) > self._limits.pipelined:
            raise TooManyAhead

    def on_body(self, body: bytes) -> None:
        """Keep it for the application, which is not asked for more than it has room for."""
        self._received += len(body)
        cycle = self.cycle
        if cycle.response_complete:
            return
        cycle.body += body
        if len(cycle.body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()
        cycle.message_event.set()

    def on_message_complete(self) -> None:
        """The body is complete."""
        if self.parser.should_upgrade():
            return  # It may begin only now.
        self._phase = Phase.BETWEEN
        cycle = self.cycle
        if cycle.response_complete:
            self._since = self.loop.time()
            return
        cycle.more_body = False
        cycle.message_event.set()

    # Called by and for the cycle of a request.

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._answered = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        """Answer the next request that came ahead, or wait for one."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)
        elif self._phase is Phase.BETWEEN:
            self._since = self.loop.time()
        if not self.pipeline and not self._deaf:
            self.flow.resume_reading()

    # Called by the perimeter.

    def overdue(self, now: float) -> None:
        """End the connection if the client keeps us waiting too long."""
        limits = self._limits
        if self.flow.write_paused or self.transport.is_closing():
            self._stalled = self._stalled or now
            if now - self._stalled > limits.unread_seconds:
                self._count("unread", f"an answer was not read for {limits.unread_seconds:g} seconds")
                self.transport.abort()
            return
        self._stalled = None
        if self.flow.read_paused:  # It is we who let the client wait.
            self._since = now
            return
        waited = now - self._since
        if self._phase is Phase.HEAD and waited > limits.head_seconds:
            detail = f"a request's head was not complete after {limits.head_seconds:g} seconds"
            self._end("head_timeout", 408, detail)
        elif self._phase is Phase.BODY and waited > limits.body_seconds:
            if self._is_long_body() and self._received - self._timely >= LONG_BODY_BYTES:
                self._timely, self._since = self._received, now
                return
            detail = f"a request's body was not complete after {limits.body_seconds:g} seconds"
            self._end("body_timeout", 408, detail)
        elif self._phase is Phase.BETWEEN and not self._is_answering() and waited > self._idle_seconds():
            self.transport.close()

    def waits_since(self) -> float | None:
        """Since when the client keeps us waiting; None while we answer, or while its request just begins."""
        if self._phase is Phase.BETWEEN:
            return None if self._is_answering() else self._since
        ours = self.pipeline or (self._phase is Phase.HEAD and self._is_answering()) or self.flow.read_paused
        return None if ours or self.loop.time() - self._since < BEGUN_SECONDS else self._since

    def evict(self) -> None:
        """Close the connection at once."""
        self._disconnect()
        self.transport.abort()

    def refuse(self) -> None:
        """Answer that there is no room."""
        self._deaf = True
        self.connections.discard(self)
        self._answer(ProblemError(503, "all connections are busy: try again in a moment", retry_after=1))

    # What is bad.

    def _ignore_upgrade(self, rest: bytes) -> None:
        """Go on in HTTP/1.1: the parser takes what follows for another protocol, so a new one reads the body.

        Java's HTTP client asks for HTTP/2 so, with a body behind it.
        """
        self.parser = httptools.HttpRequestParser(self)
        framing = [b"%b: %b\r\n" % each for each in self.scope["headers"] if each[0] in FRAMING]
        self._replays = True
        self.parser.feed_data(b"POST / HTTP/1.1\r\n" + b"".join(framing) + b"\r\n")
        self._replays = False
        if rest:
            self.data_received(rest)

    def _refuse_malformed(self, error: httptools.HttpParserError) -> None:
        if isinstance(error.__context__, HeadTooLarge):
            self._refuse_head()
        elif isinstance(error.__context__, TooManyAhead):
            self._count("pipelined", f"more than {self._limits.pipelined} requests ahead")
            self.evict()
        else:
            reason = str(error)
            if isinstance(error.__context__, UnknownVersion):
                reason = "the version is another"
            elif isinstance(error, httptools.HttpParserCallbackError):
                reason = "the address cannot be read"
            self._end("malformed", 400, f"this is not HTTP/1.1 ({reason}): send a well-formed request")

    def _refuse_head(self) -> None:
        limit = self._limits.head_bytes // 1024
        self._end("head_too_large", 431, f"the head of a request holds at most {limit} KB: send less")

    def _end(self, kind: Kind, status: int, detail: str) -> None:
        """Answer a request that cannot be read, and end the connection; other answers stay whole."""
        self._count(kind, detail)
        self._deaf = True
        if not self._is_answering():
            if self._phase is Phase.BODY:  # Its request has been answered without it.
                self.transport.close()
            else:
                self._answer(ProblemError(status, detail))
        elif self._phase is not Phase.BODY:  # The request before this one is: it ends the connection.
            self.cycle.keep_alive = False
            self._phase = Phase.BETWEEN
        elif self.pipeline or self.cycle.response_started:
            self.evict()
        else:
            self._disconnect()
            self._answer(ProblemError(status, detail))

    def _answer(self, problem: ProblemError) -> None:
        answer = refuse(problem)
        date = [f"{name.decode()}: {value.decode()}" for name, value in self.server_state.default_headers]
        fields = [f"{name}: {value}" for name, value in answer.headers.items()]
        fields += [*date, f"Content-Length: {len(answer.body)}", "Connection: close"]
        head = "\r\n".join(fields).encode()
        self.transport.write(STATUS_LINE[answer.status] + head + b"\r\n\r\n" + answer.body)
        self.transport.close()

    def _disconnect(self) -> None:
        """The application learns that nothing more comes, and what it answers is dropped."""
        for cycle in (self._answered, self.cycle, *(cycle for cycle, _ in self.pipeline)):
            if cycle is not None and not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()

    def _count(self, kind: Kind, detail: str) -> None:
        BAD_REQUESTS.count(kind, self.client[0] if self.client else "", detail)

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _idle_seconds(self) -> float:
        return self._limits.head_seconds if self._fresh else self._limits.idle_seconds

    def _is_long_body(self) -> bool:
        return self._is_answering() and self.cycle.scope["path"] in LONG_BODIES

    def _is_head_too_large(self) -> bool:
        size = len(self.url) + sum(len(name) + len(value) + HEADER_OVERHEAD for name, value in self.headers)
        return size > self._limits.head_bytes
