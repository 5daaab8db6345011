"""One attempt to tell the other side what an event says, and what its answer means for the ledger."""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import cast

import psycopg
from msgspec.structs import replace

from app import clock, metrics
from app.channels.attempts import Attempts
from app.channels.directory import Channel, Channels, Connection
from app.database.binary import take_columns
from app.database.connection import connect
from app.delivery.gate import PAUSE_SECONDS_MIN, PROBE_SECONDS, Gate
from app.delivery.job import Disconnected, Missing, Pushed, Result, Settled, Superseded, _live, _unknown
from app.delivery.reconnect import OPERATOR_SECONDS
from app.http_client import RETRIED, Unreached
from app.kommo.chats.client import Kommo, nothing
from app.kommo.chats.payloads import Created
from app.kommo.chats.signature import Credentials
from app.ledger.writer import LOAD
from app.messengers.adapter import Messenger, Push
from app.outcome import Done, Forbidden, Gone, Refused, Retry
from domain import commands as c
from domain import events as e
from domain import ids
from domain.ids import KOMMO, Scope
from domain.state import COPIED, RANKS, Chat, Message, State, evolve
from projections.columns import uuids

ROUNDS_MAX = 4
ENDS_OF_A_SEND = {"message.accepted", "message.failed"}
NO_COPY = "Kommo has no copy of this message"
NOT_YET = "its message is not with Kommo yet"
NOT_THERE = "its message is not with Kommo: resume that one, then this"
log = logging.getLogger("chatledger.push")


class Pusher:
    """Pushes events to Kommo and to messengers; knows how each destination may be pressed."""

    def __init__(
        self,
        database_url: str,
        channels: Channels,
        kommo: Kommo,
        messengers: Mapping[str, Messenger],
        *,
        probe_seconds: float = PROBE_SECONDS,
    ) -> None:
        """`probe_seconds`: how often an account is tried whose Kommo refuses us (403)."""
        self._probe_seconds = probe_seconds
        self._url = database_url
        self._attempts = Attempts(database_url)
        self._channels = channels
        self._kommo = kommo
        self._messengers = messengers
        self._gates: dict[tuple[str, str | None, str], Gate] = {}
        self._forbidden: set[Gate] = set()
        self._connection: psycopg.AsyncConnection[tuple[object, ...]] | None = None
        self._reading = asyncio.Lock()

    async def close(self) -> None:
        """Let go of the database."""
        if self._connection is not None:
            await self._connection.close()

    def gate(self, event: Pushed) -> Gate:
        """The gate of the event's destination."""
        key = (event.channel, event.account, event.push or "")
        if key not in self._gates:
            self._gates[key] = Gate(pauses=event.push != KOMMO)  # Kommo's pauses are the account's: `budget`.
        return self._gates[key]

    async def scope(self, event: Pushed) -> Scope:
        """Where the event belongs, also when it is no longer connected."""
        channel = await self._channels.channel(event.channel)
        channel_id = channel.channel_id if channel else ""
        return ids.scope_of(event.channel, channel_id, event.account or "")

    async def attempt(self, event: Pushed, *, again: bool, began: Callable[[], None] = nothing) -> Result:
        """Try once. `again`: it may have been tried before, so what has happened since is looked at first.

        `began` is called as soon as Kommo is: not while that waits for a place or the account's budget.
        """
        channel = await self._channels.channel(event.channel)
        connection = channel.connections.get(event.account or "") if channel else None
        if channel is None or connection is None or not connection.connected:
            return Disconnected()
        if again and (found := await self._looked_at(event)):
            return found
        gate = self.gate(event)
        with metrics.PUSH_SECONDS.labels(event.push).time():
            async with gate.passing(live=_live(event)) as probe:
                result = await self._call(channel, connection, event, began)
                self._press(gate, result, probe)
        if event.push == KOMMO and _unknown(result) and not isinstance(event, Created):
            return await self._waits(event) or result
        return result

    async def _waits(self, event: Pushed) -> Retry | Missing | None:
        """What there is to wait for, if the message that an event is about is still to be told to Kommo."""
        stream = event.message or event.stream
        events = [e.decode(raw) for raw in await self._load([stream])]
        sends = [one for one in events if isinstance(one, Created) and one.push == KOMMO]
        message: State | None = None
        for one in events:
            message = evolve(message, one)
        if not sends or not isinstance(message, Message):
            return None
        send = sends[0]
        ends = {COPIED} if isinstance(send, e.MessageMirrored) else ENDS_OF_A_SEND
        stand = message.deliveries.get(send.id, "")
        if message.seen.keys() & ends or stand == "completed":
            return None
        apart = not _live(send) or send.conversation != event.conversation
        if apart and not stand.startswith("parked"):
            return Retry(NOT_YET)
        return Missing(NOT_THERE)  # Nothing of its own lane is waited for: that would come after it.

    def _press(self, gate: Gate, result: Result, probe: bool) -> None:
        if isinstance(result, Done):
            gate.reconnect_rest = 0.0
        match result:
            case Retry(pause=True) if gate.pauses:
                gate.pause(max(result.after_seconds, PAUSE_SECONDS_MIN))
            case Forbidden():
                log.error("Kommo refuses us (403): look at secret, clock and address: %s", result.text)
                gate.pause(self._probe_seconds)
                self._forbidden.add(gate)
            case Done() | Refused() | Gone() if probe:
                gate.open()
                self._forbidden.discard(gate)
        metrics.PAUSED.set(len(self._forbidden))

    async def _call(
        self, channel: Channel, connection: Connection, event: Pushed, began: Callable[[], None]
    ) -> Result:
        if isinstance(event, e.TypingStarted) and event.expires_at < clock.text(clock.now_ms()):
            return Superseded("it has waited too long")
        if event.push == KOMMO:
            named = await self._named(event)
            if isinstance(named, Superseded | Retry | Missing):
                return named
            who = Credentials(channel.channel_id, channel.secrets.kommo)
            return await self._kommo.push(who, connection.scope.scope_id, named, began)
        assert isinstance(event, e.MessageSent | e.TypingStarted | e.ReactionAdded | e.ReactionRemoved)
        push = await self._names(event)
        if push.conversation_id is None and not isinstance(event, e.MessageSent):
            return Superseded("the messenger does not know the conversation yet")
        return await self._messengers[channel.kind].push(channel, connection, push)

    async def _named(self, event: Pushed) -> Pushed | Superseded | Retry | Missing:
        """The event with the names that Kommo needs and that were not known when it was recorded.

        The copy of an operator's message may wait for the messenger's name of a chat that Kommo started;
        a status of it needs Kommo's name of the copy, whose push was settled before, in the same lane.
        """
        match event:
            case e.MessageMirrored():
                states = await self._states([event.conversation or "", event.stream])
                named = as_of(event, _chat(states, event.conversation or ""))
                if named.content.conversation_id:
                    return named
                sent = states.get(event.stream)
                if isinstance(sent, Message) and "message.failed" in sent.seen:
                    return Superseded("the messenger refused it before it named the chat")
                return Retry("the messenger has not named the chat yet")
            case e.MessageDelivered() | e.MessageRead() | e.MessageFailed() if event.remote_id is None:
                states = await self._states([event.stream])
                message = states.get(event.stream)
                kommo_id = message.kommo_id if isinstance(message, Message) else None
                if kommo_id:
                    return replace(event, remote_id=kommo_id)
                return await self._waits(event) or Superseded(NO_COPY)
        return event

    async def _names(self, event: e.MessageSent | e.TypingStarted | e.Reaction) -> Push:
        """The messenger's names of conversation and messages, asked of the ledger if not in the event."""
        conversation_id = event.content.conversation_id
        if conversation_id is None and event.conversation:
            states = await self._states([event.conversation])
            chat = _chat(states, event.conversation)
            conversation_id = chat.conversation_id if chat else None
        match event:
            case e.MessageSent(content=e.Content(reply_to=reply, forwards=forwards)) if reply or forwards:
                reply_id = await self._name_of(reply) if reply else None
                known = await self._forwards(event, forwards) if forwards else None
                return Push(event, conversation_id, reply_id=reply_id, forwards=known)
            case e.ReactionAdded() | e.ReactionRemoved():
                named = e.Reply("", event.message, event.sent_by, event.own_id)
                return Push(event, conversation_id, message_id=await self._name_of(named))
        return Push(event, conversation_id)

    async def _name_of(self, reply: e.Reply) -> str | None:
        """What the messenger calls a message."""
        if reply.sent_by == "messenger" or reply.message is None:
            return reply.own_id
        if reply.remote_id:
            return reply.remote_id
        message = (await self._states([reply.message])).get(reply.message)
        return message.remote_id if isinstance(message, Message) else None

    async def _forwards(self, event: e.MessageSent, forwards: e.Json) -> e.Json:
        """What Kommo forwards, each message with the messenger's own id of it where that is known."""
        told = forwards.get("messages")
        if not isinstance(told, list):
            return forwards
        scope = await self.scope(event)
        streams = {
            one["id"]: ids.message_id(scope, KOMMO, one["id"])
            for one in told
            if isinstance(one, dict) and isinstance(one.get("id"), str)
        }
        states = await self._states(list(streams.values()))
        aliases = [one.alias for one in states.values() if isinstance(one, Message) and one.alias]
        states |= await self._states(aliases) if aliases else {}
        named = {theirs: _own_name(states, stream) for theirs, stream in streams.items()}
        messages = []
        for one in told:
            name = named.get(str(one.get("id"))) if isinstance(one, dict) else None
            messages.append({**one, "message_id": name} if name else one)
        return {**forwards, "messages": messages}

    async def _looked_at(self, event: Pushed) -> Settled | Superseded | None:
        """Whether the ledger has its outcome already, or something higher; None: it is to be told."""
        stream = event.message
        if stream is None:
            return None
        message = (await self._states([stream])).get(stream)
        if not isinstance(message, Message):
            return None
        if message.deliveries.get(event.id) == "completed":
            return Settled()
        match event:
            case e.MessageSent() if message.alias or message.seen.keys() & ENDS_OF_A_SEND:
                return Settled()
            case e.MessageMirrored() if COPIED in message.seen:
                return Settled()
            case e.MessageEdited() if message.edited > (event.at, event.id):
                return Superseded("a later edit is recorded")
            case e.MessageDelivered() | e.MessageRead() | e.MessageFailed():
                rank = RANKS[e.tag(event).removeprefix("message.")]
                return Superseded("a higher status is recorded") if message.rank > rank else None
        return None

    async def recover(self, event: Created) -> str | None:
        """Kommo's id of a message whose sending ended without an answer; None if Kommo does not have it.

        Raises Unreached.
        """
        channel = await self._channels.channel(event.channel)
        if channel is None:
            return None
        who = Credentials(channel.channel_id, channel.secrets.kommo)
        scope_id = (await self.scope(event)).scope_id
        chat_id = event.content.chat_id
        if chat_id is None and event.conversation:
            chat = _chat(await self._states([event.conversation]), event.conversation)
            chat_id = chat.chat_id if chat else None
        return await self._kommo.find(who, scope_id, event, chat_id)

    async def reconnect(self, event: Pushed, tried_at: float) -> c.Connect | Retry | str | None:
        """Connect the channel again after a 404 or 403, at most once a minute, and seldom if it is no use.

        None if that was done since `tried_at` (seconds of the loop), a Retry if it cannot be done now, a
        reason if it cannot help.
        """
        gate = self.gate(event)
        channel = await self._channels.channel(event.channel)
        connection = channel.connections.get(event.account or "") if channel else None
        if channel is None or connection is None:
            return "the channel is not registered"
        async with gate.reconnect:
            if gate.reconnected_at > tried_at and not gate.reconnect_refused:
                return None
            if not gate.reconnectable:
                return gate.reconnect_refused or "Kommo does not know it (404), also after connecting again"
            await asyncio.sleep(OPERATOR_SECONDS)
            channel = await self._channels.channel(event.channel)
            connection = channel.connections.get(event.account or "") if channel else None
            if channel is None or connection is None or not connection.connected:
                return Retry("the channel was disconnected meanwhile")
            who = Credentials(channel.channel_id, channel.secrets.kommo)
            try:
                answer = await self._kommo.connect(
                    who,
                    event.account or "",
                    connection.title,
                    is_time_window_disabled=connection.is_time_window_disabled,
                )
            except Unreached as error:
                return Retry(f"connecting again failed: {error.reason}")
            if answer.html or answer.status in RETRIED or answer.status >= 500:
                return Retry(f"connecting again failed: HTTP {answer.status}", answer.retry_after)
            refused = (
                "" if answer.status == 200 else f"connecting again failed: HTTP {answer.status} {answer.text}"
            )
            gate.reconnected(refused)
            await self._attempts.record(channel.name, event.account or "", refused or None)
            if refused:
                return refused
        if gate in self._forbidden:
            gate.hasten()
        log.warning("channel %s was not connected to the account any more: connected again", channel.name)
        stream = ids.connection_stream(connection.scope)
        given = clock.stamp(connection.scope, stream, "system", now=clock.now_ms())
        disabled = connection.is_time_window_disabled
        return c.Connect(
            **given, stream=stream, title=connection.title, again=True, is_time_window_disabled=disabled
        )

    async def _states(self, streams: Sequence[str]) -> dict[str, State]:
        """The streams as the ledger has them, with those they point to."""
        states: dict[str, State] = {}
        wanted = list(streams)
        for _ in range(ROUNDS_MAX):
            for raw in await self._load(wanted):
                event = e.decode(raw)
                states[event.stream] = evolve(states.get(event.stream), event)
            into = {state.into for state in states.values() if isinstance(state, Chat) and state.into}
            wanted = [stream for stream in into if stream not in states]
            if not wanted:
                break
        return states

    async def _load(self, streams: list[str]) -> list[bytes]:
        async with self._reading:
            if self._connection is None or self._connection.closed:
                self._connection = await connect(self._url)
                take_columns(self._connection)
            cursor = self._connection.cursor(binary=True)
            await cursor.execute(LOAD.encode(), [uuids(streams), uuids([])], prepare=True)
            rows = cast("list[tuple[int, bytes, None]]", await cursor.fetchall())
        return [raw for _, raw, _ in sorted(rows)]


def as_of(event: e.MessageMirrored, chat: Chat | None) -> e.MessageMirrored:
    """A copy with the names that its conversation has by now.

    If the messenger's name of it turned out to be that of a chat which had begun apart, Kommo has bound the
    customer there, and must not be told again which of its own it was.
    """
    content = event.content
    if chat is None:
        return event
    if content.chat_id and not chat.begun_by_kommo:
        content = replace(content, chat_id=None)
        event = replace(event, receiver=replace(event.receiver, ref_id=None))
    name = content.conversation_id or chat.conversation_id
    return replace(event, content=replace(content, conversation_id=name))


def _own_name(states: dict[str, State], stream: str) -> str | None:
    """What the messenger calls a message."""
    message = states.get(stream)
    if isinstance(message, Message) and message.alias:
        message = states.get(message.alias)
    if not isinstance(message, Message) or message.sent is None:
        return None
    return message.sent.own_id if e.author(message.sent) == ids.MESSENGER else message.remote_id


def _chat(states: dict[str, State], stream: str) -> Chat | None:
    chat = states.get(stream)
    while isinstance(chat, Chat) and chat.into and chat.into in states:
        chat = states[chat.into]
    return chat if isinstance(chat, Chat) else None
