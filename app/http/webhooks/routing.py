"""The scope of each action: of the account that it names, else of the one that its conversation is in.

An action that names no account needs none where there is nothing to choose. On a channel with several
accounts the ledger has the answer: the account in which the conversation, our id of the message, or the
customer is known. A conversation that is new takes the channel's `default_account`.

An account need not be connected: what its customers write meanwhile is kept (`unconnected.py`).
"""

from collections.abc import Iterable, Mapping, Sequence

import msgspec
from msgspec import Struct

from app.channels.directory import Channel
from app.database.packed import unpack
from app.limits import is_uuid
from app.messengers.adapter import Received
from app.messengers.contract import Action, Reaction, Sent, Status
from app.operations.services import Services
from app.problems import Fault, ProblemError
from app.views.messages import customer_in
from domain import ids
from domain.events import Party
from domain.ids import MESSENGER, Scope

NAME_ONE = "name the account: the channel has several, and none of them has this conversation yet"
AMBIGUOUS = "name the account: several accounts of the channel have this conversation"
NOT_AN_ACCOUNT = "give the account's amojo_id: a UUID like 52e591f7-c98f-4255-8495-827210138c81"
NO_ACCOUNT = (
    "the channel is not connected to any account yet: name the account (account_id), and it is kept until"
    " POST /v1/channels/{name}/connections; or give the channel a default_account"
)

# The first event of a stream says where the stream belongs.
FIRSTS = """
SELECT originator_id::text AS stream, state FROM ledger.stored_events
WHERE originator_id = ANY (%(streams)s::uuid[]) AND originator_version = 1
"""
# Chosen: some 3 ms of Python, and a small query. A channel may have a thousand accounts, a body 500 actions.
STREAMS_AT_ONCE = 2000
# Chosen: a customer is looked for in so many of a channel's conversations, the latest active first. There is
# no index of customers, and each conversation costs one look.
CUSTOMERS = """
SELECT c.account_id, m.outgoing, e.state AS event FROM (SELECT id, account_id FROM conversations
    WHERE channel = %(channel)s::text ORDER BY position DESC, id DESC LIMIT 1000) AS c
CROSS JOIN LATERAL (SELECT outgoing, position FROM messages
  WHERE conversation = c.id ORDER BY position DESC LIMIT 1) AS m
JOIN ledger.stored_events AS e ON e.notification_id = m.position
"""


class First(Struct):
    """The first event of a stream, as it is stored."""

    stream: str
    state: bytes


class Customer(Struct):
    """The latest message of a conversation, as far as it shows the customer."""

    account_id: str | None
    outgoing: bool
    event: bytes


class Head(Struct):
    """Where an event belongs."""

    channel: str
    account: str | None = None


_head = msgspec.json.Decoder(Head).decode


def bad(path: str, message: str) -> ProblemError:
    """A body that is refused whole, with the place of what is wrong."""
    return ProblemError(
        400, f"{path}: {message}; nothing of this body is stored", errors=[Fault(path, message)]
    )


async def scopes(services: Services, channel: Channel, received: Received) -> list[Scope]:
    """The scope of each action; raises ProblemError (400, 409), ViewsMissing, psycopg.OperationalError."""
    actions, only = received.actions, _only(channel)
    accounts: list[str | None] = []
    for index, action in enumerate(actions):
        account = action.account_id.lower() if action.account_id else only
        if account is not None and account not in channel.connections and not is_uuid(account):
            raise bad(f"$[{index}].account_id" if received.array else "$.account_id", NOT_AN_ACCOUNT)
        accounts.append(account)
    if None in accounts:
        await _complete(services, channel, received, accounts)
    return [scope_in(channel, account or "") for account in accounts]


def scope_in(channel: Channel, account: str) -> Scope:
    """The scope of a channel's account, whether or not it is connected."""
    connection = channel.connections.get(account)
    return connection.scope if connection else ids.scope_of(channel.name, channel.channel_id, account)


def _only(channel: Channel) -> str | None:
    """The account of a channel that has just one, if that is connected and no other one is the default."""
    if len(channel.connections) != 1:
        return None
    ((account, connection),) = channel.connections.items()
    return account if connection.connected and channel.options.default_account in (None, account) else None


async def _complete(
    services: Services, channel: Channel, received: Received, accounts: list[str | None]
) -> None:
    """Find the account of each action that names none."""
    actions = received.actions
    candidates = await _candidates(services, channel)
    search = _Search(services, channel, candidates)
    await search.read(action for action, account in zip(actions, accounts, strict=True) if account is None)
    for index, (action, account) in enumerate(zip(actions, accounts, strict=True)):
        path = f"$[{index}].account_id" if received.array else "$.account_id"
        if account is None:
            account = await search.account(action, path)
            accounts[index] = account
        search.named.setdefault(action.conversation_id, set()).add(account)


async def _candidates(services: Services, channel: Channel) -> list[str]:
    """The accounts that the channel has, had, is to have by the file, or keeps actions for."""
    in_file = [
        wish.account_id
        for one in services.setup.channels
        if one.name == channel.name
        for wish in one.connections
    ]
    kept = await services.unconnected.accounts(channel.name)
    return list(dict.fromkeys((*channel.connections, *in_file, *kept)))


class _Search:
    """What the ledger says about the actions of one body; `named` are the accounts of its conversations."""

    def __init__(self, services: Services, channel: Channel, candidates: Sequence[str]) -> None:
        self.named: dict[str, set[str]] = {}
        self._services = services
        self._channel = channel
        self._candidates = candidates
        self._customers: dict[str, set[str]] | None = None
        self._messages: dict[str, str] = {}

    async def read(self, actions: Iterable[Action]) -> None:
        """Ask the ledger for all actions: once, unless there are many accounts."""
        conversations, messages = set(), []
        for action in actions:
            conversations.add(action.conversation_id)
            if isinstance(action, Status | Reaction) and action.id:
                messages.append(action.id)
        step = max(1, STREAMS_AT_ONCE // max(1, len(conversations)))
        for start in range(0, len(self._candidates) or 1, step):
            wanted: dict[str, tuple[str, str]] = {}
            for account in self._candidates[start : start + step]:
                scope = scope_in(self._channel, account)
                for name in conversations:
                    wanted[ids.conversation_id(scope, MESSENGER, name)] = name, account
            await self._read(wanted, messages)
            messages = []

    async def _read(self, wanted: Mapping[str, tuple[str, str]], messages: Sequence[str]) -> None:
        """Look up the streams of conversations, each with its name and account, and of messages."""
        rows = await self._services.pool.fetch(First, FIRSTS, {"streams": [*wanted, *messages]})
        for row in rows:
            if row.stream in wanted:
                conversation, account = wanted[row.stream]
                self.named.setdefault(conversation, set()).add(account)
            elif (head := _head(unpack(row.state))).channel == self._channel.name and head.account:
                self._messages[row.stream] = head.account

    async def account(self, action: Action, path: str) -> str:
        """The one account that an action without one belongs to; raises ProblemError (400, 409)."""
        found = self.named.get(action.conversation_id, set())
        if not found and isinstance(action, Status | Reaction) and action.id in self._messages:
            found = {self._messages[action.id]}
        if not found and isinstance(action, Sent) and action.direction == "out" and action.receiver:
            found = await self._of_customer(action.receiver.id)
        if len(found) > 1:
            raise bad(path, AMBIGUOUS)
        if found:
            return next(iter(found))
        return self._of_new(path)

    def _of_new(self, path: str) -> str:
        """The account of a new conversation."""
        if default := self._channel.options.default_account:
            return default
        for accounts in ([one.scope.account for one in self._channel.accounts], self._candidates):
            if len(accounts) == 1:
                return accounts[0]
        if not self._candidates:
            raise ProblemError(409, NO_ACCOUNT)
        raise bad(path, NAME_ONE)

    async def _of_customer(self, customer: str) -> set[str]:
        """The accounts in which a customer is known, by the latest conversations of the channel."""
        if self._customers is None:
            self._customers = {}
            values = {"channel": self._channel.name}
            for row in await self._services.pool.fetch(Customer, CUSTOMERS, values):
                party = customer_in(row.event, outgoing=row.outgoing) or Party()
                for name in {party.client_id if row.outgoing else party.id, party.id} - {None}:
                    self._customers.setdefault(str(name), set()).add(row.account_id or "")
        return self._customers.get(customer, set())
