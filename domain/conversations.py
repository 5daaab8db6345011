"""A conversation has one id for ever, that of the first name it was seen under; other names point to it."""

from domain import events as e
from domain.commands import End
from domain.draft import Draft
from domain.state import Chat

HOPS_MAX = 8


def root(draft: Draft, stream: str) -> str:
    """The conversation that a stream stands for, through aliases and merges."""
    for _ in range(HOPS_MAX):
        chat = draft.chat(stream)
        if chat is None or chat.into is None:
            break
        stream = chat.into
    return stream


def resolve(draft: Draft, ends: tuple[End, ...], receiver: e.Party | None = None) -> tuple[str, Chat]:
    """The conversation that `ends` name, most trusted first: started, bound or merged if that is news."""
    return _agreed(draft, ends) or _settled(draft, ends, receiver)


def _agreed(draft: Draft, ends: tuple[End, ...]) -> tuple[str, Chat] | None:
    """The conversation if all its names are known to be its own, as those of most messages are."""
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
        known = draft.chat(end.stream)
        if known is None:
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
    """The earlier of two conversations takes the other in, with its names."""
    first, second = draft.chat(one), draft.chat(two)
    assert first is not None
    assert second is not None
    into, out, lost = (one, two, second) if first.started <= second.started else (two, one, first)
    names = e.Ends(conversation_id=lost.conversation_id, chat_id=lost.chat_id)
    draft.add(e.ConversationMerged, out, {"conversation": out, "into": into})
    bound = {"conversation": into, "side": lost.started_by, "content": names, "apart": True}
    draft.add(e.ConversationBound, into, bound)
    return into
