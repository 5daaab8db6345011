"""Two strangers for chatledger to talk to: a strict fake Kommo Chats API and a demo messenger."""

from ops.sandbox.config import Channel, Config, Manager
from ops.sandbox.server import Sandbox

__all__ = ["Channel", "Config", "Manager", "Sandbox"]
