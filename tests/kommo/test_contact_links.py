"""Linking goes on after any failure: a process that stopped over one would stop again after each start."""

import asyncio
import uuid
from dataclasses import dataclass

import psycopg
import pytest

from app.channels.directory import Channels
from app.database.pool import Pool
from app.kommo.crm import contact_links
from app.ledger.writer import Ledger
from app.servers.servers import Servers
from app.vault import Vault
from tests.support.ids import ACCOUNT
from tests.support.system import chat, story_on

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
