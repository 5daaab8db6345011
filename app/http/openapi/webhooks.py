"""`webhooks` of the OpenAPI document: what we post to a messenger of the kind "webhook", and what it answers.

What such a messenger posts to us is the path `/messengers/{channel}` of the same document.
"""

import inspect
from collections.abc import Mapping
from typing import Any

from app.http.openapi.examples import ACCOUNT, AT, LATER, MARIA
from app.messengers.calls import CALLS, CallRefused

Json = dict[str, Any]
JSON = "application/json"
SHAPES: list[Any] = [shape for body, answer, _ in CALLS.values() for shape in (body, answer)] + [CallRefused]
HEADERS = {
    "webhook-id": "the id of the event, the same in every repeat: answer a repeat as the first time",
    "webhook-timestamp": "when this was sent, in unix seconds",
    "webhook-signature": (
        "`v1,` and the base64 HMAC-SHA256 of `{webhook-id}.{webhook-timestamp}.{body}`, keyed with the secret"
        " (the base64 after `whsec_`)"
    ),
}
AGAIN = (
    "not now: it is sent again, not before `Retry-After`. The same for 408, 425, 5xx and no answer in 10 s"
)
NEVER = "never: the message has failed. The same for every other 4xx but 401, 403, 404, 405 and 410"
NOBODY = (
    "our signature is refused, or nothing is here (403, 404, 405, 410): it is sent again when that is mended"
)

# Each call with its answer.
_called: Json = {"account_id": ACCOUNT, "conversation_id": "conv-1"}
EXAMPLES: dict[str, tuple[Json, Json]] = {
    "message.send": (
        {
            "type": "message.send",
            "id": "5f0fd5ba-0c47-5c86-b2b0-2cf0a7a2b1b5",
            **_called,
            "message": {"type": "text", "text": "Hi"},
            "sender": {"id": MARIA, "name": "Maria"},
            "receiver": {"id": "u-1", "phone": "+15550100"},
            "at": AT,
            "reply_to": {"message_id": "m-1"},
        },
        {"message_id": "x-9"},
    ),
    "typing": ({"type": "typing", **_called, "sender": {"id": MARIA}, "expires_at": LATER}, {}),
    "reaction.added": (
        {
            "type": "reaction.added",
            **_called,
            "message_id": "m-1",
            "sender": {"id": MARIA},
            "emoji": "👍",
            "at": AT,
        },
        {},
    ),
    "reaction.removed": (
        {"type": "reaction.removed", **_called, "message_id": "m-1", "sender": {"id": MARIA}, "at": AT},
        {},
    ),
    "probe": ({"type": "probe", "id": "019ab0c2-0000-7000-8000-000000000002", "at": AT}, {}),
}


def described(known: Mapping[str, Json]) -> Json:
    """Each call by its type; `known` has the schemas of `SHAPES`, by their `repr`."""
    parameters = [
        {"name": name, "in": "header", "required": True, "description": text, "schema": {"type": "string"}}
        for name, text in HEADERS.items()
    ]
    return {
        name: {
            "post": {
                "operationId": f"call.{name}",
                "summary": summary,
                "description": inspect.getdoc(body) or "",
                "tags": ["webhooks"],
                "parameters": parameters,
                "requestBody": {"required": True, "content": _content(known, body, EXAMPLES[name][0])},
                "responses": {
                    "200": _answer("done", known, answer, EXAMPLES[name][1]),
                    "401": {"description": NOBODY},
                    "422": _answer(NEVER, known, CallRefused, {"code": 904, "text": "no such user"}),
                    "429": {"description": AGAIN},
                },
            }
        }
        for name, (body, answer, summary) in CALLS.items()
    }


def _answer(description: str, known: Mapping[str, Json], shape: Any, example: Json) -> Json:
    return {"description": description, "content": _content(known, shape, example)}


def _content(known: Mapping[str, Json], shape: Any, example: Json) -> Json:
    return {JSON: {"schema": known[repr(shape)], "example": example}}
