"""The rules for facts from Kommo's CRM: contacts, talks, incoming leads, templates' reviews, and consent."""

from typing import TypeAlias

from domain import commands as c
from domain import events as e
from domain.conversations import root
from domain.draft import Decision, Draft
from domain.ids import Scope
from domain.state import Connection, case_key

AboutAccount: TypeAlias = c.Authorize | c.Withdraw | c.Move | c.Source | c.Subscribe
LEADS: dict[str, type[e.LeadEvent]] = {
    "received": e.LeadReceived,
    "accepted": e.LeadAccepted,
    "declined": e.LeadDeclined,
    "linked": e.LeadLinked,
}


def link(draft: Draft, command: c.LinkContact) -> Decision | None:
    """Link a chat to its one contact; another contact is a new event. None if the conversation is unknown."""
    conversation = root(draft, command.stream)
    chat = draft.chat(conversation)
    if chat is None:
        return None
    event = _link(draft, command.scope, conversation, command.contact_id, command.lead_id)
    version = event.version if event else chat.linked
    return draft.done(conversation, version, duplicate=event is None)


def record_case(draft: Draft, command: c.Talk | c.Lead) -> Decision:
    """Record the state of a talk or an incoming lead; the same state again is a repeated webhook."""
    stream, fields = command.stream, command.fields
    kind = _kind(command)
    before = draft.case(stream)
    if before and (version := before.seen.get(case_key(kind, fields))):
        return draft.done(stream, version, duplicate=True)
    found = next(((scope, name) for scope, name in command.chats if draft.chat(name)), None)
    conversation = root(draft, found[1]) if found else None
    scope = found[0] if found else command.scope
    event = draft.add(kind, stream, {"conversation": conversation, **fields}, scope=scope)
    contact_id = fields.get("contact_id")
    latest = (
        not isinstance(event, e.TalkAdded | e.TalkUpdated) or not before or event.changed >= before.changed
    )
    declined = isinstance(event, e.LeadDeclined)  # Kommo deletes its contact too.
    if conversation and isinstance(contact_id, int) and latest and not declined:
        _link(draft, scope, conversation, contact_id, _lead_id(event))
    return draft.done(stream, event.version)


def review(draft: Draft, command: c.Review) -> Decision:
    """Record the reviews of a template; the same reviews again are a repeated webhook."""
    stream, fields = command.stream, command.fields
    before = draft.case(stream)
    if before and (version := before.seen.get(case_key(e.TemplateReview, fields))):
        return draft.done(stream, version, duplicate=True)
    return draft.done(stream, draft.add(e.TemplateReview, stream, fields).version)


def account(draft: Draft, command: AboutAccount) -> Decision:
    """Record that we may use an account's CRM or no longer, or what is made in it; nothing if it is so."""
    stream = command.stream
    before = draft.connection(stream) or Connection(0)
    if before.version and before.last[:-2] == command.id[:-2]:
        return draft.done(
            stream, before.version
        )  # It was stored, but the connection broke before we learned that.
    news: bool
    kind: type[e.AccountEvent | e.InstallEvent]
    fields: dict[str, object] = {}
    match command:
        case c.Authorize():
            news, kind, fields = True, e.AccountAuthorized, {"crm_url": command.crm_url}
        case c.Withdraw():
            news, kind = before.connected, e.AccountWithdrawn
            fields = {"reason": command.reason, "answer": command.answer}
        case c.Move():
            news, kind = before.connected and before.title != command.crm_url, e.AccountMoved
            fields = {"crm_url": command.crm_url}
        case c.Source():
            news, kind = before.connected and before.source_id != command.source_id, e.SourceMade
            fields = {"source_id": command.source_id}
        case c.Subscribe():
            news, kind = before.connected and not before.is_subscribed, e.AccountSubscribed
    if not news:
        return draft.done(stream, before.version, duplicate=True)
    return draft.done(stream, draft.add(kind, stream, fields).version)


def _kind(command: c.Talk | c.Lead) -> type[e.TalkEvent | e.LeadEvent]:
    if isinstance(command, c.Lead):
        return LEADS[command.became]
    return e.TalkAdded if command.added else e.TalkUpdated


def _lead_id(event: e.TalkEvent | e.LeadEvent) -> int | None:
    if isinstance(event, e.TalkAdded | e.TalkUpdated):
        return event.entity_id if event.entity_type == "lead" else None
    return event.lead_id


def _link(
    draft: Draft, scope: Scope, conversation: str, contact_id: int, lead_id: int | None
) -> e.ConversationLinked | None:
    """Record the contact, and the lead if there is one, unless that is what is recorded."""
    chat = draft.chat(conversation)
    same = chat is not None and chat.contact_id == contact_id
    if chat is None or (same and lead_id in (None, chat.lead_id)):
        return None
    fields = {"conversation": conversation, "contact_id": contact_id, "lead_id": lead_id}
    return draft.add(e.ConversationLinked, conversation, fields, scope=scope)
