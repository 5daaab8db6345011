"""What Prometheus is told; no label holds personal data, an id or anything unbounded."""

from bisect import bisect_left
from collections.abc import Iterator

from prometheus_client import REGISTRY, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)

DELIVERIES = Counter(
    "chatledger_deliveries_total", "Outcomes of attempts to push", ["destination", "outcome"]
)
WAITING = Gauge("chatledger_deliveries_waiting", "Deliveries of all processes that are not done", ["state"])
PUSH_SECONDS = Histogram("chatledger_push_seconds", "Time of one attempt", ["destination"], buckets=_SECONDS)
BUDGET_SECONDS = Histogram(
    "chatledger_budget_seconds", "Time that calls to Kommo waited for their turn", ["api"], buckets=_SECONDS
)
UNNAMED = Counter(
    "chatledger_unnamed_messages_total",
    "Messages that the other side accepted without a name",
    ["destination"],
)
UNRECORDED = Gauge(
    "chatledger_unrecorded_outcomes",
    "Outcomes of deliveries that the ledger does not take; each is tried again",
)
REFUSED = Counter("chatledger_refused_hooks_total", "Hooks of Kommo that were not taken, and kept", ["why"])
DROPPED = Counter("chatledger_dropped_hooks_total", "Refused hooks that were dropped for their number or age")
KEPT = Gauge("chatledger_kept_hooks", "Refused hooks that are kept until someone has them taken up")
PAUSED = Gauge(
    "chatledger_paused_scopes", "Accounts and messengers that refuse us, so that what is for them waits"
)
ROLE_ACTIVE = Gauge("chatledger_role_active", "Whether this process has a role now", ["role"])
QUEUE = Gauge("chatledger_ledger_queue", "Commands that wait for the ledger")
HEAD = Gauge("chatledger_ledger_head", "Position of the last event this process committed or saw")
VIEW_POSITION = Gauge("chatledger_view_position", "Position that the views have reached")
VIEW_PARKED = Gauge("chatledger_view_parked", "Events that a view could not take", ["view"])
VIEW_STANDS = Gauge("chatledger_view_stands", "Whether a view stands still at an event", ["view"])
REBUILD_REFUSED = Gauge("chatledger_rebuild_refused", "Whether new views were refused for the old ones")
RELAY_POSITION = Gauge("chatledger_relay_position", "Position that the stream has reached")
RELAY_STANDS = Gauge(
    "chatledger_relay_stands_seconds", "For how long the relay has not been able to publish, 0 if it is"
)
RELAY_REPLICAS = Gauge("chatledger_relay_replicas", "How often NATS keeps the stream")
ACCESS_LOST = Counter(
    "chatledger_access_lost_total", "Entries of who looked that were lost, because the database was away"
)
CONNECTIONS = Gauge("chatledger_connections", "Open connections of clients")
CONNECTIONS_MAX = Gauge("chatledger_connections_max", "Connections of clients that may be open at a time")
BAD_REQUESTS = Counter(
    "chatledger_bad_requests_total", "Requests that were refused unread, by kind", ["kind"]
)


class Webhooks(Collector):
    """Answers to webhooks: counted in plain numbers, for the library's locks cost 5 µs an answer."""

    def __init__(self) -> None:
        self._answers: dict[tuple[str, int], int] = {}
        self._buckets = {side: [0] * (len(_SECONDS) + 1) for side in ("kommo", "messenger", "crm")}
        self._sums = dict.fromkeys(self._buckets, 0.0)

    def answered(self, side: str, status: int, seconds: float) -> None:
        """Count an answer of a side ("kommo", "messenger" or "crm") and the time it took."""
        key = (side, status)
        self._answers[key] = self._answers.get(key, 0) + 1
        self._buckets[side][bisect_left(_SECONDS, seconds)] += 1
        self._sums[side] += seconds

    def collect(self) -> Iterator[CounterMetricFamily | HistogramMetricFamily]:
        """For Prometheus."""
        answers = CounterMetricFamily("chatledger_webhooks", "Webhooks answered", labels=["side", "status"])
        for (side, status), count in self._answers.items():
            answers.add_metric([side, str(status)], count)
        yield answers
        times = HistogramMetricFamily(
            "chatledger_webhook_seconds", "Time to a durable answer", labels=["side"]
        )
        for side, counts in self._buckets.items():
            total, buckets = 0, []
            for limit, count in zip((*map(str, _SECONDS), "+Inf"), counts, strict=True):
                total += count
                buckets.append((limit, total))
            times.add_metric([side], buckets, self._sums[side])
        yield times


WEBHOOKS = Webhooks()
REGISTRY.register(WEBHOOKS)
