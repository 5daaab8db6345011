"""A message's content, and the one table of where each of its fields travels.

A field is declared once, in `Content`, with its ways. Whatever else has a list of such fields derives it from
there: the messenger's actions and Kommo's hooks on their way in, Kommo's payloads and the messenger's pushes
on their way out, quotes, and the message that REST shows. So a new field is one line here.
"""

from collections.abc import Callable, Iterator, Mapping
from enum import Flag, auto
from functools import cache
from types import MappingProxyType, NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias, TypeVar, cast, get_args, get_origin

import msgspec
from msgspec import Struct
from msgspec.structs import FieldInfo

from domain.parts import Contact, Json, Location, Reply

MessageType: TypeAlias = Literal[
    "text", "picture", "file", "video", "voice", "audio", "sticker", "location", "contact"
]
MESSAGE_TYPES: tuple[str, ...] = get_args(MessageType)
AnyStruct = TypeVar("AnyStruct", bound=Struct)


class Way(Flag):
    """A way that a field of a content travels."""

    FROM_MESSENGER = auto()
    """A messenger may give it in an action: `messengers/contract.Message`."""
    TO_KOMMO = auto()
    """It is in the payload of a message or an edit: `kommo/chats/payloads`."""
    FROM_KOMMO = auto()
    """Kommo may give it in a hook: `kommo/chats/hook_schema.HookMessage`."""
    TO_MESSENGER = auto()
    """It is in the push of a message: `messengers/webhook`."""
    SHOWN = auto()
    """REST shows it: `views/messages.Message`."""
    DRAWN = auto()
    """The console has markup of its own for it: `http/console/templates/_body.html`."""
    QUOTED_BY_KOMMO = auto()
    """Kommo embeds it where a message is quoted: kept in `Reply.quoted`."""
    QUOTED_TO_KOMMO = auto()
    """Kommo takes it where a message is quoted that it does not have."""


IN = Way.FROM_MESSENGER | Way.TO_KOMMO
OUT = Way.FROM_KOMMO | Way.TO_MESSENGER
SEEN = Way.SHOWN | Way.DRAWN
QUOTED = Way.QUOTED_BY_KOMMO | Way.QUOTED_TO_KOMMO


class Content(Struct, frozen=True, omit_defaults=True):
    """A message's content, and the conversation as both sides name it.

    `type` is a `MessageType`. `file_size` is in bytes, `media_duration` in seconds. `forwards_cut` is the
    number of forwarded messages that were too long to keep. `forwarded` is the message that a customer
    forwards, if an id names it. `raw` is the whole of a message of a type that is unknown here: `text` has
    what could be understood of it.
    """

    type: Annotated[str, IN | OUT | SEEN | QUOTED]
    text: Annotated[str | None, IN | OUT | SEEN | QUOTED] = None
    media: Annotated[str | None, IN | OUT | SEEN | Way.QUOTED_BY_KOMMO] = None
    thumbnail: Annotated[str | None, OUT | Way.SHOWN | Way.QUOTED_BY_KOMMO] = None
    file_name: Annotated[str | None, IN | OUT | SEEN | QUOTED] = None
    file_size: Annotated[int | None, IN | OUT | SEEN | QUOTED] = None
    media_duration: Annotated[int | None, IN | OUT | SEEN | QUOTED] = None
    media_group_id: Annotated[str | None, OUT | Way.SHOWN] = None
    sticker_id: Annotated[str | None, IN | OUT | Way.SHOWN | Way.QUOTED_BY_KOMMO] = None
    location: Annotated[Location | None, IN | OUT | SEEN | QUOTED] = None
    contact: Annotated[Contact | None, IN | OUT | SEEN | QUOTED] = None
    callback_data: Annotated[str | None, IN | Way.TO_MESSENGER | Way.SHOWN] = None
    shared_post: Annotated[Json | None, IN | OUT | SEEN] = None
    post: Annotated[Json | None, IN | OUT | SEEN] = None
    markup: Annotated[Json | None, OUT | SEEN] = None
    template: Annotated[Json | None, OUT | SEEN] = None
    tag: Annotated[str | None, Way.FROM_KOMMO | Way.SHOWN] = None
    reply_to: Annotated[Reply | None, SEEN] = None
    forwards: Annotated[Json | None, OUT | SEEN] = None
    forwards_cut: Annotated[int, SEEN] = 0
    conversation_id: str | None = None
    chat_id: str | None = None
    forwarded: Annotated[Reply | None, Way.SHOWN] = None
    raw: Annotated[Json | None, Way.SHOWN] = None


class Field(NamedTuple):
    """A field of `Content`: its type without None, its default, and its ways."""

    name: str
    type: Any
    optional: bool
    default: Any
    ways: Way


def _fields() -> Iterator[Field]:
    for field in msgspec.structs.fields(Content):
        declared, *marks = get_args(field.type) if get_origin(field.type) is Annotated else (field.type,)
        optional = isinstance(declared, UnionType)
        kind = next(one for one in get_args(declared) if one is not NoneType) if optional else declared
        ways = next((one for one in marks if isinstance(one, Way)), Way(0))
        yield Field(field.name, kind, optional, field.default, ways)


FIELDS = tuple(_fields())


def names(way: Way, kind: Any = None) -> tuple[str, ...]:
    """The fields that travel a way, in the order of `Content`; given a `kind`, those of that type alone."""
    return tuple(one.name for one in FIELDS if way in one.ways and kind in (None, one.type))


def plain_fields(content: Content, way: Way) -> Json:
    """The fields of a way that are JSON as they are, in the order of `Content`; absent ones are left out."""
    return {name: value for name in _plain(way) if (value := getattr(content, name)) is not None}


def part_fields(content: Content, way: Way) -> Json:
    """The other fields of a way, which hold a struct of `domain/parts` such as a location, as objects."""
    return {
        name: msgspec.to_builtins(value)
        for name in _parts(way)
        if (value := getattr(content, name)) is not None
    }


@cache
def _plain(way: Way) -> tuple[str, ...]:
    return tuple(name for name in names(way) if name not in _parts(way))


@cache
def _parts(way: Way) -> tuple[str, ...]:
    return tuple(one.name for one in FIELDS if way in one.ways and hasattr(one.type, "__struct_fields__"))


def carrying(
    way: Way, types: Mapping[Any, Any] = MappingProxyType({})
) -> Callable[[type[AnyStruct]], type[AnyStruct]]:
    """Decorates a frozen Struct: adds the fields of a content that travel a way.

    The class declares fields of its own, and those of a content that have another type or place in it. Each
    of the others stands behind the field that it follows in `Content`, with the type that `types` gives for
    its own. All fields of the class are keyword-only.
    """

    def complete(shape: type[AnyStruct]) -> type[AnyStruct]:
        fields = [(own.name, own.type, _default(own)) for own in msgspec.structs.fields(shape)]
        place = 0
        for one in FIELDS:
            declared = [name for name, _, _ in fields]
            if one.name in declared:
                place = declared.index(one.name) + 1
            elif way in one.ways:
                kind = types.get(one.type, one.type)
                default = msgspec.field(default=one.default)
                fields.insert(place, (one.name, kind | None if one.optional else kind, default))
                place += 1
        return cast(
            "type[AnyStruct]",
            msgspec.defstruct(
                shape.__name__,
                fields,
                namespace={"__doc__": shape.__doc__},
                module=shape.__module__,
                frozen=True,
                kw_only=True,
            ),
        )

    return complete


def _default(field: FieldInfo) -> Any:
    if field.default_factory is not msgspec.NODEFAULT:
        return msgspec.field(default_factory=field.default_factory)
    return msgspec.field(default=field.default)
