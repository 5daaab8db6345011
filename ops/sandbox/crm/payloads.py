"""The payloads of talks, incoming leads and messages in the CRM's answers and webhooks."""

from ops.sandbox.config import CrmAccount
from ops.sandbox.state.chats import Message, Person
from ops.sandbox.state.crm import Incoming, Talk

LEAD_ELEMENT = 2  # What the CRM's older fields call a lead.


def account_head(account: CrmAccount) -> dict[str, object]:
    """The head of a webhook: the account that sends it."""
    return {
        "subdomain": account.subdomain,
        "id": account.id,
        "_links": {"self": f"https://{account.subdomain}.kommo.com"},
    }


def talk_fields(talk: Talk) -> dict[str, object]:
    """The fields of a talk that API and webhook share (§4.4)."""
    return {
        "talk_id": talk.id,
        "created_at": talk.created_at,
        "updated_at": talk.updated_at,
        "rate": talk.rate,
        "contact_id": talk.contact_id,
        "chat_id": talk.chat_id,
        "entity_id": talk.entity_id or None,
        "entity_type": "lead" if talk.entity_id else None,
        "is_in_work": talk.is_in_work,
        "is_read": talk.is_read,
        "origin": talk.origin,
    }


def talk_hook(account: CrmAccount, talk: Talk, action: str) -> dict[str, object]:
    """`talk[add|update][0]…`."""
    return {"account": account_head(account), "talk": {action: [talk_fields(talk)]}}


def message_hook(account: CrmAccount, talk: Talk, message: Message, client: Person) -> dict[str, object]:
    """`message[add][0]…` of an incoming message; `entity_id` is missing until there is a lead."""
    said = message.message
    shown: dict[str, object] = {
        "id": message.id,
        "chat_id": message.chat_id,
        "talk_id": talk.id,
        "contact_id": talk.contact_id,
        "text": said.get("text", ""),
        "created_at": message.timestamp,
    }
    if talk.entity_id:
        shown |= {
            "element_type": LEAD_ELEMENT,
            "entity_type": "lead",
            "element_id": talk.entity_id,
            "entity_id": talk.entity_id,
        }
    shown |= {
        "type": "incoming",
        "message_type": said["type"],
        "author": {"id": client.id, "type": "external", "name": client.name},
        "origin": talk.origin,
    }
    if client.avatar:
        shown["author"] = {
            "id": client.id,
            "type": "external",
            "name": client.name,
            "avatar_url": client.avatar,
        }
    if media := said.get("media"):
        shown["attachment"] = {"type": said["type"], "link": media, "file_name": said.get("file_name", "")}
    return {"account": account_head(account), "message": {"add": [shown]}}


def metadata(incoming: Incoming, client: Person | None, message: Message | None) -> dict[str, object]:
    """The part of an incoming lead that describes its first message."""
    return {
        "from": client.name if client else "",
        "to": incoming.source_external_id,
        "received_at": incoming.created_at,
        "service": "chats",
        "client": {
            "name": client.name if client else "",
            "avatar": (client.avatar or None) if client else None,
        },
        "origin": {"chat_id": incoming.chat_id, "ref": None, "visitor_uid": None},
        "last_message_text": message.message.get("text") if message else None,
        "source_name": incoming.source_external_id,
    }


def incoming_hook(
    account: CrmAccount, incoming: Incoming, client: Person | None, message: Message | None, action: str
) -> dict[str, object]:
    """`unsorted[add|update|delete][0]…`; a delete states the outcome."""
    shown: dict[str, object] = {
        "uid": incoming.id,
        "source_uid": incoming.chat_id,
        "source_name": incoming.source_external_id,
        "category": "chats",
        "created_at": incoming.created_at,
        "pipeline_id": incoming.pipeline_id,
        "account_id": account.id,
        "metadata": metadata(incoming, client, message),
        "_embedded": {"contacts": [{"id": incoming.contact_id}]},
    }
    if action == "delete":
        result: dict[str, object] = {"contacts": [incoming.contact_id]}
        if incoming.lead_id:
            result["leads"] = [incoming.lead_id]
        shown |= {"action": incoming.action, f"{incoming.action}_result": result}
        if incoming.user_id:
            shown["modified_user_id"] = incoming.user_id
    return {"account": account_head(account), "unsorted": {action: [shown]}}
