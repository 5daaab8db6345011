"""The user that the private servers run as when we are root: one of their own, neither root nor shared.

Where we are not root, they run as we do. Else the setting CHATLEDGER_SERVERS_USER names the user, or it is
`chatledger`, a system user that is made at the first start.
"""

import contextlib
import os
import pwd
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

from app.servers.process import ServerFailed

SETTING = "CHATLEDGER_SERVERS_USER"
NAME = "chatledger"
MAKE_SECONDS = 30.0  # chosen: another program may hold the lock of the user database
FOLDERS = "/usr/sbin:/usr/bin:/sbin:/bin"
# By the tools that Linux systems have: shadow's, and BusyBox's.
COMMANDS = (
    ("useradd", "--system", "--user-group", "--home-dir", "/nonexistent", "--shell", "/usr/sbin/nologin"),
    ("adduser", "-S", "-D", "-H", "-h", "/nonexistent", "-s", "/sbin/nologin"),
)


class User(NamedTuple):
    """A user of this system, with its main group."""

    name: str
    uid: int
    gid: int

    @property
    def ids(self) -> tuple[int, int]:
        """The numbers that a process gets."""
        return self.uid, self.gid


def server_user(chosen: str | None = None) -> User | None:
    """Returns the user that runs the private servers; None if that is ourselves, because we are not root.

    Raises ServerFailed if there is none and none can be made, or if the one chosen is root or unknown.
    """
    if os.geteuid() != 0:
        return None
    user = _find(chosen or NAME)
    if user is None and chosen:
        raise ServerFailed(f"{SETTING}: there is no user {chosen} here: make it (useradd --system {chosen})")
    if user is None:
        user = _make()
    if user.uid == 0:
        raise ServerFailed(
            f"{SETTING}: {user.name} is root, and PostgreSQL does not run as root: name another"
        )
    return user


def own_name() -> str:
    """Returns the name that PostgreSQL knows us by: the name of our user. Raises ServerFailed."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        raise ServerFailed(
            f"this process runs as user {os.geteuid()}, which has no name here, and PostgreSQL needs one: "
            "add it to /etc/passwd"
        ) from None


def give(folder: Path, user: User | None) -> None:
    """Make a folder and all in it the user's own; does nothing if the folder is that already.

    The folder itself comes last, so that an interrupted change is done again.
    """
    if user is None or folder.stat().st_uid == user.uid:
        return
    for path, folders, files in os.walk(folder, topdown=False):
        for name in (*folders, *files):
            os.chown(os.path.join(path, name), user.uid, user.gid, follow_symlinks=False)
    os.chown(folder, user.uid, user.gid)


def require_open(folder: Path) -> None:
    """Raises ServerFailed if other users cannot get to the folder."""
    for parent in folder.parents:
        if not parent.stat().st_mode & 0o001:
            raise ServerFailed(
                f"{parent} is closed to other users, and the servers do not run as root:"
                " set CHATLEDGER_DATA to a folder outside it, like /var/lib/chatledger"
            )


def is_open(file: Path) -> bool:
    """Whether every user may read and run a file: not if it is below /root, or installed under umask 077."""
    return file.stat().st_mode & 0o005 == 0o005 and all(one.stat().st_mode & 0o001 for one in file.parents)


def _find(name: str) -> User | None:
    with contextlib.suppress(KeyError):
        entry = pwd.getpwnam(name)
        return User(entry.pw_name, entry.pw_uid, entry.pw_gid)
    return None


def _make() -> User:
    """Make the system user; another chatledger may do so at the same time."""
    reason = "there is neither useradd nor adduser"
    for program, *options in COMMANDS:
        if path := shutil.which(program, path=FOLDERS):
            command = [path, *options, NAME]
            try:
                done = subprocess.run(  # noqa: S603 - fixed words, no shell
                    command, capture_output=True, text=True, check=False, timeout=MAKE_SECONDS
                )
                reason = (done.stderr or done.stdout).strip() or f"{program} ended with {done.returncode}"
            except (OSError, subprocess.TimeoutExpired) as error:
                reason = str(error)
            if user := _find(NAME):
                return user
    raise ServerFailed(
        f"the servers do not run as root, and their user {NAME} cannot be made ({reason}): make it "
        f"(useradd --system {NAME}), or name another in {SETTING}"
    )
