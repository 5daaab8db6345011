"""The two counterparts of chatledger: a strict fake Kommo (Chats API and CRM) and a demo messenger."""

from ops.sandbox.config import Channel, Config, CrmAccount, Manager, OAuthClient, crm_account
from ops.sandbox.server import Sandbox

__all__ = ["Channel", "Config", "CrmAccount", "Manager", "OAuthClient", "Sandbox", "crm_account"]
