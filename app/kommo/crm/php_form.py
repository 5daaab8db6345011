"""A form as PHP writes it (`talk[add][0][talk_id]=7`) is read into nested objects of texts, within bounds."""

import re
from typing import TypeAlias
from urllib.parse import unquote_to_bytes

PAIRS_MAX = 4000
DEPTH_MAX = 10

Tree: TypeAlias = dict[str, "Tree | str"]
_KEY = re.compile(r"([^\[]+)((?:\[[^\[\]]*\])*)")
_PART = re.compile(r"\[([^\[\]]*)\]")


class BadForm(ValueError):
    """The body is no form that can be read; the message says why."""


def read(body: bytes) -> Tree:
    """The form's fields by their names; a list is an object with the keys "0", "1" ….

    `a[]` takes the next free number. A field that comes again replaces the first, one without a name is left
    out. What cannot be stored becomes U+FFFD. Raises BadForm.
    """
    pairs = [pair for pair in body.strip().split(b"&", PAIRS_MAX) if pair]
    if len(pairs) > PAIRS_MAX:
        raise BadForm(f"more than {PAIRS_MAX} fields")
    root: Tree = {}
    for pair in pairs:
        name, _, value = pair.partition(b"=")
        if name:
            _put(root, _path(_text(name)), _text(value))
    return root


def _text(raw: bytes) -> str:
    return unquote_to_bytes(raw.replace(b"+", b" ")).decode("utf-8", "replace").replace("\0", "\ufffd")


def _path(name: str) -> list[str]:
    """`a[b][c]` as its parts; a name that is not of this shape is one part."""
    found = _KEY.fullmatch(name)
    if found is None:
        return [name]
    inner = _PART.findall(found[2])
    if len(inner) >= DEPTH_MAX:
        raise BadForm(f"a field is nested deeper than {DEPTH_MAX}")
    return [found[1], *inner]


def _put(root: Tree, path: list[str], value: str) -> None:
    where = root
    for part in path[:-1]:
        inner = where.get(key := part or str(len(where)))
        if not isinstance(inner, dict):
            inner = where[key] = {}
        where = inner
    where[path[-1] or str(len(where))] = value
