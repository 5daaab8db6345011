"""Settings: what is right is read, what is wrong is named with what to do, and keys are made once."""

import base64
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from app.config.settings import ROLES, BadSettings, Role, Settings, load_keys, load_settings
from app.stream.identity import Identity
from tests.support.ids import ADMIN_KEY

DATABASE, NATS = "postgresql://u:p@db/x", "nats://u:p@broker:4222"
SOME: frozenset[Role] = frozenset(("web", "relay"))
MASTER = base64.b64encode(b"k" * 32).decode()


def settings(**named: str) -> Settings:
    environment = {f"CHATLEDGER_{name.upper()}": value for name, value in named.items()}
    return load_settings(environment={"HOME": "/home/ann"} | environment)


def test_everything_has_a_default() -> None:
    found = settings(data="/srv/ledger")
    assert (found.data, found.host, found.port) == (Path("/srv/ledger"), "127.0.0.1", 8080)
    assert (found.database_url, found.nats_url, found.admin_key, found.master_key) == (None, None, None, None)
    assert (found.kommo_url, found.roles) == ("https://amojo.kommo.com", ROLES)


def test_everything_can_be_set() -> None:
    found = settings(
        data="/srv/ledger",
        database_url=DATABASE,
        nats_url=f"{NATS},{NATS}",
        host="::1",
        port="0",
        admin_key=ADMIN_KEY,
        master_key=MASTER,
        kommo_url="http://127.0.0.1:9/",
        roles="web, relay",
        trusted_proxies="127.0.0.1, 10.0.0.0/8,::1",
        nats_replicas="5",
        pack_events="true",
        nats_ca="/srv/ca.pem",
        nats_certificate="/srv/tls.crt, /srv/tls.key",
    )
    assert (found.nats_replicas, found.pack_events) == (5, True)
    assert found.nats_identity == Identity(
        ca=Path("/srv/ca.pem"), certificate=Path("/srv/tls.crt"), key=Path("/srv/tls.key")
    )
    assert found.trusted_proxies == ("127.0.0.1", "10.0.0.0/8", "::1")
    assert (found.port, found.roles, found.kommo_url) == (0, SOME, "http://127.0.0.1:9")
    assert load_keys(found) == load_keys(found)
    assert load_keys(found).master == b"k" * 32


WRONG = {
    "port": ["eighty", "-1", "65536", "80.5"],
    "host": ["a b", "http://x", "127.0.0.1\n"],
    "database_url": ["mysql://x", "db.example"],
    "nats_url": ["http://x", f"{NATS},x"],
    "nats_replicas": ["2", "three"],
    "pack_events": ["some"],
    "nats_certificate": ["a,b,c"],
    "kommo_url": ["amojo.kommo.com", "ftp://x", "https://x?y", "https://x\n"],
    "public_url": ["https://x\n"],
    "roles": ["web,cook", ","],
    "admin_key": ["two words", "ключ", f"{ADMIN_KEY}\n", "a-key-of-19-letters", "abcdef0" * 4 + "123"],
    "trusted_proxies": ["proxy", "10.0.0.0/33", "127.0.0.1,", "127.0.0.1;10.0.0.1"],
    "master_key": ["short", base64.b64encode(b"k" * 31).decode(), "ключ"],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in WRONG for value in WRONG[name]])
def test_a_bad_value_stops_with_its_name_and_advice(name: str, value: str) -> None:
    with pytest.raises(BadSettings, match=f"^CHATLEDGER_{name.upper()}: give "):
        settings(**{name: value})


def test_an_unknown_name_stops_and_the_likely_one_is_told() -> None:
    with pytest.raises(
        BadSettings, match="CHATLEDGER_DATABSE_URL is not a setting: did you mean CHATLEDGER_DATABASE_URL"
    ):
        settings(databse_url=DATABASE)


@pytest.mark.parametrize(("given", "missing"), [({}, "DATABASE"), ({"database_url": DATABASE}, "NATS")])
def test_a_part_of_the_roles_needs_both_servers(given: dict[str, str], missing: str) -> None:
    with pytest.raises(BadSettings, match=f"CHATLEDGER_{missing}_URL is needed with CHATLEDGER_ROLES=web"):
        settings(roles="web", **given)


def test_an_empty_value_is_no_value() -> None:
    assert settings(port="", admin_key="", database_url="", roles="") == settings()


def test_the_environment_wins_over_the_file_and_the_command_line_over_both(tmp_path: Path) -> None:
    config = tmp_path / "chatledger.toml"
    config.write_text(
        'CHATLEDGER_PORT = 1\nCHATLEDGER_HOST = "::1"\nCHATLEDGER_ROLES = "web,relay,project,deliver"'
    )
    environment = {"HOME": "/", "CHATLEDGER_PORT": "2"}
    assert load_settings(config, environment=environment).port == 2
    assert load_settings(config, environment=environment).host == "::1"
    assert load_settings(config, environment=environment, overrides={"CHATLEDGER_PORT": "3"}).port == 3


def test_a_setting_in_the_file_may_stand_in_the_environment_under_another_name(tmp_path: Path) -> None:
    config = tmp_path / "chatledger.toml"
    config.write_text('CHATLEDGER_DATABASE_URL = "env:PG_URL"')
    assert load_settings(config, environment={"HOME": "/", "PG_URL": DATABASE}).database_url == DATABASE
    with pytest.raises(BadSettings, match="CHATLEDGER_DATABASE_URL: the environment has no PG_URL"):
        load_settings(config, environment={"HOME": "/"})
    with pytest.raises(BadSettings, match="CHATLEDGER_DATABASE_URL: the environment has no PG_URL"):
        load_settings(config, environment={"HOME": "/", "PG_URL": "\n"})


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_what_the_environment_read_from_a_file_is_taken_without_its_line_end(
    tmp_path: Path, end: str
) -> None:
    config = tmp_path / "chatledger.toml"
    config.write_text('CHATLEDGER_ADMIN_KEY = "env:KEY"')
    assert load_settings(config, environment={"HOME": "/", "KEY": f"{ADMIN_KEY}{end}"}).admin_key == ADMIN_KEY


@pytest.mark.parametrize(
    "text", [b"CHATLEDGER_PORT = ", b"\xff", b"PORT = 1", b"CHATLEDGER_PORT = [1]", b"CHATLEDGER_DATA = 1"]
)
def test_a_file_that_cannot_be_used_is_refused(tmp_path: Path, text: bytes) -> None:
    config = tmp_path / "chatledger.toml"
    config.write_bytes(text)
    with pytest.raises(BadSettings):
        load_settings(config, environment={})


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    file = tmp_path / "chatledger.toml"
    file.write_bytes(b"\xef\xbb\xbfCHATLEDGER_PORT = 9000\r\n")
    assert load_settings(file, environment={"HOME": "/"}).port == 9000


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match=r"absent\.toml cannot be read"):
        load_settings(tmp_path / "absent.toml", environment={})


@pytest.mark.parametrize("environment", [{}, {"HOME": ""}])
def test_the_data_folder_does_not_need_a_home_variable(environment: dict[str, str]) -> None:
    assert load_settings(environment=environment).data.is_absolute()
    assert load_settings(environment=environment).data.name == "chatledger"


def test_secrets_are_not_shown() -> None:
    shown = repr(settings(database_url=DATABASE, nats_url=NATS, admin_key=ADMIN_KEY, master_key=MASTER))
    assert not any(secret in shown for secret in (DATABASE, NATS, ADMIN_KEY, MASTER))


def test_keys_are_made_once_and_kept_for_the_owner_only(tmp_path: Path) -> None:
    data = tmp_path / "new" / "data"
    made = load_keys(settings(data=str(data)))
    assert len(made.master) == 32
    assert load_keys(settings(data=str(data))) == made
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in data.iterdir()}
    assert modes == {"admin.key": 0o600, "master.key": 0o600}


def test_processes_that_start_together_have_the_same_keys(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        keys = list(pool.map(load_keys, [settings(data=str(tmp_path))] * 64))
    assert {(key.admin, key.master) for key in keys} == {(keys[0].admin, keys[0].master)}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["admin.key", "master.key"]


@pytest.mark.parametrize(
    ("file", "text"), [("admin.key", ""), ("admin.key", "two words"), ("master.key", "AAAA")]
)
def test_a_spoiled_key_file_is_named_and_not_replaced(tmp_path: Path, file: str, text: str) -> None:
    (tmp_path / file).write_text(text)
    with pytest.raises(BadSettings, match=file):
        load_keys(settings(data=str(tmp_path)))
    assert (tmp_path / file).read_text() == text


def test_a_kept_admin_key_that_can_be_guessed_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "admin.key").write_text("short\n")
    with pytest.raises(BadSettings, match=r"admin\.key: .*128 bits"):
        load_keys(settings(data=str(tmp_path), master_key=MASTER))
