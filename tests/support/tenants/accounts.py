"""Two accounts on one channel, keys of each, and what is theirs, for tests that nobody sees the other's."""

import itertools
from typing import Any, NamedTuple

from tests.support.ids import ACCOUNT, OTHER_ACCOUNT
from tests.support.service import Answer, Served, about, sent

Json = dict[str, Any]
NAMED = itertools.count()


async def make_key(service: Served, *scopes: str, **more: Any) -> tuple[str, str]:
    """A new key's id and text."""
    name = more.pop("name", f"key {next(NAMED)}")
    answer = await service.ask("POST", "/v1/keys", {"name": name, "scopes": list(scopes), **more})
    assert answer.status == 201, answer
    return answer.body["id"], answer.body["key"]


class Tenants(NamedTuple):
    """Two accounts on one channel, each with a chat, a message, and a fact that waits for a name."""

    chats: dict[str, str]
    messages: dict[str, str]

    def secrets(self, account: str) -> tuple[str, ...]:
        """What nobody else may read of an account."""
        return (account, self.chats[account], self.messages[account], f"of {account}")


async def make_tenants(service: Served) -> Tenants:
    """Connect the second account, and let something happen in each."""
    assert (await service.connect(account=OTHER_ACCOUNT)).status == 201
    for account in (ACCOUNT, OTHER_ACCOUNT):
        chat = f"chat-{account[-1]}"
        action = sent(f"of {account}", account_id=account, conversation_id=chat)
        assert (await service.act(action)).status == 200
        waits = about("message.deleted", "unknown", account_id=account, conversation_id=chat)
        assert (await service.act(waits)).status == 200
    head = await service.head()
    chats = {
        one["account_id"]: one["id"]
        for one in (await service.get("/v1/conversations", at_least=head))["items"]
    }
    found = (await service.get("/v1/events", type="message.sent", at_least=head))["items"]
    messages = {one["event"]["account"]: one["event"]["message"] for one in found}
    return Tenants(chats, messages)


async def signed_in(service: Served, key_id: str | None, method: str, path: str, **more: Any) -> Answer:
    """A request of a browser that gave this key, None for the admin key."""
    services = service.run.services
    name = f"chatledger_{services.ledger_id.replace('-', '')[:8]}"
    cookie = f"{name}={services.sessions.start(key_id)}"
    return await service.ask(
        method, path, key=None, headers={"Cookie": cookie, "Accept": "text/html"}, **more
    )
