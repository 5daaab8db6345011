"""A rotation of the master key: at each moment, also after a kill, all that is sealed opens."""

import asyncio
import base64
import os
import re
import signal
import sys
from pathlib import Path

import msgspec
import psycopg
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from msgspec import Raw

from app.access.keyring import Keyring
from app.access.rotation import NotRotated, RotationRuns, rotation
from app.channels.directory import Secrets
from app.cli.keys import rotate_master
from app.config import rotation as files
from app.config.settings import BadSettings, Settings, load_keys, load_masters, load_settings
from app.database import sealed
from app.database.connection import connect
from app.kommo.crm.oauth import Pair
from app.service import service as serve
from app.vault import Vault, head_of, kid_in, kid_of
from tests.support.ids import NOWHERE
from tests.support.processes import ENVIRONMENT, ROOT, run_command, service_process, started

ACCOUNTS = 30
KEYS = [base64.b64encode(letter * 32).decode() for letter in (b"x", b"y")]
SLOW = """CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$
 BEGIN PERFORM pg_sleep(0.3); RETURN NEW; END $$;
CREATE TRIGGER slow BEFORE UPDATE ON ledger.tokens FOR EACH ROW EXECUTE FUNCTION slow()"""
TOKEN = """INSERT INTO ledger.tokens VALUES (%s, 7, 'http://crm', %s, now(), 'authorized', '', 1)"""
PAIR = Pair("acc", "ref", 3600)
SECRETS = Secrets("chat", "hook")
NONCE = bytes(12)
COLUMNS = """SELECT table_name FROM information_schema.columns
 WHERE table_schema = 'ledger' AND column_name = 'sealed'"""


class Ledger:
    """A ledger with sealed values of an older version and of this one, whose keys are in files."""

    def __init__(self, url: str, folder: Path) -> None:
        environment = {"CHATLEDGER_DATA": str(folder), "CHATLEDGER_DATABASE_URL": url}
        self.url, self.folder, self.environment = url, folder, environment
        self.settings: Settings = load_settings(environment=environment)

    async def fill(self) -> None:
        """One channel of version 0.2, one of this version, and many tokens."""
        keys = load_keys(self.settings)
        vault = Vault(keys.master)
        await Keyring(self.url, vault, [keys.master]).address_key()
        async with await connect(self.url) as db:
            old = NONCE + AESGCM(keys.master).encrypt(NONCE, msgspec.json.encode(SECRETS), b"old")
            await db.execute(
                "INSERT INTO ledger.secrets VALUES ('new', 'c-1', %s)", (vault.seal("new", SECRETS),)
            )
            await db.execute("INSERT INTO ledger.secrets VALUES ('old', 'c-2', %s)", (old,))
            await db.execute(
                "INSERT INTO ledger.tokens VALUES ('gone', 7, '', '', now(), 'withdrawn', '', 1)"
            )
            for number in range(ACCOUNTS):
                name = f"a{number:03d}"
                await db.execute(TOKEN, (name, vault.seal(f"tokens:{name}", PAIR)))

    async def kids(self) -> set[str | None]:
        """The keys that sealed what there is now; all of it opens with the keys in the folder."""
        vault = Vault(*load_masters(self.settings))
        async with await connect(self.url) as db:
            rows = [row async for row in sealed.rows(db)]
        assert len(rows) == ACCOUNTS + 3
        for row in rows:
            kind: type[Pair] | type[Secrets] = Pair if row.place is sealed.TOKENS else Secrets
            if row.place is not sealed.KEYRING:
                assert vault.open(row.name, row.sealed, kind, subject="it") in (PAIR, SECRETS)
        return {kid_in(row.sealed) for row in rows}

    async def changed(self) -> int:
        """How many tokens the newest key has sealed while there is an older one."""
        masters = load_masters(self.settings)
        head = head_of(kid_of(masters[0])) if len(masters) > 1 else b"none"
        async with await connect(self.url) as db:
            return len([row async for row in sealed.rows(db) if row.sealed.startswith(head)])

    def names(self) -> list[str]:
        """The files of keys, without what is in their names of the key itself."""
        return sorted(re.sub("-[0-9a-f]{16}$", "-KID", path.name) for path in self.folder.glob("master*"))


@pytest.fixture
async def ledger(database_url: str, tmp_path: Path) -> Ledger:
    await serve.migrate(database_url)
    one = Ledger(database_url, tmp_path)
    await one.fill()
    return one


async def test_everything_is_sealed_with_a_new_key_and_the_old_one_is_put_aside(ledger: Ledger) -> None:
    old = load_masters(ledger.settings)[0]
    told = await run_command("keys", "rotate-master", **ledger.environment)
    assert (told.code, told.err) == (0, ""), told
    new = load_masters(ledger.settings)
    assert len(new) == 1
    assert await ledger.kids() == {kid_of(new[0])} != {kid_of(old)}
    all_of_them = f"{ACCOUNTS + 3} sealed values, {ACCOUNTS + 3} of them sealed anew"
    assert told.out.splitlines()[0] == f"{all_of_them}, all with master key {kid_of(new[0])}"
    assert ledger.names() == ["master.key", "master.key.retired-KID"]
    assert {path.stat().st_mode & 0o777 for path in ledger.folder.glob("master*")} == {0o600}
    hidden = (ledger.folder / "master.key").read_text().strip()
    assert hidden not in told.out + told.err


@pytest.mark.parametrize("step", ["linked", "drafted", "made", "half", "sealed"])
async def test_a_rotation_goes_on_after_a_kill(ledger: Ledger, step: str) -> None:
    folder = ledger.folder
    if step in ("linked", "drafted"):
        os.link(folder / "master.key", folder / "master.key.old")
    if step == "drafted":
        (folder / "master.key.new").write_text("cut o")
    if step in ("made", "half", "sealed"):
        files.begin(folder)
    if step in ("half", "sealed"):
        vault = Vault(*load_masters(ledger.settings))
        async with await connect(ledger.url) as db:
            rows = [row async for row in sealed.rows(db)]
            for row in rows[len(rows) // 2 :] if step == "half" else rows:
                plain = vault.open(row.name, row.sealed, Raw, subject=row.subject)
                assert await sealed.replace(db, row, vault.seal(row.name, plain))
    kids = {"linked": 2, "drafted": 2, "made": 2, "half": 3, "sealed": 1}  # None is that of version 0.2.
    assert len(await ledger.kids()) == kids[step]
    await rotate_master(ledger.settings)
    assert await ledger.kids() == {kid_of(load_masters(ledger.settings)[0])}
    assert [name for name in ledger.names() if name != "master.key.new"] == [
        "master.key",
        "master.key.retired-KID",
    ]


async def test_a_rotation_that_is_killed_again_and_again_ends(ledger: Ledger) -> None:
    async with await psycopg.AsyncConnection.connect(ledger.url, autocommit=True) as owner:
        await owner.execute(SLOW)  # Sealing all takes 9 s, so that a kill comes in the middle.
        for changed in (3, 6):
            child = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "app", "keys", "rotate-master"),
                env=ENVIRONMENT | ledger.environment,
                cwd=ROOT,
            )
            async with asyncio.timeout(30):
                while await ledger.changed() < changed:  # noqa: ASYNC110 - another process's state
                    await asyncio.sleep(0.02)
            child.send_signal(signal.SIGKILL)
            await child.wait()
            assert len(await ledger.kids()) == 2
        await owner.execute("DROP TRIGGER slow ON ledger.tokens")
    await rotate_master(ledger.settings)
    assert len(await ledger.kids()) == 1
    assert ledger.names() == ["master.key", "master.key.retired-KID"]


async def test_keys_of_the_settings_are_the_operators_to_replace(ledger: Ledger) -> None:
    """From the file to the environment, and there from one key to another."""
    kept = (ledger.folder / "master.key").read_text().strip()
    given = ledger.environment | {"CHATLEDGER_MASTER_KEY": KEYS[0]}
    alone = await run_command("keys", "rotate-master", **given)
    assert (alone.code, alone.out) == (1, "")
    assert "CHATLEDGER_MASTER_KEY_OLD" in alone.err
    assert len(alone.err.splitlines()) == 1
    for key, old in ((KEYS[0], kept), (KEYS[1], KEYS[0])):
        both = ledger.environment | {"CHATLEDGER_MASTER_KEY": key, "CHATLEDGER_MASTER_KEY_OLD": old}
        told = await rotate_master(load_settings(environment=both))
        assert told[1] == "remove CHATLEDGER_MASTER_KEY_OLD and restart every process"
    again = await rotate_master(
        load_settings(environment=ledger.environment | {"CHATLEDGER_MASTER_KEY": KEYS[1]})
    )
    assert " 0 of them sealed anew" in again[0]
    assert "openssl rand -base64 32" in again[1]
    assert ledger.names() == ["master.key"]


async def test_what_does_not_open_is_named_and_the_old_key_stays(ledger: Ledger) -> None:
    async with await connect(ledger.url) as db:
        strange = Vault(b"z" * 32).seal("new", SECRETS)
        await db.execute("UPDATE ledger.secrets SET sealed = %s WHERE channel = 'new'", (strange,))
    with pytest.raises(NotRotated, match=rf"^{ACCOUNTS + 2} of {ACCOUNTS + 3} .*channel new were sealed"):
        await rotate_master(ledger.settings)
    assert ledger.names() == ["master.key", "master.key.old"]


async def test_one_rotation_runs_at_a_time_and_none_without_a_key(ledger: Ledger, tmp_path: Path) -> None:
    async with rotation(ledger.url):
        with pytest.raises(RotationRuns):
            await rotate_master(ledger.settings)
    assert ledger.names() == ["master.key"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadSettings, match="the first start of the service makes it"):
        await rotate_master(Ledger(ledger.url, tmp_path / "empty").settings)
    assert list((tmp_path / "empty").iterdir()) == []


async def test_the_doctor_says_that_a_rotation_is_not_finished(ledger: Ledger) -> None:
    files.begin(ledger.folder)
    told = await run_command("doctor", **ledger.environment, CHATLEDGER_KOMMO_URL=NOWHERE)
    assert "a rotation of the master key is not finished -> run `chatledger keys rotate-master`" in told.out
    await rotate_master(ledger.settings)
    told = await run_command("doctor", **ledger.environment, CHATLEDGER_KOMMO_URL=NOWHERE)
    assert f"ok    data folder: {ledger.folder} is there" in told.out


async def test_the_register_has_every_sealed_column(ledger: Ledger) -> None:
    async with await connect(ledger.url) as db:
        cursor = await db.execute(COLUMNS)
        found = {str(row[0]) for row in await cursor.fetchall()}
    assert found == {place.table for place in sealed.PLACES}


async def test_the_key_of_addresses_is_the_one_that_an_older_version_made_them_with(ledger: Ledger) -> None:
    """An upgrade and a rotation may come together, with the keys in either order."""
    old = load_masters(ledger.settings)[0]
    for masters in ([old, b"n" * 32], [b"n" * 32, old]):
        async with await connect(ledger.url) as db:
            await db.execute("DELETE FROM ledger.keyring")
        keyring = Keyring(ledger.url, Vault(*masters), masters)
        assert await keyring.address_key() == old
    fresh = Keyring(ledger.url, Vault(*masters), [b"other" * 6])
    assert await fresh.address_key() == old


async def test_a_private_database_is_rotated_whether_the_service_runs_or_not(data_folder: Path) -> None:
    data = data_folder / "data"
    process = service_process(data_folder, 0, NOWHERE)
    settings = {"CHATLEDGER_DATA": str(data)}
    kids = []
    async with started(process):
        kids.append(kid_of(load_masters(load_settings(environment=settings))[0]))
        told = await run_command("keys", "rotate-master", **settings)
        assert (told.code, told.err) == (0, ""), told
        kids.append(told.out.splitlines()[0].rpartition(" ")[2])
        assert await process.end() == 0
    told = await run_command("keys", "rotate-master", **settings)
    assert (told.code, told.out.startswith("1 sealed value, 1 of them sealed anew")) == (0, True), told
    kids.append(told.out.splitlines()[0].rpartition(" ")[2])
    assert len(set(kids)) == 3
    retired = {path.name for path in data.glob("master.key.*")}
    assert retired == {f"master.key.retired-{kid}" for kid in kids[:2]}
