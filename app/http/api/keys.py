"""Keys of the API, whose secrets are shown once, and who looked with them."""

from typing import Annotated

from litestar import Response, delete, get, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter
from msgspec import Meta, Struct

from app import clock
from app.access import admin_key, api_keys
from app.access.access_log import AccessPage, list_access
from app.access.api_keys import ApiKey, TooManyKeys
from app.access.callers import Right
from app.config.file import Uuid
from app.http.api.parameters import (
    NOT_TO_LEDGER,
    Limit,
    Moment,
    MomentText,
    Name,
    moment_text,
    next_link,
    read_moment,
)
from app.http.guard import AUDIT, REACHED, caller_of
from app.http.openapi.responses import answers
from app.http.request import Call, services_of
from app.problems import ProblemError
from app.views.cursor import is_uuid

UNKNOWN = "no key has this id"
ADMIN = "admin"
OVERLAP_SECONDS_MAX = 30 * 86_400  # Chosen: a month is enough to replace a key everywhere.


class NewKey(Struct, frozen=True):
    """A key to make: its rights, the only accounts that it reaches (null: all), and when it is over."""

    name: Name
    scopes: Annotated[list[Right], Meta(min_length=1, max_length=4)]
    accounts: Annotated[list[Uuid], Meta(min_length=1, max_length=1000)] | None = None
    expires_at: MomentText | None = None


class KeyMade(Struct, frozen=True):
    """A new key: `key` is shown only now."""

    id: str
    key: str


class KeysShown(Struct, frozen=True):
    """All keys, without their secrets."""

    items: list[ApiKey]


class Replace(Struct, frozen=True):
    """For how many seconds the old key is good beside the new one."""

    overlap_seconds: Annotated[int, Meta(ge=0, le=OVERLAP_SECONDS_MAX)] = 86_400


@post(
    "/keys",
    status_code=201,
    summary="Make a key",
    tags=["keys"],
    opt=NOT_TO_LEDGER,
    responses=answers(said={409: f"there are {api_keys.KEYS_MAX:,} keys"}),
)
async def make(request: Call, data: JSONBody[NewKey]) -> Response[KeyMade]:
    """201 with the key, which nobody can read again.

    `read` is for history and events without what was deleted, `audit` for everything and `GET /v1/access`,
    `send` for sending and statuses, `admin` for all. A key that is limited to accounts gets 404 for others.
    """
    expires = moment_text(read_moment(data.expires_at))
    if expires and clock.read(expires) <= clock.now_ms():
        raise ProblemError(400, "$.expires_at: it is over already: give a time to come")
    new, text = await _make(request, data.name, data.scopes, data.accounts, expires)
    return _shown(new.id, text)


@get("/keys", summary="All keys", tags=["keys"])
async def keys(request: Call) -> KeysShown:
    """The oldest first, with the time of their last use, which may be some seconds late."""
    return KeysShown(await api_keys.list_keys(services_of(request).pool))


@post(
    "/keys/{key_id:str}/replace",
    status_code=201,
    summary="Replace a key",
    tags=["keys"],
    opt=NOT_TO_LEDGER,
    responses=answers(said={404: UNKNOWN, 409: f"there are {api_keys.KEYS_MAX:,} keys"}),
)
async def replace(
    request: Call, key_id: FromPath[str], data: JSONBody[Replace | None] = None
) -> Response[KeyMade]:
    """201 with a new key of the same name and rights; the old one is over after the overlap.

    With `admin` in place of an id the admin key is replaced, on every process at once; a data folder that had
    the old one has the new one.
    """
    services, order = services_of(request), data or Replace()
    pool = services.pool
    if key_id == ADMIN or (is_uuid(key_id) and await admin_key.is_admin_key(pool, key_id)):
        async with services.replacing:
            made = await admin_key.replace(pool, services.keys, services.settings, order.overlap_seconds)
        return _shown(*made)
    old = await api_keys.get(pool, key_id) if is_uuid(key_id) else None
    if old is None:
        raise ProblemError(404, UNKNOWN)
    new, text = await _make(request, old.name, old.scopes, old.accounts, None)
    await api_keys.retire(pool, key_id, order.overlap_seconds)
    return _shown(new.id, text)


@delete(
    "/keys/{key_id:str}",
    summary="Delete a key",
    tags=["keys"],
    opt=NOT_TO_LEDGER,
    responses=answers(said={404: UNKNOWN}),
)
async def revoke(request: Call, key_id: FromPath[str]) -> None:
    """204 when no process takes the key any more."""
    if not is_uuid(key_id) or not await api_keys.delete(services_of(request).pool, key_id):
        raise ProblemError(404, UNKNOWN)


async def _make(
    request: Call, name: str, scopes: list[Right], accounts: list[str] | None, expires: str | None
) -> tuple[ApiKey, str]:
    try:
        return await api_keys.make(services_of(request).pool, name, scopes, accounts, expires)
    except TooManyKeys as error:
        raise ProblemError(409, str(error)) from None


def _shown(key_id: str, text: str) -> Response[KeyMade]:
    return Response(KeyMade(key_id, text), status_code=201, headers={"Cache-Control": "no-store"})


@get("/access", summary="Who looked", tags=["keys"], opt=AUDIT | REACHED)
async def access(
    request: Call,
    key: Annotated[str | None, QueryParameter(description="whose key, by its id or name")] = None,
    account_id: FromQuery[str | None] = None,
    since: FromQuery[Moment | None] = None,
    until: FromQuery[Moment | None] = None,
    limit: Limit = 50,
    cursor: FromQuery[str | None] = None,
) -> Response[AccessPage]:
    """Every request with a key or from the console, the latest first; an entry is a second late at most.

    `key` is a key's id or name. What was read without naming an account is shown for each account, but not to
    a key that is limited to accounts: it sees who was let pass to its own.
    """
    page = await list_access(
        services_of(request).pool,
        key=key,
        account_id=account_id,
        accounts=caller_of(request).limited_to,
        since=moment_text(since),
        until=moment_text(until),
        limit=limit,
        cursor=cursor,
    )
    return Response(page, headers=next_link(request, "cursor", page.next))


routes: list[HTTPRouteHandler] = [make, keys, replace, revoke, access]
