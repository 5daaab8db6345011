"""What is written down of a request: each one whose caller is known, but for those that show no content."""

from typing import Any

from litestar.enums import ScopeType
from litestar.types import Message, Scope

from app.access.access_log import entry_of
from app.http.guard import ABOUT, CALLER
from app.http.request import Connection, address_of
from app.operations.services import Services
from app.printable import printable

UNLOGGED: dict[str, Any] = {"logged": False}  # For a route's `opt`: it shows no content, and is asked often.
# Names are kept as a person may read them, and as PostgreSQL takes them: a client may write NUL into a path.
NAME_CHARACTERS_MAX = 255  # As long as any id that we take.
NAMES = ("account_id", "conversation", "message")


async def note_access(message: Message, scope: Scope) -> None:
    """Write down an answer that begins; Litestar calls this for every part of every answer."""
    if message["type"] != "http.response.start" or scope["type"] != ScopeType.HTTP:
        return
    caller = scope.get("state", {}).get(CALLER)
    if caller is None or not scope["route_handler"].opt.get("logged", True):
        return
    connection: Connection = Connection(scope)
    query, path = connection.query_params, connection.path_params
    body = scope.get("state", {}).get(ABOUT)
    names = {name: path.get(name) or query.get(name) for name in NAMES}
    names["account_id"] = names["account_id"] or body
    services: Services = scope["litestar_app"].state.services
    services.access_log.note(
        entry_of(
            caller,
            method=str(scope.get("method", "")),
            route=str(scope.get("path_template", scope["path"])),
            names={
                name: printable(str(value))[:NAME_CHARACTERS_MAX] for name, value in names.items() if value
            },
            address=address_of(connection),
            status=message["status"],
        )
    )
