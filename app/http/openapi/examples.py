"""One story, told in the examples of `/schema`: Ann writes to Acme, and Maria answers her in Kommo.

`SHAPES` has an example of each shape that a route takes or answers, by its name.
"""

import json
from typing import Any

from app.http.openapi.status import AT as AT
from app.http.openapi.status import LATER as LATER
from app.http.openapi.status import STATUS

Json = dict[str, Any]

CHANNEL_ID = "344a5002-f8ca-454d-af3d-396180102ac7"
ACCOUNT = "52e591f7-c98f-4255-8495-827210138c81"
SCOPE = f"{CHANNEL_ID}_{ACCOUNT}"
BOT = "b07b07b0-0000-4000-8000-000000000001"
SECRET = "f2d7f8704eff95087ed45b23ba99c0b5aac8278e"  # noqa: S105 - published in Kommo's documentation
WHSEC = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"  # published with Standard Webhooks
HOOK = "https://messenger.example/hook"
CHAT = "ef03399d-1a38-57f9-93f3-fc994fba5ae9"
CHAT_ID = "6cbab3d5-c4c1-46ff-b710-ad59ad10805f"
MESSAGE = "8d74efe1-75f2-5187-b077-55828d4430b3"
KOMMO_ID = "079e44fb-fc22-476b-9e8a-421b688ec53b"
MARIA = "0f8f1c5e-7f0a-4c52-9a43-3b1d0c7a1e01"
CRM_URL = "https://acme.kommo.com"
LEAD = "6d1c9e6a3f5c4f7e9a9d"
HOOK_KEY = "rT4nq2PzH0yB3vY6mJ8kQw5sLx7cUe9aGd1fWi3oNbE"
EVENT = "019ab0c2-7d7a-7c3e-8c7b-0a5b5e1d2f3c"
ANN: Json = {"id": "u-1", "name": "Ann"}
SENT: Json = {
    "type": "message.sent",
    "id": EVENT,
    "stream": MESSAGE,
    "version": 1,
    "channel": "acme",
    "account": ACCOUNT,
    "conversation": CHAT,
    "message": MESSAGE,
    "at": AT,
    "recorded_at": AT,
    "by": "messenger",
    "schema": 1,
    "direction": "in",
    "own_id": "m-1",
    "msec": 1795334400000,
    "sender": {"id": "u-1", "name": "Ann"},
    "content": {"type": "text", "text": "Hello", "conversation_id": "conv-1"},
    "push": "kommo",
}
METRICS = "# TYPE chatledger_ledger_head gauge\nchatledger_ledger_head 13.0\n"
LINE = f'{{"position":12,"event":{json.dumps(SENT)}}}\n'
FOLLOWED = f": following\n\nid: 12\ndata: {json.dumps(SENT)}\n\n"

_message: Json = {
    "id": MESSAGE,
    "position": 12,
    "conversation": CHAT,
    "channel": "acme",
    "account_id": ACCOUNT,
    "direction": "in",
    "sent_by": "messenger",
    "type": "text",
    "text": "Hello",
    "sender": ANN,
    "receiver": None,
    "source": None,
    "silent": False,
    "imported": False,
    "sent_at": AT,
    "recorded_at": AT,
    "status": "accepted",
    "failure": None,
    "remote": {"kommo": KOMMO_ID, "messenger": "m-1"},
    "edited": False,
    "edited_at": None,
    "deleted": False,
    "reactions": [{"emoji": "👍", "by": "kommo", "sender_id": MARIA, "at": LATER}],
}
_timeline: list[Json] = [
    {
        "position": 12,
        "id": EVENT,
        "type": "message.sent",
        "at": AT,
        "recorded_at": AT,
        "by": "messenger",
        "push": "kommo",
    },
    {
        "position": 13,
        "id": "019ab0c2-7f10-7d21-9d32-5b1c2d3e4f50",
        "type": "message.accepted",
        "at": LATER,
        "recorded_at": LATER,
        "by": "kommo",
        "cause": EVENT,
        "side": "kommo",
        "remote_id": KOMMO_ID,
    },
]
_conversation: Json = {
    "id": CHAT,
    "channel": "acme",
    "account_id": ACCOUNT,
    "conversation_id": "conv-1",
    "chat_id": CHAT_ID,
    "contact_id": 4711,
    "lead_id": 815,
    "last_message_at": AT,
    "messages": 1,
    "position": 13,
    "last": {"direction": "in", "type": "text", "text": "Hello", "status": "accepted", "deleted": False},
}
_delivery: Json = {
    "position": 12,
    "id": EVENT,
    "type": "message.sent",
    "destination": "kommo",
    "channel": "acme",
    "account_id": ACCOUNT,
    "conversation": CHAT,
    "message": MESSAGE,
    "state": "deferred",
    "reason": "HTTP 503 from Kommo",
    "answer": None,
    "attempts": 3,
    "next_try_at": LATER,
    "recorded_at": AT,
    "updated": 14,
}
_rest: Json = {"channel": "acme", "account_id": ACCOUNT, "destination": "kommo", "since": AT}
_connection: Json = {"account_id": ACCOUNT, "scope_id": SCOPE, "title": "Acme chat", "connected_at": AT}
_channel: Json = {
    "name": "acme",
    "kommo": {"channel_id": CHANNEL_ID, "bot_id": BOT},
    "messenger": {"kind": "webhook", "url": HOOK},
    "connections": [_connection],
    "message_ids": "per channel",
    "default_account": None,
}

_source: Json = {
    "id": 31,
    "name": "Support line",
    "external_id": "15550999",
    "pipeline_id": None,
    "default": True,
    "origin_code": None,
    "services": [],
}
_review: Json = {"id": 61, "source_id": 31, "status": "rejected", "reject_reason": "the footer is missing"}
_template: Json = {
    "id": 41,
    "account_id": 12345678,
    "name": "Welcome",
    "content": "Hello {{contact.name}}",
    "type": "waba",
    "is_editable": False,
    "external_id": "welcome-1",
    "created_at": 1795334400,
    "updated_at": 1795334400,
    "review_status": "rejected",
    "is_on_review": False,
    "waba_footer": None,
    "waba_category": "UTILITY",
    "waba_language": "en",
    "waba_examples": {"{{contact.name}}": "Ann"},
    "waba_header": "Hello",
    "waba_header_type": "text",
    "_embedded": {"reviews": [_review]},
}
_webhook: Json = {
    "destination": f"https://chat.example.com/crm/{ACCOUNT}/{HOOK_KEY}",
    "id": 71,
    "settings": ["add_talk", "update_talk"],
    "disabled": False,
}

SHAPES: dict[str, Json] = {
    "NewConversation": {
        "channel": "acme",
        "account_id": ACCOUNT,
        "conversation_id": "conv-1",
        "user": ANN | {"phone": "+15550100"},
        "source": {"external_id": "15550999"},
    },
    "NewMessage": {
        "message_id": "order-17-shipped",
        "sender": {"user_id": MARIA, "name": "Maria"},
        "message": {"type": "text", "text": "Your parcel is on its way"},
        "reply_to": {"id": MESSAGE},
    },
    "StatusNow": {"status": "failed", "code": 904, "text": "not a user"},
    "Accepted": {"id": MESSAGE, "position": 12, "duplicate": False},
    "NewChannel": {
        "name": "acme",
        "kommo": {"channel_id": CHANNEL_ID, "secret": SECRET, "bot_id": BOT},
        "messenger": {"kind": "webhook", "url": HOOK, "secret": WHSEC},
    },
    "ChannelChange": {"messenger": {"url": HOOK, "secret": WHSEC}},
    "NewConnection": {"account_id": ACCOUNT, "title": "Acme chat"},
    "ChannelShown": _channel,
    "ChannelsShown": {"items": [_channel]},
    "ConnectionShown": _connection,
    "MessengerHealth": {"health": "ok", "name": "Acme on the messenger"},
    "Alive": {"status": "ok"},
    "Ready": {
        "ready": True,
        "parts": [{"part": "ledger", "state": "ok"}, {"part": "relay", "state": "active"}],
    },
    "Conversation": _conversation,
    "Conversations": {"items": [_conversation], "next": None},
    "Messages": {"items": [_message], "next": None},
    "History": _message | {"timeline": _timeline},
    "Events": {"items": [{"position": 12, "event": SENT}], "next": 12},
    "Deliveries": {"items": [_delivery], "next": None},
    "Outcomes": {"results": [{"id": MESSAGE, "position": 12, "duplicate": False}]},
    "Status": STATUS
    | {
        "resting": [_rest | {"next_try_at": LATER, "tries": 7, "reason": "HTTP 402", "answer": "pay first"}],
    },
    "ResumeOrder": {"states": ["failed"], "channel": "acme", "since": AT},
    "Resumed": {"resumed": 2},
    "Authorize": {"url": "https://www.kommo.com/oauth?client_id=…&state=…&mode=popup", "expires_at": LATER},
    "AccountsShown": {
        "items": [
            {
                "account_id": ACCOUNT,
                "crm_id": 12345678,
                "subdomain": "acme",
                "crm_url": CRM_URL,
                "name": "Acme",
                "time_zone": "Europe/Berlin",
                "currency": "EUR",
                "country": "DE",
                "language": "en",
                "plan": None,
                "state": "authorized",
                "advice": None,
                "channels": [{"name": "acme", "connected": True}],
                "steps": [
                    {"step": "authorize", "done_at": AT},
                    {"step": "connect acme", "done_at": AT},
                    {
                        "step": "source",
                        "error": "Kommo answered HTTP 402: the account's plan does not cover it",
                    },
                ],
            }
        ]
    },
    "UsersShown": {"items": [{"id": 501, "name": "Maria", "email": "maria@acme.example", "amojo_id": MARIA}]},
    "TalkShown": {
        "talk_id": 77,
        "created_at": 1795334400,
        "updated_at": 1795334460,
        "rate": 0,
        "contact_id": 4711,
        "chat_id": CHAT_ID,
        "entity_id": 815,
        "entity_type": "lead",
        "is_in_work": True,
        "is_read": False,
        "origin": "amo.ext.acme",
        "missed_at": None,
        "account_id": 12345678,
    },
    "CloseTalk": {"force_close": True},
    "AcceptLead": {"user_id": 501, "status_id": 142},
    "DeclineLead": {"user_id": 501},
    "LinkLead": {"entity_id": 815, "entity_type": "leads", "contact_id": 4711, "user_id": 501},
    "LeadShown": {"uid": LEAD},
    "ChatLinks": {"items": [{"chat_id": CHAT_ID, "contact_id": 4711, "id": 26219}]},
    "LinkChat": {"contact_id": 4711},
    "LinkShown": {"id": CHAT, "chat_id": CHAT_ID, "contact_id": 4711},
    "NewSources": {"items": [{"name": "Support line", "external_id": "15550999", "default": True}]},
    "SourceChanges": {"items": [{"id": 31, "name": "Sales line"}]},
    "SourceShown": _source,
    "SourcesShown": {"items": [_source]},
    "NewTemplates": {
        "items": [{"name": "Welcome", "content": "Hello {{contact.name}}", "external_id": "welcome-1"}]
    },
    "TemplateChanges": {"items": [{"id": 41, "content": "Good day {{contact.name}}"}]},
    "TemplateShown": _template,
    "TemplatesShown": {"items": [_template]},
    "ReviewVerdict": {"status": "rejected", "reject_reason": "the footer is missing"},
    "ReviewShown": _review,
    "ReviewsShown": {"items": [_review]},
    "WebhookShown": _webhook,
    "WebhooksShown": {"items": [_webhook]},
    "RefusedPage": {
        "items": [
            {
                "id": EVENT,
                "scope_id": SCOPE,
                "received_at": AT,
                "first_received_at": AT,
                "times": 1,
                "why": "unreadable",
                "reason": "neither `message` nor `action.typing` is in it",
                "body": "e30=",
            }
        ],
        "next": None,
    },
    "Waiting": {
        "items": [
            {
                "position": 40,
                "id": EVENT,
                "message": MESSAGE,
                "type": "message.edited",
                "by": "messenger",
                "channel": "acme",
                "account_id": ACCOUNT,
                "at": AT,
                "recorded_at": AT,
            }
        ],
        "next": None,
    },
    "NewKey": {"name": "reports", "scopes": ["read"], "accounts": [ACCOUNT]},
    "KeyMade": {"id": EVENT, "key": "cl_7Qk0V…"},
    "KeysShown": {
        "items": [
            {
                "id": EVENT,
                "name": "reports",
                "scopes": ["read"],
                "accounts": [ACCOUNT],
                "created_at": AT,
                "expires_at": LATER,
                "last_used_at": None,
            }
        ]
    },
    "Replace": {"overlap_seconds": 3600},
    "AccessPage": {
        "items": [
            {
                "position": 5,
                "at": AT,
                "key_id": EVENT,
                "key_name": "reports",
                "method": "GET",
                "route": "/v1/conversations/{conversation}/messages",
                "account_id": None,
                "conversation": CHAT,
                "message": None,
                "address": "203.0.113.7",
                "status": 200,
            }
        ],
        "next": None,
    },
    "TakenUp": {"id": EVENT, "position": 41, "duplicate": False},
}

# What the messenger may say, an example of each action.


def _of(kind: str, **more: Any) -> Json:
    return {"type": kind, "conversation_id": "conv-1", "at": AT, **more}


ACTIONS: Json = {
    "sent": _of("message.sent", message_id="m-1", sender=ANN, message={"type": "text", "text": "Hello"}),
    "picture": _of(
        "message.sent",
        message_id="m-2",
        sender=ANN | {"phone": "+15550100"},
        message={"type": "picture", "media": "https://files.example.com/x.jpg", "file_name": "x.jpg"},
        reply_to={"message_id": "m-1"},
        source={"external_id": "15550999"},
    ),
    "on the phone": _of(
        "message.sent",
        direction="out",
        message_id="m-3",
        sender={"id": "acme", "name": "Acme", "user_id": MARIA},
        receiver=ANN,
        message={"type": "text", "text": "On my way"},
    ),
    "forwarded": _of(
        "message.sent",
        message_id="m-4",
        sender=ANN,
        message={"type": "text", "text": "Look"},
        forwards={"messages": [{"message_id": "m-2"}], "conversation_id": "conv-1"},
    ),
    "edited": _of("message.edited", message_id="m-1", message={"type": "text", "text": "Hello!"}),
    "deleted": _of("message.deleted", message_id="m-1"),
    "delivered": _of("message.delivered", message_id="x-9"),
    "read": _of("message.read", message_id="x-9"),
    "failed": _of("message.failed", message_id="x-9", code=904, text="not a user"),
    "typing": _of("typing", sender=ANN),
    "reaction": _of("reaction.added", message_id="x-9", sender=ANN, emoji="👍"),
    "unreaction": _of("reaction.removed", message_id="x-9", sender=ANN),
    "several": [_of("message.delivered", message_id="x-9"), _of("message.read", message_id="x-9")],
}

# What Kommo may say.
_chat = {"id": CHAT_ID, "client_id": "conv-1"}
HOOKS: Json = {
    "message": {
        "account_id": ACCOUNT,
        "time": 1795334401,
        "message": {
            "conversation": _chat,
            "sender": {"id": MARIA},
            "receiver": {"id": "r-1", "client_id": "u-1", "phone": "+15550100", "email": ""},
            "timestamp": 1795334400,
            "msec_timestamp": 1795334400980,
            "message": {
                "id": KOMMO_ID,
                "type": "text",
                "text": "Hi",
                "markup": None,
                "tag": "",
                "file_size": 0,
            },
        },
    },
    "typing": {
        "account_id": ACCOUNT,
        "time": 1795334401,
        "action": {"typing": {"user": {"id": MARIA}, "conversation": _chat, "expired_at": 1795334406}},
    },
    "reaction": {
        "account_id": ACCOUNT,
        "time": 1795334401,
        "action": {
            "reaction": {
                "message": {"id": KOMMO_ID},
                "user": {"id": MARIA},
                "conversation": _chat,
                "type": "react",
                "emoji": "👍",
            }
        },
    },
}
