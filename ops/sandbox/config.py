"""The settings of a sandbox, complete and typed before it starts."""

from uuid import NAMESPACE_URL, uuid5
from zlib import crc32

from msgspec import Struct

MESSAGES_MAX = 100_000  # per side; the oldest are forgotten beyond it
CHATS_MAX = 100_000  # per side, likewise
CALLS_MAX = 1_000  # statuses and edits kept of one message
RECORDS_MAX = 100_000  # statuses, pushes, hooks and other calls kept for reading
WAITING_MAX = 20_000  # hooks and actions that wait to be sent
HOOK_SECONDS = 5.0  # as long as Kommo waits for an answer
HOOK_WORKERS = 16
ACTION_WORKERS = 16
ACTION_SECONDS = 15.0
BODY_MAX = 1024 * 1024
TOKEN_SECONDS = 24 * 60 * 60  # an access token lives a day
CRM_PER_SECOND = 7  # requests of one account, as Kommo documents it


class Manager(Struct, frozen=True):
    """A user of the CRM who may answer; `id` is the user's amojo id."""

    id: str
    name: str


MANAGERS = (
    Manager("0f8f1c5e-7f0a-4c52-9a43-3b1d0c7a1e01", "Maria Keller"),
    Manager("0f8f1c5e-7f0a-4c52-9a43-3b1d0c7a1e02", "Oleg Brandt"),
)


class Channel(Struct, frozen=True):
    """A channel as Kommo's support hands it out. No `bot`: one is derived from the channel's id.

    `client` is the integration whose uuid stands in the channel's settings; empty: any integration will do.
    """

    id: str
    secret: str
    bot: str = ""
    client: str = ""

    @property
    def bot_id(self) -> str:
        """The `sender.ref_id` of messages that were written outside the CRM by no known user."""
        return self.bot or str(uuid5(NAMESPACE_URL, f"bot:{self.id}"))

    @property
    def code(self) -> str:
        """The channel's code, which is the `origin` of its talks."""
        return f"amo.ext.{crc32(self.id.encode()) % 10**8:08d}"


class OAuthClient(Struct, frozen=True):
    """An integration as Kommo's developer pages show it. No `redirect_uri`: each consent names its own."""

    id: str
    secret: str
    redirect_uri: str = ""

    def __repr__(self) -> str:
        """Without the secret."""
        return f"OAuthClient({self.id})"


class CrmAccount(Struct, frozen=True):
    """An account: `amojo_id` in the Chats API, `id` and `subdomain` in the CRM."""

    amojo_id: str
    id: int
    subdomain: str


def crm_account(amojo_id: str, id: int = 0, subdomain: str = "") -> CrmAccount:
    """An account; ids that are not given are derived from the amojo id and never change."""
    id = id or 10_000_000 + crc32(amojo_id.encode()) % 20_000_000
    return CrmAccount(amojo_id, id, subdomain or f"acme{id}")


class Config(Struct, frozen=True, kw_only=True):
    """The settings of a sandbox. `accounts` is the channels' whitelist; empty: every account may connect.

    `hook_url` may contain `:scope_id`. `messenger_url` is where customers' actions are posted, and
    `messenger_secret` (`whsec_…`) signs both directions. `duplicates` is `accept` or `refuse`.
    `echo` also sends a hook for what the integration itself sent in a manager's name.
    `oauth` are the integrations, `crm_accounts` the accounts whose CRM names matter, `disabled_url` is told
    when an integration is disabled. `slow_seconds` is how long hooks wait in the slow queue.
    `scope_accounts` names accounts that stand under another name in their scope ids.
    `widget` is the archive of the first integration's widget.
    `crm_retry_scale` shortens the waits between the tries of a CRM webhook; 1 is Kommo's own schedule.
    """

    host: str = "127.0.0.1"
    port: int = 0
    channels: tuple[Channel, ...] = ()
    accounts: tuple[str, ...] = ()
    managers: tuple[Manager, ...] = MANAGERS
    hook_url: str = ""
    duplicates: str = "accept"
    echo: bool = False
    messenger_url: str = ""
    messenger_secret: str = ""
    messenger_account: str = ""
    receipts: bool = True
    state: str = ""
    oauth: tuple[OAuthClient, ...] = ()
    crm_accounts: tuple[CrmAccount, ...] = ()
    disabled_url: str = ""
    token_seconds: float = TOKEN_SECONDS
    crm_per_second: int = CRM_PER_SECOND
    chats_per_second: int = 0
    crm_retry_scale: float = 1.0
    slow_seconds: float = 0.0
    scope_accounts: tuple[tuple[str, str], ...] = ()
    widget: bytes = b""

    def scope_id(self, channel_id: str, account_id: str) -> str:
        """The scope id that a connection gets."""
        return f"{channel_id}_{dict(self.scope_accounts).get(account_id, account_id)}"
