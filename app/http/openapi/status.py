"""The example of the status: a moment of the story, in which one damaged event is parked for one view."""

from typing import Any

AT = "2026-11-22T08:00:00.000Z"
LATER = "2026-11-22T08:00:00.412Z"
STATUS: dict[str, Any] = {
    "ledger": "019ab0c2-0000-7000-8000-000000000001",
    "head": 13,
    "queue": 0,
    "views": [
        {"view": name, "position": 13, "lag": 0, "parked": int(name == "messages"), "stands": False}
        for name in ("channels", "conversations", "messages", "deliveries", "events")
    ],
    "projection": {
        "parked": [
            {
                "view": "messages",
                "position": 9,
                "cause": "event",
                "error": "it cannot be decoded: JSON is malformed: invalid character (byte 0)",
                "parked_at": AT,
            }
        ]
    },
    "relay": {"active": True, "position": 13, "lag": 0},
    "deliveries": {"pending": 1, "deferred": 1, "parked": 0, "oldest_position": 12, "failed": 0},
    "connections": [],
    "unconnected": [
        {
            "channel": "acme",
            "account_id": "52e591f7-c98f-4255-8495-827210138c82",
            "deliveries": 3,
            "since": AT,
            "seconds": 61.5,
        }
    ],
}
