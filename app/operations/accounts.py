"""The accounts of Kommo that we know of, and the contacts that their chats belong to."""

from typing import Literal

from msgspec import Struct

from app import clock
from app.ledger.writer import Recorded
from app.operations import conversations, crm
from app.operations.channels import ConnectionNeeded
from app.operations.services import Services, record
from domain import commands as c
from domain.ids import OPERATOR

NO_CONSENT = "its administrator has not let us into its CRM"


class AccountShown(Struct, frozen=True):
    """An account. `state` says whether its administrator let us into its CRM, `advice` what to do if not."""

    account_id: str
    crm_id: int | None
    crm_url: str | None
    state: Literal["authorized", "withdrawn", "none"]
    advice: str | None


class LinkShown(Struct, frozen=True):
    """A conversation, its chat in Kommo and the contact it belongs to."""

    id: str
    chat_id: str
    contact_id: int


async def list_accounts(services: Services) -> list[AccountShown]:
    """The accounts that are configured, connected to a channel, or ever consented; by account id."""
    found: dict[str, AccountShown] = {}
    for channel in (await services.channels.all()).values():
        for account in channel.connections:
            found[account] = AccountShown(account, None, None, "none", _advice(account, NO_CONSENT))
    for configured in services.setup.accounts:
        account = configured.account_id.lower()
        found[account] = AccountShown(account, None, configured.crm_url, "none", _advice(account, NO_CONSENT))
    for consent in await services.tokens.all():
        account = consent.account_id
        advice = _advice(account, consent.reason) if consent.state == "withdrawn" else None
        found[account] = AccountShown(account, consent.crm_id, consent.crm_url, consent.state, advice)
    return [found[account] for account in sorted(found)]


async def link_contact(services: Services, conversation: str, contact_id: int) -> tuple[LinkShown, Recorded]:
    """Link a conversation's chat to a contact: at Kommo, then in the ledger.

    Raises UnknownConversation, ConnectionNeeded, CustomerUnknown, LedgerBusy, and what `crm.call` raises.
    """
    chat = await conversations.known(services, conversation)
    channel = await services.channels.channel(chat.channel)
    connection = channel.connections.get(chat.account_id or "") if channel else None
    if channel is None or connection is None:
        raise ConnectionNeeded
    chat_id = chat.chat_id
    if chat_id is None:  # No hook has named the chat yet: creating it again makes Kommo name it.
        customer = await conversations.customer_of(services, chat.id)
        name = chat.conversation_id or ""
        chat_id, _ = await conversations.begin(services, channel, connection, name, customer)
    stamp = clock.stamp(connection.scope, chat.id, OPERATOR, now=clock.now_ms())
    command = c.LinkContact(**stamp, stream=chat.id, contact_id=contact_id)
    link = {"contact_id": contact_id, "chat_id": chat_id, "request_id": "0"}
    await crm.call(services, connection.scope.account, "POST", "contacts/chats", [link])
    recorded = await record(services, command)
    return LinkShown(chat.id, chat_id, contact_id), recorded


def _advice(account: str, reason: str) -> str:
    return f"{reason}: open the address that POST /v1/accounts/{account}/authorize gives"
