"""Everything a sandbox may be told, complete and typed before it starts."""

from uuid import NAMESPACE_URL, uuid5

from msgspec import Struct

MESSAGES_MAX = 100_000  # per side; the oldest are forgotten beyond it
CHATS_MAX = 100_000  # per side, likewise
CALLS_MAX = 1_000  # statuses and edits kept of one message
RECORDS_MAX = 100_000  # statuses, pushes, hooks and other calls kept for reading
WAITING_MAX = 20_000  # hooks and actions that wait to be sent
HOOK_SECONDS = 5.0  # Kommo waits no longer for an answer
HOOK_WORKERS = 16
ACTION_WORKERS = 16
ACTION_SECONDS = 15.0
BODY_MAX = 1024 * 1024


class Manager(Struct, frozen=True):
    """A user of the CRM who may answer; `id` is the user's amojo id."""

    id: str
    name: str


MANAGERS = (
    Manager("0f8f1c5e-7f0a-4c52-9a43-3b1d0c7a1e01", "Maria Keller"),
    Manager("0f8f1c5e-7f0a-4c52-9a43-3b1d0c7a1e02", "Oleg Brandt"),
)


class Channel(Struct, frozen=True):
    """A channel as Kommo's support hands it out. No `bot`: one is derived from the channel's id."""

    id: str
    secret: str
    bot: str = ""

    @property
    def bot_id(self) -> str:
        """The `sender.ref_id` of messages written outside the CRM by nobody known."""
        return self.bot or str(uuid5(NAMESPACE_URL, f"bot:{self.id}"))


class Config(Struct, frozen=True, kw_only=True):
    """What to play. `accounts` is the whitelist of the channels; empty: every account may connect.

    `hook_url` may contain `:scope_id`. `messenger_url` is where customers' actions are posted, and
    `messenger_secret` (`whsec_…`) signs both directions. `duplicates` is `accept` or `refuse`.
    `echo` also sends a hook for what the integration itself sent in a manager's name.
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
