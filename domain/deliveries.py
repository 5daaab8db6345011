"""What is recorded of a delivery: completed, deferred, parked, resumed; a completed one stays completed."""

from domain import commands as c
from domain import events as e
from domain.draft import Decision, Draft


def record(draft: Draft, command: c.Complete | c.Defer | c.Park | c.Resume) -> Decision | None:
    """Record the state of a delivery; returns None if its stream is unknown."""
    message = draft.message(command.stream)
    if message is None:
        return None
    stand = message.deliveries.get(command.cause, "")
    kind: type[e.DeliveryEvent]
    fields: dict[str, object] = {}
    match command:
        case c.Complete():
            news, kind = True, e.DeliveryCompleted
            fields = {"superseded": command.superseded}
        case c.Defer():
            news, kind = stand != f"deferred: {command.reason}", e.DeliveryDeferred
            fields = {"reason": command.reason, "answer": command.answer}
        case c.Park():
            news, kind = not stand.startswith("parked"), e.DeliveryParked
            fields = {"reason": command.reason, "answer": command.answer}
        case c.Resume():
            failed = message.has_failed(command.cause)
            news, kind = failed or stand.startswith("parked"), e.DeliveryResumed
            fields = {"was": "failed" if failed else "parked"}
    if stand == "completed" or not news:
        return draft.done(command.stream, message.version, duplicate=True, message=command.stream)
    conversation = message.sent and message.sent.conversation
    where = {"conversation": conversation, "message": command.stream, "cause": command.cause}
    event = draft.add(kind, command.stream, {**where, **fields})
    return draft.done(command.stream, event.version, message=command.stream)
