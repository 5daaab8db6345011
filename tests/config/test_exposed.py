"""Warnings of the doctor's: secrets that every user of the machine can read, and a log that is slow."""

from pathlib import Path

from app.doctor.doctor import exposed
from app.doctor.probe import slow_log, unsafe_disk
from tests.support.ids import ADMIN_KEY


def test_a_file_with_secrets_that_every_user_can_read_is_a_warning(tmp_path: Path) -> None:
    config, key = tmp_path / "chatledger.toml", tmp_path / "admin.key"
    key.write_text(ADMIN_KEY)
    config.write_text('[[channels]]\nkommo = { secret = "hush" }\n')
    for path in (config, key):
        path.chmod(0o644)
    assert [check.todo for check in exposed(config, tmp_path)] == [f"chmod o= {key}", f"chmod o= {config}"]
    assert all(check.ok and "every user can read" in check.says for check in exposed(config, tmp_path))
    key.chmod(0o640)
    for harmless in ('[[channels]]\nkommo = { secret = "env:HUSH" }', 'CHATLEDGER_NATS_URL = "nats://x"'):
        config.write_text(harmless)
        assert exposed(config, tmp_path) == []
    config.write_text('CHATLEDGER_DATABASE_URL = "postgresql://u:p@db/x"')
    assert len(exposed(config, tmp_path)) == 1
    config.chmod(0o600)
    assert exposed(config, tmp_path) == []


def test_a_log_of_the_database_that_is_compressed_slowly_is_a_warning() -> None:
    assert [slow_log(fast) for fast in ("off", "lz4", "zstd")] == [[], [], []]
    for slow in ("on", "pglz"):
        (check,) = slow_log(slow)
        assert (check.ok, slow in check.says, "lz4" in check.todo) == (True, True, True)


def test_a_database_that_does_not_wait_for_its_disk_is_named() -> None:
    assert unsafe_disk([]) == []
    (check,) = unsafe_disk(["fsync"])
    assert check.ok
    assert "fsync = off" in check.says
    assert "fsync = on" in check.todo
