"""The kinds of messenger that there are, by the name that a channel gives as its messenger's `kind`."""

from collections.abc import Mapping

from app.messengers.adapter import Http, Messenger
from app.messengers.webhook import Webhook

KINDS: dict[str, type[Messenger]] = {
    "webhook": Webhook,
}


def messengers(http: Http) -> Mapping[str, Messenger]:
    """One messenger of each kind, all calling through `http`."""
    return {kind: messenger(http) for kind, messenger in KINDS.items()}
