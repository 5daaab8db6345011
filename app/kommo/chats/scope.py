"""The scope id of a connection is what Kommo names; `{channel_id}_{account_id}` only until it names one."""

import logging
import re

from msgspec.structs import replace

from app.http_client import Answer
from domain.ids import Scope

SCOPE_ID = re.compile(r"[A-Za-z0-9_.~-]{1,255}", re.ASCII)  # What stands in a path without being escaped.
log = logging.getLogger("chatledger.kommo")


def named(answer: Answer, scope: Scope) -> Scope:
    """Returns the scope under the id that Kommo's answer to a connect names; the same if it names none."""
    scope_id = answer.json().get("scope_id")
    if scope_id == scope.scope_id or not isinstance(scope_id, str):
        return scope
    if not SCOPE_ID.fullmatch(scope_id):
        log.warning("channel %s: Kommo names a scope id that no path can hold", scope.channel)
        return scope
    return replace(scope, scope_id=scope_id)
