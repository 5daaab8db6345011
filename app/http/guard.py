"""Nothing under /v1, and no metrics, without a key that may do it; wrong keys are slowed down by source.

Every route says what a key needs for it, in its `opt`: one of the rights, `admin` if it says nothing. So a
new route is closed until somebody opens it. The same holds for keys that are limited to accounts. What a path
or a query names (an account, a conversation, a message) is looked up here, before the route runs, and is
answered 404 if it is another account's, as if it were not there: each value of a name that comes several
times, because pages take such addresses. A route whose path names none of these is closed to such keys,
whatever its query names, unless it says `REACHED`: that it shows, or changes, only what `caller_of` reaches.

What goes on for long, a stream of events, asks `still_good` before each of its pages.
"""

from collections.abc import Awaitable, Callable
from typing import Any, cast

from litestar.handlers import BaseRouteHandler

from app.access import admin_key, api_keys
from app.access.callers import Caller, Right
from app.bad_requests import BAD_REQUESTS
from app.database.pool import Pool
from app.http.request import Call, Connection, address_of
from app.operations.services import Services, views_reach
from app.problems import ProblemError
from app.views.cursor import POSITION_LAST
from app.views.events import ledger_head
from app.views.reach import account_of_conversation, account_of_message

NO_KEY = "give a key: Authorization: Bearer KEY (the admin key is in the data folder, admin.key)"
TWO_KEYS = "there are several headers Authorization: send one"
LIMITED = "the key is limited to accounts, and this is about all of them: use one that is not"
OTHERS = "nothing of this id is in the key's reach"
NAMING = frozenset({"account_id", "conversation", "message"})  # parts of paths by which something is owned
CALLER, ABOUT = "caller", "about"  # in a request's state: who asks, and the account that the body names
NEEDS, REACHES = "needs", "reaches"
READ: dict[str, Any] = {NEEDS: "read"}
SEND: dict[str, Any] = {NEEDS: "send"}
AUDIT: dict[str, Any] = {NEEDS: "audit"}
REACHED: dict[str, Any] = {REACHES: True}


async def guard(connection: Connection, handler: BaseRouteHandler) -> None:
    """Let a request pass whose key may do it; raises ProblemError (400, 401, 403, 404, 429)."""
    services: Services = connection.app.state.services
    caller = await _caller(services, connection)
    connection.state[CALLER] = caller
    check_right(caller, handler.opt.get(NEEDS, "admin"))
    if caller.accounts is not None:
        await check_reach(services, caller, connection, handler)


def caller_of(request: Call) -> Caller:
    """Returns who asks; only for routes behind the guard."""
    return cast("Caller", request.state[CALLER])


def check_right(caller: Caller, right: Right) -> None:
    """Raises ProblemError (403) if the key lacks a right."""
    if not caller.may(right):
        raise ProblemError(403, f"this needs a key with the right {right}: yours has {_rights(caller)}")


def _rights(caller: Caller) -> str:
    return ", ".join(sorted(caller.rights)) or "none"


async def check_reach(
    services: Services, caller: Caller, connection: Connection, handler: BaseRouteHandler
) -> None:
    """Raises ProblemError if a request leaves what the caller reaches: 404, or 403 if it is about all."""
    path, query = connection.path_params, connection.query_params
    if not all(caller.reaches(account) for account in _named(connection, "account_id")):
        raise ProblemError(404, OTHERS)
    if (position := str(query.get("at_least", ""))).isdecimal():
        await views_reach(services, min(int(position), POSITION_LAST))
    fresh = connection.scope.get("method") != "GET"
    for conversation in _named(connection, "conversation"):
        await _check_owner(services, caller, account_of_conversation, conversation, fresh=fresh)
    if "message" in path:
        await _check_owner(services, caller, account_of_message, str(path["message"]), fresh=fresh)
    if path.keys().isdisjoint(NAMING) and not handler.opt.get(REACHES):
        raise ProblemError(403, LIMITED)


def _named(connection: Connection, name: str) -> list[str]:
    """What the path and the query call by a name: a page takes it several times, and reads one of them."""
    values = [connection.path_params.get(name), *connection.query_params.getall(name, [])]
    return [str(value) for value in values if value is not None]


async def _check_owner(
    services: Services,
    caller: Caller,
    account_of: Callable[[Pool, str], Awaitable[str | None]],
    id_: str,
    *,
    fresh: bool,
) -> None:
    """Raises ProblemError (404) if something is out of reach.

    With `fresh` it may have been made a moment ago: so the views are waited for, whosever it is, lest the
    time of an answer tells whether there is such a thing.
    """
    if caller.reaches(await account_of(services.pool, id_)):
        return
    if fresh:
        await views_reach(services, await ledger_head(services.pool))
        if caller.reaches(await account_of(services.pool, id_)):
            return
    raise ProblemError(404, OTHERS)


def check_account(request: Call, account: str | None) -> None:
    """Raises ProblemError if a body is about another account (404), or a limited key names none (400)."""
    caller, request.state[ABOUT] = caller_of(request), account
    if caller.accounts is not None and account is None:
        raise ProblemError(400, "account_id: name the account, because the key is limited to accounts")
    if not caller.reaches(account):
        raise ProblemError(404, OTHERS)


async def _caller(services: Services, connection: Connection) -> Caller:
    given = connection.headers.getall("authorization", [])
    if len(given) > 1:
        raise ProblemError(400, TWO_KEYS)
    kind, _space, text = given[0].partition(" ") if given else ("", "", "")
    if kind.lower() == "bearer" and (caller := await caller_with(services, text.strip())):
        return caller
    if text:
        address = address_of(connection)
        BAD_REQUESTS.count("wrong_key", address, "its key is wrong")
        if seconds := await services.tries.slow_down("key", address):
            detail = f"too many wrong keys from your address: wait {seconds} seconds, or give the right one"
            raise ProblemError(429, detail, retry_after=seconds)
    raise ProblemError(401, NO_KEY)


async def caller_with(services: Services, key: str) -> Caller | None:
    """Returns who asks with a key; None if it is none of ours, or over."""
    if admin_key.is_configured(services.keys, key):
        return await admin_key.configured(services.pool, services.keys)
    return await api_keys.find(services.pool, key)


async def still_good(services: Services, caller: Caller) -> bool:
    """Whether the key of a caller is still good. Raises psycopg.OperationalError."""
    return await caller_of_key(services, caller.id) is not None


async def caller_of_key(services: Services, key_id: str | None) -> Caller | None:
    """Returns who asks with a key, by its id; None is the admin key that we were started with.

    None if the key is over. Raises psycopg.OperationalError.
    """
    if key_id is None:
        return await admin_key.configured(services.pool, services.keys)
    key = await api_keys.get(services.pool, key_id)
    return api_keys.caller_of(key) if key else None
