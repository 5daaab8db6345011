"""A ledger in memory, and the commands that a customer, a manager and an operator can cause."""

from typing import Any

from msgspec import Struct

from app import clock
from domain import commands as c
from domain import events as e
from domain import ids
from domain.decide import decide, follow, names
from domain.draft import Decision, Snapshot
from domain.state import Chat, State, evolve
from tests.support.ids import SCOPE

START_MS = 1_795_000_000_000
WHERE = ids.scope_of("acme", "f90ba33d-c9d9-44da-b76c-c349b0ecbe41", "af9945ff-1490-4cad-807d-945c15d88bec")
ANN = e.Party(id="u-1", name="Ann")
MARIA = e.Party(id="maria", name="Maria")
BOT = e.Party(id="bot", name="Bot", ref_id="bot")


class Ledger:
    """A ledger in memory; `record` decides a command from the streams it names and those these point to."""

    def __init__(self) -> None:
        self.events: list[e.AnyEvent] = []
        self.states: dict[str, State] = {}
        self.clocks: dict[str, int] = {}

    def snapshot(self, command: c.AnyCommand) -> Snapshot:
        """The states that the ledger would load for a command, and no more."""
        found: dict[str, State] = {}
        wanted = set(names(command))
        while wanted:
            found |= {stream: self.states[stream] for stream in wanted if stream in self.states}
            pointed = {one for stream in wanted & found.keys() for one in follow(command, found[stream])}
            wanted = {stream for stream in pointed if stream in self.states} - found.keys()
        return Snapshot(found, self.clocks)

    def record(self, command: c.AnyCommand) -> Decision:
        """Decides a command and keeps its events; the states decided must be what replay makes of them."""
        decision = decide(command, self.snapshot(command))
        for event in decision.events:
            before = self.states.get(event.stream)
            assert event.version == (before.version + 1 if before else 1)
            self.states[event.stream] = evolve(before, e.decode(e.encode(event)))
            self.events.append(event)
        for stream, state in decision.states.items():
            assert self.states[stream] == state
        if decision.clock:
            conversation, msec = decision.clock
            self.clocks[conversation] = msec
        return decision

    def after(self, *commands: c.AnyCommand) -> "Ledger":
        """Records commands; returns the same ledger."""
        for command in commands:
            self.record(command)
        return self

    def root(self, stream: str) -> str:
        """The conversation that a stream stands for."""
        state = self.states.get(stream)
        while isinstance(state, Chat) and state.into:
            stream, state = state.into, self.states[state.into]
        return stream


class Now(Struct, frozen=True):
    """The n-th moment: gives a command its id and its clocks."""

    n: int

    def stamp(self, by: str, at: int | None = None) -> c.Stamp:
        """`at` is a moment too, the same one unless given."""
        now = START_MS + self.n * 1000
        return {
            "scope": SCOPE,
            "id": f"{now:012x}"[:8] + "-" + f"{now:012x}"[8:] + f"-7000-8000-{self.n:010x}00",
            "lane": "lane",
            "at": clock.text(now if at is None else START_MS + at * 1000),
            "now": clock.text(now),
            "now_ms": now,
            "by": by,
        }


def own(message: str) -> str:
    """The stream of a message by the messenger's name."""
    return ids.message_id(SCOPE, "messenger", message)


def kommo(message: str) -> str:
    """The stream of a message by Kommo's name."""
    return ids.message_id(SCOPE, "kommo", message)


def end(side: e.Side, name: str) -> c.End:
    """A side's name of a conversation."""
    ends = e.Ends(chat_id=name) if side == "kommo" else e.Ends(conversation_id=name)
    return c.End(side, ids.conversation_id(SCOPE, side, name), ends)


def text(words: str, **more: Any) -> e.Content:
    return e.Content(type="text", text=words, **more)


def customer(n: int, message: str = "m-1", chat: str = "conv-1", words: str = "Hello", **more: Any) -> c.Send:
    """The customer writes."""
    fields: dict[str, Any] = {
        "stream": own(message),
        "side": "messenger",
        "own_id": message,
        "msec": START_MS + n * 1000,
        "ends": (end("messenger", chat),),
        "sender": ANN,
        "content": text(words, conversation_id=chat, reply_to=more.pop("reply", None)),
    }
    return c.Send(**Now(n).stamp("messenger"), **(fields | more))


def manager(
    n: int, message: str = "k-1", chat: str = "chat-1", own_chat: str | None = "conv-1", **more: Any
) -> c.Send:
    """The manager writes; without `own_chat` it is a chat that Kommo started."""
    ends = (end("kommo", chat), *((end("messenger", own_chat),) if own_chat else ()))
    fields: dict[str, Any] = {
        "stream": kommo(message),
        "side": "kommo",
        "own_id": message,
        "msec": START_MS + n * 1000,
        "ends": ends,
        "sender": MARIA,
        "receiver": e.Party(id="r-1", phone="+15550100"),
        "content": text("Hi", conversation_id=own_chat),
    }
    return c.Send(**Now(n).stamp("kommo"), **(fields | more))


def edit(n: int, stream: str, words: str = "Hello!", at: int | None = None, **about: Any) -> c.Edit:
    stamp, content = Now(n).stamp("messenger", at), text(words, conversation_id="conv-1")
    return c.Edit(**stamp, **({"streams": (stream,)} | about), content=content)


def delete(n: int, stream: str, **about: Any) -> c.Delete:
    return c.Delete(**Now(n).stamp("messenger"), **({"streams": (stream,)} | about))


def confirm(n: int, stream: str, status: Any, **about: Any) -> c.Confirm:
    code, why = (904, "no such user") if status == "failed" else (0, "")
    given = {"streams": (stream,)} | about
    return c.Confirm(**Now(n).stamp("messenger"), **given, status=status, code=code, text=why)


def react(
    n: int,
    *streams: str,
    side: e.Side = "messenger",
    emoji: str = "👍",
    removed: bool = False,
    at: int | None = None,
    **about: Any,
) -> c.React:
    who = ANN if side == "messenger" else MARIA
    given = {"streams": streams} | about
    return c.React(**Now(n).stamp(side, at), **given, side=side, sender=who, emoji=emoji, removed=removed)


def typing(n: int, chat: str = "conv-1", late_ms: int = 0) -> c.Type:
    at = START_MS + n * 1000 - late_ms
    one = end("messenger", chat)
    return c.Type(
        **Now(n).stamp("messenger"),
        stream=ids.typing_id(SCOPE, one.stream, "u-1", at),
        side="messenger",
        at_ms=at,
        ends=(one,),
        sender=ANN,
        expires_at=clock.text(at + 5000),
    )


def accept(n: int, stream: str, side: e.Side, name: str | None = None, chat: str | None = None) -> c.Accept:
    """The other side took a message, calls it `name` and its conversation `chat`."""
    alias = ids.message_id(SCOPE, side, name) if name else None
    found = end("messenger", chat) if chat else None
    return c.Accept(**Now(n).stamp(side), stream=stream, side=side, remote_id=name, alias=alias, end=found)


def reject(n: int, stream: str) -> c.Reject:
    return c.Reject(**Now(n).stamp("messenger"), stream=stream, code=905, text="HTTP 422")


def cells(table: str) -> list[list[str]]:
    """The words of a table, row by row."""
    return [row.split() for row in table.strip().splitlines()]


def operator(n: int, message: str = "o-1", words: str = "Hi", **more: Any) -> c.Send:
    """An operator sends in the conversation that the customer began."""
    one = end("messenger", "conv-1")
    fields: dict[str, Any] = {
        "stream": ids.message_id(SCOPE, "operator", message),
        "side": "operator",
        "own_id": message,
        "msec": START_MS + n * 1000,
        "ends": (one,),
        "sender": BOT,
        "receiver": ANN,
        "content": text(words, conversation_id="conv-1"),
    }
    return c.Send(**Now(n).stamp("operator"), **(fields | more))
