"""Commands become events here, and only here: all rules of what may follow what, without a clock or a new id.

The sender's own id names a message's stream, so a repeat meets the message that it repeats. The receiving
side's id is an alias: a stream that points to the message. Events that mention an unknown id wait in that
id's stream and are recorded again, with `cause`, once the id is known. Statuses only rise.
"""

from msgspec.structs import replace

from domain import commands as c
from domain import crm
from domain import events as e
from domain.conversations import resolve, root
from domain.draft import Decision, Draft, Snapshot
from domain.facts import Fact, apply, fact_of_command, record
from domain.ids import KOMMO, MESSENGER, OPERATOR, TYPING_WINDOW_MS, other
from domain.state import COPIED, Chat, Message, State, comparable, conflict_key


class OwnMessage(Exception):
    """The messenger reports a status of its own message: only messages that we sent have one."""


class Unknown(Exception):
    """Nothing is recorded under that id."""


class NotConnected(Exception):
    """The channel is not connected to that account."""


def names(command: c.AnyCommand) -> list[str]:
    """Returns the streams that a command reads; `follow` names further ones once these are loaded."""
    match command:
        case c.Send():
            named = [command.stream]
            for end in command.ends:
                named.append(end.stream)  # noqa: PERF401  # on every path, and mostly one
            if command.reply_stream:
                named.append(command.reply_stream)
            if command.forward_stream:
                named.append(command.forward_stream)
            return named
        case c.Begin():
            return [end.stream for end in command.ends]
        case c.React():
            return list(command.streams)
        case c.Type():
            return [command.stream, *(end.stream for end in command.ends)]
        case c.Accept():
            more = [command.alias, command.end.stream if command.end else None]
            return [command.stream, *(stream for stream in more if stream)]
        case c.Talk() | c.Lead():
            return [command.stream, *(stream for _, stream in command.chats)]
        case _:
            return [command.stream]


def follow(command: c.AnyCommand, state: State) -> list[str]:
    """Returns the streams that a stream points to, which the command needs as well."""
    if not isinstance(state, Message):
        into = getattr(state, "into", None)
        return [into] if into else []
    found = [state.alias] if state.alias else []
    whole = isinstance(command, c.Accept) or (isinstance(command, c.Send) and command.side == OPERATOR)
    if whole and state.sent and state.sent.conversation:
        found.append(state.sent.conversation)
    return found


def decide(command: c.AnyCommand, known: Snapshot) -> Decision:
    """Returns the events that follow from a command. Raises OwnMessage, Unknown, NotConnected."""
    draft = Draft(command, known)
    match command:
        case c.Send():
            return _send(draft, command)
        case c.Edit() | c.Delete() | c.Confirm():
            return _about(draft, command, (command.stream,))
        case c.React():
            return _about(draft, command, command.streams)
        case c.Type():
            return _type(draft, command)
        case c.Begin():
            return _begin(draft, command)
        case c.Accept():
            return _accept(draft, command)
        case c.Reject():
            return _reject(draft, command)
        case c.Complete() | c.Defer() | c.Park() | c.Resume():
            return _deliver(draft, command)
        case c.Register() | c.Change() | c.Connect() | c.Disconnect():
            return _channel(draft, command)
        case c.LinkContact():
            if (linked := crm.link(draft, command)) is None:
                raise Unknown
            return linked
        case c.Talk() | c.Lead():
            return crm.record_case(draft, command)
        case c.Review():
            return crm.review(draft, command)
        case c.Authorize() | c.Withdraw():
            return crm.account(draft, command)


def _send(draft: Draft, command: c.Send) -> Decision:
    stream = command.stream
    before = draft.message(stream)
    if before and before.alias:
        return _echo(draft, before.alias)
    if before and before.sent:
        return _again(draft, command, before, before.sent)
    conversation, chat = resolve(draft, command.ends, command.receiver)
    last = draft.clocks.get(conversation, 0)
    ours = command.side == KOMMO
    incoming = command.side == MESSENGER and command.direction == "in"
    msec = command.msec if ours or command.imported else max(command.msec, last + 1)
    sender, receiver = command.sender, command.receiver
    if chat.begun_by_kommo and incoming:
        sender = replace(sender, ref_id=chat.receiver_id)
    elif chat.begun_by_kommo and receiver and not ours:
        receiver = replace(receiver, ref_id=chat.receiver_id)
    version = before.version + 1 if before else 1
    sent = e.MessageSent(
        id=draft.next_id,
        stream=stream,
        version=version,
        channel=command.scope.channel,
        account=command.scope.account,
        conversation=conversation,
        message=stream,
        at=command.at,
        recorded_at=command.now,
        by=command.by,
        schema=e.SCHEMA,
        direction="in" if incoming else "out",
        own_id=command.own_id,
        msec=msec,
        sender=sender,
        receiver=receiver,
        content=_content(draft, command, chat),
        source=command.source,
        silent=command.silent or (command.imported and msec < last),
        imported=command.imported,
        push="kommo" if command.side == MESSENGER else "messenger",
        sent_by=None if incoming or ours else command.side,
    )
    draft.append(sent)
    if command.side == OPERATOR:
        _mirror(draft, sent)
    for fact in before.waiting if before else ():
        apply(draft, stream, fact)
    # An imported message keeps its own time and does not move the clock.
    reached = last if command.imported else max(msec, last)
    return draft.done(stream, version, message=stream, clock=(conversation, reached))


def _mirror(draft: Draft, sent: e.MessageSent) -> None:
    """Record that Kommo is to show what an operator sent, so that the managers see it."""
    about: dict[str, object] = {"conversation": sent.conversation, "message": sent.stream, "cause": sent.id}
    fields = {"msec": sent.msec, "sender": sent.sender, "receiver": sent.receiver, "content": sent.content}
    more = {"source": sent.source, "push": KOMMO}
    draft.add(e.MessageMirrored, sent.stream, about | fields | more)


def _content(draft: Draft, command: c.Send, chat: Chat) -> e.Content:
    """Returns the content, completed with the message that it answers and the conversation's names."""
    content = command.content
    if content.reply_to:
        content = replace(content, reply_to=_found(draft, content.reply_to, command.reply_stream))
    if content.forwarded:
        content = replace(content, forwarded=_found(draft, content.forwarded, command.forward_stream))
    if chat.begun_by_kommo:
        content = replace(content, chat_id=chat.chat_id)
    if content.conversation_id is None and chat.conversation_id:
        content = replace(content, conversation_id=chat.conversation_id)
    return content


def _echo(draft: Draft, message: str) -> Decision:
    """Our own message comes back under the other side's id: report the message that the id points to."""
    target = draft.message(message)
    version = target.seen.get("message.sent", 1) if target else 1
    return draft.done(message, version, duplicate=True, message=message)


def _again(draft: Draft, command: c.Send, before: Message, sent: e.MessageSent) -> Decision:
    """The same id comes again: a repeat, or a conflict, which is recorded once for each distinct content."""
    version = before.seen["message.sent"]
    if _same(draft, command, sent):
        return draft.done(command.stream, version, duplicate=True, message=command.stream)
    if conflict_key(command.sender, command.content, command.source) not in before.seen:
        fields: dict[str, object] = {"conversation": sent.conversation, "message": command.stream}
        fields |= {"sender": command.sender, "content": command.content, "source": command.source}
        draft.add(e.ConflictNoticed, command.stream, fields)
    return draft.done(command.stream, version, conflict=True, message=command.stream)


def _same(draft: Draft, command: c.Send, sent: e.MessageSent) -> bool:
    """Whether content, sender, reply and source are those first recorded; times and names may differ."""
    first, again = (
        replace(comparable(content), chat_id=None, conversation_id=None)
        for content in (sent.content, command.content)
    )
    same_chat = command.side == KOMMO or command.content.conversation_id == sent.content.conversation_id
    if command.side == OPERATOR:
        same_chat = root(draft, command.ends[0].stream) == root(draft, sent.conversation or "")
    return (
        first == again and same_chat and command.sender.id == sent.sender.id and command.source == sent.source
    )


def _found(draft: Draft, reply: e.Reply, stream: str | None) -> e.Reply:
    """Returns the reference to an answered or forwarded message, completed if the message is known."""
    if stream is None:
        return reply
    named = draft.message(stream)
    if named and named.alias:
        stream = named.alias
        named = draft.message(stream)
    if named is None or named.sent is None:
        return reply
    sent = named.sent
    return e.Reply(reply.id, stream, e.author(sent), sent.own_id, named.remote_id)


def _about(
    draft: Draft, command: c.Edit | c.Delete | c.Confirm | c.React, streams: tuple[str, ...]
) -> Decision:
    """Record a fact about the message that one of the streams names; it waits if there is no such message."""
    fact = fact_of_command(command)
    target = next((found for stream in streams if (found := _named(draft, stream))), None)
    for stream in dict.fromkeys((*streams, target or streams[0])):
        named = draft.message(stream)
        if named and (version := named.seen.get(fact.key)):
            return draft.done(stream, version, duplicate=True, message=target)
    message = draft.message(target) if target else None
    sent = message.sent if message else None
    if isinstance(command, c.Confirm) and sent and e.author(sent) == MESSENGER:
        raise OwnMessage
    event = record(draft, target or streams[0], fact)
    return draft.done(event.stream, event.version, message=target)


def _named(draft: Draft, stream: str) -> str | None:
    """Returns the message that a stream is or points to, None while there is none."""
    message = draft.message(stream)
    if message and message.alias:
        stream, message = message.alias, draft.message(message.alias)
    return stream if message and message.sent else None


def _type(draft: Draft, command: c.Type) -> Decision:
    """Record typing only while it is fresh, and once in 5 seconds."""
    if command.now_ms - command.at_ms > TYPING_WINDOW_MS:
        return draft.done(command.stream, 0)
    if draft.state(command.stream):
        return draft.done(command.stream, 1, duplicate=True)
    conversation, chat = resolve(draft, command.ends)
    fields = {
        "conversation": conversation,
        "sender": command.sender,
        "content": e.Ends(chat.conversation_id, chat.chat_id),
        "expires_at": command.expires_at,
        "push": other(command.side),
        "duration_ms": command.duration_ms,
        "post_id": command.post_id,
    }
    event = draft.add(e.TypingStarted, command.stream, fields)
    return draft.done(command.stream, event.version)


def _begin(draft: Draft, command: c.Begin) -> Decision:
    """Record both names of a chat in which nobody has written yet."""
    conversation, chat = resolve(draft, command.ends, command.receiver)
    return draft.done(conversation, chat.version, duplicate=not draft.events)


def _accept(draft: Draft, command: c.Accept) -> Decision:
    """The other side accepted the message: its id becomes an alias, and the facts that waited there apply."""
    message = draft.message(command.stream)
    if message is None or message.sent is None:
        raise Unknown
    sent = message.sent
    if version := message.seen.get(COPIED if command.copy else "message.accepted"):
        return draft.done(command.stream, version, duplicate=True, message=command.stream)
    about: dict[str, object] = {"conversation": sent.conversation, "message": command.stream}
    fields: dict[str, object] = {"cause": command.cause, "side": command.side, "copy": command.copy}
    fields["remote_id"] = command.remote_id
    accepted = draft.add(e.MessageAccepted, command.stream, about | fields)
    alias = draft.message(command.alias) if command.alias else None
    if command.alias and not (alias and alias.alias):
        draft.add(e.MessageNamed, command.alias, {**about, "cause": accepted.id})
        for fact in alias.waiting if alias else ():
            apply(draft, command.stream, fact)
    if command.end and sent.conversation:
        _learn(draft, sent.conversation, command.end)
    return draft.done(command.stream, accepted.version, message=command.stream)


def _learn(draft: Draft, conversation: str, end: c.End) -> None:
    """Bind the messenger's name for a conversation, which came with its answer to a message."""
    conversation = root(draft, conversation)
    chat = draft.chat(conversation)
    if chat and chat.started_by:
        ends = e.Ends(chat.conversation_id, chat.chat_id)
        resolve(draft, (c.End(chat.started_by, conversation, ends), end))


def _reject(draft: Draft, command: c.Reject) -> Decision:
    """Record that the other side refused the message for good."""
    message = draft.message(command.stream)
    if message is None or message.sent is None:
        raise Unknown
    if version := message.seen.get("message.failed"):
        return draft.done(command.stream, version, duplicate=True, message=command.stream)
    fields = {"code": command.code, "text": command.text, "cause": command.cause}
    event = record(draft, command.stream, Fact(e.MessageFailed, command.at, command.by, fields))
    return draft.done(command.stream, event.version, message=command.stream)


def _deliver(draft: Draft, command: c.Complete | c.Defer | c.Park | c.Resume) -> Decision:
    """Record the state of a delivery; a completed one stays completed."""
    message = draft.message(command.stream)
    if message is None:
        raise Unknown
    stand = message.deliveries.get(command.cause, "")
    kind: type[e.DeliveryEvent]
    fields: dict[str, object] = {}
    match command:
        case c.Complete():
            news, kind = True, e.DeliveryCompleted
            fields = {"superseded": command.superseded}
        case c.Defer():
            news, kind = stand != f"deferred: {command.reason}", e.DeliveryDeferred
            fields = {"reason": command.reason}
        case c.Park():
            news, kind = not stand.startswith("parked"), e.DeliveryParked
            fields = {"reason": command.reason}
        case c.Resume():
            news, kind = stand.startswith("parked"), e.DeliveryResumed
    if stand == "completed" or not news:
        return draft.done(command.stream, message.version, duplicate=True, message=command.stream)
    conversation = message.sent and message.sent.conversation
    where = {"conversation": conversation, "message": command.stream, "cause": command.cause}
    event = draft.add(kind, command.stream, {**where, **fields})
    return draft.done(command.stream, event.version, message=command.stream)


def _channel(draft: Draft, command: c.Register | c.Change | c.Connect | c.Disconnect) -> Decision:
    """Record that a channel is registered, changed, connected to an account, or disconnected."""
    stream = command.stream
    before = draft.connection(stream)
    if before and before.last[:-2] == command.id[:-2]:
        return draft.done(
            stream, before.version
        )  # It was stored, but the connection broke before we learned that.
    kind: type[e.ChannelEvent]
    fields: dict[str, object]
    match command:
        case c.Register():
            news, kind = before is None, e.ChannelRegistered
            fields = {"channel_id": command.channel_id, "kind": command.kind}
            fields |= {"url": command.url, "bot_id": command.bot_id}
        case c.Change():
            news, kind = True, e.ChannelChanged
            fields = {"url": command.url, "bot_id": command.bot_id, "secrets": list(command.secrets)}
        case c.Connect():
            wanted = (command.title, command.is_time_window_disabled)
            same = before and before.connected and (before.title, before.is_time_window_disabled) == wanted
            news, kind = command.again or not same, e.ChannelConnected
            fields = {"scope_id": command.scope.scope_id, "title": command.title}
            fields |= {"is_time_window_disabled": command.is_time_window_disabled}
        case c.Disconnect():
            if before is None or not before.connected:
                raise NotConnected
            news, kind = True, e.ChannelDisconnected
            fields = {"scope_id": command.scope.scope_id}
    if not news and before:
        return draft.done(stream, before.version, duplicate=True)
    event = draft.add(kind, stream, fields)
    return draft.done(stream, event.version)
