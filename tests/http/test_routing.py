"""An action that names no account belongs where its conversation, message or customer is known."""

import asyncio
from typing import Any
from uuid import UUID

import pytest

from app.channels.unconnected import ACCOUNTS_SECONDS
from app.servers.servers import Servers
from tests.support.ids import ACCOUNT, CHANNEL, OTHER_ACCOUNT
from tests.support.service import Answer, Served, about, sent, serving, wrote

NOBODY = "52e591f7-c98f-4255-8495-827210138c99"


@pytest.fixture(scope="module")
async def several(service: Served) -> Served:
    """The channel is connected to two accounts; conv-a is the first's, conv-b the second's."""
    assert (await service.connect(account=OTHER_ACCOUNT)).status == 201
    for name, account in (("conv-a", ACCOUNT), ("conv-b", OTHER_ACCOUNT)):
        customer = {"id": f"u-{name}", "name": "Ann"}
        first = sent(f"{name}-1", conversation_id=name, account_id=account, sender=customer)
        assert (await service.act(first)).status == 200
    return service


async def account_of(service: Served, answer: Answer) -> str:
    """The account that the ledger has for the only action of an answer."""
    assert answer.status == 200, answer
    position = answer.body["results"][0]["position"]
    found = await service.get("/v1/events", after=position - 1, limit=1)
    return str(found["items"][0]["event"]["account"])


async def test_a_known_conversation_names_the_account(several: Served) -> None:
    for name, account in (("conv-a", ACCOUNT), ("conv-b", OTHER_ACCOUNT)):
        again = sent(f"{name}-2", conversation_id=name, sender={"id": f"u-{name}", "name": "Ann"})
        assert await account_of(several, await several.act(again)) == account
        edited = about("message.edited", f"{name}-2", message={"type": "text", "text": "New"})
        assert await account_of(several, await several.act(edited | {"conversation_id": name})) == account


async def test_our_id_of_a_message_names_the_account(several: Served) -> None:
    assert (
        await several.hook(wrote("of-a", conversation={"id": "chat-a", "client_id": "conv-a"}))
    ).status == 200
    (event,) = [one for one in await several.since(await several.head() - 1) if one["type"] == "message.sent"]
    read = about("message.read", "x") | {"id": event["message"], "message_id": None, "conversation_id": "new"}
    answer = await several.act({name: value for name, value in read.items() if value is not None})
    assert await account_of(several, answer) == ACCOUNT


async def test_the_customer_of_an_outgoing_message_names_the_account(several: Served) -> None:
    await several.get("/v1/conversations", at_least=await several.head())
    order: dict[str, Any] = {
        "conversation_id": "conv-c",
        "direction": "out",
        "sender": {"id": "shop", "name": "Shop", "user_id": "b07b07b0-0000-4000-8000-000000000001"},
        "receiver": {"id": "u-conv-b", "name": "Ann"},
    }
    assert await account_of(several, await several.act(sent("out-1", **order))) == OTHER_ACCOUNT


async def test_only_a_new_conversation_needs_the_account_or_a_default(several: Served) -> None:
    head = await several.head()
    new = await several.act(sent("new-1", conversation_id="conv-new"))
    assert (new.status, new.body["errors"][0]["path"]) == (400, "$.account_id")
    both = [sent("a-3", conversation_id="conv-a"), sent("new-1", conversation_id="conv-new")]
    refused = await several.act(both)
    assert (refused.status, refused.body["errors"][0]["path"]) == (400, "$[1].account_id")
    assert await several.head() == head
    named = [
        sent("new-1", conversation_id="conv-new", account_id=OTHER_ACCOUNT),
        sent("new-2", conversation_id="conv-new"),
    ]
    assert (await several.act(named)).status == 200
    chosen = {"default_account": OTHER_ACCOUNT}
    assert (await several.ask("PUT", "/v1/channels/acme", chosen)).status == 200
    newest = sent("newest-1", conversation_id="conv-newest")
    assert await account_of(several, await several.act(newest)) == OTHER_ACCOUNT
    assert await account_of(several, await several.act(sent("a-4", conversation_id="conv-a"))) == ACCOUNT
    assert (await several.ask("PUT", "/v1/channels/acme", {"default_account": None})).status == 200


async def test_a_conversation_of_several_accounts_is_not_guessed(several: Served) -> None:
    for account in (ACCOUNT, OTHER_ACCOUNT):
        first = sent(f"both-{account}", conversation_id="conv-both", account_id=account)
        assert (await several.act(first)).status == 200
    answer = await several.act(sent("both-3", conversation_id="conv-both"))
    assert (answer.status, answer.body["errors"][0]["path"]) == (400, "$.account_id")


async def test_an_account_that_is_none_is_refused_and_one_that_nobody_connected_is_kept(
    several: Served,
) -> None:
    head = await several.head()
    wrong = await several.act(sent("wrong", account_id="acme"))
    assert (wrong.status, wrong.body["errors"][0]["path"]) == (400, "$.account_id")
    assert await several.head() == head
    kept = sent("kept", conversation_id="conv-kept", account_id=NOBODY.upper())
    assert await account_of(several, await several.act(kept)) == NOBODY
    again = sent("kept-2", conversation_id="conv-kept")
    assert await account_of(several, await several.act(again)) == NOBODY
    await several.get("/v1/conversations", at_least=await several.head())
    status = await several.get("/v1/status")
    assert [(one["account_id"], one["deliveries"]) for one in status["unconnected"]] == [(NOBODY, 2)]


async def test_without_any_connection_the_account_must_be_named_or_the_default(service: Served) -> None:
    await service.register("lonely", channel_id=CHANNEL[:-1] + "0")
    lost = await service.act(sent("lost"), channel="lonely")
    assert lost.status == 409
    assert "default_account" in lost.body["detail"]
    assert (await service.ask("PUT", "/v1/channels/lonely", {"default_account": ACCOUNT})).status == 200
    assert await account_of(service, await service.act(sent("kept"), channel="lonely")) == ACCOUNT


async def test_so_much_is_kept_for_an_account_and_no_more(servers: Servers) -> None:
    changed = {"CHATLEDGER_UNCONNECTED_LIMIT": "10"}
    async with serving(servers, changed=changed) as service:
        await service.register()
        many = [service.act([sent(f"{n}-{m}", account_id=ACCOUNT) for m in range(2)]) for n in range(9)]
        answers = await asyncio.gather(*many)
        assert sorted(answer.status for answer in answers) == [200] * 5 + [429] * 4
        over = next(answer for answer in answers if answer.status == 429)
        assert int(over.headers["Retry-After"]) > 0
        assert "POST /v1/channels/acme/connections" in over.body["detail"]
        assert (await service.act(sent("other", account_id=OTHER_ACCOUNT))).status == 200
        assert (await service.connect()).status == 201
        assert (await service.act(sent("over", account_id=ACCOUNT))).status == 200


async def test_nothing_is_kept_for_an_account_that_has_waited_too_long(servers: Servers) -> None:
    changed = {"CHATLEDGER_UNCONNECTED_DAYS": "0", "CHATLEDGER_ROLES": "web,project,deliver"}
    async with serving(servers, changed=changed) as service:
        await service.register()
        assert (await service.act(sent("first", account_id=ACCOUNT))).status == 200
        async with asyncio.timeout(15):
            while not (await service.get("/v1/deliveries", state="parked"))["items"]:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        late = await service.act(sent("late", account_id=ACCOUNT))
        assert late.status == 409
        assert "POST /v1/channels/acme/connections" in late.body["detail"]


async def test_nothing_is_kept_where_the_operator_wants_nothing_kept(servers: Servers) -> None:
    async with serving(servers, changed={"CHATLEDGER_UNCONNECTED_LIMIT": "0"}) as service:
        await service.register()
        assert (await service.act(sent("first", account_id=ACCOUNT))).status == 409
        assert await service.head() == 1


async def longest_freeze(until: "asyncio.Task[Answer]") -> float:
    """The longest time for which nothing else could run, in seconds, until a request is answered."""
    loop, longest = asyncio.get_running_loop(), 0.0
    while not until.done():
        began = loop.time()
        await asyncio.sleep(0.005)
        longest = max(longest, loop.time() - began)
    return longest


async def test_a_messenger_that_makes_up_accounts_is_bounded_and_freezes_nobody(servers: Servers) -> None:
    """Facts about nothing make no delivery, and count all the same."""
    made_up = [str(UUID(int=n)) for n in range(1000)]
    async with serving(servers) as service:
        await service.register()
        for half in (made_up[:500], made_up[500:]):
            facts = [about("message.read", "nothing", account_id=account) for account in half]
            assert (await service.act(facts)).status == 200
        await asyncio.sleep(ACCOUNTS_SECONDS * 1.1)
        head = await service.head()
        more = await service.act(about("message.read", "nothing", account_id=str(UUID(int=1000))))
        assert (more.status, await service.head()) == (429, head)
        for half in (made_up[:500], made_up[500:]):
            messages = [sent(account, account_id=account) for account in half]
            assert (await service.act(messages)).status == 200
        nameless = [sent(n, conversation_id=f"new-{n}") for n in range(500)]
        asked = asyncio.create_task(service.act(nameless))
        assert await longest_freeze(asked) < 1
        assert (await asked).status == 400
        known = [sent(f"again-{n}", conversation_id=f"new-{n}") for n in range(499)]
        named = [sent("named", conversation_id="of-the-last", account_id=made_up[-1])]
        assert (await service.act(named)).status == 200
        last = await service.act([sent("again", conversation_id="of-the-last"), *known])
        assert (last.status, last.body["errors"][0]["path"]) == (400, "$[1].account_id")


async def listed(service: Served, **query: str) -> list[int]:
    """How much each list shows: conversations, events, waiting facts, deliveries."""
    paths = ("conversations", "events", "waiting", "deliveries")
    at_least = await service.head()
    return [len((await service.get(f"/v1/{one}", at_least=at_least, **query))["items"]) for one in paths]


async def test_what_a_messenger_posts_for_an_account_of_others_is_not_shown_as_the_accounts(
    servers: Servers,
) -> None:
    """Any channel's messenger may name any account, before there is a connection."""
    async with serving(servers) as service:
        await service.register()
        await service.connect()
        await service.register("forger", channel_id=CHANNEL[:-1] + "0")
        right = await listed(service, account_id=ACCOUNT)
        forged = [sent("forged", account_id=ACCOUNT), about("message.read", "none", account_id=ACCOUNT)]
        assert (await service.act(forged, channel="forger")).status == 200
        assert await listed(service, account_id=ACCOUNT) == right
        assert await listed(service, account_id=ACCOUNT, channel="acme") == right
        assert await listed(service, account_id=ACCOUNT, channel="forger") == [1, 3, 1, 1]
        (waiting,) = (await service.get("/v1/status"))["unconnected"]
        assert (waiting["channel"], waiting["account_id"]) == ("forger", ACCOUNT)


async def test_what_waits_for_its_first_connection_is_the_accounts_from_then_on(servers: Servers) -> None:
    async with serving(servers) as service:
        await service.register()
        early = [sent("early", account_id=ACCOUNT), about("message.read", "none", account_id=ACCOUNT)]
        assert (await service.act(early)).status == 200
        assert await listed(service, account_id=ACCOUNT) == [0, 0, 0, 0]
        assert await listed(service, account_id=ACCOUNT, channel="acme") == [1, 3, 1, 1]
        assert (await service.connect()).status == 201
        assert await listed(service, account_id=ACCOUNT) == [1, 4, 1, 1]
        assert (await service.ask("DELETE", f"/v1/channels/acme/connections/{ACCOUNT}")).status == 204
        assert (await listed(service, account_id=ACCOUNT))[0] == 1


def statuses(answer: Answer) -> list[int]:
    """What became of each action of an array."""
    return [one.get("error", {}).get("status", 200) for one in answer.body["results"]]


async def test_an_account_without_room_takes_nothing_from_the_others_in_its_body(servers: Servers) -> None:
    async with serving(servers, changed={"CHATLEDGER_UNCONNECTED_LIMIT": "1"}) as service:
        await service.register()
        await service.connect()
        assert (await service.act(sent("full", account_id=OTHER_ACCOUNT))).status == 200
        mixed = [
            sent("a", account_id=ACCOUNT),
            sent("b", account_id=OTHER_ACCOUNT),
            sent("c", account_id=NOBODY),
            sent("d", account_id=ACCOUNT, conversation_id="conv-2"),
        ]
        answer = await service.act(mixed)
        assert (answer.status, statuses(answer)) == (200, [200, 429, 200, 200])
        assert OTHER_ACCOUNT in answer.body["results"][1]["error"]["detail"]
        head = await service.head()
        assert int(answer.headers["Ledger-Position"]) == head
        alone = [sent("e", account_id=OTHER_ACCOUNT), sent("f", account_id=NOBODY)]
        assert (await service.act(alone)).status == 429  # nothing of it is stored, so it can be sent again
        assert await service.head() == head


async def test_an_account_over_its_rate_takes_nothing_from_the_others_in_its_body(servers: Servers) -> None:
    async with serving(servers, changed={"CHATLEDGER_ACCOUNT_RATE": "1"}) as service:
        await service.register()
        for account in (ACCOUNT, OTHER_ACCOUNT):
            await service.connect(account=account)
        fast = [sent(n, account_id=ACCOUNT) for n in range(50)]
        assert (await service.act(fast)).status == 200
        mixed = [sent("a", account_id=ACCOUNT), sent("b", account_id=OTHER_ACCOUNT)]
        answer = await service.act(mixed)
        assert (answer.status, statuses(answer)) == (200, [429, 200])


async def test_all_accounts_of_a_channel_have_room_for_ten_times_as_much_together(servers: Servers) -> None:
    async with serving(servers, changed={"CHATLEDGER_UNCONNECTED_LIMIT": "2"}) as service:
        await service.register()
        await service.register("other", channel_id=CHANNEL[:-1] + "0")
        made_up = [str(UUID(int=n)) for n in range(12)]
        first = [sent(f"{account}-{n}", account_id=account) for account in made_up[:6] for n in range(2)]
        assert (await service.act(first)).status == 200
        more = [sent(f"{account}-{n}", account_id=account) for account in made_up[6:] for n in range(2)]
        answer = await service.act(more)
        assert statuses(answer) == [200] * 8 + [429] * 4
        assert "20 deliveries wait" in answer.body["results"][-1]["error"]["detail"]
        await asyncio.sleep(ACCOUNTS_SECONDS * 1.1)
        over = await service.act(sent("over", account_id=NOBODY))
        assert (over.status, over.headers["Retry-After"]) == (429, "60")
        assert (await service.act(sent("other", account_id=NOBODY), channel="other")).status == 200
