"""A chat is created in Kommo before anybody writes in it, under the names that both sides use for it."""

from functools import partial

import msgspec
from msgspec import Struct

from app import clock
from app.channels.directory import Channel, Connection
from app.config.file import Uuid
from app.http_client import Unreached
from app.kommo.chats.signature import Credentials
from app.ledger.writer import Recorded
from app.messengers import checks
from app.messengers.checks import ActionRefused
from app.messengers.contract import Name, Source, Url, Words
from app.operations import channels
from app.operations.errors import InvalidInput, KommoFailed, NotFound, NotYet, StateConflict
from app.operations.services import Services, record, views_reach
from app.views.conversations import Conversation, get_conversation, list_conversations
from app.views.events import Filter, list_events
from app.views.messages import customer_in
from domain import commands as c
from domain import events as e
from domain import ids
from domain.ids import KOMMO, MESSENGER, OPERATOR

# The latest message decides; one of the customer's own counts before one that was sent to the customer.
CUSTOMER = """
SELECT m.outgoing, m.sent_by, e.state AS event FROM (SELECT * FROM (
  SELECT outgoing, sent_by, position FROM messages WHERE conversation = %(id)s::uuid
  ORDER BY position DESC LIMIT 50) AS latest ORDER BY outgoing, sent_by = 'kommo', position DESC LIMIT 1) AS m
JOIN ledger.stored_events AS e ON e.notification_id = m.position
"""


class UnknownConversation(NotFound):
    """No conversation has this id."""

    MESSAGE = "no conversation has this id"


class CustomerUnknown(StateConflict):
    """Nobody has told the messenger's id of the customer."""

    MESSAGE = (
        "the messenger's name of the customer is not known, for he has not written yet: give it as receiver, "
        "with id and name, or create the conversation with POST /v1/conversations"
    )


class Customer(Struct, frozen=True):
    """A customer, as the messenger calls him; addresses must be downloadable by Kommo."""

    id: Name
    name: Words
    phone: Words | None = None
    email: Words | None = None
    avatar: Url | None = None
    profile_link: Url | None = None


class NewConversation(Struct, frozen=True):
    """A chat to create in Kommo before anybody writes, for example to link it to a contact."""

    channel: Name
    account_id: Uuid
    conversation_id: Name
    user: Customer
    source: Source | None = None


class _MessageRow(Struct):
    outgoing: bool
    sent_by: str
    event: bytes


async def create(services: Services, wanted: NewConversation) -> tuple[Conversation, Recorded]:
    """Create a chat, unless it is there; returns it as the views have it.

    Raises InvalidInput, UnknownChannel, NotConnected, KommoFailed, NotYet.
    """
    _check(wanted)
    channel = await channels.named(services, wanted.channel)
    connection = channels.connected(channel, wanted.account_id.lower())
    customer = msgspec.convert(wanted.user, e.Party, from_attributes=True)
    source = wanted.source.external_id if wanted.source else None
    chat_id, recorded = await begin(services, channel, connection, wanted.conversation_id, customer, source)
    await views_reach(services, max(recorded.position or 0, recorded.last or 0))
    return await _found(services, connection, wanted.conversation_id, chat_id), recorded


async def begin(
    services: Services,
    channel: Channel,
    connection: Connection,
    conversation_id: str,
    customer: e.Party,
    source: str | None = None,
    *,
    by: str = OPERATOR,
    patience_seconds: float | None = None,
) -> tuple[str, Recorded]:
    """Kommo's id of a conversation's chat, created if there is none, and the record of both names.

    `customer` is as the messenger calls them. With `patience_seconds` the call gives way to live ones. Raises
    KommoFailed, LedgerBusy.
    """
    scope = connection.scope
    credentials = Credentials(channel.channel_id, channel.secrets.kommo)
    try:
        answer = await services.kommo.new_chat(
            credentials, scope.scope_id, conversation_id, customer, source, patience_seconds=patience_seconds
        )
    except Unreached as error:
        raise KommoFailed(f"Kommo could not be reached ({error.reason}); nothing is recorded") from None
    body = answer.json()
    chat_id, user = body.get("id"), body.get("user")
    if answer.html or answer.status != 200 or not isinstance(chat_id, str) or not chat_id:
        raise KommoFailed(f"Kommo answered HTTP {answer.status}; nothing is recorded", answer)
    user_id = user.get("id") if isinstance(user, dict) else None
    own = ids.conversation_id(scope, MESSENGER, conversation_id)
    theirs = ids.conversation_id(scope, KOMMO, chat_id)
    command = c.Begin(
        **clock.stamp(scope, own, by, now=clock.now_ms()),
        ends=(
            c.End("messenger", own, e.Ends(conversation_id=conversation_id)),
            c.End("kommo", theirs, e.Ends(chat_id=chat_id)),
        ),
        receiver=msgspec.structs.replace(customer, ref_id=user_id if isinstance(user_id, str) else None),
    )
    return chat_id, await record(services, command)


async def known(services: Services, conversation: str) -> Conversation:
    """The conversation of an id, also of one that was merged into another; raises UnknownConversation."""
    found = await get_conversation(services.pool, conversation)
    if found is None:
        raise UnknownConversation
    return found


async def customer_of(services: Services, conversation: str) -> e.Party:
    """The customer as the messenger calls them; raises CustomerUnknown."""
    for row in await services.pool.fetch(_MessageRow, CUSTOMER, {"id": conversation}):
        party = customer_in(row.event, outgoing=row.outgoing) or e.Party()
        if customer := _by_messenger(party, is_kommos=row.sent_by == "kommo"):
            return customer
    only = Filter(type="conversation.started", conversation=conversation)
    for stored in (await list_events(services.pool, only=only)).items:
        try:
            event = e.decode(bytes(stored.event))
        except (ValueError, RecursionError):
            continue  # It is damaged, and parked for the views.
        if isinstance(event, e.ConversationStarted) and event.receiver:
            customer = _by_messenger(event.receiver, is_kommos=event.side == "kommo")
            if customer:
                return customer
    raise CustomerUnknown


def _by_messenger(party: e.Party, *, is_kommos: bool) -> e.Party | None:
    """The same party by the messenger's id alone: Kommo writes its own id beside the messenger's."""
    id_ = party.client_id if is_kommos else party.id
    return e.Party(id=id_, name=party.name, phone=party.phone) if id_ else None


def _check(wanted: NewConversation) -> None:
    """Check what types cannot express; raises InvalidInput."""
    try:
        checks.refuse_nul(msgspec.to_builtins(wanted), "$")
        checks.check_name(wanted.conversation_id, "$.conversation_id")
        checks.check_name(wanted.user.id, "$.user.id")
    except ActionRefused as error:
        raise InvalidInput.at(error.path, error.message) from None


async def _found(
    services: Services, connection: Connection, conversation_id: str, chat_id: str
) -> Conversation:
    """The conversation by either name: one that was merged goes by the first that each side gave."""
    scope = connection.scope
    list_one = partial(
        list_conversations, services.pool, channel=scope.channel, account_id=scope.account, limit=1
    )
    page = await list_one(conversation_id=conversation_id)
    if not page.items:
        page = await list_one(chat_id=chat_id)
    if page.items:
        return page.items[0]
    raise NotYet("the views do not show the conversation yet: ask again")
