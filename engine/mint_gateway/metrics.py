"""A gateway's Prometheus metrics. Adapter names are not labels: there are a million of them."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from mint_contracts.errors import MintError

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class Metrics:
    """The gateway's metrics, in their own registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "mint_gateway_requests",
            "Requests that ended, by gRPC status and client key",
            ["code", "client"],
            registry=self.registry,
        )
        self.training_calls = Counter(
            "mint_gateway_training_calls",
            "Trainer calls that ended, by call, gRPC status and client key",
            ["call", "code", "client"],
            registry=self.registry,
        )
        self.unauthenticated = Counter(
            "mint_gateway_unauthenticated",
            "Calls without a known key, by door",
            ["door"],
            registry=self.registry,
        )
        self.first_token = Histogram(
            "mint_gateway_first_token_seconds",
            "Time from a request's arrival to its first token",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._retries = Counter(
            "mint_gateway_retries",
            "Attempts after which another engine was tried, by reason",
            ["reason"],
            registry=self.registry,
        )
        self._catalogs_failing = Gauge(
            "mint_gateway_catalogs_failing",
            "Catalogs whose last maintenance failed",
            registry=self.registry,
        )
        self._in_flight = Gauge("mint_gateway_in_flight", "Requests being answered now", registry=self.registry)
        self._map_age = Gauge(
            "mint_gateway_map_age_seconds", "Seconds since the placement map was last read", registry=self.registry
        )
        self._map_outages = Counter(
            "mint_gateway_map_outages", "Times that Redis became unavailable", registry=self.registry
        )

    def observe(
        self,
        in_flight: Callable[[], float],
        map_age_s: Callable[[], float],
        catalogs_failing: Callable[[], float],
    ) -> None:
        """Register functions that are read at each scrape."""
        self._in_flight.set_function(in_flight)
        self._map_age.set_function(map_age_s)
        self._catalogs_failing.set_function(catalogs_failing)

    def count_outage(self) -> None:
        """Count one outage: Redis, which answered before or was never reached, does not answer."""
        self._map_outages.inc()

    def count_retry(self, error: MintError) -> None:
        """Count one failed attempt after which another engine is asked."""
        self._retries.labels(error.reason).inc()
