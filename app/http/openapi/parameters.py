"""Each parameter of a route: its meaning and a value, and the shape that an id in a path has."""

from typing import Any

from app.http.openapi.examples import (
    ACCOUNT,
    AT,
    CHANNEL_ID,
    CHAT,
    CHAT_ID,
    EVENT,
    HOOK_KEY,
    LATER,
    LEAD,
    MESSAGE,
    SCOPE,
)

# What an id in a path looks like: nothing can be at another. `conversation` is such an id in a query, too.
_UUID = "^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$"
PATTERNS = {"account_id": _UUID, "conversation": _UUID, "message": _UUID, "name": "^[a-z0-9-]{1,64}$"}

PARAMETERS: dict[str, tuple[str, Any]] = {
    "scope_id": ("the channel's connection, as Kommo calls it: channel id, underscore, account id", SCOPE),
    "name": ("the channel, by its name", "acme"),
    "channel": ("the channel, by its name", "acme"),
    "account_id": ("the Kommo account, by its amojo id", ACCOUNT),
    "conversation": ("the conversation, by our id", CHAT),
    "conversation_id": ("the conversation, as the messenger calls it", "conv-1"),
    "chat_id": ("the conversation, as Kommo calls it", CHAT_ID),
    "message": ("the message, by our id", MESSAGE),
    "limit": ("how many at most", 50),
    "cursor": ("where to go on: `next` of the page before", None),
    "after": ("the position after which to begin", 0),
    "order": ("by position: the oldest first, or the newest", "desc"),
    "type": ("only events of this type", "message.sent"),
    "since": ("only what was recorded at this time or later", AT),
    "until": ("only what was recorded before this time", LATER),
    "at_least": ("wait, at most 5 s, until the views have seen this position", 0),
    "state": ("only deliveries that stand so", "parked"),
    "reason": ("only deliveries whose reason begins so", "the account rests"),
    "destination": ("only deliveries to this side", "kommo"),
    "key": ("what makes the address impossible to guess", HOOK_KEY),
    "code": ("what is exchanged for tokens, once", "def50200…"),
    "referer": ("the account's address", "acme.kommo.com"),
    "client_id": ("the integration", CHANNEL_ID),
    "client_uuid": ("the integration", CHANNEL_ID),
    "error": ("why there is no code", "access_denied"),
    "from_widget": ("1 if the administrator began in Kommo, so that there is no state", "1"),
    "signature": ("hex HMAC-SHA256 of client_uuid|account_id; the key is the integration's secret", None),
    "external_id": ("as the integration calls it", "15550999"),
    "contact_id": ("a contact of Kommo's", 4711),
    "talk_id": ("a talk of Kommo's", 77),
    "uid": ("an incoming lead, as Kommo calls it", LEAD),
    "source_id": ("a source, by Kommo's id", 31),
    "template_id": ("a chat template, by Kommo's id", 41),
    "review_id": ("a review, by Kommo's id", 61),
    "refused_id": ("the refused hook, by the id of the list", EVENT),
    "key_id": ("the key, by the id of the list", EVENT),
    "page": ("which page", 1),
    "again": ("begin at the first line, whatever was done", False),
}
