"""An address is tried once, and what is wrong on the way there is told apart, with what to do."""

import errno
import socket
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import cast
from urllib.parse import urlsplit

import aiohttp
import msgspec
from msgspec import Struct
from yarl import URL

from app.http_client import Answer

ANSWER_BYTES_MAX = 64 * 1024
SKEW_SECONDS_MAX = 300.0
SIGNED_MINUTES = 15


class Check(Struct, frozen=True):
    """What was looked at, whether it is well, what is to be said of it, and what to do, if anything."""

    name: str
    ok: bool
    says: str
    todo: str = ""


class Heard(Struct, frozen=True):
    """An answer, whatever it says; `date` is the server's clock, if it tells it."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def content_type(self) -> str:
        """The media type without parameters."""
        return self.headers.get("Content-Type", "").partition(";")[0].strip().lower()

    def json(self) -> dict[str, object]:
        """The body as an object; an empty one if it is none."""
        try:
            value = msgspec.json.decode(self.body)
        except (msgspec.DecodeError, UnicodeError):
            return {}
        return value if isinstance(value, dict) else {}

    @property
    def date(self) -> datetime | None:
        """The Date header, to the second."""
        try:
            moment = parsedate_to_datetime(self.headers.get("Date", ""))
        except ValueError:
            return None
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


class Unheard(Exception):
    """No answer came: `says` why, `todo` what to do."""

    def __init__(self, says: str, todo: str) -> None:
        super().__init__(says)
        self.says, self.todo = says, todo


async def hear(
    session: aiohttp.ClientSession,
    method: str,
    url: str,
    *,
    body: bytes = b"",
    headers: Mapping[str, str] | None = None,
) -> Heard:
    """Send, and read the beginning of the answer; no redirect is followed. Raises Unheard."""
    place = urlsplit(url).netloc.rpartition("@")[2]
    try:
        where = URL(url, encoded=True)
        async with session.request(
            method, where, data=body or None, headers=headers, allow_redirects=False
        ) as answer:
            return Heard(answer.status, answer.headers.copy(), await answer.content.read(ANSWER_BYTES_MAX))
    except aiohttp.ClientConnectorError as error:
        raise _unreached(error, place) from None
    except TimeoutError:
        raise Unheard(f"{place} does not answer in time", "look whether a firewall lets us there") from None
    except ValueError:  # aiohttp.InvalidURL, or a host that is no name (UnicodeError).
        raise Unheard("the URL cannot be called", "check its spelling") from None
    except (aiohttp.ClientError, OSError) as error:
        says = f"{place} breaks the connection off ({type(error).__name__})"
        raise Unheard(says, "look whether HTTP is spoken there, and at its log") from None


class ProbeHttp:
    """The way out of a client of the service: one that finds no way raises Unheard, with what to do."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def call(self, method: str, url: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        """Send, and read the beginning of the answer. Raises Unheard."""
        heard = await hear(self._session, method, url, body=body, headers=headers)
        return Answer(heard.status, heard.content_type, 0.0, heard.body)


def _unreached(error: aiohttp.ClientConnectorError, place: str) -> Unheard:
    cause = error.os_error
    if isinstance(error, aiohttp.ClientConnectorCertificateError | aiohttp.ClientSSLError):
        says = f"the TLS certificate of {place} is not accepted ({_reason(error)})"
        return Unheard(says, "renew it, or check that it is for this name and complete with its chain")
    if isinstance(cause, socket.gaierror) or isinstance(error, aiohttp.ClientConnectorDNSError):
        return Unheard(f"DNS does not know {place}", "check the spelling, and the name's records")
    if cause.errno == errno.ECONNREFUSED:
        return Unheard(f"{place} refuses the connection: nothing listens there", "start it, or mend the port")
    return Unheard(f"{place} is not reached ({_reason(error)})", "check the network between here and there")


def _reason(error: aiohttp.ClientConnectorError) -> str:
    cause = getattr(error, "certificate_error", error.os_error)
    return getattr(cause, "verify_message", "") or getattr(cause, "strerror", "") or type(cause).__name__


def skewed(name: str, ours: datetime, theirs: datetime, whose: str) -> Check:
    """How far our clock is from another one, looked at in the same moment."""
    seconds = (ours - theirs).total_seconds()
    if abs(seconds) <= SKEW_SECONDS_MAX:
        return Check(name, True, f"within {max(1, round(abs(seconds)))} s of {whose}")
    way = "ahead of" if seconds > 0 else "behind"
    says = (
        f"this machine's clock is {abs(seconds) / 60:.0f} minutes {way} {whose};"
        f" signatures are good for {SIGNED_MINUTES}"
    )
    return Check(name, False, says, "set the clock, and let NTP keep it")


def slow_log(compression: str) -> list[Check]:
    """A warning if PostgreSQL's log is compressed by pglz, its slowest way and the one that `on` means."""
    if compression not in ("on", "pglz"):
        return []
    says = (
        f"warning: wal_compression = {compression} makes appends slow after each checkpoint of the database"
    )
    return [Check("database log", True, says, "set wal_compression = lz4, or off where there is no lz4")]


def unsafe_disk(off: object) -> list[Check]:
    """A warning for each of these settings, without which a crash may take what was acknowledged."""
    says = "warning: {} = off, so a crash of the database's machine may take or spoil what is acknowledged"
    return [
        Check("database disk", True, says.format(name), f"set {name} = on in postgresql.conf, and reload")
        for name in cast("list[str]", off)
    ]
