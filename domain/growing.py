"""A mapping that grows in place and stays a value: `put` returns the larger one, and the smaller one remains.

All versions of a mapping share one dictionary, which belongs to the latest version that was used. Every other
one remembers the single entry in which it differs from its neighbour, so whoever reads an older version moves
the dictionary back to it, entry by entry (H. Baker, "Shallow Binding Makes Functional Arrays Fast"). Reading
the latest version and adding to it cost the same however large it is, and that is what folding a stream does.
"""

from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar, cast, overload

K = TypeVar("K")
V = TypeVar("V")
D = TypeVar("D")
_ABSENT = object()


class Growing(Mapping[K, V], Generic[K, V]):
    """An immutable mapping; `put` and reading take the same time whatever its size."""

    __slots__ = ("_key", "_next", "_own", "_value")

    def __init__(self, entries: Mapping[K, V] | None = None) -> None:
        self._own: dict[K, V] | None = dict(entries) if entries else {}
        self._next: Growing[K, V] | None = None
        self._key: object = None
        self._value: object = None

    def put(self, key: K, value: V) -> "Growing[K, V]":
        """Returns the mapping with one more entry, or with another value of one."""
        own = self._entries()
        if not own:
            return Growing({key: value})  # All begin with the same empty one, and share nothing.
        larger: Growing[K, V] = Growing.__new__(Growing)
        larger._own, larger._next = own, None
        self._own, self._next, self._key, self._value = None, larger, key, own.get(key, _ABSENT)
        own[key] = value
        return larger

    @overload
    def get(self, key: K, /) -> V | None: ...
    @overload
    def get(self, key: K, /, default: V | D) -> V | D: ...
    def get(self, key: K, /, default: object = None) -> object:
        """Returns the value of a key, or the default; faster than what Mapping has."""
        return self._entries().get(key, default)

    def __getitem__(self, key: K) -> V:
        return self._entries()[key]

    def __contains__(self, key: object) -> bool:
        return key in self._entries()

    def __iter__(self) -> Iterator[K]:
        return iter(self._entries())

    def __len__(self) -> int:
        return len(self._entries())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Growing) and dict(self._entries()) == other._entries()

    __hash__ = None  # type: ignore[assignment]  # as of any mapping

    def __repr__(self) -> str:
        return f"Growing({self._entries()!r})"

    def _entries(self) -> dict[K, V]:
        return self._own if self._own is not None else self._take_back()

    def _take_back(self) -> dict[K, V]:
        """Move the dictionary here from the version that has it, and turn the way there around."""
        path = [self]
        while (after := path[-1]._next) is not None:
            path.append(after)
        holder = path.pop()
        own = holder._own
        assert own is not None
        for before in reversed(path):
            key = cast("K", before._key)
            holder._own, holder._next = None, before
            holder._key, holder._value = key, own.get(key, _ABSENT)
            if before._value is _ABSENT:
                del own[key]
            else:
                own[key] = cast("V", before._value)
            before._own, before._next, before._key, before._value = own, None, None, None
            holder = before
        return own
