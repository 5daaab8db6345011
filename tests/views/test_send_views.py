"""How the views and the console show what an operator sent, what was written on the phone, and the copies."""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from app.database.pool import Pool
from app.views.deliveries import list_deliveries
from app.views.messages import get_message, list_messages
from app.views.rebuild import rebuild
from domain import events as e
from domain.ids import message_id
from tests.support.console import NAME, Browser, System, browsing, text_message, whole_system
from tests.support.ids import ACCOUNT, SCOPE
from tests.support.ledgers.view_events import EventLog, prepare


@pytest.fixture
async def reads(database_url: str) -> AsyncIterator[Pool]:
    pool = Pool(database_url)
    yield pool
    await pool.close()


async def of(reads: Pool, url: str, log: EventLog) -> Pool:
    await prepare(url, log.events)
    await rebuild(url)
    return reads


def operator(log: EventLog) -> tuple[e.MessageSent, e.AnyEvent]:
    """An operator's message and its copy, neither taken yet."""
    sent = log.send(log.start("conv-1"), "o-1", side="operator", sent_by="operator")
    told = {"msec": sent.msec, "sender": sent.sender, "receiver": e.Party(id="u-1"), "push": "kommo"}
    return sent, log.about(e.MessageMirrored, sent, content=sent.content, **told)


def take(log: EventLog, sent: e.MessageSent, copy: e.AnyEvent) -> None:
    taken = {"side": "kommo", "remote_id": "k-1", "copy": True, "cause": copy.id}
    log.about(e.MessageAccepted, sent, **taken)
    log.add(e.MessageNamed, message_id(SCOPE, "kommo", "k-1"), message=sent.message)


async def test_a_message_and_its_copy_wait_each_for_itself(reads: Pool, database_url: str) -> None:
    log = EventLog()
    sent, copy = operator(log)
    reads = await of(reads, database_url, log)
    items = (await list_deliveries(reads)).items
    assert [(one.id, one.destination) for one in items] == [(sent.id, "messenger"), (copy.id, "kommo")]


async def test_a_copy_that_is_taken_closes_itself_and_names_the_message(
    reads: Pool, database_url: str
) -> None:
    log = EventLog()
    sent, copy = operator(log)
    take(log, sent, copy)
    reads = await of(reads, database_url, log)
    found = await get_message(reads, sent.stream)
    assert found is not None
    assert (found.sent_by, found.status, found.remote.kommo, found.remote.messenger) == (
        "operator",
        "sent",
        "k-1",
        None,
    )
    assert [one.id for one in (await list_deliveries(reads)).items] == [sent.id]


async def test_a_message_that_is_taken_leaves_its_copy_open(reads: Pool, database_url: str) -> None:
    log = EventLog()
    sent, copy = operator(log)
    log.accept(sent, "x-1")
    log.about(e.MessageRead, sent, push="kommo")
    reads = await of(reads, database_url, log)
    found = await get_message(reads, sent.stream)
    assert found is not None
    assert (found.status, found.remote.kommo, found.remote.messenger) == ("read", None, "x-1")
    assert [one.type for one in (await list_deliveries(reads)).items] == ["message.mirrored", "message.read"]
    assert copy.id in {one.id for one in (await list_deliveries(reads)).items}


async def test_what_was_written_on_the_phone_is_outgoing_by_the_messengers_name(
    reads: Pool, database_url: str
) -> None:
    log = EventLog()
    phone: dict[str, Any] = {"direction": "out", "sent_by": "messenger", "receiver": e.Party(id="u-1")}
    sent = log.send(log.start("conv-1"), "p-1", **phone)
    log.about(e.MessageAccepted, sent, side="kommo", remote_id="k-1")
    reads = await of(reads, database_url, log)
    (message,) = (await list_messages(reads, sent.conversation or "")).items
    assert (message.direction, message.sent_by, message.receiver) == ("out", "messenger", e.Party(id="u-1"))
    assert (message.remote.kommo, message.remote.messenger) == ("k-1", "p-1")
    assert (await list_deliveries(reads)).items == []


# In the console.


@pytest.fixture(scope="module")
async def system() -> AsyncIterator[System]:
    with tempfile.TemporaryDirectory(prefix="chatledger-test-", dir="/tmp") as folder:
        async with whole_system(Path(folder)) as one:
            yield one


@pytest.fixture
async def browser(system: System) -> AsyncIterator[Browser]:
    async with browsing(system) as one:
        yield await one.sign_in()


async def until_read(system: System, message: str) -> dict[str, Any]:
    async with asyncio.timeout(10):
        while True:
            found: dict[str, Any] = await system.api("GET", f"/v1/messages/{message}")
            if found["status"] == "read" and found["remote"]["kommo"]:
                return found
            await asyncio.sleep(0.05)


async def test_an_operators_message_has_a_name_its_ticks_and_its_story(browser: Browser) -> None:
    system = browser.system
    await system.act(text_message("Hello", "conv-op"))
    chat = await system.chat_of("conv-op")
    maria = system.sandbox.config.managers[0].id
    body = {"message_id": "o-1", "message": {"type": "text", "text": "Hi, Ann"}}
    sender = {"user_id": maria, "name": "Maria K."}
    told = await system.api("POST", f"/v1/conversations/{chat}/messages", body | {"sender": sender})
    await system.api("POST", f"/v1/messages/{told['id']}/status", {"status": "read"})
    await until_read(system, told["id"])
    _, page = await browser.get(f"/conversations/{chat}")
    bubble = page[page.index(f'id="m-{told["id"]}"') :]
    for words in ("Maria K.", "via API", "Hi, Ann", 'data-status="read"', "Read by the customer"):
        assert words in bubble
    _, page = await browser.get(f"/messages/{told['id']}")
    for words in ("Queued to be mirrored in Kommo", "Mirrored in Kommo", "Accepted by the messenger"):
        assert words in page


async def test_what_was_written_on_the_phone_says_so(browser: Browser) -> None:
    system = browser.system
    order = text_message("On my way", "conv-phone") | {
        "direction": "out",
        "sender": {"id": "acme", "name": "Acme", "user_id": system.sandbox.config.managers[0].id},
        "receiver": {"id": "u-1", "name": "Ann"},
    }
    (told,) = await system.act(order)
    async with asyncio.timeout(10):
        while (await system.api("GET", f"/v1/messages/{told['id']}"))["status"] != "accepted":  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    _, page = await browser.get(f"/conversations/{await system.chat_of('conv-phone')}")
    for words in ("from the phone", "Acme", "Accepted by Kommo"):
        assert words in page


async def test_a_chat_without_messages_is_shown_with_its_customer(browser: Browser) -> None:
    order = {"channel": NAME, "account_id": ACCOUNT, "conversation_id": "conv-empty"}
    told = await browser.system.api(
        "POST", "/v1/conversations", order | {"user": {"id": "u-e", "name": "Eve"}}
    )
    _, page = await browser.get(f"/conversations/{told['id']}")
    assert "conv-empty" in page
