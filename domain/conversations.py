"""A conversation keeps the id that its first name gave it; its other names are streams that point to it.

Conversations that started apart, one in Kommo and one in the messenger, become one when a message shows that
they are. Two conversations with names of the messenger never do: they are two customers', whatever a message
says. The name that does not fit is then left out, in `Draft.refused`.
"""

from collections.abc import Iterable

from domain import events as e
from domain.commands import End
from domain.draft import Draft
from domain.ids import MESSENGER
from domain.state import Chat

HOPS_MAX = 8  # chosen: an alias and a merge are two hops, and a longer chain needs a merge for each hop


def root(draft: Draft, stream: str) -> str:
    """Returns the conversation that a stream stands for, through aliases and merges."""
    for _ in range(HOPS_MAX):
        chat = draft.chat(stream)
        if chat is None or chat.into is None:
            break
        stream = chat.into
    return stream


def resolve(draft: Draft, ends: tuple[End, ...], receiver: e.Party | None = None) -> tuple[str, Chat]:
    """Returns the conversation that `ends` name, most trusted first; starts, binds or merges it if needed."""
    return _agreed(draft, ends) or _settled(draft, ends, receiver)


def _agreed(draft: Draft, ends: tuple[End, ...]) -> tuple[str, Chat] | None:
    """Returns the conversation if all `ends` are known and agree, as for most messages; None otherwise."""
    found: tuple[str, Chat] | None = None
    for end in ends:
        stream = end.stream
        chat = draft.chat(stream)
        if chat is not None and chat.into is not None:
            stream = chat.into
            chat = draft.chat(stream)
        if chat is None or chat.into is not None or (found is not None and found[0] != stream):
            return None
        found = stream, chat
    return found


def _settled(draft: Draft, ends: tuple[End, ...], receiver: e.Party | None) -> tuple[str, Chat]:
    for end in ends:
        if draft.chat(end.stream):
            found = root(draft, end.stream)
            break
    else:
        found = _start(draft, ends[0], receiver)
    for end in ends:
        if (joined := join(draft, found, end)) is not None:
            found = joined
        elif end.side == MESSENGER:  # The message goes to the customer that it names.
            draft.refused.extend(one for one in ends if one.side != MESSENGER)
            found = root(draft, end.stream) if draft.chat(end.stream) else _start(draft, end, receiver)
        else:
            draft.refused.append(end)
    chat = draft.chat(found)
    assert chat is not None
    return found, chat


def join(draft: Draft, conversation: str, end: End) -> str | None:
    """Let a name stand for a conversation, too; returns the conversation that the name stands for now.

    Returns None, and changes nothing, if the name is that of another customer's conversation.
    """
    if end.stream == conversation:
        return conversation
    chat = draft.chat(conversation)
    assert chat is not None
    if draft.chat(end.stream) is None:
        if end.side == MESSENGER and chat.conversation_id not in (None, end.ends.conversation_id):
            return None
        _bind(draft, conversation, end)
        return conversation
    found = root(draft, end.stream)
    if found == conversation:
        return conversation
    named = draft.chat(found)
    assert named is not None
    both = chat.conversation_id, named.conversation_id
    if None not in both and both[0] != both[1]:
        return None
    return _merge(draft, conversation, found)


def belongs(draft: Draft, conversation: str | None, names: Iterable[tuple[str, str]]) -> bool:
    """Whether a message's conversation is the one that `names`, pairs of a side and a stream, stand for.

    A name that is still unknown may be that of a conversation which has no name of its side yet.
    """
    names = tuple(names)
    if not names or conversation is None or any(stream == conversation for _, stream in names):
        return True
    home = root(draft, conversation)
    known = [root(draft, stream) for _, stream in names if draft.chat(stream)]
    if known:
        return home in known
    chat = draft.chat(home)
    return chat is None or all(_name(chat, side) is None for side, _ in names)


def _name(chat: Chat, side: str) -> str | None:
    return chat.conversation_id if side == MESSENGER else chat.chat_id


def _start(draft: Draft, end: End, receiver: e.Party | None) -> str:
    conversation = end.stream
    fields = {"side": end.side, "content": end.ends, "receiver": receiver}
    draft.add(e.ConversationStarted, conversation, {"conversation": conversation, **fields})
    return conversation


def _bind(draft: Draft, conversation: str, end: End) -> None:
    fields = {"conversation": conversation, "side": end.side, "content": end.ends}
    for stream in (conversation, end.stream):
        draft.add(e.ConversationBound, stream, fields)


def _merge(draft: Draft, one: str, two: str) -> str:
    """Merge two conversations into the earlier one, which takes over the names; returns that one."""
    first, second = draft.chat(one), draft.chat(two)
    assert first is not None
    assert second is not None
    into, out, lost = (one, two, second) if first.started <= second.started else (two, one, first)
    names = e.Ends(conversation_id=lost.conversation_id, chat_id=lost.chat_id)
    draft.add(e.ConversationMerged, out, {"conversation": out, "into": into})
    bound = {"conversation": into, "side": lost.started_by, "content": names, "apart": True}
    draft.add(e.ConversationBound, into, bound)
    return into
