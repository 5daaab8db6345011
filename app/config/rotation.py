"""The files of the keys while they are replaced: of the master key, every one that sealed anything is there.

1. `master.key.old` becomes a second name of the file `master.key`;
2. a new key, written and synced as `master.key.new`, takes the name `master.key`;
3. everything is sealed again (`app/access/rotation.py`);
4. `master.key.old` is renamed to `master.key.retired-KID`, which no process reads.

Each step is one atomic change of the folder. Killed between two of them, `begin` goes on with the step that
comes next.
"""

import contextlib
import os
from pathlib import Path

from app.config.settings import (
    ADMIN_FILE,
    MASTER_FILE,
    MASTER_OLD_FILE,
    BadSettings,
    key_line,
    master_key,
    new_master_key,
    sync_folder,
)
from app.vault import kid_of

MASTER_NEW_FILE = "master.key.new"


def begin(folder: Path) -> None:
    """Make the new key, with the old one beside it, unless a rotation is under way. Raises BadSettings."""
    current, old = folder / MASTER_FILE, folder / MASTER_OLD_FILE
    if not current.exists():
        raise BadSettings(f"there is no {current}: the first start of the service makes it")
    with contextlib.suppress(FileExistsError):
        os.link(current, old)
        sync_folder(folder)
    if key_line(current) == key_line(old):
        _write(folder / MASTER_NEW_FILE, new_master_key(), like=current)
        os.rename(folder / MASTER_NEW_FILE, current)
        sync_folder(folder)


def end(folder: Path) -> Path | None:
    """Retire the old key; returns its file for the operator to keep, None if there is no old key."""
    old = folder / MASTER_OLD_FILE
    try:
        kid = kid_of(master_key(key_line(old), str(old)))
    except FileNotFoundError:
        return None
    retired = folder / f"{MASTER_FILE}.retired-{kid}"
    os.rename(old, retired)
    sync_folder(folder)
    return retired


def keep_admin_key(folder: Path, key: str) -> None:
    """Put another admin key into the data folder, in one step. Raises OSError."""
    current, new = folder / ADMIN_FILE, folder / f"{ADMIN_FILE}.new"
    _write(new, key, like=current if current.exists() else folder)
    os.rename(new, current)
    sync_folder(folder)


def _write(path: Path, key: str, *, like: Path) -> None:
    """Write a new key that belongs to the same user: the service may run as another one than we."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "w", encoding="ascii") as file:
        if os.geteuid() == 0:
            owner = like.stat()
            os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
        file.write(key + "\n")
        file.flush()
        os.fsync(file.fileno())
