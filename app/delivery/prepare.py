"""Everything that a push needs, read from the ledger before the push has its turn: so a push is one call.

Theory of operation. `prepare` is the only file of delivery that reads the ledger on behalf of a job. It
changes nothing and calls nobody outside; it turns a job into one of two things:

- a `Push`: frozen, with the channel's address and secrets, and with the names that the destination needs.
  Neither side knows the other's names of a message or of a conversation. Most events carry the names since
  they were recorded; the others are named here, from the states of the streams they point to.
- an outcome without a call. `Disconnected`: the channel is not connected. `Settled`, `Superseded`: an earlier
  attempt or another event has made the push needless. `Retry`: a name is still to come, from the other side
  or from another lane. `Missing`: a name will not come before someone looks.

A job that was never tried costs no read unless names are missing. A job that may have been tried before
(`progress.again`) is first compared with the ledger, because somebody else may have settled it: a messenger
reports a message as failed, a hook shows that Kommo has a copy, another process had the lease.

A job with a doubt about Kommo's knowing the message (`doubt.look == "ledger"`) is examined, not pushed: the
message may not have reached Kommo yet. If its sending is open in another lane, the job waits for that; if the
sending is parked, or is later in the same lane, the job is parked too, because waiting would last for ever.
If neither holds, Kommo's answer stands and is the outcome.

Invariant: names only ever become known and never change again (`domain.state`), so a push that waits at its
gate after it was prepared may lack a name that has become known since, but never carries a wrong one.
"""

import asyncio
from collections.abc import Sequence
from typing import Protocol, TypeAlias

from msgspec.structs import replace

from app.channels.directory import Channel
from app.delivery.job import (
    DISCONNECTED,
    UNCONNECTED,
    Disconnected,
    Doubt,
    Job,
    Missing,
    Push,
    Pushed,
    Settled,
    Superseded,
    Unsent,
    is_imported,
)
from app.kommo.chats.payloads import Created
from app.messengers import adapter
from app.outcome import Retry
from app.vault import WrongMasterKey
from domain import events as e
from domain import ids
from domain.ids import KOMMO, Scope
from domain.state import COPIED, RANKS, Chat, Edited, Message, Reacted, State

# A merged chat points to the chat it was merged into; more than one step is rare, and a longer chain only
# leaves a name unknown.
ROUNDS_MAX = 4
UNOPENED_SECONDS = 1.0  # Chosen: as often as the directory tries to open the channel's secrets.
ENDS_OF_A_SEND = {"message.accepted", "message.failed"}
NO_COPY = "Kommo has no copy of this message"
NOT_YET = "its message is not with Kommo yet"
NOT_THERE = "its message is not with Kommo: resume that one, then this"
NO_NAME = "the messenger has not named the chat yet"
NOT_NAMED = "the messenger refused it before it named the chat"
NO_CHAT = "the messenger does not know the conversation yet"
LATER = "a later one of the same sender is to be pushed"
BROKEN = "an error of our own: look at the log, then resume it"

ToMessenger: TypeAlias = e.MessageSent | e.TypingStarted | e.Reaction


class Directory(Protocol):
    """The channels in force."""

    async def channel(self, name: str) -> Channel | None:
        """A registered channel, with its connections."""


class LedgerReader(Protocol):
    """The ledger, as far as it is read here."""

    async def states(self, streams: Sequence[str]) -> dict[str, State]:
        """The states of those of the streams that have events."""

    async def sends(self, stream: str) -> list[e.AnyEvent]:
        """The events of a message's stream that send the message or its mirror, oldest first."""


class Preparer:
    """Makes pushes of jobs."""

    def __init__(self, reader: LedgerReader, directory: Directory) -> None:
        self._reader = reader
        self._directory = directory

    async def prepare(self, job: Job) -> tuple[Scope, Push | Unsent]:
        """The scope of the job's event, also of a disconnected one, and what the job becomes."""
        event, doubt = job.event, job.progress.doubt
        channel = await self._channel(event.channel)
        connection = channel.connections.get(event.account or "") if channel else None
        if channel is None or connection is None:
            scope = ids.scope_of(event.channel, channel.channel_id if channel else "", event.account or "")
            return scope, Missing(BROKEN) if job.broken else Disconnected(UNCONNECTED)
        if job.broken:
            return connection.scope, Missing(BROKEN)
        if not connection.connected:
            came_after = job.position > connection.position
            return connection.scope, Disconnected(UNCONNECTED if came_after else DISCONNECTED)
        if job.superseded:
            return connection.scope, Superseded(LATER)
        since = job.waits_from or event.recorded_at
        push = Push(event, channel, connection, doubt=doubt, waits_from=since, left_out=job.progress.left_out)
        if doubt is not None:
            return connection.scope, await self._examine(push, doubt)
        if job.progress.again and (found := await self._find_outcome(job)):
            return connection.scope, found
        return connection.scope, await self._name(push)

    async def is_connected(self, event: Pushed) -> bool:
        """Whether the channel is connected to the event's account now."""
        channel = await self._channel(event.channel)
        connection = channel.connections.get(event.account or "") if channel else None
        return connection is not None and connection.connected

    async def _channel(self, name: str) -> Channel | None:
        """The channel, once its secrets open: a wrong master key sends nothing and loses nothing."""
        while True:
            try:
                return await self._directory.channel(name)
            except WrongMasterKey:
                await asyncio.sleep(UNOPENED_SECONDS)

    async def _examine(self, push: Push, doubt: Doubt) -> Push | Unsent:
        """What clears up a doubt: the ledger at once, or a call."""
        event = push.event
        if doubt.look == "ledger":
            return await self._blocker(event) or doubt.answer
        if doubt.look == "history" and isinstance(event, Created):
            return replace(push, chat_id=await self._chat_id(event))
        return push

    async def _chat_id(self, event: Created) -> str | None:
        """Kommo's id of the chat of a message."""
        if event.content.chat_id or event.conversation is None:
            return event.content.chat_id
        chat = _chat(await self._states([event.conversation]), event.conversation)
        return chat.chat_id if chat else None

    async def _find_outcome(self, job: Job) -> Settled | Superseded | None:
        """The outcome that the ledger has already; None: the push is still wanted."""
        event = job.event
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
            case e.MessageEdited() if _is_later(message.edited, event):
                return Superseded("a later edit is recorded")
            case e.ReactionAdded() | e.ReactionRemoved() if not job.taken_back:
                present = message.reactions.get((event.by, event.sender.id or ""))
                return Superseded("a later reaction is recorded") if _is_later(present, event) else None
            case e.MessageDelivered() | e.MessageRead() | e.MessageFailed():
                rank = RANKS[e.tag(event).removeprefix("message.")]
                return Superseded("a higher status is recorded") if message.rank > rank else None
        return None

    async def _blocker(self, event: Pushed) -> Retry | Missing | None:
        """Returns what blocks this event while its message has not reached Kommo; None: nothing does."""
        stream = event.message or event.stream
        sent = await self._reader.sends(stream)
        sends = [one for one in sent if isinstance(one, Created) and one.push == KOMMO]
        message = (await self._reader.states([stream])).get(stream)
        if not sends or not isinstance(message, Message):
            return None
        send = sends[0]
        ends = {COPIED} if isinstance(send, e.MessageMirrored) else ENDS_OF_A_SEND
        delivery = message.deliveries.get(send.id, "")
        if message.seen.keys() & ends or delivery == "completed":
            return None
        other_lane = is_imported(send) or send.conversation != event.conversation
        if other_lane and not delivery.startswith("parked"):
            return Retry(NOT_YET)
        return Missing(NOT_THERE)  # In the event's own lane the sending would only come after the event.

    async def _name(self, push: Push) -> Push | Unsent:
        """The push with the names that its destination needs."""
        event = push.event
        match event:
            case e.MessageMirrored():
                return await self._name_mirror(push, event)
            case e.MessageDelivered() | e.MessageRead() | e.MessageFailed() if event.remote_id is None:
                return await self._name_status(push, event)
            case _ if event.push == KOMMO:
                return push
        assert isinstance(event, ToMessenger)
        names = await self._messenger_names(event, push.connection.scope)
        if names.conversation_id is None and not isinstance(event, e.MessageSent):
            return Superseded(NO_CHAT)
        return replace(push, names=names)

    async def _name_mirror(self, push: Push, event: e.MessageMirrored) -> Push | Unsent:
        """A copy may have to wait for the messenger's name of a chat that Kommo started."""
        states = await self._states([event.conversation or "", event.stream])
        named = as_of(event, _chat(states, event.conversation or ""))
        if named.content.conversation_id:
            return replace(push, event=named)
        sent = states.get(event.stream)
        if isinstance(sent, Message) and "message.failed" in sent.seen:
            return Superseded(NOT_NAMED)
        return Retry(NO_NAME)

    async def _name_status(self, push: Push, event: e.Status) -> Push | Unsent:
        """A status of a mirrored message needs Kommo's name of the copy, which its lane settled before."""
        message = (await self._states([event.stream])).get(event.stream)
        if isinstance(message, Message) and message.kommo_id:
            return replace(push, event=replace(event, remote_id=message.kommo_id))
        return await self._blocker(event) or Superseded(NO_COPY)

    async def _messenger_names(self, event: ToMessenger, scope: Scope) -> adapter.Push:
        """The messenger's names of the conversation and of messages, read if the event does not have them."""
        conversation_id = event.content.conversation_id
        if conversation_id is None and event.conversation:
            chat = _chat(await self._states([event.conversation]), event.conversation)
            conversation_id = chat.conversation_id if chat else None
        match event:
            case e.MessageSent(content=e.Content(reply_to=reply, forwards=forwards)) if reply or forwards:
                reply_id = await self._message_name(reply) if reply else None
                named = await self._name_forwards(scope, forwards) if forwards else None
                return adapter.Push(event, conversation_id, reply_id=reply_id, forwards=named)
            case e.ReactionAdded() | e.ReactionRemoved():
                about = e.Reply("", event.message, event.sent_by, event.own_id)
                return adapter.Push(event, conversation_id, message_id=await self._message_name(about))
        return adapter.Push(event, conversation_id)

    async def _message_name(self, reply: e.Reply) -> str | None:
        """The messenger's name of a message."""
        if reply.sent_by == "messenger" or reply.message is None:
            return reply.own_id
        if reply.remote_id:
            return reply.remote_id
        message = (await self._states([reply.message])).get(reply.message)
        return message.remote_id if isinstance(message, Message) else None

    async def _name_forwards(self, scope: Scope, forwards: e.Json) -> e.Json:
        """What Kommo forwards, each message with the messenger's own id of it where that is known."""
        entries = forwards.get("messages")
        if not isinstance(entries, list):
            return forwards
        streams = {
            one["id"]: ids.message_id(scope, KOMMO, one["id"])
            for one in entries
            if isinstance(one, dict) and isinstance(one.get("id"), str)
        }
        states = await self._states(list(streams.values()))
        aliases = [one.alias for one in states.values() if isinstance(one, Message) and one.alias]
        states |= await self._states(aliases) if aliases else {}
        named = {theirs: _own_name(states, stream) for theirs, stream in streams.items()}
        messages = []
        for one in entries:
            name = named.get(str(one.get("id"))) if isinstance(one, dict) else None
            messages.append({**one, "message_id": name} if name else one)
        return {**forwards, "messages": messages}

    async def _states(self, streams: Sequence[str]) -> dict[str, State]:
        """The states of streams, with those that they point to."""
        states: dict[str, State] = {}
        wanted = list(streams)
        for _ in range(ROUNDS_MAX):
            states |= await self._reader.states(wanted)
            into = {state.into for state in states.values() if isinstance(state, Chat) and state.into}
            wanted = [stream for stream in into if stream not in states]
            if not wanted:
                break
        return states


def _is_later(present: Edited | Reacted | None, event: e.MessageEdited | e.Reaction) -> bool:
    return present is not None and (present.at, present.version) > (event.at, event.version)


def as_of(event: e.MessageMirrored, chat: Chat | None) -> e.MessageMirrored:
    """A copy with the names that its conversation has by now.

    If the messenger's name of it turned out to be that of a chat which had begun apart, Kommo has bound the
    customer there, and must not get its own name of the customer once more.
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
    """The messenger's name of a message."""
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
