"""The accounts of Kommo that we know of, and the contacts that their chats belong to."""

from collections import defaultdict
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from app import clock
from app.channels import attempts
from app.kommo.crm.installs import Known
from app.kommo.crm.tokens import Consent
from app.ledger.writer import Recorded
from app.operations import conversations, crm
from app.operations.channels import ConnectionNeeded
from app.operations.services import Services, record
from domain import commands as c
from domain.ids import OPERATOR

NO_CONSENT = "its administrator has not let us into its CRM"


class ChannelShown(Struct, frozen=True, omit_defaults=True):
    """A channel and whether it is connected to the account; `error` is why the last attempt failed."""

    name: str
    connected: bool
    error: str | None = None


class StepShown(Struct, frozen=True, omit_defaults=True):
    """A step of the account's installation: done, or why it failed, or neither before it was tried."""

    step: str
    done_at: str | None = None
    error: str | None = None


class AccountShown(Struct, frozen=True, kw_only=True):
    """An account. `state` says whether its administrator let us into its CRM, `advice` what to do if not.

    What Kommo says of the account is read once a day.
    """

    account_id: str
    crm_id: int | None = None
    subdomain: str | None = None
    crm_url: str | None = None
    name: str | None = None
    time_zone: str | None = None
    currency: str | None = None
    country: str | None = None
    language: str | None = None
    plan: str | None = None
    state: Literal["authorized", "withdrawn", "none"] = "none"
    advice: str | None = None
    channels: list[ChannelShown] = []
    steps: list[StepShown] = []


class LinkShown(Struct, frozen=True):
    """A conversation, its chat in Kommo and the contact it belongs to."""

    id: str
    chat_id: str
    contact_id: int


async def list_accounts(services: Services) -> list[AccountShown]:
    """The accounts that are configured, connected to a channel, or ever consented; by account id."""
    consents = {one.account_id: one for one in await services.tokens.all()}
    configured = _configured(services)
    known, channels = await services.installs.accounts(), await _channels(services)
    steps: defaultdict[str, list[StepShown]] = defaultdict(list)
    for step in await services.installs.steps():
        steps[step.account_id].append(StepShown(step.step, step.done_at, step.error))
    found = []
    for account in sorted({*consents, *configured, *channels}):
        shown = _account(account, consents.get(account), known.get(account), configured.get(account))
        found.append(replace(shown, channels=channels.get(account, []), steps=steps[account]))
    return found


async def installed(services: Services, account: str) -> AccountShown:
    """One account as the list shows it, without the channels, which may be known later than the steps."""
    consent, known = await services.tokens.of(account), await services.installs.accounts(account)
    shown = _account(account, consent, known.get(account), _configured(services).get(account))
    steps = [
        StepShown(each.step, each.done_at, each.error) for each in await services.installs.steps(account)
    ]
    return replace(shown, steps=steps)


def _configured(services: Services) -> dict[str, str]:
    return {one.account_id.lower(): one.crm_url for one in services.setup.accounts}


def _account(
    account: str, consent: Consent | None, known: Known | None, configured: str | None
) -> AccountShown:
    facts = known or Known(account_id=account, problem=None)
    shown = AccountShown(
        account_id=account,
        crm_url=configured,
        subdomain=facts.subdomain,
        name=facts.name,
        time_zone=facts.time_zone,
        currency=facts.currency,
        country=facts.country,
        language=facts.language,
        plan=facts.plan,
    )
    if consent is None:
        return replace(shown, advice=_advice(account, NO_CONSENT))
    advice = _advice(account, consent.reason) if consent.state == "withdrawn" else facts.problem
    return replace(shown, crm_id=consent.crm_id, crm_url=consent.crm_url, state=consent.state, advice=advice)


async def _channels(services: Services) -> dict[str, list[ChannelShown]]:
    """The channels that are connected to each account, were so, or could not be."""
    problems = await services.pool.fetch(attempts.Problem, attempts.PROBLEMS, {})
    errors = {(one.channel, one.account_id): one.problem for one in problems if one.account_id}
    found: defaultdict[str, dict[str, ChannelShown]] = defaultdict(dict)
    for name, channel in (await services.channels.all()).items():
        for account, connection in channel.connections.items():
            error = errors.pop((name, account), None)
            found[account][name] = ChannelShown(name, connection.connected, error)
    for (name, account), error in errors.items():
        found[account or ""][name] = ChannelShown(name, False, error)
    return {account: [one for _, one in sorted(each.items())] for account, each in found.items()}


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
