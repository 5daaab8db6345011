"""What Prometheus is told; no label holds personal data, an id or anything unbounded."""

from prometheus_client import Counter, Gauge, Histogram

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)

WEBHOOKS = Counter("chatledger_webhooks_total", "Webhooks answered", ["side", "status"])
WEBHOOK_SECONDS = Histogram(
    "chatledger_webhook_seconds", "Time to a durable answer", ["side"], buckets=_SECONDS
)
DELIVERIES = Counter(
    "chatledger_deliveries_total", "Outcomes of attempts to push", ["destination", "outcome"]
)
PUSH_SECONDS = Histogram("chatledger_push_seconds", "Time of one attempt", ["destination"], buckets=_SECONDS)
PAUSED = Gauge("chatledger_paused_scopes", "Connections where Kommo refuses us (403) and someone must look")
QUEUE = Gauge("chatledger_ledger_queue", "Commands that wait for the ledger")
HEAD = Gauge("chatledger_ledger_head", "Position of the last event this process committed or saw")
VIEW_POSITION = Gauge("chatledger_view_position", "Position that the views have reached")
RELAY_POSITION = Gauge("chatledger_relay_position", "Position that the stream has reached")
