"""Settings are complete and typed before anything starts; an error names the setting and says what to do."""

import base64
import contextlib
import difflib
import ipaddress
import os
import pwd
import secrets
import tomllib
from codecs import BOM_UTF8
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import msgspec
from msgspec import Meta, Struct

from app.config.key_text import make_secret
from app.limits import is_weak
from app.stream.identity import CERTIFICATE, Identity

PREFIX = "CHATLEDGER_"
MASTER_KEY_BYTES = 32  # AES-256
MASTER_SETTING = "CHATLEDGER_MASTER_KEY"
ADMIN_FILE = "admin.key"
MASTER_FILE, MASTER_OLD_FILE = "master.key", "master.key.old"
CONFIG_BYTES_MAX = 1_000_000  # chosen: far more than any file needs, and read in one piece

SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}

Role = Literal["web", "relay", "project", "deliver"]
ROLES: frozenset[Role] = frozenset(get_args(Role))


# The patterns have `(?!\n)`, because `$` alone accepts a line end.
BaseUrl = Annotated[str, Meta(pattern=r"^[hH][tT][tT][pP][sS]?://[^\x00-\x20?#\x7f-\x9f]+$(?!\n)")]


@lru_cache
def _seconds(span: str) -> int:
    """A span such as `24h` in seconds. It is kept, because each hook asks for it."""
    return int(span[:-1]) * SECONDS[span[-1]]


class BadSettings(Exception):
    """A setting is missing or cannot be used; the message names it and says what to do."""


class Settings(
    Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename=lambda name: PREFIX + name.upper()
):
    """The operator's settings; each field is the variable CHATLEDGER_<FIELD>."""

    data: Path
    database_url: str | None = None
    pack_events: bool | None = None
    nats_url: str | None = None
    nats_replicas: Literal[1, 3, 5] | None = None
    nats_credentials: Path | None = None
    nats_ca: Path | None = None
    nats_certificate: tuple[Path, ...] = ()
    servers_user: Annotated[str, Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_.-]*$(?!\n)")] | None = None
    host: Annotated[str, Meta(pattern=r"^[!-.0-~]+$(?!\n)")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 8080
    admin_key: Annotated[str, Meta(pattern=r"^[!-~]+$(?!\n)")] | None = None
    master_key: str | None = None
    master_key_old: str | None = None
    kommo_url: BaseUrl = "https://amojo.kommo.com"
    public_url: BaseUrl | None = None
    hook_max_age: Annotated[str, Meta(pattern=r"^[1-9][0-9]{0,4}[smhd]$(?!\n)")] = "24h"
    trusted_proxies: tuple[str, ...] = ()
    roles: frozenset[Role] = ROLES
    unconnected_limit: Annotated[int, Meta(ge=0, le=1_000_000)] = 10_000
    account_rate: Annotated[int, Meta(ge=1, le=1_000_000)] = 20_000
    account_bytes: Annotated[int, Meta(ge=1024, le=2**40)] = 64 * 1024 * 1024
    account_open: Annotated[int, Meta(ge=1, le=100_000_000)] = 100_000
    access_days: Annotated[int, Meta(ge=1, le=3650)] = 90
    unconnected_days: Annotated[int, Meta(ge=0, le=3650)] = 7

    @property
    def nats_identity(self) -> Identity:
        """Returns the files by which NATS servers and we know each other."""
        certificate, key, *_ = (*self.nats_certificate, None, None)
        return Identity(self.nats_credentials, self.nats_ca, certificate, key)

    @property
    def hook_age_seconds_max(self) -> int:
        """Returns the age, in seconds, beyond which a hook of Kommo's is kept and not delivered."""
        return _seconds(self.hook_max_age)

    def __repr__(self) -> str:
        """Shows neither keys nor URLs, which contain secrets."""
        return f"Settings(data={self.data}, host={self.host}, port={self.port}, roles={sorted(self.roles)})"


class Keys(Struct, frozen=True):
    """The bearer key with every right, and the 32 bytes that seal secrets in the database.

    `old`: further master keys, which only open what is sealed, while one is rotated.
    """

    admin: str
    master: bytes
    old: tuple[bytes, ...] = ()

    def __repr__(self) -> str:
        """Shows nothing: a key belongs in no log."""
        return "Keys(…)"


LISTS = ("CHATLEDGER_ROLES", "CHATLEDGER_TRUSTED_PROXIES", "CHATLEDGER_NATS_CERTIFICATE")
HINTS = {
    "CHATLEDGER_DATA": "give a folder",
    "CHATLEDGER_DATABASE_URL": "give a URL like postgresql://user:password@host/database",
    "CHATLEDGER_PACK_EVENTS": "give true, or false: how events are stored from the next migration on",
    "CHATLEDGER_NATS_URL": "give a URL like nats://user:password@host:4222, or several with commas between",
    "CHATLEDGER_NATS_REPLICAS": "give 1, 3 or 5: how often the NATS cluster keeps the stream",
    "CHATLEDGER_NATS_CREDENTIALS": "give a .creds file, or a file with the seed of a user's nkey",
    "CHATLEDGER_NATS_CA": "give a PEM file with the authority of the NATS servers' certificates",
    "CHATLEDGER_NATS_CERTIFICATE": (
        "give a PEM file with our certificate and its key, or two files with a comma between"
    ),
    "CHATLEDGER_SERVERS_USER": "give the name of a user of this system, other than root",
    "CHATLEDGER_HOST": "give an address to listen on, like 127.0.0.1",
    "CHATLEDGER_PORT": "give a whole number from 0 (any free port) to 65535",
    "CHATLEDGER_ADMIN_KEY": "give printable ASCII characters without spaces, 128 bits or more,"
    " for example from: openssl rand -hex 32",
    "CHATLEDGER_MASTER_KEY": "give 32 bytes in base64, for example from: openssl rand -base64 32",
    "CHATLEDGER_MASTER_KEY_OLD": "give the master key that is being replaced, 32 bytes in base64",
    "CHATLEDGER_KOMMO_URL": "give an http or https URL, like https://amojo.kommo.com",
    "CHATLEDGER_PUBLIC_URL": "give the http or https URL under which Kommo reaches this service",
    "CHATLEDGER_HOOK_MAX_AGE": "give a whole number from 1 to 99999 with s, m, h or d behind it, like 24h",
    "CHATLEDGER_TRUSTED_PROXIES": "give addresses or networks with commas between, like 127.0.0.1,10.0.0.0/8",
    "CHATLEDGER_ROLES": "give some of web,relay,project,deliver with commas between",
    "CHATLEDGER_UNCONNECTED_LIMIT": (
        "give how many deliveries are kept for an account that is not connected, 0 to 1000000"
    ),
    "CHATLEDGER_ACCOUNT_RATE": "give how many actions an account may send in a second, 1 to 1000000",
    "CHATLEDGER_ACCOUNT_BYTES": "give how many bytes of actions an account may send in a second, from 1024",
    "CHATLEDGER_ACCOUNT_OPEN": "give how many deliveries of an account may be open, 1 to 100000000",
    "CHATLEDGER_ACCESS_DAYS": "give for how many days it is kept who looked, 1 to 3650",
    "CHATLEDGER_UNCONNECTED_DAYS": "give for how many days they are kept, 0 to 3650",
}


def load_settings(
    config: Path | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    overrides: Mapping[str, str] | None = None,
) -> Settings:
    """Read the settings: `overrides` (the command line) win over the environment, which wins over the file.

    All three use the names CHATLEDGER_…; an empty text counts as not set. Raises BadSettings.
    """
    environment = os.environ if environment is None else environment
    given = _plain(read_file(config), environment) if config else {}
    for source in (environment, overrides or {}):
        given |= {name: value for name, value in source.items() if name.startswith(PREFIX)}
    given = {name: value for name, value in given.items() if value != ""}
    _refuse_unknown(given)
    home = environment.get("HOME", "")
    given["CHATLEDGER_DATA"] = _data_folder(given.get("CHATLEDGER_DATA"), home)
    return _checked(_convert(given))


def load_keys(settings: Settings) -> Keys:
    """Returns the keys: from the settings, else from the data folder, where they are created if missing."""
    admin = settings.admin_key or kept_line(settings.data / ADMIN_FILE, make_secret())
    if is_weak(admin):
        raise BadSettings(f"{settings.data / 'admin.key'}: {HINTS['CHATLEDGER_ADMIN_KEY']}")
    if settings.master_key is None:
        kept_line(settings.data / MASTER_FILE, new_master_key())
    master, *old = load_masters(settings)
    return Keys(admin, master, tuple(old))


def find_admin_key(settings: Settings) -> str:
    """Returns the admin key as it is now; creates none. Raises BadSettings, also for a spoiled master key."""
    if settings.master_key is None:
        with contextlib.suppress(FileNotFoundError):
            load_masters(settings)
    try:
        return settings.admin_key or key_line(settings.data / ADMIN_FILE)
    except FileNotFoundError:
        raise BadSettings(
            f"there is no admin key in {settings.data}: start the service first, or give CHATLEDGER_DATA and "
            "CHATLEDGER_ADMIN_KEY as the service has them"
        ) from None


def load_masters(settings: Settings) -> list[bytes]:
    """Returns the master keys as they are now, the one that seals first; creates none.

    They stand in the settings, else in the data folder. Raises BadSettings, FileNotFoundError.
    """
    file, old = settings.data / MASTER_FILE, settings.data / MASTER_OLD_FILE
    in_files = settings.master_key is None
    found = [master_key(settings.master_key or key_line(file), str(file) if in_files else MASTER_SETTING)]
    if settings.master_key_old:
        found.append(master_key(settings.master_key_old, f"{MASTER_SETTING}_OLD"))
    if in_files:
        with contextlib.suppress(FileNotFoundError):
            found.append(master_key(key_line(old), str(old)))
    return found


def new_master_key() -> str:
    """Returns a new master key in base64."""
    return base64.b64encode(secrets.token_bytes(MASTER_KEY_BYTES)).decode()


def from_environment(text: str, environment: Mapping[str, str] | None = None) -> str:
    """Returns a text of the file, or for `env:NAME` the value of that variable. Raises BadSettings.

    A line end, which a value read from a file often has, is removed.
    """
    kind, _, name = text.partition(":")
    if kind != "env":
        return text
    found = (os.environ if environment is None else environment).get(name, "").rstrip("\r\n")
    if not found:
        raise BadSettings(f"the environment has no {name}: set it, or write the value itself")
    return found


def prepare_folder(folder: Path) -> None:
    """Create the data folder, for its owner only, unless it exists. Raises BadSettings.

    When we are root, other users may pass through it, because PostgreSQL runs as one of them.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if os.geteuid() == 0 and not any(folder.iterdir()):
            folder.chmod(folder.stat().st_mode | 0o011)
    except OSError as error:
        raise BadSettings(
            f"CHATLEDGER_DATA: {folder} cannot be made ({error.strerror}): give a folder you may write to"
        ) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise BadSettings(f"CHATLEDGER_DATA: {folder} is not writable: give a folder you may write to")


def read_file(config: Path) -> dict[str, object]:
    """Returns a configuration file as it is. Raises BadSettings."""
    try:
        if config.stat().st_size > CONFIG_BYTES_MAX:
            raise BadSettings(f"{config} is too long for a configuration file")
        found: dict[str, object] = tomllib.loads(config.read_bytes().removeprefix(BOM_UTF8).decode())
    except OSError as error:
        raise BadSettings(
            f"{config} cannot be read ({error.strerror}): check the path given by --config"
        ) from error
    except UnicodeDecodeError as error:
        raise BadSettings(f"{config} is not UTF-8 (byte {error.start}): save it as UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise BadSettings(f"{config} is not TOML: {error}") from error
    return found


def _plain(found: dict[str, object], environment: Mapping[str, str]) -> dict[str, object]:
    """Returns the settings of a file, without its tables, and with the values of `env:NAME`."""
    given = {name: value for name, value in found.items() if not is_table(name, value)}
    for name, value in given.items():
        if isinstance(value, str):
            try:
                given[name] = from_environment(value, environment)
            except BadSettings as error:
                raise BadSettings(f"{name}: {error}") from None
    return given


def is_table(name: str, value: object) -> bool:
    """Whether an entry of the file is a table and not a setting."""
    return isinstance(value, dict | list) and not name.startswith(PREFIX)


def _refuse_unknown(given: Mapping[str, object]) -> None:
    for name in sorted(given.keys() - HINTS.keys()):
        near = difflib.get_close_matches(name, HINTS, n=1) or difflib.get_close_matches(
            PREFIX + name.upper(), HINTS, n=1, cutoff=0.9
        )
        advice = f"did you mean {near[0]}?" if near else f"the settings are {', '.join(HINTS)}"
        raise BadSettings(f"{name} is not a setting: {advice}")


def _data_folder(given: object, home: str) -> object:
    """Returns the absolute path; where HOME is empty, as in containers, the user database has the home."""
    if isinstance(given, str) and not given.startswith("~/"):
        return os.path.abspath(given)
    if given is not None and not isinstance(given, str):
        return given
    if given is None and os.geteuid() == 0:
        return "/var/lib/chatledger"
    if not home:
        try:
            home = pwd.getpwuid(os.geteuid()).pw_dir
        except KeyError:
            raise BadSettings("CHATLEDGER_DATA is needed, for this user has no home: give a folder") from None
    return os.path.join(home, given[2:] if given else ".local/state/chatledger")


def _convert(given: dict[str, Any]) -> Settings:
    for name in LISTS:
        if isinstance(listed := given.get(name), str):
            given[name] = [one.strip() for one in listed.split(",")]
    try:
        return msgspec.convert(given, Settings, strict=False, dec_hook=_path)
    except msgspec.ValidationError as error:
        name = next((name for name in HINTS if f"$.{name}" in str(error)), "settings")
        raise BadSettings(f"{name}: {HINTS.get(name, error)}") from error


def _path(kind: type, value: object) -> Path:
    if kind is not Path or not isinstance(value, str):
        raise msgspec.ValidationError("Expected a path")
    return Path(value)


def _checked(settings: Settings) -> Settings:
    """Check the rules that types cannot express."""
    for place in (settings.data, *settings.data.parents):
        if place.exists() and not place.is_dir():
            raise BadSettings(f"CHATLEDGER_DATA: {place} is a file, {settings.data} needs a folder: give one")
    database, nats = settings.database_url, settings.nats_url
    if database and not database.startswith(("postgresql://", "postgres://")) and "=" not in database:
        raise BadSettings(f"CHATLEDGER_DATABASE_URL: {HINTS['CHATLEDGER_DATABASE_URL']}")
    if nats and not all(one.strip().startswith(("nats://", "tls://")) for one in nats.split(",")):
        raise BadSettings(f"CHATLEDGER_NATS_URL: {HINTS['CHATLEDGER_NATS_URL']}")
    if len(settings.nats_certificate) > len(("certificate", "key")):
        raise BadSettings(f"{CERTIFICATE}: {HINTS[CERTIFICATE]}")
    if settings.admin_key and is_weak(settings.admin_key):
        raise BadSettings(f"CHATLEDGER_ADMIN_KEY: {HINTS['CHATLEDGER_ADMIN_KEY']}")
    for network in settings.trusted_proxies:
        _check_network(network)
    for name in ("master_key", "master_key_old"):
        if text := getattr(settings, name):
            master_key(text, PREFIX + name.upper())
    if settings.roles != ROLES and not (database and nats):
        missing = "CHATLEDGER_NATS_URL" if database else "CHATLEDGER_DATABASE_URL"
        raise BadSettings(
            f"{missing} is needed with CHATLEDGER_ROLES={','.join(sorted(settings.roles))}: several processes"
            " share servers; set both URLs, or leave CHATLEDGER_ROLES out to run everything in one process"
        )
    return msgspec.structs.replace(settings, kommo_url=settings.kommo_url.rstrip("/"))


def _check_network(text: str) -> None:
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        name = "CHATLEDGER_TRUSTED_PROXIES"
        raise BadSettings(f"{name}: {HINTS[name]}") from None


def master_key(text: str, source: str) -> bytes:
    """Returns the 32 bytes of a master key; `source` names where it stands. Raises BadSettings."""
    try:
        key = base64.b64decode(text, validate=True)
    except ValueError:  # binascii.Error, or not ASCII.
        key = b""
    if len(key) != MASTER_KEY_BYTES:
        raise BadSettings(f"{source}: {HINTS.get(source, HINTS['CHATLEDGER_MASTER_KEY'])}")
    return key


def kept_line(path: Path, made: str) -> str:
    """Returns the line in the file, or creates the file with `made`. Two processes get the same line."""
    try:
        return key_line(path)
    except FileNotFoundError:
        pass
    prepare_folder(path.parent)
    draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(descriptor, "w", encoding="ascii") as file:
            file.write(made + "\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(draft, path)  # Unlike a rename, a link fails if another process was first.
        except FileExistsError:
            return key_line(path)
    finally:
        draft.unlink()
    sync_folder(path.parent)
    return made


def key_line(path: Path) -> str:
    """Returns the key in a file. Raises FileNotFoundError, and BadSettings if it holds none."""
    try:
        text = path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        raise
    except (OSError, UnicodeDecodeError) as error:
        raise BadSettings(f"{path} cannot be read ({error}): make it readable for this user") from error
    if not text or any(not "!" <= letter <= "~" for letter in text):
        raise BadSettings(f"{path} does not hold a key: put it back from a backup")
    return text


def sync_folder(folder: Path) -> None:
    """Sync the folder itself, so that its new files survive a crash."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
