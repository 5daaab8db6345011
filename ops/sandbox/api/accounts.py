"""`/api/v4/account` and `/api/v4/users`: accounts and users by their CRM ids and their amojo ids."""

from zlib import crc32

from litestar import Response, get
from litestar.params import FromPath
from msgspec import Struct

from ops.sandbox.api.crm import Caller, Reply, Wrong, answer
from ops.sandbox.config import Config, Manager
from ops.sandbox.crm.profiles import profile_of
from ops.sandbox.responses import Call

USERS_MAX = 250
NOBODY = Manager("", "Back office")  # A user who never opened the chats: his amojo id is null.
CREATED_AT = 1_600_000_000


class User(Struct, frozen=True):
    """A user of every account: his number in the CRM, and whether he is an administrator."""

    number: int
    name: str
    is_admin: bool


@get("/api/v4/account")
async def account(request: Call) -> Response[bytes]:
    """The account that the token belongs to."""
    return await answer(request, "account", _account)


@get("/api/v4/users")
async def users(request: Call) -> Response[bytes]:
    """The users, `page` by page; 204 beyond the last."""
    return await answer(request, "users", _users)


@get("/api/v4/users/{user_id:int}")
async def user(request: Call, user_id: FromPath[int]) -> Response[bytes]:
    """One user."""

    def work(caller: Caller) -> Reply:
        for one in _all(caller):
            if user_number(one) == user_id:
                return Reply(200, _user(caller, one))
        raise Wrong(404, "The user does not exist")

    return await answer(request, "users", work)


ROUTES = [account, users, user]


def user_number(manager: Manager) -> int:
    """The user's number in the CRM, derived from his amojo id."""
    return 1_000_000 + crc32((manager.id or manager.name).encode()) % 8_000_000


def users_of(config: Config) -> list[User]:
    """The users of an account; the first is its administrator."""
    known = [*config.managers, NOBODY]
    return [User(user_number(one), one.name, one in config.managers[:1]) for one in known]


def _account(caller: Caller) -> Reply:
    named, profile = caller.account, profile_of(caller.request, caller.amojo_id)
    shown: dict[str, object] = {
        "id": named.id,
        "name": profile.name or named.subdomain,
        "subdomain": profile.subdomain or named.subdomain,
        "created_at": CREATED_AT,
        "created_by": 0,
        "updated_at": CREATED_AT,
        "updated_by": 0,
        "current_user_id": user_number(_all(caller)[0]),
        "country": profile.country,
        "currency": profile.currency,
        "currency_symbol": "$",
        "customers_mode": "disabled",
        "is_unsorted_on": True,
        "is_loss_reason_enabled": True,
        "is_helpbot_enabled": False,
        "is_technical_account": False,
        "contact_name_display_order": 1,
        "_links": caller.link("account"),
        "_embedded": {},
    }
    asked = caller.request.query_params.get("with", "").split(",")
    if "amojo_id" in asked:
        shown["amojo_id"] = named.amojo_id
    shown |= {name: value for name in ("language", "plan") if (value := getattr(profile, name))}
    embedded: dict[str, object] = {}
    if "amojo_rights" in asked:
        embedded["amojo_rights"] = {"can_direct": True, "can_create_groups": True}
    if "datetime_settings" in asked:
        embedded["datetime_settings"] = {"date_pattern": "d.m.Y H:i", "timezone": profile.time_zone}
    return Reply(200, shown | {"_embedded": embedded})


def _users(caller: Caller) -> Reply:
    page, limit = caller.number("page", 1, 100_000), caller.number("limit", 50, USERS_MAX)
    everybody = _all(caller)
    shown = everybody[(page - 1) * limit : page * limit]
    if not shown:
        return Reply(204)
    return Reply(
        200,
        {
            "_total_items": len(everybody),
            "_page": page,
            "_page_count": -(-len(everybody) // limit),
            "_links": caller.link("users"),
            "_embedded": {"users": [_user(caller, one) for one in shown]},
        },
    )


def _all(caller: Caller) -> list[Manager]:
    return [*caller.sandbox.config.managers, NOBODY]


def _user(caller: Caller, manager: Manager) -> dict[str, object]:
    number = user_number(manager)
    name = manager.name.lower().replace(" ", ".")
    shown: dict[str, object] = {
        "id": number,
        "name": manager.name,
        "email": f"{name}@example.com",
        "lang": "en",
        "rights": {"is_admin": manager in caller.sandbox.config.managers[:1], "is_active": True},
        "_links": caller.link(f"users/{number}"),
    }
    if "amojo_id" in caller.request.query_params.get("with", "").split(","):
        shown["amojo_id"] = manager.id or None
    return shown
