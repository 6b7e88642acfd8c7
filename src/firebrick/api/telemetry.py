"""What operators scrape: requests, sandboxes, nodes, reconcilers, in Prometheus' text format."""

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from firebrick.control.plane import ControlPlane
from firebrick.model.node import NodeState
from firebrick.model.sandbox import SandboxState

BUCKETS_S = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Telemetry:
    """One registry per application, so that several live in one process (tests, all-in-one)."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "firebrick_http_requests", "Requests answered.", ("method", "route", "status"), registry=self.registry
        )
        self._durations = Histogram(
            "firebrick_http_request_duration_seconds",
            "Time until the answer was complete.",
            ("method", "route"),
            buckets=BUCKETS_S,
            registry=self.registry,
        )
        self._sandboxes = Gauge(
            "firebrick_sandboxes", "Sandboxes in each state.", ("state",), registry=self.registry
        )  # fmt: skip

    def watch(self, control: ControlPlane) -> None:
        """Also show the control plane's nodes and reconcilers."""
        self.registry.register(_ControlCollector(control))

    def count(self, *, method: str, route: str, status: int, duration_s: float) -> None:
        """`route` is the path's template, never the path: its values are bounded."""
        self._requests.labels(method, route, str(status)).inc()
        self._durations.labels(method, route).observe(duration_s)

    def render(self, sandbox_counts: Mapping[SandboxState, int]) -> bytes:
        for state in SandboxState:
            if state is not SandboxState.ENDED:
                self._sandboxes.labels(state.value).set(sandbox_counts.get(state, 0))
        return generate_latest(self.registry)


class _ControlCollector(Collector):
    def __init__(self, control: ControlPlane) -> None:
        self._control = control

    def collect(self) -> Iterator[Metric]:
        ready = GaugeMetricFamily("firebrick_node_ready", "1 while the node answers.", labels=("node_id",))
        warm = GaugeMetricFamily("firebrick_node_warm_sandboxes", "Ready sandboxes kept.", labels=("node_id",))
        wanted = GaugeMetricFamily(
            "firebrick_node_warm_wanted", "Ready sandboxes the demand asks for.", labels=("node_id",)
        )
        for node_id, node in self._control.platform.nodes.statuses.items():
            ready.add_metric((node_id,), float(node.state is NodeState.READY))
            warm.add_metric((node_id,), float(node.warm_count))
            wanted.add_metric((node_id,), float(node.warm_wanted_count))
        yield ready
        yield warm
        yield wanted
        rounds = CounterMetricFamily("firebrick_reconciler_rounds", "Rounds run.", labels=("reconciler",))
        failures = CounterMetricFamily("firebrick_reconciler_failures", "Rounds failed.", labels=("reconciler",))
        for reconciler in self._control.reconcilers:
            rounds.add_metric((reconciler.status.name,), float(reconciler.status.round_count))
            failures.add_metric((reconciler.status.name,), float(reconciler.status.failure_count))
        yield rounds
        yield failures
