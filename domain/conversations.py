"""A conversation keeps the id that its first name gave it; its other names are streams that point to it."""

from domain import events as e
from domain.commands import End
from domain.draft import Draft
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
        if end.stream == found:
            continue
        chat_of_end = draft.chat(end.stream)
        if chat_of_end is None:
            _bind(draft, found, end)
        elif (other := root(draft, end.stream)) != found:
            found = _merge(draft, found, other)
    chat = draft.chat(found)
    assert chat is not None
    return found, chat


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
