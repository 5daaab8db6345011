"""Server-sent events for open pages: what changed, by position, so a page that was away misses nothing."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Iterable, Iterator

import msgspec
from litestar import get
from litestar.params import FromQuery
from litestar.response import Stream
from msgspec import Struct

from app import clock
from app.access.callers import Caller
from app.access.sessions import Session
from app.http.access import UNLOGGED
from app.http.console import formatting
from app.http.console.pages import caller_in, session_of
from app.http.guard import REACHED, READ, caller_of
from app.http.request import Call, services_of
from app.operations.services import Services
from app.problems import ProblemError
from app.views.conversations import get_conversation, merged_into
from app.views.events import Filter, stream_events
from app.views.projector import Feed, FeedBehind
from domain import events as e

SESSION_LOOK_SECONDS = 3.0  # Chosen: so soon a page that was left open learns that its session has ended.
LOOK_SECONDS = 0.5  # Chosen: how soon the end of the process is noticed.
QUIET_LOOKS = 30  # A comment every 15 s, so that proxies, which cut after 60 s, keep the stream open.
MISSED_MAX = 1000  # Chosen: beyond so many events a page loads faster anew than it catches up.
RETRY_MS = 1000
POSITION = re.compile(r"[0-9]{1,18}")
LISTED = (
    e.MessageSent,
    e.MessageEdited,
    e.MessageDeleted,
    e.MessageAccepted,
    e.MessageDelivered,
    e.MessageRead,
    e.MessageFailed,
)
Page = Iterable[tuple[int, e.AnyEvent]]


class Change(Struct, frozen=True):
    """What to redraw: messages of the open chat, its head, the list of chats, or (`reload`) everything."""

    messages: list[str] = []
    head: bool = False
    chats: bool = False
    reload: bool = False


class Typing(Struct, frozen=True):
    """Somebody is typing, for so many milliseconds."""

    name: str
    milliseconds: int


@get("/live", opt=READ | REACHED | UNLOGGED)
async def live(
    request: Call, conversation: FromQuery[str | None] = None, after: FromQuery[int | None] = None
) -> Stream:
    """Server-sent events `change` and `typing`; `id` is the position from which a stream resumes."""
    services = services_of(request)
    ids: set[str] = set()
    if conversation:
        found = await get_conversation(services.pool, conversation)
        if found is None:
            raise ProblemError(404, "no conversation has this id")
        ids = {found.id, *await merged_into(services.pool, found.id)}
    last = request.headers.get("last-event-id", "")
    start = int(last) if POSITION.fullmatch(last) else after
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no", "X-Content-Type-Options": "nosniff"}
    lines = _follow(services, ids, conversation, start, session_of(request), caller_of(request))
    return Stream(lines, media_type="text/event-stream", headers=headers)


async def _follow(
    services: Services,
    ids: set[str],
    conversation: str | None,
    after: int | None,
    session: Session | None,
    caller: Caller,
) -> AsyncIterator[bytes]:
    """One change for all that was missed since `after`, then each change, until process or session end."""
    loop = asyncio.get_running_loop()
    asked = loop.time()
    with services.projector.follow() as feed:
        seen = services.projector.position
        yield b"retry: %d\n\n" % RETRY_MS
        if after is not None and 0 <= after < seen:
            yield _line("change", seen, await _missed(services, ids, conversation, after))
        quiet = 0
        while not services.stopping.is_set():
            try:
                page = await _next(feed)
            except FeedBehind:
                yield _line("change", services.projector.position, Change(reload=True))
                return
            if session and loop.time() - asked > SESSION_LOOK_SECONDS:
                asked = loop.time()
                if await caller_in(services, session) is None:
                    return
            page = [(at, event) for at, event in page if caller.reaches(event.account)]
            quiet = 0 if page else quiet + 1
            for line in _lines(page, ids):
                yield line
            if quiet % QUIET_LOOKS == QUIET_LOOKS - 1:
                yield b": quiet\n\n"


async def _next(feed: Feed) -> Page:
    """The next page, or an empty one after a while, so that the end of the process is noticed."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LOOK_SECONDS):
            return await anext(feed)
    return ()


async def _missed(services: Services, ids: set[str], conversation: str | None, after: int) -> Change:
    """Everything after a position as one change; too much of it becomes a reload."""
    if not conversation:
        return Change(chats=True)
    changed: dict[str, None] = {}
    count = 0
    async for rows in stream_events(services.pool, after=after, only=Filter(conversation=conversation)):
        change = changes(list(_readable(rows)), ids)
        changed |= dict.fromkeys(change.messages)
        count += len(rows)
        if count > MISSED_MAX or change.reload:
            return Change(reload=True)
    return Change(list(changed), head=True, chats=True)


def _readable(rows: Iterable[tuple[int, bytes]]) -> Iterator[tuple[int, e.AnyEvent]]:
    """Those of stored events that can be decoded: no page shows the others."""
    for position, event in rows:
        with contextlib.suppress(ValueError, RecursionError):
            yield position, e.decode(event)


def _lines(page: Page, ids: set[str]) -> list[bytes]:
    """The lines of a page of events for one reader."""
    page = list(page)
    if not page:
        return []
    lines = []
    change = changes(page, ids)
    if change != Change():
        lines.append(_line("change", page[-1][0], change))
    now = clock.text(clock.now_ms())
    for position, event in page:
        if isinstance(event, e.TypingStarted) and event.conversation in ids and event.expires_at > now:
            left = formatting.milliseconds_between(now, event.expires_at)
            lines.append(_line("typing", position, Typing(_writer_name(event), left)))
    return lines


def _writer_name(event: e.TypingStarted) -> str:
    return event.sender.name or ("The customer" if event.by == "messenger" else "The manager")


def changes(page: Page, ids: set[str]) -> Change:
    """What these events change in an open chat, by all ids it had, and in the list of chats."""
    messages: dict[str, None] = {}
    head = listed = reload = False
    for _, event in page:
        listed = listed or isinstance(event, LISTED) or _is_about_chat(event)
        if event.conversation not in ids:
            continue
        if event.message and not isinstance(event, e.TypingStarted):
            messages[event.message] = None
        head = head or _is_about_chat(event)
        reload = reload or isinstance(event, e.ConversationMerged)
    return Change(list(messages), head, listed, reload)


def _is_about_chat(event: e.AnyEvent) -> bool:
    return isinstance(
        event, e.ConversationStarted | e.ConversationBound | e.ConversationMerged | e.ConversationLinked
    )


def _line(name: str, position: int, data: Struct) -> bytes:
    return b"id: %d\nevent: %b\ndata: %b\n\n" % (position, name.encode(), msgspec.json.encode(data))
