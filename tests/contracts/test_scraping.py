"""What Prometheus reads of a process: the metrics that docs/metrics.md lists, and nothing beside them."""

import re
import urllib.request

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from mint_contracts.scraping import expose


def test_counters_and_histograms_have_no_series_that_say_when_they_were_created() -> None:
    registry = CollectorRegistry()
    Counter("mint_test_requests_total", "Requests", ["code"], registry=registry).labels("OK").inc()
    Histogram("mint_test_seconds", "Seconds", buckets=(1,), registry=registry).observe(0.5)
    Gauge("mint_test_running", "Requests", registry=registry).set(2)
    server, thread = expose(0, registry)
    try:
        for accepted in ("text/plain", "application/openmetrics-text; version=1.0.0"):
            wanted = urllib.request.Request(f"http://127.0.0.1:{server.server_port}/metrics")
            wanted.add_header("Accept", accepted)
            with urllib.request.urlopen(wanted) as answer:
                said = answer.read().decode()
            assert set(re.findall(r"^(mint_\w+)", said, re.MULTILINE)) == {
                "mint_test_requests_total",
                "mint_test_seconds_bucket",
                "mint_test_seconds_count",
                "mint_test_seconds_sum",
                "mint_test_running",
            }
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
