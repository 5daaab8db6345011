"""The REST API from the document that `/schema` serves, and the errors from the titles that problems have."""

import json
from collections.abc import Iterator
from functools import cache
from typing import Any

from app import problems
from app.http.openapi import document
from app.service.application import PROBLEMS, Rule, routed
from ops.site.markdown import code, pretty, sentences, table

Json = dict[str, Any]
EXACT = 2**53
TAGS = {
    "history": "Conversations and messages",
    "sending": "Sending",
    "events": "Events",
    "operation": "Operation",
    "channels": "Channels",
    "accounts": "Kommo's CRM: accounts, users, talks, leads, contacts",
    "sources": "Kommo's CRM: sources",
    "templates": "Kommo's CRM: templates",
    "import": "Import",
    "keys": "Keys, and who looked",
    "webhooks": "Webhooks",
}


@cache
def schema() -> Json:
    """The document of `/schema`; it depends on the routes alone, so no service runs for it."""
    app = routed({})
    return document.document(app, app.openapi_schema.to_schema())


def operations() -> Iterator[tuple[str, str, Json]]:
    """Each operation: its method, its path and what the document has of it."""
    for path, methods in schema()["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def rest() -> str:
    """Every operation by its tag."""
    found: dict[str, list[str]] = {tag: [] for tag in TAGS}
    for method, path, operation in operations():
        found[operation["tags"][0]].append(_operation(method, path, operation))
    return "\n\n".join(f"## {title}\n\n" + "\n\n".join(found[tag]) for tag, title in TAGS.items())


def _operation(method: str, path: str, operation: Json) -> str:
    parts = [f"### {method} {path}", f"**{operation['summary']}.** {sentences(operation['description'])}"]
    if parameters := table(("parameter", "in", "type", "meaning"), _parameters(operation)):
        parts.append(parameters)
    if body := operation.get("requestBody"):
        parts += _body(body)
    parts += _answers(operation["responses"])
    return "\n\n".join(parts)


def _parameters(operation: Json) -> Iterator[tuple[str, str, str, str]]:
    for one in operation.get("parameters", ()):
        required = ", required" if one["in"] == "query" and one.get("required") else ""
        yield f"`{one['name']}`", one["in"] + required, _type(one["schema"]), one.get("description", "")


def _body(body: Json) -> Iterator[str]:
    for media_type, content in body["content"].items():
        shape = _resolved(content["schema"].get("contentSchema", content["schema"]))
        if rows := list(_fields(shape)):
            yield table(("field of the body", "type", "if left out"), rows)
        name, example = next(iter(content["examples"].items()))
        text = example["value"] if isinstance(example["value"], str) else pretty(example["value"])
        title = "" if name == "example" else f", for example {name}"
        yield f"Body, `{media_type}`{title}:\n\n{code(text, 'json')}"


def _fields(shape: Json) -> Iterator[tuple[str, str, str]]:
    required = shape.get("required", ())
    for name, schema_ in shape.get("properties", {}).items():
        default = schema_.get("default")
        absent = "" if default in (None, "", []) else f"`{json.dumps(default)}`"
        yield f"`{name}`", _type(schema_), "required" if name in required else absent


def _answers(responses: Json) -> Iterator[str]:
    """Each success with an example, equal ones together; then the statuses of redirects and errors."""
    successes: dict[str, list[str]] = {}
    for status, answer in responses.items():
        if status < "300":
            successes.setdefault("\n\n".join(_examples(answer)), []).append(f"`{status}`")
    for examples, statuses in successes.items():
        yield f"Answers {' or '.join(statuses)}" + (f":\n\n{examples}" if examples else " without a body.")
    if "307" in responses:
        yield "Redirects with `307` when the conversation was merged into another."
    if others := [f"`{status}`" for status in responses if status >= "400"]:
        yield f"Errors: {', '.join(others)}."


def _examples(answer: Json) -> Iterator[str]:
    for media_type, content in answer.get("content", {}).items():
        if example := content.get("example"):
            text = example if isinstance(example, str) else pretty(example)
            title = "" if media_type == "application/json" else f"As `{media_type}`:\n\n"
            yield title + code(text, "json" if media_type.endswith("json") else "text")


def _resolved(shape: Json) -> Json:
    if "$ref" in shape:
        found: Json = schema()["components"]["schemas"][shape["$ref"].rpartition("/")[2]]
        return found
    return shape


def _type(shape: Json) -> str:
    """A type in a word or two, with its bounds."""
    if "anyOf" in shape:
        return " or ".join(_type(one) for one in shape["anyOf"] if one.get("type") != "null")
    if "enum" in shape:
        return ", ".join(f"`{value}`" for value in shape["enum"] if value is not None)
    shape = _resolved(shape)
    kind = str(shape.get("type", "any"))
    if kind == "array":
        return f"list of {_type(shape.get('items', {}))}"
    if kind == "object":
        inner = ", ".join(f"`{name}`" for name in shape.get("properties", ()))
        return f"object of {inner}" if inner else "object"
    return {"string": "text"}.get(kind, kind) + _bounds(shape)


def _bounds(shape: Json) -> str:
    """The bounds and the default, without those that only keep integers exact in every language."""
    low, high = shape.get("minimum"), shape.get("maximum")
    text = f", {low} to {high}" if high and high < EXACT else f", at least {low}" if low is not None else ""
    default = shape.get("default")
    return text + (f", else {default}" if default is not None and high else "")


def errors() -> str:
    """Every status of an error, with what the table of the application answers by it."""
    rows = []
    for status, title in problems.TITLES.items():
        many = sum(str(status) in one["responses"] for _, _, one in operations())
        meanings = [_meaning(kind, rule) for kind, rule in PROBLEMS.items() if rule.status == status]
        rows.append((f"`{status}`", title, "; ".join(dict.fromkeys(meanings)), str(many or "")))
    return table(("status", "title", "such as", "operations that document it"), rows)


def _meaning(kind: type[Exception], rule: Rule) -> str:
    return rule.advice or sentences(kind.__doc__ or "").partition(". ")[0].rstrip(".")
