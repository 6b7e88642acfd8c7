"""What the edge counts, and the page on which Prometheus reads it."""

from collections import Counter
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


@dataclass(slots=True, kw_only=True, eq=False)
class Stats(Collector):
    """Plain integers: the hot path must not take a lock for each. Bytes are of bodies and tunnels."""

    connection_count: int = 0
    exchange_count: int = 0
    """Requests under way now."""
    received_bytes: int = 0
    sent_bytes: int = 0
    forwarded_count: int = 0
    """Requests that a sandbox answered."""
    answered: Counter[int] = field(default_factory=Counter)
    """Answers of the edge's own, by status."""
    broken_count: int = 0
    """Answers that began and could not be completed."""

    def collect(self) -> list[Metric]:
        answered = CounterMetricFamily(
            "firebrick_edge_own_answers", "Requests that the edge answered itself", labels=["status"]
        )
        for status, count in sorted(self.answered.items()):
            answered.add_metric([str(status)], count)
        return [
            GaugeMetricFamily("firebrick_edge_connections", "Client connections now", value=self.connection_count),
            GaugeMetricFamily("firebrick_edge_exchanges", "Requests under way now", value=self.exchange_count),
            CounterMetricFamily(
                "firebrick_edge_forwarded", "Requests that a sandbox answered", value=self.forwarded_count
            ),
            CounterMetricFamily("firebrick_edge_broken", "Answers cut before their end", value=self.broken_count),
            CounterMetricFamily("firebrick_edge_received_bytes", "Body bytes from clients", value=self.received_bytes),
            CounterMetricFamily("firebrick_edge_sent_bytes", "Body bytes to clients", value=self.sent_bytes),
            answered,
        ]

    def page(self) -> str:
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        return generate_latest(registry).decode()
