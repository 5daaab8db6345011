"""What is recorded of a channel: registered, changed, connected to an account, disconnected."""

from domain import commands as c
from domain import events as e
from domain.draft import Decision, Draft


class NotConnected(Exception):
    """The channel is not connected to that account."""


def record(draft: Draft, command: c.Register | c.Change | c.Connect | c.Disconnect) -> Decision:
    """Record what happened to a channel; nothing if it is so already. Raises NotConnected."""
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
            fields |= {"url": command.url, "bot_id": command.bot_id, "options": command.options}
        case c.Change():
            news, kind = True, e.ChannelChanged
            fields = {"url": command.url, "bot_id": command.bot_id, "secrets": list(command.secrets)}
            fields |= {"options": command.options}
        case c.Connect():
            if command.renewed and before and not before.connected:
                raise NotConnected
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
