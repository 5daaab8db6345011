"""Linking goes on after any failure: a process that stopped over one would stop again after each start."""

import asyncio
import uuid
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest

from app.channels.directory import Channels
from app.database.pool import Pool
from app.kommo.crm import contact_links
from app.kommo.crm.hooks import hook_path
from app.ledger.writer import Ledger
from app.operations.chat_names import ChatNames
from app.servers.servers import Servers
from app.vault import Vault
from tests.support.ids import ACCOUNT, MASTER_BYTES, SCOPE
from tests.support.system import Story, chat, story_on

WAITS = """INSERT INTO ledger.links (account_id, chat_id, contact_id, changed, told_at)
 VALUES (%s, %s, 1, 1, now()) ON CONFLICT DO NOTHING"""


@dataclass
class LinkServices:
    """The parts of a process that linking uses."""

    pool: Pool
    ledger: Ledger
    channels: Channels


async def test_a_changed_master_key_is_logged_and_linking_goes_on(
    servers: Servers, caplog: pytest.LogCaptureFixture
) -> None:
    async with story_on(servers) as story:
        assert story.run
        services = story.run.services
        name = chat()
        await story.customer(name)
        await story.arrived(name)
        chat_id = (await story.manager(name))["chat_id"]
        url = services.settings.database_url or ""
        channels = Channels(url, Vault(uuid.uuid4().bytes * 2))
        task = asyncio.create_task(contact_links.run(LinkServices(services.pool, services.ledger, channels)))
        async with await psycopg.AsyncConnection.connect(url, autocommit=True) as link:
            for _ in range(100):  # The service itself links it as well.
                await link.execute(WAITS, (ACCOUNT, chat_id))
                await asyncio.sleep(0.05)
                if task.done() or "CHATLEDGER_MASTER_KEY" in caplog.text:
                    break
        assert "CHATLEDGER_MASTER_KEY" in caplog.text
        assert not task.done()
        task.cancel()
        await asyncio.wait([task])
        await channels.close()


# Kommo's name of a chat is asked for.


async def conversation(story: Story, name: str) -> dict[str, Any]:
    head = await story.head()
    [found] = (await story.api("GET", f"/v1/conversations?conversation_id={name}&at_least={head}"))["items"]
    return dict(found)


async def arrived(story: Story) -> str:
    """A customer has written, and Kommo has accepted it."""
    name = chat()
    message = await story.customer(name)
    await story.until_recorded(message, "message.accepted")
    return name


def asker(story: Story) -> ChatNames:
    assert story.run
    return ChatNames(story.run.services, delay_seconds=0)


@pytest.mark.story(ask_for_chats=True)
async def test_a_new_conversation_gets_its_chat_and_its_contact_before_any_manager_writes(
    own_story: Story,
) -> None:
    name = await arrived(own_story)
    assert (await conversation(own_story, name))["chat_id"] is None
    [message] = own_story.kommo(name)
    form = {
        "talk[add][0][talk_id]": "71",
        "talk[add][0][chat_id]": message.chat_id,
        "talk[add][0][contact_id]": "4215",
    }
    async with own_story.client.post(own_story.url + hook_path(MASTER_BYTES, ACCOUNT), data=form) as answer:
        assert answer.status == 200
    async with asyncio.timeout(20):
        while (found := await conversation(own_story, name))["contact_id"] is None:  # noqa: ASYNC110
            await asyncio.sleep(0.2)
    assert (found["chat_id"], found["contact_id"]) == (message.chat_id, 4215)
    events = await own_story.events(type="conversation.bound")
    assert {(event["content"]["chat_id"], event["by"]) for event in events} == {(message.chat_id, "kommo")}


async def test_a_chat_is_asked_for_once_and_not_if_a_hook_named_it(own_story: Story) -> None:
    name, named = await arrived(own_story), await arrived(own_story)
    await own_story.manager(named)
    await own_story.fault("kommo.chats", "slow", times=None, seconds=0)
    [fault] = own_story.sandbox.faults.faults
    asking = [asker(own_story), asker(own_story)]
    for _ in range(3):
        await conversation(own_story, name)
        await asyncio.gather(*(one.look() for one in asking))
    assert fault.seen == 1
    assert (await conversation(own_story, name))["chat_id"] == own_story.kommo(name)[0].chat_id


async def test_a_chat_is_not_asked_for_before_kommo_has_its_first_message(own_story: Story) -> None:
    """A chat that is created empty makes no incoming lead."""
    await own_story.fault("kommo.new_message", "503", times=None)
    name = chat()
    message = await own_story.customer(name)
    await own_story.until_recorded(message, "delivery.deferred")
    await conversation(own_story, name)
    await asker(own_story).look()
    assert own_story.sandbox.chat_state.chat(SCOPE.scope_id, name) is None


async def test_chats_that_kommo_does_not_take_keep_no_other_waiting(own_story: Story) -> None:
    assert own_story.run
    asking = ChatNames(own_story.run.services, delay_seconds=0, waiting_max=2)
    await own_story.fault("kommo.new_message", "503", times=None)
    for _ in range(3):
        name = chat()
        await own_story.until_recorded(await own_story.customer(name), "delivery.deferred")
        await conversation(own_story, name)
    await asking.look()
    await own_story.order("DELETE", "/faults")
    name = await arrived(own_story)
    await conversation(own_story, name)
    await asking.look()
    assert (await conversation(own_story, name))["chat_id"] is not None


@pytest.mark.parametrize(("action", "again"), [("400", False), ("404", True), ("503", True), ("drop", True)])
async def test_what_kommo_refuses_is_not_asked_again_and_what_it_does_not_answer_is(
    own_story: Story, action: str, again: bool
) -> None:
    assert own_story.run
    pool = own_story.run.services.pool
    name = await arrived(own_story)
    await conversation(own_story, name)
    await own_story.fault("kommo.chats", action)
    for _ in range(2):  # The second finds the claim of the first.
        await asker(own_story).look()
    assert (await conversation(own_story, name))["chat_id"] is None
    async with pool.connection() as db:
        await db.execute("UPDATE ledger.chat_questions SET again_at = again_at - interval '2 minutes'")
    await asker(own_story).look()
    assert ((await conversation(own_story, name))["chat_id"] is not None) == again


async def test_a_link_waits_as_long_as_it_takes_and_an_account_keeps_so_many(own_story: Story) -> None:
    assert own_story.run
    pool = own_story.run.services.pool
    name = await arrived(own_story)
    await conversation(own_story, name)
    [message] = own_story.kommo(name)
    fill = """INSERT INTO ledger.links (account_id, chat_id, contact_id, changed, told_at)
     SELECT %s, 'chat-' || n, n, 1, now() - make_interval(secs => n) FROM generate_series(1, %s) AS n"""
    async with pool.connection() as db:
        await db.execute(WAITS.replace("now()", "now() - interval '90 days'"), (ACCOUNT, message.chat_id))
        await asyncio.sleep(contact_links.LOOK_SECONDS * 1.2)
        await asker(own_story).look()
        async with asyncio.timeout(10):
            while (await conversation(own_story, name))["contact_id"] != 1:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        await db.execute(fill, ("full", contact_links.KEPT_MAX + 5))
        await db.execute(fill, ("other", 3))
        await contact_links.trim(pool)
        rows = await db.execute("SELECT account_id, count(*) FROM ledger.links GROUP BY 1 ORDER BY 1")
        assert await rows.fetchall() == [("full", contact_links.KEPT_MAX), ("other", 3)]
