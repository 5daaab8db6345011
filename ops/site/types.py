"""Types of msgspec structs in the words of the reference pages."""

from collections.abc import Iterable, Iterator
from typing import Any

from msgspec import NODEFAULT, UNSET, inspect

from ops.site.markdown import table

PLAIN: dict[type[inspect.Type], str] = {
    inspect.StrType: "text",
    inspect.IntType: "integer",
    inspect.FloatType: "number",
    inspect.BoolType: "true or false",
    inspect.DateTimeType: "time with zone",
    inspect.DictType: "object",
    inspect.AnyType: "any",
}


def fields(shape: type, *, without: frozenset[str] = frozenset()) -> str:
    """A table of a struct's fields: name, type and bounds, and what holds when it is left out."""
    rows = [
        (f"`{field.encode_name}`", words(field.type), _default(field))
        for field in _fields(shape)
        if field.encode_name not in without
    ]
    return table(("field", "type", "if left out"), rows)


def within(shapes: Iterable[type]) -> list[type]:
    """The structs that the fields of these are made of, and those of their fields, each once, by name."""
    found: set[type] = set()
    waiting: list[inspect.Type] = [field.type for shape in shapes for field in _fields(shape)]
    while waiting:
        match waiting.pop():
            case inspect.Metadata(type=inner) | inspect.ListType(item_type=inner):
                waiting.append(inner)
            case inspect.UnionType(types=types):
                waiting.extend(types)
            case inspect.StructType(cls=cls, fields=inside) if cls not in found:
                found.add(cls)
                waiting.extend(one.type for one in inside)
    return sorted(found, key=lambda cls: cls.__name__)


def _fields(shape: type) -> tuple[inspect.Field, ...]:
    info = inspect.type_info(shape)
    assert isinstance(info, inspect.StructType)
    return info.fields


def words(kind: inspect.Type) -> str:
    """A type with its bounds; the name of a struct is left to the page, which has a heading for it."""
    match kind:
        case inspect.Metadata(type=inner):
            return words(inner)
        case inspect.UnionType(types=types):
            return " or ".join(words(one) for one in types if not isinstance(one, inspect.NoneType))
        case inspect.LiteralType(values=values):
            return ", ".join(f"`{value}`" for value in sorted(map(str, values)))
        case inspect.StructType(cls=cls):
            return f"[{cls.__name__}](#{cls.__name__.lower()})"
        case inspect.ListType(item_type=item) | inspect.VarTupleType(item_type=item):
            return f"list of {words(item)}"
        case inspect.SetType(item_type=item) | inspect.FrozenSetType(item_type=item):
            return f"some of {words(item)}"
    bounds = ", ".join(_bounds(kind))
    name = PLAIN.get(type(kind), type(kind).__name__.removesuffix("Type").lower())
    return f"{name}, {bounds}" if bounds else name


def _bounds(kind: inspect.Type) -> Iterator[str]:
    low, high = getattr(kind, "ge", None), getattr(kind, "le", None)
    if low is not None and high is not None:
        yield f"{_number(low)} to {_number(high)}"
    elif getattr(kind, "gt", None) is not None:
        yield f"over {_number(getattr(kind, 'gt', 0))}, at most {_number(high)}"
    least, most = getattr(kind, "min_length", None), getattr(kind, "max_length", None)
    if most is not None:
        yield f"{least or 0} to {most} characters" if isinstance(kind, inspect.StrType) else f"at most {most}"


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and value >= 10_000 else str(value)


def _default(field: inspect.Field) -> str:
    if field.required:
        return "required"
    value = field.default
    if value is NODEFAULT or value in (None, UNSET, "", [], ()):
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"
