"""The fake Kommo and the demo messenger with their state and rules, without an address."""

import aiohttp

from ops.sandbox.chats.hooks import Hooks
from ops.sandbox.chats.manager import Managers
from ops.sandbox.chats.rules import Kommo
from ops.sandbox.config import Config
from ops.sandbox.crm.consent import Consent
from ops.sandbox.crm.rules import CrmRules
from ops.sandbox.crm.webhooks import CrmHooks
from ops.sandbox.faults import Faults
from ops.sandbox.feed import Feed
from ops.sandbox.messenger.rules import Messenger
from ops.sandbox.rate_limit import Rate
from ops.sandbox.state.chats import Crm
from ops.sandbox.state.crm import CrmState
from ops.sandbox.state.messenger import MessengerState
from ops.sandbox.state.store import Store


class World:
    """Made from a config; `url` is empty until the server listens, `session` makes the outgoing calls."""

    session: aiohttp.ClientSession

    def __init__(self, config: Config) -> None:
        self.config = config
        self.url = ""

    def build(self) -> None:
        """Make all parts, with what the store has kept."""
        self.store = Store(self.config.state)
        self.feed, self.faults = Feed(), Faults()
        self.chat_state, self.messenger_state = Crm(self.store), MessengerState(self.store)
        self.hooks = Hooks(self.config, self.chat_state, self.faults, self.feed)
        self.crm_state = CrmState(self.store)
        self.consent = Consent(self.config, self.chat_state, self.crm_state)
        self.crm_hooks = CrmHooks(self.config, self.crm_state, self.faults)
        self.crm_rules = CrmRules(self.config, self.chat_state, self.crm_state, self.crm_hooks, self.feed)
        self.hooks.source_of = self.crm_rules.source
        self.kommo = Kommo(self.config, self.chat_state, self.hooks, self.feed, self.crm_rules)
        self.managers = Managers(self.config, self.chat_state, self.hooks, self.feed, self.crm_rules)
        self.crm_rate = Rate(self.config.crm_per_second)
        self.chats_rate = Rate(self.config.chats_per_second)
        self.messenger = Messenger(self.config, self.messenger_state, self.feed)
