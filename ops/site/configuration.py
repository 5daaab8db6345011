"""Settings and the tables of the file, from the structs that read them, and the example that a test loads."""

import msgspec

from app.config.example import EXAMPLE
from app.config.file import (
    Account,
    Budgets,
    Channel,
    Connected,
    DefaultSource,
    Install,
    KommoSide,
    MessengerSide,
    OAuthApp,
)
from app.config.settings import HINTS, Settings
from ops.site.markdown import code, table
from ops.site.types import fields

TABLES = {
    "[[channels]]": Channel,
    "[channels.kommo]": KommoSide,
    "[channels.messenger]": MessengerSide,
    "[[channels.connections]]": Connected,
    "[oauth]": OAuthApp,
    "[install]": Install,
    "[install.source]": DefaultSource,
    "[[accounts]]": Account,
    "[budgets]": Budgets,
}
# What stands when a setting is left out and its default is no plain value.
ABSENT = {
    "CHATLEDGER_DATA": "`/var/lib/chatledger` as root, else `~/.local/state/chatledger`",
    "CHATLEDGER_DATABASE_URL": "none: a private PostgreSQL is started",
    "CHATLEDGER_PACK_EVENTS": "as it was at the last migration; JSON in a new ledger",
    "CHATLEDGER_NATS_URL": "none: a private NATS server is started",
    "CHATLEDGER_NATS_REPLICAS": "3 in a cluster of three or more, else 1",
    "CHATLEDGER_NATS_CREDENTIALS": "none: the URL says who we are",
    "CHATLEDGER_NATS_CA": "the system's authorities",
    "CHATLEDGER_NATS_CERTIFICATE": "none",
    "CHATLEDGER_SERVERS_USER": "as root `chatledger`, made at the first start; else the user who starts it",
    "CHATLEDGER_ADMIN_KEY": "made once: `admin.key` in the data folder",
    "CHATLEDGER_MASTER_KEY": "made once: `master.key` in the data folder",
    "CHATLEDGER_MASTER_KEY_OLD": "none; while the master key is changed",
    "CHATLEDGER_PUBLIC_URL": "none; needed with `[oauth]`",
    "CHATLEDGER_TRUSTED_PROXIES": "none",
    "CHATLEDGER_ROLES": "all",
}


def settings() -> str:
    """Every setting: its name, what to give, and what stands if nothing is given."""
    rows = []
    for field in msgspec.structs.fields(Settings):
        name = field.encode_name
        absent = ABSENT.get(name, f"`{field.default}`")
        rows.append((f"`{name}`", HINTS[name].removeprefix("give ").removeprefix("the "), absent))
    return table(("setting", "value", "if left out"), rows)


def tables() -> str:
    """The file's tables, each with its fields."""
    parts = [f"### `{name}`\n\n{_linked(fields(shape))}" for name, shape in TABLES.items()]
    return "\n\n".join(parts)


def _linked(text: str) -> str:
    """Fields that hold a table lead to it by the name it has in the file."""
    for name, shape in TABLES.items():
        anchor = name.strip("[]").replace(".", "")
        text = text.replace(f"[{shape.__name__}](#{shape.__name__.lower()})", f"[`{name}`](#{anchor})")
    return text


def example() -> str:
    """A complete file."""
    return code(EXAMPLE, "toml")
