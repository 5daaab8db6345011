"""An account as its CRM describes it (`GET /api/v4/account`), read leniently: only its two ids are needed.

Kommo documents the name, the subdomain, the country and the time zone. It sends the currency, and documents
a language only for its users and a plan nowhere: where an account's answer has them, they are taken.
"""

from collections.abc import Mapping

from msgspec import Struct

from app.http_client import Answer
from app.printable import printable

PATH = "/api/v4/account"
QUERY = {"with": "amojo_id,datetime_settings"}
TEXT_MAX = 255  # Chosen: as names are bounded elsewhere.


class Facts(Struct, frozen=True):
    """What is kept of an account for people to read; None where Kommo does not say."""

    name: str | None = None
    subdomain: str | None = None
    time_zone: str | None = None
    currency: str | None = None
    country: str | None = None
    language: str | None = None
    plan: str | None = None


class Described(Struct, frozen=True):
    """An account: its number in the CRM, its id in the Chats API, its facts, and who the token acts for."""

    id: int
    amojo_id: str
    facts: Facts
    user_id: int | None = None


def described(answer: Answer) -> Described | None:
    """Returns the account in an answer, None if there is none to read."""
    body = answer.json()
    number, amojo_id, user = body.get("id"), body.get("amojo_id"), body.get("current_user_id")
    if type(number) is not int or not isinstance(amojo_id, str) or not amojo_id:
        return None
    times = _inner(_inner(body, "_embedded"), "datetime_settings") or _inner(body, "datetime_settings")
    facts = Facts(
        name=_text(body, "name"),
        subdomain=_text(body, "subdomain"),
        time_zone=_text(times, "timezone") or _text(body, "timezone"),
        currency=_text(body, "currency"),
        country=_text(body, "country"),
        language=_text(body, "language") or _text(body, "lang"),
        plan=_text(body, "plan") or _text(body, "tariff"),
    )
    return Described(number, amojo_id.lower(), facts, user if type(user) is int else None)


def _inner(body: Mapping[str, object], name: str) -> Mapping[str, object]:
    found = body.get(name)
    return found if isinstance(found, dict) else {}


def _text(body: Mapping[str, object], name: str) -> str | None:
    found = body.get(name)
    return printable(found)[:TEXT_MAX] if isinstance(found, str) and found else None
