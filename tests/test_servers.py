"""The private servers start, keep what they are given, and leave nothing behind."""

import psycopg

from app.servers import Servers, check_versions


async def test_an_acknowledged_write_is_on_disk(servers: Servers) -> None:
    async with await psycopg.AsyncConnection.connect(servers.database_url) as connection:
        for name in ("fsync", "synchronous_commit", "full_page_writes"):
            row = await (await connection.execute(f"SHOW {name}")).fetchone()
            assert row == ("on",)


async def test_the_private_servers_are_new_enough(servers: Servers) -> None:
    await check_versions(servers.database_url, servers.nats_url)
