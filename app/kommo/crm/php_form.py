"""A PHP form (`talk[add][0][talk_id]=7`) as nested objects of texts, within bounds.

Source: PHP's own parsing of variable names, by which Kommo's CRM writes its webhooks.
"""

import re
from typing import TypeAlias
from urllib.parse import unquote_to_bytes

PAIRS_MAX = 4000  # Chosen: three times the fields of 100 talks; a body of 256 KB could hold 80 000.
DEPTH_MAX = 10  # Chosen: Kommo's deepest field has six parts; a body of 256 KB could nest 80 000 deep.

Tree: TypeAlias = dict[str, "Tree | str"]
_KEY = re.compile(r"([^\[]+)((?:\[[^\[\]]*\])*)")
_PART = re.compile(r"\[([^\[\]]*)\]")


class BadForm(ValueError):
    """The body is not a form that can be read; the message says why."""


def read(body: bytes) -> Tree:
    """Returns the form's fields by their names; a list is an object with the keys "0", "1" ….

    `a[]` takes the next free number. A repeated field replaces the first one; a field without a name is left
    out. Characters that the database cannot store become U+FFFD. Raises BadForm.
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
    """`a[b][c]` as its parts; a name of another shape is one part."""
    match = _KEY.fullmatch(name)
    if match is None:
        return [name]
    inner = _PART.findall(match[2])
    if len(inner) >= DEPTH_MAX:
        raise BadForm(f"a field is nested deeper than {DEPTH_MAX}")
    return [match[1], *inner]


def _put(root: Tree, path: list[str], value: str) -> None:
    node = root
    for part in path[:-1]:
        child = node.get(key := part or str(len(node)))
        if not isinstance(child, dict):
            child = node[key] = {}
        node = child
    node[path[-1] or str(len(node))] = value
