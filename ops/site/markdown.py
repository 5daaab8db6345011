"""Markdown as the generated blocks need it: tables whose cells are escaped, and code."""

import json
from collections.abc import Iterable, Sequence

JSON_WIDTH = 96  # Of a block of code on a page without scrolling, at the site's usual width.


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; nothing if there are no rows."""
    lines = [f"| {' | '.join(map(_cell, row))} |" for row in rows]
    if not lines:
        return ""
    return "\n".join([f"| {' | '.join(head)} |", "|---" * len(head) + "|", *lines])


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def code(text: str, language: str = "text") -> str:
    """A block of code."""
    return f"```{language}\n{text.strip()}\n```"


def sentences(text: str) -> str:
    """A docstring as a paragraph or several: its line breaks mean nothing, its empty lines do."""
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n") if part.strip())


def pretty(value: object, indent: str = "") -> str:
    """JSON, each object and array in one line where it fits."""
    flat = json.dumps(value, ensure_ascii=False)
    if len(indent) + len(flat) <= JSON_WIDTH or not isinstance(value, dict | list) or not value:
        return flat
    deeper = indent + "  "
    if isinstance(value, dict):
        lines = [f"{deeper}{json.dumps(key)}: {pretty(one, deeper)}" for key, one in value.items()]
        return "{\n" + ",\n".join(lines) + f"\n{indent}}}"
    return "[\n" + ",\n".join(deeper + pretty(one, deeper) for one in value) + f"\n{indent}]"
