"""A real PgBouncer between us and PostgreSQL: in session mode all works, in the others the start says no."""

import os
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from app.database.pooler import Pooled, check_sessions
from app.servers.servers import check_postgres
from app.servers.user import give, server_user
from app.service.service import migrate
from ops.benches.cluster.children import Child
from ops.benches.cluster.postgres import Pair
from tests.support.ledgers.pair import paired, url_of
from tests.support.processes import run_command
from tests.support.system import Story, broker, chat, free_port, telling, until

PROGRAM = shutil.which("pgbouncer", path=f"{os.defpath}:/usr/sbin")
if not PROGRAM and os.environ.get("CI") == "true":
    pytest.fail("pgbouncer is not installed: .ci/run installs it", pytrace=False)
pytestmark = pytest.mark.skipif(not PROGRAM, reason="pgbouncer is not installed")

CONFIGURATION = """
[databases]
* = host=127.0.0.1 port={source} user=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = {mode}
{more}
"""
Pooler = Callable[..., AbstractAsyncContextManager[str]]


@pytest.fixture(scope="module")
async def pair(module_folder: Path) -> AsyncIterator[Pair]:
    async with paired(module_folder, standby=False) as pair:
        yield pair


@pytest.fixture
def pooler(data_folder: Path, pair: Pair) -> Pooler:
    """`async with pooler(mode, "setting = value") as url` runs a PgBouncer in front of an empty database."""
    user = server_user()

    @asynccontextmanager
    async def pooling(mode: str, more: str = "") -> AsyncIterator[str]:
        folder, port = data_folder / "pooler", free_port()
        folder.mkdir()
        text = CONFIGURATION.format(source=pair.primary.port, port=port, mode=mode, more=more)
        (folder / "pgbouncer.ini").write_text(text)
        give(folder, user)
        words = [str(PROGRAM), str(folder / "pgbouncer.ini")]
        child = Child(words, folder, user=user.ids if user else None)
        try:
            await until(lambda: "process up" in child.log.read_text())
            yield url_of(port)
        finally:
            child.kill()

    return pooling


@pytest.mark.parametrize("more", ["", "server_round_robin = 1", "default_pool_size = 1"])
@pytest.mark.parametrize("mode", ["transaction", "statement"])
async def test_a_pooler_that_shares_connections_is_named_with_what_to_do(
    pooler: Pooler, mode: str, more: str
) -> None:
    async with pooler(mode, more) as url:
        with pytest.raises(Pooled, match=r"PgBouncer.*one transaction at a time.*pool_mode = session"):
            await check_sessions(url)


async def test_commands_and_start_refuse_it_in_one_line(pooler: Pooler, tmp_path: Path) -> None:
    async with pooler("transaction") as url, broker() as nats:
        given = {"CHATLEDGER_DATABASE_URL": url, "CHATLEDGER_NATS_URL": nats.url}
        given |= {"CHATLEDGER_DATA": str(tmp_path), "CHATLEDGER_PORT": "0"}
        for command in ("migrate", "serve"):
            code, _, err = await run_command(command, **given)
            assert (code, err.count("\n")) == (1, 1), err
            assert "leads to a pooler like PgBouncer" in err
        code, out, _ = await run_command("doctor", **given)
        assert code == 1
        assert "WRONG database: CHATLEDGER_DATABASE_URL leads to a pooler" in out


async def test_a_pool_of_one_connection_is_named_too(pooler: Pooler) -> None:
    async with pooler("session", "default_pool_size = 1") as url:
        with pytest.raises(Pooled, match=r"only one connection.*pool_size of 30"):
            await check_sessions(url)


async def test_a_service_works_behind_a_pooler_in_session_mode(pooler: Pooler) -> None:
    async with pooler("session", "default_pool_size = 40") as url:
        await check_postgres(url)
        await migrate(url)
        async with broker() as nats, telling(nats.folder, url, nats.url) as story:
            await _works(story)


async def _works(story: Story) -> None:
    name = chat()
    message = await story.customer(name)
    await story.arrived(name)
    told = await story.manager(name)
    await story.pushed(name)
    await story.until_recorded(message, "message.accepted")
    await story.until_recorded(told["ours"], "message.accepted")
    await story.settled()
