"""Who asks: what a key may do, and for which accounts."""

from typing import Literal, TypeAlias

from msgspec import Struct

Right: TypeAlias = Literal["read", "send", "audit", "admin"]
# What else a right includes: `audit` reads everything that `read` does, `admin` may do all.
INCLUDED: dict[Right, frozenset[Right]] = {
    "read": frozenset({"read"}),
    "send": frozenset({"send"}),
    "audit": frozenset({"audit", "read"}),
    "admin": frozenset({"admin", "audit", "send", "read"}),
}


class Caller(Struct, frozen=True):
    """Who asks, by the id and name of the key; `accounts` are the only ones in reach, None for all.

    The admin key has no id.
    """

    id: str | None
    name: str
    rights: frozenset[Right]
    accounts: frozenset[str] | None = None

    def may(self, right: Right) -> bool:
        """Whether the key has a right, or one that includes it."""
        return any(right in INCLUDED[one] for one in self.rights)

    def reaches(self, account: str | None) -> bool:
        """Whether something of an account (None: of no account) is in reach."""
        return self.accounts is None or (account is not None and account.lower() in self.accounts)

    @property
    def limited_to(self) -> list[str] | None:
        """The accounts in reach as a filter of statements, None for all."""
        return None if self.accounts is None else sorted(self.accounts)


ADMIN = Caller(None, "admin key", frozenset({"admin"}))
