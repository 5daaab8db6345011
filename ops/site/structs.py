"""Events, contents, a messenger's actions and metrics, from the structs and counters that define them."""

import inspect
import re
from collections.abc import Iterator
from typing import Any, get_args

import msgspec
import yaml
from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.metrics import MetricWrapperBase

from app import metrics as measured
from app.http.openapi.examples import ACCOUNT, CHAT, CHAT_ID, EVENT, KOMMO_ID, LATER, MARIA, MESSAGE
from app.messengers import contract, webhook
from app.messengers.adapter import Push
from domain import events as e
from ops.site.build import ROOT
from ops.site.markdown import code, pretty, sentences, table
from ops.site.types import fields, within

COMMON = frozenset(e.Event.__struct_fields__)
KINDS = {Counter: "counter", Gauge: "gauge", Histogram: "histogram"}


def events() -> str:
    """Every type of event by its tag, the fields that all have first."""
    found = [f"## Fields of every event\n\n{_text(e.Event)}\n\n{fields(e.Event)}"]
    kinds = sorted(get_args(e.AnyEvent), key=e.TAGS.__getitem__)
    found += [f"## {e.TAGS[kind]}\n\n{_text(kind)}\n\n{fields(kind, without=COMMON)}" for kind in kinds]
    return "\n\n".join(found)


def contents() -> str:
    """The structs that events are made of."""
    return "\n\n".join(_shape(shape) for shape in within(get_args(e.AnyEvent)))


def actions() -> str:
    """What a messenger posts: each action, then the shapes in them."""
    kinds = get_args(contract.Action)
    found = [f"### {_tag(kind)}\n\n{_text(kind)}\n\n{fields(kind)}" for kind in kinds]
    return "\n\n".join([*found, *(_shape(shape) for shape in within(kinds))])


def calls() -> str:
    """What a messenger of the kind webhook is sent, made by the code that makes it."""
    return "\n\n".join(
        f"### {title}\n\n{code(pretty(webhook.request(push)), 'json')}" for title, push in _pushes()
    )


def _pushes() -> Iterator[tuple[str, Push]]:
    """An event of each kind that is sent, from the story of the examples."""
    maria, ends = {"id": MARIA, "name": "Maria"}, {"conversation_id": "conv-1", "chat_id": CHAT_ID}
    sent = _event(
        "message.sent",
        direction="out",
        own_id=KOMMO_ID,
        msec=1,
        sender=maria,
        receiver={"client_id": "u-1", "phone": "+15550100"},
        content={"type": "text", "text": "Hi Ann", **ends},
    )
    typing = _event("typing.started", sender=maria, content=ends, expires_at=LATER)
    added = _event("reaction.added", sender=maria, content=ends, emoji="👍")
    removed = _event("reaction.removed", sender=maria, content=ends)
    yield "A message", Push(sent, "conv-1", reply_id="m-1")
    yield "Typing", Push(typing, "conv-1")
    yield "A reaction", Push(added, "conv-1", message_id="m-1")
    yield "A reaction taken back", Push(removed, "conv-1", message_id="m-1")


def _event(tag: str, **fields: object) -> Any:
    common = {
        "id": EVENT, "stream": MESSAGE, "version": 1, "schema": 1, "channel": "acme", "account": ACCOUNT,
        "conversation": CHAT, "message": MESSAGE, "at": LATER, "recorded_at": LATER, "by": "kommo",
    }  # fmt: skip
    return msgspec.convert({"type": tag, **common, **fields}, e.AnyEvent)


def metrics() -> str:
    """Every metric of ours: name, type, labels and meaning."""
    rows = []
    for metric in vars(measured).values():
        if isinstance(metric, MetricWrapperBase):
            (described,) = metric.describe()
            suffix = "_total" if isinstance(metric, Counter) else ""
            labels = ", ".join(f"`{label}`" for label in metric._labelnames)
            rows.append((f"`{described.name}{suffix}`", KINDS[type(metric)], labels, described.documentation))
    for family in measured.WEBHOOKS.collect():
        suffix = "_total" if family.type == "counter" else ""
        labels = ", ".join(f"`{label}`" for label in family._labelnames)
        rows.append((f"`{family.name}{suffix}`", family.type, labels, family.documentation))
    return table(("name", "type", "labels", "meaning"), sorted(rows))


def alerts() -> str:
    """Every alert of ops/monitoring/alerts.yaml: how urgent it is, and what it means."""
    found = yaml.safe_load((ROOT / "ops/monitoring/alerts.yaml").read_text())
    rules = [rule for group in found["groups"] for rule in group["rules"]]
    return table(
        ("alert", "urgency", "what it says", "what it means"),
        [
            (
                f"`{rule['alert']}`",
                rule["labels"]["severity"],
                re.sub(r"\{\{ \$labels\.(\w+) \}\}", r"`\1`", rule["annotations"]["summary"]),
                rule["annotations"]["description"],
            )
            for rule in rules
        ],
    )


def _shape(shape: type) -> str:
    return f"### {shape.__name__}\n\n{_text(shape)}\n\n{fields(shape)}"


def _tag(kind: type) -> str:
    return str(getattr(kind, "__struct_config__").tag)  # noqa: B009 - every member of the union is a struct


def _text(shape: type) -> str:
    return sentences(inspect.getdoc(shape) or "")
