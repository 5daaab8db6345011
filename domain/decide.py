"""Commands become events here, and only here: all rules of what may follow what, without a clock or a new id.

The sender's own id names a message's stream, so a repeat meets the message that it repeats. The receiving
side's id is an alias: a stream that points to the message. Events that mention an unknown id wait in that
id's stream and are recorded again, with `cause`, once the id is known. Statuses only rise.
"""

from msgspec.structs import replace

from domain import channels, crm, deliveries
from domain import commands as c
from domain import events as e
from domain.channels import NotConnected
from domain.conversations import belongs, join, resolve, root
from domain.draft import Decision, Draft, Snapshot
from domain.facts import (
    AboutMessage,
    Fact,
    TooManyFacts,
    apply,
    check_room,
    fact_of_command,
    find_repeat,
    record,
)
from domain.ids import KOMMO, MESSENGER, OPERATOR, TYPING_WINDOW_MS, other
from domain.state import COPIED, Chat, Message, State, comparable, conflict_key, name_conflict_key

__all__ = ["NotConnected", "OwnMessage", "TooManyFacts", "Unknown", "decide", "follow", "names"]


# Chosen: the answer 409 is the same whether or not a conflict is recorded, and more of them teach nobody.
CONFLICTS_MAX = 100


class OwnMessage(Exception):
    """The messenger reports a status of its own message: only messages that we sent have one."""


class Unknown(Exception):
    """Nothing is recorded under that id."""


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
        case c.Edit() | c.Delete() | c.Confirm() | c.React():
            return [*command.streams, command.ours] if command.ours else list(command.streams)
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
    if isinstance(command, c.Send | c.Accept):
        found += [fact.within for fact in state.waiting.values() if fact.within]
    conversation = state.sent.conversation if state.sent else None
    match command:
        case c.Accept():
            if command.alias_within and _is_taken(state, command):
                found.append(command.alias_within)
            if conversation:
                found.append(conversation)
        case c.Send():
            if state.alias and command.stream_within:
                found.append(command.stream_within)
            if conversation:
                found.append(conversation)
        case c.Edit() | c.Delete() | c.Confirm() | c.React():
            ends = [end.stream for end in command.ends]
            if conversation and ends and conversation not in ends:
                found += [conversation, *ends]
    return found


def _is_taken(state: Message, command: c.Accept) -> bool:
    """Whether a stream, one of those that the command names, is another message or stands for one."""
    if state.sent:
        return state.sent.stream == command.alias
    return state.alias not in (None, command.stream)


def decide(command: c.AnyCommand, known: Snapshot) -> Decision:
    """Returns the events that follow from a command.

    Raises OwnMessage, TooManyFacts, Unknown, NotConnected.
    """
    draft = Draft(command, known)
    match command:
        case c.Send():
            return _send(draft, command)
        case c.Edit() | c.Delete() | c.Confirm() | c.React():
            return _about(draft, command)
        case c.Type():
            return _type(draft, command)
        case c.Begin():
            return _begin(draft, command)
        case c.Accept():
            return _accept(draft, command)
        case c.Reject():
            return _reject(draft, command)
        case c.Complete() | c.Defer() | c.Park() | c.Resume():
            return _known(deliveries.record(draft, command))
        case c.Register() | c.Change() | c.Connect() | c.Disconnect():
            return channels.record(draft, command)
        case c.LinkContact():
            return _known(crm.link(draft, command))
        case c.Talk() | c.Lead():
            return crm.record_case(draft, command)
        case c.Review():
            return crm.review(draft, command)
        case c.Authorize() | c.Withdraw() | c.Move() | c.Source() | c.Subscribe():
            return crm.account(draft, command)


def _known(decision: Decision | None) -> Decision:
    if decision is None:
        raise Unknown
    return decision


def _send(draft: Draft, command: c.Send) -> Decision:
    stream = command.stream
    before = draft.message(stream)
    if before and before.alias and command.stream_within and not _is_echo(draft, command, before.alias):
        stream = command.stream_within
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
        claimed_at=command.claimed_at,
        direction="in" if incoming else "out",
        own_id=command.own_id,
        msec=msec,
        sender=sender,
        receiver=receiver,
        content=_content(draft, command, conversation, chat),
        source=command.source,
        silent=command.silent or (command.imported and msec < last),
        imported=command.imported,
        push="kommo" if command.side == MESSENGER else "messenger",
        sent_by=None if incoming or ours else command.side,
    )
    draft.append(sent)
    if command.side == OPERATOR:
        _mirror(draft, sent)
    for fact in tuple(before.waiting.values()) if before else ():
        apply(draft, stream, fact)
    _notice_names(draft, sent)
    # An imported message keeps its own time and does not move the clock.
    reached = last if command.imported else max(msec, last)
    return draft.done(stream, version, message=stream, clock=(conversation, reached))


def _mirror(draft: Draft, sent: e.MessageSent) -> None:
    """Record that Kommo is to show what an operator sent, so that the managers see it."""
    about: dict[str, object] = {"conversation": sent.conversation, "message": sent.stream, "cause": sent.id}
    fields = {"msec": sent.msec, "sender": sent.sender, "receiver": sent.receiver, "content": sent.content}
    more = {"source": sent.source, "push": KOMMO}
    draft.add(e.MessageMirrored, sent.stream, about | fields | more)


def _notice_names(draft: Draft, sent: e.MessageSent) -> None:
    """Record once for a message each name of its conversation that is another customer's."""
    for end in draft.refused:
        _notice(draft, sent, "conversation_id", end.ends.conversation_id or end.ends.chat_id)


def _notice(draft: Draft, sent: e.MessageSent, about: str, name: str | None) -> None:
    message = draft.message(sent.stream)
    if message is None or name_conflict_key(about, name) in message.seen:
        return
    if message.conflicts >= CONFLICTS_MAX:
        return
    fields: dict[str, object] = {"conversation": sent.conversation, "message": sent.stream}
    fields |= {"sender": e.Party(), "content": e.Content(type=sent.content.type)}
    draft.add(e.ConflictNoticed, sent.stream, fields | {"about": about, "remote_id": name})


def _content(draft: Draft, command: c.Send, conversation: str, chat: Chat) -> e.Content:
    """Returns the content, completed with the message that it answers and the conversation's names."""
    content = command.content
    if content.reply_to:
        reply = _found(draft, content.reply_to, command.reply_stream, conversation)
        content = replace(content, reply_to=reply)
    if content.forwarded:
        content = replace(content, forwarded=_found(draft, content.forwarded, command.forward_stream))
    if chat.begun_by_kommo:
        content = replace(content, chat_id=chat.chat_id)
    if content.conversation_id is None and chat.conversation_id:
        content = replace(content, conversation_id=chat.conversation_id)
    return content


def _is_echo(draft: Draft, command: c.Send, message: str) -> bool:
    """Whether the id under which a message comes is that of our own message in the same conversation."""
    target = draft.message(message)
    names = ((end.side, end.stream) for end in command.ends)
    return target is None or target.sent is None or belongs(draft, target.sent.conversation, names)


def _echo(draft: Draft, message: str) -> Decision:
    """Our own message comes back under the other side's id: report the message that the id points to."""
    target = draft.message(message)
    version = target.seen.get("message.sent", 1) if target else 1
    return draft.done(message, version, duplicate=True, message=message)


def _again(draft: Draft, command: c.Send, before: Message, sent: e.MessageSent) -> Decision:
    """The same id comes again: a repeat, or a conflict, which is recorded once for each distinct content."""
    version, stream = before.seen["message.sent"], sent.stream
    if _same(draft, command, sent):
        return draft.done(stream, version, duplicate=True, message=stream)
    known = conflict_key(command.sender, command.content, command.source) in before.seen
    if not known and before.conflicts < CONFLICTS_MAX and not before.is_full:
        fields: dict[str, object] = {"conversation": sent.conversation, "message": stream}
        fields |= {"sender": command.sender, "content": command.content, "source": command.source}
        draft.add(e.ConflictNoticed, stream, fields)
    return draft.done(stream, version, conflict=True, message=stream)


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


def _found(draft: Draft, reply: e.Reply, stream: str | None, conversation: str | None = None) -> e.Reply:
    """Returns the reference to an answered or forwarded message, completed if the message is known.

    A message of another scope is not, and neither is one of another conversation, if one is named.
    """
    named = _named(draft, stream) if stream else None
    if named is None or not _is_ours(draft, named):
        return reply
    if conversation and root(draft, named.conversation or "") != root(draft, conversation):
        return reply
    message = draft.message(named.stream)
    remote_id = message.remote_id if message else None
    return e.Reply(reply.id, named.stream, e.author(named), named.own_id, remote_id)


def _about(draft: Draft, command: AboutMessage) -> Decision:
    """Record a fact about the message that is named; it waits if there is no such message.

    Raises TooManyFacts.
    """
    fact = fact_of_command(command)
    sent = _target(draft, command)
    target = sent.stream if sent else None
    for stream in (*command.streams, target) if target else command.streams:
        named = draft.message(stream)
        is_open = named is not None and (named.sent is sent or _is_free(named))
        if named and is_open and (version := find_repeat(named, fact)):
            return draft.done(stream, version, duplicate=True, message=target)
    if isinstance(command, c.Confirm) and sent and e.author(sent) == MESSENGER:
        raise OwnMessage
    place = target or _place(draft, command)
    check_room(draft.message(place), fact)
    event = record(draft, place, fact)
    return draft.done(event.stream, event.version, message=target)


def _target(draft: Draft, command: AboutMessage) -> e.MessageSent | None:
    """Returns the message that a fact is about: of the scope, and of the conversation that the fact names."""
    for stream in (command.ours, *command.streams):
        sent = _named(draft, stream) if stream else None
        names = ((end.side, end.stream) for end in command.ends)
        if sent and _is_ours(draft, sent) and belongs(draft, sent.conversation, names):
            return sent
    return None


def _place(draft: Draft, command: AboutMessage) -> str:
    """Returns the stream in which a fact waits: the first of its names that no message has yet."""
    free = (stream for stream in command.streams if _is_free(draft.message(stream)))
    return next(free, command.streams[-1])


def _is_free(named: Message | None) -> bool:
    return named is None or (named.sent is None and named.alias is None)


def _is_ours(draft: Draft, sent: e.MessageSent) -> bool:
    """Whether a message is of the command's scope."""
    return (sent.channel, sent.account or "") == (draft.command.scope.channel, draft.command.scope.account)


def _named(draft: Draft, stream: str) -> e.MessageSent | None:
    """Returns the message that a stream is or points to, None while there is none."""
    message = draft.message(stream)
    if message and message.alias:
        message = draft.message(message.alias)
    return message.sent if message else None


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
    fields |= {"remote_id": command.remote_id, "left_out": list(command.left_out)}
    accepted = draft.add(e.MessageAccepted, command.stream, about | fields)
    if command.end and sent.conversation:
        home = root(draft, sent.conversation)
        if draft.chat(home) and join(draft, home, command.end) is None:
            draft.refused.append(command.end)
    _name(draft, command, sent, {**about, "cause": accepted.id})
    _notice_names(draft, sent)
    return draft.done(command.stream, accepted.version, message=command.stream)


def _name(draft: Draft, command: c.Accept, sent: e.MessageSent, named: dict[str, object]) -> None:
    """Let the other side's id stand for the message, unless another message has it; what waited applies."""
    for alias in (command.alias, command.alias_within):
        if alias is None:
            continue
        before = draft.message(alias)
        free = _is_free(before) or _is_copy(draft, command, before, sent)
        if free:
            draft.add(e.MessageNamed, alias, named)
        elif before and before.alias == command.stream:
            return
        for fact in tuple(before.waiting.values()) if before else ():
            apply(draft, command.stream, fact, named=free)
        if free:
            return
        _notice(draft, sent, "message_id", command.remote_id)


def _is_copy(draft: Draft, command: c.Accept, before: Message | None, sent: e.MessageSent) -> bool:
    """Whether Kommo names its copy of our message, and its hook about that copy was quicker than its answer.

    Then the copy must not go to the customer, who has the message, so the name covers what the hook brought.
    """
    copy = before.sent if before else None
    return (
        command.side == KOMMO
        and copy is not None
        and e.author(copy) == KOMMO
        and before is not None
        and before.rank == 0
        and root(draft, copy.conversation or "") == root(draft, sent.conversation or "")
    )


def _reject(draft: Draft, command: c.Reject) -> Decision:
    """Record that the other side refused the message for good."""
    message = draft.message(command.stream)
    if message is None or message.sent is None:
        raise Unknown
    if version := message.seen.get("message.failed"):
        return draft.done(command.stream, version, duplicate=True, message=command.stream)
    fields = {"code": command.code, "text": command.text, "cause": command.cause, "reason": command.reason}
    event = record(draft, command.stream, Fact(e.MessageFailed, command.at, command.by, fields))
    return draft.done(command.stream, event.version, message=command.stream)
